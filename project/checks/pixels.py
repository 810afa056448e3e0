"""Pixels that no camera wrote and nobody annotated: filled values, padded borders, masks that were interpolated."""

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter
from skimage.measure import label

from project.checks import thresholds as limits
from project.checks.context import Context, middle, spread
from project.checks.report import Verdict, warning
from project.formatting import format_number, format_percent

SIDE = 2048  # pixels: side of the middle of an image that is looked at
SAMPLED = 20_000  # pixels of each image and channel whose values are compared
NEIGHBORS = 16  # values beside the suspected one that show how densely values lie
# Classes that are a thin ring between two others on purpose.
THIN = ("border", "boundary", "edge", "contour", "outline", "membrane", "wall", "rim", "cytoplasm", "cortex", "shell")


def filled(ctx: Context) -> Iterator[Verdict]:
    """One value that replaces what is missing: NaN that became 0, zero padding, black borders."""
    for array in ctx.intensity_arrays:
        reader, most = ctx.train.reader, limits.FILLED[array]
        indices = spread(len(reader), limits.LOOKED_AT[ctx.full])
        images = [reader.read(array, i, middle(reader.shapes[array][i], SIDE)) for i in indices]
        channels = list(zip(ctx.channel_names(array), zip(*images, strict=True), strict=True))
        share, value, where, name = max(
            (*find(planes), name) for name, planes in channels for find in (isolated_value, padded_border)
        )
        if share > most:
            harm = "; the network learns to predict it" if array == "target" else ""
            advice = f"filled in, or padded{harm}: crop it away, leave these images out, or fill in values as around it"
            measured = f"{format_percent(share)} of the pixels of {name} are {format_number(value)}, {where}"
            yield warning(f"{array} filled", measured, advice)
        else:
            yield Verdict(f"{array} filled", f"no single value fills more than {format_percent(most)}")


def isolated_value(planes: tuple[np.ndarray, ...]) -> tuple[float, float, str]:
    """Share of the smallest or largest value, the value, and where it lies; a share of 0 where others lie close to it.

    The distance to the next value is compared with the spread of most pixels, and with the distances between the values
    that follow: those of counts, of 8 bits that were stretched, or of sparse bright pixels are large themselves.
    """
    values = np.concatenate([plane.ravel()[:: max(1, plane.size // SAMPLED)] for plane in planes]).astype(np.float64)
    levels, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    result = (0.0, 0.0, "")
    for order in (1, -1):
        ordered, numbers = levels[::order], counts[::order]
        if len(ordered) <= 2 * NEIGHBORS:  # classes, or a drawing
            continue
        gap, spacing = abs(ordered[1] - ordered[0]), float(np.median(np.abs(np.diff(ordered[1 : NEIGHBORS + 2]))))
        low, high = np.quantile(values[values != ordered[0]], [0.16, 0.84])
        if gap > limits.ISOLATED * (high - low) / 2 and gap > limits.ISOLATED_STEPS * spacing:
            where = f"the next value is {format_number(float(ordered[1]))}"
            result = max(result, (float(numbers[0] / counts.sum()), float(ordered[0]), where))
    return result


def padded_border(planes: tuple[np.ndarray, ...]) -> tuple[float, float, str]:
    """Share of rows and columns at the border of images with one value that hardly occurs inside."""
    border, total, inside, value = 0, 0, 0, 0.0
    for plane in planes:
        corners = [plane[0, 0], plane[-1, -1]]
        rows, columns = (np.flatnonzero(~np.isin(plane, corners).all(axis)) for axis in (1, 0))
        total += plane.size
        if not len(rows) or (len(rows) == plane.shape[0] and len(columns) == plane.shape[1]):
            continue  # constant, reported elsewhere; or without a border
        core = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        outside = plane.size - core.size
        fill = corners[0] if len(rows) and (rows[0] or columns[0]) else corners[1]
        border, inside, value = border + outside, inside + int((core == fill).sum()), float(fill)
    is_foreign = inside < limits.INSIDE * max(total - border, 1)
    return (border / total if is_foreign else 0.0), value, "in whole rows or columns at the border"


def interpolated(ctx: Context) -> Iterator[Verdict]:
    """Masks that were resized with interpolation: classes between two others, objects whose number is elsewhere too."""
    reader = ctx.train.reader
    if "mask" in ctx.train.roles and len(names := ctx.data.classes.get("mask", [])) > 2:
        share, between = max(_ring_shares(ctx, names), default=(0.0, ""))
        if share > limits.RING:
            measured = f"{format_percent(share)} of {between} is a thin ring between two other classes"
            advice = "was the mask resized with interpolation? Resize masks with the nearest value"
            yield warning("mask interpolated", measured, advice)
        else:
            yield Verdict("mask interpolated", f"at most {format_percent(share)} of a class is a ring between others")
    if "instances" in reader.dtypes and ctx.task.is_dense:
        maps = [
            reader.read("instances", i, middle(reader.shapes["instances"][i], SIDE // 4))
            for i in spread(len(reader), 16)
        ]
        n_objects, n_split = np.sum([_count_pieces(objects) for objects in maps], axis=0).tolist()
        measured = f"{n_split} of {n_objects} objects lie in several pieces"
        if n_split > limits.PIECES * n_objects:
            advice = "were they resized with interpolation, or is this a mask of classes? Give each object one number"
            yield warning("objects", measured, advice)
        else:
            yield Verdict("objects", measured)


def _ring_shares(ctx: Context, names: list[str]) -> Iterator[tuple[float, str]]:
    """Of each class with others below and above it, the share within 2 pixels of both, where those hardly touch."""
    reader, ignored = ctx.train.reader, ctx.data.ignore_index
    masks = [
        reader.read("mask", i, middle(reader.shapes["mask"][i], SIDE // 4)).astype(int)
        for i in spread(len(reader), limits.LOOKED_AT[ctx.full])
    ]
    for k, name in enumerate(names[1:-1], 1):
        if any(word in name.casefold() for word in THIN):
            continue
        ring = area = touching = 0
        for mask in masks:
            annotated = np.full(mask.shape, True) if ignored is None else mask != ignored
            lower = [minimum_filter(np.where(annotated, mask, k), size) for size in (3, 5)]
            upper = [maximum_filter(np.where(annotated, mask, k), size) for size in (3, 5)]
            area += int((mask == k).sum())
            ring += int(((mask == k) & (lower[1] < k) & (upper[1] > k)).sum())
            touching += int(((mask != k) & annotated & (lower[0] < k) & (upper[0] > k)).sum())
        if area > limits.FEW_PIXELS and touching < ring:
            yield ring / area, name


def _count_pieces(objects: np.ndarray) -> tuple[int, int]:
    """Numbers of objects that do not touch the border of (H, W), and of those in several pieces."""
    cut = np.unique(np.concatenate([objects[0], objects[-1], objects[:, 0], objects[:, -1]]))
    inside = np.where(np.isin(objects, cut), 0, objects)
    pieces = label(inside, background=0, connectivity=2)
    first = np.unique(pieces, return_index=True)[1]
    numbers, n_pieces = np.unique(inside.ravel()[first], return_counts=True)
    several = n_pieces[numbers > 0]
    return len(several), int((several > 1).sum())
