"""Sizes, classes, objects and groups of a dataset: how often each occurs in each split."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from project.data.drift import Drift
from project.data.inspection.measure import ImageMeasures, SplitMeasures
from project.formatting import FEW, first_few, format_percent

RARE_CLASS = 0.01  # share below which a class is hardly learned without weights


def count_sizes(splits: dict[str, SplitMeasures]) -> list[dict[str, Any]]:
    """Number of images of each size in pixels, the commonest first."""
    counts = {name: Counter(image.size for image in split.images) for name, split in splits.items()}
    total = sum(counts.values(), Counter[tuple[int, ...]]())
    return [
        {"height": size[0], "width": size[1], "n": n, "splits": {name: counts[name][size] for name in counts}}
        for size, n in sorted(total.items(), key=lambda item: (-item[1], item[0]))
    ]


def describe_groups(images: list[ImageMeasures], drift: Drift) -> dict[str, Any]:
    """Samples, splits and brightness of each group; nothing if there is one group, or each image is a group."""
    members: dict[str, list[ImageMeasures]] = defaultdict(list)
    for image in images:
        members[image.exposure_group].append(image)
    if not 1 < len(members) < len(images):
        return {}
    return {
        name: {
            "n_samples": len(group),
            "splits": list(dict.fromkeys(image.split for image in group)),
            "channels": {channel: asdict(parts[name]) for channel, parts in drift.groups.items() if name in parts},
        }
        for name, group in members.items()
    }


def count_classes(splits: dict[str, SplitMeasures], images: list[ImageMeasures], warnings: list[str]) -> dict[str, Any]:
    """Pixels per class of the mask, and images per label: "mask" or "label" -> split -> class -> count and share."""
    attributes = next(iter(splits.values())).reader.attributes
    names, ignore = attributes.get("classes") or {}, attributes.get("ignore_index")
    result = {}
    if masks := {name: split.mask for name, split in splits.items() if split.mask}:
        result["mask"] = _shares("mask", masks, names.get("mask"), ignore, warnings)
    if labeled := [image for image in images if image.label is not None]:
        counts: dict[str, Counter[int]] = {name: Counter() for name in splits}
        for image in labeled:
            counts[image.split].update(image.label if isinstance(image.label, tuple) else [image.label or 0])
        # With several classes per image, shares are of the images, and need not add up to 1.
        n_images = Counter(image.split for image in labeled)
        result["label"] = _shares("label", counts, names.get("label"), None, warnings, n_images)
    return result


def _shares(
    kind: str,
    counts: dict[str, Counter[int]],
    names: list[str] | None,
    ignore: int | None,
    warnings: list[str],
    totals: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Frequency of each class.

    Args:
        kind: "mask" or "label".
        counts: Split -> class number -> pixels or images.
        names: Names of the classes, if known.
        ignore: Class number for "not annotated"; not counted in the shares.
        warnings: Receives sentences on numbers without a class, and on classes that are missing or rare.
        totals: Split -> denominator of the shares; by default all that is counted.

    Returns:
        Split -> class -> {"count", "share"}; "not annotated" has no share.
    """
    numbers = sorted({number for counter in counts.values() for number in counter} - {ignore})
    _warn_of_unknown_classes(kind, numbers, names, warnings)
    classes = {
        k: names[k] if names and k < len(names) else str(k) for k in sorted({*range(len(names or ())), *numbers})
    }
    result: dict[str, Any] = {}
    for split, counter in counts.items():
        total = totals[split] if totals else sum(n for number, n in counter.items() if number != ignore)
        shares = {name: counter[k] / total if total else 0.0 for k, name in classes.items()}
        result[split] = {name: {"count": counter[k], "share": shares[name]} for k, name in classes.items()}
        if ignore is not None:
            result[split]["not annotated"] = {"count": counter[ignore], "share": None}
        if missing := [name for name, share in shares.items() if share == 0]:
            problem = "it cannot be learned" if split == "train" else "its score is undefined there"
            fewest = min(sum(c[k] for c in counts.values()) for k, name in classes.items() if name in missing)
            advice = "Split in another way"
            if kind == "label" and fewest < len(counts):
                advice = f"The dataset has only {fewest} of its images: add some, or leave it out"
            warnings.append(f"{kind}: {split} holds no {first_few(missing, 'report.json')}; {problem}. {advice}.")
        rare = [f"{name} ({format_percent(share)})" for name, share in shares.items() if 0 < share < RARE_CLASS]
        if rare and split == "train":
            warnings.append(
                f"{kind}: rare in train: {first_few(rare, 'report.json')}. Weight the loss, sample these images more "
                "often, and look at scores per class."
            )
    return result


def _warn_of_unknown_classes(kind: str, numbers: list[int], names: list[str] | None, warnings: list[str]) -> None:
    """Class numbers without a name; without names, numbers that are not counted from 0."""
    unknown = [n for n in numbers if n >= len(names)] if names else numbers * (numbers != list(range(len(numbers))))
    if unknown:
        values = ", ".join(map(str, unknown[: 2 * FEW])) + (" ..." if len(unknown) > 2 * FEW else "")
        known = f"the classes are 0 to {len(names) - 1}" if names else "classes are counted 0, 1, 2 ... without gaps"
        warnings.append(
            f"{kind}: values {values}, but {known}. Renumber them, or set `ignore_index` if one means not annotated."
        )


def count_objects(images: list[ImageMeasures], warnings: list[str]) -> dict[str, Any]:
    """Objects per image in each split: mean, median, min, max, and number of images without any."""
    counted = [image for image in images if image.objects is not None]
    result = {}
    for split in dict.fromkeys(image.split for image in counted):
        counts = [image.objects or 0 for image in counted if image.split == split]
        result[split] = {"mean": float(np.mean(counts)), "median": float(np.median(counts)), "min": min(counts)}
        result[split] |= {"max": max(counts), "n_images": len(counts), "n_without": counts.count(0)}
    if len(counted) > 1 and max(image.objects or 0 for image in counted) == 1:
        warnings.append(
            "instances: no image holds more than one object number. If this is an image of foreground and background, "
            "use `mask` instead, or number the objects first."
        )
    return result
