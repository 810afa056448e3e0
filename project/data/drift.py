"""Brightness drift: splits and groups whose images are not as bright as the training images."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from project.data.store import SplitReader
from project.formatting import count_of, first_few, format_channels, format_number

# The thresholds decide what is reported, never what is done to the data.
BRIGHTER = 2.0  # factor between means: more than a lamp or a stain differs from day to day
SHIFTED = 3.0  # difference of means in standard deviations of the pixels of an image: the bulks do not overlap
NOTICEABLE = 0.25  # the same: below it, a factor of BRIGHTER comes from a few sparse pixels
THRESHOLDS = f"(threshold: {BRIGHTER:g} times, or {SHIFTED:g} standard deviations of the pixels)"


class ImageBrightness(NamedTuple):
    """Mean and standard deviation of the pixels of one image in one channel, in the units of the file."""

    split: str
    group: str
    mean: float
    std: float


@dataclass(frozen=True)
class Brightness:
    """Brightness of the typical image of a split or a group in one channel."""

    mean: float
    std: float
    reference: float  # Mean of what it is compared with
    difference: str | None  # Such as "13 times brighter"; None where it is within the thresholds


@dataclass(frozen=True)
class Drift:
    """Brightness of all splits and groups, by "role/channel" and name."""

    splits: dict[str, dict[str, Brightness]]  # Compared with the training split
    groups: dict[str, dict[str, Brightness]]  # See `exposure_groups`; compared with the other training groups

    def describe(self) -> list[str]:
        """A sentence for each split that differs, and one on the groups that do, for images and for targets."""
        sentences = []
        for role in dict.fromkeys(name.partition("/")[0] for name in self.splits | self.groups):
            sentences += describe_splits(role, _of_role(self.splits, role))
            sentences += describe_groups(role, _of_role(self.groups, role))
        return sentences


def measure_drift(readers: Mapping[str, SplitReader]) -> Drift:
    """Compare the brightness of splits and groups by the statistics of single images that the files hold."""
    ids = [id_ for reader in readers.values() for id_ in reader.ids]
    groups = exposure_groups(ids, [group for reader in readers.values() for group in reader.groups])
    split_of = [split for split, reader in readers.items() for _ in reader.ids]
    first = next(iter(readers.values()))
    drift = Drift({}, {})
    for role in first.image_statistics:
        levels = np.concatenate([reader.image_statistics[role] for reader in readers.values()])
        for channel, name in enumerate(first.channel_names(role)):
            images = [
                ImageBrightness(split, group, mean, std)
                for split, group, (mean, std) in zip(split_of, groups, levels[:, channel, 2:4].tolist(), strict=True)
                if np.isfinite(mean)
            ]
            drift.splits[f"{role}/{name}"] = compare_splits(images)
            drift.groups[f"{role}/{name}"] = compare_groups(images)
    return drift


def exposure_groups(ids: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Groups for comparing brightness: those of the samples, or the folder in the id if no two samples share one."""
    if len(set(groups)) < len(ids):
        return list(groups)
    return [id_.rpartition("/")[0] for id_ in ids]


def compare_splits(images: Sequence[ImageBrightness]) -> dict[str, Brightness]:
    """Each split compared with training; nothing without training images."""
    levels = {}
    for split, members in _by(images, "split").items():
        levels[split] = float(np.mean([i.mean for i in members])), float(np.median([i.std for i in members]))
    if "train" not in levels:
        return {}
    train = levels["train"]
    return {split: Brightness(*level, train[0], describe_shift(*level, *train)) for split, level in levels.items()}


def compare_groups(images: Sequence[ImageBrightness]) -> dict[str, Brightness]:
    """Each group compared with the other training groups; nothing if there is one group, or each image is a group."""
    groups = _by(images, "group")
    if not 1 < len(groups) < len(images):
        return {}
    levels: dict[str, tuple[float, float]] = {
        name: tuple(np.median([(i.mean, i.std) for i in members], axis=0).tolist()) for name, members in groups.items()
    }
    training = {i.group for i in images if i.split == "train"} or set(groups)
    result = {}
    for name, level in levels.items():
        # Of two, each is compared with the other; from three on, one outlier does not move the median.
        others = [levels[n] for n in training if n != name or len(training) > 2]
        reference = np.median(others, axis=0).tolist() if others else level
        result[name] = Brightness(*level, reference[0], describe_shift(*level, *reference))
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


def describe_splits(role: str, channels: dict[str, dict[str, Brightness]]) -> list[str]:
    """A sentence for each split that differs from training, given channel -> split -> brightness of one role."""
    sentences = []
    for split in dict.fromkeys(split for parts in channels.values() for split in parts):
        shifted = {c: p for c, parts in channels.items() if (p := parts.get(split)) and p.difference}
        means = {c: f"mean {format_number(p.mean)}, train {format_number(p.reference)}" for c, p in shifted.items()}
        if len(shifted) == 1:
            ((channel, part),) = shifted.items()
            message = f"{part.difference} than train: {means[channel]}"
        else:
            details = [f"{c} {p.difference} ({means[c]})" for c, p in shifted.items()]
            message = f"not as bright as train: {first_few(details, 'report.json')}"
        if shifted:
            sentences.append(
                f"{format_channels(role, list(shifted))}: {split} is {message} {THRESHOLDS}. Scores on it may not "
                "reflect the training distribution: split so that every kind of image is in all splits, or take more "
                "samples, unless this change is what you want to test."
            )
    return sentences


def describe_groups(role: str, channels: dict[str, dict[str, Brightness]]) -> list[str]:
    """One sentence on the groups that differ, or none, given channel -> group -> brightness of one role."""
    shifted: dict[str, str] = {}
    for channel, parts in channels.items():
        for name, part in parts.items():
            if part.difference and name not in shifted:
                prefix = f"{channel} " if len(channels) > 1 else ""
                shifted[name] = f"{name} ({prefix}mean {format_number(part.mean)}, {part.difference})"
    if not shifted:
        return []
    affected = [c for c, parts in channels.items() if any(part.difference for part in parts.values())]
    total = max(map(len, channels.values()))
    # Values with a unit of their own must not be scaled image by image: a target.
    advice = (
        "bring them to one scale (exposure, gain) before preparing, or set `target_normalization: asinh`, with which "
        "bright and dim images count alike; a target must not be scaled image by image"
        if role == "target"
        else "keep both kinds in every split, or scale each image by its own percentiles "
        "(`input_normalization: image_percentile`)"
    )
    return [
        f"{format_channels(role, affected)}: {count_of(len(shifted), total, 'group')} another brightness than the "
        f"other training groups {THRESHOLDS}: {first_few(list(shifted.values()), 'report.json')}. Another exposure, "
        f"stain or microscope? If so, {advice}."
    ]


def _of_role(channels: dict[str, dict[str, Brightness]], role: str) -> dict[str, dict[str, Brightness]]:
    return {name.partition("/")[2]: parts for name, parts in channels.items() if name.startswith(f"{role}/")}


def _by(images: Sequence[ImageBrightness], name: str) -> dict[str, list[ImageBrightness]]:
    parts: dict[str, list[ImageBrightness]] = defaultdict(list)
    for image in images:
        parts[getattr(image, name)].append(image)
    return parts
