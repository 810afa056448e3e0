"""Arrays of samples in NPY, NPZ, HDF5 and IDX files; all that do not fit are reported together."""

import gzip
import pickle
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import raw_folders
from raw_folders import read
from raw_images import RNG

from project.data.config import ArrayConfig, SplitConfig, TableConfig
from project.data.raw.readers import read_idx
from project.data.store import SplitReader
from project.errors import UserError

CODES = {"u1": 8, "i1": 9, ">i4": 12}


def idx(array: np.ndarray, dtype: str = "u1") -> bytes:
    """The array in the format of MNIST."""
    return (
        bytes([0, 0, CODES[dtype], array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(dtype).tobytes()
    )


def write_hdf5(path: Path, arrays: dict) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def gray_images(n: int, size: tuple[int, int] = (6, 7), dtype=np.uint8) -> np.ndarray:
    return RNG.integers(0, 256, (n, *size)).astype(dtype)


def find(raw: Path, *entries: ArrayConfig, **options):
    return raw_folders.find(raw, {}, arrays=list(entries), **options)


def problem(raw: Path, *entries: ArrayConfig, **options) -> str:
    return raw_folders.problem(raw, {}, arrays=list(entries), **options)


def prepare(folder, *entries: ArrayConfig, **options) -> dict[str, SplitReader]:
    return folder.prepare(image={}, target={}, arrays=list(entries), **options)


# --- kinds of files ---


@pytest.mark.parametrize(("dtype", "packed"), [("i1", False), (">i4", True)])
def test_idx(tmp_path, dtype, packed):
    array = RNG.integers(-100, 100, (3, 4, 5)).astype(dtype)
    path = tmp_path / ("a-idx3-ubyte.gz" if packed else "a-idx3-ubyte")
    path.write_bytes(gzip.compress(idx(array, dtype)) if packed else idx(array, dtype))
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x07\x01\0\0\0\x01a", "not an NPY, NPZ or IDX"),
        (idx(gray_images(3))[:-1], r"needs 142 bytes, there are 141"),
    ],
)
def test_files_of_another_format_are_not_idx(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(tmp_path / "a")


def test_ids_and_pixels_of_every_kind(raw):
    arrays = {name: gray_images(n) for name, n in (("t-idx3-ubyte", 12), ("s", 3), ("set", 4))}
    (raw / "t-idx3-ubyte.gz").write_bytes(gzip.compress(idx(arrays["t-idx3-ubyte"])))
    (raw / "deep").mkdir()
    np.save(raw / "deep/s.npy", arrays["s"])
    np.savez(raw / "set.npz", train_images=arrays["set"], other=[1])
    samples = find(raw, *map(ArrayConfig, ("t-idx3-ubyte.gz", "deep/s.npy", "set.npz:train_images")))
    names = [s.id for s in samples]
    assert names == [s.group for s in samples]
    assert names[:4] == ["deep/s/0", "deep/s/1", "deep/s/2", "set/train_images/0"]
    assert names[7:9] == ["t-idx3-ubyte/00", "t-idx3-ubyte/01"]
    images = np.concatenate([arrays[name] for name in ("s", "set", "t-idx3-ubyte")])
    for sample, expected in zip(samples, images, strict=True):
        np.testing.assert_array_equal(read(sample, "image"), expected[None])


def test_an_archive_with_one_array_needs_no_name(raw):
    np.savez(raw / "one.npz", gray_images(2))
    np.savez(raw / "two.npz", images=gray_images(2), labels=[0, 1])
    assert [s.id for s in find(raw, ArrayConfig("one.npz"))] == ["one/0", "one/1"]
    message = 'two.npz: name an array, as "two.npz:NAME"; it holds images, labels'
    assert message in problem(raw, ArrayConfig("two.npz"))


def test_all_unfit_files_are_reported_at_once(raw):
    np.save(raw / "a.npy", gray_images(3))
    np.save(raw / "flat.npy", gray_images(3).reshape(3, -1))
    np.save(raw / "labels.npy", np.arange(4))
    entries = [
        ArrayConfig("b.npy", label="labels.npy"),
        ArrayConfig("flat.npy", label="labels.npy"),
        ArrayConfig("a.npy", label="labels.npy"),
        ArrayConfig("../a.npy", label="labels.npy:x"),
    ]
    message = problem(raw, *entries)
    assert message.count("\n  - ") == 5
    for line in (
        f'b.npy: does not exist below "{raw}". Did you mean "a.npy"?',
        "flat.npy: image needs axes (N, Y, X), or one more for channels; the shape is (3, 42)",
        "a.npy: the numbers of samples differ: image 3, label 4",
        "../a.npy: must be a path below the raw folder",
        "labels.npy:x: only NPZ and HDF5 files hold arrays with names",
    ):
        assert f"- {line}\n" in message


# --- references ---


def write_kind(raw: Path, kind: str, array: np.ndarray) -> str:
    """The array in a file of this kind; how an entry names it."""
    if kind == "npz":
        np.savez(raw / "a.npz", x=array, y=[1])
        return "a.npz:x"
    if kind == "h5":
        write_hdf5(raw / "a.h5", {"raw/x": array, "y": [1]})
        return "a.h5:raw/x"
    np.save(raw / "a.npy", array)
    return "a.npy"


@pytest.mark.parametrize(("kind", "axes"), [("npy", "YXCN"), ("npz", "NCYX"), ("h5", "XCNY"), ("h5", "NYXC")])
def test_rows_of_one_image_are_read(raw, kind, axes):
    array = RNG.integers(0, 9, (4, 3, 5, 6)).astype(np.uint16)
    name = write_kind(raw, kind, array.transpose(["NCYX".index(axis) for axis in axes]))
    samples = pickle.loads(pickle.dumps(find(raw, ArrayConfig(name, axes=axes))))
    for position, sample in enumerate(samples):
        (ref,) = sample.images["image"]
        file = ref.open()
        assert (file.shape, file.dtype, file.reads_rows) == ((3, 5, 6), np.uint16, True)
        np.testing.assert_array_equal(file.rows(1, 4), array[position, :, 1:4])
        assert file.rows(1, 4).flags.c_contiguous
        assert ref.paths == (raw / name.partition(":")[0],)
        assert str(ref) == f"{raw / name}[{position}]"


def test_hdf5(raw):
    images, labels = gray_images(3, (6, 7, 3)), np.array([1, 0, 1])
    write_hdf5(raw / "s.h5", {"raw/images": images, "labels": labels})
    samples = find(raw, ArrayConfig("s.h5:raw/images", label="s.h5:labels"))
    assert [(s.id, s.label) for s in samples] == [(f"s/raw/images/{i}", str(labels[i])) for i in range(3)]
    np.testing.assert_array_equal([read(s, "image") for s in samples], images.transpose(0, 3, 1, 2))
    assert 'it holds labels, raw/images. Did you mean "raw/images"?' in problem(raw, ArrayConfig("s.h5:raw/image"))
    with h5py.File(raw / "l.h5", "w") as file:
        file["raw/images"], file["words"] = images, np.array([b"a", b"b", b"c"])
        file["link"] = h5py.SoftLink("/raw/images")
    assert [s.id for s in find(raw, ArrayConfig("l.h5:link"))] == [f"l/link/{i}" for i in range(3)]
    assert "labels must be integers" in problem(raw, ArrayConfig("l.h5:link", label="l.h5:words"))


# --- axes ---


@pytest.mark.parametrize(
    ("shape", "order"), [((5, 6, 7), None), ((5, 6, 7, 3), (0, 3, 1, 2)), ((5, 3, 6, 7), (0, 1, 2, 3))]
)
def test_the_short_axis_has_the_channels(raw, shape, order):
    array = RNG.integers(0, 9, shape).astype(np.float32)
    np.save(raw / "a.npy", array)
    expected = array[:, None] if order is None else array.transpose(order)
    np.testing.assert_array_equal([read(sample, "image") for sample in find(raw, ArrayConfig("a.npy"))], expected)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((5, 6, 7, 8), None, "the axis of the channels is not clear"),
        ((5, 6, 7, 3), "NYXZ", 'does not have the axes "NYXZ"'),
        ((0, 6, 7), None, "no pixels"),
    ],
)
def test_axes_that_do_not_fit(raw, shape, axes, message):
    np.save(raw / "a.npy", np.zeros(shape, np.uint8))
    assert message in problem(raw, ArrayConfig("a.npy", axes=axes))


# --- labels ---


def test_a_column_per_class(folder):
    (raw := folder.raw).mkdir()
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0]], bool)
    np.savez(raw / "s.npz", x=gray_images(3), y=labels)
    entry, split = ArrayConfig("s.npz:x", label="s.npz:y"), SplitConfig(fractions={"train": 1.0})
    (reader,) = prepare(folder, entry, classes=["a", "b", "c"], split=split).values()
    np.testing.assert_array_equal(reader.labels, labels)
    assert reader.attributes["statistics"]["label"] == {"a": 2, "b": 0, "c": 1}
    assert "3 columns need 3 class names, there are 2" in problem(raw, entry, classes=["a", "b"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.0, 1.0], "must be integers"),
        ([0, -1, 1], "the smallest is -1"),
        ([[0, 1], [2, 0], [0, 0]], "must be 0 or 1"),
    ],
)
def test_invalid_labels(raw, labels, message):
    np.savez(raw / "s.npz", x=gray_images(3), y=labels)
    assert message in problem(raw, ArrayConfig("s.npz:x", label="s.npz:y"))


def test_a_table_beside_arrays(raw):
    np.save(raw / "a.npy", gray_images(6))
    (raw / "t.csv").write_text("id,patient,kind\n" + "".join(f"a/{i},p{i // 2},{'xy'[i % 2]}\n" for i in range(6)))
    samples = find(raw, ArrayConfig("a.npy"), table=TableConfig("t.csv", label="kind", group="patient"))
    assert [(s.group, s.label) for s in samples] == [(f"p{i // 2}", "xy"[i % 2]) for i in range(6)]


# --- into the split files ---


def test_the_mnist_layout(folder):
    (raw := folder.raw).mkdir()
    images = {"train": gray_images(40), "t10k": gray_images(10)}
    labels = {"train": np.arange(40) % 4, "t10k": np.arange(10) % 4}
    for name in images:
        (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images[name])))
        (raw / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[name])))
    entries = [
        ArrayConfig(f"{name}-images-idx3-ubyte.gz", label=f"{name}-labels-idx1-ubyte.gz", split=split)
        for name, split in (("train", "training"), ("t10k", "test"))
    ]
    readers = prepare(folder, *entries, classes=list("abcd"), split=SplitConfig(fractions={"train": 0.8, "val": 0.2}))
    assert {name: len(reader) for name, reader in readers.items()} == {"train": 32, "val": 8, "test": 10}
    for reader in readers.values():
        for index, id_ in enumerate(reader.ids):
            name, position = id_.split("-images-idx3-ubyte/")
            np.testing.assert_array_equal(reader.read("image", index)[0], images[name][int(position)])
            assert reader.labels[index] == labels[name][int(position)]


def test_every_role(raw):
    arrays = {
        "image": gray_images(2, (8, 9, 3)),
        "target": gray_images(2, (8, 9), np.uint16) * 9,
        "mask": gray_images(2, (8, 9)),
        "instances": gray_images(2, (8, 9), np.int64) * 2,
    }
    np.savez(raw / "s.npz", **arrays)
    sample = find(raw, ArrayConfig(**{role: f"s.npz:{role}" for role in arrays}))[1]
    np.testing.assert_array_equal(read(sample, "image"), arrays["image"][1].transpose(2, 0, 1))
    np.testing.assert_array_equal(read(sample, "target")[0], arrays["target"][1])
    for role, dtype in (("mask", np.uint8), ("instances", np.uint16)):
        assert read(sample, role).dtype == dtype
        np.testing.assert_array_equal(read(sample, role), arrays[role][1])
