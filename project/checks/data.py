"""Checks of the prepared data: values, classes, splits and copies."""

import itertools
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from project.checks import thresholds as limits
from project.checks.context import Context, spread
from project.checks.report import Verdict, error, note, warning
from project.data.leakage import Image, find_leaks, read_images
from project.data.split_metadata import digest
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
        share = len({image.id for pair in leaks.pairs for image in pair if image.split == "val"}) / len(ctx.val.reader)
        level = warning if share > limits.SIMILAR else note
        yield level("copies", f"{len(leaks.pairs)} similar pairs in train and val", advice)
    else:
        yield Verdict("copies", f"none in train and val, {len(images)} images compared")


def contradictions(ctx: Context) -> Iterator[Verdict]:
    """Equal images with different labels, numbers, masks or targets."""
    positions: dict[bytes, list[tuple[SplitReader, int]]] = defaultdict(list)
    for reader in ctx.readers.values():
        blank = (np.ptp(reader.image_statistics["image"][..., :2], axis=-1) == 0).all(1)
        if reader.image_digests is None:
            return
        for index in np.flatnonzero(~blank).tolist():
            positions[reader.image_digests[index].tobytes()].append((reader, index))
    copies = [images for images in positions.values() if len(images) > 1]
    wrong = [images for images in copies if len({_answer(ctx, *image) for image in images}) > 1]
    if wrong:
        listed = [" = ".join(shorten(reader.ids[index]) for reader, index in images) for images in wrong]
        n, n_images = sum(map(len, wrong)), sum(map(len, ctx.readers.values()))
        advice = f"{first_few(listed, 'images.csv of make inspect')}; leave out those that are wrong"
        verdict = error if n > limits.CONTRADICTED * n_images else warning
        yield verdict("contradictions", f"{n} of {n_images} images are equal to one with another answer", advice)
    else:
        yield Verdict("contradictions", f"none among {len(copies)} images that occur more than once")


def _answer(ctx: Context, reader: SplitReader, index: int) -> tuple[object, ...]:
    """What a network learns of one image, as something that can be compared."""
    rows = {"label": reader.labels, "value": reader.values}.get(str(ctx.task.target_kind))
    row = () if rows is None else tuple(np.atleast_1d(rows[index]).tolist())
    return row, digest(reader.read(ctx.target_array, index)) if ctx.target_array else ""


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
    if not counts.all():
        return  # reported as missing
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
        if total[0] == 0 and 0 in missing and total[1:].all():
            measured = f"no image has class number 0, {names[0]}"
            advice = "are the classes counted from 1? Give each value its number, `mask_values: {1: 0, 2: 1, ...}`"
            yield error("classes", measured, f"{advice}, or take {names[0]} out of `classes`")
            return
        if any(total[k] > 1 and _n_groups(ctx, present, k) == 1 for k in missing):
            remedy = "all its images are of one group: take some from other groups"
        elif total[missing].min() < len(present):
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


def _n_groups(ctx: Context, present: dict[str, np.ndarray], k: int) -> int:
    """Number of groups that have images of class k."""
    groups = {split: np.array(ctx.readers[split].groups)[is_in[:, k] > 0] for split, is_in in present.items()}
    return len({group for of_split in groups.values() for group in of_split})


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
