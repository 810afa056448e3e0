"""Pixels that no camera wrote and nobody annotated: filled values, padded borders, masks that were interpolated."""

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter
from skimage.measure import label

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Finding, ok, warning
from project.formatting import format_number, format_percent

SIDE = 2048  # pixels: side of the middle of an image that is looked at; 512 of masks
SAMPLED = 20_000  # pixels of each image and channel whose values are compared
NEIGHBORS = 16  # values beside the suspected one that show how densely values lie
# Classes that are a thin ring between two others on purpose.
THIN = ("border", "boundary", "edge", "contour", "outline", "membrane", "wall", "rim", "cytoplasm", "cortex", "shell")
Planes = tuple[np.ndarray, ...]  # (H, W), one per image


def filled(ctx: Context) -> Iterator[Finding]:
    """One value that replaces what is missing: NaN that became 0, zero padding, black borders."""
    for array in ctx.intensity_arrays:
        channels = zip(ctx.channel_names(array), zip(*ctx.read(array, SIDE), strict=True), strict=True)
        share, value, where, name = max(
            (*find(planes), name) for name, planes in channels for find in (isolated_value, padded_border)
        )
        if share > limits.FILLED[array]:
            harm = "; the network learns to predict it" if array == "target" else ""
            advice = f"filled in, or padded{harm}: crop it away, leave these images out, or fill in values as around it"
            measured = f"{array}: {format_percent(share)} of the pixels of {name} are {format_number(value)}, {where}"
            yield warning(measured, advice)
        else:
            yield ok(f"{array}: no single value fills more than {format_percent(limits.FILLED[array])}")


def isolated_value(planes: Planes) -> tuple[float, float, str]:
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


def padded_border(planes: Planes) -> tuple[float, float, str]:
    """Share of rows and columns at the border of images with one value that hardly occurs inside, and the value."""
    border, total, inside, value = 0, 0, 0, 0.0
    for plane in planes:
        corners = [plane[0, 0], plane[-1, -1]]
        rows, columns = (np.flatnonzero(~np.isin(plane, corners).all(axis)) for axis in (1, 0))
        total += plane.size
        if len(rows) and (len(rows) < plane.shape[0] or len(columns) < plane.shape[1]):
            core = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            value = float(corners[0] if rows[0] or columns[0] else corners[1])
            border, inside = border + plane.size - core.size, inside + int((core == value).sum())
    is_foreign = inside < limits.INSIDE * max(total - border, 1)
    return border / total if is_foreign else 0.0, value, "in whole rows or columns at the border"


def interpolated(ctx: Context) -> Iterator[Finding]:
    """Masks that were resized with interpolation: classes between two others, objects whose number is elsewhere too."""
    cure = "was it resized with interpolation? Resize masks and objects with the nearest value"
    if "mask" in ctx.train.roles and len(names := ctx.data.classes.get("mask", [])) > 2:
        masks = [mask.astype(int) for mask in ctx.read("mask", SIDE // 4)]
        inner = [(k, name) for k, name in enumerate(names[1:-1], 1) if not any(t in name.casefold() for t in THIN)]
        share, between = max(
            ((_ring_share(masks, k, ctx.data.ignore_index), name) for k, name in inner), default=(0, "")
        )
        if share > limits.RING:
            yield warning(f"{format_percent(share)} of {between} is a thin ring between two other classes", cure)
        else:
            yield ok(f"at most {format_percent(share)} of a class is a ring between others")
    if "instances" in ctx.train.reader.dtypes and ctx.task.is_dense:
        n, n_split = np.sum([_count_pieces(objects) for objects in ctx.read("instances", SIDE // 4, 16)], 0).tolist()
        measured = f"{n_split} of {n} objects lie in several pieces"
        yield warning(measured, cure) if n_split > limits.PIECES * n else ok(measured)


def _ring_share(masks: list[np.ndarray], k: int, ignored: int | None) -> float:
    """Share of class k within 2 pixels of a lower and a higher class; 0 where those touch each other more."""
    ring = area = touching = 0
    for mask in masks:
        filled = mask if ignored is None else np.where(mask == ignored, k, mask)
        is_near, is_between = (
            (minimum_filter(filled, size) < k) & (maximum_filter(filled, size) > k) for size in (3, 5)
        )
        area += int((mask == k).sum())
        ring += int((is_between & (mask == k)).sum())
        touching += int((is_near & (filled != k)).sum())
    return ring / area if area > limits.FEW_PIXELS and touching < ring else 0.0


def _count_pieces(objects: np.ndarray) -> tuple[int, int]:
    """Numbers of objects that do not touch the border of (H, W), and of those in several pieces."""
    cut = np.unique(np.concatenate([objects[0], objects[-1], objects[:, 0], objects[:, -1]]))
    inside = np.where(np.isin(objects, cut), 0, objects)
    first = np.unique(label(inside, background=0, connectivity=2), return_index=True)[1]  # a pixel of each piece
    numbers, n_pieces = np.unique(inside.ravel()[first], return_counts=True)
    return int((numbers > 0).sum()), int((n_pieces[numbers > 0] > 1).sum())
