"""PNG, JPEG and other pictures, which are decoded as a whole."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from PIL import Image

from project.data.raw.interpretation import ORIENTATION, not_turned, notes, refuse_colours, with_colours
from project.data.raw.lazy import LazyArray, decoded
from project.errors import UserError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_BANDS = {0: 1, 2: 3, 4: 2, 6: 4}  # by type of colour; type 3 is a palette
# PIL modes whose arrays hold the very numbers of the file; "P" gives the palette index: the class, for a mask.
FAITHFUL_MODES = {"1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L", "F"}
EXTRAS = {b"acTL", b"tRNS", b"eXIf", b"iCCP"}
LATE = 2**16  # bytes at the end of a PNG file, in which the orientation may be
# Pillow refuses pictures of more than 179 megapixels as attacks; these are the user's own, and whole slides are larger.
Image.MAX_IMAGE_PIXELS = None


def picture_array(path: Path, file: BinaryIO) -> LazyArray:
    """The pixels of a picture that Pillow knows, as the file holds them: no palette is looked up, nothing is turned.

    PNG is left to Pillow only where it must be, for Pillow is slower, and cuts 16-bit colour to 8 bits without a word.

    Raises:
        UserError: The file is cut off, holds several pictures, or values that Pillow would change.
    """
    head = file.read(33)
    if not head.startswith(PNG_MAGIC):
        return _of_pillow(path)
    if len(head) < 33 or head[12:16] != b"IHDR":
        raise UserError("the file is cut off or damaged")
    width, height, bits, colours = struct.unpack(">IIBB", head[16:26])
    bands, interlaced, extras = PNG_BANDS.get(colours), head[28], _extras(file)
    if bands is None or bits not in (8, 16) or interlaced or extras:
        return _of_pillow(path, bits, bands, has_exif=b"eXIf" in extras)
    dtype = np.uint16 if bits == 16 else np.uint8
    return _array((width, height), bands, dtype, lambda: imagecodecs.png_decode(path.read_bytes()))


def _extras(file: BinaryIO) -> set[bytes]:
    """Which chunks a PNG file has for animation, transparency, orientation, or a profile that libpng complains of."""
    kinds = set[bytes]()
    while b"IDAT" not in kinds:
        head = file.read(8)
        if len(head) < 8:
            raise UserError("the file is cut off or damaged")
        length, kind = struct.unpack(">I4s", head)
        kinds.add(kind)
        file.seek(length + 4, 1)
    file.seek(max(file.seek(0, 2) - LATE, 33))
    return (kinds & EXTRAS) | ({b"eXIf"} if b"eXIf" in file.read() else set())


def _of_pillow(path: Path, bits: int = 8, bands: int | None = None, has_exif: bool = False) -> LazyArray:
    """The picture of which Pillow reads the header; `bits` and `bands` are those of a PNG file, where it tells them."""
    with Image.open(path) as picture:
        mode, size, bands = picture.mode, picture.size, bands or len(picture.getbands())
        palette = None
        if mode == "P":
            colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette = np.zeros((256, 3), np.uint8)
            palette[: len(colours)] = colours
        # A camera's JPEG may carry a preview as a second picture (MPO).
        if getattr(picture, "is_animated", False) and picture.format != "MPO":
            raise UserError("the file holds several pictures, of which only one would be read; save it as TIFF")
        # Where there is none, `getexif` decodes a whole PNG to look for it at the end.
        note = not_turned(picture.getexif().get(ORIENTATION, 1) if has_exif or "exif" in picture.info else 1)
        if mode != "P" and "transparency" in picture.info:
            note = notes([note, "declares a transparent colour, which is not used"])
    if mode not in FAITHFUL_MODES:
        refuse_colours(mode)

    def decode() -> np.ndarray:
        if bits == 16 and bands > 1:  # what follows is a transparent colour made a channel
            return imagecodecs.png_decode(path.read_bytes())[..., :bands]
        with Image.open(path) as picture:
            # Pillow stretches grey of 2 and 4 bits to 0-255.
            return np.asarray(picture) // (255 // (2**bits - 1)) if mode == "L" and bits < 8 else np.asarray(picture)

    dtype = {"I": np.int32, "F": np.float32}.get(mode, np.uint16 if bits == 16 or mode.startswith("I;16") else np.uint8)
    return with_colours(_array(size, bands, dtype, decode, note=note), palette)


def _array(size: tuple[int, int], bands: int, dtype: Any, decode: Callable[[], np.ndarray], **more: Any) -> LazyArray:
    shape = size[::-1] if bands == 1 else (*size[::-1], bands)
    axes = "YX" if bands == 1 else "YXC"
    more |= {"alpha": bands in (2, 4), "has_colours": bands > 1}
    return LazyArray(shape, np.dtype(dtype), axes, decoded(shape, decode), **more)
