"""Samples with tables, split files, pages and pixels; samples that cannot be used are reported or left out."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from raw_folders import find, notes, problem, put, read, skipping

from project.data.config import DatasetConfig, SplitConfig, TableConfig
from project.data.raw.samples import Problems, Sample
from project.data.raw.tables import join_tables
from project.errors import UserError


def test_samples_without_partner_are_left_out(raw):
    put(raw, "in/a.tif", "in/b.tif", "in/c.tif", "out/c.tif", "out/d.tif", "out/b.tif", "m/c.tif", "m/a.tif")
    samples, skipped = skipping(raw, "in/{id}.tif", target={"t": "out/{id}.tif"}, mask="m/{id}.tif")
    assert [s.id for s in samples] == ["c"]
    assert skipped == [
        ("a", 'no target file for "out/{id}.tif"'),
        ("d", 'out/d.tif has no partner for "in/{id}.tif"'),
        ("b", 'no mask file for "m/{id}.tif"'),
    ]
    (raw / "m/c.tif").unlink()
    with pytest.raises(UserError, match=r"no sample is left(.|\n)*- b: no mask file"):
        skipping(raw, "in/{id}.tif", target={"t": "out/{id}.tif"}, mask="m/{id}.tif")


def test_mistakes_of_the_configuration_are_not_skipped(raw):
    put(raw, "d/a.tif", "b.tif")
    for options in ({"target": {"t": "{id}.tif"}}, {"group": "{plate}"}, {"table": TableConfig("no.csv")}):
        with pytest.raises(UserError):
            skipping(raw, "{day}/{id}.tif", **options)


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


@pytest.mark.parametrize("pages", ["samples", {"T": "samples"}])
def test_numbers_of_pages_must_agree(raw, pages):
    for name, n in (("in/a", 3), ("a_m", 2), ("in/b", 2), ("b_m", 2)):
        stack(raw / f"{name}.ome.tif", (n, 4, 5), "TYX")
    samples, ((id_, message),) = skipping(raw, "in/{id}.ome.tif", mask="{id}_m.ome.tif", pages=pages)
    assert [s.group for s in samples] == ["b", "b"]
    assert id_ == "a"
    for text in ("the numbers of pages differ", "a.ome.tif 3", "a_m.ome.tif 2"):
        assert text in message


def test_colors_are_not_pages(raw):
    colors = np.zeros((4, 5, 3), np.uint8)
    tifffile.imwrite(raw / "a.tif", colors, photometric="rgb")
    Image.fromarray(colors).convert("LA").save(raw / "c.png")
    for name, n in (("a.tif", 3), ("c.png", 2)):
        message = problem(raw, name.replace(name[0], "{id}"), pages="samples")
        assert f"its {n} channels are colors, not pages; leave out `pages: samples`" in message
    stack(raw / "a.tif", (3, 4, 5), "TYX")
    assert len(find(raw, "{id}.tif", pages="samples")) == 3


def test_a_split_file(raw):
    put(raw, "d/a.tif", "d/b.tif", "d/c.tif")
    (raw / "s.csv").write_text("id,split,more\nd/a,Training,1\nd/b.tif,test,2\nd/c,,3\n")
    split = SplitConfig(file="s.csv")
    samples, lines = notes(raw, "{day}/{id}.tif", split=split)
    assert ([s.split for s in samples], lines) == (["train", "test", None], [])
    (raw / "s.csv").write_text("id,split\nd/a,train\nd/b,test\nd/c,val\nelsewhere,val\n")
    assert notes(raw, "{day}/{id}.tif", split=split)[1] == [
        f'"{raw / "s.csv"}": 1 of 4 rows are about no image, such as "elsewhere"'
    ]
    (raw / "s.csv").write_text("id,split\nd/b,test\n")
    samples, lines = notes(raw, "{day}/{id}.tif", split=split)
    assert [s.split for s in samples] == [None, "test", None]
    assert lines == [f'"{raw / "s.csv"}": 2 of 3 images have no row, such as "d/a"; they are divided by `fractions`']


@pytest.mark.parametrize("given", [{"label": "a"}, {"split": "test"}])
def test_a_label_or_split_has_one_source(tmp_path, given):
    (tmp_path / "t.csv").write_text("id,label,split\nx,b,\n")
    (name,) = given
    config = DatasetConfig(str(tmp_path), {"c": "{id}.tif"}, table=TableConfig("t.csv", **{name: name}))
    with pytest.raises(UserError, match=f"{name}s come from t.csv and with the samples, as that of x; keep one"):
        join_tables([Sample("x", {}, **given)], config, Problems())


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
    assert '- a: 2 equal rows with this "id" in s.csv, whose ids are as "a"' in message
    assert '- b: the "split" must be train, val or test, not "dev"\n' in message


def test_rows_about_samples_that_were_left_out(raw):
    put(raw, "in/a.tif", "in/b.tif", "out/b.tif")
    (raw / "s.csv").write_text("id,split\na,train\nb,val\n")
    options = {"target": {"t": "out/{id}.tif"}, "split": SplitConfig(file="s.csv")}
    (sample,) = find(raw, "in/{id}.tif", problems := Problems(skip=True), **options)
    assert (sample.split, problems.notes, problems.warnings) == ("val", [], [])


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
        assert "6 of 6 images have no row" in problem(raw, "{day}/in/{id}.tif", split=SplitConfig(file="s.csv"))


def test_ids_with_and_without_leading_zeros_are_kept_apart(raw):
    put(raw, "1.tif", "01.tif", "2.tif")
    (raw / "s.csv").write_text("id,split\n1,train\n01,val\n002,test\n")
    samples = find(raw, "{id}.tif", split=SplitConfig(file="s.csv"))
    assert {s.id: s.split for s in samples} == {"1": "train", "01": "val", "2": "test"}


def test_folders_named_after_classes_and_splits(raw):
    put(raw, "Training/cat/1.tif", "Training/dog/1.tif", "valid/cat/1.tif", "test/dog/2.tif")
    samples = find(raw, "{split}/{label}/{id}.tif")
    assert [(s.id, s.label, s.split) for s in samples] == [
        ("cat/Training/1", "cat", "train"),
        ("cat/valid/1", "cat", "val"),
        ("dog/Training/1", "dog", "train"),
        ("dog/test/2", "dog", "test"),
    ]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 60000], [1, 2]], np.int32), np.uint16),
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
