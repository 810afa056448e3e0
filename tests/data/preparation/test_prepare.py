"""Raw files become split files, completely or not at all."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import tifffile
from rich.console import Console

from project.data.config import SizesConfig, SplitConfig, TableConfig
from project.data.preparation.prepare import prepare
from project.data.split_metadata import ARRAYS, FORMAT
from project.data.store import SplitReader
from project.errors import UserError

MASKS = {"target": {}, "mask": "m/{id}.tif"}

# --- what is in the files ---


@pytest.mark.parametrize(("dtype", "compression"), [(np.uint8, "blosc2"), (np.float32, "none")])
def test_pixels_stay_as_they_were(folder, dtype, compression):
    folder.pairs(dtype=dtype, low=0, high=256 if dtype == np.uint8 else 65536)
    readers = folder.prepare(compression=compression)
    assert {name: len(reader) for name, reader in readers.items()} == {"train": 4, "val": 2, "test": 2}
    assert all(reader.dtypes == {"image": dtype, "target": dtype} for reader in readers.values())
    assert sorted(id_ for reader in readers.values() for id_ in reader.ids) == [f"{i:02d}" for i in range(8)]
    folder.check(readers, image="in", target="out")


def test_layout(folder):
    for i in range(6):
        folder.put(f"in/{i}.tif", shape=(2, 12, 10))
        folder.put(f"y/{i}.tif")
        folder.put(f"out/{i}.tif")
        folder.put(f"m/{i}.tif", dtype=np.uint8, low=0, high=3)
        folder.put(f"o/{i}.tif", low=0, high=300)
    folder.table("id,kind", *(f"{i},{'ab'[i % 2]}" for i in range(6)))
    patterns = {"image": {"x": "in/{id}.tif[1]", "y": "y/{id}.tif"}, "mask": "m/{id}.tif", "instances": "o/{id}.tif"}
    readers = folder.prepare(**patterns, ignore_index=2, table=TableConfig("t.csv", label="kind"))
    with h5py.File(folder.final / "train.h5") as file:
        assert {name: (item.shape, item.dtype.name) for name, item in file.items()} == {
            "image": ((3, 2, 12, 10), "uint16"),
            "target": ((3, 1, 12, 10), "uint16"),
            "mask": ((3, 12, 10), "uint8"),
            "instances": ((3, 12, 10), "uint16"),
            "mask_counts": ((3, 2), "int64"),
            "image_statistics": ((3, 2, 8), "float64"),
            "target_statistics": ((3, 1, 8), "float64"),
            "signature": ((3, 144), "uint8"),
            "image_digest": ((3, 16), "uint8"),
            "label": ((3,), "int64"),
            "id": ((3,), "object"),
            "group": ((3,), "object"),
            "raw_file": ((31,), "object"),
            "raw_file_stamp": ((31, 2), "int64"),
        }
        assert all(file[name].id.get_offset() for name in ARRAYS)
        assert file.attrs["format_version"] == FORMAT
    folder.check(readers, target="out", mask="m", instances="o")
    for name, reader in readers.items():
        head = reader.attributes
        assert head["channels"] == {"image": ["x", "y"], "target": ["t"], "mask": ["mask"], "instances": ["instances"]}
        assert (head["classes"], head["ignore_index"]) == ({"mask": ["0", "1"], "label": ["a", "b"]}, 2)
        assert head["split"]["fractions"] == folder.config().split.fractions
        assert head["split"]["n"] == {"train": 3, "val": 2, "test": 1}
        assert head["source"]["config"]["image"] == patterns["image"]
        assert head["source"]["versions"]["numpy"] == np.__version__
        for index, id_ in enumerate(reader.ids):
            image = reader.read("image", index)
            np.testing.assert_array_equal(image, [folder.images[f"in/{id_}.tif"][1], folder.images[f"y/{id_}.tif"]])
            assert reader.labels[index] == int(id_) % 2, name


def test_several_labels_per_image(folder):
    texts = ["a;b", "", "c", "a"]
    for i in range(4):
        folder.put(f"in/{i}.tif")
    folder.table("id,kind", *(f"{i},{text}" for i, text in enumerate(texts)))
    table = TableConfig("t.csv", label="kind", separator=";")
    readers = folder.prepare(target={}, table=table, classes={"label": ["c", "b", "a"]})
    for reader in readers.values():
        for row, id_ in zip(reader.labels, reader.ids, strict=True):
            assert row.tolist() == [int(name in texts[int(id_)]) for name in "cba"]
    head = readers["val"].attributes
    assert head["classes"] == {"label": ["c", "b", "a"]}
    assert head["statistics"]["label"] == dict(zip("cba", readers["train"].labels.sum(axis=0).tolist(), strict=True))


# --- masks ---


@pytest.mark.parametrize("values", [(0, 255), (0, 1, 255), (0, 1, 3), (0, 300), tuple(range(80))])
def test_mask_values_that_are_not_counted_need_a_name(folder, values):
    folder.masks(*values, dtype=np.uint16)
    message = folder.problem(**MASKS)
    assert f"0: 0, {values[1]}: 1" in message
    assert ("`instances`" in message) == (values != (0, 255))
    assert "JPEG" not in message
    readers = folder.prepare(mask_values={value: number for number, value in enumerate(values)}, **MASKS)
    assert readers["train"].attributes["classes"]["mask"] == [str(number) for number in range(len(values))]
    if values == (0, 1, 255):
        assert "`ignore_index: 255`" in message
        assert folder.prepare(ignore_index=255, **MASKS)["train"].attributes["classes"]["mask"] == ["0", "1"]
    if values == (0, 255):
        folder.prepare(mask_values={0: 0, 128: 1, 255: 2}, **MASKS)
        assert "warning: mask: no pixel of any image is of class 1\n" in folder.output
    if values == (0, 1, 3):
        assert folder.prepare(classes=list("abcd"), **MASKS)["train"].attributes["classes"]["mask"] == list("abcd")


def put_objects(folder, objects: list[np.ndarray]) -> dict:
    for i, array in enumerate(objects):
        folder.put(f"in/{i}.tif", shape=array.shape)
        np.save(folder.raw / f"in/{i}.npy", array)
    return {"target": {}, "instances": "in/{id}.npy"}


@pytest.mark.parametrize(("dtype", "high"), [(np.uint32, 100007), (">i4", 2**31 - 1), (np.float64, 2**25 + 1)])
def test_object_numbers_that_16_bits_cannot_hold_are_counted_again(folder, dtype, high):
    objects = [np.zeros((12, 10), dtype) for _ in range(8)]
    for i, array in enumerate(objects):
        array[1:3], array[4:6], array[8] = high, high - 1, 5 if i else 70000
    for reader in folder.prepare(**put_objects(folder, objects)).values():
        for index in range(len(reader)):
            expected = np.zeros((12, 10), int)
            expected[1:3], expected[4:6], expected[8] = 3, 2, 1
            np.testing.assert_array_equal(reader.read("instances", index), expected)
            np.testing.assert_array_equal(reader.read("mask", index), expected > 0)
        assert "counted from 1 in 8 images" in "".join(reader.attributes["notes"])


def test_object_numbers_that_cannot_be_counted(folder):
    many = [np.arange(90000).reshape(300, 300) if i == 1 else np.full((300, 300), -i) for i in range(8)]
    message = folder.problem(**put_objects(folder, many))
    assert "1: the image has 89999 objects" in message
    assert "2: the instances hold -2" in message
    assert message.count("\n  - ") == 7


@pytest.mark.parametrize(("how", "compression"), [("ragged", "none"), ("places", "none"), ("pages", "blosc2")])
def test_objects_give_a_mask(folder, how, compression):
    pages, by_place = how == "pages", {"by": "place", "fractions": folder.config().split.fractions}
    for i in range(8):
        shape = (3, 12, 20) if pages else (12 + i * (how == "ragged"), 20)
        folder.put(f"in/{i}.tif", shape=shape)
        folder.put(f"o/{i}.tif", folder.rng.integers(0, 3, shape).astype(np.uint16) * 150)
    readers = folder.prepare(
        target={},
        instances="o/{id}.tif",
        pages="samples" if pages else "channels",
        sizes=SizesConfig("keep"),
        split=SplitConfig(**by_place) if how == "places" else folder.config().split,
        classes={"mask": ["background", "cell"]},
        compression=compression,
    )
    for reader in readers.values():
        assert reader.attributes["classes"] == {"mask": ["background", "cell"]}
        assert reader.attributes["channels"]["mask"] == ["mask"]
        assert reader.dtypes["mask"] == np.uint8
        for index in range(len(reader)):
            mask, objects = reader.read("mask", index), reader.read("instances", index)
            np.testing.assert_array_equal(mask, objects > 0)
            assert reader.mask_counts[index].tolist() == [(objects == 0).sum(), (objects > 0).sum()]
    train = readers["train"]
    assert train.attributes["statistics"]["mask"] == {str(c): int(train.mask_counts[:, c].sum()) for c in range(2)}


# --- what is refused ---


def test_channels_of_one_image_must_be_alike(folder):
    folder.pairs(4)
    folder.put("out/01.tif", shape=(12, 11))
    folder.put("out/02.tif", dtype=np.float32)
    message = folder.problem(image={"a": "in/{id}.tif", "b": "out/{id}.tif"}, target={})
    assert "01: the image channels differ in size or dtype: 12 x 10 uint16, 12 x 11 uint16" in message
    assert "02: the image channels differ in size or dtype: 12 x 10 uint16, 12 x 10 float32" in message


def test_masks_in_colors_are_refused(folder):
    folder.pairs(4)
    folder.put("out/01.tif", shape=(2, 12, 10))
    assert "mask must have one channel, this has 2; save it as gray" in folder.problem(target={}, mask="out/{id}.tif")


# --- again, and from demo data ---


def test_a_new_version_replaces_the_old_one_completely(folder):
    folder.pairs()
    old = folder.prepare()["train"]
    before = old.read("image", 0)
    folder.put("in/00.tif")
    readers = folder.prepare(split=SplitConfig(fractions={"train": 0.5, "val": 0.5}))
    assert set(readers) == {"train", "val"}
    folder.check(readers, image="in")
    np.testing.assert_array_equal(old.read("image", 0), before)  # an open reader survives


def make_raw(folder: Path, n: int = 5) -> None:
    for i in range(n):
        tifffile.imwrite(folder / f"{i}.tif", np.random.default_rng(i).integers(0, 99, (6, 7), np.uint16))


def make_half(folder: Path) -> None:
    make_raw(folder, 1)
    raise ZeroDivisionError


def generated(folder, function: str, **arguments):
    sys.modules["makers_of_test_prepare"] = sys.modules[__name__]
    name = f"makers_of_test_prepare.{function}"
    return folder.prepare(image={"a": "{id}.tif"}, target={}, generate=name, generate_arguments=arguments)


def test_demo_images_are_made_once_and_completely(folder):
    with pytest.raises(ZeroDivisionError):
        generated(folder, "make_half")
    assert list(folder.raw.parent.iterdir()) == [folder.processed]
    with pytest.raises(UserError, match="could not be called: got an unexpected keyword argument 'm'"):
        generated(folder, "make_raw", m=7)
    assert not folder.raw.exists()
    assert sum(map(len, generated(folder, "make_raw", n=7).values())) == 7
    (folder.raw / "0.tif").unlink()
    assert sum(map(len, generated(folder, "make_raw", n=7).values())) == 6


@pytest.mark.parametrize("name", ["nowhere.make", "make_raw", "json.nothing"])
def test_a_maker_that_cannot_be_called(folder, name):
    with pytest.raises(UserError, match=f'generate: "{name}" cannot be imported'):
        folder.prepare(generate=name)
    assert not folder.raw.exists()


# --- links, folders that are not ours ---


@pytest.mark.parametrize("there", [True, False])
def test_a_linked_dataset_folder_stays_a_link(folder, tmp_path, there):
    folder.pairs()
    disk = tmp_path / "disk" / "d"
    (disk if there else disk.parent).mkdir(parents=True)
    folder.processed.mkdir()
    folder.final.symlink_to(os.path.relpath(disk, folder.processed))
    for options in ({}, {"compression": "blosc2"}):
        prepare("d", folder.config(**options), folder.processed, Console(quiet=True))
        assert folder.final.is_symlink()
        assert {path.name for path in disk.glob("*.h5")} == {"train.h5", "val.h5", "test.h5"}
        assert [path.name for path in folder.processed.iterdir()] == ["d"]
        assert {path.name for path in disk.parent.iterdir()} == {"d", ".d.lock"}
    assert SplitReader(folder.final / "train.h5").attributes["source"]["config"]["compression"] == "blosc2"


def test_too_little_space_is_reported_before_anything_is_read(folder, monkeypatch):
    folder.pairs()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"GB are to be written .* and 1e-07 GB are free; make room"):
        folder.prepare()


def test_files_of_others_are_not_replaced(folder):
    folder.pairs()
    folder.final.mkdir(parents=True)
    (folder.final / "thesis.docx").write_text("years of work")
    assert "thesis.docx" in folder.problem()
    (folder.final / "thesis.docx").unlink()
    (folder.final / "inspect").mkdir()
    folder.prepare()
    folder.raw = folder.final / "raw"
    folder.pairs()
    with pytest.raises(UserError, match="move them"):
        prepare("d", folder.config(), folder.processed, Console(quiet=True))
    assert len(list(folder.raw.rglob("*.tif"))) == 16


def test_the_same_division_can_be_made_from_the_list_of_splits(folder):
    folder.pairs(12)
    first = folder.prepare(split=SplitConfig(seed=3))
    text = (folder.final / "splits.csv").read_text()
    assert text.splitlines()[0] == "id,split,group,fold"
    (folder.raw / "splits.csv").write_text(text)
    second = folder.prepare(split=SplitConfig(file="splits.csv", seed=8))
    assert {name: reader.ids for name, reader in second.items()} == {name: r.ids for name, r in first.items()}
