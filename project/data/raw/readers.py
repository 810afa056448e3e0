"""Readers of image files, one function per suffix; another format is a function and an entry in `READERS`.

`LazyImage.from_function` loads the whole file for every read. A reader that can load a part of the pixels returns
`LazyImage(shape, dtype, axes, read, partial_axes=...)`, as `read_npy` does. Colors and notes are attributes of
`LazyImage`; `declarations.py` applies what files declare, such as "no data".
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from project.data.raw.declarations import ORIENTATION, orientation_note, refuse_colors, with_palette
from project.data.raw.lazy_image import LazyImage, read_whole
from project.data.raw.microscopes import ZARR, read_czi, read_lif, read_nd2, read_zarr
from project.data.raw.tiff import read_tiff
from project.errors import UserError

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
    image = replace(image, alpha=n_channels in (2, 4), has_colors=n_channels > 1).with_notes(
        note, "declares a transparent color, which is not used" if mode != "P" and "transparency" in info else ""
    )
    return image if palette is None else with_palette(image, np.pad(palette, ((0, 256 - len(palette)), (0, 0))))


def read_npy(path: Path) -> LazyImage:
    """NPY file; a part is read from the memory-mapped file."""
    load = functools.partial(np.load, path, mmap_mode="r", allow_pickle=False)
    array = load()
    axes = {2: "YX", 3: "CYX"}.get(array.ndim, "?" * array.ndim)
    return LazyImage(array.shape, array.dtype, axes, lambda index: np.array(load()[index]), tuple(range(array.ndim)))


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
# First bytes of a file -> the suffixes that it may have. The content decides on the reader, not the name.
MAGIC = {
    b"II*\0": (".tif", ".tiff"),
    b"MM\0*": (".tif", ".tiff"),
    b"II+\0": (".tif", ".tiff"),  # BigTIFF
    b"MM\0+": (".tif", ".tiff"),
    PNG_MAGIC: (".png",),
    b"\xff\xd8\xff": (".jpg", ".jpeg"),
    b"BM": (".bmp",),
    b"GIF8": (".gif",),
    b"RIFF": (".webp",),
    b"\x93NUMPY": (".npy",),
    b"\xda\xce\xbe\n": (".nd2",),
    b"ZISRAWFILE": (".czi",),
    b"\x70\0\0\0": (".lif",),
}
GIT_LFS = b"version https://git-lfs"


def read_header(path: Path) -> LazyImage:
    """The image in a file; many samples may come from one file, such as the pages of a stack."""
    stat = path.stat()
    return _read_header(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _read_header(path: Path, size: int, changed: int) -> LazyImage:
    """Size and time stamp: a changed file is read again. A header holds no open file."""
    reader, note = _find_reader(path)
    image = reader(path)
    return replace(image, notes=(*filter(None, [note]), *image.notes))


def _find_reader(path: Path) -> tuple[Reader, str]:
    """The reader for the content of a file, and a note where its name says otherwise."""
    suffix = path.suffix.lower()
    if suffix == ZARR and path.is_dir():
        return read_zarr, ""
    with path.open("rb") as file:
        head = file.read(32)
    for magic, suffixes in MAGIC.items():
        if head.startswith(magic):
            is_misnamed = suffix in READERS and suffix not in suffixes
            return READERS[suffixes[0]], f"is a {suffixes[0]} file, despite its name" if is_misnamed else ""
    if suffix in READERS and suffix not in {name for suffixes in MAGIC.values() for name in suffixes}:
        return READERS[suffix], ""  # a format without known first bytes
    if not head:
        raise UserError("the file is empty")
    if head.startswith(GIT_LFS):
        raise UserError("is a pointer of Git LFS; get the file with `git lfs pull`")
    raise UserError(
        f"the content is of no supported format, it begins with {head[:16]!r}; these are {', '.join(sorted(READERS))}"
    )
