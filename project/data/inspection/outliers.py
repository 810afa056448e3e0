"""Outliers: images that are damaged, empty, saturated, of unusual brightness, or copies of each other."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from project.data.duplicates import MOST_PAIRS
from project.data.inspection.channels import MIN_REFERENCE, SATURATED_SHARE
from project.data.inspection.measure import Channel, ImageMeasures, training_images
from project.data.leakage import equal_images, near_duplicates
from project.formatting import FEW, count_of, first_few, format_channels, format_number, format_percent, shorten

# The thresholds decide what is reported, never what is done to the data.
UNUSUAL_Z = 6.0  # robust z of an image's mean: skewed fluorescence reaches 3 to 5 with nothing wrong
LEAST_SPREAD = 0.1  # for that z, in standard deviations of the pixels: smaller shifts never matter
MIXED = 0.05  # share of the training images: not a few outliers, but several kinds of image
FAINT = 0.1  # of the usual contrast: dim images keep a fifth or more, empty fields have noise only
EXAMPLES = 8  # images of one kind that the page shows
MOST_LISTED = 200  # pairs of near-duplicates in the report

EMPTY_ADVICE = "Check that they are really empty and not merely unannotated"
# Kind -> what is wrong with the images, and what to do. Those of channels come first.
IN_CHANNELS = {
    "not_finite": ("NaN or infinite pixels", "The loss becomes NaN with them; correct or leave out these files."),
    "constant": (
        "one value everywhere",
        "There is nothing to learn from them, and correlation is undefined; leave them out unless they are meant.",
    ),
    "faint": (
        f"less than {format_percent(FAINT)} of the usual contrast (1st to 99th percentile)",
        "Look at them: an empty field, a closed shutter, another stain? Normalized by itself (image_percentile), an "
        "empty field becomes noise; leave them out unless empty fields are meant.",
    ),
    "saturated": (
        f"more than {format_percent(SATURATED_SHARE)} of the pixels at the largest value",
        "What was brighter is lost; expose less, or leave them out.",
    ),
    "unusual": (
        "an outlying mean",
        "Look at them: another exposure, an empty field, a wrong channel?",
    ),
}
OF_SAMPLES = {
    "target_is_image": (
        "a target that equals the input, pixel for pixel",
        "Check the file patterns of the dataset.",
    ),
    "no_objects": ("no object", f"{EMPTY_ADVICE}."),
    "no_foreground": (
        "no pixel of another class than the first",
        f"{EMPTY_ADVICE}; where they are many, `data.foreground_crops` samples the others.",
    ),
    "not_annotated": (
        "no annotated pixel",
        "Nothing can be learned or scored there; leave them out or annotate them.",
    ),
}
KINDS = IN_CHANNELS | OF_SAMPLES


@dataclass(frozen=True)
class Outlier:
    """One image that stands out.

    Attributes:
        kind: A key of `KINDS`.
        image: Which image.
        role, channel: Where; no channel for masks and objects.
        badness: The larger, the earlier it is named.
        reason: In numbers.
    """

    kind: str
    image: ImageMeasures
    role: str
    channel: str | None = None
    badness: float = 0
    reason: str = ""


def set_robust_z(images: list[ImageMeasures], channels: list[dict[str, Any]]) -> None:
    """Fill in the robust z of each image's mean, and "usual" of each channel: mean, spread and contrast.

    z = (mean - median) / (1.4826 MAD) over the training images: Iglewicz and Hoaglin, "How to detect and handle
    outliers" (1993), with a floor for the spread.
    """
    for entry in channels:
        channel, entry["usual"] = (entry["role"], entry["channel"]), None
        known = [v for image in training_images(images) if (v := image.values[channel])["mean"] is not None]
        if len(known) < MIN_REFERENCE:
            continue
        means = np.array([values["mean"] for values in known])
        median = float(np.median(means))
        mad = 1.4826 * float(np.median(np.abs(means - median)))
        spread = max(mad, LEAST_SPREAD * float(np.median([values["std"] for values in known])))
        contrast = float(np.median([values["contrast"] for values in known]))
        entry["usual"] = {"mean": median, "spread": spread, "contrast": contrast}
        for values in (image.values[channel] for image in images):
            values["z"] = None if values["mean"] is None or not spread else (values["mean"] - median) / spread


def find_outliers(images: list[ImageMeasures], channels: list[dict[str, Any]], warnings: list[str]) -> dict[str, Any]:
    """Images that stand out, by kind and channel.

    Args:
        images: All images.
        channels: With "usual" from `set_robust_z`.
        warnings: Receives a sentence for each kind and role.

    Returns:
        Kind -> "role/channel" -> [split, id] of each image; kinds of `OF_SAMPLES` -> [split, id] of each. "shown": the
        worst of each kind, with the reason, for figures.
    """
    outliers = [outlier for entry in channels for outlier in _in_channel(images, entry)]
    outliers += [outlier for image in images for outlier in _of_sample(image)]
    names = [f"{entry['role']}/{entry['channel']}" for entry in channels]
    result: dict[str, Any] = {kind: {name: [] for name in names} for kind in IN_CHANNELS}
    result |= {kind: [] for kind in OF_SAMPLES} | {"shown": []}
    for outlier in outliers:
        listed = result[outlier.kind]
        listed = listed[f"{outlier.role}/{outlier.channel}"] if outlier.kind in IN_CHANNELS else listed
        listed.append([outlier.image.split, outlier.image.id])
    for kind in KINDS:
        for role in dict.fromkeys(outlier.role for outlier in outliers):
            if members := [outlier for outlier in outliers if (outlier.kind, outlier.role) == (kind, role)]:
                warnings.append(_describe(members, images, channels))
                result["shown"] += [
                    {"kind": kind, "role": role, "channel": o.channel, "split": o.image.split, "id": o.image.id}
                    | {"reason": o.reason}
                    for o in _worst_channels(members)[:EXAMPLES]
                ]
    return result


def _in_channel(images: list[ImageMeasures], entry: dict[str, Any]) -> list[Outlier]:
    channel: Channel = (entry["role"], entry["channel"])
    usual, outliers = entry["usual"], []
    for image in images:
        v = image.values[channel]
        if v["n_not_finite"]:
            outliers.append(Outlier("not_finite", image, *channel, v["n_not_finite"], str(v["n_not_finite"])))
        if v["mean"] is None:
            continue
        if v["min"] == v["max"]:
            outliers.append(Outlier("constant", image, *channel, 0, format_number(v["max"])))
        elif usual and v["contrast"] < FAINT * usual["contrast"]:
            reason = f"{format_number(v['contrast'])}, usually {format_number(usual['contrast'])}"
            outliers.append(Outlier("faint", image, *channel, -v["contrast"], reason))
        if (share := v["saturated_share"]) > SATURATED_SHARE and not entry["white_is_normal"]:
            outliers.append(Outlier("saturated", image, *channel, share, format_percent(share)))
        if abs(z := v["z"] or 0) > UNUSUAL_Z:
            outliers.append(Outlier("unusual", image, *channel, abs(z), f"mean {format_number(v['mean'])}, z {z:.0f}"))
    return sorted(outliers, key=lambda outlier: -outlier.badness)


def _of_sample(image: ImageMeasures) -> list[Outlier]:
    has = {
        "target_is_image": ("target", image.digests.get("target") == image.digests["image"]),
        "not_annotated": ("mask", image.annotated == 0),
        "no_objects": ("instances", image.objects == 0),
        # A mask made of objects would say it twice.
        "no_foreground": ("mask", image.foreground == 0 and image.objects != 0),
    }
    return [Outlier(kind, image, role) for kind, (role, holds) in has.items() if holds]


def _worst_channels(outliers: list[Outlier]) -> list[Outlier]:
    """The worst channel of each image, worst image first."""
    worst: dict[tuple[str, str], Outlier] = {}
    for outlier in sorted(outliers, key=lambda outlier: -outlier.badness):
        worst.setdefault((outlier.image.split, outlier.image.id), outlier)
    return list(worst.values())


def _describe(outliers: list[Outlier], images: list[ImageMeasures], channels: list[dict[str, Any]]) -> str:
    """The sentence on all outliers of one kind and role, however many channels they are in."""
    worst, kind, role = _worst_channels(outliers), outliers[0].kind, outliers[0].role
    problem, advice = KINDS[kind]
    names = {outlier.channel for outlier in outliers}
    entries = [entry for entry in channels if entry["role"] == role and entry["channel"] in names]
    if kind == "saturated" and len({entry["ceiling"] for entry in entries}) == 1:
        problem += f", {format_number(entries[0]['ceiling'])}"
    if kind == "unusual" and len(entries) == 1:
        usual = entries[0]["usual"]
        problem += f", usually {format_number(usual['mean'])} ± {format_number(usual['spread'])}"
    if kind == "unusual" and is_mixed([outlier.image for outlier in worst], images):
        advice = "So many are another kind of image: see that every kind is in all splits, and how inputs are scaled."
    details = []
    for outlier in worst:
        parts = [outlier.image.split, outlier.channel if len(entries) > 1 else None, outlier.reason]
        in_brackets = ", ".join(part for part in parts if part)
        details.append(f"{shorten(outlier.image.id)} ({in_brackets})" if outlier.reason else str(outlier.image))
    where = format_channels(role, [entry["channel"] for entry in entries]) if entries else role
    return f"{where}: {count_of(len(worst), len(images))} {problem}: {first_few(details)}. {advice}"


def is_mixed(outliers: list[ImageMeasures], images: list[ImageMeasures]) -> bool:
    """Whether images of unusual brightness are so many in training that they are a separate kind of image."""
    n = sum(image.split == "train" for image in outliers) if any(i.split == "train" for i in images) else len(outliers)
    return n > max(MIXED * len(training_images(images)), 1)


def find_copies(images: list[ImageMeasures], warnings: list[str]) -> list[dict[str, Any]]:
    """Samples with equal pixels, by role; those in different splits or folds first."""
    result = []
    for role in ("image", "target"):
        measures = {image.for_leakage(role): image for image in images}
        groups = [[measures[image] for image in group] for group in equal_images(measures)]
        for across in (True, False):
            copies = [g for g in groups if (len({i.for_leakage(role).part for i in g}) > 1) == across]
            result += [{"role": role, "across_splits": across, "samples": [[i.split, i.id] for i in g]} for g in copies]
            if copies:
                details = first_few([" = ".join(map(str, group[:FEW])) for group in copies], "report.json")
                where = (
                    f"in different splits, so that no score is independent: {details}. Give copies one group, or "
                    "remove them."
                    if across
                    else f"in one split: {details}. Remove copies, or they count several times."
                )
                occur = f"{len(copies)} {role}{'s occur' if len(copies) > 1 else ' occurs'} more than once"
                warnings.append(f"{role}: {occur} {where}")
    return result


def find_near_duplicates(
    images: list[ImageMeasures], notes: list[str], warnings: list[str], by_place: bool = False
) -> dict[str, Any]:
    """Pairs of inputs that look nearly the same without being equal; see `project.data.duplicates`.

    Args:
        images: All images.
        notes: Receives a sentence on pairs in different groups of one split, which leak nothing now.
        warnings: Receives a sentence on pairs in different splits.
        by_place: The splits are regions of the same images, so that pairs within a split are expected.
    """
    measures = {image.for_leakage("image"): image for image in images}
    found = near_duplicates([*measures], lambda image: f"{image.part}\0{image.group}")
    if len(found) >= MOST_PAIRS:  # at least those that leak
        found = near_duplicates([*measures], lambda image: image.part)
    pairs = {
        "across_splits": [(measures[a], measures[b]) for a, b in found if a.part != b.part],
        "across_groups": [(measures[a], measures[b]) for a, b in found if a.part == b.part],
    }
    if pairs["across_splits"]:
        warnings.append(
            f"image: {_describe_pairs(pairs['across_splits'], 'splits')}. Scores then come from images that were "
            "trained on: look at them in report.html, and give near-copies one group, or remove them."
        )
    if pairs["across_groups"] and not by_place:
        notes.append(
            f"image: {_describe_pairs(pairs['across_groups'], 'groups of one split')}. Another division could put "
            "them into different splits; if they are copies or frames of one series, give them one group."
        )
    listed = [
        {"kind": kind, "samples": [[a.split, a.id], [b.split, b.id]]}
        for kind, members in pairs.items()
        for a, b in members
    ]
    return {"counts": {kind: len(members) for kind, members in pairs.items()}, "pairs": listed[:MOST_LISTED]}


def _describe_pairs(pairs: list[tuple[ImageMeasures, ImageMeasures]], where: str) -> str:
    n = len({(image.split, image.id) for pair in pairs for image in pair})
    details = first_few([f"{a} ~ {b}" for a, b in pairs], "report.json")
    return (
        f"{len(pairs)} pair{'s' * (len(pairs) > 1)} of {n} images look nearly the same in different {where}: {details}"
    )
