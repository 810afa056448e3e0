"""Checks that train on one batch: learning-rate range, memorizing the batch, range of the predictions."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import instantiate_class
from torch import Tensor, nn

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Verdict, error, warning
from project.data.batch import Tensors
from project.formatting import format_number, format_percent
from project.tasks.base import Task


@dataclass
class Steps:
    """Training steps on one batch: the task after them, loss before and norm of the gradient of each step.

    A loss that is not finite is the last. The sets are names of trainable parameters.
    """

    task: Task
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    with_nonzero_gradient: set[str] = field(default_factory=set)
    without_gradient: set[str] = field(default_factory=set)


def train_steps(
    ctx: Context,
    batch: Tensors,
    rates: list[float],
    seconds: float = math.inf,
    stop_below: float = -math.inf,
    augmented: bool = False,
) -> Steps:
    """Train a copy of the task on one batch with the experiment's optimizer, one step at each learning rate.

    `rates` are those of the head; other layers keep their proportions. No step begins after `seconds`, or after a loss
    smaller than `stop_below`.
    """
    task = ctx.fresh_task()
    if not augmented:
        task.intensity_augmentation, task.device_augmentation = nn.Identity(), nn.Identity()
    if task.finetuning and task.finetuning.freeze_epochs == -1:
        task.finetuning.apply(task.net, 0)
    section = {**task.optimizer, "init_args": {**task.optimizer["init_args"], "lr": rates[0]}}
    named = [(name, p) for name, p in task.named_parameters() if p.requires_grad]
    done, started = Steps(task, without_gradient={name for name, _ in named}), time.monotonic()
    if not named:
        return done
    optimizer = instantiate_class(task.parameter_groups(rates[0]), section)
    shares = [group["lr"] / rates[0] for group in optimizer.param_groups]
    clip = float(ctx.trainer.gradient_clip_val or math.inf)
    for step, rate in enumerate(rates):
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        torch.manual_seed(step)
        optimizer.zero_grad()
        with torch.enable_grad():
            loss: Any = task.training_step(dict(batch), step)
        loss = loss["loss"] if isinstance(loss, dict) else loss
        done.losses.append(float(loss.detach()))
        if not math.isfinite(done.losses[-1]):
            break
        loss.backward()
        gradients = {name: p.grad for name, p in named if p.grad is not None}
        done.without_gradient -= gradients.keys()
        if step < 6:
            done.with_nonzero_gradient |= {name for name, grad in gradients.items() if bool(grad.count_nonzero())}
        done.norms.append(float(nn.utils.clip_grad_norm_([p for _, p in named], clip)))
        if not math.isfinite(done.norms[-1]) or done.losses[-1] < stop_below:
            break
        if step + 1 < len(rates):
            optimizer.step()
        if time.monotonic() - started > seconds:
            break
    return done


def constant_loss(task: Task, output: Tensor, target: Tensor) -> float:
    """The loss of answers that do not depend on the image: zeros, or the mean or median of a target of values."""
    zeros = torch.zeros_like(output)
    answers = [zeros]
    if target.is_floating_point() and target.shape == output.shape and target.ndim == 4:
        answers += [zeros + target.mean((0, 2, 3), keepdim=True), zeros + target.flatten().median()]
    with torch.no_grad():
        losses = [float(task.compute_loss(answer, target)) for answer in answers]
    return min((loss for loss in losses if math.isfinite(loss)), default=math.nan)


def _repeated_batch(ctx: Context) -> Tensors:
    """The batch that is memorized: few samples, of different classes where there are."""
    labels = None if ctx.task.is_dense else ctx.train.reader.labels
    if labels is None or labels.ndim > 1:
        return ctx.small_batch()
    batch = ctx.batch(64, side=None)
    numbers = batch["label"].tolist()
    # The first of each class, then the second of each class, and so on.
    order = sorted(range(len(numbers)), key=lambda i: numbers[:i].count(numbers[i]))
    order = order[: min(8, max(ctx.data.batch_size, 2))]
    return {name: value[torch.tensor(order, device=value.device)] for name, value in batch.items()}


def learning_rate(ctx: Context) -> Iterator[Verdict]:
    """Where the learning rate lies in a short range test on one batch (Smith, 2017, section 3.3)."""
    rate = ctx.learning_rate
    if rate is None:
        yield warning("learning rate", "not given", "set optimizer.init_args.lr")
        return
    batch = _repeated_batch(ctx)
    started = time.monotonic()
    train_steps(ctx, batch, [limits.RATES[0]] * 2)
    per_step = max((time.monotonic() - started) / 2, 1e-6)
    n = int(np.clip(limits.SECONDS["rate"] / per_step, 14, limits.RATE_STEPS))
    low, high = min(limits.RATES[0], rate / 10), max(limits.RATES[1], rate)
    rates = np.geomspace(low, high, n).tolist()
    curve = _smoothed(train_steps(ctx, batch, rates).losses)
    measured, limits_of_rate = f"{rate:.2g}", read_range(rates, curve)
    if limits_of_rate is None:
        advice = f"the loss falls at no rate from {low:.0e} to {high:.0e}: see loss and network"
        yield warning("learning rate", measured, advice)
        return
    falls, best, rises = limits_of_rate
    ctx.suggested_rate = suggestion = min(max(best / 5, falls), rises / 3)
    if rate >= rises:
        losses = train_steps(ctx, batch, [rate] * 12, seconds=limits.SECONDS["rate"] / 3).losses
        diverged = not math.isfinite(losses[-1]) or losses[-1] > limits.DIVERGED * losses[0]
        advice = f"{'diverges; ' * diverged}loss rises from {rises:.0e} on; take about {suggestion:.0e}"
        yield Verdict("learning rate", measured, "error" if diverged else "warning", advice)
    elif rate < falls / limits.TOO_LOW:
        advice = f"loss hardly falls below {falls:.0e}; take about {suggestion:.0e}"
        yield warning("learning rate", measured, advice)
    else:
        yield Verdict("learning rate", f"{measured}, loss falls from {falls:.0e} to {min(rises, high):.0e}")


def _smoothed(losses: list[float], weight: float = 0.5) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smoothed, mean = [], 0.0
    for step, loss in enumerate(losses, start=1):
        mean = weight * mean + (1 - weight) * loss
        smoothed.append(mean / (1 - weight**step))
    return smoothed


def read_range(rates: list[float], curve: list[float]) -> tuple[float, float, float] | None:
    """The rates at which the loss begins to fall, is lowest, and has risen again (infinity: never); None: never falls.

    `curve` is the smoothed loss at each of the ascending `rates`, shorter where the test ended early.
    """
    finite = [loss if math.isfinite(loss) else math.inf for loss in curve]
    start, lowest = finite[0], int(np.argmin(finite))
    gained = start - finite[lowest]
    if not gained > 1e-3 * abs(start):
        return None
    falls = next(r for r, loss in zip(rates, finite, strict=False) if loss <= start - limits.FALLS * gained)
    after = zip(rates[lowest:], finite[lowest:], strict=False)
    rises = next((r for r, loss in after if loss > finite[lowest] + limits.RISES * gained), math.inf)
    if math.isinf(rises) and len(curve) < len(rates):
        rises = rates[len(curve) - 1]
    return falls, rates[lowest], rises


def one_batch(ctx: Context) -> Iterator[Verdict]:
    """Whether the network can memorize one batch, and then predicts in the range of the target."""
    rate = ctx.learning_rate
    if rate is None:
        return
    suggestion = ctx.suggested_rate or rate
    if not suggestion / 30 < rate < suggestion * 30:
        rate = suggestion  # the rate has a verdict of its own
    batch, task = _repeated_batch(ctx), ctx.fresh_task()
    with torch.no_grad():
        constant = constant_loss(task, *task.forward_batch(batch))
    enough = limits.FIT_ENOUGH * constant if constant > 0 else -math.inf
    ramp = [rate * min(1.0, (step + 1) / 5) for step in range(limits.FIT_STEPS)]
    fitted = train_steps(ctx, batch, ramp, limits.SECONDS["fit"], enough)
    losses, n = fitted.losses, len(fitted.losses)
    if n == 0 or not math.isfinite(losses[-1]):
        advice = "lower the learning rate, or set trainer.gradient_clip_val"
        yield error("one batch", f"loss not finite after {n} steps", advice)
        return
    first = min(losses[0], constant) if constant > 1e-6 else losses[0]
    if first <= 1e-6:
        return
    left = min(float(np.median(losses[-3:])), losses[-1]) / first
    measured = f"{format_percent(max(left, 0.0))} of the loss left after {n} steps"
    still_falling = losses[-1] < 0.97 * float(np.mean(losses[n // 2 :][:5]))
    if n < limits.FIT_FEWEST and left > limits.FIT_WEAK:
        yield Verdict("one batch", f"{measured} (slow; not judged)")
    elif left > limits.FIT_FAILED:
        advice = "the network cannot learn even this: does its output depend on the input, do weights get gradients?"
        yield error("one batch", measured, advice)
    elif left > limits.FIT_WEAK and not still_falling:
        advice = "memorized only in part: a larger network, another rate, or targets that contradict each other?"
        yield warning("one batch", measured, advice)
    else:
        yield Verdict("one batch", measured)
    if task.target_kind in ("image", "value"):
        yield from _prediction_range(fitted.task, batch)


def _prediction_range(task: Task, batch: Tensors) -> Iterator[Verdict]:
    """Whether predictions have the mean and spread of the target, once a batch is fitted."""
    with torch.no_grad():
        output, target = task.forward_batch(batch)
    if output.shape != target.shape or float(target.std()) < 1e-6:
        return
    numbers = [float(x) for x in (output.mean(), output.std(), target.mean(), target.std())]
    measured = "{} ± {}, target {} ± {}".format(*map(format_number, numbers))
    shift, ratio = abs(numbers[0] - numbers[2]) / numbers[3], numbers[1] / numbers[3]
    if shift > limits.RANGE_SHIFT or not 1 / limits.RANGE_RATIO < ratio < limits.RANGE_RATIO:
        advice = "prediction and target differ after fitting one batch: see last activation and target_normalization"
        yield warning("prediction range", measured, advice)
    else:
        yield Verdict("prediction range", measured)
