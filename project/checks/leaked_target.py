"""Whether the input holds the target: a copy with other values, or a mask that is a threshold of the input."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Finding, error, ok, warning

SIDE = 160  # pixels: side of the middle of an image that is looked at
BINS = 128  # of the values of the input
Planes = Sequence[np.ndarray]  # (H, W) float32


def leaked_target(ctx: Context) -> Iterator[Finding]:
    """Whether the value of a pixel of the input gives the target there, so that nothing is left to learn."""
    if (array := ctx.target_array) is None:
        return
    inputs, targets = _channels(ctx, "image"), _channels(ctx, array)
    relations = [(*_relation(x, t), name, target) for name, x in inputs.items() for target, t in targets.items()]
    across, within, name, target = max(relations, key=lambda relation: max(relation[:2]))
    x, t = inputs[name], targets[target]
    measured = f"a table of {name} explains {max(across, within):.3f} of {target}"
    is_copy = across > limits.COPY_ACROSS or within > limits.COPY_WITHIN
    if not is_copy or _is_degraded(x, t):
        yield ok(measured)
    elif array == "target" or len(np.unique(np.concatenate([plane.ravel() for plane in x]))) <= limits.FEW_VALUES:
        advice = f"the input holds the target: {name} is a copy of {target}, or made of it; look for other files"
        yield error(measured, advice)
    else:
        advice = f"the {array} is a threshold of {name}: no network is needed; is it what people annotated?"
        yield warning(measured, advice)


def _channels(ctx: Context, array: str) -> dict[str, list[np.ndarray]]:
    """Name -> (H, W) float32 of some training images, without what is not finite or not annotated."""
    images = ctx.read(array, SIDE)
    if array == "instances":
        images = [image > 0 for image in images]
    elif array == "mask" and ctx.data.ignore_index is not None:
        images = [np.where(image == ctx.data.ignore_index, 0, image) for image in images]
    if len(images) < 4:  # a few large images: strips, so that there are halves
        images = [strip for image in images for strip in np.array_split(image, 4, axis=-2)]
    images = [np.nan_to_num(image.astype(np.float32), posinf=0, neginf=0) for image in images]
    if array in ("mask", "instances"):
        return {array: images}
    return {name: [image[c] for image in images] for c, name in enumerate(ctx.channel_names(array))}


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
    counts = np.bincount(position, minlength=len(edges) + 1)
    sums = np.bincount(position, t, minlength=len(edges) + 1)
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
