"""Whether the input holds the target: a copy with other values, or a mask that is a threshold of the input."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from project.checks import thresholds as limits
from project.checks.context import Context, middle, spread
from project.checks.report import Verdict, error, warning

SIDE = 160  # pixels: side of the middle of an image that is looked at
REACH = 12  # pixels by which a copy may be shifted
BINS = 128  # of the values of the input
Planes = Sequence[np.ndarray]  # (H, W) float32


class Relation(NamedTuple):
    """R2 of a table that gives the target of a pixel by the value of the input there, on pixels it was not made of."""

    across: float  # one table for all images, made of every second image
    within: float  # a table for each image, made of every second row; the median image
    shift: tuple[int, int] = (0, 0)  # rows and columns by which the target is shifted

    @property
    def is_copy(self) -> bool:
        """Whether the relation is closer than in any sound data."""
        return self.across > limits.COPY_ACROSS or self.within > limits.COPY_WITHIN


def leaked_target(ctx: Context) -> Iterator[Verdict]:
    """Whether the value of a pixel of the input gives the target there, so that nothing is left to learn."""
    if (array := ctx.target_array) is None:
        return
    inputs, targets = _planes(ctx, "image"), _planes(ctx, array)
    names = ctx.channel_names("target") if array == "target" else [array]
    relations = {
        (name, target): measure_relation([x[c] for x in inputs], [t[k] for t in targets])
        for c, name in enumerate(ctx.channel_names("image"))
        for k, target in enumerate(names)
    }
    (name, target), best = max(relations.items(), key=lambda item: max(item[1][:2]))
    measured = f"a table of {name} explains {max(best[:2]):.3f} of {target}"
    c, k = ctx.channel_names("image").index(name), names.index(target)
    if not best.is_copy or _is_degraded([x[c] for x in inputs], [t[k] for t in targets], best.shift):
        yield Verdict("leaked target", measured)
    elif array == "target" or len(np.unique(np.concatenate([x[c].ravel() for x in inputs]))) <= limits.FEW_VALUES:
        where = f", shifted by {best.shift[0]:+d} rows and {best.shift[1]:+d} columns" if any(best.shift) else ""
        advice = f"the input holds the target: {name} is a copy of {target}, or made of it{where}; look for other files"
        yield error("leaked target", measured, advice)
    else:
        advice = f"the {array} is a threshold of {name}: no network is needed; is it what people annotated?"
        yield warning("leaked target", measured, advice)


def _planes(ctx: Context, array: str) -> list[np.ndarray]:
    """(C, H, W) float32 of some training images, without what is not finite or not annotated."""
    reader = ctx.train.reader
    indices = spread(len(reader), limits.LOOKED_AT[ctx.full])
    planes = [reader.read(array, i, middle(reader.shapes["image"][i], SIDE)) for i in indices]
    if array == "instances":
        planes = [plane > 0 for plane in planes]
    elif array == "mask" and ctx.data.ignore_index is not None:
        planes = [np.where(plane == ctx.data.ignore_index, 0, plane) for plane in planes]
    if len(planes) < 4:  # a few large images: strips, so that there are halves
        planes = [strip for plane in planes for strip in np.array_split(plane, 4, axis=-2)]
    return [np.nan_to_num(np.atleast_3d(p.T).T.astype(np.float32), posinf=0, neginf=0) for p in planes]


def measure_relation(x: Planes, t: Planes) -> Relation:
    """How well the values of `x` give those of `t`, with the shift that fits best."""
    shift = _best_shift(x, t)
    x, t = _overlap(x, t, shift)
    return Relation(_across(x, t), _within(x, t), shift)


def _across(x: Planes, t: Planes) -> float:
    halves = [[np.concatenate([plane.ravel() for plane in part[i::2]]) for i in (0, 1)] for part in (x, t)]
    return _table_r2(halves[0][0], halves[1][0], halves[0][1], halves[1][1])


def _within(x: Planes, t: Planes) -> float:
    scores = [
        _table_r2(a[::2].ravel(), b[::2].ravel(), a[1::2].ravel(), b[1::2].ravel())
        for a, b in zip(x, t, strict=True)
        if np.ptp(b[1::2]) > 0
    ]
    return float(np.median(scores)) if scores else 0.0


def _table_r2(x: np.ndarray, t: np.ndarray, x_other: np.ndarray, t_other: np.ndarray) -> float:
    """R2, on the other half, of the mean target in each bin of the input; 0 where that is constant."""
    if float(x.min()) == float(x.max()) or (total := float(t_other.var())) == 0:
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


def _best_shift(x: Planes, t: Planes) -> tuple[int, int]:
    """The shift of the target in pixels at which the correlation of all images is strongest, 0 where none is strong."""
    side = min(min(plane.shape) for plane in x)
    reach = min(REACH, side // 4)
    total = np.zeros((2 * reach + 1, 2 * reach + 1))
    for a, b in zip(x, t, strict=True):
        a, b = ((p[:side, :side] - p[:side, :side].mean()) / (p[:side, :side].std() + 1e-9) for p in (a, b))
        surface = np.fft.irfft2(np.conj(np.fft.rfft2(a)) * np.fft.rfft2(b), (side, side)) / side**2
        total += np.abs(np.roll(surface, reach, axis=(0, 1))[: 2 * reach + 1, : 2 * reach + 1])
    y, x_ = np.unravel_index(total.argmax(), total.shape)
    is_clear = total[y, x_] > len(x) * limits.RELATED and total[y, x_] > 1.1 * total[reach, reach]
    return (int(y) - reach, int(x_) - reach) if is_clear else (0, 0)


def _overlap(x: Planes, t: Planes, shift: tuple[int, int]) -> tuple[Planes, Planes]:
    """The parts of both that show the same place if the target is shifted."""
    ahead = tuple(slice(max(0, s), None if s >= 0 else s) for s in shift)
    behind = tuple(slice(max(0, -s), None if s <= 0 else -s) for s in shift)
    return [plane[behind] for plane in x], [plane[ahead] for plane in t]


def _is_degraded(x: Planes, t: Planes, shift: tuple[int, int]) -> bool:
    """Whether the pixels around a pixel explain clearly more, as where noise or blur is to be removed."""
    gains = []
    for plane, target in zip(*_overlap(x, t, shift), strict=True):
        if np.ptp(plane) == 0 or np.ptp(target) == 0:
            continue
        answer = _apply_table(plane[::2].ravel(), target[::2].ravel(), plane.ravel()).reshape(plane.shape)
        values = [plane, answer, np.ones_like(plane)]
        around = [gaussian_filter(plane, sigma) for sigma in (0.7, 1.5)]
        left = [_left_of_fit(np.stack(f, -1), target) for f in (values, values + around)]
        is_exact = left[0] < limits.COPY_EXACT * float(target.var())
        gains.append(1.0 if is_exact else left[1] / left[0])
    return bool(gains) and float(np.median(gains)) < limits.DEGRADED


def _left_of_fit(features: np.ndarray, target: np.ndarray) -> float:
    """Variance of (H, W) on odd rows that a linear fit of (H, W, F), made on even rows, leaves."""
    train, test = (part.reshape(-1, features.shape[-1]).astype(np.float64) for part in (features[::2], features[1::2]))
    scale = np.maximum(np.abs(train).max(0), 1e-9)
    weights = np.linalg.lstsq(train / scale, target[::2].ravel(), rcond=None)[0]
    return float(((test / scale) @ weights - target[1::2].ravel()).var())
