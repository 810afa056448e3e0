"""Brightness drift: splits and groups whose images are not as bright as the training images."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from project.data.statistics import ImageStatistics
from project.data.store import SplitReader
from project.formatting import count_of, first_few, format_channels, format_number

# The thresholds decide what is reported, never what is done to the data.
BRIGHTER = 2.0  # factor between means: more than a lamp or a stain differs from day to day
SHIFTED = 3.0  # difference of means in standard deviations of the pixels of an image: the bulks do not overlap
NOTICEABLE = 0.25  # the same: below it, a factor of BRIGHTER comes from a few sparse pixels
MEAN_STD = [ImageStatistics._fields.index(name) for name in ("mean", "std")]

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
        """Name of each of the "splits" or "groups" that differ -> the first channel of the role in which it does."""
        result: dict[str, tuple[str, Brightness]] = {}
        for channel, parts in getattr(self, kind).items():
            for name, part in parts.items() if channel.startswith(f"{role}/") else ():
                if part.difference:
                    result.setdefault(name, (channel.partition("/")[2], part))
        return result

    def describe(self) -> list[str]:
        """A sentence on the splits and one on the groups that differ, for images and for targets."""
        sentences = []
        for role, kind in itertools.product(("image", "target"), ("splits", "groups")):
            if differing := self.differing(kind, role):
                channels = list(dict.fromkeys(channel for channel, _ in differing.values()))
                quote = '"' if kind == "groups" else ""  # a name may be a number
                details = [
                    f"{quote}{name}{quote} ({f'{channel} ' * (len(channels) > 1)}mean {format_number(part.mean)}, not "
                    f"{format_number(part.reference)}: {part.difference})"
                    for name, (channel, part) in differing.items()
                ]
                total = max(map(len, getattr(self, kind).values()))
                others = "the training split" if kind == "splits" else "the other training groups"
                sentences.append(
                    f"{format_channels(role, channels)}: {count_of(len(differing), total, kind[:-1])} another "
                    f"brightness than {others}: {first_few(details, 'report.json')}. "
                    f"{SPLIT_ADVICE if kind == 'splits' else GROUP_ADVICE[role]}"
                )
        return sentences


def measure_drift(readers: Mapping[str, SplitReader]) -> Drift:
    """Compare the brightness of splits and groups by the stored statistics of single images."""
    groups, splits = exposure_groups(readers.values()), [split for split, reader in readers.items() for _ in reader.ids]
    first = next(iter(readers.values()))
    drift = Drift({}, {})
    for role in first.image_statistics:
        levels = np.concatenate([reader.image_statistics[role] for reader in readers.values()])[..., MEAN_STD]
        for channel, name in enumerate(first.channel_names(role)):
            drift.splits[f"{role}/{name}"] = compare_splits(levels[:, channel], splits)
            drift.groups[f"{role}/{name}"] = compare_groups(levels[:, channel], splits, groups)
    return drift


def exposure_groups(readers: Iterable[SplitReader]) -> list[str]:
    """Groups of all images for comparing brightness, which may be what tells classes: no group just names a class.

    Those of the samples, or the folder in the id if no two samples share one; without a folder called as the class.
    """
    ids, groups, labels = list[str](), list[str](), list[str]()
    for reader in readers:
        ids, groups = ids + reader.ids, groups + reader.groups
        if reader.labels is not None and reader.labels.ndim == 1:
            names = (reader.attributes.get("classes") or {}).get("label") or []
            labels += [names[k] if k < len(names) else str(k) for k in reader.labels.tolist()]
    return groups_beside_classes(ids, groups, labels)


def groups_beside_classes(ids: Sequence[str], groups: Sequence[str], labels: Sequence[str] = ()) -> list[str]:
    """See `exposure_groups`; `labels` are the classes of the images, or empty."""
    names = list(groups) if len(set(groups)) < len(ids) else [id_.rpartition("/")[0] for id_ in ids]
    parts = [name.split("/") for name in names]
    if labels and all(label in folders for folders, label in zip(parts, labels, strict=True)):
        pairs = zip(parts, labels, strict=True)
        names = ["/".join(folder for folder in folders if folder != label) for folders, label in pairs]
    is_class = len({*names}) == len({*labels}) == len({*zip(names, labels, strict=False)})
    return [""] * len(names) if is_class else names


def compare_splits(levels: np.ndarray, splits: Sequence[str]) -> dict[str, Brightness]:
    """Each split compared with training; nothing without training images.

    `levels` is (N, 2), mean and standard deviation of each image, NaN where no pixel is finite; `splits` are N names.
    """
    typical = {name: (part[:, 0].mean(), np.median(part[:, 1])) for name, part in _parts(levels, splits).items()}
    return {name: _compare(part, typical["train"]) for name, part in typical.items()} if "train" in typical else {}


def compare_groups(levels: np.ndarray, splits: Sequence[str], groups: Sequence[str]) -> dict[str, Brightness]:
    """Each group compared with the other training groups; nothing if there is one group, or each image is a group."""
    parts = _parts(levels, groups)
    if not 1 < len(parts) < sum(map(len, parts.values())):
        return {}
    typical = {name: np.median(part, axis=0) for name, part in parts.items()}
    training = [name for name in {*itertools.compress(groups, [s == "train" for s in splits])} if name in typical]
    training = training or [*typical]
    # Of two, each is compared with the other; from three on, one outlier does not move the median.
    reference = np.median([typical[name] for name in training], axis=0)
    result = {}
    for name, level in typical.items():
        others = [typical[other] for other in training if other != name] if len(training) < 3 else [reference]
        result[name] = _compare(level, np.median(others or [level], axis=0))
    return result


def _parts(levels: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Name -> the levels (n, 2) that are known of it."""
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for name, level in zip(names, levels, strict=True):
        if np.isfinite(level[0]):
            parts[name].append(level)
    return {name: np.array(rows) for name, rows in parts.items()}


def _compare(level: Sequence[float], reference: Sequence[float]) -> Brightness:
    (mean, std), (other, other_std) = map(float, level), map(float, reference)
    return Brightness(mean, std, other, describe_shift(mean, std, other, other_std))


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
