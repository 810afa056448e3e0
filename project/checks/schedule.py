"""Checks of the learning-rate schedule, stepped through the whole training without training."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Verdict, error, not_judged, warning
from project.formatting import format_percent
from project.tasks.base import Task

# Attributes of schedules that are a length in their own steps, and whether the training should end there.
LENGTHS = {"total_steps": True, "T_max": True, "step_size": False, "milestones": False}


class TrainerOfKnownLength:
    """The trainer, but with a length that is known before the training."""

    def __init__(self, trainer: Trainer, steps: float) -> None:
        self._trainer, self.estimated_stepping_batches = trainer, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


def schedule(ctx: Context) -> Iterator[Verdict]:
    """Whether the learning rate is high enough for long enough, and the schedule as long as the training."""
    if ctx.task.lr_scheduler is None and type(ctx.task).configure_optimizers is Task.configure_optimizers:
        return
    epochs, per_epoch = training_length(ctx)
    if math.isinf(epochs):
        return  # the training ends after some time, or by hand
    task: Any = ctx.fresh_task()
    task.trainer = TrainerOfKnownLength(ctx.trainer, epochs * per_epoch)
    if type(task).configure_optimizers is Task.configure_optimizers:
        weights = nn.Parameter(torch.zeros(1, 1))  # of all groups: their proportions do not change
        task.parameter_groups = lambda lr: [{"params": [weights]} | ({} if lr is None else {"lr": lr})]
    built = task.configure_optimizers()
    config = built.get("lr_scheduler") if isinstance(built, dict) else None
    if not config:
        return
    scheduler = config["scheduler"] if isinstance(config, dict) else config
    by_step = isinstance(config, dict) and config.get("interval") == "step"
    name, unit = type(scheduler).__name__, "steps" if by_step else "epochs"
    if isinstance(scheduler, ReduceLROnPlateau):
        if scheduler.patience >= epochs:
            advice = f"the learning rate is never reduced: patience counts epochs, and the training has {epochs}"
            yield warning("schedule", f"{name}, patience {scheduler.patience}", advice)
        return
    n = epochs * per_epoch if by_step else epochs
    if n > limits.SCHEDULE_STEPS[ctx.full]:
        if ctx.full:
            yield not_judged("schedule", f"{name}, {n} {unit}", "too long to be tried")
        return
    try:
        rates = rates_of(built["optimizer"], scheduler, n)
    except Exception as failure:
        yield error("schedule", name, f"{failure}; the training has {n} {unit}")
        return
    yield judge_rates(scheduler, np.array(rates), unit, ctx.learning_rate or 0.0)


def training_length(ctx: Context) -> tuple[Any, int]:
    """Epochs, infinite if they are not limited, and optimizer steps in each."""
    trainer = ctx.trainer
    batches = max(len(ctx.data.datasets["train"]) // trainer.world_size // max(ctx.data.batch_size, 1), 1)
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else max(int(batches * limit), 1)
    per_epoch = max(math.ceil(batches / trainer.accumulate_grad_batches), 1)
    epochs = trainer.max_epochs
    by_epochs = math.inf if epochs == -1 else 1000 if epochs is None else epochs
    by_steps = math.inf if trainer.max_steps == -1 else math.ceil(trainer.max_steps / per_epoch)
    return min(by_epochs, by_steps), per_epoch


def rates_of(optimizer: Any, scheduler: Any, n: int) -> list[float]:
    """The highest learning rate of the groups in each of `n` steps of the schedule."""
    rates = []
    optimizer.step()  # without gradients; torch wants it before the first step of a schedule
    for _ in range(n):
        rates.append(float(max(group["lr"] for group in optimizer.param_groups)))
        scheduler.step()
    return rates


def judge_rates(scheduler: Any, rates: np.ndarray, unit: str, given: float) -> Verdict:
    """The verdict on the learning rates (N,) of a whole training, one per step or epoch."""
    n, peak, name = len(rates), float(rates.max()), type(scheduler).__name__
    late = float((rates >= 0.99 * peak).argmax()) / max(n - 1, 1)
    end, low, zero = rates[-1] / (peak or 1), (rates < 0.01 * peak).mean(), (rates <= 1e-6 * peak).mean()
    measured = f"{name}: {rates[0]:.2g}, highest {peak:.2g}, last {rates[-1]:.2g} in {n} {unit}"
    length, key = next(((_length(scheduler, key), key) for key in LENGTHS if _length(scheduler, key)), (n, ""))
    differs = length >= n if not LENGTHS.get(key) else not n / limits.LENGTH < length < n * limits.LENGTH
    if key and n > 1 and differs:
        remedy = f"write {key}: {n}" if LENGTHS[key] else "write less"
        remedy += ", or leave it out" if key == "total_steps" else ""
        advice = f"{key} is {length:g}, but the training has {n} {unit}: the learning rate ends at "
        return warning("schedule", measured, f"{advice}{format_percent(float(end))} of its highest; {remedy}")
    if peak <= 0 or zero > limits.ZERO_RATE or low > limits.LOW_RATE or rates.mean() < limits.MEAN_RATE * peak:
        first = int((rates < 0.01 * peak).argmax())
        advice = f"hardly anything is learned from {unit[:-1]} {first} on: the schedule is too short or falls too fast"
        return warning("schedule", measured, advice)
    if late > limits.LATE_PEAK and n > 2:
        advice = f"it rises for {format_percent(late)} of the training: is its warm-up counted in {unit}?"
        return warning("schedule", measured, advice)
    if peak < limits.NEVER_REACHED * given and not isinstance(scheduler, OneCycleLR | CyclicLR):
        return warning("schedule", measured, f"it never comes near optimizer.init_args.lr, {given:g}; see {name}")
    return Verdict("schedule", measured)


def _length(scheduler: Any, key: str) -> float:
    value = getattr(scheduler, key, None)
    if key == "milestones" and value:
        return float(min(value))
    return float(value) if isinstance(value, int | float) else 0.0
