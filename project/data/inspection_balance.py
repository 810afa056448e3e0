"""How alike the parts of a dataset are: brightness of splits and groups, classes, objects."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from project.data.inspection_findings import (
    BRIGHTER,
    FEW,
    NOTICEABLE,
    RARE_CLASS,
    SHIFTED,
    Key,
    Row,
    number,
    of,
    percent,
    reference,
    some,
)

HOW = f"(threshold: {BRIGHTER:g} times, or {SHIFTED:g} standard deviations of the pixels)"


def unlike(mean: float, std: float, usual: float, usual_std: float) -> str | None:
    """In what way one part is not as bright as the rest, or None where the difference is nothing special.

    Args:
        mean: Mean of its pixels.
        std: Standard deviation of the pixels within an image of it.
        usual: Mean elsewhere.
        usual_std: Standard deviation elsewhere. The smaller of the two is the measure, since a part ten times as
            bright also has ten times the contrast.
    """
    difference, spread = abs(mean - usual), min(std, usual_std) or max(std, usual_std)
    if difference <= 1e-6 * max(abs(mean), abs(usual)) or difference < NOTICEABLE * spread:
        return None
    word = "brighter" if mean > usual else "darker"
    if min(mean, usual) > 0 and (factor := max(mean, usual) / min(mean, usual)) >= BRIGHTER:
        return f"{factor:.3g} times {word}"
    if difference >= SHIFTED * spread:
        return f"{word} by {difference / spread:.2g} standard deviations" if spread else word
    return None


def groups(rows: list[Row], channels: list[dict[str, Any]], warnings: list[str]) -> dict[str, Any]:
    """Brightness of each group, typical image against typical image, compared with the other training groups."""
    batches: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        batches[row.batch].append(row)
    if not 1 < len(batches) < len(rows):
        return {}
    found: dict[str, Any] = {
        name: {"n_samples": len(b), "splits": list(dict.fromkeys(r.split for r in b)), "channels": {}}
        for name, b in batches.items()
    }
    for key in ((entry["role"], entry["channel"]) for entry in channels):
        levels = {name: level for name, batch in batches.items() if (level := _level(batch, key))}
        usual = {name: levels[name] for name in {row.batch for row in reference(rows)} if name in levels}
        strange = []
        for name, level in levels.items():
            # Of two, each is compared with the other; from three on, one strange group does not move the median.
            others = [v for n, v in usual.items() if n != name or len(usual) > 2]
            rest = np.median(others, axis=0).tolist() if others else level
            how = unlike(*level, *rest)
            found[name]["channels"]["/".join(key)] = {"mean": level[0], "std": level[1], "unlike": how}
            if how:
                strange.append(f"{name} (mean {number(level[0])}, {how})")
        if strange:
            warnings.append(
                f"{'/'.join(key)}: {of(len(strange), len(levels), 'group')} another brightness than the other training "
                f"groups {HOW}: {some(strange, 'report.json')}. Another exposure, stain or microscope? Keep both kinds "
                "in every split, or scale each image by its own percentiles."
            )
    return found


def _level(batch: list[Row], key: Key) -> tuple[float, float] | None:
    """Median over images of their mean and of their standard deviation."""
    known = [(row.values[key]["mean"], row.values[key]["std"]) for row in batch if row.values[key]["mean"] is not None]
    return tuple(np.median(known, axis=0).tolist()) if known else None


def splits(rows: list[Row], channels: list[dict[str, Any]], warnings: list[str]) -> None:
    """Warn where validation or test is not as bright as training."""
    for entry in channels:
        name, by_split = f"{entry['role']}/{entry['channel']}", entry["splits"]
        spreads = {s: _level([r for r in rows if r.split == s], (entry["role"], entry["channel"])) for s in by_split}
        if "train" not in by_split or not spreads["train"]:
            continue
        for split, level in spreads.items():
            if not level:
                continue
            usual = by_split["train"]["mean"]
            if how := unlike(by_split[split]["mean"], level[1], usual, spreads["train"][1]):
                mean = by_split[split]["mean"]
                warnings.append(
                    f"{name}: {split} is {how} than train: mean {number(mean)}, train {number(usual)} "
                    f"{HOW}. Its scores then tell of another kind of image; split so that every kind is in all splits, "
                    "or take more samples, unless this change is what you want to test."
                )


def balance(
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
        rare = [f"{name} ({percent(share)})" for name, share in shares.items() if 0 < share < RARE_CLASS]
        if missing:
            what = "it cannot be learnt" if split == "train" else "its score is undefined there"
            warnings.append(f"{kind}: {split} holds no {some(missing, 'report.json')}; {what}. Split in another way.")
        if rare and split == "train":
            warnings.append(
                f"{kind}: rare in train: {some(rare, 'report.json')}. Weigh the loss, sample these images more often, "
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
    """Objects per image in each split: mean, min, max, and how many images have none."""
    counted = [row for row in rows if row.objects is not None]
    if not counted:
        return {}
    found = {}
    for split in dict.fromkeys(row.split for row in counted):
        each = [row.objects or 0 for row in counted if row.split == split]
        found[split] = {
            "mean": float(np.mean(each)),
            "min": min(each),
            "max": max(each),
            "n_images": len(each),
            "n_without": each.count(0),
        }
    empty = [row for row in counted if row.objects == 0]
    if empty:
        warnings.append(
            f"instances: {of(len(empty), len(counted))} no object: {some(empty)}. Check that they are really empty and "
            "not merely unannotated."
        )
    if len(counted) > 1 and max(row.objects or 0 for row in counted) == 1:
        warnings.append(
            "instances: no image holds more than one object number. If this is a picture of foreground and background, "
            "use `mask` instead, or number the objects first."
        )
    return found
