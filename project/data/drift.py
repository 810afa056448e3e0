"""Whether parts of a dataset, splits or groups such as days, are as bright as the training images."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from project.formatting import count_of, first_few, format_channels, format_number

# The thresholds decide what is said, never what is done to the data.
BRIGHTER = 2.0  # factor between means: more than a lamp or a stain differs from day to day
SHIFTED = 3.0  # difference of means in standard deviations of the pixels of an image: the bulks do not overlap
NOTICEABLE = 0.25  # the same: below it, a factor of BRIGHTER comes from a few sparse pixels
HOW = f"(threshold: {BRIGHTER:g} times, or {SHIFTED:g} standard deviations of the pixels)"


@dataclass(frozen=True)
class ImageLevel:
    """Brightness of one image in one channel.

    Attributes:
        split: "train", "val" or "test".
        group: Between what brightness is compared; see `batches`.
        mean, std: Of its pixels, in the units of the file.
    """

    split: str
    group: str
    mean: float
    std: float


@dataclass(frozen=True)
class Part:
    """Brightness of a split or a group in one channel.

    Attributes:
        mean, std: Of its typical image.
        usual: Mean of what it is compared with.
        unlike: In what way it differs, such as "13 times brighter"; None where that is nothing special.
    """

    mean: float
    std: float
    usual: float
    unlike: str | None


def split_drift(images: list[ImageLevel], name: str) -> list[str]:
    """Whether validation or test is not as bright as training.

    Args:
        images: All images of a dataset, in one channel.
        name: Of the channel, as "target/gfp".

    Returns:
        A sentence for each split that differs.
    """
    role, _, channel = name.partition("/")
    return tell_splits(role, {channel: split_parts(images)})


def group_drift(images: list[ImageLevel], name: str) -> list[str]:
    """Whether groups are not as bright as the other training groups; arguments as of `split_drift`.

    Returns:
        One sentence, or none.
    """
    role, _, channel = name.partition("/")
    return tell_groups(role, {channel: group_parts(images)})


def batches(ids: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Between what brightness is compared: the group, or the folder in the id where each sample is its own group."""
    own_groups = len(set(groups)) == len(ids)
    return [id_.rpartition("/")[0] for id_ in ids] if own_groups else list(groups)


def unlike(mean: float, std: float, usual: float, usual_std: float) -> str | None:
    """In what way one part is not as bright as the rest, or None where the difference is nothing special.

    Args:
        mean: Mean of its pixels.
        std: Standard deviation of the pixels within an image of it.
        usual: Mean elsewhere.
        usual_std: Standard deviation elsewhere. The smaller of the two is the measure, since a part ten times as
            bright also has ten times the contrast.
    """
    difference, spread = abs(mean - usual), min(std, usual_std) or max(std, usual_std)
    if difference <= 1e-6 * max(abs(mean), abs(usual)) or difference < NOTICEABLE * spread:
        return None
    word = "brighter" if mean > usual else "darker"
    if min(mean, usual) > 0 and (factor := max(mean, usual) / min(mean, usual)) >= BRIGHTER:
        return f"{factor:.3g} times {word}"
    if difference >= SHIFTED * spread:
        return f"{word} by {difference / spread:.2g} standard deviations" if spread else word
    return None


def split_parts(images: list[ImageLevel]) -> dict[str, Part]:
    """Each split compared with training; nothing without training images."""
    levels = {}
    for split, members in _by(images, "split").items():
        levels[split] = float(np.mean([i.mean for i in members])), float(np.median([i.std for i in members]))
    if "train" not in levels:
        return {}
    return {
        split: Part(*level, levels["train"][0], unlike(*level, *levels["train"])) for split, level in levels.items()
    }


def group_parts(images: list[ImageLevel]) -> dict[str, Part]:
    """Each group, by its typical image, compared with the other training groups; nothing where all are alone or one."""
    groups = _by(images, "group")
    if not 1 < len(groups) < len(images):
        return {}
    levels: dict[str, tuple[float, float]] = {
        name: tuple(np.median([(i.mean, i.std) for i in members], axis=0).tolist()) for name, members in groups.items()
    }
    learnt = {i.group for i in images if i.split == "train"} or set(groups)
    parts = {}
    for name, level in levels.items():
        # Of two, each is compared with the other; from three on, one strange group does not move the median.
        others = [levels[n] for n in learnt if n != name or len(learnt) > 2]
        usual = np.median(others, axis=0).tolist() if others else level
        parts[name] = Part(*level, usual[0], unlike(*level, *usual))
    return parts


def tell_splits(role: str, channels: dict[str, dict[str, Part]]) -> list[str]:
    """What `split_parts` found in the channels of one role: channel -> split -> part; a sentence for each split."""
    sentences = []
    for split in dict.fromkeys(split for parts in channels.values() for split in parts):
        strange = {c: p for c, parts in channels.items() if (p := parts.get(split)) and p.unlike}
        means = {c: f"mean {format_number(p.mean)}, train {format_number(p.usual)}" for c, p in strange.items()}
        if len(strange) == 1:
            (channel, part), *_ = strange.items()
            told = f"{part.unlike} than train: {means[channel]}"
        else:
            told = "not as bright as train: " + first_few(
                [f"{c} {p.unlike} ({means[c]})" for c, p in strange.items()], "report.json"
            )
        if strange:
            sentences.append(
                f"{format_channels(role, list(strange))}: {split} is {told} {HOW}. Its scores then tell of other images: split "  # noqa: E501
                "so that every kind is in all splits, or take more samples, unless it is this change that you want to "
                "test."
            )
    return sentences


def tell_groups(role: str, channels: dict[str, dict[str, Part]]) -> list[str]:
    """What `group_parts` found in the channels of one role: channel -> group -> part; one sentence, or none."""
    strange: dict[str, str] = {}
    for channel, parts in channels.items():
        for name, part in parts.items():
            if part.unlike and name not in strange:
                which = f"{channel} " if len(channels) > 1 else ""
                strange[name] = f"{name} ({which}mean {format_number(part.mean)}, {part.unlike})"
    if not strange:
        return []
    where = [c for c, parts in channels.items() if any(part.unlike for part in parts.values())]
    total = max(map(len, channels.values()))
    # What means something else when it is scaled by itself must not be: a target in units of its own.
    cure = (
        "bring them to one scale (exposure, gain) before preparing, or keep them apart; a target must not be scaled "
        "image by image"
        if role == "target"
        else "keep both kinds in every split, or scale each image by its own percentiles "
        "(`input_normalization: image_percentile`)"
    )
    return [
        f"{format_channels(role, where)}: {count_of(len(strange), total, 'group')} another brightness than the other training groups "  # noqa: E501
        f"{HOW}: {first_few(list(strange.values()), 'report.json')}. Another exposure, stain or microscope? If so, {cure}."  # noqa: E501
    ]


def _by(images: list[ImageLevel], what: str) -> dict[str, list[ImageLevel]]:
    parts: dict[str, list[ImageLevel]] = defaultdict(list)
    for image in images:
        parts[getattr(image, what)].append(image)
    return parts
