"""Single images that stand out: damaged, empty, saturated, of unusual brightness, copies of each other."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from project.data.duplicates import MOST_PAIRS
from project.data.inspection.findings import MIN_REFERENCE, SATURATED_SHARE
from project.data.inspection.rows import Key, Row, reference
from project.data.leakage import Image, equal_images, near_duplicates
from project.formatting import FEW, count_of, first_few, format_channels, format_number, format_percent, shorten

# The thresholds decide what is said, never what is done to the data.
UNUSUAL_Z = 6.0  # robust z of an image's mean: skewed fluorescence reaches 3 to 5 with nothing wrong
UNUSUAL_FLOOR = 0.1  # least spread for that z, in standard deviations of the pixels: smaller shifts never matter
MIXED = 0.05  # share of the training images: not a few odd ones, but several kinds of image
FAINT = 0.1  # of the usual contrast: dim images keep a fifth or more, empty fields have noise only
EXAMPLES = 8  # images of one kind that the page shows
LISTED = 200  # pairs of similar images in the report

# Kind -> what the images have, and what to do.
SAID = {
    "not_finite": (
        "NaN or infinite pixels",
        "The loss becomes NaN with them; mend or leave out these files.",
    ),
    "constant": (
        "one value everywhere",
        "There is nothing to learn from them, and correlation is undefined; leave them out unless they are meant.",
    ),
    "faint": (
        f"less than {format_percent(FAINT)} of the usual contrast (1st to 99th percentile)",
        "Look at them: an empty field, a closed shutter, another stain? Scaled by itself (image_percentile), an empty "
        "field becomes noise; leave them out unless empty fields are meant.",
    ),
    "saturated": (
        f"more than {format_percent(SATURATED_SHARE)} of the pixels at the largest value",
        "What was brighter is lost; expose less, or leave them out.",
    ),
    "unusual": (
        f"a mean far from the usual one (robust z above {UNUSUAL_Z:g})",
        "Look at them: another exposure, an empty field, a wrong channel?",
    ),
    "target_is_image": (
        "a target that is the input, pixel for pixel",
        "Check the file patterns of the dataset.",
    ),
    "no_objects": (
        "no object",
        "Check that they are really empty and not merely unannotated.",
    ),
    "no_foreground": (
        "no pixel of another class than the first",
        "Check that they are really empty and not merely unannotated; where they are many, `data.foreground_crops` "
        "finds the others.",
    ),
    "not_annotated": (
        "no annotated pixel",
        "Nothing can be learnt or scored there; leave them out or annotate them.",
    ),
}


@dataclass(frozen=True)
class Flag:
    """One image that stands out.

    Attributes:
        kind: A key of `SAID`.
        row: The image.
        role, channel: Where it shows; no channel for masks and objects.
        badness: The larger, the earlier it is named.
        reason: In numbers.
    """

    kind: str
    row: Row
    role: str
    channel: str | None
    badness: float
    reason: str


def set_unusual(rows: list[Row], channels: list[dict[str, Any]]) -> None:
    """Fill in how far each image's mean lies from the usual one, as a robust z.

    z = (mean - median) / (1.4826 MAD) over the training images: Iglewicz and Hoaglin, "How to detect and handle
    outliers" (1993), with a floor for the spread. Also "usual" of each channel: mean, spread and contrast.
    """
    for entry in channels:
        key, entry["usual"] = (entry["role"], entry["channel"]), None
        known = [row.values[key] for row in reference(rows) if row.values[key]["mean"] is not None]
        if len(known) < MIN_REFERENCE:
            continue
        means = np.array([values["mean"] for values in known])
        middle = float(np.median(means))
        mad = 1.4826 * float(np.median(np.abs(means - middle)))
        spread = max(mad, UNUSUAL_FLOOR * float(np.median([values["std"] for values in known])))
        contrast = float(np.median([values["contrast"] for values in known]))
        entry["usual"] = {"mean": middle, "spread": spread, "contrast": contrast}
        for values in (row.values[key] for row in rows):
            values["z"] = None if values["mean"] is None or not spread else (values["mean"] - middle) / spread


def images(
    rows: list[Row],
    channels: list[dict[str, Any]],
    notes: list[str],
    warnings: list[str],
    by_place: bool = False,
) -> dict[str, Any]:
    """Which images stand out, by kind and channel.

    Args:
        rows: All images.
        channels: With "usual" from `set_unusual`.
        notes: Gets sentences that need nothing done.
        warnings: Gets the others.
        by_place: The splits are regions of the same images, so that similar images within a split leak nothing.

    Returns:
        Kind -> "role/channel" -> [split, id] of each image; "target_is_image", "no_objects", "no_foreground",
        "not_annotated": [split, id] of each; "duplicates" and "similar"; "shown": the worst of each kind, with the
        reason, for pictures.
    """
    flags = [flag for entry in channels for flag in _in_channel(rows, entry)] + _in_sample(rows)
    by_channel = ("not_finite", "constant", "faint", "saturated", "unusual")
    found: dict[str, Any] = {
        kind: defaultdict(list) if kind in by_channel else [[f.row.split, f.row.id] for f in flags if f.kind == kind]
        for kind in SAID
    }
    for entry in channels:
        for kind in by_channel:
            found[kind][f"{entry['role']}/{entry['channel']}"] = []
    for flag in flags:
        if flag.kind in by_channel:
            found[flag.kind][f"{flag.role}/{flag.channel}"].append([flag.row.split, flag.row.id])
    found["shown"] = []
    for kind in SAID:
        for role in dict.fromkeys(flag.role for flag in flags):
            if own := [flag for flag in flags if (flag.kind, flag.role) == (kind, role)]:
                warnings.append(_sentence(own, rows, channels))
                found["shown"] += [_example(flag) for flag in _worst(own)[:EXAMPLES]]
    found["duplicates"] = _duplicates(rows, warnings)
    found["similar"] = _similar(rows, notes, warnings, by_place)
    return {kind: dict(value) if isinstance(value, defaultdict) else value for kind, value in found.items()}


def _in_channel(rows: list[Row], entry: dict[str, Any]) -> list[Flag]:
    key: Key = (entry["role"], entry["channel"])
    usual, flags = entry["usual"], []

    def flag(kind: str, row: Row, badness: float, reason: str) -> None:
        flags.append(Flag(kind, row, *key, badness, reason))

    for row in rows:
        v = row.values[key]
        if v["n_not_finite"]:
            flag("not_finite", row, v["n_not_finite"], str(v["n_not_finite"]))
        if v["mean"] is None:
            continue
        if v["min"] == v["max"]:
            flag("constant", row, 0, format_number(v["max"]))
        elif usual and v["contrast"] < FAINT * usual["contrast"]:
            flag(
                "faint",
                row,
                -v["contrast"],
                f"{format_number(v['contrast'])}, usually {format_number(usual['contrast'])}",
            )
        if v["saturated_share"] > SATURATED_SHARE and not entry["white_is_normal"]:
            flag("saturated", row, v["saturated_share"], format_percent(v["saturated_share"]))
        if abs(v["z"] or 0) > UNUSUAL_Z:
            flag("unusual", row, abs(v["z"]), f"mean {format_number(v['mean'])}, z {v['z']:.0f}")
    return sorted(flags, key=lambda f: -f.badness)


def _in_sample(rows: list[Row]) -> list[Flag]:
    flags = []
    for row in rows:
        if row.digests.get("target") == row.digests["image"]:
            flags.append(Flag("target_is_image", row, "target", None, 0, ""))
        if row.annotated == 0:
            flags.append(Flag("not_annotated", row, "mask", None, 0, ""))
        if row.objects == 0:
            flags.append(Flag("no_objects", row, "instances", None, 0, ""))
        elif row.foreground == 0:  # a mask made of objects says it only once
            flags.append(Flag("no_foreground", row, "mask", None, 0, ""))
    return flags


def _worst(flags: list[Flag]) -> list[Flag]:
    """The worst channel of each image, worst image first."""
    best: dict[tuple[str, str], Flag] = {}
    for flag in sorted(flags, key=lambda f: -f.badness):
        best.setdefault((flag.row.split, flag.row.id), flag)
    return list(best.values())


def _sentence(flags: list[Flag], rows: list[Row], channels: list[dict[str, Any]]) -> str:
    """What all flags of one kind and role say, however many channels they are in."""
    worst, (has, do), role = _worst(flags), SAID[flags[0].kind], flags[0].role
    there = {flag.channel for flag in flags}
    own = [entry for entry in channels if entry["role"] == role and entry["channel"] in there]
    if flags[0].kind == "saturated" and len({entry["ceiling"] for entry in own}) == 1:
        has += f", {format_number(own[0]['ceiling'])}"
    if flags[0].kind == "unusual" and len(own) == 1:
        has = has.replace(
            "one (", f"{format_number(own[0]['usual']['mean'])} ± {format_number(own[0]['usual']['spread'])} ("
        )
    if flags[0].kind == "unusual" and is_mixed([flag.row for flag in worst], rows):
        do = "So many are another kind of image: see that every kind is in all splits, and how inputs are scaled."
    told = []
    for flag in worst:
        where = [flag.row.split, flag.channel if len(own) > 1 else None, flag.reason]
        told.append(
            f"{flag.row}" if not flag.reason else f"{shorten(flag.row.id)} ({', '.join(w for w in where if w)})"
        )
    name = format_channels(role, [entry["channel"] for entry in own]) if own else role
    return f"{name}: {count_of(len(worst), len(rows))} {has}: {first_few(told)}. {do}"


def is_mixed(unusual: list[Row], rows: list[Row]) -> bool:
    """Whether images of unusual brightness are so many in training that they are a kind of their own."""
    own = reference(unusual) if any(row.split == "train" for row in unusual) else []
    return len(own) > max(MIXED * len(reference(rows)), 1)


def _example(flag: Flag) -> dict[str, Any]:
    return {
        "kind": flag.kind,
        "role": flag.role,
        "channel": flag.channel,
        "split": flag.row.split,
        "id": flag.row.id,
        "reason": flag.reason,
    }


def _duplicates(rows: list[Row], warnings: list[str]) -> list[dict[str, Any]]:
    """Samples whose pixels are exactly the same, by role."""
    found = []
    for role in ("image", "target"):
        by_image = {_compared(row, role): row for row in rows}
        groups = [[by_image[image] for image in group] for group in equal_images(by_image)]
        for across in (True, False):
            copies = [c for c in groups if (len({r.place for r in c}) > 1) == across]
            found += [{"role": role, "across_splits": across, "samples": [[r.split, r.id] for r in c]} for c in copies]
            if copies:
                told = first_few([" = ".join(str(row) for row in c[:FEW]) for c in copies], "report.json")
                what = f"{role}: {len(copies)} {role}{'s stand' if len(copies) > 1 else ' stands'} more than once"
                do = (
                    "in different splits, so that no score is independent: {}. Give copies one group, or remove them."
                    if across
                    else "in one split: {}. Remove copies, or they count several times."
                )
                warnings.append(f"{what} {do.format(told)}")
    return found


def _similar(rows: list[Row], notes: list[str], warnings: list[str], by_place: bool) -> dict[str, Any]:
    """Pairs of inputs that look nearly the same without being equal; see `project.data.duplicates`."""
    pairs: dict[str, list[tuple[Row, Row]]] = {"across_splits": [], "across_groups": []}
    by_image = {_compared(row, "image"): row for row in rows}
    found = near_duplicates([*by_image], lambda image: f"{image.part}\0{image.group}")
    if len(found) >= MOST_PAIRS:  # at least those that leak
        found = near_duplicates([*by_image], lambda image: image.part)
    for first, second in ((by_image[a], by_image[b]) for a, b in found):
        pairs["across_splits" if first.place != second.place else "across_groups"].append((first, second))
    what = {kind: _count(each) for kind, each in pairs.items()}
    told = {kind: first_few([f"{a} ~ {b}" for a, b in each], "report.json") for kind, each in pairs.items()}
    if pairs["across_splits"]:
        warnings.append(
            f"image: {what['across_splits']} look nearly the same in different splits: {told['across_splits']}. Scores "
            "then come from images that were learnt: look at them in report.html, and give near-copies one group, or "
            "remove them."
        )
    if pairs["across_groups"] and not by_place:
        notes.append(
            f"image: {what['across_groups']} look nearly the same in different groups of one split: "
            f"{told['across_groups']}. Another division could put them into different splits; if they are copies or "
            "frames of one series, give them one group."
        )
    listed = [
        {"kind": kind, "samples": [[a.split, a.id], [b.split, b.id]]} for kind, each in pairs.items() for a, b in each
    ]
    return {"counts": {kind: len(each) for kind, each in pairs.items()}, "pairs": listed[:LISTED]}


def _compared(row: Row, role: str) -> Image:
    """What is compared of the input or the target of a sample."""
    digest = b"" if row.is_blank(role) else bytes.fromhex(row.digests.get(role, ""))
    return Image(row.id, row.split, row.group, row.fold, digest, row.signature)


def _count(pairs: list[tuple[Row, Row]]) -> str:
    n = len({(row.split, row.id) for pair in pairs for row in pair})
    return f"{len(pairs)} pair{'s' * (len(pairs) > 1)} of {n} images"
