"""Files of arrays: NPY, NPZ, HDF5 and IDX, with the images along one axis."""

import functools
import gzip
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from project.data.hdf5 import open_hdf5_dataset
from project.data.raw.declarations import with_nodata
from project.data.raw.lazy_image import LazyImage
from project.errors import UserError, did_you_mean

# Third byte of an IDX file: the type of its numbers, most significant byte first.
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
NOT_APPLIED = ("scale_factor", "add_offset", "IMAGE_WHITE_IS_ZERO")  # declarations of HDF5 that only give a note
HDF5 = {".h5", ".hdf5", ".hdf", ".he5"}
Array = Any  # in memory or in a file: has `shape`, `dtype` and `[...]`


def open_array(path: Path, key: str = "") -> Array:
    """The array in a file; HDF5 and plain NPY stay on the disk, the others are read as a whole, once per process."""
    status = path.stat()
    return _opened(path, key, os.getpid(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=32)
def _opened(path: Path, key: str, process: int, changed: int, size: int) -> Array:
    """The further arguments: a changed file is opened again, and processes do not share a handle."""
    suffix = path.suffix.lower()
    if suffix in HDF5:
        return open_hdf5_dataset(path, key)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            key = names[0] if not key and len(names) == 1 else key
            if key not in names:
                hint = did_you_mean(key, names)
                raise UserError(f'name an array, as "{path.name}:NAME"; it holds {", ".join(names)}.{hint}')
            return archive[key]
    if key:
        raise UserError("only NPZ and HDF5 files hold arrays with names")
    return np.load(path, mmap_mode="r", allow_pickle=False) if suffix == ".npy" else read_idx(path)


def array_image(array: Array) -> LazyImage:
    """The array as a lazy image without names of axes; what HDF5 declares about it is applied ("no data") or noted."""
    shape = tuple(array.shape)
    image = LazyImage(
        shape, array.dtype, "?" * len(shape), lambda index: np.asarray(array[index]), tuple(range(len(shape)))
    )
    attributes = getattr(array, "attrs", {})
    if ignored := [name for name in NOT_APPLIED if np.any(attributes.get(name, 0))]:
        image = image.with_notes(f"declares {', '.join(ignored)}; the values are kept as stored")
    declared = attributes.get("_FillValue", attributes.get("missing_value"))
    return image if declared is None else with_nodata(image, np.ravel(declared)[0])


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
