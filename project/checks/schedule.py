"""Checks of the learning-rate schedule, stepped through the whole training without training, and of monitors."""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Finding, error, not_judged, note, ok, warning
from project.formatting import first_few, format_percent
from project.optimizers import class_and_arguments
from project.tasks.base import Task

# Attributes of schedules that are a length in their own steps, and whether the training should end there.
LENGTHS = {"total_steps": True, "T_max": True, "step_size": False, "milestones": False}


class TrainerOfKnownLength:
    """The trainer, but with a length that is known before the training."""

    def __init__(self, trainer: Trainer, steps: float) -> None:
        self._trainer, self.estimated_stepping_batches = trainer, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


def schedule(ctx: Context) -> Iterator[Finding]:
    """Whether the learning rate is high enough for long enough, and the schedule as long as the training."""
    is_own = type(ctx.task).configure_optimizers is not Task.configure_optimizers
    if ctx.task.lr_scheduler is None and not is_own:
        return
    epochs, per_epoch = training_length(ctx)
    if math.isinf(epochs):
        if ctx.full:
            yield note("not judged: the training has no planned length", "it ends after some time, or by hand")
        return
    task: Any = ctx.fresh_task()
    task.trainer = TrainerOfKnownLength(ctx.trainer, epochs * per_epoch)
    if not is_own:
        weights = nn.Parameter(torch.zeros(1, 1))  # of all groups: their proportions do not change
        task.parameter_groups = lambda lr: [{"params": [weights]} | ({} if lr is None else {"lr": lr})]
    built = task.configure_optimizers()
    if is_own and (untrained := _left_out(task, built)):
        yield untrained
        return
    config = built.get("lr_scheduler") if isinstance(built, dict) else None
    if not config:
        return
    scheduler = config["scheduler"] if isinstance(config, dict) else config
    by_step = isinstance(config, dict) and config.get("interval") == "step"
    name, unit, n = type(scheduler).__name__, "steps" if by_step else "epochs", epochs * (per_epoch if by_step else 1)
    if isinstance(scheduler, ReduceLROnPlateau):
        if scheduler.patience >= epochs:
            yield warning(f"{name}, patience {scheduler.patience}", f"never reduced in a training of {epochs} epochs")
    elif n > limits.SCHEDULE_STEPS[ctx.full]:
        if ctx.full:  # the quick checks have no time for it
            yield not_judged(f"{name}, {n} {unit}", "too long to be tried")
    else:
        try:
            rates = np.array(_rates(built["optimizer"], scheduler, n))
        except Exception as failure:
            yield error(name, f"{failure}; the training has {n} {unit}")
            return
        measured = f"{name}: {rates[0]:.2g}, highest {rates.max():.2g}, last {rates[-1]:.2g} in {n} {unit}"
        problem = judge_rates(scheduler, rates, unit, ctx.learning_rate or 0.0)
        yield warning(measured, problem) if problem else ok(measured)


def _left_out(task: Task, built: Any) -> Finding | None:
    """Trainable weights that are in none of the optimizers that the task has built itself."""
    made = built.get("optimizer") if isinstance(built, dict) else built
    made = made if isinstance(made, list | tuple) else [made]
    groups = [group for item in made if hasattr(item, "param_groups") for group in item.param_groups]
    trained = {id(weight) for group in groups for weight in group["params"]}
    sizes = {name: p.numel() for name, p in task.named_parameters() if p.requires_grad}
    missing = [name for name, p in task.named_parameters() if p.requires_grad and id(p) not in trained]
    share = sum(sizes[name] for name in missing) / max(sum(sizes.values()), 1)
    if not groups or share <= limits.UNUSED:
        return None
    measured = f"{format_percent(share)} of the weights are in no optimizer"
    advice = f"{first_few(missing, 'the network')}: give configure_optimizers all, or set requires_grad to False"
    return (error if share > limits.MOSTLY_UNUSED else warning)(measured, advice)


def training_length(ctx: Context) -> tuple[Any, int]:
    """Epochs, infinite if they are not limited, and optimizer steps in each."""
    trainer: Any = ctx.trainer
    per_epoch = max(math.ceil(ctx.data.n_training_batches(trainer) / trainer.accumulate_grad_batches), 1)
    by_epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    by_steps = math.inf if trainer.max_steps == -1 else math.ceil(trainer.max_steps / per_epoch)
    return min(by_epochs, by_steps), per_epoch


def _rates(optimizer: Any, scheduler: Any, n: int) -> list[float]:
    """The highest learning rate of the groups in each of `n` steps of the schedule."""
    rates = []
    optimizer.step()  # without gradients; torch wants it before the first step of a schedule
    for _ in range(n):
        rates.append(float(max(group["lr"] for group in optimizer.param_groups)))
        scheduler.step()
    return rates


def judge_rates(scheduler: Any, rates: np.ndarray, unit: str, given: float) -> str:
    """What is wrong with the learning rates (N,) of a whole training, one per step or epoch; "" if nothing is."""
    n, peak = len(rates), float(rates.max())
    late = float((rates >= 0.99 * peak).argmax()) / max(n - 1, 1)
    end, low, zero = rates[-1] / (peak or 1), (rates < 0.01 * peak).mean(), (rates <= 1e-6 * peak).mean()
    for key, ends_there in LENGTHS.items():
        value = getattr(scheduler, key, None)
        length = min(value, default=0) if isinstance(value, dict) else value
        if not isinstance(length, int | float) or not length or n == 1:
            continue
        if not n / limits.LENGTH < length < n * limits.LENGTH if ends_there else length >= n:
            remedy = f"write {key}: {n}" if ends_there else "write less"
            remedy += ", or leave it out" * (key == "total_steps")
            ends = f"it ends at {format_percent(float(end))} of the highest rate"
            return f"{key} is {length:g}, but the training has {n} {unit}: {ends}; {remedy}"
    if peak <= 0 or zero > limits.ZERO_RATE or low > limits.LOW_RATE or rates.mean() < limits.MEAN_RATE * peak:
        first = int((rates < 0.01 * peak).argmax())
        return f"hardly anything is learned from {unit[:-1]} {first} on: the schedule is too short or falls too fast"
    if late > limits.LATE_PEAK and n > 2:
        return f"it rises for {format_percent(late)} of the training: is its warm-up counted in {unit}?"
    if n > 2 and rates.min() > limits.UNCHANGED * peak and type(scheduler).__name__ != "ConstantLR":
        return f"hardly changes in {n} {unit}: is its length counted in another unit?"
    if peak < limits.NEVER_REACHED * given and not isinstance(scheduler, OneCycleLR | CyclicLR):
        return f"it never comes near optimizer.init_args.lr, {given:g}; see {type(scheduler).__name__}"
    return ""


def monitors(ctx: Context) -> Iterator[Finding]:
    """Whether checkpoint, early stopping and plateau take the better of two values for the better one."""
    directions: dict[str, str] = {"loss": "min", **ctx.task.main_metrics}
    for key, metric, mode in monitored_metrics(ctx.trainer, ctx.task):
        name = re.sub("^(val|train|test)/", "", metric)
        names = (name, name.removesuffix("_pooled"), name.partition("/")[0])
        good = next((directions[name] for name in names if name in directions), mode)
        if good == "zero":
            yield error(f"{key}: {metric}, {mode}", f"{metric} is best at 0: monitor another metric")
        elif good != mode:
            yield error(f"{key}: {metric}, {mode}", f"{metric} is best at its {good}imum: write mode: {good}")


def updates(ctx: Context) -> Iterator[Finding]:
    """Whether gradients are summed over too many batches, and an average of the weights forgets the first ones."""
    n_batches, n_added = ctx.data.n_training_batches(ctx.trainer), ctx.trainer.accumulate_grad_batches
    if n_added > n_batches:
        yield warning(f"accumulate_grad_batches {n_added}", f"an epoch has {n_batches} batches: one step per epoch")
    epochs, per_epoch = training_length(ctx)
    for callback in ctx.trainer.callbacks:  # type: ignore[attr-defined]
        average = getattr(callback, "_kwargs", {}).get("avg_fn") if isinstance(callback, WeightAveraging) else None
        if average is None or math.isinf(epochs):
            continue
        n = epochs * per_epoch // max(getattr(callback, "update_every_n_steps", 1), 1)
        left = 1 - float(average(torch.zeros(1), torch.ones(1), 1))
        if left**n > limits.UNTRAINED:
            advice = f"in {n} updates the average keeps {format_percent(left**n)} of its first weights: a smaller decay"
            yield warning(f"{type(callback).__name__}, decay {left:.6g}", advice)


def monitored_metrics(trainer: Trainer, task: Task) -> Iterator[tuple[str, str, str]]:
    """Key in the configuration, metric, and mode ("min" or "max") of all that monitors a metric."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        metric, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        if metric and mode in ("min", "max"):
            is_best = callback is trainer.checkpoint_callback
            yield "checkpoint" if is_best else type(callback).__name__, metric, mode
    class_, arguments = class_and_arguments(task.lr_scheduler) if task.lr_scheduler else (object, {})
    if issubclass(class_, ReduceLROnPlateau):
        yield "lr_scheduler", arguments.get("monitor", "val/loss"), arguments.get("mode", "min")
