"""Checks of what lies in the files: values, statistics, channels, splits, classes."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from project.checks import thresholds as limits
from project.checks.verdicts import Context, Verdict, modules, spread
from project.data.leakage import Image, find_leaks, read_images
from project.data.store import SplitReader
from project.formatting import first_few, format_number, format_percent, shorten

Verdicts = Iterator[Verdict]
PATTERN = 64  # side of the made-up images that augmentation is tried on


def values(ctx: Context) -> Verdicts:
    """NaN, infinities, and channels or targets with one value everywhere."""
    for role in ctx.pixel_roles:
        names, n_bad, n_seen = ctx.channel_names(role), 0, 0
        constant = []
        for split, reader in ctx.readers.items():
            if role in reader.image_statistics:
                levels = reader.image_statistics[role]
                n_bad += int((levels[:, :, 4] > 0).any(1).sum())
                flat = levels[:, :, 0] == levels[:, :, 1]
            else:
                arrays = [b[role][0].float() for b in ctx.raw[split]]
                n_bad += sum(not bool(a.isfinite().all()) for a in arrays)
                flat = np.array([[bool((c == c.flatten()[0]).all()) for c in a] for a in arrays])
            n_seen += len(flat)
            if split == "train":
                constant = flat.mean(0).tolist()
        if n_bad:
            yield Verdict(
                f"{role} values",
                f"NaN or infinite in {n_bad} of {n_seen} images",
                "error",
                "the loss becomes NaN; mend or leave out these files (`make inspect` names them)",
            )
        dead = [name for name, share in zip(names, constant, strict=True) if share == 1]
        if dead:
            level, advice = (
                ("error", "there is nothing to learn")
                if role == "target" or len(dead) == len(names)
                else ("warning", "it tells nothing; leave the channel out, or look for the right files")
            )
            yield Verdict(f"{role} values", f"constant: {first_few(dead)}", level, advice)  # type: ignore[arg-type]
        elif role == "target" and max(constant) > limits.CONSTANT_TARGETS:
            yield Verdict(
                "target values",
                f"{format_percent(max(constant))} of the targets are constant",
                "warning",
                "correlation is not defined there, and there is little to learn; see that these files are meant",
            )
        elif not n_bad:
            yield Verdict(f"{role} values", f"finite, {n_seen} images")


def statistics(ctx: Context) -> Verdicts:
    """Whether the statistics in the file are those of its training images."""
    for role in ctx.pixel_roles:
        reader, channels = ctx.train.reader, ctx.data.statistics[role]
        if role == "image" and (reader.path != ctx.data.whole.path or "origin" in reader.attributes):
            continue  # images that came later, without labels of their own: normalised as the others are
        if role == "image" and len(reader.image_statistics.get(role, [])):
            reader = ctx.data.all_images  # also where few of them have labels
        wrong = []
        for c, (name, known) in enumerate(zip(ctx.channel_names(role), channels, strict=False)):
            found = [b[role][0, c].float() for b in ctx.raw["train"]]
            found = [v[v.isfinite()] for v in found]
            low = min((float(v.min()) for v in found if len(v)), default=known["min"])
            high = max((float(v.max()) for v in found if len(v)), default=known["max"])
            room = limits.SAME * max(known["std"], abs(known["max"]) * 1e-3)
            if low < known["min"] - room or high > known["max"] + room:
                said = f"{format_number(known['min'])} to {format_number(known['max'])}"
                wrong.append(f"{name}: values {format_number(low)} to {format_number(high)}, said to be {said}")
            elif role in reader.image_statistics and (off := _moments_off(reader, role, c, known)):
                wrong.append(f"{name}: {off}")
        if len(channels) != reader.shapes[role][0][0]:
            wrong.append(f"{len(channels)} channels, the images have {reader.shapes[role][0][0]}")
        if wrong:
            yield Verdict(
                f"{role} statistics", "of other data", "error", f"{first_few(wrong)}; prepare the dataset again"
            )
        else:
            told = ", ".join(f"{format_number(k['mean'])} ± {format_number(k['std'])}" for k in channels[:3])
            yield Verdict(f"{role} statistics", told)


def _moments_off(reader: SplitReader, role: str, channel: int, known: dict[str, Any]) -> str | None:
    """In what way mean and spread are not those that follow from the levels of all images."""
    _, _, means, stds, bad = reader.image_statistics[role][:, channel, :5].T
    sizes = np.array([shape[-1] * shape[-2] for shape in reader.shapes[role]]) - bad
    used = sizes > 0
    if not used.any():
        return None
    weights, means, stds = sizes[used] / sizes[used].sum(), means[used], stds[used]
    mean = float(weights @ means)
    std = float(np.sqrt(weights @ (stds**2 + (means - mean) ** 2)))
    room = limits.STATISTICS_OFF * max(std, known["std"]) + 1e-6 * abs(mean)
    if abs(mean - known["mean"]) <= room and abs(std - known["std"]) <= room:
        return None
    return f"{format_number(mean)} ± {format_number(std)}, said to be {format_number(known['mean'])} ± {format_number(known['std'])}"  # noqa: E501


def channels(ctx: Context) -> Verdicts:
    """Whether validation has the channels of training, in their order."""
    for role in ctx.pixel_roles:
        names = [reader.attributes["channels"].get(role) for reader in ctx.readers.values()]
        if names[0] != names[1]:
            yield Verdict(
                f"{role} channels",
                f"train {names[0]}, val {names[1]}",
                "error",
                "prepare both splits with one configuration",
            )
            continue
        counts = [reader.shapes[role][0][0] for reader in ctx.readers.values()]
        if counts[0] != counts[1]:
            yield Verdict(
                f"{role} channels", f"train {counts[0]}, val {counts[1]}", "error", "prepare the dataset again"
            )
            continue
        if counts[0] == 1 or counts[0] > 6:
            continue
        train, val = (_channel_moments(ctx, split, role) for split in ("train", "val"))
        costs = {p: _distance(train, val[list(p)]) for p in itertools.permutations(range(counts[0]))}
        own, best = costs[tuple(range(counts[0]))], min(costs, key=lambda p: costs[p])
        if own > limits.SWAP_FROM and costs[best] * limits.SWAP_GAIN < own:
            told = ctx.channel_names(role)
            order = ", ".join(told[i] for i in best)
            yield Verdict(
                f"{role} channels",
                "swapped in val",
                "error",
                f"validation looks like training in the order {order}; see how its files were paired",
            )
        else:
            yield Verdict(f"{role} channels", f"{counts[0]}, the same in train and val")


def _channel_moments(ctx: Context, split: str, role: str) -> np.ndarray:
    """(C, 2): mean and spread of the typical image."""
    arrays = [b[role][0].double().flatten(1) for b in ctx.raw[split]]
    return np.median([torch.stack([a.mean(1), a.std(1)], 1).nan_to_num().numpy() for a in arrays], axis=0)


def _distance(train: np.ndarray, val: np.ndarray) -> float:
    spread = np.maximum(np.maximum(train[:, 1], val[:, 1]), 1e-9)
    ratio = np.log(np.maximum(val[:, 1], 1e-9) / np.maximum(train[:, 1], 1e-9))
    return float((np.abs(val[:, 0] - train[:, 0]) / spread + np.abs(ratio)).max())


# Splits ---------------------------------------------------------------------------------------------------------------


def splits(ctx: Context) -> Verdicts:
    """Whether the same sample, group or near-duplicate stands in two splits. Of test, only names are read."""
    readers = dict(ctx.readers)
    if ctx.kind == "full" and (ctx.data.folder / "test.h5").is_file():
        readers["test"] = SplitReader(ctx.data.folder / "test.h5")
    by_place = (ctx.train.reader.attributes.get("split") or {}).get("by") == "place"
    clean = True
    for a, b in itertools.combinations(readers, 2):
        ids = sorted(set(readers[a].ids) & set(readers[b].ids))
        groups = sorted(set(readers[a].groups) & set(readers[b].groups))
        if ids:
            yield Verdict(
                "splits",
                f"{len(ids)} samples in {a} and {b}",
                "error",
                f"{first_few([shorten(i) for i in ids], 'the files')}; prepare the dataset again",
            )
        elif groups and not by_place:
            yield Verdict(
                "splits",
                f"{len(groups)} groups in {a} and {b}",
                "error",
                f"{first_few([shorten(g) for g in groups], 'the files')}; split by group",
            )
        clean &= not (ids or (groups and not by_place))
    double = [split for split, reader in readers.items() if len(set(reader.ids)) < len(reader)]
    if double:
        yield Verdict("splits", f"ids twice in {', '.join(double)}", "error", "prepare the dataset again")
    if clean and not double:
        yield Verdict("splits", ", ".join(f"{len(r)} {name}" for name, r in readers.items()))
    if clean:
        yield from _near_duplicates(ctx)


def _near_duplicates(ctx: Context) -> Verdicts:
    """Images of validation that training has as well, or nearly; see `project.data.leakage`."""
    most, images = limits.MOST_COMPARED[ctx.kind] // 2, list[Image]()
    for split, reader in ctx.readers.items():
        images += read_images(reader, split, spread(len(reader), most if reader.signatures is not None else 256))
    leaks = find_leaks(images)
    if leaks.copies:
        examples = first_few([" ~ ".join(shorten(i.id) for i in group) for group in leaks.copies], "make inspect")
        n = len(leaks.copies)
        yield Verdict(
            "near-duplicates",
            f"{n} copies in train and val",
            "error",
            f"{examples}; give copies one group, or remove them",
        )
    elif leaks.pairs:
        examples = first_few([f"{shorten(a.id)} ~ {shorten(b.id)}" for a, b in leaks.pairs], "make inspect")
        yield Verdict(
            "near-duplicates",
            f"{len(leaks.pairs)} pairs in train and val",
            "warning",
            f"{examples}; look at them with `make inspect`",
        )
    else:
        yield Verdict("near-duplicates", f"none between train and val, {len(images)} images")


# Classes --------------------------------------------------------------------------------------------------------------


def classes(ctx: Context) -> Verdicts:
    """Whether all labels are classes, and all classes are there."""
    if ctx.task.target_kind == "mask":
        yield from _mask(ctx)
    if ctx.task.target_kind == "label" and ctx.train.reader.labels is not None:
        yield from _labels(ctx)


def _mask(ctx: Context) -> Verdicts:
    names, ignore = ctx.data.classes.get("mask", []), ctx.data.ignore_index
    counts = {int(v): n for v, n in ctx.data.statistics.get("mask", {}).items()}
    found = dict(counts)
    for batches in ctx.raw.values():
        for b in batches:
            found.update({int(v): 1 for v in b["mask"].unique() if int(v) not in found})
    total = sum(counts.values())
    stray = sorted(v for v in found if v >= len(names) and v != ignore)
    if stray:
        cure = (
            f" or set `ignore_index: {stray[0]}` in the data config if it means not annotated,"
            if ignore is None
            else f" (ignore_index is {ignore}),"
        )
        yield Verdict(
            "mask",
            f"values {', '.join(map(str, stray[:6]))}, classes 0 to {len(names) - 1}",
            "error",
            f"renumber them{cure} and prepare the data again",
        )
        return
    ignored = counts.get(ignore, 0) / total if ignore is not None and total else 0.0
    if ignore is not None and 0 <= ignore < len(names) and ignored > 0:
        yield Verdict(
            "mask",
            f"ignore_index {ignore} is class {names[ignore]}",
            "warning",
            f"{format_percent(ignored)} of the pixels are left out, and this class is never learnt",
        )
    elif ignored > limits.IGNORED_SHARE:
        yield Verdict(
            "mask",
            f"{format_percent(ignored)} of the pixels ignored",
            "warning",
            f"see that ignore_index {ignore} is right",
        )
    else:
        background = f"background {ctx.data.background}" if ctx.data.background is not None else "no background"
        told = f", {format_percent(ignored)} not annotated" if ignored else ""
        yield Verdict("mask", f"{len(names)} classes, {background}{told}")
    seen = {split: r.mask_counts.sum(0) for split, r in ctx.readers.items() if r.mask_counts is not None}
    for split, each in seen.items():
        missing = [k for k in range(len(names)) if k < len(each) and not each[k] and k != ignore]
        if missing:
            known = [r.mask_counts for r in ctx.readers.values() if r.mask_counts is not None]
            n_images = [sum(int(np.count_nonzero(counts[:, k])) for counts in known) for k in missing]
            yield _missing(ctx, split, [names[k] for k in missing], n_images)
    shares = {
        names[v]: n / max(total - counts.get(ignore, 0) if ignore is not None else total, 1)
        for v, n in counts.items()
        if v < len(names) and v != ignore
    }
    rare = {name: share for name, share in shares.items() if 0 < share < limits.RARE}
    if rare and not _has_cure(ctx):
        yield Verdict(
            "class balance",
            ", ".join(f"{n} {format_percent(s)}" for n, s in rare.items()),
            "warning",
            "plain cross entropy may leave it out: add Dice loss, class_weights: balanced, or data.foreground_crops",
        )
    elif shares:
        yield Verdict("class balance", ", ".join(f"{n} {format_percent(s)}" for n, s in list(shares.items())[:4]))


def _missing(ctx: Context, split: str, names: list[str], n_images: list[int]) -> Verdict:
    """Classes that a split lacks; the remedy is one that can work.

    Args:
        ctx: See `Context`.
        split: Which one.
        names: The classes.
        n_images: Images of each of them in all splits.
    """
    config = ctx.readers[split].attributes.get("split") or {}
    if min(n_images) < len(ctx.readers):
        rare = ", ".join(f"{n} of {name}" for name, n in list(zip(names, n_images, strict=True))[:3])
        remedy = f"there are too few images for all splits ({rare}): add some, or leave the class out"
    elif ctx.readers[split].labels is not None and not config.get("stratify") and not config.get("given"):
        remedy = "divide with `split: {stratify: true}`"
    else:
        remedy = "choose another `split.seed`, or say which images go where (`split.file`)"
    if split == "train":
        return Verdict(
            f"classes in {split}", f"no {first_few(names, 'make inspect')}", "error", f"it cannot be learnt; {remedy}"
        )
    measured = f"no {first_few(names, 'make inspect')}"
    return Verdict(f"classes in {split}", measured, "warning", f"its scores are not defined; {remedy}")


def _labels(ctx: Context) -> Verdicts:
    names = ctx.data.classes.get("label", [])
    several = ctx.data.multi_label
    counts = {}
    for split, reader in ctx.readers.items():
        labels = reader.labels
        assert labels is not None
        if several:
            if labels.shape[1] != len(names) or not np.isin(labels, (0, 1)).all():
                yield Verdict(
                    "labels",
                    f"{split}: not 0 or 1 for each of {len(names)} classes",
                    "error",
                    "prepare the dataset again",
                )
                return
            counts[split] = labels.sum(0)
        else:
            if labels.min() < 0 or labels.max() >= len(names):
                yield Verdict(
                    "labels",
                    f"{split}: {labels.min()} to {labels.max()}, classes 0 to {len(names) - 1}",
                    "error",
                    "renumber them, and prepare the dataset again",
                )
                return
            counts[split] = np.bincount(labels, minlength=len(names))
    for split, each in counts.items():
        if missing := [k for k, n in enumerate(each) if not n]:
            n_images = [sum(int(count[k]) for count in counts.values()) for k in missing]
            yield _missing(ctx, split, [names[k] for k in missing], n_images)
    train = counts["train"]
    present = train[train > 0]
    told = ", ".join(f"{n} {name}" for name, n in list(zip(names, train.tolist(), strict=True))[:4]) + (
        " ..." if len(names) > 4 else ""
    )
    if len(present) < 2:
        yield Verdict("labels", told, "error", "only one class: there is nothing to tell apart")
    elif present.max() > limits.IMBALANCE * present.min() and not _has_cure(ctx) and not several:
        yield Verdict(
            "class balance",
            told,
            "warning",
            "one image cannot stand for its class, however often it is repeated: add images of it, or leave it out"
            if present.min() == 1
            else "set data.balanced: true, or class_weights: balanced of CrossEntropy; not both",
        )
    else:
        yield Verdict("labels", told)


def _has_cure(ctx: Context) -> bool:
    """Whether loss or sampling do something about rare classes."""
    if ctx.data.balanced or ctx.data.foreground_crops:
        return True
    for module in modules(ctx):
        # Class weights are a buffer; a parameter of this name belongs to a layer, such as that of a perceptual loss.
        weight = getattr(module, "weight", None)
        weighted = getattr(module, "class_weights", "none") != "none" or (
            weight is not None and not isinstance(weight, torch.nn.Parameter)
        )
        if weighted or any(word in type(module).__name__ for word in ("Dice", "Focal", "Tversky", "Jaccard", "Lovasz")):
            return True
    return False
