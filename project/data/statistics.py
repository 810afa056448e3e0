"""Exact statistics of pixel values by histograms over every possible value, and intensity ranges by percentiles."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from project.data.object_statistics import summarize_objects, touching

PERCENTILES = (0.1, 0.5, 1, 2, 5, 25, 50, 75, 95, 98, 99, 99.5, 99.9)
BINS = 65536
PIECE = 2**20  # values counted at once
# A range below this share of its values is rounding in float32.
RESOLUTION = 1e-6
NARROW, ROBUST, WHOLE = 1.0, 0.1, 0.0  # percent of the pixels that a range leaves out at each end
RANGE_PERCENTILES = (NARROW, ROBUST, 100 - ROBUST, 100 - NARROW)


class Range(NamedTuple):
    """Two percentiles of pixel values, `cut` and 100 - `cut`."""

    low: float
    high: float
    cut: float


def value_range(channel: dict[str, Any], cut: float = ROBUST) -> Range:
    """Intensity range for normalization and scores, by percentiles, which no single hot pixel decides.

    Percentiles of sparse images coincide (more than 98 % of the pixels are background). The range is then wider: 0.1
    to 99.9 %, else from the smallest to the largest value. `cut` is the percent at each end that is left out if
    possible, `NARROW` or `ROBUST`.
    """
    percentiles = channel["percentiles"]
    ranges = [Range(percentiles[f"{c:g}"], percentiles[f"{100 - c:g}"], c) for c in (NARROW, ROBUST) if c <= cut]
    ranges.append(Range(channel["min"], channel["max"], WHOLE))
    wide = (r for r in ranges if r.high - r.low > RESOLUTION * max(abs(r.low), abs(r.high)))
    return next(wide, ranges[-1])


class ImageStatistics(NamedTuple):
    """Statistics of one channel of one image; NaN where no pixel is finite."""

    min: float
    max: float
    mean: float  # like the others of the finite pixels
    std: float
    n_not_finite: int  # number of NaN and infinities
    low: float  # low and high: 1st and 99th percentile; wider where these coincide, as `value_range` says
    high: float
    cut: float  # percent that `low` and `high` leave out at each end: 1, 0.1 or 0


# Statistics of each image in a batch, for normalization by the whole image.
SHIPPED = [ImageStatistics._fields.index(name) for name in ("mean", "std", "low", "high")]


def image_statistics(image: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (C, 4) float32: mean, standard deviation, low and high of each channel, as in a batch."""
    return np.array([Histogram(channel.dtype).count(channel) for channel in image])[:, SHIPPED].astype(np.float32)


class Histogram:
    """Counts of pixel values; histograms of images, splits and processes can be merged.

    Integers (uint8, uint16) have one bin per value, so that everything derived from the counts is exact. A float32 is
    sorted into 65,536 bins by the upper half of its bits (in an order-preserving form): minimum, maximum, mean and
    standard deviation are exact, percentiles are right to 0.4 % of the value.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self.counts = np.zeros(BINS, np.int64)
        self.n = self.n_not_finite = 0
        self.low, self.high = np.inf, -np.inf
        # For floats: running mean and sum of squared deviations, joined by Chan, Golub and LeVeque (1979), eq. 1.5.
        self._mean = self._deviation = 0.0

    @property
    def exact(self) -> bool:
        """Whether each bin is a single value."""
        return self.dtype.kind == "u"

    def count(self, values: np.ndarray) -> ImageStatistics:
        """Count the values of an array of any shape; return the statistics of these alone."""
        values = values.ravel()
        return self._count_integers(values) if self.exact and values.size else self._count_floats(values)

    def _count_integers(self, values: np.ndarray) -> ImageStatistics:
        # In pieces: NumPy makes a copy of eight bytes per value.
        pieces = [np.bincount(values[start : start + PIECE]) for start in range(0, values.size, PIECE)]
        counts = np.zeros(max(map(len, pieces)), np.int64)
        for piece in pieces:
            counts[: len(piece)] += piece
        self.counts[: len(counts)] += counts  # all bins would cost more than a small image itself
        self.n += values.size
        used = np.flatnonzero(counts)
        wide, weights = used.astype(np.float64), counts[used]
        mean = float(wide @ weights) / values.size
        std = float(np.sqrt((wide - mean) ** 2 @ weights / values.size))
        percentiles = [_percentile(wide, weights, values.size, p) for p in RANGE_PERCENTILES]
        return _image_statistics(float(used[0]), float(used[-1]), mean, std, 0, percentiles)

    def _count_floats(self, values: np.ndarray) -> ImageStatistics:
        finite = values[np.isfinite(values)]
        n_not_finite = values.size - finite.size
        self.n_not_finite += n_not_finite
        if not finite.size:
            return ImageStatistics(np.nan, np.nan, np.nan, np.nan, n_not_finite, np.nan, np.nan, np.nan)
        self.counts += np.bincount(_order(finite) >> 16, minlength=BINS)
        wide = finite.astype(np.float64)
        mean, low, high = float(wide.mean()), float(finite.min()), float(finite.max())
        deviation = float(((wide - mean) ** 2).sum())
        self._join(finite.size, mean, deviation, low, high)
        percentiles = np.percentile(wide, RANGE_PERCENTILES).tolist()
        std = float(np.sqrt(deviation / finite.size))
        return _image_statistics(low, high, mean, std, n_not_finite, percentiles)

    def merge(self, other: "Histogram") -> "Histogram":
        """Add the counts of another histogram of the same dtype."""
        self.counts += other.counts
        self.n_not_finite += other.n_not_finite
        if self.exact:
            self.n += other.n
        elif other.n:
            self._join(other.n, other._mean, other._deviation, other.low, other.high)
        return self

    def _join(self, n: int, mean: float, deviation: float, low: float, high: float) -> None:
        total, delta = self.n + n, mean - self._mean
        self._deviation += deviation + delta**2 * self.n * n / total
        self._mean += delta * n / total
        self.n, self.low, self.high = total, min(self.low, low), max(self.high, high)

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """The values that occur, of floats the middle of each bin, and how often: two arrays (K,)."""
        used = np.flatnonzero(self.counts)
        return used if self.exact else np.clip(_value_of(used), self.low, self.high), self.counts[used]

    def summary(self) -> dict[str, Any]:
        """Minimum, maximum, mean, standard deviation and percentiles, as JSON numbers in the units of the file."""
        if not self.n:
            return {"dtype": self.dtype.name, "n": 0, "n_not_finite": self.n_not_finite}
        values, counts = self.values()
        if self.exact:
            # As objects, in Python's unlimited integers: no rounding for any number of pixels.
            unlimited = values.astype(object)
            total, squares = int(unlimited @ counts), int(unlimited**2 @ counts)
            mean, variance = total / self.n, (squares * self.n - total**2) / self.n**2
            low, high = float(values[0]), float(values[-1])
        else:
            mean, variance, low, high = self._mean, self._deviation / self.n, self.low, self.high
        values = values.astype(np.float64)
        return {
            "dtype": self.dtype.name,
            "n": self.n,
            "n_not_finite": self.n_not_finite,
            "n_distinct": len(values) if self.exact else None,
            "min": low,
            "max": high,
            "mean": mean,
            "std": float(np.sqrt(variance)),
            "percentiles": {f"{p:g}": _percentile(values, counts, self.n, p) for p in PERCENTILES},
        }


def _image_statistics(
    low: float, high: float, mean: float, std: float, n_not_finite: int, percentiles: list[float]
) -> ImageStatistics:
    named = {f"{p:g}": value for p, value in zip(RANGE_PERCENTILES, percentiles, strict=True)}
    range_ = value_range({"percentiles": named, "min": low, "max": high}, NARROW)
    return ImageStatistics(low, high, mean, std, n_not_finite, *range_)


def _order(values: np.ndarray) -> np.ndarray:
    """float32 -> uint32 with the same order."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _value_of(bins: np.ndarray) -> np.ndarray:
    """The float32 in the middle of each bin; exactly 0 for the bin of 0, which common backgrounds fall into."""
    keys = (bins.astype(np.uint32) << 16) | np.uint32(1 << 15)
    values = np.where(keys >> 31, keys & np.uint32(0x7FFFFFFF), ~keys).astype(np.uint32).view(np.float32)
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)


def _percentile(values: np.ndarray, counts: np.ndarray, n: int, percent: float) -> float:
    """Linear between neighboring values, as `numpy.percentile`."""
    position = (n - 1) * percent / 100
    below = int(position)
    ends = np.cumsum(counts)
    first, second = values[np.searchsorted(ends, [below, min(below + 1, n - 1)], side="right")]
    return float(first + (second - first) * (position - below))


class SplitStatistics:
    """Statistics of one split, collected while it is written; those of several processes can be merged."""

    def __init__(self) -> None:
        self.channels: dict[str, list[Histogram]] = {}  # "image" or "target" -> one histogram per channel
        self.mask: Counter[int] = Counter()  # value -> pixels
        self.areas: Counter[int] = Counter()  # pixels -> objects of this size
        self.n_touching = self.n_samples = 0

    def add(self, role: str, array: np.ndarray) -> Any:
        """Count one array of a sample.

        Returns:
            The `ImageStatistics` of each channel of an image or target, value -> pixels of a mask, or the number of
            objects.
        """
        self.n_samples += role == "image"
        if role == "mask":
            counts = np.bincount(array.ravel())
            pixels = {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
            self.mask.update(pixels)
            return pixels
        if role == "instances":
            areas = np.bincount(array.ravel())[1:]  # 0 is background
            areas = areas[areas > 0]
            self.areas.update(areas.tolist())
            self.n_touching += int(np.count_nonzero(touching(array)))
            return len(areas)
        return [
            histogram.count(channel) for histogram, channel in zip(self._histograms(role, array), array, strict=True)
        ]

    def _histograms(self, role: str, like: Any) -> list[Histogram]:
        """One for each channel of an image, or of other histograms."""
        if role not in self.channels:
            self.channels[role] = [Histogram(channel.dtype) for channel in like]
        return self.channels[role]

    def merge(self, other: "SplitStatistics") -> None:
        """Add the counts of other samples."""
        for role, more in other.channels.items():
            for mine, theirs in zip(self._histograms(role, more), more, strict=True):
                mine.merge(theirs)
        self.mask.update(other.mask)
        self.areas.update(other.areas)
        self.n_touching += other.n_touching
        self.n_samples += other.n_samples

    def summary(
        self, labels: np.ndarray | None = None, names: list[str] | None = None, values: np.ndarray | None = None
    ) -> dict[str, Any]:
        """The attribute `statistics`, as plain JSON; see data/README.md.

        `labels` are (N,) class numbers or (N, K) zeros and ones, `names` of the K classes, `values` (N, K) numbers.
        """
        summary: dict[str, Any] = {role: [channel.summary() for channel in of] for role, of in self.channels.items()}
        if self.mask:
            summary["mask"] = {str(value): count for value, count in sorted(self.mask.items())}
        if self.areas:
            summary["instances"] = summarize_objects(self.areas, self.n_touching)
        if labels is not None and names:
            counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(names))
            summary["label"] = dict(zip(names, counts.tolist(), strict=True))
        if values is not None:
            measures = ("mean", "std", "min", "max")
            summary["value"] = [{name: float(getattr(column, name)()) for name in measures} for column in values.T]
        return summary | {"n_samples": self.n_samples}
