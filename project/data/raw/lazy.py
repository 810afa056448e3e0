"""An array in a file that is not read yet, and the two ways to read parts of one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from project.errors import UserError

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class LazyArray:
    """The array of a file as it is stored, not read yet.

    Attributes:
        shape, dtype, axes: Of the array; one letter for each axis.
        take: What the array gives for an index with an integer or a slice of step 1, never an empty one, for each axis.
        cuts: Positions of the axes along which a part is read without decoding the rest.
        ones: Names of axes of length 1 that the array does not have, but the file speaks of.
        nodata: Value of pixels that the file declares as "no data".
        valid: What its mask of validity gives for an index of Y and X; 0 where there is no data.
        has_colours: Whether the axis C has the colours of a picture, and not the channels of a microscope or pages.
        palette, indexed, alpha, inverted, note: As in `project.data.raw.images.LazyImage`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: str
    take: Callable[[Index], np.ndarray]
    cuts: tuple[int, ...] = ()
    ones: str = ""
    nodata: float | int | None = None
    valid: Callable[[Index], np.ndarray] | None = None
    has_colours: bool = False
    palette: np.ndarray | None = None
    indexed: bool = False
    alpha: bool = False
    inverted: bool = False
    note: str = ""


def stored(path: Path, dtype: np.dtype, shape: Sequence[int], offset: int) -> Callable[[Index], np.ndarray]:
    """Reads parts of an array that lies in a file as it would in memory."""
    steps = [math.prod(shape[i + 1 :]) for i in range(len(shape))]

    def take(index: Index) -> np.ndarray:
        spans = [span(i, n) for i, n in zip(index, shape, strict=True)]
        first = sum(start * step for (start, _), step in zip(spans, steps, strict=True))
        last = sum((stop - 1) * step for (_, stop), step in zip(spans, steps, strict=True))
        final = [stop - start for (start, stop), i in zip(spans, index, strict=True) if isinstance(i, slice)]
        count = math.prod(final)
        if last - first + 1 != count:
            return np.array(np.memmap(path, dtype, "r", offset, tuple(shape))[index])
        array = np.fromfile(path, dtype, count, offset=offset + first * dtype.itemsize)
        if array.size != count:
            raise UserError("the file is cut off")
        return array.reshape(final)

    return take


def decoded(shape: tuple[int, ...], decode: Callable[[], np.ndarray]) -> Callable[[Index], np.ndarray]:
    """Reads parts of what can only be decoded as a whole."""

    def take(index: Index) -> np.ndarray:
        array = decode()
        if array.shape != shape:
            raise UserError(f"the header promises shape {shape}, the file holds {array.shape}")
        part = array[index]
        return part if part.size == array.size else part.copy()  # which does not keep the whole alive

    return take


def span(index: int | slice, n: int) -> tuple[int, int]:
    """Where an index of an axis of length `n` begins and ends."""
    return (index, index + 1) if isinstance(index, int) else index.indices(n)[:2]
