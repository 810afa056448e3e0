"""Contents of a dataset: value ranges and saturation of channels, sizes, classes, objects."""

from collections import Counter
from typing import Any

import numpy as np

from project.data.inspection.measure import Channel, Measures
from project.data.statistics import Histogram
from project.data.store import SplitReader
from project.formatting import first_few, format_number, format_percent

# The thresholds decide what is reported, never what is done to the data.
SATURATED_SHARE = 0.001  # of an image's pixels: from here on even the 99.9th percentile is cut off
MOST_IMAGES = 0.5  # share of the images: what most of them have is normal, and not a mistake of some
PILE = 10  # times as many pixels at the largest value as at any value near it: cut off, not just bright
PILE_NEIGHBORS = 16  # values near it that are compared
RARE_CLASS = 0.01  # share below which a class is hardly learned without weights
MIN_REFERENCE = 5  # images needed to say what is normal
LEAST_SPREAD = 0.1  # of the means, in standard deviations of the pixels: smaller shifts never matter


def describe_channel(channel: Channel, measures: Measures) -> dict[str, Any]:
    """Range and statistics of a channel over all splits and in each; adds saturated share and z of each image."""
    by_split = measures.histograms[channel]
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
        "ceiling": find_ceiling(whole, measures.values[channel]),
        "splits": {name: histogram.summary() for name, histogram in by_split.items()},
    }
    entry["text"] = describe_range(entry)
    _measure_saturation(entry, measures)
    _measure_z(entry, measures)
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


def find_ceiling(whole: Histogram, values: dict[str, np.ndarray]) -> float | None:
    """The value at which pixels are cut off, or None: the dtype's largest, or one at which pixels pile up.

    `values` are the measures of each image.
    """
    occurring, counts = whole.values()
    if len(occurring) <= 2:
        return None  # a binary image is not saturated
    if not whole.exact:  # two equal floats are rare by chance
        share = values["share_at_max"][values["max"] == whole.high].max(initial=0)
        return float(whole.high) if share > SATURATED_SHARE else None
    is_top = occurring[-1] == np.iinfo(whole.dtype).max
    near = counts[-1 - PILE_NEIGHBORS : -1]
    is_pile = len(near) == PILE_NEIGHBORS and counts[-1] >= PILE * near.max()
    return float(occurring[-1]) if is_top or is_pile else None


def _measure_saturation(entry: dict[str, Any], measures: Measures) -> None:
    """Add the share of pixels at the ceiling, of each image and each split, and whether that is normal.

    White in most inputs is normal: background, paper, a drawing. In a target, whose values are predicted, it is a loss
    however many have it.
    """
    values, columns, n_images = measures.values[entry["role"], entry["channel"]], measures.columns, len(measures.images)
    share = np.where(values["max"] == entry["ceiling"], values["share_at_max"], 0.0)
    n_saturated = share * (columns["height"] * columns["width"] - values["n_not_finite"])  # pixels
    values["saturated_share"] = share
    entry["saturated"] = {
        name: float(n_saturated[measures.splits == name].sum() / max(split["n"], 1))
        for name, split in entry["splits"].items()
    }
    enough = n_images >= MIN_REFERENCE and (share > SATURATED_SHARE).sum() > MOST_IMAGES * n_images
    entry["white_is_normal"] = bool(entry["role"] != "target" and enough)


def _measure_z(entry: dict[str, Any], measures: Measures) -> None:
    """Add the robust z of each image's mean, and what is "usual": mean, spread and contrast.

    z = (mean - median) / (1.4826 MAD) over the training images (all where there are none): Iglewicz and Hoaglin, "How
    to detect and handle outliers" (1993), with a floor for the spread.
    """
    values, training = measures.values[entry["role"], entry["channel"]], measures.splits == "train"
    known = np.isfinite(values["mean"]) & (training if training.any() else True)
    values["z"], entry["usual"] = np.full(len(known), np.nan), None
    if known.sum() < MIN_REFERENCE:
        return
    means, stds, contrasts = (values[name][known] for name in ("mean", "std", "contrast"))
    median = np.median(means)
    spread = max(1.4826 * np.median(np.abs(means - median)), LEAST_SPREAD * np.median(stds))
    entry["usual"] = {"mean": float(median), "spread": float(spread), "contrast": float(np.median(contrasts))}
    if spread:
        values["z"] = (values["mean"] - median) / spread


def count_sizes(measures: Measures) -> list[dict[str, Any]]:
    """Number of images of each size in pixels, the commonest first."""
    sizes = list(zip(*(measures.columns[name].astype(int).tolist() for name in ("height", "width")), strict=True))
    counts, total = Counter(zip(sizes, measures.splits.tolist(), strict=True)), Counter(sizes)
    return [
        {"height": size[0], "width": size[1], "n": n, "splits": {name: counts[size, name] for name in measures.readers}}
        for size, n in sorted(total.items(), key=lambda item: (-item[1], item[0]))
    ]


def count_classes(readers: dict[str, SplitReader], warnings: list[str]) -> dict[str, Any]:
    """Pixels per class of the mask, and images per label: "mask" or "label" -> split -> class -> count and share.

    Shares are of the annotated pixels or of the images; several classes per image need not add up to 1. `warnings`
    receives sentences on classes that are missing or rare.
    """
    attributes, result = next(iter(readers.values())).attributes, {}
    for kind, counted in {"mask": "mask_counts", "label": "label_counts"}.items():
        if counts := {s: n.sum(0) for s, reader in readers.items() if (n := getattr(reader, counted)) is not None}:
            k = max(map(len, counts.values()))  # without names of classes, a split has those that occur in it
            counts = {s: np.pad(n, (0, k - len(n))) for s, n in counts.items()}
            totals = {s: n.sum() if kind == "mask" else len(readers[s]) for s, n in counts.items()}
            result[kind] = _shares(kind, counts, totals, (attributes.get("classes") or {}).get(kind), warnings)
    for split, by_class in result.get("mask", {}).items() if attributes.get("ignore_index") is not None else ():
        n_pixels = sum(height * width for height, width in readers[split].shapes["mask"])
        annotated = sum(numbers["count"] for numbers in by_class.values())
        by_class["not annotated"] = {"count": n_pixels - annotated, "share": None}
    return result


def _shares(
    kind: str, counts: dict[str, np.ndarray], totals: dict[str, int], names: list[str] | None, warnings: list[str]
) -> dict[str, Any]:
    """Split -> class -> {"count", "share"}, from split -> (K,) counts and what they are a share of."""
    total = np.sum(list(counts.values()), axis=0).tolist()
    names = names or [str(k) for k in range(len(next(iter(counts.values()))))]
    result: dict[str, Any] = {}
    for split, by_class in counts.items():
        shares = dict(zip(names, (by_class / max(totals[split], 1)).tolist(), strict=True))
        result[split] = {
            name: {"count": int(n), "share": shares[name]} for name, n in zip(names, by_class, strict=True)
        }
        if missing := [name for name, share in shares.items() if share == 0]:
            problem = "it cannot be learned" if split == "train" else "its score is undefined there"
            n = min(count for name, count in zip(names, total, strict=True) if name in missing)
            advice = "Split in another way"
            if kind == "label" and n < len(counts):
                advice = f"The dataset has only {n} of its images: add some, or leave it out"
            warnings.append(f"{kind}: {split} holds no {first_few(missing, 'report.json')}; {problem}. {advice}.")
        rare = [f"{name} ({format_percent(share)})" for name, share in shares.items() if 0 < share < RARE_CLASS]
        if rare and split == "train":
            warnings.append(
                f"{kind}: rare in train: {first_few(rare, 'report.json')}. Weight the loss, sample these images more "
                "often, and look at scores per class."
            )
    return result


def count_objects(measures: Measures, warnings: list[str]) -> dict[str, Any]:
    """Objects per image in each split: mean, median, min, max, and number of images without any."""
    objects, result = measures.columns["objects"], {}
    if np.isfinite(objects).sum() > 1 and np.nanmax(objects) == 1:
        warnings.append(
            "instances: no image holds more than one object number. If this is an image of foreground and background, "
            "use `mask` instead, or number the objects first."
        )
    for split in measures.readers:
        n = objects[measures.splits == split]
        if not np.isnan(n).any():
            result[split] = {"mean": float(n.mean()), "median": float(np.median(n)), "min": int(n.min())}
            result[split] |= {"max": int(n.max()), "n_without": int((n == 0).sum())}
    return result
