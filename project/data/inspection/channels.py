"""Value ranges of channels: the range that is used, saturation, and properties that need no action."""

from collections import defaultdict
from typing import Any

import numpy as np

from project.data.inspection.measure import Channel, ImageMeasures
from project.data.statistics import Histogram
from project.formatting import format_channels, format_number, format_percent, join_distinct

# The thresholds decide what is reported, never what is done to the data.
EIGHT_BIT = 255  # largest value of an 8-bit image: uint16 that stays below it was most likely converted
FAR_FROM_ZERO = 0.1  # of the dtype's range: dividing by the dtype's maximum then wastes contrast
SATURATED_SHARE = 0.001  # of an image's pixels: from here on even the 99.9th percentile is cut off
MOST_IMAGES = 0.5  # share of the images: what most of them have is normal, and not a mistake of some
PILE = 10  # times as many pixels at the largest value as at any value near it: cut off, not just bright
PILE_NEIGHBORS = 16  # values near it that are compared
MIN_REFERENCE = 5  # images needed to say what is normal

NOTES = {
    "eight_bit": "8-bit values in uint16 files (largest value {}). Dividing by 65535 makes them black; normalize by "
    "the training statistics.",
    "far": "values far from zero (smallest {} of the dtype's range). Padding with 0 or dividing by the dtype's maximum "
    "would spoil them; normalize by the training statistics.",
    "white": f"{{}} have more than {format_percent(SATURATED_SHARE)} of the pixels at the largest value: white is "
    "normal here, so no image is reported as saturated. In camera images, differences within the white are lost.",
}


def describe_channel(channel: Channel, by_split: dict[str, Histogram], images: list[ImageMeasures]) -> dict[str, Any]:
    """Range and statistics of a channel over all splits and in each; fills in the saturated share of each image."""
    whole = Histogram(next(iter(by_split.values())).dtype)
    for histogram in by_split.values():
        whole.merge(histogram)
    summary = whole.summary()
    entry = {
        "name": "/".join(channel),
        "role": channel[0],
        "channel": channel[1],
        **{name: summary.get(name) for name in ("dtype", "n", "n_not_finite", "n_distinct", "min", "max")},
        "dtype_max": int(np.iinfo(whole.dtype).max) if whole.exact else None,
        "ceiling": find_ceiling(whole, [image.values[channel] for image in images]),
        "splits": {name: histogram.summary() for name, histogram in by_split.items()},
    }
    entry["text"] = describe_range(entry)
    _measure_saturation(entry, images)
    return entry


def describe_range(entry: dict[str, Any]) -> str:
    """Such as "uint16, uses 9012..15034 of 0..65535 (9.2 %); 243 distinct values"."""
    if entry["min"] is None:
        return f"{entry['dtype']}, no finite value"
    text = f"{entry['dtype']}, uses {format_number(entry['min'])}..{format_number(entry['max'])}"
    if top := entry["dtype_max"]:
        share = (entry["max"] - entry["min"]) / top
        text += f" of 0..{top} ({format_percent(share)}); {entry['n_distinct']} distinct values"
    return text + (f"; {entry['n_not_finite']} pixels NaN or infinite" if entry["n_not_finite"] else "")


def find_ceiling(whole: Histogram, values: list[dict[str, Any]]) -> float | None:
    """The value at which pixels are cut off, or None: the dtype's largest, or one at which pixels pile up.

    `values` are the measures of each image.
    """
    occurring, counts = whole.values()
    if len(occurring) <= 2:
        return None  # a binary image is not saturated
    if not whole.exact:  # two equal floats are rare by chance
        share = max((v["share_at_max"] for v in values if v["max"] == whole.high), default=0)
        return float(whole.high) if share > SATURATED_SHARE else None
    is_top = occurring[-1] == np.iinfo(whole.dtype).max
    near = counts[-1 - PILE_NEIGHBORS : -1]
    is_pile = len(near) == PILE_NEIGHBORS and counts[-1] >= PILE * near.max()
    return float(occurring[-1]) if is_top or is_pile else None


def _measure_saturation(entry: dict[str, Any], images: list[ImageMeasures]) -> None:
    """Fill in the share of pixels at the ceiling, of each image and each split, and whether that is normal.

    White in most inputs is normal: background, paper, a drawing. In a target, whose values are predicted, it is a loss
    however many have it.
    """
    channel, totals = (entry["role"], entry["channel"]), dict.fromkeys(entry["splits"], 0.0)
    for image in images:
        values = image.values[channel]
        if values["max"] is not None:
            values["saturated_share"] = values["share_at_max"] if values["max"] == entry["ceiling"] else 0.0
            totals[image.split] += values["saturated_share"] * (np.prod(image.size) - values["n_not_finite"])
    entry["saturated"] = {name: float(total / max(entry["splits"][name]["n"], 1)) for name, total in totals.items()}
    n = sum(bool((image.values[channel]["saturated_share"] or 0) > SATURATED_SHARE) for image in images)
    enough = len(images) >= MIN_REFERENCE and n > MOST_IMAGES * len(images)
    entry["n_saturated"], entry["white_is_normal"] = n, entry["role"] != "target" and enough


def channel_notes(channels: list[dict[str, Any]], images: list[ImageMeasures]) -> list[str]:
    """Sentences on what is worth knowing and needs no action; one for all channels of a role."""
    properties: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for entry in channels:
        for kind, detail in _properties(entry, images).items() if entry["dtype_max"] else ():
            properties[entry["role"], kind][entry["channel"]] = detail
    return [
        f"{format_channels(role, list(details))}: {NOTES[kind].format(join_distinct(list(details.values())))}"
        for (role, kind), details in properties.items()
    ]


def _properties(entry: dict[str, Any], images: list[ImageMeasures]) -> dict[str, str]:
    """Those of `NOTES` that a channel of integers has -> the number that the sentence gives."""
    result, low, top = {}, entry["min"], entry["dtype_max"]
    if entry["dtype"] == "uint16" and entry["max"] <= EIGHT_BIT:
        result["eight_bit"] = format_number(entry["max"])
    if low > FAR_FROM_ZERO * top:
        result["far"] = f"{format_number(low)}, at {format_percent(low / top)}"
    if entry["white_is_normal"]:
        ceiling = format_number(entry["ceiling"])
        result["white"] = f"{entry['n_saturated']} of {len(images)} images (largest value {ceiling})"
    return result
