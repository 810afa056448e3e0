"""Outliers: images that are damaged, empty, saturated, of unusual brightness, or copies of each other."""

from typing import Any, NamedTuple

import numpy as np

from project.data.inspection.channels import MIN_REFERENCE, SATURATED_SHARE
from project.data.inspection.measure import Channel, ImageMeasures, training_images
from project.data.leakage import equal_images, find_leaks
from project.formatting import FEW, count_of, first_few, format_channels, format_number, format_percent, shorten

# The thresholds decide what is reported, never what is done to the data.
UNUSUAL_Z = 6.0  # robust z of an image's mean: skewed fluorescence reaches 3 to 5 with nothing wrong
LEAST_SPREAD = 0.1  # for that z, in standard deviations of the pixels: smaller shifts never matter
FAINT = 0.1  # of the usual contrast: dim images keep a fifth or more, empty fields have noise only
MOST_PAIRS = 200  # near-duplicates in the report

# Kind -> what is wrong with the images, and what to do.
KINDS = {
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
    "unusual": ("an outlying mean", "Look at them: another exposure, an empty field, a wrong channel?"),
    "target_is_image": ("a target that equals the input, pixel for pixel", "Check the file patterns of the dataset."),
    "no_objects": ("no object", "Check that they are really empty and not merely unannotated."),
    "no_foreground": (
        "no pixel of another class than the background",
        "Check that they are really empty and not merely unannotated; where they are many, `data.foreground_crops` "
        "samples the others.",
    ),
    "not_annotated": (
        "no annotated pixel",
        "Nothing can be learned or scored there; leave them out or annotate them.",
    ),
}


class Outlier(NamedTuple):
    """One image that stands out."""

    kind: str  # a key of `KINDS`
    image: ImageMeasures
    role: str
    channel: str | None = None  # None for masks and objects
    badness: float = 0  # the larger, the earlier it is named
    reason: str = ""  # in numbers


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


def find_outliers(
    images: list[ImageMeasures], channels: list[dict[str, Any]], warnings: list[str]
) -> list[dict[str, Any]]:
    """Images that stand out, by kind, the worst first, with the reason.

    Args:
        images: All images.
        channels: With "usual" from `set_robust_z`.
        warnings: Receives a sentence for each kind and role.
    """
    outliers = [outlier for entry in channels for outlier in _in_channel(images, entry)]
    outliers += [outlier for image in images for outlier in _of_sample(image)]
    outliers.sort(key=lambda outlier: (list(KINDS).index(outlier.kind), -outlier.badness))
    for kind, role in dict.fromkeys((outlier.kind, outlier.role) for outlier in outliers):
        members = [outlier for outlier in outliers if (outlier.kind, outlier.role) == (kind, role)]
        warnings.append(_describe(members, len(images)))
    return [
        {"kind": o.kind, "role": o.role, "channel": o.channel, "split": o.image.split, "id": o.image.id}
        | {"reason": o.reason}
        for o in outliers
    ]


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
            reason = f"{format_percent(share)} at {format_number(entry['ceiling'])}"
            outliers.append(Outlier("saturated", image, *channel, share, reason))
        if abs(z := v["z"] or 0) > UNUSUAL_Z:
            reason = f"mean {format_number(v['mean'])}, usually {format_number(usual['mean'])}"
            outliers.append(Outlier("unusual", image, *channel, abs(z), reason))
    return outliers


def _of_sample(image: ImageMeasures) -> list[Outlier]:
    has = {
        "target_is_image": ("target", image.target_is_image),
        "no_objects": ("instances", image.objects == 0),
        # A mask made of objects would say it twice.
        "no_foreground": ("mask", image.foreground == 0 and image.objects != 0),
        "not_annotated": ("mask", image.annotated == 0),
    }
    return [Outlier(kind, image, role) for kind, (role, holds) in has.items() if holds]


def _describe(outliers: list[Outlier], n_images: int) -> str:
    """The sentence on all outliers of one kind and role, by the worst channel of each image."""
    worst: dict[int, Outlier] = {}
    for outlier in outliers:
        worst.setdefault(id(outlier.image), outlier)
    kind, role = outliers[0].kind, outliers[0].role
    channels = list(dict.fromkeys(outlier.channel for outlier in outliers if outlier.channel))
    details = []
    for _, image, _, channel, _, reason in worst.values():
        parts = [image.split, channel if len(channels) > 1 else "", reason]
        details.append(f"{shorten(image.id)} ({', '.join(part for part in parts if part)})")
    where, (problem, advice) = format_channels(role, channels) if channels else role, KINDS[kind]
    return f"{where}: {count_of(len(worst), n_images)} {problem}: {first_few(details)}. {advice}"


def find_copies(images: list[ImageMeasures], warnings: list[str]) -> dict[str, Any]:
    """Inputs with equal pixels, and pairs in different splits or folds that look nearly the same.

    Returns:
        "across_splits" and "within_split", groups of equal images, and "similar", pairs; each image is [split, id].
    """
    measures = {image.compared: image for image in images}
    leaks, equal = find_leaks([*measures]), equal_images(measures)
    within = [group for group in equal if len({image.part for image in group}) == 1]
    for copies, where in (
        (
            leaks.copies,
            "in different splits, so that scores are too good: {}. Give copies one group, or remove them.",
        ),
        (within, "in one split: {}. Remove copies, or they count several times."),
    ):
        if copies:
            details = first_few([" = ".join(str(measures[i]) for i in group[:FEW]) for group in copies], "report.json")
            occur = f"{len(copies)} image{'s occur' if len(copies) > 1 else ' occurs'} more than once"
            warnings.append(f"image: {occur} {where.format(details)}")
    if leaks.pairs:
        details = first_few([f"{measures[a]} ~ {measures[b]}" for a, b in leaks.pairs], "report.json")
        warnings.append(
            f"image: {len(leaks.pairs)} pair{'s' * (len(leaks.pairs) > 1)} of images look nearly the same in different "
            f"splits: {details}. Scores then come from images that were trained on: look at them in report.html, and "
            "give near-copies one group, or remove them."
        )
    similar = [[a, b] for a, b in leaks.pairs[:MOST_PAIRS]]
    found = {"across_splits": leaks.copies, "within_split": within, "similar": similar}
    return {name: [[[i.split, i.id] for i in group] for group in groups] for name, groups in found.items()}
