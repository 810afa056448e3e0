"""Checks of what the network sees: range of normalized values, level of each image, empty crops."""

from collections.abc import Iterator

import numpy as np
import torch

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Finding, error, note, ok, warning
from project.data.normalization import INFORMS, determination
from project.formatting import format_number, format_percent


def normalization(ctx: Context) -> Iterator[Finding]:
    """Whether input and target are of the order of 1, as networks are made for."""
    batch = ctx.batch(32)
    with torch.no_grad():
        normalized = {"image": ctx.task.network_input(batch), "target": ctx.task.make_target(batch)}
    for array in ctx.intensity_arrays:
        values = normalized[array].double()
        mean, std = float(values.mean()), float(values.std(correction=0))
        measured = f"{array}: mean {format_number(mean)}, std {format_number(std)}"
        if std == 0 or values.shape != batch[array].shape:
            continue  # constant values are reported elsewhere
        if not np.isfinite(mean) or not limits.STD_TINY < std < 10 * limits.STD_LARGE or abs(mean) > limits.MEAN_FAR:
            yield error(measured, "values far from the order of 1; see how the task normalizes")
        elif not limits.STD_SMALL < std < limits.STD_LARGE:
            option = "input" if array == "image" else "target"
            yield warning(measured, f"few pixels set the scale; set `model.init_args.{option}_normalization: mean_std`")
        else:
            yield ok(measured)


def level(ctx: Context) -> Iterator[Finding]:
    """Whether the brightness of an input, which a normalization of each image removes, tells that of the target."""
    method = getattr(ctx.task.normalize_input, "method", "")
    if "target" not in ctx.train.roles or not method.startswith("image_"):
        return
    if (n := len(ctx.train.reader)) < limits.FEWEST_SAMPLES:
        yield note(f"not judged: {n} images", f"{method} removes the brightness: does the target depend on it?")
        return
    inputs, targets = (ctx.image_statistics("train", array, "mean") for array in ("image", "target"))
    share = max(determination(x, y) for x in inputs.T for y in targets.T)
    measured = f"the mean of an input explains {format_percent(share)} of that of its target"
    if share > INFORMS:
        yield warning(measured, f"{method} removes it: set `model.init_args.input_normalization: mean_std`")
    else:
        yield ok(measured)


def crops(ctx: Context) -> Iterator[Finding]:
    """How many training samples hold nothing."""
    batch = ctx.batch(limits.DRAWS, side=None if ctx.train.crop else 256)
    n, shape = len(batch["image"]), " x ".join(map(str, batch["image"].shape[1:]))
    arrays = [batch[array].float().flatten(1) for array in ctx.intensity_arrays]
    n_constant = int(torch.stack([values.amin(1) == values.amax(1) for values in arrays]).any(0).sum())
    n_empty = 0
    if "mask" in batch:
        mask = batch["mask"].long().flatten(1)
        n_empty = int(((mask == 0) | (mask == ctx.data.ignore_index)).all(1).sum())
    if n_constant > limits.EMPTY * n:
        yield warning(f"{n_constant} of {n} are constant", "leave out empty images, or take larger crops")
    elif n_empty > limits.NO_FOREGROUND * n:
        yield warning(f"{n_empty} of {n} without any class but the first", "set `data.foreground_crops: 0.5`")
    else:
        yield ok(f"{len(ctx.train)} of {shape} per epoch")
