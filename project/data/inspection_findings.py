"""What an inspection says about the numbers: thresholds with their reasons, and plain sentences."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from project.data.statistics import Histogram

# The thresholds decide what is said, never what is done to the data.
EIGHT_BIT = 255  # largest value of an 8-bit image: uint16 that stays below it was most likely converted
FAR_FROM_ZERO = 0.1  # of the dtype's range: dividing by the dtype's maximum then wastes contrast
SATURATED_SHARE = 0.001  # of an image's pixels: from here on even the 99.9th percentile is cut off
PILE = 10  # times as many pixels at the largest value as at any level next to it: cut off, not just bright
PILE_LEVELS = 16  # how many levels next to it are looked at
BRIGHTER = 2.0  # factor between means: more than a lamp or a stain differs from day to day
SHIFTED = 3.0  # difference of means in standard deviations of the pixels of an image: the bulks do not overlap
NOTICEABLE = 0.25  # the same: below it, a factor of BRIGHTER comes from a few sparse pixels
UNUSUAL_Z = 6.0  # robust z of an image's mean: skewed fluorescence reaches 3 to 5 with nothing wrong
UNUSUAL_FLOOR = 0.1  # least spread for that z, in standard deviations of the pixels: smaller shifts never matter
MIN_REFERENCE = 5  # images needed to say what is usual
RARE_CLASS = 0.01  # share below which a class is hardly learnt without weights
FEW = 4  # places named in one sentence

Key = tuple[str, str]


@dataclass
class Row:
    """What is measured on one sample.

    Attributes:
        split, id, group: Which sample.
        label: Class number, several where an image may have several classes, or None.
        size: (H, W) in pixels.
        values: (role, channel) -> the measures of `images.csv`; None where no pixel is finite.
        digests: Role -> SHA-256 of its pixels.
        objects: Number of objects in `instances`, or None.
        batch: Between what brightness is compared: the group, or the folder in the id where each sample is a group.
    """

    split: str
    id: str
    group: str
    label: int | tuple[int, ...] | None
    size: tuple[int, ...]
    values: dict[Key, dict[str, Any]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    objects: int | None = None
    batch: str = ""

    def __str__(self) -> str:
        return f"{self.id} ({self.split})"


def number(value: float | None) -> str:
    """A number for people: 4 digits, or the whole part."""
    if value is None:
        return "-"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def percent(share: float | None) -> str:
    """A share in per cent; a little is never shown as nothing, and nearly all never as all."""
    if share is None or share in (0, 1):
        return "-" if share is None else f"{share * 100:.0f} %"
    return f"{share * 100:.2g} %" if share < 0.1 else f"{min(share * 100, 99.9):.3g} %"


def some(places: Sequence[Any], rest: str = "images.csv") -> str:
    """The first few places, how many more there are, and in which file."""
    more = f" and {len(places) - FEW} more (see {rest})" if len(places) > FEW else ""
    return ", ".join(str(place) for place in places[:FEW]) + more


def of(count: int, total: int, what: str = "image") -> str:
    """Such as "1 of 8 images has" or "3 of 8 images have"."""
    return f"{count} of {total} {what}s {'has' if count == 1 else 'have'}"


def reference(rows: list[Row]) -> list[Row]:
    """What is usual is what the model learns from: the training split, if there is one."""
    return [row for row in rows if row.split == "train"] or rows


def set_batches(rows: list[Row]) -> None:
    """Choose between what brightness is compared."""
    own_groups = len({row.group for row in rows}) == len(rows)
    for row in rows:
        row.batch = row.id.rpartition("/")[0] if own_groups else row.group


def range_text(entry: dict[str, Any]) -> str:
    """Such as "uint16, uses 9012..15034 of 0..65535 (9.2 %), 12.6 bits; 243 distinct values"."""
    if entry["min"] is None:
        return f"{entry['dtype']}, no finite value"
    text = f"{entry['dtype']}, uses {number(entry['min'])}..{number(entry['max'])}"
    if entry["dtype_max"]:
        text += f" of 0..{entry['dtype_max']} ({percent(entry['used_share'])}), {entry['bits']:.1f} bits"
        text += f"; {entry['n_distinct']} distinct values"
    if entry["n_not_finite"]:
        text += f"; {entry['n_not_finite']} pixels NaN or infinite"
    return text


def notes(entry: dict[str, Any], rows: list[Row]) -> list[str]:
    """What is worth knowing about a channel and needs nothing done, since scaling follows the used range."""
    name, top = f"{entry['role']}/{entry['channel']}", entry["dtype_max"]
    if not top:
        return []
    found = []
    if entry["dtype"] == "uint16" and entry["max"] <= EIGHT_BIT:
        found.append(
            f"{name}: 8-bit values in uint16 files (largest value {entry['max']:.0f}). Whatever divides by 65535 makes "
            "them black; scale by the training statistics."
        )
    elif entry["dtype"] == "uint16" and (entry["step"] or 1) > 1:
        found.append(
            f"{name}: all values are {entry['step']} apart, so {entry['bits'] - np.log2(entry['step']):.1f} bits were "
            f"stretched to {entry['bits']:.1f}. Nothing is lost, but the numbers are not camera counts."
        )
    if entry["min"] > FAR_FROM_ZERO * top:
        found.append(
            f"{name}: the values lie far from zero (smallest {number(entry['min'])}, at {percent(entry['min'] / top)} "
            "of the dtype's range). Padding with 0 or dividing by the dtype's maximum would spoil them; scale by the "
            "training statistics."
        )
    values = [row.values[entry["role"], entry["channel"]] for row in rows]
    stretched = all(v["max"] == top and v["share_at_max"] <= SATURATED_SHARE for v in values)
    if len(rows) >= MIN_REFERENCE and stretched and entry["n_distinct"] > 2:
        found.append(
            f"{name}: every image reaches {top}, as if each had been stretched by itself. Brightness can then not be "
            "compared between images; prefer files as the camera wrote them."
        )
    return found


def ceiling(whole: Histogram, key: Key, rows: list[Row]) -> float | None:
    """The value at which pixels are cut off, or None: the dtype's largest, or one at which pixels pile up."""
    used = np.flatnonzero(whole.counts)
    if len(used) <= 2:
        return None  # a binary picture is not saturated
    if whole.exact and used[-1] == np.iinfo(whole.dtype).max:
        return float(used[-1])
    if len(used) <= PILE_LEVELS:
        return None
    if whole.exact:
        piled = whole.counts[used[-1]] >= PILE * whole.counts[used[-1 - PILE_LEVELS : -1]].max()
        return float(used[-1]) if piled else None
    # Two equal floats are rare by chance.
    at_top = [r.values[key]["share_at_max"] * r.size[0] * r.size[1] for r in rows if r.values[key]["max"] == whole.high]
    return float(whole.high) if sum(at_top) >= PILE else None


def set_saturated(rows: list[Row], channels: list[dict[str, Any]]) -> None:
    """Fill in the share of pixels at the ceiling, of each image and of each split."""
    for entry in channels:
        key, totals = (entry["role"], entry["channel"]), dict.fromkeys(entry["splits"], 0.0)
        for row in rows:
            values = row.values[key]
            if values["max"] is not None:
                values["saturated_share"] = values["share_at_max"] if values["max"] == entry["ceiling"] else 0.0
                totals[row.split] += values["saturated_share"] * (row.size[0] * row.size[1] - values["n_not_finite"])
        entry["saturated"] = {split: total / max(entry["splits"][split]["n"], 1) for split, total in totals.items()}


def set_unusual(rows: list[Row], channels: list[dict[str, Any]]) -> dict[Key, tuple[float, float]]:
    """Fill in how far each image's mean lies from the usual one, as a robust z.

    z = (mean - median) / (1.4826 MAD) over the training images: Iglewicz and Hoaglin, "How to detect and handle
    outliers" (1993), with a floor for the spread.

    Returns:
        (role, channel) -> usual mean, usual spread.
    """
    usual = {}
    for key in ((entry["role"], entry["channel"]) for entry in channels):
        known = [row.values[key] for row in reference(rows) if row.values[key]["mean"] is not None]
        if len(known) < MIN_REFERENCE:
            continue
        means = np.array([values["mean"] for values in known])
        middle = float(np.median(means))
        mad = 1.4826 * float(np.median(np.abs(means - middle)))
        spread = max(mad, UNUSUAL_FLOOR * float(np.median([values["std"] for values in known])))
        if spread == 0:
            continue
        usual[key] = middle, spread
        for values in (row.values[key] for row in rows):
            values["z"] = None if values["mean"] is None else (values["mean"] - middle) / spread
    return usual


def images(
    rows: list[Row], channels: list[dict[str, Any]], usual: dict[Key, tuple[float, float]], warnings: list[str]
) -> dict[str, Any]:
    """Single images that stand out: not finite, constant, saturated, of unusual brightness, copies."""
    found: dict[str, Any] = {"not_finite": {}, "constant": {}, "saturated": {}, "unusual": {}}
    for entry in channels:
        key, name = (entry["role"], entry["channel"]), f"{entry['role']}/{entry['channel']}"
        picked = _pick(rows, key)
        for kind, chosen in picked.items():
            found[kind][name] = [[row.split, row.id] for row in chosen]
        warnings += _image_sentences(name, key, picked, len(rows), entry, usual.get(key))
    found["duplicates"] = _duplicates(rows, warnings)
    same = [r for r in rows if r.digests.get("target") == r.digests["image"]]
    if same:
        warnings.append(
            f"target: {of(len(same), len(rows), 'sample')} a target that is the input, pixel for pixel: {some(same)}. "
            "Check the file patterns of the dataset."
        )
    found["target_is_image"] = [[row.split, row.id] for row in same]
    return found


def _pick(rows: list[Row], key: Key) -> dict[str, list[Row]]:
    known = [row for row in rows if row.values[key]["mean"] is not None]
    saturated = [row for row in known if row.values[key]["saturated_share"] > SATURATED_SHARE]
    unusual = [row for row in known if abs(row.values[key]["z"] or 0) > UNUSUAL_Z]
    return {
        "not_finite": [row for row in rows if row.values[key]["n_not_finite"]],
        "constant": [row for row in known if row.values[key]["min"] == row.values[key]["max"]],
        "saturated": sorted(saturated, key=lambda row: -row.values[key]["saturated_share"]),
        "unusual": sorted(unusual, key=lambda row: -abs(row.values[key]["z"])),
    }


def _image_sentences(
    name: str,
    key: Key,
    picked: dict[str, list[Row]],
    total: int,
    entry: dict[str, Any],
    usual: tuple[float, float] | None,
) -> list[str]:
    def told(kind: str, measure: str, show: Any) -> str:
        return some([f"{row.id} ({row.split}, {show(row.values[key][measure])})" for row in picked[kind]])

    count = {kind: of(len(rows), total) for kind, rows in picked.items()}
    said = {
        "not_finite": f"{count['not_finite']} NaN or infinite pixels: {told('not_finite', 'n_not_finite', str)}. The "
        "loss becomes NaN with them; mend or leave out these files.",
        "constant": f"{count['constant']} one value everywhere: {told('constant', 'max', number)}. There is nothing to "
        "learn from them, and correlation is undefined; leave them out unless they are meant.",
        "saturated": f"{count['saturated']} more than {percent(SATURATED_SHARE)} of the pixels at the largest value, "
        f"{number(entry['ceiling'])}: {told('saturated', 'saturated_share', percent)}. What was brighter is lost; "
        "expose less, or leave them out.",
    }
    if usual:
        said["unusual"] = (
            f"{count['unusual']} a mean far from the usual {number(usual[0])} ± {number(usual[1])} (robust z above "
            f"{UNUSUAL_Z:g}): {told('unusual', 'mean', lambda mean: f'mean {number(mean)}')}. Look at them: another "
            "exposure, an empty field, a wrong channel?"
        )
    return [f"{name}: {sentence}" for kind, sentence in said.items() if picked[kind]]


def _duplicates(rows: list[Row], warnings: list[str]) -> list[dict[str, Any]]:
    """Samples whose pixels are exactly the same, by role."""
    found = []
    for role in ("image", "target"):
        places: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            places[row.digests.get(role, "")].append(row)
        places.pop("", None)
        for across in (True, False):
            copies = [c for c in places.values() if len(c) > 1 and (len({r.split for r in c}) > 1) == across]
            found += [{"role": role, "across_splits": across, "samples": [[r.split, r.id] for r in c]} for c in copies]
            if copies:
                told = some([" = ".join(str(row) for row in c[:FEW]) for c in copies])
                what = f"{role}: {len(copies)} {role}{'s stand' if len(copies) > 1 else ' stands'} more than once"
                do = (
                    "in different splits, so that no score is independent: {}. Give copies one group, or remove them."
                    if across
                    else "in one split: {}. Remove copies, or they count several times."
                )
                warnings.append(f"{what} {do.format(told)}")
    return found
