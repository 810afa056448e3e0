"""Read image files of any common kind as (C, H, W) arrays, whole or in bands of rows, without changing a value."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from project.data.raw.axes import Pages, axis_names, axis_uses, further_axes, reduced
from project.data.raw.headers import read_header
from project.data.raw.interpretation import ZERO, NodataRule, filled
from project.data.raw.lazy import LazyArray
from project.data.raw.lazy_image import LazyImage, _rows, plain_dtype
from project.errors import UserError


@dataclass(frozen=True)
class FileRef:
    """An image in a file: what of it is taken, and as what.

    Attributes:
        path: The file.
        axes, pages: See `open_image`.
        channel: The one channel that is taken, counted from 0 in what `pages` leaves; None for all.
        convert: See `converted`; done last.
        nodata: What happens to pixels that the file declares as "no data"; done first.
        exact: Keep the dtype of integers and floats of 4 and more bytes, for masks and object numbers.
    """

    path: Path
    axes: str | None = None
    pages: Pages | None = None
    channel: int | None = None
    convert: Literal["rgb", "grey"] | None = None
    nodata: NodataRule = ZERO
    exact: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def open(self) -> LazyImage:
        """Read the header; raises what `open_image` and `converted` raise, and for a channel that is not there."""
        file = arrange(filled(read_header(self.path), self.nodata), self.axes, self.pages, self.channel, self.exact)
        return convert_colors(file, self.convert) if self.convert else file

    def __str__(self) -> str:
        return str(self.path)


class FunctionImage:
    """An image that a function gives: the way for files that nothing here reads.

    Args:
        function: At the top level of a module, so that processes can find it. It returns uint8, uint16, float32 (or
            what converts to these exactly) of shape (H, W) or (C, H, W), always of the same shape and dtype.
        *arguments: Of the function. Paths among them are the files that it reads.
    """

    def __init__(self, function: Callable[..., np.ndarray], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths among the arguments."""
        return tuple(a for a in self.arguments if isinstance(a, Path))

    def open(self) -> LazyImage:
        """Call the function; it is called again, where needed, to read."""
        return LazyImage.of(lambda: self.function(*self.arguments))

    def __str__(self) -> str:
        return f"{self.function.__name__}({', '.join(map(str, self.arguments))})"

    def __repr__(self) -> str:
        # The same in every process: it tells whether what was prepared can be used again.
        return f"{self.function.__module__}.{self.function.__qualname__}{self.arguments!r}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionImage) and (self.function, self.arguments) == (other.function, other.arguments)

    def __hash__(self) -> int:
        return hash((self.function, self.arguments))


def open_image(path: Path, axes: str | None = None, pages: Pages | None = None) -> LazyImage:
    """Read the header of an image file.

    The kind is told by the content; a name that says otherwise gives a note. The values are those that are stored: no
    picture is turned as its EXIF orientation asks (there is a note), no colours or gammas are applied. Rows of TIFF
    (in strips or tiles) and NPY files are read alone, pictures of other kinds as a whole.

    Args:
        path: A TIFF, PNG, JPEG, BMP, GIF, WebP or NPY file.
        axes: Order of the axes in the file, as "CYX" or "YXC"; by default what the file itself says, and "CYX" for
            NPY, which does not say. A plain 2-D file needs none.
        pages: What becomes of the axes other than Y and X, as (("T", 3), ("C", "channels"), ("Z", "max")): one may be
            "channels"; of the others a position is taken, counted from 0, or the "max" or "mean", in the order in
            which they stand here. Means are taken in float64, and rounded at the end for integers. Axes of length 1
            may be left out. By default the only further axis is the channels.

    Raises:
        UserError: The kind of file is not known, or its axes or values do not fit a 2-D image with channels.
        Exception: The file cannot be read; see `naming`.
    """
    return FileRef(path, axes, pages).open()


def axis_sizes(path: Path, axes: str | None = None) -> dict[str, int]:
    """The axes of a file other than Y and X, and their lengths, where these are more than 1.

    Args:
        path: See `open_image`.
        axes: See `open_image`.

    Returns:
        In the order of the file, such as {"T": 10, "C": 2}; {"C": 3} for colour; {} for a plain image.

    Raises:
        UserError: As for `open_image`, and for axes whose names the file does not tell apart.
    """
    array = read_header(path)
    return further_axes(array, axis_names(array, axes))


def convert_colors(file: LazyImage, kind: Literal["rgb", "grey"]) -> LazyImage:
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
    if n_channels - file.alpha not in (1, 3):
        hint = " (the file does not say that the fourth is alpha)" if n_channels == 4 and not file.alpha else ""
        raise UserError(f"an image of {n_channels} channels is neither grey nor colour{hint}; `convert` cannot be used")

    palette = file.palette if file.indexed or kind == "rgb" else None
    if file.indexed and palette is None:
        raise UserError("the values are places in a colour table that is not read; save it as grey or RGB")

    def read(y0: int, y1: int) -> np.ndarray:
        array = file.read(y0, y1)
        if palette is not None:
            array = palette[array[0]].transpose(2, 0, 1)
        array = array[: 3 if len(array) >= 3 else 1]
        if kind == "rgb":
            return np.ascontiguousarray(np.broadcast_to(array, (3, *array.shape[1:])))
        if len(array) == 1:
            return np.ascontiguousarray(array)
        mean = array.mean(axis=0, dtype=np.float64, keepdims=True)
        return (np.rint(mean) if array.dtype.kind == "u" else mean).astype(array.dtype)

    return replace(
        file,
        shape=(3 if kind == "rgb" else 1, height, width),
        dtype=file.dtype if palette is None else palette.dtype,
        read=read,
        palette=None,
        indexed=False,
        alpha=False,
    )


def arrange(
    array: LazyArray, axes: str | None, pages: Pages | None = None, channel: int | None = None, exact: bool = False
) -> LazyImage:
    """The image in a file, or one channel of it; see `open_image` and `FileRef`."""
    as_dtype = (
        np.ascontiguousarray if exact and array.dtype.kind in "iuf" and array.dtype.itemsize >= 4 else plain_dtype
    )
    names = axis_names(array, axes)
    uses = axis_uses(array, names, pages)
    place = {name: i for i, (name, n) in enumerate(zip(names, array.shape, strict=True)) if n > 1 or name in "YX"}
    y, x = place["Y"], place["X"]
    c = next((place[name] for name, use in uses.items() if use == "channels"), None)
    n_channels, height, width = 1 if c is None else array.shape[c], array.shape[y], array.shape[x]
    if channel is not None and not 0 <= channel < n_channels:
        raise UserError(f"there is no channel {channel}: the file has {n_channels}")
    # Y, X and channels stay, in the order of the file; the rest is of length 1, or a position is taken, or reduced.
    kept = sorted(i for i in (c, y, x) if i is not None)
    order = [kept.index(i) for i in (c, y, x) if i is not None]
    fixed: dict[int, int | slice] = {place[name]: use for name, use in uses.items() if isinstance(use, int)}
    fixed[x] = slice(None)
    if c is not None:
        fixed[c] = slice(None) if channel is None else slice(channel, channel + 1)
    reductions = [(place[name], str(use)) for name, use in uses.items() if use in ("max", "mean")]

    def read(y0: int, y1: int) -> np.ndarray:
        rows = _rows(y0, y1, height)
        if y0 == y1:
            return np.empty((shape[0], 0, width), dtype)
        part = reduced(array, fixed | {y: rows}, reductions)
        if array.dtype.kind in "iub" and part.dtype.kind == "f":
            part = np.rint(part).astype(array.dtype)
        part = part.transpose(order)
        return as_dtype(part if c is not None else part[None])

    shape = (n_channels if channel is None else 1, height, width)
    dtype = as_dtype(np.empty(0, array.dtype)).dtype
    has_colours = array.has_colours and c is not None and array.axes[c] == "C"
    return LazyImage(
        shape,
        dtype,
        read,
        y in array.cuts,
        array.palette,
        array.indexed,
        array.alpha and has_colours and channel is None,
        array.inverted,
        has_colours,
        array.note,
    )
