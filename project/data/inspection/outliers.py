"""Outliers: images that are damaged, empty, saturated, of unusual brightness, or copies of each other."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from project.data.inspection.contents import SATURATED_SHARE
from project.data.inspection.measure import Channel, Measures
from project.data.leakage import Image, equal_images, find_leaks
from project.formatting import FEW, count_of, first_few, format_channels, format_number, format_percent, shorten

# The thresholds decide what is reported, never what is done to the data.
UNUSUAL_Z = 6.0  # robust z of an image's mean: skewed fluorescence reaches 3 to 5 with nothing wrong
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
    split: str
    id: str
    role: str
    channel: str | None = None  # None for masks and objects
    badness: float = 0  # the larger, the earlier it is named
    reason: str = ""  # in numbers


def find_outliers(measures: Measures, channels: list[dict[str, Any]], warnings: list[str]) -> list[dict[str, Any]]:
    """Images that stand out, by kind, the worst first, with the reason.

    `warnings` receives a sentence for each kind and role.
    """
    outliers = [outlier for entry in channels for outlier in _in_channel(measures, entry)]
    outliers += _of_samples(measures)
    outliers.sort(key=lambda outlier: (list(KINDS).index(outlier.kind), -outlier.badness))
    for kind, role in dict.fromkeys((outlier.kind, outlier.role) for outlier in outliers):
        members = [outlier for outlier in outliers if (outlier.kind, outlier.role) == (kind, role)]
        warnings.append(_describe(members, len(measures.images)))
    return [outlier._asdict() for outlier in outliers]


def _in_channel(measures: Measures, entry: dict[str, Any]) -> Iterator[Outlier]:
    channel: Channel = (entry["role"], entry["channel"])
    usual = entry["usual"] or {"mean": np.nan, "contrast": np.nan}
    ceiling, usual_contrast, usual_mean = map(format_number, (entry["ceiling"], usual["contrast"], usual["mean"]))
    values = measures.values[channel]
    for i, image in enumerate(measures.images):
        v, name = {name: float(column[i]) for name, column in values.items()}, (image.split, image.id)
        if n := v["n_not_finite"]:
            yield Outlier("not_finite", *name, *channel, n, f"{n:.0f}")
        if v["min"] == v["max"]:
            yield Outlier("constant", *name, *channel, 0, format_number(v["max"]))
        elif v["contrast"] < FAINT * usual["contrast"]:
            reason = f"{format_number(v['contrast'])}, usually {usual_contrast}"
            yield Outlier("faint", *name, *channel, -v["contrast"], reason)
        if (share := v["saturated_share"]) > SATURATED_SHARE and not entry["white_is_normal"]:
            yield Outlier("saturated", *name, *channel, share, f"{format_percent(share)} at {ceiling}")
        if abs(v["z"]) > UNUSUAL_Z:
            reason = f"mean {format_number(v['mean'])}, usually {usual_mean}"
            yield Outlier("unusual", *name, *channel, abs(v["z"]), reason)


def _of_samples(measures: Measures) -> list[Outlier]:
    columns = measures.columns
    has = {
        "no_objects": ("instances", columns["objects"] == 0),
        # A mask made of objects would say it twice.
        "no_foreground": ("mask", (columns["foreground"] == 0) & (columns["objects"] != 0)),
        "not_annotated": ("mask", columns["annotated"] == 0),
    }
    images = [(image.split, image.id) for image in measures.images]
    return [Outlier(kind, *images[i], role) for kind, (role, holds) in has.items() for i in np.flatnonzero(holds)]


def _describe(outliers: list[Outlier], n_images: int) -> str:
    """The sentence on all outliers of one kind and role, by the worst channel of each image."""
    worst: dict[tuple[str, str], Outlier] = {}
    for outlier in outliers:
        worst.setdefault((outlier.split, outlier.id), outlier)
    role, (problem, advice) = outliers[0].role, KINDS[outliers[0].kind]
    channels = list(dict.fromkeys(outlier.channel for outlier in outliers if outlier.channel))
    details = []
    for outlier in worst.values():
        parts = [outlier.split, outlier.channel if len(channels) > 1 else "", outlier.reason]
        details.append(f"{shorten(outlier.id)} ({', '.join(filter(None, parts))})")
    where = format_channels(role, channels) if channels else role
    return f"{where}: {count_of(len(worst), n_images)} {problem}: {first_few(details)}. {advice}"


def find_copies(images: list[Image], warnings: list[str]) -> dict[str, Any]:
    """Inputs with equal pixels, and pairs in different splits or folds that look nearly the same.

    Returns:
        "across_splits" and "within_split", groups of equal images, and "similar", pairs; each image is [split, id].
    """

    def describe(groups: Sequence[Sequence[Image]], sign: str) -> str:
        listed = [sign.join(f"{shorten(image.id)} ({image.part})" for image in group[:FEW]) for group in groups]
        return first_few(listed, "report.json")

    leaks = find_leaks(images)
    within = [group for group in equal_images(images) if len({image.part for image in group}) == 1]
    for copies, where, advice in (
        (leaks.copies, "different splits, so that scores are too good", "Give copies one group, or remove them."),
        (within, "one split", "Remove copies, or they count several times."),
    ):
        if copies:
            occur = f"{len(copies)} image{'s occur' if len(copies) > 1 else ' occurs'} more than once in {where}"
            warnings.append(f"image: {occur}: {describe(copies, ' = ')}. {advice}")
    if leaks.pairs:
        warnings.append(
            f"image: {len(leaks.pairs)} pair{'s' * (len(leaks.pairs) > 1)} of images look nearly the same in different "
            f"splits: {describe(leaks.pairs, ' ~ ')}. Scores then come from images that were trained on: look at them "
            "in report.html, and give near-copies one group, or remove them."
        )
    lists: dict[str, Sequence[Sequence[Image]]] = {
        "across_splits": leaks.copies,
        "within_split": within,
        "similar": leaks.pairs[:MOST_PAIRS],
    }
    return {name: [[[i.split, i.id] for i in group] for group in groups] for name, groups in lists.items()}
