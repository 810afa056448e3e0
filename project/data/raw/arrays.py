"""Arrays of samples: NPY, NPZ, HDF5 and IDX files, with the samples along one axis."""

import functools
import gzip
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from project.data.config import ArrayConfig, DatasetConfig, given_split
from project.data.hdf5 import open_hdf5_dataset
from project.data.raw.declarations import ZERO, NodataRule, fill_nodata, with_attributes
from project.data.raw.images import Pages, arrange, convert_colors
from project.data.raw.lazy_image import LazyImage, errors_mention, plain_dtype
from project.data.raw.patterns import files_below
from project.data.raw.samples import ImageRef, Problems, Sample
from project.data.raw.text import nfc
from project.errors import UserError, did_you_mean

# Third byte of an IDX file: the type of its numbers, most significant byte first.
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
HDF5 = {".h5", ".hdf5", ".hdf", ".he5"}
MAX_CHANNELS = 4  # an axis this short has the channels; images are not that small
Array = Any  # in memory or in a file: has `shape`, `dtype` and `[...]`
Label = str | tuple[str, ...] | None


@dataclass(frozen=True)
class ArrayRef:
    """Reference to one image of an array; `convert`, `nodata` and `exact` as in `FileRef`."""

    path: Path
    key: str  # name of the array in an NPZ or HDF5 file
    position: int  # along the axis N
    axes: str  # their order in the file, such as "NYX" or "NYXC"
    convert: Literal["rgb", "grey"] | None = None
    nodata: NodataRule = ZERO
    exact: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def __str__(self) -> str:
        return f"{self.path}{self.key and ':'}{self.key}[{self.position}]"

    def open(self) -> LazyImage:
        """The image; the file is opened once per process, and this image alone is read."""
        array = open_array(self.path, self.key)
        axes = tuple(range(len(self.axes)))
        image = LazyImage(tuple(array.shape), array.dtype, self.axes, lambda index: np.asarray(array[index]), axes)
        image = fill_nodata(with_attributes(image, getattr(array, "attrs", {})), self.nodata)
        pages: Pages = (("N", self.position), *((axis, "channels") for axis in "C" if axis in self.axes))
        image = arrange(image, pages, exact=self.exact)
        return convert_colors(image, self.convert) if self.convert else image


def open_array(path: Path, key: str = "") -> Array:
    """The array in a file; HDF5 and plain NPY stay on the disk, the others are read as a whole, once per process."""
    status = path.stat()
    return _opened(path, key, os.getpid(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=32)
def _opened(path: Path, key: str, process: int, changed: int, size: int) -> Array:
    """The further arguments: a changed file is opened again, and processes do not share a handle."""
    if path.suffix.lower() in HDF5:
        return open_hdf5_dataset(path, key)
    if path.suffix.lower() == ".npz":
        return _read_npz(path, key)
    if key:
        raise UserError("only NPZ and HDF5 files hold arrays with names")
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return read_idx(path)


def array_samples(config: DatasetConfig, problems: Problems) -> list[Sample]:
    """One sample per position along the first axis of each entry of `arrays`.

    The id is the path of the image file without its suffix, the name of the array where the file holds several, and the
    position: "train-images-idx3-ubyte/00042", "set/train_images/00042". Files that are missing or unreadable, and
    arrays that do not fit each other, are problems.
    """
    raw, samples = Path(config.raw), list[Sample]()
    for entry in config.arrays:
        arrays: dict[str, tuple[Array, str]] = {}
        for role, file in entry.files().items():
            try:
                with errors_mention(file):
                    array = open_array(*_path_and_key(raw, file))
                    arrays[role] = array, _axes(array, role, entry.axes)
            except UserError as error:
                problems.add(file, str(error))
        lengths = {role: array.shape[axes.index("N")] for role, (array, axes) in arrays.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{role} {n}" for role, n in lengths.items())
            problems.add(entry.image, f"the numbers of samples differ: {counts}")
        elif len(arrays) == len(entry.files()):
            samples += _samples(entry, arrays, config, problems)
    problems.raise_or_skip("Some arrays cannot be used:")
    return samples


def _path_and_key(raw: Path, file: str) -> tuple[Path, str]:
    """The path, and the name of the array in the file."""
    name, _, key = file.partition(":")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError("must be a path below the raw folder")
    if not (raw / name).is_file():
        raise UserError(f'does not exist below "{raw}".{did_you_mean(name, files_below(raw))}')
    return raw / name, key


def _read_npz(path: Path, key: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        key = names[0] if not key and len(names) == 1 else key
        if key not in names:
            file = f"{path.name}:{names[0]}" if names else path.name
            raise UserError(f'name an array, such as "{file}"; it holds {", ".join(names)}.{did_you_mean(key, names)}')
        return archive[key]


def read_idx(path: Path) -> np.ndarray:
    """An IDX file, plain or with gzip (`.gz`): http://yann.lecun.com/exdb/mnist, "The IDX file format".

    Two zero bytes, the type of numbers, the number of axes, the length of each axis as a big-endian uint32, the values.
    """
    content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_DTYPES or not content[3]:
        raise UserError("this is not an NPY, NPZ or IDX file (plain or with gzip)")
    dtype, start = np.dtype(IDX_DTYPES[content[2]]), 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content, ">u4", content[3], offset=4).tolist())
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise UserError(f"the file is damaged: shape {shape} needs {expected} bytes, there are {len(content)}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def _axes(array: Array, role: str, axes: str | None) -> str:
    """The order of the axes in the file."""
    shape = tuple(array.shape)
    if role == "label":
        if array.dtype.kind not in "bui" or len(shape) not in (1, 2):
            raise UserError(f"labels must be integers of shape (N,), (N, 1) or (N, K), not {array.dtype} {shape}")
        return "NK"[: len(shape)]
    plain_dtype(np.empty(0, array.dtype))  # refuses text and the like
    if len(shape) == 3:
        axes = "NYX"
    elif len(shape) != 4:
        raise UserError(f"{role} needs axes (N, Y, X), or one more for channels; the shape is {shape}")
    elif axes is None:
        is_first, is_last = shape[1] <= MAX_CHANNELS, shape[3] <= MAX_CHANNELS
        if is_first == is_last:
            raise UserError(
                f"the axis of the channels is not clear from shape {shape}; set `axes: NYXC` or `axes: NCYX`"
            )
        axes = "NCYX" if is_first else "NYXC"
    if sorted(axes) != sorted("NYXC"[: len(shape)]):
        raise UserError(f'the array of shape {shape} does not have the axes "{axes}"; set NYXC or NCYX')
    if 0 in shape:
        raise UserError(f"the array of shape {shape} has no pixels")
    return axes


def _samples(
    entry: ArrayConfig, arrays: dict[str, tuple[Array, str]], config: DatasetConfig, problems: Problems
) -> list[Sample]:
    image, axes = arrays["image"]
    labels: list[Label] = [None] * image.shape[axes.index("N")]
    if entry.label:
        try:
            labels = _labels(np.asarray(arrays["label"][0][...]), config.class_names("label"))
        except UserError as error:
            problems.add(entry.label, str(error))
            return []
    # Other suffixes remain: "t10k-images.idx3-ubyte" is a name with a dot.
    file, _, key = entry.image.partition(":")
    start = nfc(Path(re.sub(r"\.(npy|npz|gz|h5|hdf5|hdf|he5)$", "", file, flags=re.IGNORECASE), key).as_posix())
    files = {role: _path_and_key(Path(config.raw), name) for role, name in entry.files().items() if role != "label"}
    split, width, samples = given_split(entry.split or ""), len(str(len(labels) - 1)), []
    for position, label in enumerate(labels):
        images: dict[str, Sequence[ImageRef]] = {
            role: [ArrayRef(*path_and_key, position, arrays[role][1], config.convert if role == "image" else None)]
            for role, path_and_key in files.items()
        }
        samples.append(Sample(f"{start}/{position:0{width}d}", images, label=label, split=split))
    return samples


def _labels(array: np.ndarray, names: list[str]) -> list[Label]:
    """Each label as the name of its class, or names where the array has a column for each class."""
    if array.ndim == 1 or array.shape[1] == 1:
        if array.size and array.min() < 0:
            raise UserError(f"labels are counted from 0, but the smallest is {array.min()}")
        numbers = array.ravel().astype(np.int64).tolist()
        if not names or any(name.isdecimal() for name in names):
            return [str(number) for number in numbers]
        return [names[number] if number < len(names) else f"number {number}" for number in numbers]
    if array.size and not np.isin(array, (0, 1)).all():
        raise UserError("labels with a column for each class must be 0 or 1")
    if len(names) != array.shape[1]:
        raise UserError(
            f"{array.shape[1]} columns need {array.shape[1]} class names, there are {len(names)}; name them as "
            "`classes: {label: [...]}`"
        )
    return [tuple(names[column] for column in np.flatnonzero(row)) for row in array]
