"""Checks that train on one batch: learning-rate range, memorizing the batch, range of the predictions."""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.loss import compute_losses
from project.checks.report import Finding, error, not_judged, ok, warning
from project.data.batch import Tensors
from project.formatting import format_number, format_percent
from project.optimizers import ADAMW, class_and_arguments
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

    `rates` are those of the head; other layers keep their proportions. No step begins after `seconds` of processor
    time, or after a loss smaller than `stop_below`. A loss without a gradient is the last.
    """
    task = ctx.fresh_task()
    if not augmented:
        task.intensity_augmentation, task.device_augmentation = nn.Identity(), nn.Identity()
    if task.finetuning and task.finetuning.freeze_epochs == -1:
        task.finetuning.apply(task.net, 0)
    class_, arguments = class_and_arguments(task.optimizer or ADAMW)
    named = [(name, p) for name, p in task.named_parameters() if p.requires_grad]
    done, started = Steps(task, without_gradient={name for name, _ in named}), time.thread_time()
    if not named:
        return done
    weights = [p for _, p in named]
    optimizer = class_(task.parameter_groups(rates[0]), **arguments | {"lr": rates[0]})
    shares = [group["lr"] / rates[0] for group in optimizer.param_groups]
    for step, rate in enumerate(rates):
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        torch.manual_seed(step)
        optimizer.zero_grad()
        with torch.enable_grad():
            loss: Any = task.training_step(dict(batch), step)
        loss = loss["loss"] if isinstance(loss, dict) else loss
        done.losses.append(float(loss.detach()))
        if not math.isfinite(done.losses[-1]) or not loss.requires_grad:
            break
        loss.backward()
        gradients = {name: p.grad for name, p in named if p.grad is not None}
        done.without_gradient -= gradients.keys()
        if step < 6:
            done.with_nonzero_gradient |= {name for name, grad in gradients.items() if bool(grad.count_nonzero())}
        done.norms.append(float(nn.utils.clip_grad_norm_(weights, math.inf if ctx.clips_values else ctx.clip)))
        if ctx.clips_values:
            nn.utils.clip_grad_value_(weights, ctx.clip)
        if not math.isfinite(done.norms[-1]) or done.losses[-1] < stop_below:
            break
        if step + 1 < len(rates):
            optimizer.step()
        if time.thread_time() - started > seconds:
            break
    return done


def _repeated_batch(ctx: Context) -> Tensors:
    """The batch that is memorized: few samples, of different classes where there are."""
    labels = None if ctx.task.is_dense else ctx.train.reader.labels
    if labels is None or labels.ndim > 1:
        return ctx.small_batch()
    batch = ctx.batch(64, side=None)
    numbers = batch["label"].tolist()
    # The first of each class, then the second of each class, and so on.
    order = sorted(range(len(numbers)), key=lambda i: numbers[:i].count(numbers[i]))
    order = order[: min(4, max(ctx.data.batch_size, 2))]
    return {name: value[torch.tensor(order, device=value.device)] for name, value in batch.items()}


def learning_rate(ctx: Context) -> Iterator[Finding]:
    """Where the learning rate lies in a short range test on one batch (Smith, 2017, section 3.3)."""
    rate, batch = ctx.learning_rate, _repeated_batch(ctx)
    if rate is None:
        yield warning("not given", "set optimizer.init_args.lr")
        return
    started = time.thread_time()
    train_steps(ctx, batch, [limits.RATES[0]] * 2)
    per_step = max((time.thread_time() - started) / 2, 1e-6)
    n = int(np.clip(limits.SECONDS["rate"] / per_step, 14, limits.RATE_STEPS))
    low, high = min(limits.RATES[0], rate / 10), max(limits.RATES[1], rate)
    rates = np.geomspace(low, high, n).tolist()
    falls_best_rises = read_range(rates, train_steps(ctx, batch, rates).losses)
    if falls_best_rises is None:
        yield not_judged(f"{rate:.2g}", f"the loss falls at no learning rate from {low:.1g} to {high:.1g}")
        return
    falls, best, rises = falls_best_rises
    suggestion = min(max(best / 5, falls), rises / 3)
    is_low = rate < max(falls / limits.TOO_LOW, suggestion / limits.FAR_TOO_LOW)
    if not is_low and rate < rises:
        yield ok(f"{rate:.2g}, loss falls from {falls:.1g} to {min(rises, high):.1g}")
        return
    ctx.suggested_rate, remedy = suggestion, f"take about {suggestion:.1g}"
    losses = [] if is_low else train_steps(ctx, batch, [rate] * 12, seconds=limits.SECONDS["rate"] / 3).losses
    if is_low:
        yield warning(f"{rate:.2g}", f"too low: the loss is lowest at {best:.1g}; {remedy}")
    elif not math.isfinite(losses[-1]) or losses[-1] > limits.DIVERGED * losses[0]:
        yield error(f"{rate:.2g}", f"too high: the loss diverges; {remedy}")
    else:
        yield warning(f"{rate:.2g}", f"too high: the loss rises from {rises:.1g} on; {remedy}")


def read_range(rates: list[float], losses: list[float]) -> tuple[float, float, float] | None:
    """The rates at which the loss begins to fall, is lowest, and has risen again (infinity: never); None: never falls.

    `losses` are those at each of the ascending `rates`, fewer where the test ended early.
    """
    curve, mean = [], 0.0
    for step, loss in enumerate(losses, start=1):  # exponential moving average, corrected for its start
        mean = (mean + loss) / 2
        curve.append(mean / (1 - 0.5**step) if math.isfinite(mean) else math.inf)
    start, lowest = curve[0], int(np.argmin(curve))
    gained = start - curve[lowest]
    if not gained > 1e-3 * abs(start):
        return None
    falls = next(r for r, loss in zip(rates, curve, strict=False) if loss <= start - limits.FALLS * gained)
    after = zip(rates[lowest:], curve[lowest:], strict=False)
    never = rates[len(curve) - 1] if len(curve) < len(rates) else math.inf
    rises = next((r for r, loss in after if loss > curve[lowest] + limits.RISES * gained), never)
    return falls, rates[lowest], rises


def one_batch(ctx: Context) -> Iterator[Finding]:
    """Whether the network can memorize one batch."""
    if ctx.learning_rate is None:
        return
    steps, left = _memorize(ctx, ctx.suggested_rate or ctx.learning_rate)
    n = len(steps.losses)
    if n == 0 or not math.isfinite(steps.losses[-1]):
        yield error(f"loss not finite after {n} steps", "lower the learning rate, or set trainer.gradient_clip_val")
    elif left is None:
        yield not_judged(f"loss {steps.losses[0]:.2g}", "there is nothing to learn from this batch")
    else:
        measured = f"{format_percent(max(left, 0.0))} of what can be learned is left after {n} steps"
        if left <= limits.FIT_WEAK:
            yield ok(measured)
        elif n < limits.FIT_STEPS:
            yield not_judged(measured, "one step takes too long here: a GPU or a smaller network can judge it")
        else:
            level = error if left > limits.FIT_FAILED else warning
            yield level(measured, _explain_failure(ctx, steps.task.eval()))


def _memorize(ctx: Context, rate: float) -> tuple[Steps, float | None]:
    """Train on one batch, at a learning rate that rises in the first steps, until it is learned or time is up.

    Returns the steps, and the share of the loss that could be lowered and was not; None if nothing could.
    """
    batch, task = _repeated_batch(ctx), ctx.fresh_task()
    with torch.no_grad():
        best, first, _ = compute_losses(task, *task.forward_batch(batch))
    best = 0.0 if math.isnan(best) else best
    ramp = [rate * min(1.0, (step + 1) / 5) for step in range(limits.FIT_STEPS)]
    enough = best + limits.FIT_ENOUGH * (first - best) if first > best else -math.inf
    steps = train_steps(ctx, batch, ramp, limits.SECONDS["fit"], enough)
    if not steps.losses:
        return steps, None
    first = min(steps.losses[0], first) if first - best > 1e-6 else steps.losses[0]
    lowest = min(float(np.median(steps.losses[-3:])), steps.losses[-1])
    return steps, (lowest - best) / (first - best) if first - best > 1e-6 else None


def _explain_failure(ctx: Context, task: Task) -> str:
    """Why the trained task has not learned one batch: what its output shows, or a setting without which it learns."""
    batch = _repeated_batch(ctx)
    with torch.no_grad():
        x, target = task.network_input(batch), task.make_target(batch)
        output = task.apply_net(x)
    if task.target_kind in ("image", "value") and output.shape == target.shape and float(target.std()) > 1e-6:
        mean, std, wanted, spread = (float(v) for v in (output.mean(), output.std(), target.mean(), target.std()))
        is_far = abs(mean - wanted) > limits.RANGE_SHIFT * spread
        if is_far or not 1 / limits.RANGE_RATIO < std / spread < limits.RANGE_RATIO:
            ranges = "{} ± {}, target {} ± {}".format(*map(format_number, (mean, std, wanted, spread)))
            return f"prediction {ranges}: their ranges differ. Is the output of the network bounded?"
    class_, arguments = class_and_arguments(ctx.task.optimizer or ADAMW)
    usual, clip = copy.copy(ctx), f"trainer.gradient_clip_val {ctx.clip:g}"
    usual.task, usual.clip = copy.deepcopy(ctx.task), math.inf
    rate = ctx.suggested_rate or ctx.learning_rate or 1e-3
    tried = [clip] if math.isfinite(ctx.clip) else []
    if tried and _is_learned(usual, rate):
        return f"it is learned without {clip}: change that"
    usual.task.optimizer = ADAMW
    tried.append(f"{class_.__name__} with {', '.join(f'{key} {value}' for key, value in arguments.items())}")
    if _is_learned(usual, 1e-3):
        return f"it is learned with AdamW at 1e-3, without {' and '.join(tried)}: change that"
    net = usual.task.net.eval()
    net.train = lambda mode=True: net  # type: ignore[method-assign]
    if _is_learned(usual, 1e-3):
        return "it is learned without dropout and statistics of the batch (in evaluation mode): change that"
    return "it cannot be learned: a larger network, or do the targets contradict each other?"


def _is_learned(ctx: Context, rate: float) -> bool:
    left = _memorize(ctx, rate)[1]
    return left is not None and left <= limits.FIT_WEAK
