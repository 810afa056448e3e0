"""Images of a sample: references to files and functions, read as (C, H, W) without changing a value."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from project.data.raw.lazy_image import Index, LazyImage, plain_dtype
from project.data.raw.readers import array_image, open_array, read_header
from project.errors import UserError

Pages = tuple[tuple[str, str | int], ...]


@dataclass(frozen=True)
class FileRef:
    """Reference to an image file, or to one image of an array: which axes, pages and channel to read.

    `pages` says how the axes other than Y and X are used, such as (("T", 3), ("C", "channels"), ("Z", "max")): one may
    be "channels"; of the others a position is taken, counted from 0, or the "max" or "mean", in this order. Means are
    computed in float64, and rounded at the end for integers. Axes of length 1 may be left out. By default the only
    further axis is the channels.
    """

    path: Path
    axes: str | None = None  # their order, such as "CYX"; by default that of the file, and "CYX" for NPY
    pages: Pages | None = None
    channel: int | None = None  # the only one that is taken, counted from 0 in what `pages` leaves
    convert: Literal["rgb", "grey"] | None = None  # see `convert_colors`; done last
    exact: bool = False  # keep the dtype of integers and floats of 4 and more bytes, for masks and object numbers
    array: str | None = None  # its name in a file of arrays, "" where the file has one; the images are along axis N

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def _header(self) -> LazyImage:
        image = read_header(self.path) if self.array is None else array_image(open_array(self.path, self.array))
        return with_axes(image, self.axes)

    def open(self) -> LazyImage:
        """Read the header."""
        image = arrange(self._header(), self.pages, self.channel, self.exact)
        return convert_colors(image, self.convert) if self.convert else image

    def axis_sizes(self) -> dict[str, int]:
        """See `further_axes`."""
        return further_axes(self._header())

    def __str__(self) -> str:
        if self.array is None:
            return str(self.path)
        return f"{self.path}{self.array and ':'}{self.array}[{dict(self.pages or ())['N']}]"


@dataclass(init=False, unsafe_hash=True)
class FunctionImage:
    """Image that a user's function returns; for formats without a built-in reader.

    Args:
        function: At the top level of a module, so that processes can find it. It returns uint8, uint16, float32 (or
            what converts to these exactly) of shape (H, W) or (C, H, W), always of the same shape and dtype.
        *arguments: Of the function. Paths among them are the files that it reads.
    """

    function: Callable[..., np.ndarray]
    arguments: tuple[Any, ...]

    def __init__(self, function: Callable[..., np.ndarray], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths among the arguments."""
        return tuple(a for a in self.arguments if isinstance(a, Path))

    def open(self) -> LazyImage:
        """Call the function for shape and dtype; it is called again for each read."""
        return arrange(LazyImage.from_function(lambda: self.function(*self.arguments)))

    def __str__(self) -> str:
        return f"{self.function.__name__}({', '.join(map(str, self.arguments))})"


def with_axes(image: LazyImage, axes: str | None) -> LazyImage:
    """The image of a file with the order of axes that the user declares, if any."""
    is_guess, axes, shape = axes is None, axes or image.axes, image.shape
    if len(shape) == 2 and len(axes) == 3:
        axes = "".join(axis for axis in axes if axis in "YX")
    if len(axes) != len(shape) or axes.count("Y") != 1 or axes.count("X") != 1:
        raise UserError(f'the array of shape {shape} does not have axes such as "{axes}", with Y and X; set `axes`')
    if 0 in shape:
        raise UserError(f"the array of shape {shape} has no pixels")
    looks_last = axes == "CYX" and shape[2] <= 4 < shape[0]
    if is_guess and axes in ("CYX", "IYX", "QYX"):  # pages without a name, which tifffile calls Q or I
        first, second, last = shape
        looks_last |= last <= 4 < first or last <= min(32, first // 4, second // 4) or last < first == second
    if looks_last:
        raise UserError(
            f"shape {shape} looks like (Y, X, C) where ({', '.join(axes)}) is expected; set `axes: YXC`, or the order "
            "that is meant"
        )
    return replace(image, axes=axes, has_colors=image.has_colors and axes[image.axes.index("C")] == "C")


def further_axes(image: LazyImage) -> dict[str, int]:
    """Lengths of the axes other than Y and X where these are more than 1, in the order of the file.

    Returns:
        Such as {"T": 10, "C": 2}; {"C": 3} for color; {} for a plain image.
    """
    long = [(name, n) for name, n in zip(image.axes, image.shape, strict=True) if n > 1 and name not in "YX"]
    if len(dict(long)) < len(long):
        raise UserError(
            f'the array of shape {image.shape} with axes "{image.axes}" has several axes of one name; set `axes`, such '
            'as "TCYX"'
        )
    return dict(long)


def _axis_uses(image: LazyImage, pages: Pages | None) -> dict[str, str | int]:
    """How each of the further axes is used, in the order in which it is to be done."""
    long = further_axes(image)
    if pages is None and len(long) <= 1:
        return dict.fromkeys(long, "channels")
    axes = ", ".join(f"{name}: {n}" for name, n in long.items()) or "only Y and X"
    uses = dict(pages or ())
    for name, use in uses.items():
        n = long.get(name, 1)  # other axes have length 1
        if not (0 <= use < n if isinstance(use, int) else use in ("channels", "max", "mean")):
            raise UserError(f"`pages`: {use} is no position on the axis {name} (length {n}) of {axes}")
    if missing := [name for name in long if name not in uses]:
        usual = {"T": "samples", "Z": "max", "C": "channels"}
        hint = ", ".join(f"{name}: {uses.get(name, usual.get(name, 'samples'))}" for name in long)
        raise UserError(
            f"the file has the axes {axes}: set the use of {' and '.join(missing)}, such as `pages: {{{hint}}}` "
            "(samples, channels, max, mean or a position)"
        )
    return {name: use for name, use in uses.items() if name in long}


def arrange(image: LazyImage, pages: Pages | None = None, channel: int | None = None, exact: bool = False) -> LazyImage:
    """The image as (C, H, W), axes "CYX", or one channel of it; see `FileRef`."""
    is_exact = exact and image.dtype.kind in "iuf" and image.dtype.itemsize >= 4
    as_dtype = np.ascontiguousarray if is_exact else plain_dtype
    uses = _axis_uses(image, pages)
    position = {name: i for i, name in enumerate(image.axes) if image.shape[i] > 1 or name in "YX"}
    channels = next((name for name, use in uses.items() if use == "channels"), None)
    n_channels = image.shape[position[channels]] if channels else 1
    if channel is not None and not 0 <= channel < n_channels:
        raise UserError(f"there is no channel {channel}: the file has {n_channels}")
    # Y, X and channels remain; the others have length 1, or a position, or are reduced to one.
    last = [position[name] for name in (channels, "Y", "X") if name]
    order = [*(i for i in range(len(image.shape)) if i not in last), *last]
    whole = [slice(0, n) for n in image.shape]
    for name, use in uses.items():
        if isinstance(use, int):
            whole[position[name]] = slice(use, use + 1)
    reductions = [(position[name], str(use)) for name, use in uses.items() if use in ("max", "mean")]

    def read(index: Index) -> np.ndarray:
        parts = list(whole)
        for i, part in zip(last, index[-len(last) :], strict=True):
            parts[i] = part
        if channel is not None and channels:
            parts[position[channels]] = slice(channel, channel + 1)
        array = _reduced(image, parts, reductions)
        if image.dtype.kind in "iub" and array.dtype.kind == "f":
            array = np.rint(array).astype(image.dtype)
        array = array.transpose(order)
        return as_dtype(array.reshape(-1, *array.shape[-2:]))

    has_colors = image.has_colors and channels == "C"
    return replace(
        image,
        shape=(n_channels if channel is None else 1, image.shape[position["Y"]], image.shape[position["X"]]),
        dtype=as_dtype(np.empty(0, image.dtype)).dtype,
        axes="CYX",
        read=read,
        has_colors=has_colors,
        alpha=image.alpha and has_colors and channel is None,
    )


def _reduced(image: LazyImage, index: list[slice], steps: list[tuple[int, str]]) -> np.ndarray:
    """The part of the array after the steps, each of which takes the "max" or "mean" along an axis."""
    if not steps:
        return image.read(tuple(index))
    (axis, use), n = steps[-1], image.shape[steps[-1][0]]
    parts = (_reduced(image, [*index[:axis], slice(i, i + 1), *index[axis + 1 :]], steps[:-1]) for i in range(n))
    if use == "max":
        return functools.reduce(np.maximum, parts)
    return functools.reduce(np.add, (part.astype(np.float64) for part in parts)) / n


def convert_colors(image: LazyImage, kind: Literal["rgb", "grey"]) -> LazyImage:
    """The image as color or gray, however it was saved, in the dtype of the file.

    Args:
        image: (C, H, W) of 1 channel (gray or a palette) or 3 (color), either with alpha, which is dropped.
        kind: "rgb" repeats gray three times; "grey" is the plain mean of red, green and blue, rounded for integers.

    Returns:
        (3, H, W) or (1, H, W).
    """
    n_channels, height, width = image.shape
    if n_channels - image.alpha not in (1, 3):
        hint = " (the file does not say that the fourth is alpha)" if n_channels == 4 and not image.alpha else ""
        raise UserError(f"an image of {n_channels} channels is neither gray nor color{hint}; `convert` cannot be used")
    palette = image.palette if image.indexed or kind == "rgb" else None

    def read(index: Index) -> np.ndarray:
        array = image.read((slice(0, n_channels), *index[1:]))
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
        image,
        shape=(3 if kind == "rgb" else 1, height, width),
        dtype=image.dtype if palette is None else palette.dtype,
        read=read,
        palette=None,
        indexed=False,
        alpha=False,
    )
