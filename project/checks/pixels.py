"""Values of pixels that give away a mistake: filled in, padded, interpolated; or targets made of the input."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter
from skimage.measure import label

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Finding, error, note, ok, warning
from project.formatting import first_few, format_number, format_percent

SIDE = 1024  # pixels: side of the middle of an image that is looked at
SMALL_SIDE = 160  # the same, to compare input and target
SAMPLED = 20_000  # pixels of each image and channel whose values are compared
NEIGHBORS = 16  # values beside the suspected one that show how densely values lie
BINS = 128  # of the values of the input
# Classes that are a thin ring between two others on purpose.
THIN = ("border", "boundary", "edge", "contour", "outline", "membrane", "wall", "rim", "cytoplasm", "cortex", "shell")
Planes = Sequence[np.ndarray]  # (H, W), one per image


def filled(ctx: Context) -> Iterator[Finding]:
    """One value that replaces what is missing: NaN that became 0, zero padding, black borders."""
    for array in ctx.intensity_arrays:
        channels = zip(ctx.train.reader.channel_names(array), zip(*ctx.read(array, SIDE), strict=True), strict=True)
        share, value, where, name = max(
            (*find([plane for plane in planes if np.ptp(plane)]), name)  # constant ones are reported as such
            for name, planes in channels
            for find in (_isolated_value, _padded_border)
        )
        if share > limits.FILLED[array]:
            harm = "; the network learns to predict it" if array == "target" else ""
            advice = f"filled in, or padded{harm}: crop it away, leave these images out, or fill in values as around it"
            measured = f"{array}: {format_percent(share)} of the pixels of {name} are {format_number(value)}, {where}"
            yield warning(measured, advice)
        else:
            yield ok(f"{array}: no single value fills more than {format_percent(limits.FILLED[array])}")


def _isolated_value(planes: Planes) -> tuple[float, float, str]:
    """Share of the smallest or largest value, the value, and where it lies; a share of 0 where others lie close to it.

    The distance to the next value is compared with those between the values that follow: of counts, of 8 bits that were
    stretched, or of sparse bright pixels they are large themselves.
    """
    values = np.concatenate([[], *(plane.ravel()[:: max(1, plane.size // SAMPLED)] for plane in planes)])
    levels, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    result = (0.0, 0.0, "")
    for order in (1, -1) if len(levels) > 2 * NEIGHBORS else ():  # not for classes, or drawings
        steps = np.abs(np.diff(levels[::order][: NEIGHBORS + 2]))
        if steps[0] > limits.ISOLATED * np.median(steps[1:]):
            value, following = levels[::order][:2].tolist()
            share = float(counts[::order][0] / counts.sum())
            result = max(result, (share, value, f"the next value is {format_number(following)}"))
    return result


def _padded_border(planes: Planes) -> tuple[float, float, str]:
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
    return border / max(total, 1) if is_foreign else 0.0, value, "in whole rows or columns at the border"


def wrapped(ctx: Context) -> Iterator[Finding]:
    """Whole numbers that were cut to fewer bits: beyond the largest value, they begin at the smallest again."""
    for array in ctx.intensity_arrays:
        channels = zip(ctx.train.reader.channel_names(array), zip(*ctx.read(array, SIDE), strict=True), strict=True)
        if names := [name for name, planes in channels if _is_wrapped(planes)]:
            advice = "saved with too few bits, so that large values begin at 0 again? Convert the originals by scaling"
            yield warning(f"{array}: many neighbors in {first_few(names)} differ by nearly the whole range", advice)
        else:
            yield ok(f"{array}: none")


def _is_wrapped(planes: Planes) -> bool:
    low, high = (float(function([function(plane) for plane in planes])) for function in (np.min, np.max))
    values = [(plane.astype(np.float64) - low) / max(high - low, 1e-9) for plane in planes]
    left, right = (np.concatenate([v[:, part].ravel() for v in values]) for part in (slice(-1), slice(1, None)))
    steps = np.abs(left - right)[(np.minimum(left, right) > 0) & (np.maximum(left, right) < 1)]
    far, between = (steps > 0.75).sum(), ((steps > 0.5) & (steps <= 0.75)).sum()
    is_cut_off = len(steps) < limits.WRAPPED_INSIDE * len(left)  # drawings, and what is saturated
    return bool(not is_cut_off and far > limits.WRAPPED * len(steps) and far > limits.WRAPPED_RATIO * between)


def interpolated(ctx: Context) -> Iterator[Finding]:
    """Masks that were resized with interpolation: classes between two others, objects whose number is elsewhere too."""
    cure = "was it resized with interpolation? Resize masks and objects with the nearest value"
    if "mask" in ctx.train.roles and len(names := ctx.data.classes.get("mask", [])) > 2:
        masks = [mask.astype(int) for mask in ctx.read("mask", SIDE // 2)]
        inner = [(k, name) for k, name in enumerate(names[1:-1], 1) if not any(t in name.casefold() for t in THIN)]
        shares = [(_ring_share(masks, k, ctx.data.ignore_index), name) for k, name in inner]
        share, name = max(shares, default=(0.0, ""))
        measured = f"{format_percent(share)} of {name or 'any class'} is a thin ring between two other classes"
        yield warning(measured, cure) if share > limits.RING else ok(measured)
    if "instances" in ctx.train.reader.dtypes and ctx.task.is_dense:
        n, n_split = np.sum([_count_pieces(objects) for objects in ctx.read("instances", SIDE // 2)], 0).tolist()
        measured = f"{n_split} of {n} objects lie in several pieces"
        yield warning(measured, cure) if n_split > limits.PIECES * n else ok(measured)
    array = ctx.target_array
    if array in ("mask", "instances") and (side := _block_side(ctx.read(array, SIDE // 2))) > 1:
        yield note(f"{array} in blocks of {side} x {side} pixels", "made at a lower resolution? Borders are no finer")


def _block_side(masks: Planes) -> int:
    """Side of the blocks that all masks consist of: 1 but where they were enlarged by the nearest value."""
    changes = [np.any(np.diff(mask.astype(int), axis=a), axis=1 - a) for mask in masks for a in (0, 1)]
    distances = np.concatenate([np.diff(np.flatnonzero(positions)) for positions in changes])
    return int(np.gcd.reduce(distances)) if len(distances) > limits.FEW_PIECES else 1


def _ring_share(masks: Planes, k: int, ignored: int | None) -> float:
    """Share of class k within 2 pixels of a lower and a higher class; 0 where those touch each other more."""
    ring = area = touching = 0
    for mask in masks:
        annotated = mask if ignored is None else np.where(mask == ignored, k, mask)
        near, wide = ((minimum_filter(annotated, n) < k) & (maximum_filter(annotated, n) > k) for n in (3, 5))
        area += int((mask == k).sum())
        ring += int((wide & (mask == k)).sum())
        touching += int((near & (annotated != k)).sum())
    return ring / area if area > limits.FEW_PIXELS and touching < ring else 0.0


def _count_pieces(objects: np.ndarray) -> tuple[int, int]:
    """Numbers of objects that do not touch the border of (H, W), and of those in several pieces."""
    cut = np.unique(np.concatenate([objects[0], objects[-1], objects[:, 0], objects[:, -1]]))
    inside = np.where(np.isin(objects, cut), 0, objects)
    first = np.unique(label(inside, background=0, connectivity=2), return_index=True)[1]  # a pixel of each piece
    numbers, n_pieces = np.unique(inside.ravel()[first], return_counts=True)
    return int((numbers > 0).sum()), int((n_pieces[numbers > 0] > 1).sum())


def leaked_target(ctx: Context) -> Iterator[Finding]:
    """Whether the value of a pixel of the input gives the target there, so that nothing is left to learn."""
    if (array := ctx.target_array) is None:
        return
    inputs, targets = _channels(ctx, "image"), _channels(ctx, array)
    pairs = itertools.product(inputs.items(), targets.items())
    relations = [(*_relation(_registered(x, t), t), name, target) for (name, x), (target, t) in pairs]
    across, within, name, target = max(relations, key=lambda relation: max(relation[:2]))
    x, t = _registered(inputs[name], targets[target]), targets[target]
    measured = f"a table of {name} explains {max(across, within):.3f} of {target}"
    is_copy = across > limits.COPY_ACROSS or within > limits.COPY_WITHIN
    if not is_copy or _is_degraded(x, t):
        yield ok(measured)
    elif array == "target" or len(np.unique(np.concatenate([plane.ravel() for plane in x]))) <= limits.FEW_VALUES:
        yield error(measured, f"{name} is a copy of {target}, or made of it: look for other files")
    else:
        yield warning(measured, f"the {array} is a threshold of {name}, which needs no network: was it annotated?")


def _channels(ctx: Context, array: str) -> dict[str, Planes]:
    """Name -> (H, W) float32 of some training images, without what is not finite or not annotated."""
    images = ctx.read(array, SMALL_SIDE)
    if len(images) < 4:  # a few large images: strips, so that there are halves
        images = [strip for image in images for strip in np.array_split(image, 4, axis=-2)]
    if array == "instances":
        images = [image > 0 for image in images]
    elif array == "mask" and ctx.data.ignore_index is not None:
        images = [np.where(image == ctx.data.ignore_index, 0, image) for image in images]
    images = [np.nan_to_num(image.astype(np.float32), posinf=0, neginf=0) for image in images]
    if array in ("mask", "instances"):
        return {array: images}
    return {name: [image[c] for image in images] for c, name in enumerate(ctx.train.reader.channel_names(array))}


def _registered(x: Planes, t: Planes) -> Planes:
    """The planes moved by the pixel or two by which most of a copy is shifted against the target."""

    def correlation(shift: tuple[int, ...]) -> float:
        moved, target = np.roll(x[0], shift, (0, 1)).ravel(), t[0].ravel()
        return abs(float(np.corrcoef(moved, target)[0, 1])) if np.ptp(moved) and np.ptp(target) else 0.0

    best = max(itertools.product((0, -1, 1, -2, 2), repeat=2), key=correlation)
    return [np.roll(plane, best, (0, 1)) for plane in x] if any(best) else x


def _relation(x: Planes, t: Planes) -> tuple[float, float]:
    """R2 of a table that gives the target of a pixel by the value of the input, on pixels it was not made of.

    With one table for all images, made of every second one; and with one for each, made of every second row (median).
    """
    halves = [[np.concatenate([plane.ravel() for plane in part[i::2]]) for part in (x, t)] for i in (0, 1)]
    rows = [
        _r2(a[::2].ravel(), b[::2].ravel(), a[1::2].ravel(), b[1::2].ravel())
        for a, b in zip(x, t, strict=True)
        if np.ptp(b[1::2]) > 0
    ]
    return _r2(*halves[0], *halves[1]), float(np.median(rows)) if rows else 0.0


def _r2(x: np.ndarray, t: np.ndarray, x_other: np.ndarray, t_other: np.ndarray) -> float:
    if float(np.ptp(x)) == 0 or (total := float(t_other.var())) == 0:
        return 0.0
    return 1 - float(((t_other - _apply_table(x, t, x_other)) ** 2).mean()) / total


def _apply_table(x: np.ndarray, t: np.ndarray, x_other: np.ndarray) -> np.ndarray:
    """The mean of `t` in the bin of the input that each value of `x_other` lies in."""
    # Equal shares of the pixels for the bulk, equal steps for few bright objects.
    steps = np.linspace(x.min(), x.max(), BINS // 2)[1:]
    edges = np.union1d(np.quantile(x, np.linspace(0, 1, BINS + 1)[1:]), steps)
    position, other = (np.searchsorted(edges, values, side="left") for values in (x, x_other))
    counts, sums = (np.bincount(position, weights, len(edges) + 1) for weights in (None, t))
    table: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), t.mean())[other]
    return table


def _is_degraded(x: Planes, t: Planes) -> bool:
    """Whether the pixels around a pixel explain clearly more, as where noise or blur is to be removed."""
    gains = []
    for plane, target in zip(x, t, strict=True):
        if np.ptp(plane) == 0 or np.ptp(target) == 0:
            continue
        answer = _apply_table(plane[::2].ravel(), target[::2].ravel(), plane.ravel()).reshape(plane.shape)
        values = [plane, answer, np.ones_like(plane)]
        around = [gaussian_filter(plane, sigma) for sigma in (0.7, 1.5)]
        alone, together = (_left_of_fit(np.stack(features, -1), target) for features in (values, values + around))
        gains.append(1.0 if alone < limits.COPY_EXACT * float(target.var()) else together / alone)
    return bool(gains) and float(np.median(gains)) < limits.DEGRADED


def _left_of_fit(features: np.ndarray, target: np.ndarray) -> float:
    """Variance of (H, W) on odd rows that a linear fit of (H, W, F), made on even rows, leaves."""
    train, test = (part.reshape(-1, features.shape[-1]).astype(np.float64) for part in (features[::2], features[1::2]))
    scale = np.maximum(np.abs(train).max(0), 1e-9)
    weights = np.linalg.lstsq(train / scale, target[::2].ravel(), rcond=None)[0]
    return float(((test / scale) @ weights - target[1::2].ravel()).var())
