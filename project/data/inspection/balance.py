"""How alike the parts of a dataset are: brightness of splits and groups, sizes, classes, objects."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from project.data import drift
from project.data.inspection.rows import Row, Split
from project.formatting import FEW, first_few, format_percent

SPLIT_AGAIN = "Split in another way"
RARE_CLASS = 0.01  # share below which a class is hardly learnt without weights


def set_batches(rows: list[Row]) -> None:
    """Choose between what brightness is compared."""
    for row, batch in zip(rows, drift.exposure_groups([r.id for r in rows], [r.group for r in rows]), strict=True):
        row.batch = batch


def groups(rows: list[Row], brightness: drift.Drift) -> dict[str, Any]:
    """Brightness of each group, typical image against typical image, compared with the other training groups."""
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        members[row.batch].append(row)
    if not 1 < len(members) < len(rows):
        return {}
    return {
        name: {
            "n_samples": len(own),
            "splits": list(dict.fromkeys(r.split for r in own)),
            "channels": {c: asdict(parts[name]) for c, parts in brightness.groups.items() if name in parts},
        }
        for name, own in members.items()
    }


def splits(brightness: drift.Drift) -> dict[str, Any]:
    """Brightness of each split, compared with training: channel -> split -> mean, std, reference, difference."""
    return {
        channel: {split: asdict(part) for split, part in parts.items()} for channel, parts in brightness.splits.items()
    }


def sizes(splits: dict[str, Split]) -> list[dict[str, Any]]:
    """How many images have which size in pixels, the commonest first."""
    counts = {name: Counter(row.size for row in split.rows) for name, split in splits.items()}
    total = sum(counts.values(), Counter[tuple[int, ...]]())
    return [
        {"height": size[0], "width": size[1], "n": n, "splits": {name: counts[name][size] for name in counts}}
        for size, n in sorted(total.items(), key=lambda item: (-item[1], item[0]))
    ]


def classes(splits: dict[str, Split], rows: list[Row], warnings: list[str]) -> dict[str, Any]:
    """Pixels per class of the mask, and images per label."""
    attributes = next(iter(splits.values())).reader.attributes
    names, ignore = attributes.get("classes") or {}, attributes.get("ignore_index")
    masks = {name: split.mask for name, split in splits.items() if split.mask}
    found = {}
    if masks:
        found["mask"] = _shares("mask", masks, names.get("mask"), ignore, warnings)
    labels = [(row.split, row.label) for row in rows if row.label is not None]
    if labels:
        counts: dict[str, Counter[int]] = {name: Counter() for name in splits}
        for split, label in labels:
            counts[split].update(label if isinstance(label, tuple) else (label,))
        # With several classes per image, shares are of the images, and need not add up to 1.
        n_images = Counter(split for split, _ in labels)
        found["label"] = _shares("label", counts, names.get("label"), None, warnings, n_images)
    return found


def _shares(
    kind: str,
    counts: dict[str, Counter[int]],
    names: list[str] | None,
    ignore: int | None,
    warnings: list[str],
    totals: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """How often each class occurs.

    Args:
        kind: "mask" or "label".
        counts: Split -> class number -> pixels or images.
        names: Names of the classes, if known.
        ignore: Value that stands for "not annotated"; not counted in the shares.
        warnings: Gets sentences on values without a class, and on classes that are missing or rare.
        totals: Split -> what a share is a share of; by default all that is counted.

    Returns:
        Split -> class -> {"count", "share"}; "not annotated" has no share.
    """
    numbers = sorted({value for counter in counts.values() for value in counter} - {ignore})
    _warn_of_strays(kind, numbers, names, warnings)
    told = {value: _class_name(value, names) for value in sorted({*range(len(names or ())), *numbers})}
    found: dict[str, Any] = {}
    for split, counter in counts.items():
        total = totals[split] if totals else sum(n for value, n in counter.items() if value != ignore)
        shares = {name: counter[value] / total if total else 0.0 for value, name in told.items()}
        found[split] = {name: {"count": counter[value], "share": shares[name]} for value, name in told.items()}
        if ignore is not None:
            found[split]["not annotated"] = {"count": counter[ignore], "share": None}
        missing = [name for name, share in shares.items() if share == 0]
        rare = [f"{name} ({format_percent(share)})" for name, share in shares.items() if 0 < share < RARE_CLASS]
        if missing:
            what = "it cannot be learnt" if split == "train" else "its score is undefined there"
            images = [sum(each[value] for each in counts.values()) for value, name in told.items() if name in missing]
            few = kind == "label" and min(images) < len(counts)
            remedy = f"Only {min(images)} of its images are there: add some, or leave it out" if few else SPLIT_AGAIN
            warnings.append(f"{kind}: {split} holds no {first_few(missing, 'report.json')}; {what}. {remedy}.")
        if rare and split == "train":
            warnings.append(
                f"{kind}: rare in train: {first_few(rare, 'report.json')}. Weigh the loss, sample these images more often, "  # noqa: E501
                "and look at scores per class."
            )
    return found


def _warn_of_strays(kind: str, numbers: list[int], names: list[str] | None, warnings: list[str]) -> None:
    """Class numbers without a name; without names, numbers that are not counted from 0."""
    stray = [n for n in numbers if n >= len(names)] if names else numbers * (numbers != list(range(len(numbers))))
    if stray:
        values = ", ".join(map(str, stray[: 2 * FEW])) + (" ..." if len(stray) > 2 * FEW else "")
        known = f"the classes are 0 to {len(names) - 1}" if names else "classes are counted 0, 1, 2 ... without gaps"
        warnings.append(
            f"{kind}: values {values}, but {known}. Renumber them, or set `ignore_index` if one means not annotated."
        )


def _class_name(value: int, names: list[str] | None) -> str:
    return names[value] if names and value < len(names) else str(value)


def objects(rows: list[Row], warnings: list[str]) -> dict[str, Any]:
    """Objects per image in each split: mean, median, min, max, and how many images have none."""
    counted = [row for row in rows if row.objects is not None]
    found = {}
    for split in dict.fromkeys(row.split for row in counted):
        each = [row.objects or 0 for row in counted if row.split == split]
        found[split] = {
            "mean": float(np.mean(each)),
            "median": float(np.median(each)),
            "min": min(each),
            "max": max(each),
            "n_images": len(each),
            "n_without": each.count(0),
        }
    if len(counted) > 1 and max(row.objects or 0 for row in counted) == 1:
        warnings.append(
            "instances: no image holds more than one object number. If this is a picture of foreground and background, "
            "use `mask` instead, or number the objects first."
        )
    return found
