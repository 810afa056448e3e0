"""Conformal prediction: intervals and sets that contain the truth in 90 % of the cases, from the errors on validation.

Split conformal prediction: Angelopoulos and Bates (2023), "Conformal prediction: a gentle introduction", Found. Trends
Mach. Learn. 16, 494. Pixels of an image and images of a group depend on each other, so that each group, and each image
in its group, counts once, as in Dunn, Wasserman and Ramdas (2023), JASA 118, 2491.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COVERAGE = 0.9
N_PIXELS = 1024  # of each image that are sampled, with replacement
MOST_ERRORS = 2**17  # of a calibration; of many images fewer pixels are taken
# Shares of the pixels below the limits of ranges of predicted values: bright pixels are few, and their errors large.
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
MOST_FOLDS = 20
N_LEVELS = 21


@dataclass(frozen=True)
class Errors:
    """What a calibration needs of a split: N images, S values of each, C parts (channels, numbers; 1 for classes)."""

    predicted: np.ndarray  # (N, S, C); zeros for classes
    absolute: np.ndarray  # (N, S, C), in units of the target, or `class_errors` of the true class
    tags: Sequence[str] = ("",)  # endings of the columns of the C parts
    classes: np.ndarray | None = None  # (N, K) `class_errors`


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Half width of the interval of a part as a function of the predicted value, between the points linearly."""

    n_images: int
    n_groups: int
    level: float  # quantile of the errors: above COVERAGE where groups that were left out are covered less
    values: list[list[float]]  # of each part, ascending; one for numbers and classes
    half_widths: list[list[float]]  # of each part, at these values

    def __post_init__(self) -> None:
        """ValueError or TypeError if it is damaged."""
        parts = [np.array(part, float) for part in zip(self.values, self.half_widths, strict=True)]  # (2, R) each
        if not parts or not all(
            part.size and np.isfinite(part).all() and (np.diff(part[0]) >= 0).all() and (part[1] >= 0).all()
            for part in parts
        ):
            raise ValueError("the calibration of intervals is not complete")

    def half_width(self, predicted: np.ndarray) -> np.ndarray:
        """Half width for predicted values (C, ...) of the parts, float64 of the same shape."""
        parts = zip(predicted, self.values, self.half_widths, strict=True)
        return np.stack([np.interp(part, values, widths) for part, values, widths in parts])

    def interval(self, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Low and high end for a prediction (C, ...), float32."""
        half = self.half_width(predicted)
        return (predicted - half).astype(np.float32), (predicted + half).astype(np.float32)

    def contains(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether each class is in the prediction set, (..., K) bool; the most likely one always is."""
        return np.asarray(class_errors(probabilities) <= self.half_widths[0][0])


def class_errors(probabilities: np.ndarray) -> np.ndarray:
    """1 - p of each class, and 0 of the most likely one: sets of the classes with small errors are never empty.

    Sadinle, Lei and Wasserman (2019), JASA 114, 223: of all sets with this coverage, the smallest on average.
    """
    errors = 1 - np.asarray(probabilities, float)
    np.put_along_axis(errors, probabilities.argmax(-1)[..., None], 0, -1)
    return errors


def calibrate(errors: Errors, groups: Sequence[str]) -> tuple[Calibration, np.ndarray | None]:
    """Calibration on N images of these groups, and the half widths (N, S, C) for each image without its group.

    The level is that of split conformal prediction, rank (n + 1) * 0.9 of n errors, where each image has one error and
    is a group. Otherwise no such formula holds for few groups, and it is the smallest from 0.9 on at which groups that
    are left out (in at most 20 folds) are covered to 90 % on average; without a second group, 0.9.
    """
    n, s, n_parts = errors.predicted.shape
    s = min(s, max(1, MOST_ERRORS // (n * n_parts)))
    predicted, absolute = errors.predicted[:, :s].astype(float), errors.absolute[:, :s].astype(float)
    units = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    weights, n_units = 1 / np.bincount(units)[units], int(units.max()) + 1
    levels = np.linspace(min(COVERAGE * (1 + 1 / n) if s == 1 else COVERAGE, 1), 1, N_LEVELS)
    left_out, chosen = None, 0
    if n_units > 1:
        half, folds = np.empty((N_LEVELS, n, s, n_parts)), units % MOST_FOLDS
        for fold in np.unique(folds):
            out = folds == fold
            for part in range(n_parts):
                values, widths = _fit(predicted[~out, :, part], absolute[~out, :, part], weights[~out], levels)
                half[..., part][:, out] = [np.interp(predicted[out, :, part], values, row) for row in widths]
        if s > 1 or n_units < n:
            covered = np.average((absolute <= half).mean((2, 3)), axis=1, weights=weights)
            chosen = int(np.argmax(covered >= COVERAGE)) if covered.max() >= COVERAGE else N_LEVELS - 1
        left_out = half[chosen]
    level = levels[chosen]
    fits = [_fit(predicted[..., c], absolute[..., c], weights, level[None]) for c in range(n_parts)]
    points = {"values": [fit[0].tolist() for fit in fits], "half_widths": [fit[1][0].tolist() for fit in fits]}
    return Calibration(n_images=n, n_groups=n_units, level=float(level), **points), left_out


def _fit(
    predicted: np.ndarray, errors: np.ndarray, weights: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of errors (N, S) by ranges of the predicted value, images weighted by (N,).

    Returns the median predicted value of each range, (R,), and the quantiles, (levels, R).
    """
    p, e, w = predicted.ravel(), errors.ravel(), np.repeat(weights, predicted.shape[1])
    limits = np.unique(np.quantile(p, SHARES, weights=w, method="inverted_cdf")) if predicted.shape[1] > 1 else p[:0]
    ranges = np.searchsorted(limits[limits > p.min()], p, side="right")
    parts = [ranges == k for k in range(ranges.max() + 1)]
    # Less than rounding errors of the cumulative weights.
    widths = [np.quantile(e[part], levels - 1e-9, weights=w[part], method="inverted_cdf") for part in parts]
    return np.array([np.median(p[part]) for part in parts]), np.stack(widths, 1)


def is_coverage(name: str) -> bool:
    """Whether a column is one of `coverage_columns`, not a metric."""
    return name in ("interval_coverage", "set_coverage", "set_size") or name.startswith("interval_width")


def coverage_columns(errors: Errors, half: np.ndarray) -> dict[str, np.ndarray]:
    """Share of the true values that are covered, and mean width, of each image, (N,); `half` is (N, S, C)."""
    covered = (errors.absolute[:, : half.shape[1]] <= half).mean((1, 2))
    if errors.classes is not None:
        return {"set_coverage": covered, "set_size": (errors.classes <= half[:, 0]).sum(1).astype(float)}
    widths = 2 * half.mean(1)
    return {"interval_coverage": covered} | {f"interval_width{tag}": widths[:, c] for c, tag in enumerate(errors.tags)}
