"""Lazy images: what the header of a file says, and a function that reads a part of the pixels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from project.errors import UserError

Index = tuple[int | slice, ...]
EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True)
class LazyImage:
    """Array of an image file that is not read yet, with what the file declares about its values.

    A reader returns the array as it is stored; `project.data.raw.images.arrange` makes (C, H, W) of it, axes "CYX".
    `read(index)` returns a part of the array; `index` has one integer or non-empty slice of step 1 per axis.
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
