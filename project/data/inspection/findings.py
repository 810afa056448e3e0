"""What an inspection says about channels: the range that is used, where values are cut off, what needs no action."""

from typing import Any

import numpy as np

from project.data.inspection.rows import Key, Row
from project.data.statistics import Histogram
from project.formatting import format_channels, format_number, format_percent, join_distinct

# The thresholds decide what is said, never what is done to the data.
EIGHT_BIT = 255  # largest value of an 8-bit image: uint16 that stays below it was most likely converted
FAR_FROM_ZERO = 0.1  # of the dtype's range: dividing by the dtype's maximum then wastes contrast
SATURATED_SHARE = 0.001  # of an image's pixels: from here on even the 99.9th percentile is cut off
NORMAL = 0.5  # share of the images: what most of them have is how these images are, and not a mistake of some
PILE = 10  # times as many pixels at the largest value as at any level next to it: cut off, not just bright
PILE_LEVELS = 16  # how many levels next to it are looked at
MIN_REFERENCE = 5  # images needed to say what is usual


def channel(key: Key, by_split: dict[str, Histogram], rows: list[Row]) -> dict[str, Any]:
    """The used range over all splits, and the statistics of each; fills in the saturated share of each image."""
    whole = Histogram(next(iter(by_split.values())).dtype)
    for histogram in by_split.values():
        whole.merge(histogram)
    summary = whole.summary()
    entry = {
        "role": key[0],
        "channel": key[1],
        **{name: summary.get(name) for name in ("dtype", "n", "n_not_finite", "n_distinct", "min", "max")},
        "dtype_max": None,
        "used_share": None,
        "bits": None,
        "step": None,
        "ceiling": ceiling(whole, key, rows),
        "splits": {name: histogram.summary() for name, histogram in by_split.items()},
    }
    if whole.exact:
        used = np.flatnonzero(whole.counts)
        entry["dtype_max"] = int(np.iinfo(whole.dtype).max)
        entry["used_share"] = (summary["max"] - summary["min"]) / entry["dtype_max"]
        entry["bits"] = float(np.log2(summary["max"] - summary["min"] + 1))
        entry["step"] = int(np.gcd.reduce(np.diff(used))) if len(used) > 1 else None
    entry["text"] = range_text(entry)
    _set_saturated(entry, rows)
    return entry


def range_text(entry: dict[str, Any]) -> str:
    """Such as "uint16, uses 9012..15034 of 0..65535 (9.2 %), 12.6 bits; 243 distinct values"."""
    if entry["min"] is None:
        return f"{entry['dtype']}, no finite value"
    text = f"{entry['dtype']}, uses {format_number(entry['min'])}..{format_number(entry['max'])}"
    if entry["dtype_max"]:
        text += f" of 0..{entry['dtype_max']} ({format_percent(entry['used_share'])}), {entry['bits']:.1f} bits"
        text += f"; {entry['n_distinct']} distinct values"
    if entry["n_not_finite"]:
        text += f"; {entry['n_not_finite']} pixels NaN or infinite"
    return text


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


def _set_saturated(entry: dict[str, Any], rows: list[Row]) -> None:
    """Fill in the share of pixels at the ceiling, of each image and of each split, and how many images are saturated.

    White that most inputs reach is how these images are: background, paper, a drawing. In a target, whose values are to
    be predicted, it is a loss however many have it.
    """
    key, totals, saturated = (entry["role"], entry["channel"]), dict.fromkeys(entry["splits"], 0.0), 0
    for row in rows:
        values = row.values[key]
        if values["max"] is not None:
            values["saturated_share"] = values["share_at_max"] if values["max"] == entry["ceiling"] else 0.0
            saturated += values["saturated_share"] > SATURATED_SHARE
            totals[row.split] += values["saturated_share"] * (row.size[0] * row.size[1] - values["n_not_finite"])
    entry["saturated"] = {split: total / max(entry["splits"][split]["n"], 1) for split, total in totals.items()}
    entry["n_saturated"] = saturated
    entry["white_is_normal"] = (
        entry["role"] != "target" and len(rows) >= MIN_REFERENCE and saturated > NORMAL * len(rows)
    )


def notes(channels: list[dict[str, Any]], rows: list[Row]) -> list[str]:
    """What is worth knowing and needs nothing done, since scaling follows the used range; once per role."""
    found = []
    for role in dict.fromkeys(entry["role"] for entry in channels):
        own = [entry for entry in channels if entry["role"] == role and entry["dtype_max"]]
        for applies, tell in _NOTES:
            if which := [entry for entry in own if applies(entry, rows)]:
                found.append(
                    f"{format_channels(role, [entry['channel'] for entry in which])}: {tell(which, len(rows))}"
                )
    return found


def _is_eight_bit(entry: dict[str, Any], _: list[Row]) -> bool:
    return bool(entry["dtype"] == "uint16" and entry["max"] <= EIGHT_BIT)


def _tell_eight_bit(entries: list[dict[str, Any]], _: int) -> str:
    return (
        f"8-bit values in uint16 files (largest value {join_distinct([format_number(e['max']) for e in entries])}). Whatever divides "  # noqa: E501
        "by 65535 makes them black; scale by the training statistics."
    )


def _is_stepped(entry: dict[str, Any], rows: list[Row]) -> bool:
    return entry["dtype"] == "uint16" and (entry["step"] or 1) > 1 and not _is_eight_bit(entry, rows)


def _tell_stepped(entries: list[dict[str, Any]], _: int) -> str:
    steps = join_distinct([str(e["step"]) for e in entries])
    bits = join_distinct(
        [f"{e['bits'] - np.log2(e['step']):.1f} bits were stretched to {e['bits']:.1f}" for e in entries]
    )
    return f"all values are {steps} apart, so {bits}. Nothing is lost, but the numbers are not camera counts."


def _is_far(entry: dict[str, Any], _: list[Row]) -> bool:
    return bool(entry["min"] > FAR_FROM_ZERO * entry["dtype_max"])


def _tell_far(entries: list[dict[str, Any]], _: int) -> str:
    return (
        f"the values lie far from zero (smallest {join_distinct([format_number(e['min']) for e in entries])}, at "
        f"{join_distinct([format_percent(e['min'] / e['dtype_max']) for e in entries])} of the dtype's range). Padding with 0 or "  # noqa: E501
        "dividing by the dtype's maximum would spoil them; scale by the training statistics."
    )


def _is_stretched(entry: dict[str, Any], rows: list[Row]) -> bool:
    values, top = [row.values[entry["role"], entry["channel"]] for row in rows], entry["dtype_max"]
    stretched = all(v["max"] == top and v["share_at_max"] <= SATURATED_SHARE for v in values)
    return len(rows) >= MIN_REFERENCE and stretched and entry["n_distinct"] > 2


def _tell_stretched(entries: list[dict[str, Any]], _: int) -> str:
    return (
        f"every image reaches {join_distinct([str(e['dtype_max']) for e in entries])}, as if each had been stretched by itself. "  # noqa: E501
        "Brightness can then not be compared between images; prefer files as the camera wrote them."
    )


def _is_white(entry: dict[str, Any], _: list[Row]) -> bool:
    return bool(entry["white_is_normal"])


def _tell_white(entries: list[dict[str, Any]], total: int) -> str:
    counts, tops = (
        join_distinct([str(e["n_saturated"]) for e in entries]),
        join_distinct([format_number(e["ceiling"]) for e in entries]),
    )
    return (
        f"{counts} of {total} images have more than {format_percent(SATURATED_SHARE)} of the pixels at the largest value, "  # noqa: E501
        f"{tops}: white is normal here, so no image is called saturated. Nothing to do for drawings and scans; in "
        "images of a camera, differences within the white are lost: expose less next time."
    )


_NOTES = (
    (_is_eight_bit, _tell_eight_bit),
    (_is_stepped, _tell_stepped),
    (_is_far, _tell_far),
    (_is_stretched, _tell_stretched),
    (_is_white, _tell_white),
)
