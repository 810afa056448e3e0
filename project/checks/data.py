"""Checks of the prepared data: values, channels, classes, splits and copies."""

import itertools
from collections.abc import Iterator

import numpy as np

from project.checks import thresholds as limits
from project.checks.context import Context, spread
from project.checks.report import Verdict, error, warning
from project.data.leakage import Image, find_leaks, read_images
from project.data.store import SplitReader
from project.formatting import first_few, format_percent, shorten


def values(ctx: Context) -> Iterator[Verdict]:
    """NaN, infinities, and channels or targets with one value everywhere."""
    for array in ctx.intensity_arrays:
        bad = np.concatenate([ctx.image_statistics(split, array, "n_not_finite").any(1) for split in ctx.readers])
        low, high = (ctx.image_statistics("train", array, name) for name in ("min", "max"))
        n_bad, constant = int(bad.sum()), (low == high).mean(0)  # by channel, share of the training images
        dead = [name for name, share in zip(ctx.channel_names(array), constant, strict=True) if share == 1]
        name = f"{array} values"
        if n_bad:
            advice = "the loss becomes NaN; correct or leave out these files (`make inspect` names them)"
            yield error(name, f"NaN or infinite in {n_bad} of {len(bad)} images", advice)
        if dead and (array == "target" or len(dead) == len(constant)):
            yield error(name, f"constant: {first_few(dead)}", "there is nothing to learn from")
        elif dead:
            advice = "it carries no information; leave the channel out, or look for the right files"
            yield warning(name, f"constant: {first_few(dead)}", advice)
        elif array == "target" and max(constant) > limits.CONSTANT_TARGETS:
            advice = "correlation is undefined there, and there is little to learn; check that these files are meant"
            yield warning(name, f"{format_percent(max(constant))} of the targets are constant", advice)
        elif not n_bad:
            yield Verdict(name, f"finite, {len(bad)} images")


def channels(ctx: Context) -> Iterator[Verdict]:
    """Whether validation has the channels of training, in the same order."""
    for array in ctx.intensity_arrays:
        names = ctx.channel_names(array)
        if not 1 < len(names) <= 6:
            continue
        # (C, 2): mean and standard deviation of the typical image.
        means, stds = ([ctx.image_statistics(split, array, name) for split in ctx.readers] for name in ("mean", "std"))
        train, val = (np.nanmedian(np.stack(pair, 2), axis=0) for pair in zip(means, stds, strict=True))
        costs = {order: _distance(train, val[list(order)]) for order in itertools.permutations(range(len(names)))}
        same, best = costs[tuple(range(len(names)))], min(costs, key=lambda order: costs[order])
        if same > limits.SWAPPED_FROM and costs[best] * limits.SWAPPED_GAIN < same:
            order = ", ".join(names[i] for i in best)
            advice = f"validation looks like training in the order {order}; check how its files were paired"
            yield error(f"{array} channels", "swapped in val", advice)
        else:
            yield Verdict(f"{array} channels", f"{len(names)}, alike in train and val")


def _distance(train: np.ndarray, val: np.ndarray) -> float:
    """Largest difference over the channels, in standard deviations plus the logarithm of their ratio."""
    stds = np.maximum([train[:, 1], val[:, 1]], 1e-9)
    return float((np.abs(val[:, 0] - train[:, 0]) / stds.max(0) + np.abs(np.log(stds[1] / stds[0]))).max())


def splits(ctx: Context) -> Iterator[Verdict]:
    """Samples and groups in two splits, and copies of training images in validation. Of test only names are read."""
    readers = dict(ctx.readers)
    if ctx.full and (ctx.data.folder / "test.h5").is_file():
        readers["test"] = SplitReader(ctx.data.folder / "test.h5")
    by_place = (ctx.train.reader.attributes.get("split") or {}).get("by") == "place"  # of one image, on purpose
    clean = True
    for a, b in itertools.combinations(readers, 2):
        ids = sorted(set(readers[a].ids) & set(readers[b].ids))
        groups = [] if by_place else sorted(set(readers[a].groups) & set(readers[b].groups))
        if shared := ids or groups:
            clean = False
            remedy = "prepare the dataset again" if ids else "split by group"
            advice = f"{first_few([shorten(name) for name in shared], 'the files')}; {remedy}"
            yield error("splits", f"{len(shared)} {'samples' if ids else 'groups'} in {a} and {b}", advice)
    if clean:
        yield Verdict("splits", ", ".join(f"{len(reader)} {name}" for name, reader in readers.items()))
        yield from _copies(ctx)
    if ctx.trainer.limit_val_batches not in (0, 1.0):
        advice = "the best checkpoint is chosen on a part of the images; leave trainer.limit_val_batches out"
        yield warning("validation", f"limit_val_batches {ctx.trainer.limit_val_batches}", advice)


def _copies(ctx: Context) -> Iterator[Verdict]:
    """Equal and similar images in training and validation; see `project.data.leakage`."""
    most, images = limits.MOST_COMPARED[ctx.full] // 2, list[Image]()
    for split, reader in ctx.readers.items():
        # Signatures that are not stored are computed from the pixels, which takes time.
        images += read_images(reader, split, spread(len(reader), most if reader.signatures is not None else 256))
    leaks = find_leaks(images)
    if leaks.copies:
        groups = first_few([" = ".join(shorten(image.id) for image in group) for group in leaks.copies], "make inspect")
        advice = f"{groups}; give copies one group, or remove them"
        yield error("copies", f"{len(leaks.copies)} images in train and val", advice)
    elif leaks.pairs:
        pairs = first_few([f"{shorten(a.id)} ~ {shorten(b.id)}" for a, b in leaks.pairs], "make inspect")
        advice = f"{pairs}; look at them with `make inspect`"
        yield warning("copies", f"{len(leaks.pairs)} similar pairs in train and val", advice)
    else:
        yield Verdict("copies", f"none in train and val, {len(images)} images compared")


def classes(ctx: Context) -> Iterator[Verdict]:
    """Missing, rare and ignored classes."""
    if ctx.task.target_kind == "mask":
        yield from _mask_classes(ctx)
    if ctx.task.target_kind == "label" and ctx.train.reader.labels is not None:
        yield from _label_classes(ctx)


def _mask_classes(ctx: Context) -> Iterator[Verdict]:
    names, ignored_value = ctx.data.classes.get("mask", []), ctx.data.ignore_index
    pixels = {int(value): n for value, n in ctx.data.statistics.get("mask", {}).items()}
    n_ignored = pixels.pop(ignored_value, 0) if ignored_value is not None else 0
    n_annotated = max(sum(pixels.values()), 1)
    ignored = n_ignored / (n_annotated + n_ignored)
    if ignored_value is not None and 0 <= ignored_value < len(names) and ignored:
        advice = f"{format_percent(ignored)} of the pixels are left out, and this class is never learned"
        yield warning("mask", f"ignore_index {ignored_value} is class {names[ignored_value]}", advice)
    elif ignored > limits.IGNORED:
        advice = f"check that ignore_index {ignored_value} is right"
        yield warning("mask", f"{format_percent(ignored)} of the pixels are ignored", advice)
    else:
        background = f"background: {ctx.data.background}" if ctx.data.background is not None else "no background"
        yield Verdict("mask", f"{len(names)} classes, {background}")
    counts = {split: r.mask_counts for split, r in ctx.readers.items() if r.mask_counts is not None}
    yield from _missing_classes(ctx, names, {split: n > 0 for split, n in counts.items()}, ignored_value)
    shares = {names[value]: n / n_annotated for value, n in pixels.items() if value < len(names)}
    rare = {name: share for name, share in shares.items() if 0 < share < limits.RARE}
    shown = ", ".join(f"{name} {format_percent(share)}" for name, share in list((rare or shares).items())[:4])
    if rare and not _has_cure(ctx):
        advice = "plain cross entropy may leave it out: add Dice loss, class_weights: balanced, data.foreground_crops"
        yield warning("class balance", shown, advice)
    elif shares:
        yield Verdict("class balance", shown)


def _label_classes(ctx: Context) -> Iterator[Verdict]:
    names, several = ctx.data.classes.get("label", []), ctx.data.multi_label
    labels = {split: reader.labels for split, reader in ctx.readers.items() if reader.labels is not None}
    present = {s: n > 0 if several else n[:, None] == np.arange(len(names)) for s, n in labels.items()}
    yield from _missing_classes(ctx, names, present)
    counts = present["train"].sum(0)
    shown = ", ".join(f"{n} {name}" for n, name in zip(counts[:4], names, strict=False)) + " ..." * (len(names) > 4)
    counts = counts[counts > 0]
    if len(counts) < 2:
        yield error("class balance", shown, "only one class: there is nothing to learn")
    elif counts.max() > limits.IMBALANCE * counts.min() and not several and not _has_cure(ctx):
        advice = "set data.balanced: true, or class_weights: balanced of CrossEntropy; not both"
        if counts.min() == 1:
            advice = "repeating one image does not represent its class: add images of it, or leave it out"
        yield warning("class balance", shown, advice)
    else:
        yield Verdict("class balance", shown)


def _missing_classes(
    ctx: Context, names: list[str], present: dict[str, np.ndarray], ignored: int | None = None
) -> Iterator[Verdict]:
    """Classes without an image in a split, with a remedy; `present` is split -> (N, K) bool, class k is in image n."""
    n_images = {split: array.sum(0) for split, array in present.items()}
    total = np.sum(list(n_images.values()), axis=0)
    for split, counts in n_images.items():
        missing = [k for k, n in enumerate(counts) if n == 0 and k != ignored]
        if not missing:
            continue
        division = ctx.readers[split].attributes.get("split") or {}
        if total[missing].min() < len(present):
            rare = first_few([f"{total[k]} of {names[k]}" for k in missing], "make inspect")
            remedy = f"there are too few images for all splits ({rare}): add some, or leave the class out"
        elif ctx.task.target_kind == "label" and not division.get("stratify") and not division.get("given"):
            remedy = "divide with `split: {stratify: true}`"
        else:
            remedy = "choose another `split.seed`, or say which images go where (`split.file`)"
        measured = f"none of {first_few([names[k] for k in missing], 'make inspect')}"
        if split == "train":
            yield error("classes in train", measured, f"it cannot be learned; {remedy}")
        else:
            yield warning(f"classes in {split}", measured, f"its metrics are undefined; {remedy}")


def _has_cure(ctx: Context) -> bool:
    """Whether the loss or the sampling does something about rare classes."""
    if ctx.data.balanced or ctx.data.foreground_crops:
        return True
    modules = list(ctx.task.loss.modules())
    # Class weights are a buffer; a parameter of this name belongs to a layer, such as that of a perceptual loss.
    return (
        any(getattr(module, "class_weights", "none") != "none" for module in modules)
        or any(name.rpartition(".")[2] == "weight" for name, _ in ctx.task.loss.named_buffers())
        or any(name in type(module).__name__ for module in modules for name in limits.LOSSES_FOR_RARE_CLASSES)
    )
