"""What goes into a split file comes out again, by every way of reading, in every process."""

import errno
import json
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

from project.data.datamodule import ImageDataModule
from project.data.store import FORMAT, ArrayWriter, SplitMetadata, SplitReader, SplitWriter, join, open_hdf5_dataset
from project.errors import UserError

RNG = np.random.default_rng(0)
IDS = ["day 1/é", "day 1/b", "細胞"]
GROUPS = ["day 1", "day 1", "g"]
LABELS = np.array([2, 0, 1])


def arrays_of(ragged: bool) -> dict[str, list[np.ndarray]]:
    sizes = [(40, 30), (20, 50), (300, 140)] if ragged else [(150, 140)] * 3
    return {
        "image": [RNG.integers(0, 65536, (2, *size), np.uint16) for size in sizes],
        "target": [RNG.normal(size=(1, *size)).astype(np.float32) for size in sizes],
        "mask": [RNG.integers(0, 3, size, np.uint8) for size in sizes],
        "instances": [RNG.integers(0, 999, size, np.uint16) for size in sizes],
    }


UNIFORM, RAGGED = arrays_of(False), arrays_of(True)


def write(
    path: Path, arrays=UNIFORM, ids=IDS, groups=GROUPS, labels=LABELS, compression="none", attributes=None
) -> Path:
    shapes = {name: [a.shape for a in each] for name, each in arrays.items()}
    dtypes = {name: each[0].dtype for name, each in arrays.items()}
    with SplitWriter(path, shapes, dtypes, ids, groups, labels, compression) as writer:
        for index in range(len(ids)):
            for name, each in arrays.items():
                writer.write(index, name, each[index])
        writer.finish(attributes or {})
    return path


@pytest.fixture(params=["uniform", "ragged"])
def arrays(request):
    return UNIFORM if request.param == "uniform" else RAGGED


@pytest.fixture(params=["none", "blosc2"])
def compression(request):
    return request.param


def test_round_trip(tmp_path, arrays, compression):
    attributes = {"channels": {"image": ["a", "ü"]}, "classes": None, "long": ["x" * 1000] * 100}
    reader = SplitReader(write(tmp_path / "a.h5", arrays, compression=compression, attributes=attributes))
    assert len(reader) == 3
    assert (reader.ids, reader.groups, reader.labels.tolist()) == (IDS, GROUPS, LABELS.tolist())
    assert {name: reader.attributes[name] for name in attributes} == attributes
    assert reader.dtypes == {name: each[0].dtype for name, each in arrays.items()}
    for name, each in arrays.items():
        assert reader.shapes[name] == [a.shape for a in each]
        for index, expected in enumerate(each):
            array = reader.read(name, index)
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)


def test_windows(tmp_path, arrays, compression):
    reader = SplitReader(write(tmp_path / "a.h5", arrays, compression=compression))
    for name, each in arrays.items():
        for index, expected in enumerate(each):
            height, width = expected.shape[-2:]
            for y0, y1, x0, x1 in ((0, height, 0, width), (3, 17, 5, 6), (height - 1, height, width - 1, width)):
                array = reader.read(name, index, (y0, y1, x0, x1))
                np.testing.assert_array_equal(array, expected[..., y0:y1, x0:x1])


def test_plain_files_are_mapped_and_others_are_not(tmp_path, arrays, compression):
    reader = SplitReader(write(tmp_path / "a.h5", arrays, compression=compression))
    mapped = isinstance(reader._item("image", 0)[0], np.ndarray)
    assert mapped == (compression == "none")


def test_mapped_files_need_not_start_with_the_image(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=1024) as file:
        file["id"], file["group"], file["image"] = ["a"], ["a"], UNIFORM["image"][0][None]
        file.attrs["format_version"] = FORMAT
    reader = SplitReader(tmp_path / "a.h5")
    np.testing.assert_array_equal(reader.read("image", 0), UNIFORM["image"][0])


@pytest.mark.parametrize(
    "window", [(-1, 5, 0, 5), (0, 151, 0, 5), (0, 5, 0, 141), (5, 5, 0, 5), (6, 5, 0, 5), (0, 5, -3, -1)]
)
def test_window_beyond_the_image(tmp_path, window, compression):
    reader = SplitReader(write(tmp_path / "a.h5", compression=compression))
    with pytest.raises(IndexError, match=r"outside day 1/b of 150 x 140"):
        reader.read("image", 1, window)


def test_out(tmp_path, arrays, compression):
    reader = SplitReader(write(tmp_path / "a.h5", arrays, compression=compression))
    out = np.zeros((5, 2, 10, 8), np.uint16)
    returned = reader.read("image", 2, (1, 11, 2, 10), out=out[3])
    assert np.shares_memory(returned, out)
    np.testing.assert_array_equal(out[3], arrays["image"][2][:, 1:11, 2:10])
    assert not out[[0, 1, 2, 4]].any()
    with pytest.raises((ValueError, TypeError)):
        reader.read("image", 2, (1, 11, 2, 10), out=np.zeros((2, 10, 9), np.uint16))


def test_fill(tmp_path, arrays, compression):
    reader = SplitReader(write(tmp_path / "a.h5", arrays, compression=compression))
    windows = [(0, 9, 3, 10), (11, 20, 20, 27), (1, 10, 0, 7)]
    for name, each in arrays.items():
        out = np.zeros((3, *each[0].shape[:-2], 9, 7), each[0].dtype)
        reader.fill(name, [2, 0, 2], windows, out)
        for got, index, (y0, y1, x0, x1) in zip(out, [2, 0, 2], windows, strict=True):
            np.testing.assert_array_equal(got, each[index][..., y0:y1, x0:x1])
        whole = np.zeros((2, *each[1].shape), each[1].dtype)
        reader.fill(name, [1, 1], None, whole)
        np.testing.assert_array_equal(whole, np.stack([each[1]] * 2))


@pytest.mark.parametrize("kind", ["float64", "steps"])
def test_fill_takes_any_array(tmp_path, arrays, compression, kind):
    reader = SplitReader(write(tmp_path / "a.h5", arrays, compression=compression))
    out = np.zeros((2, 2, 10, 8)) if kind == "float64" else np.zeros((2, 2, 10, 16), np.uint16)[..., ::2]
    reader.fill("image", [2, 1], [(1, 11, 2, 10)] * 2, out)
    for got, index in zip(out, (2, 1), strict=True):
        np.testing.assert_array_equal(got, arrays["image"][index][:, 1:11, 2:10])


@pytest.mark.parametrize("shape", [(1, 1, 10, 8), (1, 2, 1, 8), (1, 2, 11, 8), (1, 3, 10, 8)])
def test_regions_of_another_shape_are_refused(tmp_path, arrays, compression, shape):
    """NumPy would repeat a smaller array without a word."""
    reader = SplitReader(write(tmp_path / "a.h5", arrays, compression=compression))
    with pytest.raises(ValueError, match="shape"):
        reader.fill("image", [2], [(1, 11, 2, 10)], np.zeros(shape, np.uint16))
    with pytest.raises(ValueError, match="shape"):
        reader.fill("image", [2], [(1, 2, 2, 10)], np.zeros((1, 2, 10, 8), np.uint16))


def test_what_was_read_belongs_to_the_caller(tmp_path, arrays, compression):
    path = write(tmp_path / "a.h5", arrays, compression=compression)
    reader, content = SplitReader(path), path.read_bytes()
    for name in arrays:
        for window in (None, (0, 5, 0, 6)):
            array = reader.read(name, 1, window)
            before = array.copy()
            assert array.flags.writeable
            assert array.flags.owndata
            array[...] = 1
            np.testing.assert_array_equal(reader.read(name, 1, window), before)
    assert path.read_bytes() == content


def test_labels_and_further_arrays_are_optional(tmp_path):
    reader = SplitReader(write(tmp_path / "a.h5", {"image": UNIFORM["image"]}, labels=None))
    assert reader.labels is None
    assert set(reader.shapes) == set(reader.dtypes) == {"image"}


@pytest.mark.parametrize("labels", [np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]]), np.array([[1], [0], [1]])])
def test_several_labels_per_image(tmp_path, labels):
    reader = SplitReader(write(tmp_path / "a.h5", labels=labels))
    assert reader.labels.dtype == np.int64
    np.testing.assert_array_equal(reader.labels, labels)


def counted(path: Path, arrays, n_classes: int, ignore_index: int | None = None, late: bool = False) -> SplitReader:
    shapes, dtypes = {n: [a.shape for a in e] for n, e in arrays.items()}, {n: e[0].dtype for n, e in arrays.items()}
    first = 0 if late else n_classes
    with SplitWriter(path, shapes, dtypes, IDS, IDS, n_classes=first, ignore_index=ignore_index) as writer:
        for index in range(len(IDS)):
            for name, each in arrays.items():
                writer.write(index, name, each[index])
        writer.n_classes = n_classes
        writer.finish({})
    return SplitReader(path)


@pytest.mark.parametrize("late", [False, True])
def test_pixels_per_class(tmp_path, arrays, late):
    expected = [[(mask == value).sum() for value in range(3)] for mask in arrays["mask"]]
    reader = counted(tmp_path / "a.h5", arrays, 5, late=late)
    assert reader.mask_counts.dtype == np.int64
    np.testing.assert_array_equal(reader.mask_counts, np.pad(expected, ((0, 0), (0, 2))))
    without = np.array(expected) * [1, 0, 1]
    np.testing.assert_array_equal(counted(tmp_path / "b.h5", arrays, 3, 1, late).mask_counts, without)
    np.testing.assert_array_equal(
        counted(tmp_path / "c.h5", arrays, 2, late=late).mask_counts, np.array(expected)[:, :2]
    )


def test_pixels_are_not_counted_unasked_or_without_a_mask(tmp_path):
    assert SplitReader(write(tmp_path / "a.h5")).mask_counts is None
    assert counted(tmp_path / "b.h5", {"image": UNIFORM["image"]}, 3).mask_counts is None


# --- processes ---


def test_a_pickled_reader_carries_no_handle(tmp_path, compression):
    reader = SplitReader(write(tmp_path / "a.h5", compression=compression))
    reader.read("image", 0)
    copy = pickle.loads(pickle.dumps(reader))
    assert len(pickle.dumps(reader)) < 20_000
    assert not copy._files
    assert not copy._items
    assert not copy._maps
    reader.close()
    np.testing.assert_array_equal(copy.read("image", 2), UNIFORM["image"][2])


def test_close_and_go_on(tmp_path, arrays):
    reader = SplitReader(write(tmp_path / "a.h5", arrays))
    for _ in range(2):
        np.testing.assert_array_equal(reader.read("mask", 1), arrays["mask"][1])
        reader.close()
        reader.close()


def wrong_crops(reader: SplitReader, seed: int, arrays: dict[str, list[np.ndarray]], n: int = 150) -> int:
    """How many of `n` random crops are wrong."""
    rng, wrong = np.random.default_rng(seed), 0
    for _ in range(n):
        index, y, x = int(rng.integers(3)), int(rng.integers(0, 12)), int(rng.integers(0, 22))
        crop = reader.read("image", index, (y, y + 8, x, x + 8))
        wrong += not np.array_equal(crop, arrays["image"][index][:, y : y + 8, x : x + 8])
    return wrong


def crops_of_child(reader: SplitReader, seed: int, arrays: dict[str, list[np.ndarray]], results) -> None:
    results.put((seed, wrong_crops(reader, seed, arrays)))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork beside threads is what is tested
def test_children_read_while_the_parent_reads(tmp_path, arrays, compression):
    """Handles shared over a fork gave 7 to 87 % wrong crops with some HDF5 drivers, without an error."""
    reader = SplitReader(write(tmp_path / "a.h5", arrays, compression=compression))
    assert wrong_crops(reader, 0, arrays, 5) == 0
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=crops_of_child, args=(reader, seed, arrays, results)) for seed in (1, 2, 3)]
    for child in children:
        child.start()
    assert wrong_crops(reader, 9, arrays) == 0
    told = sorted(results.get(timeout=30) for _ in children)
    for child in children:
        child.join(timeout=30)
    assert told == [(1, 0), (2, 0), (3, 0)]
    assert wrong_crops(reader, 10, arrays) == 0


def test_a_child_opens_its_own_file(tmp_path, monkeypatch, compression):
    reader = SplitReader(write(tmp_path / "a.h5", compression=compression))
    reader.read("image", 0)
    (mine,) = reader._files.values()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    reader.read("image", 0)
    (other,) = reader._files.values()
    assert other is not mine
    assert reader._open_in == -1


def test_spawned_child(tmp_path):
    reader = SplitReader(write(tmp_path / "a.h5", RAGGED, compression="blosc2"))
    reader.read("image", 0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        array = pool.apply(reader.read, ("image", 2, (100, 110, 100, 120)))
    np.testing.assert_array_equal(array, RAGGED["image"][2][:, 100:110, 100:120])


def test_the_dataset_is_looked_up_once(tmp_path, arrays, monkeypatch):
    """Looking it up for each read costs 3 to 25 times the read itself."""
    calls, original = [], SplitReader._mapped
    monkeypatch.setattr(SplitReader, "_mapped", lambda *a: calls.append(a) or original(*a))
    reader = SplitReader(write(tmp_path / "a.h5", arrays))
    for index in (0, 1, 2) * 5:
        reader.read("image", index)
    assert len(calls) == (3 if arrays is RAGGED else 1)


# --- odd and foreign files ---


def foreign(path: Path, **items) -> Path:
    """A file written with bare h5py."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["format_version"] = FORMAT
        contents = {"id": ["a", "b"], "group": ["a", "b"], "image": np.ones((2, 1, 4, 5), np.uint8)} | items
        for name, value in contents.items():
            if value is not None:
                file[name] = value
    return path


def test_datasets_that_cannot_be_mapped_read_the_same(tmp_path):
    pixels = UNIFORM["image"][0][None]
    for kind, options in {
        "chunked": {"data": pixels, "chunks": (1, 1, 32, 32)},
        "resizable": {"data": pixels, "maxshape": (None, 2, 150, 140)},
        "never written": {"shape": pixels.shape, "dtype": np.uint16},
    }.items():
        path = foreign(tmp_path / f"{kind}.h5", id=["a"], group=["a"], image=None)
        with h5py.File(path, "a") as file:
            assert file.create_dataset("image", **options).id.get_offset() is None
        expected = np.zeros_like(pixels) if kind == "never written" else pixels
        np.testing.assert_array_equal(SplitReader(path).read("image", 0, (9, 60, 1, 90)), expected[0, :, 9:60, 1:90])


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ({"id": None}, "damaged"),
        ({"group": None}, "damaged"),
        ({"image": None}, "no image array"),
        ({"image": np.ones((3, 1, 4, 5), np.uint8)}, "3 image arrays for 2 ids"),
        ({"image": np.uint8(1)}, "damaged"),
        ({"id": [1, 2]}, "damaged"),
        ({"label": [1, 2, 3]}, "3 rows of label for 2 ids"),
        ({"mask_counts": np.ones((1, 3))}, "1 rows of mask_counts for 2 ids"),
        ({"image/a": np.ones((1, 4, 5), np.uint8), "image": None}, "damaged"),
    ],
)
def test_files_that_lack_something(tmp_path, items, told):
    with pytest.raises(UserError, match=told):
        SplitReader(foreign(tmp_path / "a.h5", **items))


def test_another_format_version(tmp_path):
    path = foreign(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = FORMAT + 1
    with pytest.raises(UserError, match=f"version {FORMAT + 1}, this code reads {FORMAT}; prepare it again"):
        SplitReader(path)
    with h5py.File(path, "a") as file:
        del file.attrs["format_version"]
    with pytest.raises(UserError, match="damaged or not a split file"):
        SplitReader(path)


def test_files_that_are_no_split(tmp_path):
    with pytest.raises(UserError, match=r"make data DATASET=yeast"):
        SplitReader(tmp_path / "yeast" / "train.h5")
    (tmp_path / "a.h5").write_text("no HDF5")
    with pytest.raises(UserError, match="damaged or not a split file"):
        SplitReader(tmp_path / "a.h5")


def test_an_older_format_says_what_to_do(tmp_path):
    path = foreign(tmp_path / "yeast" / "train.h5")
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = FORMAT - 1
        file.attrs["shards"] = "no JSON"
        del file["id"]
    with pytest.raises(UserError, match=f"version {FORMAT - 1}, this code reads {FORMAT}; prepare it again"):
        SplitReader(path)


def test_truncated_file(tmp_path, arrays, compression):
    path = write(tmp_path / "a.h5", arrays, compression=compression)
    content = path.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged or not a split file"):
            SplitReader(path)


# --- writing ---


def start(path: Path) -> SplitWriter:
    return SplitWriter(path, {"image": [(1, 4, 5)] * 2}, {"image": np.dtype(np.uint8)}, ["a", "b"], ["a", "b"])


def test_nothing_appears_before_finish(tmp_path):
    with start(tmp_path / "a.h5") as writer:
        writer.write(0, "image", np.ones((1, 4, 5), np.uint8))
        assert not (tmp_path / "a.h5").exists()
    assert list(tmp_path.iterdir()) == []


def test_an_error_removes_what_was_written_and_keeps_the_old(tmp_path):
    old = write(tmp_path / "a.h5").read_bytes()
    with pytest.raises(KeyboardInterrupt), start(tmp_path / "a.h5"):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="Out of range float"), start(tmp_path / "a.h5") as writer:
        writer.finish({"statistics": {"mean": float("nan")}})
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    assert (tmp_path / "a.h5").read_bytes() == old


def test_a_smaller_array_is_not_repeated_to_fit(tmp_path):
    with start(tmp_path / "a.h5") as writer, pytest.raises(ValueError, match=r"b: image of shape \(1, 1, 5\)"):
        writer.write(1, "image", np.ones((1, 1, 5), np.uint8))


def hash_of(path: Path, **changed) -> str:
    return SplitReader(write(path, **changed)).content_hash


def test_content_hash(tmp_path, arrays):
    path = tmp_path / "a.h5"
    hashes = [hash_of(path, arrays=arrays)]
    assert hash_of(tmp_path / "other.h5", arrays=arrays, compression="blosc2", attributes={"n": 1}) == hashes[0]
    for name in arrays:
        other = {key: [a.copy() for a in each] for key, each in arrays.items()}
        other[name][1].flat[-1] += 1
        hashes.append(hash_of(path, arrays=other))
    hashes.append(hash_of(path, arrays=arrays, ids=[*IDS[:2], "x"]))
    hashes.append(hash_of(path, arrays=arrays, groups=["day 1", "g", "g"]))
    hashes.append(hash_of(path, arrays=arrays, labels=np.array([2, 1, 1])))
    hashes.append(hash_of(path, arrays=arrays, labels=None))
    several = np.array([[0, 1], [0, 0], [1, 1]])
    hashes.append(hash_of(path, arrays=arrays, labels=several))
    hashes.append(hash_of(path, arrays=arrays, labels=several[:, ::-1]))
    hashes.append(hash_of(path, arrays=arrays, labels=LABELS[:, None]))
    hashes.append(hash_of(path, arrays={name: each[::-1] for name, each in arrays.items()}))
    assert len(set(hashes)) == len(hashes)


def test_layout_is_the_one_of_the_readme(tmp_path, arrays):
    path = write(tmp_path / "a.h5", arrays, attributes={"classes": ["a", "b"]})
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == FORMAT
        assert json.loads(file.attrs["classes"]) == ["a", "b"]
        assert file["id"].asstr()[:].tolist() == IDS
        assert file["label"].dtype == np.int64
        if arrays is UNIFORM:
            assert file["image"].shape == (3, 2, 150, 140)
            assert file["mask"].shape == (3, 150, 140)
        else:
            assert sorted(file["image"]) == sorted(["day 1:é", "day 1:b", "細胞"])
            np.testing.assert_array_equal(file["mask"]["day 1:é"][:], arrays["mask"][0])


# --- shards ---

CUTS = [[3], [2, 1], [1, 1, 1]]


def sharded(folder: Path, arrays=UNIFORM, compression="none", cut=(2, 1), **changed) -> Path:
    """The same samples as those of `write`, in shards of so many each."""
    (folder / "shards").mkdir(parents=True)
    head = SplitMetadata(IDS, GROUPS, LABELS)
    ragged = any(len({a.shape for a in each}) > 1 for each in arrays.values())
    parts, start = [], 0
    for number, count in enumerate(cut):
        chosen = range(start, start + count)
        shapes = {name: [each[i].shape for i in chosen] for name, each in arrays.items()}
        dtypes = {name: each[0].dtype for name, each in arrays.items()}
        path, ids = folder / f"shards/train-{number}.h5", [IDS[i] for i in chosen]
        with ArrayWriter(path, shapes, dtypes, ids, compression, ragged) as writer:
            for row, i in enumerate(chosen):
                for name, each in arrays.items():
                    writer.write(row, name, each[i])
            writer.complete()
        head.digests += writer.digests
        parts.append((path, ids))
        start += count
    for name, value in changed.items():
        setattr(head, name, value)
    join(folder / "train.h5", parts, head)
    return folder / "train.h5"


@pytest.mark.parametrize("cut", CUTS)
def test_shards_read_like_one_file(tmp_path, arrays, compression, cut):
    whole = SplitReader(write(tmp_path / "a.h5", arrays, compression=compression))
    reader = SplitReader(sharded(tmp_path / "set", arrays, compression, cut))
    for name in ("ids", "groups", "shapes", "dtypes", "ragged", "content_hash"):
        assert getattr(reader, name) == getattr(whole, name)
    assert reader.labels.tolist() == whole.labels.tolist()
    for name, each in arrays.items():
        for index in (2, 0, 1):
            np.testing.assert_array_equal(reader.read(name, index), each[index])
            np.testing.assert_array_equal(reader.read(name, index, (3, 17, 5, 9)), each[index][..., 3:17, 5:9])
    assert len(list((tmp_path / "set").rglob("*.h5"))) == (1 if cut == [3] else 1 + len(cut))


def test_fill_from_several_shards(tmp_path, arrays, compression):
    reader = SplitReader(sharded(tmp_path / "set", arrays, compression, [1, 2]))
    out = np.zeros((4, 2, 9, 7), np.uint16)
    reader.fill("image", [2, 0, 1, 0], [(3, 12, 5, 12)] * 4, out)
    for got, index in zip(out, [2, 0, 1, 0], strict=True):
        np.testing.assert_array_equal(got, arrays["image"][index][:, 3:12, 5:12])


@pytest.mark.parametrize("cut", CUTS)
def test_plain_h5py_sees_one_file_wherever_it_lies(tmp_path, arrays, compression, cut):
    sharded(tmp_path / "set", arrays, compression, cut)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").rename(tmp_path / "elsewhere" / "renamed")
    with h5py.File(tmp_path / "elsewhere" / "renamed" / "train.h5") as file:
        for name, each in arrays.items():
            for index, expected in enumerate(each):
                found = file[name][IDS[index].replace("/", ":")] if arrays is RAGGED else file[name][index]
                np.testing.assert_array_equal(found[...], expected)
            assert len(file[name]) == 3


@pytest.mark.parametrize("cut", CUTS[1:])
def test_shards_are_mapped(tmp_path, arrays, compression, cut):
    reader = SplitReader(sharded(tmp_path / "set", arrays, compression, cut))
    for index in range(3):
        assert isinstance(reader._item("image", index)[0], np.ndarray) == (compression == "none")
    assert len(reader._files) == len(cut)
    assert len(reader._maps) == (len(cut) if compression == "none" else 0)


def test_a_missing_shard_is_refused(tmp_path, arrays):
    path = sharded(tmp_path / "set", arrays)
    (tmp_path / "set/shards/train-1.h5").unlink()
    with pytest.raises(UserError, match=r"2 files beside it, and 1 of them are missing, the first .*train-1.h5"):
        SplitReader(path)


def test_shards_that_hold_another_number_of_samples(tmp_path):
    path = sharded(tmp_path / "set")
    with h5py.File(path, "a") as file:
        file.attrs["shards"] = json.dumps([["shards/train-0.h5", 2], ["shards/train-1.h5", 2]])
    with pytest.raises(UserError, match="its parts hold 4 samples, not 3"):
        SplitReader(path)


def test_shards_in_other_processes(tmp_path, arrays, compression):
    reader = SplitReader(sharded(tmp_path / "set", arrays, compression, [1, 1, 1]))
    assert wrong_crops(reader, 0, arrays, 5) == 0
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert wrong_crops(copy, 1, arrays) == 0
    assert not pickle.loads(pickle.dumps(copy))._files


class Crops:
    """A dataset for a DataLoader."""

    def __init__(self, reader: SplitReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        return index, self.reader.read("image", index, (0, 16, 0, 20))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork beside threads is what is tested
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(tmp_path, arrays, method):
    reader = SplitReader(sharded(tmp_path / "set", arrays))
    reader.read("image", 0)
    loader = DataLoader(Crops(reader), batch_size=None, num_workers=2, multiprocessing_context=method)
    found = dict(loader)
    assert sorted(found) == [0, 1, 2]
    for index, crop in found.items():
        np.testing.assert_array_equal(crop, arrays["image"][index][:, :16, :20])


FEW_FILES = """
import resource, sys
import numpy as np
from pathlib import Path
from project.data.store import SplitReader

reader = SplitReader(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
before = len(Path("/proc/self/maps").read_text().splitlines())
for index in range(len(reader)):
    assert reader.read("image", index).item() == index % 251, index
after = len(Path("/proc/self/maps").read_text().splitlines())
assert after - before < 50, (before, after)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts the maps of Linux")
def test_many_images_of_different_sizes_take_few_file_descriptors_and_maps(tmp_path):
    ids = [f"{i:04d}" for i in range(2000)]
    images = [np.full((1, 1, 1), i % 251, np.uint8) for i in range(2000)]
    parts = []
    for number in range(2):
        chosen = range(number * 1000, (number + 1) * 1000)
        path = tmp_path / f"{number}.h5"
        shapes = {"image": [images[i].shape for i in chosen]}
        with ArrayWriter(path, shapes, {"image": np.dtype(np.uint8)}, [ids[i] for i in chosen], ragged=True) as writer:
            for row, i in enumerate(chosen):
                writer.write(row, "image", images[i])
            writer.complete()
        parts.append((path, [ids[i] for i in chosen]))
    join(tmp_path / "train.h5", parts, SplitMetadata(ids, ids))
    done = subprocess.run([sys.executable, "-c", FEW_FILES, str(tmp_path / "train.h5")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_content_hash_does_not_depend_on_the_cut(tmp_path, arrays, compression):
    expected = SplitReader(write(tmp_path / "a.h5", arrays, compression=compression)).content_hash
    for number, cut in enumerate(CUTS):
        assert SplitReader(sharded(tmp_path / str(number), arrays, compression, cut)).content_hash == expected


def test_content_hash_of_a_head():
    rows = {"labels": LABELS, "values": np.array([[1.0], [2.0], [3.0]]), "folds": np.array([0, 1, 0])}
    head = {"ids": IDS, "groups": GROUPS, "digests": [{"image": text} for text in ("0a", "0b", "0c")]}
    hashes = {SplitMetadata(**head).content_hash()}
    for name, array in rows.items():
        for changed in (array, array[::-1], array * 2):
            hashes.add(SplitMetadata(**head, **{name: changed}).content_hash())
    hashes |= {SplitMetadata(**head | {name: head[name][::-1]}).content_hash() for name in head}
    # The same numbers under another name.
    hashes |= {SplitMetadata(**head, labels=rows["folds"]).content_hash()}
    assert len(hashes) == 1 + 3 * 3 - 1 + 3 + 1  # folds read backwards are the same
    told = {"mask_counts": np.ones((3, 2)), "image_statistics": {"image": np.ones((3, 1, 8))}, "attributes": {"a": 1}}
    assert SplitMetadata(**head, **told).content_hash() == SplitMetadata(**head).content_hash()


def test_content_hash_covers_what_scores_depend_on():
    head, classes = {"ids": IDS, "groups": GROUPS}, {"mask": ["sky", "road"]}
    told = [
        {},
        {"ignore_index": 0},
        {"ignore_index": 2},
        {"classes": classes},
        {"classes": {"mask": classes["mask"][::-1]}},
        {"classes": classes, "background": "sky"},
        {"classes": classes, "background": "road"},
        {"classes": classes, "positive": "road"},
    ]
    assert len({SplitMetadata(**head, attributes=each).content_hash() for each in told}) == len(told)
    same = {"channels": {"image": ["a"]}, "notes": ["n"], "ignore_index": None, "classes": {}}
    assert SplitMetadata(**head, attributes=same).content_hash() == SplitMetadata(**head).content_hash()


def test_content_hash_does_not_depend_on_the_order_of_writing(tmp_path, arrays):
    def written(name, order, roles):
        path, shapes = tmp_path / name, {role: [arrays[role][i].shape for i in order] for role in roles}
        dtypes = {role: arrays[role][0].dtype for role in roles}
        groups = [GROUPS[i] for i in order]
        with SplitWriter(path, shapes, dtypes, [IDS[i] for i in order], groups, LABELS[order]) as writer:
            for role in roles:
                for position in reversed(range(len(order))):
                    writer.write(position, role, arrays[role][order[position]])
            writer.finish({})
        return SplitReader(path).content_hash

    assert written("a.h5", [0, 1, 2], list(arrays)) == written("b.h5", [2, 0, 1], list(arrays)[::-1])


def test_attributes_beyond_what_hdf5_allows_in_a_header(tmp_path):
    attributes = {
        "classes": {"label": [f"class {i}" for i in range(20_000)]},
        "skipped": [[f"day/{i}", "cannot be read: ü" * 5] for i in range(5000)],
    }
    reader = SplitReader(sharded(tmp_path / "set", attributes=attributes))
    assert reader.attributes.items() >= attributes.items()


def test_what_is_known_of_the_samples(tmp_path):
    rows = {
        "values": np.array([[1.5, -2.0], [0.1, 3.0], [0.0, 1e300]]),
        "folds": np.array([1, 0, 1]),
        "mask_counts": np.array([[1, 2], [3, 4], [5, 6]]),
    }
    levels = {"image": RNG.random((3, 2, 8)), "target": RNG.random((3, 1, 8))}
    reader = SplitReader(sharded(tmp_path / "set", **rows, image_statistics=levels))
    for name, expected in rows.items():
        np.testing.assert_array_equal(getattr(reader, name), expected)
    assert reader.image_statistics.keys() == levels.keys()
    for role, expected in levels.items():
        np.testing.assert_array_equal(reader.image_statistics[role], expected)


@pytest.mark.parametrize("cut", CUTS)
def test_parts_of_folds(tmp_path, arrays, compression, cut):
    folds, values = np.array([1, 0, 1]), np.array([[0.0], [1.0], [2.0]])
    attributes = {"statistics": "all", "fold_statistics": ["without 0", "without 1"]}
    levels = {"image": RNG.random((3, 2, 8))}
    counts = np.array([[1], [2], [3]])
    reader = SplitReader(
        sharded(
            tmp_path / "set", arrays, compression, cut,
            folds=folds, values=values, attributes=attributes, image_statistics=levels, mask_counts=counts,
        )
    )  # fmt: skip
    reader.read("image", 0)
    hashes = {reader.content_hash}
    for fold, training, chosen in ((0, True, [0, 2]), (0, False, [1]), (1, True, [1]), (1, False, [0, 2])):
        part = reader.fold_subset(fold, training)
        assert part.ids == [IDS[i] for i in chosen]
        assert part.groups == [GROUPS[i] for i in chosen]
        assert part.labels.tolist() == LABELS[chosen].tolist()
        assert part.values.tolist() == values[chosen].tolist()
        assert part.folds.tolist() == folds[chosen].tolist()
        assert part.mask_counts.tolist() == counts[chosen].tolist()
        np.testing.assert_array_equal(part.image_statistics["image"], levels["image"][chosen])
        assert part.attributes["statistics"] == f"without {fold}"
        for row, index in enumerate(chosen):
            for name, each in arrays.items():
                assert part.shapes[name][row] == each[index].shape
                np.testing.assert_array_equal(part.read(name, row), each[index])
        with pytest.raises(IndexError):
            part.read("image", len(chosen))
        hashes.add(part.content_hash)
        copy = pickle.loads(pickle.dumps(part))
        part.close()
        np.testing.assert_array_equal(copy.read("image", 0), arrays["image"][chosen[0]])
    assert len(hashes) == 5
    np.testing.assert_array_equal(reader.read("image", 1), arrays["image"][1])  # its files are still open


def test_any_hdf5_array(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw/images"], file["raw/labels"] = np.arange(12).reshape(3, 4), [1, 2, 3]
    array = open_hdf5_dataset(tmp_path / "a.h5", "raw/images")
    assert array[1].tolist() == [4, 5, 6, 7]
    with pytest.raises(UserError, match=r'no dataset "raw/image"; it holds raw/images, raw/labels\. Did you mean'):
        open_hdf5_dataset(tmp_path / "a.h5", "raw/image")
    with pytest.raises(UserError, match=r'no dataset "raw"; it holds'):
        open_hdf5_dataset(tmp_path / "a.h5", "raw")


def test_what_a_head_takes(tmp_path):
    ids = [f"day {i}" for i in range(1000)]
    head = SplitMetadata(ids, ids, np.arange(1000), image_statistics={"image": np.ones((1000, 1, 8))})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        head.write(file)
    assert head.n_bytes() == pytest.approx((tmp_path / "a.h5").stat().st_size, rel=0.02)


# --- the readme ---


def test_examples_of_the_readme_run(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "data" / "README.md").read_text(encoding="utf-8")
    examples = [block.partition("```")[0] for block in text.split("```python\n")[1:]]
    read, own = examples[-2:]  # the one before needs image files
    monkeypatch.chdir(tmp_path)
    exec(own, {})
    data = ImageDataModule("mine", batch_size=4, crop=32, num_workers=0)
    data.roles = ("image", "target")
    data.setup("fit")
    data.setup("test")
    assert (data.classes, data.ignore_index, data.channels["target"]) == ({}, None, ["dna"])
    assert {name: len(dataset) for name, dataset in data.datasets.items()} == {"train": 16, "val": 4, "test": 4}
    means = [data.statistics[role][0]["mean"] for role in data.roles]
    assert means == pytest.approx([2047.5, 2047.5], abs=20)
    assert sum(means) == pytest.approx(4095)
    for batch in (next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))):
        assert (batch["image"].int() + batch["target"].int() == 4095).all()
    Path("data/processed/mine").rename("data/processed/yeast")
    exec(read, {})


# --- prepared again, locked, unreadable, too large ---


def test_a_limit_of_the_file_size_is_an_error_of_the_system(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    image = np.ones((2, 1, 600, 800), np.uint16)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
        with pytest.raises(OSError, match="too large") as caught:
            write(tmp_path / "a.h5", {"image": list(image)}, IDS[:2], GROUPS[:2], None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert str(tmp_path) in caught.value.filename
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_file_that_cannot_be_begun(tmp_path):
    with pytest.raises(TypeError):
        SplitWriter(tmp_path / "a.h5", {"image": [(1, 4, 5)]}, {"image": "no dtype"}, ["a"], ["a"])
    assert list(tmp_path.iterdir()) == []


def test_data_that_was_prepared_again_is_noticed(tmp_path, arrays):
    write(tmp_path / "a.h5", arrays)
    reader = SplitReader(tmp_path / "a.h5")
    copy = pickle.dumps(reader)
    np.testing.assert_array_equal(reader.read("image", 0), arrays["image"][0])
    order = [1, 2, 0]
    other = {name: [each[i] for i in order] for name, each in arrays.items()}
    ids, groups = [IDS[i] for i in order], [GROUPS[i] for i in order]
    write(tmp_path / "b.h5", other, ids, groups, LABELS[order]).replace(tmp_path / "a.h5")
    np.testing.assert_array_equal(reader.read("image", 1), arrays["image"][1])  # of the file that is still open
    worker = pickle.loads(copy)
    for index in (0, 1):
        with pytest.raises(UserError, match="prepared again"):
            worker.read("image", index)
    write(tmp_path / "b.h5", arrays).replace(tmp_path / "a.h5")  # the same content once more
    np.testing.assert_array_equal(pickle.loads(copy).read("image", 1), arrays["image"][1])


def test_shards_that_were_prepared_again_are_noticed(tmp_path, arrays):
    reader = SplitReader(sharded(tmp_path / "set", arrays))
    part = reader.subset([2, 0], {"content_hash": "of the part"})
    part.read("image", 0)
    copy = pickle.dumps(part)
    (tmp_path / "set").rename(tmp_path / "old")
    sharded(tmp_path / "set", {name: each[::-1] for name, each in arrays.items()} if arrays is UNIFORM else arrays)
    if arrays is UNIFORM:
        with pytest.raises(UserError, match="prepared again"):
            pickle.loads(copy).read("image", 0)
    else:
        np.testing.assert_array_equal(pickle.loads(copy).read("image", 0), arrays["image"][2])


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.EAGAIN, "another program"), (errno.ENOLCK, "HDF5_USE_FILE_LOCKING"), (errno.EIO, "cannot be read")],
)
def test_a_file_that_the_system_refuses_is_not_called_damaged(tmp_path, monkeypatch, number, told):
    path = write(tmp_path / "a.h5")

    def refuse(*_, **__):
        raise OSError(number, f"Unable to open file (errno = {number})")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(UserError, match=told) as caught:
        SplitReader(path)
    assert str(path) in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_a_file_that_is_open_for_writing_is_not_called_damaged(tmp_path):
    path = write(tmp_path / "a.h5")
    command = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", command, str(path)], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="another program has it open for writing"):
            SplitReader(path)
        other.stdin.close()
    assert len(SplitReader(path)) == 3


def test_opening_a_file_of_many_sizes_opens_no_dataset_of_a_sample(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", RAGGED)
    opened, get = [], h5py.Group.__getitem__
    monkeypatch.setattr(h5py.Group, "__getitem__", lambda self, name: opened.append(name) or get(self, name))
    assert SplitReader(path).shapes["image"] == [a.shape for a in RAGGED["image"]]
    assert [name for name in opened if name in (":".join(IDS[1].split("/")), IDS[2])] == []
