"""Readers of image files, one function per suffix; another format is a function and an entry in `READERS`.

`LazyImage.from_function` loads the whole file for every read. A reader that can load a part of the pixels returns
`LazyImage(shape, dtype, axes, read, reads_rows=True)`, as `read_npy` does. Colors and notes are attributes of
`LazyImage`; `lazy_image.py` applies what files declare, such as "no data".
"""

import functools
import gzip
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from project.data.hdf5 import hdf5_names, open_hdf5_dataset
from project.data.raw.lazy_image import (
    ORIENTATION,
    LazyImage,
    orientation_note,
    read_whole,
    refuse_colors,
    with_nodata,
    with_palette,
)
from project.data.raw.microscopes import ZARR, read_czi, read_lif, read_nd2, read_zarr
from project.data.raw.tiff import read_tiff
from project.errors import UserError, did_you_mean

# PIL modes whose arrays hold the very numbers of the file; "P" gives the palette index: the class, for a mask.
LOSSLESS_MODES = {"1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L", "F"}
MODE_DTYPES = {"1": "bool", "I": "int32", "F": "float32", "I;16": "uint16", "I;16B": ">u2", "I;16L": "<u2"}
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by type of color; type 3 is a palette
# Pillow refuses pictures of more than 179 megapixels as attacks; these are the user's own, and whole slides are larger.
Image.MAX_IMAGE_PIXELS = None


def read_picture(path: Path) -> LazyImage:
    """PNG, JPEG, BMP, GIF or WebP, with the values of the file: no palette is looked up, nothing is rotated."""
    with path.open("rb") as file:
        head = file.read(26)
    is_png = head.startswith(PNG_MAGIC)
    with Image.open(path) as picture:
        mode, info, size = picture.mode, picture.info, picture.size
        palette = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3) if mode == "P" else None
        bits, color_type = (head[24], head[25]) if is_png else (8, -1)
        n_channels = PNG_CHANNELS.get(color_type, len(picture.getbands()))
        # A camera's JPEG may hold a preview as a second picture (MPO).
        if getattr(picture, "is_animated", False) and picture.format != "MPO":
            raise UserError("the file holds several pictures, of which only one would be read; save it as TIFF")
        # `getexif` of a PNG file without it would decode all pixels, to look for it at the end.
        note = orientation_note(picture.getexif().get(ORIENTATION, 1) if "exif" in info else 1)
    if mode not in LOSSLESS_MODES:
        refuse_colors(mode)
    dtype = np.dtype(np.uint16 if bits == 16 else MODE_DTYPES.get(mode, np.uint8))
    # libpng is faster than Pillow, and Pillow cuts 16-bit color to 8 bits. Of a transparent color libpng makes alpha.
    is_plain = mode != "P" and bits >= 8 and {"transparency", "interlace", "icc_profile"}.isdisjoint(info)

    def load() -> np.ndarray:
        if is_png and (is_plain or (bits == 16 and n_channels > 1)):
            array = imagecodecs.png_decode(path.read_bytes())
            return array if n_channels == 1 else array[..., :n_channels]
        with Image.open(path) as picture:
            # Pillow stretches gray of 2 and 4 bits to 0-255.
            array = np.asarray(picture) // (255 // (2**bits - 1)) if mode == "L" and bits < 8 else np.asarray(picture)
            return array.astype(dtype, copy=False)

    shape = size[::-1] if n_channels == 1 else (*size[::-1], n_channels)
    image = LazyImage(shape, dtype, "YX" if n_channels == 1 else "YXC", read_whole(shape, dtype, load))
    is_jpeg = head.startswith(MAGIC[".jpg"])
    image = replace(image, alpha=n_channels in (2, 4), has_colors=n_channels > 1, lossy=is_jpeg).with_notes(
        note, "declares a transparent color, which is not used" if mode != "P" and "transparency" in info else ""
    )
    return image if palette is None else with_palette(image, np.pad(palette, ((0, 256 - len(palette)), (0, 0))))


def read_npy(path: Path) -> LazyImage:
    """NPY file; a part is read from the memory-mapped file."""
    load = functools.partial(np.load, path, mmap_mode="r", allow_pickle=False)
    array = load()
    axes = {2: "YX", 3: "CYX"}.get(array.ndim, "?" * array.ndim)
    return LazyImage(array.shape, array.dtype, axes, lambda index: np.array(load()[index]), reads_rows=True)


Reader = Callable[[Path], LazyImage]
READERS: dict[str, Reader] = {
    ".tif": read_tiff,
    ".tiff": read_tiff,
    ".png": read_picture,
    ".jpg": read_picture,
    ".jpeg": read_picture,
    ".bmp": read_picture,
    ".gif": read_picture,
    ".webp": read_picture,
    ".npy": read_npy,
    ".nd2": read_nd2,
    ".czi": read_czi,
    ".lif": read_lif,
    ZARR: read_zarr,
}
# First bytes of files. The content decides on the reader, not the name.
MAGIC = {
    ".tif": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # the last two: BigTIFF
    ".png": (PNG_MAGIC,),
    ".jpg": (b"\xff\xd8\xff",),
    ".bmp": (b"BM",),
    ".gif": (b"GIF8",),
    ".webp": (b"RIFF",),
    ".npy": (b"\x93NUMPY",),
    ".nd2": (b"\xda\xce\xbe\n",),
    ".czi": (b"ZISRAWFILE",),
    ".lif": (b"\x70\0\0\0",),
}
KNOWN_BY_CONTENT = {suffix for suffix, reader in READERS.items() if reader in map(READERS.get, MAGIC)}
GIT_LFS = b"version https://git-lfs"


def read_header(path: Path) -> LazyImage:
    """The image in a file; many samples may come from one file, such as the pages of a stack."""
    stat = path.stat()
    return _read_header(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _read_header(path: Path, size: int, changed: int) -> LazyImage:
    """Size and time stamp: a changed file is read again. A header holds no open file."""
    reader = READERS.get(path.suffix.lower())
    if path.is_dir():
        return read_zarr(path)
    with path.open("rb") as file:
        head = file.read(32)
    if kind := next((kind for kind, magic in MAGIC.items() if head.startswith(magic)), ""):
        is_misnamed = reader not in (None, READERS[kind])
        return READERS[kind](path).with_notes(f"is a {kind} file, despite its name" if is_misnamed else "")
    if reader and path.suffix.lower() not in KNOWN_BY_CONTENT:
        return reader(path)  # a format without known first bytes
    if head.startswith(GIT_LFS):
        raise UserError("is a pointer of Git LFS; get the file with `git lfs pull`")
    content = f"the content is of no supported format, it begins with {head[:16]!r}" if head else "the file is empty"
    raise UserError(f"{content}; these are {', '.join(sorted(READERS))}" if head else content)


# Third byte of an IDX file: the type of its numbers, most significant byte first.
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
NOT_APPLIED = ("scale_factor", "add_offset", "IMAGE_WHITE_IS_ZERO")  # declarations of HDF5 that only give a note
HDF5 = {".h5", ".hdf5", ".hdf", ".he5"}
NAMED_ARRAYS = HDF5 | {".npz"}
Array = Any  # in memory or in a file: has `shape`, `dtype` and `[...]`


def open_array(path: Path, key: str = "") -> Array:
    """The array in a file; HDF5 and plain NPY stay on the disk, the others are read as a whole, once per process."""
    status = path.stat()
    return _opened(path, key, os.getpid(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=32)
def _opened(path: Path, key: str, process: int, changed: int, size: int) -> Array:
    """The further arguments: a changed file is opened again, and processes do not share a handle."""
    suffix = path.suffix.lower()
    if suffix not in NAMED_ARRAYS and key:
        raise UserError("only NPZ and HDF5 files hold arrays with names")
    if suffix not in NAMED_ARRAYS:
        return np.load(path, mmap_mode="r", allow_pickle=False) if suffix == ".npy" else read_idx(path)
    if not key and len(names := array_names(path)) == 1:
        key = names[0]
    if suffix in HDF5:
        array = open_hdf5_dataset(path, key) if key else None
    else:
        with np.load(path, allow_pickle=False) as archive:
            array = archive.get(key)
    if array is None:
        names = array_names(path)
        listed, hint = ", ".join(names[:12]) or "none", did_you_mean(key, names)
        raise UserError(f'name an array, as "{path.name}:NAME"; it holds {listed}.{hint}')
    return array


def array_names(path: Path) -> list[str]:
    """The names of the arrays in an HDF5 or NPZ file."""
    if path.suffix.lower() in HDF5:
        return hdf5_names(path)
    with np.load(path, allow_pickle=False) as archive:
        return list(archive.files)


def array_image(array: Array) -> LazyImage:
    """The array as a lazy image without names of axes; what HDF5 declares about it is applied ("no data") or noted."""
    shape = tuple(array.shape)
    image = LazyImage(shape, array.dtype, "?" * len(shape), lambda index: np.asarray(array[index]), reads_rows=True)
    attributes = getattr(array, "attrs", {})
    if ignored := [name for name in NOT_APPLIED if np.any(attributes.get(name, 0))]:
        image = image.with_notes(f"declares {', '.join(ignored)}; the values are kept as stored")
    declared = np.ravel(attributes.get("_FillValue", attributes.get("missing_value", ())))
    return with_nodata(image, declared[0]) if declared.size else image


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
