"""Files are paired by their names; files that do not pair are all reported together."""

import os
import pickle
import unicodedata

import numpy as np
import pytest
import tifffile
from raw_folders import config, find, notes, paths, problem, put, read, skipping

from project.data.config import TableConfig
from project.data.raw.images import FileRef
from project.data.raw.patterns import files_below
from project.data.raw.sources import PatternSource
from project.errors import UserError


def test_plain_pairs(raw):
    put(raw, "in/b.tif", "in/a.tif", "out/a.tif", "out/b.tif", "notes/c.tif")
    samples = find(raw, "in/{id}.tif", target={"t": "out/{id}.tif"}, mask="in/{id}.tif")
    assert [s.id for s in samples] == [s.group for s in samples] == ["a", "b"]
    assert samples[1].images == {
        "image": [FileRef(raw / "in/b.tif")],
        "target": [FileRef(raw / "out/b.tif")],
        "mask": [FileRef(raw / "in/b.tif")],
    }
    assert pickle.loads(pickle.dumps(samples)) == samples


def test_fields_in_another_order_pair_up(raw):
    put(raw, "d1/w2/i3.tif", "w2/i3_d1.tif", "d2/w1/i3.tif", "w1/i3_d2.tif")
    samples = find(raw, "{day}/{well}/{id}.tif", target={"t": "{well}/{id}_{day}.tif"}, group="{day}-{well}")
    assert [paths(s, "target")[0].name for s in samples] == ["i3_d1.tif", "i3_d2.tif"]
    assert [s.group for s in samples] == ["d1-w2", "d2-w1"]


def test_a_file_belongs_to_the_pattern_with_most_text(raw):
    put(raw, "a.tif", "a_mask.tif", "b.tif", "b_mask.tif")
    assert [sample.id for sample in find(raw, "{id}.tif", mask="{id}_mask.tif")] == ["a", "b"]


def test_star_stands_for_anything_within_a_name(raw):
    put(raw, "x/a_2024.tif", "y/b_2025.tif", "y/deep/c_1.tif")
    assert [s.id for s in find(raw, "*/{id}_*.tif")] == ["a", "b"]


def test_channels_of_one_file(raw):
    tifffile.imwrite(raw / "a.tif", np.arange(60, dtype=np.uint16).reshape(3, 4, 5), photometric="minisblack")
    (sample,) = find(raw, {"two": "{id}.tif[2]", "zero": "{id}.tif[0]"}, target={"one": "{id}.tif[1]"})
    assert read(sample, "image")[:, 0, 0].tolist() == [40, 0]
    assert read(sample, "target")[:, 0, 0].tolist() == [20]


def test_the_case_of_a_suffix_does_not_count(raw):
    put(raw, "in/a.tif", "in/b.TIF", "in/c.Tif", "out/a.tif", "out/b.tif", "out/c.TIF")
    samples = find(raw, "in/{id}.tif", target={"t": "out/{id}.TIF"})
    assert [s.id for s in samples] == ["a", "b", "c"]
    assert paths(samples[1], "image") == [raw / "in/b.TIF"]
    put(raw, "in/a.TIF")
    assert "a: found twice, in/a.TIF and in/a.tif" in problem(raw, "in/{id}.tif", target={"t": "out/{id}.tif"})


def test_files_that_no_pattern_fits_are_counted(raw):
    put(raw, "in/a.tif", "in/b.tiff", "in/c.tiff", "m/a.tif", "more/x.tif", "old/a.tif")
    (raw / "t.csv").write_text("id,kind,split\na,x,train\n")
    (raw / "s.csv").write_text("id,split\na,train\n")
    table = TableConfig("t.csv", label="kind")
    _, (note,) = notes(raw, "in/{id}.tif", mask="m/{id}.tif", unlabelled={"a": "more/{id}.tif"}, table=table)
    assert 'files fit no pattern and are not read (2 .tiff, 1 .tif, 1 .csv), such as "in/b.tiff"' in note
    assert '"in/{id}.*" fits both' in note
    assert [s.id for s in find(raw, "in/{id}.*")] == ["a", "b", "c"]


def test_fields_can_be_restricted(raw):
    put(raw, *(f"{split}{kind}/{i}.tif" for split in ("train", "val", "old") for kind in ("", "annot") for i in "12"))
    with pytest.raises(UserError, match=r"\{split:train\|val\|test\}"):
        find(raw, "{split}/{id}.tif", mask="{split}annot/{id}.tif")
    samples, lines = notes(raw, "{split:train|val|test}/{id}.tif", mask="{split}annot/{id}.tif")
    assert [(s.id, s.split) for s in samples] == [
        ("train/1", "train"), ("train/2", "train"), ("val/1", "val"), ("val/2", "val")
    ]  # fmt: skip
    assert paths(samples[2], "mask") == [raw / "valannot/1.tif"]
    assert "4 files fit no pattern" in lines[0]
    assert lines[1] == 'no file has "test" for the field {split}'
    with pytest.raises(UserError, match="must be train"):
        find(raw, "{split:train|old}/{id}.tif", mask="{split}annot/{id}.tif")
    with pytest.raises(UserError, match="in another pattern"):
        find(raw, "{split:train|val}/{id}.tif", mask="{split:val}annot/{id}.tif")


@pytest.mark.parametrize(
    ("text", "folders"), [("z{0..2}", ["z0", "z1", "z2"]), ("z{08..10}", ["z08", "z09", "z10"]), ("{b|a}", ["b", "a"])]
)
def test_a_range_makes_channels(raw, text, folders):
    for value, folder in enumerate(folders):
        put(raw, f"{folder}/x.tif", f"{folder}/y.tif", fill=value)
    options = [folder.removeprefix("z") for folder in folders]
    image = {"phase": f"{text}/{{id}}.tif", "first": f"{folders[0]}/{{id}}.tif"}
    names = [*(f"phase[{option}]" for option in options), "first"]
    assert PatternSource(config(raw, image)).channels["image"] == names
    assert read(find(raw, image)[1], "image")[:, 0, 0].tolist() == [*range(len(folders)), 0]
    (raw / folders[1] / "y.tif").unlink()
    assert f'y: no image file for "{folders[1]}' in problem(raw, image)
    assert "only `image` and `target`" in problem(raw, f"{folders[0]}/{{id}}.tif", mask=f"{text}/{{id}}.tif")


def test_no_folder_and_nothing_in_it(raw):
    assert "is empty" in problem(raw, "{id}.tif")
    assert "does not exist" in problem(raw / "nowhere", "{id}.tif")


def test_no_match_shows_what_there_is(raw):
    put(raw, "images/a.tif", "images/b.tiff")
    message = f'no file below "{raw}" fits "image/{{id}}.tif"; for instance there is "images/a.tif" (1 .tif, 1 .tiff)'
    assert message in problem(raw, "image/{id}.tif")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{1}/{name}.tif", "needs an {id}"),
        ("a/../{id}.tif", "below the raw folder"),
        ("/data/{id}.tif", "below the raw folder"),
        ("{id}.jp2", "must end in one of"),
    ],
)
def test_patterns_that_cannot_work(raw, text, why):
    put(raw, "a.tif")
    message = problem(raw, text)
    assert why in message
    assert f'"{text}"' in message


def test_group_from_an_unknown_field(raw):
    put(raw, "d/a.tif")
    for template in ("{plate}", "{0}", "{day", "{day.x}", "{day:d}"):
        assert "must be made of the fields day, id" in problem(raw, "{day}/{id}.tif", group=template)


def test_accented_letters_are_one_or_two_codes(raw):
    """What macOS writes (NFD) pairs with what others write (NFC), also where the pattern has such a letter."""
    name, two = "Zelle ü", unicodedata.normalize("NFD", "Zelle ü")
    assert name != two
    put(raw, f"{two}_in é.tif", f"é/{name}.tif")
    (sample,) = find(raw, "{id}_in é.tif", target={"t": unicodedata.normalize("NFD", "é/{id}.tif")}, group="{id}")
    assert (sample.id, sample.group) == (name, name)
    assert read(sample, "image").shape == (1, 4, 5)
    assert paths(sample, "image") == [raw / f"{two}_in é.tif"]


def test_names_that_are_not_utf8_are_reported(raw):
    put(raw, "new\nline.tif")
    (raw / os.fsdecode(b"b\xff.tif")).touch()
    message = problem(raw, "{id}.tif")
    assert "'b\\udcff': the id is empty or not UTF-8" in message
    message.encode()
    assert [s.id for s in skipping(raw, "{id}.tif")[0]] == ["new\nline"]


def test_linked_folders_are_folders(raw, tmp_path):
    put(tmp_path, "elsewhere/a.tif", "elsewhere/deep/b.tif", "elsewhere/.hidden/c.tif")
    (raw / "images").symlink_to(tmp_path / "elsewhere")
    (raw / "same").symlink_to(tmp_path / "elsewhere")
    put(raw, ".trash/d.tif")
    assert files_below(raw) == ["images/a.tif", "images/deep/b.tif", "same/a.tif", "same/deep/b.tif"]
    assert [s.id for s in find(raw, "images/{id}.tif", mask="same/{id}.tif")] == ["a"]


def test_loops_of_links_end(raw):
    put(raw, "deep/a.tif", "other/b.tif")
    (raw / "deep/self").symlink_to(raw)
    (raw / "deep/here").symlink_to(".")
    (raw / "deep/over").symlink_to(raw / "other")
    (raw / "other/back").symlink_to(raw / "deep")
    (raw / "nothing").symlink_to("nothing")
    found = files_below(raw)
    assert {"deep/a.tif", "other/b.tif", "deep/over/b.tif", "other/back/a.tif"} <= set(found)
    assert len(found) == len(set(found)) < 10
    assert [s.id for s in find(raw, "deep/{id}.tif")] == ["a"]
