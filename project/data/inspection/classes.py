"""Sizes, classes and objects of a dataset: how often each occurs in each split."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from project.data.inspection.measure import ImageMeasures
from project.data.store import SplitReader
from project.formatting import first_few, format_percent

RARE_CLASS = 0.01  # share below which a class is hardly learned without weights


def count_sizes(images: list[ImageMeasures]) -> list[dict[str, Any]]:
    """Number of images of each size in pixels, the commonest first."""
    splits = dict.fromkeys(image.split for image in images)
    counts = Counter((image.size, image.split) for image in images)
    total = Counter(image.size for image in images)
    return [
        {"height": size[0], "width": size[1], "n": n, "splits": {name: counts[size, name] for name in splits}}
        for size, n in sorted(total.items(), key=lambda item: (-item[1], item[0]))
    ]


def count_classes(readers: dict[str, SplitReader], warnings: list[str]) -> dict[str, Any]:
    """Pixels per class of the mask, and images per label: "mask" or "label" -> split -> class -> count and share.

    Shares are of the annotated pixels or of the images; several classes per image need not add up to 1. `warnings`
    receives sentences on classes that are missing or rare.
    """
    attributes, result = next(iter(readers.values())).attributes, {}
    names = attributes.get("classes") or {}
    if masks := {split: reader.mask_counts for split, reader in readers.items() if reader.mask_counts is not None}:
        counts = {split: array.sum(0) for split, array in masks.items()}
        result["mask"] = _shares("mask", counts, {s: c.sum() for s, c in counts.items()}, names.get("mask"), warnings)
        if attributes.get("ignore_index") is not None:
            for split, array in counts.items():
                n_pixels = sum(height * width for height, width in readers[split].shapes["mask"])
                result["mask"][split]["not annotated"] = {"count": n_pixels - int(array.sum()), "share": None}
    if labels := {split: reader.labels for split, reader in readers.items() if reader.labels is not None}:
        n_classes = len(names.get("label") or ()) or int(max(array.max() for array in labels.values())) + 1
        counts = {
            split: array.sum(0) if array.ndim == 2 else np.bincount(array, minlength=n_classes)
            for split, array in labels.items()
        }
        totals = {split: len(array) for split, array in labels.items()}
        result["label"] = _shares("label", counts, totals, names.get("label"), warnings)
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


def count_objects(images: list[ImageMeasures], warnings: list[str]) -> dict[str, Any]:
    """Objects per image in each split: mean, median, min, max, and number of images without any."""
    by_split: dict[str, list[int]] = defaultdict(list)
    for image in images:
        if image.objects is not None:
            by_split[image.split].append(image.objects)
    if sum(map(len, by_split.values())) > 1 and max(map(max, by_split.values())) == 1:
        warnings.append(
            "instances: no image holds more than one object number. If this is an image of foreground and background, "
            "use `mask` instead, or number the objects first."
        )
    return {
        split: {"mean": float(np.mean(n)), "median": float(np.median(n)), "min": min(n), "max": max(n)}
        | {"n_without": n.count(0)}
        for split, n in by_split.items()
    }
