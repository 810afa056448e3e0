"""Lazy images: what the header of a file says, and a function that reads a part of the pixels.

What files declare about their values (colors, which end is white, pixels without data, orientation) is applied, refused
or kept as a note, in the same way for every reader.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from project.errors import UserError

Index = tuple[slice, ...]  # one for each axis, not empty, of step 1
EXACT_IN_FLOAT32 = 2**24
ORIENTATION = 274  # EXIF and TIFF tag


@dataclass(frozen=True)
class LazyImage:
    """Array of an image file that is not read yet, with what the file declares about its values.

    A reader returns the array as it is stored; `project.data.raw.images.arrange` makes (C, H, W) of it, axes "CYX".
    `read(index)` returns a part of the array, with all its axes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: str  # a letter for each axis: Y and X, C for channels, other capital letters for the axes of a stack
    read: Callable[[Index], np.ndarray]
    reads_rows: bool = False  # whether rows are read without decoding the rest of the image
    palette: np.ndarray | None = None  # (K, 3) uint8 or uint16, the color of each value
    indexed: bool = False  # whether the values are only indices into the palette, and no measurement
    alpha: bool = False  # whether the file says that the last channel is transparency
    inverted: bool = False  # whether numbers of more than one bit were stored with 0 as white, and are read inverted
    lossy: bool = False  # whether the file is JPEG
    has_colors: bool = False  # whether the file says that the channels are those of each pixel, such as RGB
    notes: tuple[str, ...] = ()  # for the user, such as "declares 255 as no data"

    @classmethod
    def from_function(cls, load: Callable[[], np.ndarray], axes: str | None = None) -> "LazyImage":
        """Image that `load` returns as a whole, here and again for each read; the axes are by default YX or CYX."""
        array = np.asarray(load())
        axes = axes or {2: "YX", 3: "CYX"}.get(array.ndim, "")
        if array.ndim != len(axes) or 0 in array.shape:
            raise UserError(f"the array of shape {array.shape} is not an image of shape (H, W) or (C, H, W)")
        return cls(array.shape, array.dtype, axes, read_whole(array.shape, array.dtype, load))

    def with_notes(self, *notes: str) -> "LazyImage":
        """The image with further notes; empty ones are left out."""
        return replace(self, notes=(*self.notes, *filter(None, notes)))

    def rows(self, y0: int, y1: int) -> np.ndarray:
        """Rows y0 to y1 of an image with the axes CYX, (C, y1 - y0, W)."""
        return self.read((slice(0, self.shape[0]), slice(y0, y1), slice(0, self.shape[2])))

    def cached(self) -> "LazyImage":
        """The same image, which keeps the rows that were read last, or all pixels where no part can be read alone."""
        last: list[tuple[Index, np.ndarray]] = []

        def read(index: Index) -> np.ndarray:
            key = index if self.reads_rows else tuple(slice(0, n) for n in self.shape)
            if not last or last[0][0] != key:
                last[:] = [(key, self.read(key))]
            return last[0][1] if key == index else last[0][1][index]

        return replace(self, read=read)


def read_whole(
    shape: tuple[int, ...], dtype: np.dtype, load: Callable[[], np.ndarray]
) -> Callable[[Index], np.ndarray]:
    """Function that reads a part of an array which can only be loaded as a whole."""

    def read(index: Index) -> np.ndarray:
        array = np.asarray(load())
        if (array.shape, array.dtype) != (shape, dtype):
            raise UserError(f"the header promises {dtype} {shape}, the file holds {array.dtype} {array.shape}")
        part = array[index]
        return part if part.size == array.size else part.copy()  # the copy does not keep the whole array alive

    return read


def plain_dtype(array: np.ndarray) -> np.ndarray:
    """The array as uint8, uint16 or float32, contiguous and in native byte order.

    bool becomes uint8, other floats float32, and wider and signed integers float32 where that is exact.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b" or (kind == "u" and size <= 2):
        return np.ascontiguousarray(array, dtype=np.uint16 if size == 2 else np.uint8)
    if kind not in "iuf":
        raise UserError(f"images of dtype {array.dtype} are not supported; save them as uint8, uint16 or float32")
    if kind != "f" and array.size and max(abs(int(array.min())), abs(int(array.max()))) > EXACT_IN_FLOAT32:
        raise UserError(f"{array.dtype} values beyond {EXACT_IN_FLOAT32} cannot be kept exactly; rescale the files")
    return np.ascontiguousarray(array, dtype=np.float32)


@contextmanager
def errors_mention(name: object) -> Iterator[None]:
    """Turn every error inside into a `UserError` that begins with the name of a file.

    Decoders raise errors of all kinds for broken files, such as ZeroDivisionError and struct.error.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:
        raise UserError(f"{name}: cannot be read: {str(error) or type(error).__name__}") from error


def refuse_colors(name: str) -> None:
    """Raise the error for color spaces other than gray and RGB."""
    raise UserError(f'pictures of mode "{name}" are not supported; save it as gray or RGB')


def orientation_note(orientation: object) -> str:
    """Note on a file whose tag `ORIENTATION` asks for a rotation; "" where it does not."""
    return "" if orientation in (0, 1) else f"is kept as stored, not rotated as its orientation {orientation} asks"


def with_palette(image: LazyImage, palette: np.ndarray, is_display: bool = False) -> LazyImage:
    """The image with its color table, (K, 3).

    A table that only colors measured values for display (`is_display`, or a ramp from black to one color) is noted; a
    gray ramp changes nothing; any other makes the values indices into the table, `LazyImage.indexed`.
    """
    n = int(np.flatnonzero(palette.any(axis=1)).max(initial=0)) + 1  # the others are padding
    is_gray = bool((palette[:n] == np.arange(n)[:, None]).all())
    ramp = np.linspace(0, palette[-1].astype(float), len(palette))
    is_ramp = len(palette) in (256, 65536) and np.abs(palette - ramp).max() <= 1
    displayed = is_gray or is_ramp or is_display
    note = "has a color table for display only; the stored values are kept" if displayed and not is_gray else ""
    return replace(image, palette=palette, indexed=not displayed).with_notes(note)


def inverted(image: LazyImage, bits: int) -> LazyImage:
    """The image of a file in which 0 is white, with 0 black."""
    if image.dtype.kind not in "bu":
        raise UserError(f"0 is white in the file, which has no meaning for {image.dtype}; save it with 0 as black")
    highest = image.dtype.type(2**bits - 1) if image.dtype.kind == "u" else np.True_
    note = "is stored with 0 as white; its values are inverted, so that 0 is black"
    # highest - value, for unsigned and bool
    result = replace(image, read=lambda index: image.read(index) ^ highest, inverted=bits > 1)
    return result.with_notes(note)


def with_nodata(image: LazyImage, declared: object) -> LazyImage:
    """The image with NaN where it is the value that the file declares as "no data"; integers are kept, with a note."""
    if declared is None:
        return image
    text = str(declared).strip(" \0")
    note = f'declares {text} as "no data"'
    if image.dtype.kind != "f":
        return image.with_notes(f"{note}; the values are kept")
    try:
        with np.errstate(over="ignore"):
            value = image.dtype.type(text.replace(",", "."))
    except ValueError:
        return image.with_notes(f"{note}, which is not a number and is not used")

    def read(index: Index) -> np.ndarray:
        part = image.read(index)
        return np.where(part == value, part.dtype.type(np.nan), part)

    return replace(image, read=read).with_notes(f"{note}; such pixels are NaN")
