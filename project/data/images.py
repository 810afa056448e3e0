"""Read image files of any common kind as (C, H, W) arrays, without changing a value."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from project.errors import UserError

TIFF = {".tif", ".tiff"}
PICTURE = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
SUFFIXES = TIFF | PICTURE | {".npy"}
# PIL modes whose arrays hold the very numbers of the file; "P" gives the palette index: the class, for a mask.
FAITHFUL_MODES = {"1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L", "F"}
EXACT_IN_FLOAT32 = 2**24
# Pillow refuses pictures of more than 179 megapixels as attacks; these are the user's own, and whole slides are larger.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class ImageFile:
    """What the header says, and how to read the rest.

    Attributes:
        shape: (C, H, W); pages of a stack count as channels.
        dtype: As it will be returned: uint8, uint16 or float32.
        read: Decodes the file and returns the array of that shape and dtype.
        palette: (256, 3) uint8, the colours of a picture whose values are places in a palette.
        alpha: Whether the last channel is known to be transparency.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    palette: np.ndarray | None = None
    alpha: bool = False


def open_image(path: Path, axes: str | None = None) -> ImageFile:
    """Read the header of an image file.

    Args:
        path: A TIFF, PNG, JPEG, BMP, GIF, WebP or NPY file.
        axes: Order of the axes in the file, as "CYX" or "YXC"; by default what the file itself says, and "CYX" for
            NPY, which does not say. A plain 2-D file needs none.

    Raises:
        UserError: The kind of file is not known, or its axes or values do not fit a 2-D image with channels.
        Exception: The file cannot be read; see `naming`.
    """
    suffix = path.suffix.lower()
    if suffix in TIFF:
        with tifffile.TiffFile(path) as tiff:
            if not tiff.series:
                raise UserError("the TIFF file holds no image")
            series = tiff.series[0]
            if sum(other.shape == series.shape for other in tiff.series) > 1:
                raise UserError(f"the TIFF file holds {len(tiff.series)} separate images; save one file per image")
            _check_complete(tiff, series)
            shape, dtype, found = series.shape, series.dtype, series.axes
        return _image_file(shape, dtype, axes or found, lambda: tifffile.imread(path, series=0))
    if suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        default = {2: "YX", 3: "CYX"}.get(array.ndim, "?" * array.ndim)
        return _image_file(array.shape, array.dtype, axes or default, lambda: np.load(path, allow_pickle=False))
    if suffix in PICTURE:
        return _open_picture(path, axes)
    raise UserError(f'files of kind "{suffix}" cannot be read; known: {", ".join(sorted(SUFFIXES))}')


def converted(file: ImageFile, kind: Literal["rgb", "grey"]) -> ImageFile:
    """The image in one kind, whatever it was saved as, in the dtype of the file.

    Args:
        file: 1 channel (grey or a palette), 3 (colour), either with alpha, which is dropped.
        kind: "rgb" repeats grey three times; "grey" is the plain mean of red, green and blue, rounded for integers.

    Returns:
        (3, H, W) or (1, H, W).

    Raises:
        UserError: The file has another number of channels.
    """
    n_channels, height, width = file.shape
    if n_channels not in (1, 3, 4) and not (n_channels == 2 and file.alpha):
        raise UserError(f"an image of {n_channels} channels is neither grey nor colour; `convert` cannot be used")

    def read() -> np.ndarray:
        array = file.read()
        if file.palette is not None:
            array = file.palette[array[0]].transpose(2, 0, 1)
        array = array[: 3 if len(array) >= 3 else 1]
        if kind == "rgb":
            return np.ascontiguousarray(np.broadcast_to(array, (3, *array.shape[1:])))
        mean = array.mean(axis=0, dtype=np.float64, keepdims=True)
        return (np.rint(mean) if array.dtype.kind == "u" else mean).astype(array.dtype)

    return replace(file, shape=(3 if kind == "rgb" else 1, height, width), read=read, palette=None, alpha=False)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Turn whatever happens while a file is opened or read into a `UserError` that names the file.

    Decoders raise whatever the bytes bring them to: ZeroDivisionError, TokenError and struct.error were all seen.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path}: cannot be read: {str(error) or type(error).__name__}") from error


def _check_complete(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Refuse a file that was cut off: tifffile would give the pages that are left, or half of a JPEG page."""
    file, layout, last = tiff.filehandle, tiff.tiff, tiff.pages[-1].offset
    file.seek(last)
    (n_tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(last + layout.tagnosize + n_tags * layout.tagsize)
    ends = list(struct.unpack(layout.offsetformat, file.read(layout.offsetsize)))  # of the next page, or 0
    if series.dataoffset is not None:
        ends.append(series.dataoffset + series.nbytes)
    else:
        for page in series.pages:
            if page is not None and page.parent is tiff:
                ends += [start + n for start, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if max(ends) > file.size:
        raise UserError(f"the file is cut off: it has {file.size} bytes and points to byte {max(ends)}")


def _open_picture(path: Path, axes: str | None) -> ImageFile:
    with Image.open(path) as picture:
        mode, (width, height), bands = picture.mode, picture.size, len(picture.getbands())
        palette = np.zeros((256, 3), np.uint8)
        if mode == "P":
            colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette[: len(colours)] = colours
        # A camera's JPEG may carry a preview as a second picture (MPO).
        if getattr(picture, "is_animated", False) and picture.format != "MPO":
            raise UserError("the file holds several pictures, of which only one would be read; save it as TIFF")
    bits = _png_bits(path)
    if bits == 16 and bands > 1:
        # Pillow cuts 16-bit colour to 8 bits without a word.
        colour = _image_file((height, width, bands), np.dtype(np.uint16), axes or "YXC", lambda: _decode_png(path))
        return replace(colour, alpha=bands in (2, 4))
    if mode not in FAITHFUL_MODES:
        raise UserError(f'pictures of mode "{mode}" are not read; save it as grey or RGB')
    dtype = np.dtype({"I": np.int32, "F": np.float32}.get(mode, np.uint16 if mode.startswith("I;16") else np.uint8))
    shape = (height, width) if bands == 1 else (height, width, bands)

    def read() -> np.ndarray:
        with Image.open(path) as picture:
            # Pillow stretches grey of 2 and 4 bits to 0-255.
            return np.asarray(picture) // (255 // (2**bits - 1)) if mode == "L" and bits < 8 else np.asarray(picture)

    file = _image_file(shape, dtype, axes or ("YX" if bands == 1 else "YXC"), read)
    return replace(file, palette=palette if mode == "P" else None, alpha=bands in (2, 4))


def _png_bits(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) > 24 else 8


def _decode_png(path: Path) -> np.ndarray:
    return imagecodecs.png_decode(path.read_bytes())


def _image_file(shape: tuple[int, ...], dtype: np.dtype, axes: str, read: Callable[[], np.ndarray]) -> ImageFile:
    """Work out from the axes how to come to (C, H, W); the same rule serves the header and the pixels."""
    if len(shape) == 2 and len(axes) == 3:
        axes = "".join(axis for axis in axes if axis in "YX")
    if len(axes) != len(shape):
        raise UserError(f'the array of shape {tuple(shape)} does not have the axes "{axes}"; set `axes`')
    if 0 in shape:
        raise UserError(f"the array of shape {tuple(shape)} has no pixels")
    kept = [i for i, n in enumerate(shape) if n > 1 or axes[i] in "YX"]
    names = "".join(axes[i] for i in kept)
    others = [name for name in names if name not in "YX"]
    if names.count("Y") != 1 or names.count("X") != 1 or len(others) > 1:
        raise UserError(
            f"the file holds an array of shape {tuple(shape)} with axes {axes}: only images with one further axis "
            "(channels, z or time) can be read; save one file per image"
        )
    if axes == "CYX" and len(shape) == 3 and shape[2] <= 4 < shape[0]:
        raise UserError(f"shape {tuple(shape)} looks like (Y, X, C) where (C, Y, X) is expected; set `axes: YXC`")
    order = [names.index(name) for name in [*others, "Y", "X"]]

    def arrange(array: np.ndarray) -> np.ndarray:
        if array.shape != tuple(shape):
            raise UserError(f"the header promises shape {tuple(shape)}, the file holds {array.shape}")
        array = array.reshape([shape[i] for i in kept]).transpose(order)
        return plain_dtype(array if others else array[None])

    final = [shape[kept[i]] for i in order]
    full = (final[0], final[1], final[2]) if others else (1, final[0], final[1])
    return ImageFile(full, plain_dtype(np.empty(0, dtype)).dtype, lambda: arrange(read()))


def plain_dtype(array: np.ndarray) -> np.ndarray:
    """The array as uint8, uint16 or float32, contiguous and in native byte order.

    bool becomes uint8; float16 and float64 become float32; wider and signed integers become float32 where that is
    exact.

    Raises:
        UserError: Another dtype, or integers beyond 2**24 which float32 cannot hold.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b" or (kind == "u" and size <= 2):
        return np.ascontiguousarray(array, dtype=np.uint16 if size == 2 else np.uint8)
    if kind in "iu":
        if array.size and max(abs(int(array.min())), abs(int(array.max()))) > EXACT_IN_FLOAT32:
            raise UserError(f"{array.dtype} values beyond {EXACT_IN_FLOAT32} cannot be kept exactly; rescale the files")
        return np.ascontiguousarray(array, dtype=np.float32)
    if kind == "f":
        return np.ascontiguousarray(array, dtype=np.float32)
    raise UserError(f"images of dtype {array.dtype} are not supported; save them as uint8, uint16 or float32")
