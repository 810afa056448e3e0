"""Checks of what is learned of an image: classes, and numbers to predict."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.groups import parts_of
from project.checks.report import Finding, error, ok, warning
from project.formatting import first_few, format_percent


def classes(ctx: Context) -> Iterator[Finding]:
    """Missing, rare and ignored classes."""
    kind = str(ctx.task.target_kind)
    names = ctx.data.classes.get(kind, []) if kind in ("mask", "label") else []
    if not names:
        return
    if kind == "label" and len(names) > max(9, sum(map(len, ctx.readers.values())) / 2):
        yield error(f"{len(names)} classes", "hardly more images than classes: is the label a row number, or an id?")
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
    weights = next((b for name, b in ctx.task.loss.named_buffers() if name.rpartition(".")[2] == "weight"), None)
    if weights is not None and weights.shape == shares.shape and shares.max() > 2 * shares[shares > 0].min():
        common, rare = (float(weights[k]) for k in (shares.argmax(), np.where(shares > 0, shares, 2).argmin()))
        if common > 1.1 * rare:
            advice = f"the class weights are {common:.3g} for the commonest class, {rare:.3g} for the rarest: inverted?"
            return warning(shown, advice)
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


def numbers(ctx: Context) -> Iterator[Finding]:
    """Whether numbers to predict are row numbers, hold a code for what is missing, or other units in a group."""
    if ctx.task.target_kind != "value":
        return
    for name, column in zip(ctx.data.channels["value"], np.array(ctx.column("values"), float).T, strict=True):
        problem = _judge_numbers(column) or _other_unit(ctx, column)
        yield warning(f"{name}: {problem[0]}", problem[1]) if problem else ok(f"{name}: {len(column)} numbers")


def _judge_numbers(column: np.ndarray) -> tuple[str, str] | None:
    """What is wrong with the numbers (N,) of all images, and what to do."""
    (values, counts), n = np.unique(column, return_counts=True), len(column)
    if len(values) == n >= limits.NUMBERED and (values % 1 == 0).all() and np.ptp(values) < limits.GAPS * n:
        return f"{values[0]:g} to {values[-1]:g}, each at most once", "row numbers? Name the column of what is measured"
    for end, others in ((0, values[1:]), (-1, values[:-1])):
        if counts[end] > 1 and len(others) > 2 and abs(values[end] - others[end]) > limits.FAR_OFF * np.ptp(others):
            measured = f"{counts[end]} of {n} are {values[end]:g}, far from all others"
            return measured, "a code for what is missing? Leave these images out"
    return None


def _other_unit(ctx: Context, column: np.ndarray) -> tuple[str, str] | None:
    for name, part in parts_of(ctx).items():
        own, others = np.abs(column[part]), np.abs(np.delete(column, part))
        apart = len(others) and (own.min() > others.max() or own.max() < others.min())
        ratio = np.median(own) / max(np.median(others), 1e-300) if apart else 1.0
        if max(ratio, 1 / max(ratio, 1e-300)) > limits.UNIT:
            return f"{ratio:.3g} times as large in {name}", "in another unit there? Bring all to one"
    return None
