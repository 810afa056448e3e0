"""Choice of the normalization of inputs and targets, with reasons, from the stored statistics of single images."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from project.data.drift import NOTICEABLE, Drift
from project.data.store import SplitReader
from project.formatting import format_percent

# Measured on fluorescence, bright-field and phase images, stained color images and photographs; see README.md.
HEAVY_TAIL = 3.0  # times as far above the median as the 99.9th percentile: few pixels decide the maximum
FLAT = 0.01  # share of images whose 1st and 99th percentile are equal: percentiles of the image then give no scale
APART = 4.0  # range of the images' means, in standard deviations of the pixels of an image: several kinds of image
DOMINATED = 3.0  # the pixels of all images to those of an image, as standard deviations: few images set the scale
INFORMS = 0.25  # share of the variance of what is predicted that the level of the input explains
MOST_GROUPS = 3  # groups named in a sentence


@dataclass(frozen=True)
class Levels:
    """Spread of the values of the training images of one role; of several channels, the most extreme one counts."""

    tail: float = 1.0  # distance of the maximum from the median, relative to that of the 99.9th percentile
    flat: float = 0.0  # share of the images in which 98 % of the pixels are equal
    # Distance of the 5th and 95th percentile of the images' means, in standard deviations of a median image's pixels.
    apart: float = 0.0
    dominated: float = 1.0  # standard deviation of all pixels, relative to that of a median image
    shifts: tuple[str, ...] = ()  # groups and splits of another brightness, in words, see `project.data.drift`
    # Of inputs, share of the variance of labels, numbers, class shares or mean targets that the mean explains, 0 to 1.
    informs: float = 0.0

    @property
    def must_stay(self) -> bool:
        """Whether the brightness of an input tells what is predicted; then neither forget nor augment it."""
        return self.apart > NOTICEABLE and self.informs > INFORMS


class Choice(NamedTuple):
    """The value of a setting, and why."""

    value: Any
    reason: str


def measure_levels(role: str, train: SplitReader, channels: list[dict[str, Any]], drift: Drift) -> Levels:
    """Levels of the training images; no pixels are read. `channels` are their statistics, one for each."""
    mean, std = (np.nan_to_num(train.statistic(role, name)) for name in ("mean", "std"))
    typical = np.median(std, axis=0)
    unit = np.where(typical > 0, typical, np.inf)
    low, high = np.quantile(mean, [0.05, 0.95], axis=0, method="nearest")
    cuts = [channel["percentiles"] if channel["n"] else {"1": 0, "99": 0} for channel in channels]
    tails = [1.0]  # as where percentiles are no scale, since most pixels of a channel have the same value
    if all(cut["99"] > cut["1"] for cut in cuts):
        above = [(c["max"] - cut["50"], cut["99.9"] - cut["50"]) for c, cut in zip(channels, cuts, strict=True)]
        tails = [float(top / high) if high > 0 else 1.0 for top, high in above]
    groups, splits = (
        [f"{kind[:-1]} {name} {p.difference} ({channel})" for name, (channel, p) in drift.differing(kind, role).items()]
        for kind in ("groups", "splits")
    )
    more = [f"{len(groups) - MOST_GROUPS} more groups"] if len(groups) > MOST_GROUPS else []
    return Levels(
        tail=max(tails),
        flat=float((train.statistic(role, "cut") < 1).any(1).mean()),
        apart=float(np.max((high - low) / unit, initial=0.0)),
        dominated=float(np.max([c.get("std", 0.0) for c in channels] / unit, initial=0.0)),
        shifts=(*groups[:MOST_GROUPS], *more, *splits),
        informs=level_informs(train) if role == "image" else 0.0,
    )


def choose_input_normalization(levels: Levels) -> Choice:
    """Statistics of each image where brightness differs and means nothing, else those of the training split.

    A method of `project.transforms.normalize`.
    """
    differs = list(levels.shifts)
    if not differs and levels.apart > APART:
        differs = [f"the means of images differ by {levels.apart:.2g} standard deviations of the pixels"]
    if levels.must_stay:
        reason = f"the brightness of an input explains {format_percent(levels.informs)} of the variance of what is "
        return _over_training(levels, f"{reason}predicted: one offset and one scale for all images keep it")
    if not differs:
        return _over_training(levels, f"{describe_spread(levels)}: one offset and one scale serve all")
    reason = f"brightness differs: {'; '.join(differs)}. Normalized by itself, each image looks alike whatever the "
    reason += "lamp. Not if brightness itself is the signal: then mean_std."
    if levels.flat <= FLAT:
        return Choice("image_percentile", reason)
    flat = f" Not image_percentile: in {format_percent(levels.flat)} of the images 98 % of the pixels are equal."
    return Choice("image_mean_std", reason + flat)


def describe_spread(levels: Levels) -> str:
    """How much the brightness of inputs differs, and what that tells, in words."""
    if levels.apart < NOTICEABLE:
        return f"images differ by only {levels.apart:.2g} standard deviations in brightness"
    explained = f"at most {format_percent(levels.informs)} of the variance of a class, number or target"
    return f"brightness differs by {levels.apart:.2g} standard deviations between images and explains {explained}"


def choose_target_normalization(levels: Levels) -> Choice:
    """Always one function for all images, so that a prediction has the units of the target."""
    if levels.dominated <= DOMINATED:
        return _over_training(levels, "one offset and one scale for all images keep the units")
    reason = f"the standard deviation of all pixels is {levels.dominated:.2g} times that of the median image: a few "
    reason += "bright images would decide the squared error. asinh is linear for dim, logarithmic for bright values."
    return Choice("asinh", reason)


def _over_training(levels: Levels, reason: str) -> Choice:
    if levels.tail <= HEAVY_TAIL:
        return Choice("mean_std", f"{reason}.")
    return Choice(
        "percentile",
        f"{reason}. The maximum is {levels.tail:.3g} times as far above the median as the 99.9th percentile: the 1st "
        "and 99th percentile as scale do not depend on these few pixels, and nothing is cut off.",
    )


def level_informs(train: SplitReader) -> float:
    """Largest share of the variance of labels, numbers, class shares or mean targets that the mean input explains."""
    inputs, counts = train.statistic("image", "mean"), train.mask_counts
    outputs = [train.label_counts, train.values]
    outputs.append(None if counts is None else counts / np.maximum(counts.sum(1, keepdims=True), 1))
    if "target" in train.image_statistics:
        outputs.append(train.statistic("target", "mean"))
    pairs = [(x, y) for x in inputs.T for array in outputs if array is not None for y in array.T]
    return max((determination(x, y) for x, y in pairs), default=0.0)


def determination(x: np.ndarray, y: np.ndarray) -> float:
    """Squared correlation, corrected for the number of pairs (adjusted R2)."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 4 or not np.ptp(x) or not np.ptp(y):
        return 0.0
    share = float(np.corrcoef(x, y)[0, 1] ** 2)
    return max(0.0, 1 - (1 - share) * (len(x) - 1) / (len(x) - 2))
