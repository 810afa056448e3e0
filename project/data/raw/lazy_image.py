"""Lazy images: what the header of a file says, and a function that reads the pixels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from project.errors import UserError

EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True)
class LazyImage:
    """What the header says, and how to read the rest.

    Attributes:
        shape: (C, H, W); pages of a stack count as channels.
        dtype: As it will be returned: uint8, uint16 or float32; see `FileRef.exact`.
        read: `read(y0, y1)` returns the rows y0 to y1 as a contiguous (C, y1 - y0, W) array of that dtype.
        by_region: Whether rows are read without decoding the rest of the file.
        palette: (K, 3) uint8 or uint16, the colour of each value.
        indexed: Whether the values are only places in the palette, and no measurement.
        alpha: Whether the file says that the last channel is transparency.
        inverted: Whether numbers of more than one bit were stored with 0 as white; they are inverted.
        has_colours: Whether the file says that the channels are those of each pixel, as red, green and blue.
        note: What the user should know about the file, such as "is a JPEG file, whatever its name says".
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    by_region: bool = False
    palette: np.ndarray | None = None
    indexed: bool = False
    alpha: bool = False
    inverted: bool = False
    has_colours: bool = False
    note: str = ""

    @classmethod
    def of(cls, load: Callable[[], np.ndarray]) -> "LazyImage":
        """The image that a function gives.

        Args:
            load: Returns (H, W) or (C, H, W), in any dtype that `plain_dtype` takes. It is called once here, for shape
                and dtype, and again each time rows are read.

        Raises:
            UserError: The array has another number of axes, no pixels, or values that cannot be kept.
        """

        def whole() -> np.ndarray:
            array = np.asarray(load())
            if array.ndim not in (2, 3) or 0 in array.shape:
                raise UserError(f"the array of shape {array.shape} is no image of shape (H, W) or (C, H, W)")
            return plain_dtype(array if array.ndim == 3 else array[None])

        def read(y0: int, y1: int) -> np.ndarray:
            array = whole()
            if (array.shape, array.dtype) != (shape, dtype):
                raise UserError(
                    f"the array was {dtype} {shape} when first loaded, now it is {array.dtype} {array.shape}"
                )
            return np.ascontiguousarray(array[:, _rows(y0, y1, shape[1])])

        first = whole()
        shape, dtype = first.shape, first.dtype
        return cls((shape[0], shape[1], shape[2]), dtype, read)


@contextmanager
def errors_mention(path: object) -> Iterator[None]:
    """Turn whatever happens while a file is opened or read into a `UserError` that names the file.

    Decoders raise whatever the bytes bring them to: ZeroDivisionError, TokenError and struct.error were all seen.

    Args:
        path: The file, or whatever else `str` turns into a name.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path}: cannot be read: {str(error) or type(error).__name__}") from error


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
    if kind not in "iuf":
        raise UserError(f"images of dtype {array.dtype} are not supported; save them as uint8, uint16 or float32")
    if kind != "f" and array.size and max(abs(int(array.min())), abs(int(array.max()))) > EXACT_IN_FLOAT32:
        raise UserError(f"{array.dtype} values beyond {EXACT_IN_FLOAT32} cannot be kept exactly; rescale the files")
    return np.ascontiguousarray(array, dtype=np.float32)


def _rows(y0: int, y1: int, height: int) -> slice:
    if not 0 <= y0 <= y1 <= height:
        raise ValueError(f"there are no rows {y0} to {y1} in an image of {height}")
    return slice(y0, y1)
