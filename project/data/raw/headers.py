"""Find out which kind of image file a file is, and read its header."""

import functools
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from project.data.raw.interpretation import notes
from project.data.raw.lazy import Index, LazyArray, stored
from project.data.raw.pictures import PNG_MAGIC, picture_array
from project.data.raw.tiff import tiff_array
from project.errors import UserError

TIFF = {".tif", ".tiff"}
KINDS = dict.fromkeys(sorted(TIFF), "TIFF") | {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WebP",
    ".npy": "NPY",
}
SUFFIXES = set(KINDS)
# First bytes of each kind that is read ...
MAGIC = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
    PNG_MAGIC: "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"\x93NUMPY": "NPY",
}
# ... and of some that are taken for images.
OTHER_MAGIC = {
    b"\x89HDF": "an HDF5 file",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip file",
    b"%PDF": "a PDF file",
    b"ZISRAWFILE": "a Zeiss CZI file",
    b"\0\0\0\x0cjP": "a JPEG 2000 file",
    b"version https://git-lfs": "a pointer of Git LFS, to be fetched with `git lfs pull`",
}
# A file may be written again within one tick of the clock that stamps it: headers of files so young are not remembered.
YOUNG = 2.0  # seconds


def read_header(path: Path) -> LazyArray:
    """The array that a file holds. Reading parts of it raises `UserError` when the file was written again.

    Raises:
        UserError: The kind of file is not known, or its content is not fit.
        Exception: Whatever a broken file brings the decoders to.
    """
    stamp = _stamp(path)
    young = abs(time.time() - stamp[1] / 1e9) < YOUNG  # clocks of file servers may be ahead
    return _parse(path, stamp) if young else _remembered(path, stamp)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _parse(path: Path, stamp: tuple[int, int]) -> LazyArray:
    with path.open("rb") as file:
        kind = _kind(file.read(512), path.suffix)
        file.seek(0)
        array = tiff_array(path) if kind == "TIFF" else (_npy_array if kind == "NPY" else picture_array)(path, file)

    def take(index: Index) -> np.ndarray:
        if _stamp(path) != stamp:
            raise UserError("the file was written again after it was opened")
        return array.take(index)

    renamed = KINDS.get(path.suffix.lower(), kind) != kind
    told = [f"is a {kind} file, whatever its name says" if renamed else "", array.note]
    return replace(array, take=take, note=notes(told))


# Many samples may come from one file, such as the pages of a stack. Nothing in a header is open.
_remembered = functools.lru_cache(maxsize=32)(_parse)


def _kind(head: bytes, suffix: str) -> str:
    """What the first bytes of a file say it is."""
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if not head:
        raise UserError("the file is empty")
    known = ", ".join(sorted(SUFFIXES))
    for magic, what in OTHER_MAGIC.items():
        if head.startswith(magic):
            raise UserError(f"is {what}; known kinds: {known}")
    text = head.decode("utf-8", errors="ignore").lstrip("\ufeff \r\n\t")
    if text.startswith("<") and ("<html" in text.lower() or "<!doctype html" in text.lower()):
        raise UserError("is a web page and no image: was the download refused?")
    if len(text) > 0.9 * len(head) and text.translate(dict.fromkeys(map(ord, "\r\n\t"))).isprintable():
        raise UserError(f'is a text file, which begins with "{text[:30].strip()}"')
    if suffix.lower() in KINDS:
        raise UserError(f"the content is none of a {KINDS[suffix.lower()]} or another known file")
    raise UserError(f'files of kind "{suffix}" cannot be read; known: {known}')


def _npy_array(path: Path, file: BinaryIO) -> LazyArray:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, by_columns, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise UserError("the file holds Python objects in place of numbers")
    offset, size = file.tell(), path.stat().st_size
    if size < (promised := offset + math.prod(shape) * dtype.itemsize):
        raise UserError(f"the file is cut off: it has {size} bytes of {promised}")
    axes, everywhere = {2: "YX", 3: "CYX"}.get(len(shape), "?" * len(shape)), tuple(range(len(shape)))
    if not by_columns:
        return LazyArray(shape, dtype, axes, stored(path, dtype, shape, offset), everywhere)
    take = stored(path, dtype, shape[::-1], offset)
    return LazyArray(shape, dtype, axes, lambda index: take(index[::-1]).T, everywhere)
