"""Whether memory, disk and time suffice for the run."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from project.checks import thresholds as limits
from project.checks.verdicts import Context, Verdict
from project.formatting import format_number
from project.runs.run_folder import RUNS
from project.training import batch_size as trials


def cost(ctx: Context) -> Iterator[Verdict]:
    """Peak memory, time per epoch and in all, size of the checkpoints; the first two as `python -m project batch` measures them."""  # noqa: E501
    attempt = trials.Attempt(ctx.cli)
    size, seconds, peak = ctx.batch_size, math.nan, math.nan
    free = torch.cuda.mem_get_info()[0] if attempt.on_gpu else trials.free_memory()
    trials._release()
    held = torch.cuda.memory_reserved() if attempt.on_gpu else trials._rss()
    done: list[trials.Trial] = []
    # On a CPU too large a batch would drive the machine into its swap space: the rest is read off a line.
    for n in sorted({1, 2, size} if not attempt.on_gpu else {size}):
        line = trials.predict(done, held + free)
        if (
            n > 2
            and not attempt.on_gpu
            and line is not None
            and line[0] + line[1] * n > held + limits.MEMORY_TIGHT * free
        ):
            break
        if (trial := attempt(n)) is None:
            break
        done.append(trial)
    if done and done[-1].batch == size:
        peak, seconds = done[-1].peak, done[-1].seconds
    elif done:
        line = trials.predict(done, held + free)
        peak = line[0] + line[1] * size if line else math.nan
        seconds = done[-1].seconds
    needed = max(peak - held, 0.0)
    told = f"{needed / 1e9:.2g} GB more, {free / 1e9:.2g} GB free"
    cure = "lower data.batch_size or data.crop; `python -m project batch` says what fits"
    if not done or needed > free:
        yield Verdict("memory", told if done else "not even one sample fits", "error", cure)
    elif needed > limits.MEMORY_TIGHT * free:
        yield Verdict("memory", told, "warning", cure)
    elif not math.isnan(peak):
        yield Verdict("memory", told)
    if done:
        yield _time(ctx, seconds)
    yield _disk(ctx)


def _time(ctx: Context, seconds: float) -> Verdict:
    """From the time per training sample; a validation image costs a third of that for each pixel."""
    train, val = ctx.train, ctx.val
    pixels = train.crop**2 if train.crop else _area(train.reader.shapes["image"])
    world = max(ctx.cli.trainer.world_size, 1)
    per_pixel = seconds / max(pixels, 1)
    epoch = (len(train) * seconds + per_pixel / 3 * len(val) * _area(val.reader.shapes["image"])) / world
    epochs = ctx.cli.config_init["trainer"].get("max_epochs") or 0
    total = epoch * max(epochs, 0)
    told = f"{_duration(epoch)} per epoch" + (f", {_duration(total)} for {epochs}" if epochs > 0 else "")
    if total > limits.DAYS * 86400:
        return Verdict(
            "time",
            told,
            "warning",
            "fewer epochs or crops, a GPU, or `python -m project batch` for a faster batch size",
        )
    return Verdict("time", told)


def _disk(ctx: Context) -> Verdict:
    weights = sum(p.numel() * p.element_size() for p in ctx.task.parameters())
    # Weights with two moments each; best and last, and one that is being written.
    size = 3 * weights * 3
    folder = RUNS if RUNS.is_dir() else Path()
    free = shutil.disk_usage(folder).free
    told = f"checkpoints {format_number(size / 1e6)} MB, {format_number(free / 1e9)} GB free"
    if size > free:
        return Verdict("disk", told, "error", f"make room below {RUNS}")
    if size > limits.DISK_TIGHT * free:
        return Verdict("disk", told, "warning", f"make room below {RUNS}")
    return Verdict("disk", told)


def _area(shapes: list[tuple[int, ...]]) -> float:
    return sum(shape[-1] * shape[-2] for shape in shapes) / max(len(shapes), 1)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"
