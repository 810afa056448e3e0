"""Files are paired by their names; whatever does not pair is told, all at once."""

import os
import pickle
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from project.data.config import (
    ArrayConfig,
    DatasetConfig,
    SplitConfig,
    TableConfig,
)
from project.data.raw import patterns
from project.data.raw.declarations import NodataRule
from project.data.raw.find import find_samples
from project.data.raw.images import FileRef
from project.data.raw.labels import find_labels
from project.data.raw.patterns import Pattern, files_below
from project.data.raw.roles import read_role
from project.data.raw.samples import Problems, Sample
from project.data.raw.sources import ArraySource, PatternSource, find_source
from project.errors import UserError


@pytest.fixture
def raw(tmp_path):
    """A folder and a way to fill it with tiny images."""
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def put(folder: Path, *names: str, shape: tuple[int, ...] = (4, 5), fill: int = 0) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / name, np.full(shape, fill, np.uint16), photometric="minisblack")


def find(folder: Path, image: dict[str, str] | str, **options):
    config = DatasetConfig(str(folder), {"a": image} if isinstance(image, str) else image, **options)
    return find_samples(config, Problems())


def skipping(folder: Path, image: dict[str, str] | str, **options) -> tuple[list[Sample], list[tuple[str, str]]]:
    problems = Problems(skip=True)
    config = DatasetConfig(str(folder), {"a": image} if isinstance(image, str) else image, **options)
    return find_samples(config, problems), problems.skipped


def read(sample: Sample, role: str) -> np.ndarray:
    return read_role(sample, role, lambda ref: ref.open())


def paths(sample: Sample, role: str) -> list[Path]:
    return [path for ref in sample.images[role] for path in ref.paths]


def problem(folder: Path, image: dict[str, str] | str, **options) -> str:
    with pytest.raises(UserError) as caught:
        find(folder, image, **options)
    return str(caught.value)


def test_plain_pairs(raw):
    put(raw, "in/b.tif", "in/a.tif", "out/a.tif", "out/b.tif", "notes/c.tif")
    samples = find(raw, "in/{id}.tif", target={"t": "out/{id}.tif"}, mask="in/{id}.tif")
    assert [s.id for s in samples] == [s.group for s in samples] == ["a", "b"]
    assert samples[1].images == {
        "image": [FileRef(raw / "in/b.tif")],
        "target": [FileRef(raw / "out/b.tif")],
        "mask": [FileRef(raw / "in/b.tif", nodata=samples[0].images["mask"][0].nodata, exact=True)],
    }
    assert pickle.loads(pickle.dumps(samples)) == samples


def test_further_fields_belong_to_the_id(raw):
    put(raw, "s1/a/x.tif", "s1/b/x.tif", "s2/a/x.tif", "s2/b/x.tif")
    samples = find(raw, "{set}/a/{id}.tif", target={"t": "{set}/b/{id}.tif"}, group="{set}")
    assert [(s.id, s.group) for s in samples] == [("s1/x", "s1"), ("s2/x", "s2")]
    assert paths(samples[1], "target") == [raw / "s2/b/x.tif"]


def test_fields_in_another_order_pair_up(raw):
    put(raw, "d1/w2/i3.tif", "w2/i3_d1.tif", "d2/w1/i3.tif", "w1/i3_d2.tif")
    samples = find(raw, "{day}/{well}/{id}.tif", target={"t": "{well}/{id}_{day}.tif"}, group="{day}-{well}")
    assert [paths(s, "target")[0].name for s in samples] == ["i3_d1.tif", "i3_d2.tif"]
    assert [s.group for s in samples] == ["d1-w2", "d2-w1"]


def test_star_stands_for_anything_within_a_name(raw):
    put(raw, "x/a_2024.tif", "y/b_2025.tif", "y/deep/c_1.tif")
    assert [s.id for s in find(raw, "*/{id}_*.tif")] == ["a", "b"]


def test_channels_of_one_file(raw):
    tifffile.imwrite(raw / "a.tif", np.arange(60, dtype=np.uint16).reshape(3, 4, 5), photometric="minisblack")
    (sample,) = find(raw, {"two": "{id}.tif[2]", "zero": "{id}.tif[0]"}, target={"one": "{id}.tif[1]"})
    assert read(sample, "image")[:, 0, 0].tolist() == [40, 0]
    assert read(sample, "target")[:, 0, 0].tolist() == [20]
    (sample,) = find(raw, "{id}.tif[3]")
    with pytest.raises(UserError, match=r"a\.tif: there is no channel 3: the file has 3"):
        read(sample, "image")


def test_the_case_of_a_suffix_does_not_count(raw):
    put(raw, "in/a.tif", "in/b.TIF", "in/c.Tif", "out/a.tif", "out/b.tif", "out/c.TIF")
    samples = find(raw, "in/{id}.tif", target={"t": "out/{id}.TIF"})
    assert [s.id for s in samples] == ["a", "b", "c"]
    assert paths(samples[1], "image") == [raw / "in/b.TIF"]
    put(raw, "in/a.TIF")
    assert "a: found twice, in/a.TIF and in/a.tif" in problem(raw, "in/{id}.tif", target={"t": "out/{id}.tif"})


def notes(folder: Path, image: dict[str, str] | str, **options) -> tuple[list[Sample], list[str]]:
    problems = Problems()
    config = DatasetConfig(str(folder), {"a": image} if isinstance(image, str) else image, **options)
    return find_samples(config, problems), problems.notes + problems.warnings


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
    config = DatasetConfig(str(raw), {"phase": f"{text}/{{id}}.tif", "first": f"{folders[0]}/{{id}}.tif"})
    names = [*(f"phase[{option}]" for option in options), "first"]
    assert PatternSource(config).channels["image"] == list(config.image) == names
    samples = find_samples(config, Problems())
    assert read(samples[1], "image")[:, 0, 0].tolist() == [*range(len(folders)), 0]
    (raw / folders[1] / "y.tif").unlink()
    with pytest.raises(UserError, match=f'y: no image file for "{folders[1]}'):
        find_samples(config, Problems())
    assert "only `image` and `target`" in problem(raw, f"{folders[0]}/{{id}}.tif", mask=f"{text}/{{id}}.tif")


def test_ranges_of_two_kinds_and_of_one_file(raw):
    config = DatasetConfig(str(raw), {"a": "z{1..0}_c{405|488}/{id}.tif"}, target={"t": "{id}.tif[{0..1}]"})
    assert config.image == {
        "a[1][405]": "z1_c405/{id}.tif", "a[1][488]": "z1_c488/{id}.tif",
        "a[0][405]": "z0_c405/{id}.tif", "a[0][488]": "z0_c488/{id}.tif",
    }  # fmt: skip
    assert config.target == {"t[0]": "{id}.tif[0]", "t[1]": "{id}.tif[1]"}
    with pytest.raises(UserError, match="must occur once"):
        DatasetConfig(str(raw), {"a": "{x|x}/{id}.tif"})


def test_brackets_elsewhere_are_part_of_the_name(raw):
    put(raw, "set[1]/a.tif", "b[7].tif")
    assert [s.id for s in find(raw, "set[1]/{id}.tif[0]")] == ["a"]
    assert Pattern.parse("set[1]/{id}.tif[12]").channel == 12
    assert Pattern.parse("set[1]/{id}.tif").channel is None


def test_every_file_without_partner_is_listed(raw):
    put(raw, "in/a.tif", "in/b.tif", "in/c.tif", "out/c.tif", "out/d.tif", "m/c.tif", "m/b.tif")
    message = problem(raw, "in/{id}.tif", target={"t": "out/{id}.tif"}, mask="m/{id}.tif")
    assert message.count("\n  - ") == 4
    for line in (
        'a: no target file for "out/{id}.tif"',
        'b: no target file for "out/{id}.tif"',
        'd: out/d.tif has no partner for "in/{id}.tif"',
        'a: no mask file for "m/{id}.tif"',
    ):
        assert f"- {line}\n" in message


def test_no_folder_and_nothing_in_it(raw):
    assert "is empty" in problem(raw, "{id}.tif")
    assert "does not exist" in problem(raw / "nowhere", "{id}.tif")
    put(raw, "a.tif")
    assert "does not exist" in problem(raw / "a.tif", "{id}.tif")


def test_no_match_shows_what_there_is(raw):
    put(raw, "images/a.tif", "images/b.tiff")
    message = problem(raw, "image/{id}.tif")
    assert '"image/{id}.tif"' in message
    assert '"images/a.tif"' in message
    assert "(2 files: .tif, .tiff)" in message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("images/a.tif", "needs an {id}"),
        ("{1}/{name}.tif", "needs an {id}"),
        ("../{id}.tif", "below the raw folder"),
        ("a/../{id}.tif", "below the raw folder"),
        ("/data/{id}.tif", "below the raw folder"),
        ("{id}.czi", "must end in one of"),
        ("{id}", "must end in one of"),
    ],
)
def test_patterns_that_cannot_work(raw, text, why):
    put(raw, "a.tif")
    message = problem(raw, text)
    assert why in message
    assert f'"{text}"' in message


def test_group_from_an_unknown_field(raw):
    put(raw, "d/a.tif")
    for template in ("{plate}", "{}", "{0}", "{day", "{day.x}", "{day:d}"):
        assert "must be made of the fields day, id" in problem(raw, "{day}/{id}.tif", group=template)


def test_options_of_the_configuration_reach_the_files(raw):
    put(raw, "a.tif")
    options = {"mask": "{id}.tif", "instances": "{id}.tif", "mask_values": {7: 1}, "ignore_index": 9, "not_finite": 0.5}
    (sample,) = find(raw, "{id}.tif", axes="YX", convert="rgb", **options)
    assert sample.images["image"] == [FileRef(raw / "a.tif", "YX", convert="rgb", nodata=NodataRule(0.5))]
    mask, instances = sample.images["mask"][0], sample.images["instances"][0]
    assert (mask.path, mask.axes, mask.convert) == (raw / "a.tif", "YX", None)
    assert (mask.nodata.fill, mask.nodata.data, instances.nodata.fill, instances.nodata.data) == (9, (7,), None, (0,))


def test_names_of_channels(raw):
    config = DatasetConfig(
        str(raw), {"x": "{id}.tif", "y": "{id}_y.tif"}, target={"t": "t/{id}.tif"}, mask="m/{id}.tif"
    )
    assert {"image": ["x", "y"], "target": ["t"], "mask": ["mask"]}.items() <= PatternSource(config).channels.items()
    config = DatasetConfig(str(raw), {"x": "{id}.tif"}, convert="rgb")
    assert PatternSource(config).channels["image"] == ["red", "green", "blue"]
    assert "image" not in ArraySource(DatasetConfig(str(raw), arrays=[ArrayConfig("a.npy")])).channels


# --- names of files ---


def test_accented_letters_are_one_or_two_codes(raw):
    """What macOS writes (NFD) pairs with what others write (NFC), also where the pattern has such a letter."""
    name, two = "Zelle ü", unicodedata.normalize("NFD", "Zelle ü")
    assert name != two
    put(raw, f"{two}_in é.tif", f"é/{name}.tif")
    (sample,) = find(raw, "{id}_in é.tif", target={"t": unicodedata.normalize("NFD", "é/{id}.tif")}, group="{id}")
    assert (sample.id, sample.group) == (name, name)
    assert read(sample, "image").shape == (1, 4, 5)
    assert paths(sample, "image") == [raw / f"{two}_in é.tif"]
    put(raw, f"{name}_in é.tif")
    assert f"{name}: found twice" in problem(raw, "{id}_in é.tif")


def test_folders_with_accented_letters_are_classes(raw):
    put(raw, f"{unicodedata.normalize('NFD', 'grün')}/a.tif", "rot/b.tif")
    samples = find(raw, "{label}/{id}.tif")
    classes = DatasetConfig("raw", {"a": "{label}/{id}.tif"}, classes=[unicodedata.normalize("NFD", "grün"), "rot"])
    assert find_labels(samples, classes.class_names("label"), Problems()).encode(samples).tolist() == [0, 1]


def test_names_that_are_not_utf8_are_reported(raw):
    put(raw, "new\nline.tif")
    (raw / os.fsdecode(b"b\xff.tif")).touch()
    message = problem(raw, "{id}.tif")
    assert "'b\\udcff': the id is empty or not UTF-8" in message
    message.encode()
    samples, skipped = skipping(raw, "{id}.tif")
    assert [s.id for s in samples] == ["new\nline"]
    assert len(skipped) == 1


# --- folders ---


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


def test_links_to_nothing_matter_only_where_they_are_asked_for(raw):
    put(raw, "a.tif", "b.tif")
    (raw / "c.tif").symlink_to(raw / "gone.tif")
    (raw / "d.txt").symlink_to(raw / "gone.txt")
    assert problem(raw, "{id}.tif").count("- c: the link c.tif leads to no file") == 1
    assert "d" not in [which for which, _ in skipping(raw, "{id}.tif")[1]]
    samples, skipped = skipping(raw, "{id}.tif")
    assert ([s.id for s in samples], [which for which, _ in skipped]) == (["a", "b"], ["c"])


def test_folders_that_may_not_be_read(raw, monkeypatch):
    put(raw, "a.tif", "deep/b.tif")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(patterns.os, "scandir", refuse)
    with pytest.raises(UserError, match=r'deep" cannot be read: Permission denied'):
        find(raw, "{id}.tif")


# --- leaving out what cannot be used ---


def test_samples_without_partner_are_left_out(raw):
    put(raw, "in/a.tif", "in/b.tif", "in/c.tif", "out/c.tif", "out/d.tif", "out/b.tif", "m/c.tif", "m/a.tif")
    samples, skipped = skipping(raw, "in/{id}.tif", target={"t": "out/{id}.tif"}, mask="m/{id}.tif")
    assert [s.id for s in samples] == ["c"]
    assert skipped == [
        ("a", 'no target file for "out/{id}.tif"'),
        ("d", 'out/d.tif has no partner for "in/{id}.tif"'),
        ("b", 'no mask file for "m/{id}.tif"'),
    ]


def test_samples_found_twice_or_in_a_strange_split_are_left_out(raw):
    put(raw, "x/train/a.tif", "y/train/a.tif", "x/dev/b.tif", "x/test/c.tif")
    samples, skipped = skipping(raw, "*/{split}/{id}.tif")
    assert [s.id for s in samples] == ["test/c"]
    assert [which for which, _ in skipped] == ["train/a", "dev/b"]


def test_nothing_left_is_an_error(raw):
    put(raw, "in/a.tif", "out/b.tif")
    with pytest.raises(UserError, match="no sample is left") as caught:
        skipping(raw, "in/{id}.tif", target={"t": "out/{id}.tif"})
    assert "- a: no target file" in str(caught.value)


def test_mistakes_of_the_configuration_are_not_skipped(raw):
    put(raw, "d/a.tif", "b.tif")
    for options in ({"target": {"t": "{id}.tif"}}, {"group": "{plate}"}, {"table": TableConfig("no.csv")}):
        with pytest.raises(UserError):
            skipping(raw, "{day}/{id}.tif", **options)


# --- pages ---


def stack(path: Path, shape: tuple[int, ...], axes: str) -> np.ndarray:
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, array, ome=True, metadata={"axes": axes}, photometric="minisblack")
    return array


def test_pages_become_samples_in_one_group(raw):
    array = stack(raw / "in/a.tif", (3, 4, 5), "TYX")
    stack(raw / "a_mask.tif", (3, 4, 5), "TYX")
    (raw / "t.csv").write_text("id,kind\na,x\n")
    table = TableConfig("t.csv", label="kind")
    samples = find(raw, "in/{id}.tif", mask="{id}_mask.tif", pages="samples", table=table)
    assert [(s.id, s.group, s.label) for s in samples] == [(f"a/page{i:04d}", "a", "x") for i in range(3)]
    np.testing.assert_array_equal(np.concatenate([read(s, "image") for s in samples]), array)
    np.testing.assert_array_equal([read(s, "mask") for s in samples], array)


def test_one_of_several_axes_becomes_samples(raw):
    array = stack(raw / "a.ome.tif", (3, 2, 6, 4, 5), "TCZYX")
    mask = stack(raw / "a_m.tif", (3, 4, 5), "TYX")
    samples = find(raw, "{id}.ome.tif", mask="{id}_m.tif", pages={"T": "samples", "C": "channels", "Z": "max"})
    assert [(s.id, s.group) for s in samples] == [(f"a/T{i:04d}", "a") for i in range(3)]
    assert samples[1].images["image"][0].pages == (("T", 1), ("C", "channels"), ("Z", "max"))
    for position, sample in enumerate(samples):
        np.testing.assert_array_equal(read(sample, "image"), array[position].max(axis=1))
        np.testing.assert_array_equal(read(sample, "mask"), mask[position])


def test_axes_are_reported_without_samples_among_them(raw):
    array = stack(raw / "a.ome.tif", (2, 6, 4, 5), "CZYX")
    put(raw, "a_m.tif")
    (sample,) = find(raw, "{id}.ome.tif", mask="{id}_m.tif", pages={"C": 1, "Z": "max"})
    assert sample.id == "a"
    np.testing.assert_array_equal(read(sample, "image")[0], array[1].max(axis=0))
    assert read(sample, "mask").shape == (4, 5)


@pytest.mark.parametrize("pages", ["samples", {"T": "samples"}])
def test_numbers_of_pages_must_agree(raw, pages):
    for name, n in (("in/a", 3), ("a_m", 2), ("in/b", 2), ("b_m", 2)):
        stack(raw / f"{name}.ome.tif", (n, 4, 5), "TYX")
    options = {"mask": "{id}_m.ome.tif", "pages": pages}
    message = problem(raw, "in/{id}.ome.tif", **options)
    assert "a: the numbers of pages differ" in message
    assert "a.ome.tif 3" in message
    assert "a_m.ome.tif 2" in message
    samples, skipped = skipping(raw, "in/{id}.ome.tif", **options)
    assert [s.group for s in samples] == ["b", "b"]
    assert [which for which, _ in skipped] == ["a"]


def test_colors_are_not_pages(raw):
    colors = np.zeros((4, 5, 3), np.uint8)
    tifffile.imwrite(raw / "a.tif", colors, photometric="rgb")
    Image.fromarray(colors).save(raw / "b.png")
    Image.fromarray(colors).convert("LA").save(raw / "c.png")
    for name, n in (("a.tif", 3), ("b.png", 3), ("c.png", 2)):
        message = problem(raw, name.replace(name[0], "{id}"), pages="samples")
        assert f"its {n} channels are colors, not pages; leave out `pages: samples`" in message
    stack(raw / "a.tif", (3, 4, 5), "TYX")
    assert len(find(raw, "{id}.tif", pages="samples")) == 3


# --- split files ---


def test_a_split_file(raw):
    put(raw, "d/a.tif", "d/b.tif", "d/c.tif")
    (raw / "s.csv").write_text("id,split,more\nd/a,Training,1\nd/b.tif,test,2\nd/c,,3\n")
    split = SplitConfig(file="s.csv")
    samples, lines = notes(raw, "{day}/{id}.tif", split=split)
    assert ([s.split for s in samples], lines) == (["train", "test", None], [])
    (raw / "s.csv").write_text("id,split\nd/a,Training\nd/b,test\nd/c,val\nelsewhere,val\n")
    samples, lines = notes(raw, "{day}/{id}.tif", split=split)
    assert [s.split for s in samples] == ["train", "test", "val"]
    assert lines == [f'"{raw / "s.csv"}": 1 of 4 rows are about no image, such as "elsewhere"']
    (raw / "s.csv").write_text("id,split\nd/b,test\n")
    samples, lines = notes(raw, "{day}/{id}.tif", split=split)
    assert [s.split for s in samples] == [None, "test", None]
    assert lines == [f'"{raw / "s.csv"}": 2 of 3 images have no row, such as "d/a"; they are divided by `fractions`']


def test_split_files_that_do_not_fit(raw):
    put(raw, "a.tif", "b.tif", "c.tif")
    split = SplitConfig(file="s.csv")
    assert "does not exist" in problem(raw, "{id}.tif", split=split)
    (raw / "s.csv").write_text("id,part\na,train\n")
    assert 'no column "split"' in problem(raw, "{id}.tif", split=split)
    for rows in ("x,train\n", "a,train\nb,val\nx,test\n", ""):  # images without a row, and rows about no image
        (raw / "s.csv").write_text("id,split\n" + rows)
        message = problem(raw, "{id}.tif", split=split)
        with pytest.raises(UserError):
            skipping(raw, "{id}.tif", split=split)
    assert '3 of 3 images have no row, such as "a"' in message
    (raw / "s.csv").write_text("id,split\na,train\na,train\nb,dev\nc,val\n")
    message = problem(raw, "{id}.tif", split=split)
    assert "- a: 2 rows\n" in message
    assert '- b: the split must be train, val or test, not "dev"\n' in message
    samples, _ = skipping(raw, "{id}.tif", split=split)
    assert [(s.id, s.split) for s in samples] == [("c", "val")]


def test_rows_about_samples_that_were_left_out(raw):
    put(raw, "in/a.tif", "in/b.tif", "out/b.tif")
    (raw / "s.csv").write_text("id,split\na,train\nb,val\n")
    problems = Problems(skip=True)
    options = {"target": {"t": "out/{id}.tif"}, "split": SplitConfig(file="s.csv")}
    (sample,) = find_samples(DatasetConfig(str(raw), {"a": "in/{id}.tif"}, **options), problems)
    assert (sample.split, problems.notes, problems.warnings) == ("val", [], [])
    put(raw, "d1/in/a.tif", "d2/in/a.tif", "d2/out/a.tif")
    (raw / "s.csv").write_text("id,split\na,train\n")  # of d1 or of d2
    with pytest.raises(UserError, match="1 of 1 rows are about no image"):
        skipping(raw, "{day}/in/{id}.tif", **options | {"target": {"t": "{day}/out/{id}.tif"}})


@pytest.mark.parametrize(
    "form", ["{n}", "{n}.0", "{n:03d}.tif", "day1/{n:03d}", "raw/x/day1/in/{n:03d}.tif", "day1\\in\\{n:03d}.tif"]
)
def test_ids_in_other_forms_are_bridged(raw, form):
    put(raw, *(f"day1/in/{n:03d}.tif" for n in (7, 80, 100)))
    splits = {7: "train", 80: "val", 100: "test"}
    (raw / "s.csv").write_text("id,split\n" + "".join(f"{form.format(n=n)},{split}\n" for n, split in splits.items()))
    samples, lines = notes(raw, "{day}/in/{id}.tif", split=SplitConfig(file="s.csv"))
    assert {s.id: s.split for s in samples} == {"day1/007": "train", "day1/080": "val", "day1/100": "test"}
    assert len(lines) == (form != "day1/{n:03d}")
    # A text that could mean two images means none.
    put(raw, "day2/in/007.tif", "day2/in/080.tif", "day2/in/100.tif")
    if "day1" not in form:
        assert "3 of 3 rows are about no image" in problem(raw, "{day}/in/{id}.tif", split=SplitConfig(file="s.csv"))


def test_ids_with_and_without_leading_zeros_are_kept_apart(raw):
    put(raw, "1.tif", "01.tif", "2.tif")
    (raw / "s.csv").write_text("id,split\n1,train\n01,val\n002,test\n")
    samples, _ = notes(raw, "{id}.tif", split=SplitConfig(file="s.csv"))
    assert {s.id: s.split for s in samples} == {"1": "train", "01": "val", "2": "test"}
    (raw / "s.csv").write_text("id,split\n2,train\n02,val\n1,test\n01,test\n")
    assert "- 2: 2 rows" in problem(raw, "{id}.tif", split=SplitConfig(file="s.csv"))


def test_groups_in_two_spellings(raw):
    put(raw, *(f"{group}_{id_}.tif" for group in ("P1", "p1", "P2", "nan") for id_ in "12"))
    _, (missing, spelling) = notes(raw, "{p}_{id}.tif", group="{p}")
    assert 'groups: "nan" (2 samples) looks like a missing value' in missing
    assert 'groups: "P1" (2 samples) and "p1" (2 samples)' in spelling


# --- a source of one's own ---

OWN = """from pathlib import Path

import numpy as np

from project.data.raw.sources import FunctionImage, Problems, Sample, Source


def read(path: Path, name: str) -> np.ndarray:
    return np.load(path)[name]


class Pairs(Source):
    channels = {"image": ["phase"], "target": ["dna"]}

    def __init__(self, folder: str, day: str = "*"):
        self.files = sorted(Path(folder).glob(f"{day}/*.npz"))

    def samples(self, problems: Problems):
        for path in self.files:
            id = f"{path.parent.name}/{path.stem}"
            if path.stat().st_size == 0:
                problems.add(id, "the file is empty")
            else:
                images = {"image": [FunctionImage(read, path, "phase")], "target": [FunctionImage(read, path, "dna")]}
                yield Sample(id, images, group=path.parent.name)
"""


def test_the_example_is_that_of_the_readme():
    assert OWN.strip() in (Path(__file__).parents[3] / "configs/data/README.md").read_text()


@pytest.fixture
def own(raw, tmp_path, monkeypatch):
    """Makes a configuration with a class in a module of this name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    known = set(sys.modules)

    def make(name: str, code: str = OWN, class_name: str = "Pairs", **options) -> DatasetConfig:
        (tmp_path / f"{name}.py").write_text(code)
        arguments = options.pop("arguments", {"folder": str(raw)})
        source = {"class_path": f"{name}.{class_name}" if class_name else name, "init_args": arguments}
        return DatasetConfig(str(raw), source=source, **options)

    yield make
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_a_source_of_the_user(raw, own):
    for day, name in (("d1", "a"), ("d2", "a"), ("d2", "b")):
        (raw / day).mkdir(exist_ok=True)
        np.savez(raw / day / f"{name}.npz", phase=np.full((4, 5), 7, np.uint16), dna=np.zeros((2, 4, 5)))
    (raw / "d2/c.npz").touch()
    (raw / "t.csv").write_text("id,kind\nd2/a,x\nd2/b,y\nd1/a,x\n")
    config = own("my_pairs", table=TableConfig("t.csv", label="kind"))
    with pytest.raises(UserError, match="- d2/c: the file is empty"):
        find_samples(config, Problems())
    problems = Problems(skip=True)
    samples = find_samples(config, problems)
    assert [(s.id, s.group, s.label) for s in samples] == [
        ("d1/a", "d1", "x"),
        ("d2/a", "d2", "x"),
        ("d2/b", "d2", "y"),
    ]
    assert problems.skipped == [("d2/c", "the file is empty")]
    assert find_source(config).channels["target"] == ["dna"]
    assert read(samples[2], "image").dtype == np.uint16
    assert read(samples[2], "target").shape == (2, 4, 5)
    assert samples[2].images["image"][0].paths == (raw / "d2/b.npz",)
    assert pickle.loads(pickle.dumps(samples)) == samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_name": ""}, '"m" must name the module too, as my_data.m'),
        ({"class_name": "Pears"}, 'there is no class "Pears" in m. Did you mean "Pairs"?'),
        ({"class_name": "read"}, '"m.read" is not derived from project.data.raw.sources.Source'),
        ({"class_name": "Sample"}, '"m.Sample" is not derived from project.data.raw.sources.Source'),
        ({"arguments": {"folder": "x", "days": 3}}, "unexpected keyword argument 'days'; it takes folder, day"),
        ({"arguments": {}}, "missing a required argument: 'folder'; it takes folder, day"),
        ({"code": "import no_such_package"}, '"m" cannot be imported: ModuleNotFoundError: No module named \'no_such'),
        ({"code": "x = ("}, '"m" cannot be imported: SyntaxError'),
        ({"code": OWN.replace("def samples", "def sample")}, '"m.Pairs" needs the method samples'),
    ],
)
def test_sources_that_cannot_be_made(own, options, message):
    config = own("m", **options)
    with pytest.raises(UserError) as caught:
        find_source(config)
    assert message in str(caught.value)


LISTED = """from project.data.raw.sources import *

class Listed(Source):
    def __init__(self, samples):
        self.listed = samples

    def samples(self, problems):
        return self.listed
"""


def listing(own, samples, skip=False, **options):
    problems = Problems(skip)
    config = own("listed", LISTED, "Listed", arguments={"samples": samples}, **options)
    return find_samples(config, problems), problems.skipped


def test_samples_of_the_user_are_checked(raw, own):
    image = [FileRef(raw / "a.tif")]
    good = Sample("ok", {"image": image})
    with pytest.raises(UserError, match="objects of the class Sample, not str"):
        listing(own, ["a.tif"])
    with pytest.raises(UserError, match="there is no sample"):
        listing(own, [])
    with pytest.raises(UserError, match="a: unknown role masks; the roles are image, target, mask, instances"):
        listing(own, [Sample("a", {"image": image, "masks": image})])
    bad = [
        Sample("c", {"image": image, "mask": image}),
        Sample("b", {"image": image}),
        Sample("b", {"image": image}),
        Sample("", {"image": image}),
        Sample("d", {"target": image}),
    ]
    samples, skipped = listing(own, [good, *bad], skip=True)
    assert [s.id for s in samples] == ["ok"]
    assert dict(skipped) == {
        "c": "has image, mask, most have image",
        "b": "2 samples have this id",
        "''": "the id is empty or not UTF-8; rename the file",
        "d": "has no image",
    }


def test_labels_of_the_user_and_of_the_table(raw, own):
    (raw / "t.csv").write_text("id,kind\na,x\n")
    sample = Sample("a", {"image": [FileRef(raw / "a.tif")]}, label="y")
    with pytest.raises(UserError, match="labels come from the table and with the samples, as that of a"):
        listing(own, [sample], table=TableConfig("t.csv", label="kind"))


# --- fields with a meaning ---


def test_folders_named_after_classes_and_splits(raw):
    put(raw, "Training/cat/1.tif", "Training/dog/1.tif", "valid/cat/1.tif", "test/dog/2.tif")
    samples = find(raw, "{split}/{label}/{id}.tif")
    assert [(s.id, s.label, s.split) for s in samples] == [
        ("cat/Training/1", "cat", "train"),
        ("cat/valid/1", "cat", "val"),
        ("dog/Training/1", "dog", "train"),
        ("dog/test/2", "dog", "test"),
    ]
    labels = find_labels(samples, ["dog", "cat"], Problems())
    assert labels.encode(samples).tolist() == [1, 1, 0, 0]


# --- pixels ---


def test_channels_are_stacked_in_the_order_of_the_configuration(raw):
    put(raw, "a_z.tif", fill=1)
    put(raw, "a_b.tif", fill=2, shape=(2, 4, 5))
    (sample,) = find(raw, {"z": "{id}_z.tif", "b": "{id}_b.tif"})
    assert read(sample, "image")[:, 0, 0].tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 3], [1, 2]], np.uint8), np.uint8),
        (np.array([[0, 60000], [1, 2]], np.uint16), np.uint16),
        (np.array([[0, 60000], [1, 2]], np.int32), np.uint16),
        (np.array([[0, 7], [1, 2]], np.float64), np.uint16),
        (np.array([[False, True], [True, True]]), np.uint8),
        (np.array([[0, -1], [1, 2]], np.int16), np.int64),
        (np.array([[0, 65536], [1, 2]], np.float32), np.int64),
    ],
)
def test_masks_are_whole_numbers_without_a_channel_axis(raw, array, expected):
    np.save(raw / "a.npy", array)
    (sample,) = find(raw, "{id}.npy", mask="{id}.npy")
    mask = read(sample, "mask")
    assert mask.dtype == expected
    np.testing.assert_array_equal(mask, array)


@pytest.mark.parametrize("bad", [0.5, np.nan, np.inf])
def test_masks_with_other_numbers_are_refused(raw, bad):
    np.save(raw / "a.npy", np.array([[0, bad]]))
    (sample,) = find(raw, "{id}.npy", instances="{id}.npy")
    with pytest.raises(UserError, match=r"a\.npy: the values of instances must be integers"):
        read(sample, "instances")
