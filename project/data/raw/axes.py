"""Which axes the array of an image file has, and what becomes of each."""

import functools

import numpy as np

from project.data.raw.lazy import LazyArray
from project.errors import UserError

Pages = tuple[tuple[str, str | int], ...]


def axis_names(array: LazyArray, axes: str | None) -> str:
    """The names of the axes, one letter each; `axes` as in `project.data.raw.images.open_image`.

    Raises:
        UserError: They do not fit the array, or one of Y and X is missing.
    """
    is_guess, axes, shape = axes is None, axes or array.axes, array.shape
    if len(shape) == 2 and len(axes) == 3:
        axes = "".join(axis for axis in axes if axis in "YX")
    if len(axes) != len(shape):
        raise UserError(f'the array of shape {shape} does not have the axes "{axes}"; set `axes`')
    if 0 in shape:
        raise UserError(f"the array of shape {shape} has no pixels")
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise UserError(f'the array of shape {shape} with axes "{axes}" needs one axis Y and one X; set `axes`')
    if (axes == "CYX" and shape[2] <= 4 < shape[0]) or (is_guess and _has_channels_last(axes, shape)):
        raise UserError(
            f"shape {shape} looks like (Y, X, C) where ({', '.join(axes)}) is expected; set `axes: YXC`, or the order "
            "that is meant"
        )
    return axes


def _has_channels_last(axes: str, shape: tuple[int, ...]) -> bool:
    """Whether pages without a name (tifffile calls them Q or I) are rather the rows of an image with channels last."""
    if len(axes) != 3 or axes[0] not in "CIQ" or axes[1:] != "YX":
        return False
    first, second, last = shape
    return last <= 4 < first or last <= min(32, first // 4, second // 4) or last < first == second


def further_axes(array: LazyArray, names: str) -> dict[str, int]:
    """The axes other than Y and X of a length of more than 1, and their lengths, in the order of the file.

    Raises:
        UserError: Two of them have the same name.
    """
    long = [(name, n) for name, n in zip(names, array.shape, strict=True) if n > 1 and name not in "YX"]
    if len(dict(long)) < len(long):
        raise UserError(
            f'the array of shape {array.shape} with axes "{names}" has axes without names of their own; set `axes`, as '
            '"TCYX"'
        )
    return dict(long)


def axis_uses(array: LazyArray, names: str, pages: Pages | None) -> dict[str, str | int]:
    """What becomes of each of the further axes, in the order in which it is to be done.

    Args:
        array: The array of a file.
        names: Of its axes.
        pages: See `project.data.raw.images.open_image`.

    Raises:
        UserError: `pages` says too little, or speaks of what is not there.
    """
    long = further_axes(array, names)
    if pages is None and len(long) <= 1:
        return dict.fromkeys(long, "channels")
    lengths = dict.fromkeys([*names.translate({ord("Y"): None, ord("X"): None}), *array.ones], 1) | long
    told = ", ".join(f"{name}: {n}" for name, n in long.items()) or "none but Y and X"
    uses = dict(pages or ())
    for name, use in uses.items():
        if name not in lengths:
            raise UserError(f"`pages`: there is no axis {name}; the axes of the file are {told}")
        if isinstance(use, int) and not 0 <= use < lengths[name]:
            raise UserError(f"`pages`: there is no position {use} of axis {name}, which has {lengths[name]}")
        if not isinstance(use, int) and use not in ("channels", "max", "mean"):
            raise UserError(f'`pages`: "{use}" of axis {name} is none of channels, max, mean and a position')
    if list(uses.values()).count("channels") > 1:
        raise UserError("`pages`: only one axis can be the channels")
    if missing := [name for name in long if name not in uses]:
        usual = {"T": "samples", "Z": "max", "C": "channels"}
        hint = ", ".join(f"{name}: {uses.get(name, usual.get(name, 'samples'))}" for name in long)
        raise UserError(
            f"the file has the axes {told}: set what becomes of {' and '.join(missing)}, as "
            f"`pages: {{{hint}}}` (samples, channels, max, mean or a position)"
        )
    return {name: use for name, use in uses.items() if name in long}


def reduced(array: LazyArray, index: dict[int, int | slice], steps: list[tuple[int, str]]) -> np.ndarray:
    """What is taken of the array after the steps, each of which takes the "max" or "mean" along an axis."""
    if not steps:
        return array.take(tuple(index.get(i, 0) for i in range(len(array.shape))))
    axis, how = steps[-1]
    parts = (reduced(array, index | {axis: i}, steps[:-1]) for i in range(array.shape[axis]))
    if how == "max":
        return functools.reduce(np.maximum, parts)
    return functools.reduce(np.add, (part.astype(np.float64) for part in parts)) / array.shape[axis]
