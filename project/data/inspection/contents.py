"""Contents of a dataset: value ranges and saturation of channels, sizes, classes, objects."""

from collections import Counter
from typing import Any

import numpy as np

from project.data.inspection.measure import Channel, Measures
from project.data.raw.labels import describe_misspelt
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
    values, columns, splits = measures.values[entry["role"], entry["channel"]], measures.columns, measures.splits
    share = values["saturated_share"] = np.where(values["max"] == entry["ceiling"], values["share_at_max"], 0.0)
    pixels = share * (columns["height"] * columns["width"] - values["n_not_finite"])
    entry["saturated"] = {s: float(pixels[splits == s].sum() / max(n["n"], 1)) for s, n in entry["splits"].items()}
    is_common = len(share) >= MIN_REFERENCE and (share > SATURATED_SHARE).mean() > MOST_IMAGES
    entry["white_is_normal"] = bool(entry["role"] != "target" and is_common)


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


def count_sizes(readers: dict[str, SplitReader]) -> list[dict[str, Any]]:
    """Number of images of each size in pixels, the commonest first."""
    counts = {split: Counter(shape[-2:] for shape in reader.shapes["image"]) for split, reader in readers.items()}
    return [
        {"height": size[0], "width": size[1], "n": n, "splits": {split: of[size] for split, of in counts.items()}}
        for size, n in sorted(sum(counts.values(), Counter()).items(), key=lambda item: (-item[1], item[0]))
    ]


def count_classes(readers: dict[str, SplitReader], warnings: list[str]) -> dict[str, Any]:
    """Pixels per class of the mask, and images per label: "mask" or "label" -> split -> class -> count and share.

    Shares are of the annotated pixels or of the images; several classes per image need not add up to 1. `warnings`
    receives sentences on classes that are missing or rare.
    """
    attributes, result = next(iter(readers.values())).attributes, dict[str, Any]()
    for kind, counted in {"mask": "mask_counts", "label": "label_counts"}.items():
        counts = {s: n.sum(0) for s, reader in readers.items() if (n := getattr(reader, counted)) is not None}
        k = max(map(len, counts.values()), default=0)  # without names of classes, a split has those that occur in it
        names = (attributes.get("classes") or {}).get(kind) or [str(number) for number in range(k)]
        for split, of_split in counts.items():
            total = max(int(of_split.sum()) if kind == "mask" else len(readers[split]), 1)
            padded = zip(names, np.pad(of_split, (0, k - len(of_split))).tolist(), strict=True)
            by_class = {name: {"count": n, "share": n / total} for name, n in padded}
            result.setdefault(kind, {})[split] = by_class
        if kind in result:
            _warn_of_classes(kind, result[kind], warnings)
    for split, by_class in result.get("mask", {}).items() if attributes.get("ignore_index") is not None else ():
        n_pixels = sum(height * width for height, width in readers[split].shapes["mask"])
        annotated = sum(numbers["count"] for numbers in by_class.values())
        by_class["not annotated"] = {"count": n_pixels - annotated, "share": None}
    return result


def _warn_of_classes(kind: str, by_split: dict[str, Any], warnings: list[str]) -> None:
    """Add sentences on classes that are missing in a split, rare in training, or perhaps misspelt."""
    if kind == "label":
        of_splits = [Counter({name: n["count"] for name, n in by_class.items()}) for by_class in by_split.values()]
        warnings += describe_misspelt(sum(of_splits, Counter[str]()))
    for split, by_class in by_split.items():
        if missing := [name for name, numbers in by_class.items() if not numbers["count"]]:
            problem = "it cannot be learned" if split == "train" else "its score is undefined there"
            n = min(sum(by_class[name]["count"] for by_class in by_split.values()) for name in missing)
            advice = "Split in another way"
            if kind == "label" and n < len(by_split):
                advice = f"The dataset has only {n} of its images: add some, or leave it out"
            warnings.append(f"{kind}: {split} holds no {first_few(missing, 'report.json')}; {problem}. {advice}.")
        shares = {name: numbers["share"] for name, numbers in by_class.items()}
        rare = [f"{name} ({format_percent(share)})" for name, share in shares.items() if 0 < share < RARE_CLASS]
        if rare and split == "train":
            warnings.append(
                f"{kind}: rare in train: {first_few(rare, 'report.json')}. Weight the loss, sample these images more "
                "often, and look at scores per class."
            )


def count_objects(measures: Measures) -> dict[str, Any]:
    """Objects per image in each split: mean, median, min, max, and number of images without any."""
    result = {}
    for split in measures.readers:
        n = measures.columns["objects"][measures.splits == split]
        if not np.isnan(n).any():
            result[split] = {"mean": float(n.mean()), "median": float(np.median(n)), "min": int(n.min())}
            result[split] |= {"max": int(n.max()), "n_without": int((n == 0).sum())}
    return result
