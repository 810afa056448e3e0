"""Checks of the prepared data: values, classes, splits, copies and contradictions."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Finding, error, note, ok, warning
from project.data.crops import spread
from project.data.duplicates import signature, similar_pairs
from project.data.leakage import Image, Pair, find_leaks, read_image
from project.data.split_metadata import digest
from project.data.store import SplitReader
from project.formatting import first_few, format_percent, shorten


def values(ctx: Context) -> Iterator[Finding]:
    """NaN, infinities, and channels or targets with one value everywhere."""
    for array in ctx.intensity_arrays:
        bad = np.concatenate([reader.statistic(array, "n_not_finite").any(1) for reader in ctx.readers.values()])
        low, high = (ctx.train.reader.statistic(array, name) for name in ("min", "max"))
        constant = (low == high).mean(0)  # by channel, share of the training images
        dead = [name for name, share in zip(ctx.train.reader.channel_names(array), constant, strict=True) if share == 1]
        if bad.any():
            yield error(f"{array}: NaN or infinite in {bad.sum()} of {len(bad)} images", "`make inspect` names them")
        elif dead:
            level = error if array == "target" or len(dead) == len(constant) else warning
            yield level(f"{array}: constant {first_few(dead)}", "leave the channel out, or look for the right files")
        elif array == "target" and constant.max() > limits.CONSTANT_TARGETS:
            yield warning(f"{format_percent(constant.max())} of the targets are constant", "are these files meant?")
        else:
            yield ok(f"{array}: finite, {len(bad)} images")


def splits(ctx: Context) -> Iterator[Finding]:
    """Samples and groups in two splits. Of test only names are read."""
    readers = dict(ctx.readers)
    if ctx.full and (ctx.data.folder / "test.h5").is_file():
        readers["test"] = SplitReader(ctx.data.folder / "test.h5")
    by_place = (ctx.train.reader.attributes.get("split") or {}).get("by") == "place"  # of one image, on purpose
    shared = []
    for a, b in itertools.combinations(readers, 2):
        ids = sorted(set(readers[a].ids) & set(readers[b].ids))
        groups = [] if by_place else sorted(set(readers[a].groups) & set(readers[b].groups))
        if names := ids or groups:
            advice = f"{first_few([shorten(name) for name in names], 'the files')}; "
            advice += "prepare the dataset again" if ids else "split by group"
            shared.append(error(f"{len(names)} {'samples' if ids else 'groups'} in {a} and {b}", advice))
    yield from shared or [ok(", ".join(f"{len(reader)} {name}" for name, reader in readers.items()))]


def copies(ctx: Context) -> Iterator[Finding]:
    """Equal and similar images in training and validation; see `project.data.leakage`."""
    most, images = limits.MOST_COMPARED[ctx.full] // 2, list[Image]()
    for split, reader in ctx.readers.items():
        # Signatures that are not stored are computed from the pixels, which takes time.
        indices = spread(len(reader), most if reader.signatures is not None else 256)
        images += [read_image(reader, split, index) for index in indices]
    leaks = find_leaks(images)
    if leaks.copies:
        listed = first_few([" = ".join(shorten(image.id) for image in group) for group in leaks.copies], "make inspect")
        yield error(f"{len(leaks.copies)} images in train and val", f"{listed}; give copies one group, or remove them")
    elif pairs := [pair for pair in leaks.pairs[: limits.MOST_CONFIRMED] if _is_similar_inside(ctx, pair)]:
        listed = first_few([f"{shorten(a.id)} ~ {shorten(b.id)}" for a, b in pairs], "make inspect")
        n_val = len({image.id for pair in pairs for image in pair if image.split == "val"})
        level = warning if n_val > limits.SIMILAR * len(ctx.val.reader) else note
        yield level(f"{n_val} validation images look like one in train", f"{listed}; look at them with `make inspect`")
    else:
        yield ok(f"none in train and val, {len(images)} images compared")


def _is_similar_inside(ctx: Context, pair: Pair) -> bool:
    """Whether two images are similar without their borders too: black borders make any two look alike."""
    signatures = []
    for image in pair:
        reader = ctx.readers[image.split]
        pixels = reader.read("image", reader.ids.index(image.id))
        y, x = (size // 8 for size in pixels.shape[1:])
        signatures.append(signature(pixels[:, y : pixels.shape[1] - y, x : pixels.shape[2] - x]))
    return bool(similar_pairs(np.stack(signatures)))


def contradictions(ctx: Context) -> Iterator[Finding]:
    """Equal images with different labels, numbers, masks or targets."""
    positions: dict[bytes, list[tuple[SplitReader, int]]] = defaultdict(list)
    for reader in ctx.readers.values():
        digests: Any = reader.image_digests
        blank = (reader.statistic("image", "min") == reader.statistic("image", "max")).all(1)
        for index in np.flatnonzero(~blank).tolist():
            positions[digests[index].tobytes()].append((reader, index))
    equal = [images for images in positions.values() if len(images) > 1]
    wrong = [images for images in equal if len({_answer(ctx, *image) for image in images}) > 1]
    measured = f"{sum(map(len, wrong))} images are equal to one with another answer, of {sum(map(len, equal))} copies"
    if wrong:
        is_much = sum(map(len, wrong)) > limits.CONTRADICTED * sum(map(len, ctx.readers.values()))
        listed = [" = ".join(shorten(reader.ids[index]) for reader, index in images) for images in wrong]
        advice = f"{first_few(listed, 'images.csv of make inspect')}; leave out those that are wrong"
        yield (error if is_much else warning)(measured, advice)
    else:
        yield ok(measured)


def _answer(ctx: Context, reader: SplitReader, index: int) -> tuple[object, ...]:
    """What a network learns of one image, as something that can be compared."""
    rows = {"label": reader.labels, "value": reader.values}.get(str(ctx.task.target_kind))
    row = () if rows is None else tuple(np.atleast_1d(rows[index]).tolist())
    return row, digest(reader.read(ctx.target_array, index)) if ctx.target_array else ""


def classes(ctx: Context) -> Iterator[Finding]:
    """Missing, rare and ignored classes."""
    kind = str(ctx.task.target_kind)
    names = ctx.data.classes.get(kind, []) if kind in ("mask", "label") else []
    if not names:
        return
    counts: dict[str, Any] = {
        split: (reader.mask_counts if kind == "mask" else reader.label_counts) for split, reader in ctx.readers.items()
    }
    ignored = ctx.data.ignore_index if kind == "mask" else None
    if ignored is not None and 0 <= ignored < len(names):
        yield warning(f"ignore_index {ignored} is class {names[ignored]}", "it is never learned")
    if kind == "mask":
        n_pixels = sum(math.prod(shape[-2:]) for r in ctx.readers.values() for shape in r.shapes["mask"])
        share = 1 - sum(array.sum() for array in counts.values()) / n_pixels
        if share > limits.IGNORED:
            yield warning(f"{format_percent(share)} of the pixels are ignored", f"is ignore_index {ignored} right?")
    n_images = {split: (array > 0).sum(0) for split, array in counts.items()}
    total = sum(n_images.values())
    if total[0] == 0 and total[1:].all() and ignored != 0:
        advice = f"counted from 1? Set `mask_values: {{1: 0, 2: 1, ...}}`, or take {names[0]} out of `classes`"
        yield error(f"no image has class number 0, {names[0]}", advice)
        return
    for split, n in n_images.items():
        if missing := [k for k in range(len(names)) if n[k] == 0 and k != ignored]:
            measured = f"{split} has none of {first_few([names[k] for k in missing], 'make inspect')}"
            level, harm = (error, "cannot be learned") if split == "train" else (warning, "metrics are undefined")
            yield level(measured, f"{harm}; {_remedy(ctx, int(total[missing].min()))}")
    if n_images["train"].any():
        yield _balance(ctx, names, counts["train"], n_images["train"])


def _remedy(ctx: Context, n: int) -> str:
    """How a class with `n` images comes into all splits."""
    division = ctx.train.reader.attributes.get("split") or {}
    if n < len(ctx.readers):
        return "too few images for all splits: add some, or leave the class out"
    if ctx.task.target_kind == "label" and not division.get("stratify") and not division.get("given"):
        return "divide with `split: {stratify: true}`"
    return "choose another `split.seed`, or say which images go where (`split.file`)"


def _balance(ctx: Context, names: list[str], counts: np.ndarray, n_images: np.ndarray) -> Finding:
    """Whether the loss or the sampling does something about rare classes; counts of training, (N, K) and (K,)."""
    shares, is_mask = counts.sum(0) / max(counts.sum(), 1), ctx.task.target_kind == "mask"
    rarest = sorted(zip(shares, names, strict=True))[:4]
    shown = ", ".join(f"{name} {format_percent(share)}" for share, name in rarest) + " ..." * (len(names) > 4)
    if (n_images > 0).sum() < 2 <= len(names):
        return error(shown, "only one class: there is nothing to learn")
    least = n_images[n_images > 0].min()
    is_rare = bool(
        ((shares > 0) & (shares < limits.RARE)).any() if is_mask else n_images.max() > limits.IMBALANCE * least
    )
    if not is_rare or ctx.data.multi_label or _has_cure(ctx):
        return ok(shown)
    if is_mask:
        advice = "plain cross entropy may leave it out: add Dice loss, class_weights: balanced, data.foreground_crops"
    elif least == 1:
        advice = "repeating one image does not represent its class: add images of it, or leave it out"
    else:
        advice = "set data.balanced: true, or class_weights: balanced of CrossEntropy; not both"
    return warning(shown, advice)


def _has_cure(ctx: Context) -> bool:
    modules = list(ctx.task.loss.modules())
    # Class weights are a buffer; a parameter of this name belongs to a layer, such as that of a perceptual loss.
    return bool(
        ctx.data.balanced
        or ctx.data.foreground_crops
        or any(getattr(module, "class_weights", "none") != "none" for module in modules)
        or any(name.rpartition(".")[2] == "weight" for name, _ in ctx.task.loss.named_buffers())
        or any(name in type(module).__name__ for module in modules for name in limits.LOSSES_FOR_RARE_CLASSES)
    )
