"""Brightness drift: splits and groups whose images are not as bright as the training images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from project.data.store import SplitReader
from project.formatting import count_of, first_few, format_channels, format_number

# The thresholds decide what is reported, never what is done to the data.
BRIGHTER = 2.0  # factor between means: more than a lamp or a stain differs from day to day
SHIFTED = 3.0  # difference of means in standard deviations of the pixels of an image: the bulks do not overlap
NOTICEABLE = 0.25  # the same: below it, a factor of BRIGHTER comes from a few sparse pixels

SPLIT_ADVICE = (
    "Scores on it may not reflect the training distribution: have every kind of image in all splits, unless this "
    "change is what you want to test."
)
GROUP_ADVICE = {
    "image": "Another exposure, stain or microscope? If so, have both kinds in every split, or scale each image by its "
    "own percentiles (`input_normalization: image_percentile`).",
    "target": "Another exposure or stain? If so, bring them to one scale before preparing, or set "
    "`target_normalization: asinh`; a target must not be scaled image by image.",
}


@dataclass(frozen=True)
class Brightness:
    """Brightness of the typical image of a split or a group in one channel, in the units of the file."""

    mean: float
    std: float  # within an image
    reference: float  # mean of what it is compared with
    difference: str | None  # such as "13 times brighter"; None where it is within the thresholds


@dataclass(frozen=True)
class Drift:
    """Brightness of all splits and groups, by "role/channel" and name."""

    splits: dict[str, dict[str, Brightness]]  # compared with the training split
    groups: dict[str, dict[str, Brightness]]  # see `exposure_groups`; compared with the other training groups

    def differing(self, kind: str, role: str) -> dict[str, tuple[str, Brightness]]:
        """Name of each split or group that differs -> the first channel of the role in which it does.

        `kind` is "split" or "group".
        """
        result: dict[str, tuple[str, Brightness]] = {}
        for channel, parts in (self.splits if kind == "split" else self.groups).items():
            if channel.startswith(f"{role}/"):
                for name, part in parts.items():
                    if part.difference:
                        result.setdefault(name, (channel.partition("/")[2], part))
        return result

    def describe(self) -> list[str]:
        """A sentence on the splits and one on the groups that differ, for images and for targets."""
        sentences = []
        for role in dict.fromkeys(name.partition("/")[0] for name in self.splits):
            for kind in ("split", "group"):
                if differing := self.differing(kind, role):
                    channels = list(dict.fromkeys(channel for channel, _ in differing.values()))
                    details = [
                        f"{name} ({f'{channel} ' * (len(channels) > 1)}mean {format_number(part.mean)}, not "
                        f"{format_number(part.reference)}: {part.difference})"
                        for name, (channel, part) in differing.items()
                    ]
                    total = max(map(len, (self.splits if kind == "split" else self.groups).values()))
                    others = "the training split" if kind == "split" else "the other training groups"
                    sentences.append(
                        f"{format_channels(role, channels)}: {count_of(len(differing), total, kind)} another "
                        f"brightness than {others}: {first_few(details, 'report.json')}. "
                        f"{SPLIT_ADVICE if kind == 'split' else GROUP_ADVICE[role]}"
                    )
        return sentences


def measure_drift(readers: Mapping[str, SplitReader]) -> Drift:
    """Compare the brightness of splits and groups by the statistics of single images that the files hold."""
    ids = [id_ for reader in readers.values() for id_ in reader.ids]
    groups = np.array(exposure_groups(ids, [group for reader in readers.values() for group in reader.groups]), object)
    splits = np.array([split for split, reader in readers.items() for _ in reader.ids], object)
    first = next(iter(readers.values()))
    drift = Drift({}, {})
    for role in first.image_statistics:
        statistics = np.concatenate([reader.image_statistics[role] for reader in readers.values()])
        for channel, name in enumerate(first.channel_names(role)):
            levels = statistics[:, channel, 2:4]  # mean and standard deviation
            known = np.isfinite(levels[:, 0])
            drift.splits[f"{role}/{name}"] = compare_splits(levels[known], splits[known])
            drift.groups[f"{role}/{name}"] = compare_groups(levels[known], splits[known], groups[known])
    return drift


def exposure_groups(ids: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Groups for comparing brightness: those of the samples, or the folder in the id if no two samples share one."""
    if len(set(groups)) < len(ids):
        return list(groups)
    return [id_.rpartition("/")[0] for id_ in ids]


def compare_splits(levels: np.ndarray, splits: np.ndarray) -> dict[str, Brightness]:
    """Each split compared with training; nothing without training images.

    `levels` is (N, 2), mean and standard deviation of each image; `splits` (N,) their names.
    """
    typical = {
        split: (float(levels[splits == split, 0].mean()), float(np.median(levels[splits == split, 1])))
        for split in dict.fromkeys(splits.tolist())
    }
    if "train" not in typical:
        return {}
    train = typical["train"]
    return {split: Brightness(*level, train[0], describe_shift(*level, *train)) for split, level in typical.items()}


def compare_groups(levels: np.ndarray, splits: np.ndarray, groups: np.ndarray) -> dict[str, Brightness]:
    """Each group compared with the other training groups; nothing if there is one group, or each image is a group."""
    names = list(dict.fromkeys(groups.tolist()))
    if not 1 < len(names) < len(groups):
        return {}
    typical: dict[str, list[float]] = {name: np.median(levels[groups == name], axis=0).tolist() for name in names}
    training = {*groups[splits == "train"].tolist()} or {*names}
    result = {}
    for name, level in typical.items():
        # Of two, each is compared with the other; from three on, one outlier does not move the median.
        others = [typical[n] for n in training if n != name or len(training) > 2]
        reference = np.median(others, axis=0).tolist() if others else level
        difference = describe_shift(level[0], level[1], *reference)
        result[name] = Brightness(level[0], level[1], reference[0], difference)
    return result


def describe_shift(mean: float, std: float, reference: float, reference_std: float) -> str | None:
    """How one part differs in brightness from the reference, such as "13 times brighter"; None below the thresholds.

    Each has the mean, and the standard deviation within an image, of its pixels. The smaller deviation is the unit,
    since a part ten times as bright also has ten times the contrast.
    """
    difference, spread = abs(mean - reference), min(std, reference_std) or max(std, reference_std)
    if difference <= 1e-6 * max(abs(mean), abs(reference)) or difference < NOTICEABLE * spread:
        return None
    word = "brighter" if mean > reference else "darker"
    if min(mean, reference) > 0 and (factor := max(mean, reference) / min(mean, reference)) >= BRIGHTER:
        return f"{factor:.3g} times {word}"
    if difference >= SHIFTED * spread:
        return f"{word} by {difference / spread:.2g} standard deviations" if spread else word
    return None
