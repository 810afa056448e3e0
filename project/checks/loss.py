"""Checks of the loss: a perfect prediction must cost less than one that does not depend on the image."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.last_activation import LOGARITHMS, PROBABILITIES, last_operation, traced_output
from project.checks.report import Verdict, error, not_judged, warning
from project.tasks.base import Task

# Shares of the truth in predictions of classes: with label smoothing, certainty is not the best.
CERTAINTIES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.99, 1 - 1e-4, 1 - 1e-6)


class Predictions(NamedTuple):
    """Outputs of a network, (B, K, ...) each, of which the loss must be the lowest, in between, and the highest."""

    perfect: list[Tensor]
    constant: list[Tensor]
    opposite: list[Tensor]


class Losses(NamedTuple):
    """The lowest loss of each kind of predictions; NaN where it is not known or not finite."""

    perfect: float
    constant: float
    opposite: float


def loss(ctx: Context) -> Iterator[Verdict]:
    """Whether a perfect prediction has a lower loss than a constant one."""
    task, batch = ctx.fresh_task().eval(), ctx.small_batch(8)
    output = traced_output(task, {name: values[:2] for name, values in batch.items()})
    if output is None:
        return
    last, target = last_operation(output)[0], _with_all_classes(task.make_target(batch), output.shape[1])
    output = output.detach()[:1].expand(len(target), *output.shape[1:])
    if predictions(task, output, target, last) is None:
        return  # this task compares other things
    losses = compute_losses(task, output, target, last)
    perfect, constant, opposite = losses
    if math.isnan(perfect):
        yield not_judged("loss", "not finite for a perfect prediction", "a logarithm, root or division at 0?")
        return
    other = opposite if math.isnan(constant) else constant
    gain = (other - perfect) / (max(abs(other), abs(perfect)) or 1)
    measured = f"{perfect + 0.0:.3g} for a perfect prediction, {other:.3g} for a constant one"
    smoothing = _label_smoothing(task.loss)
    if smoothing > limits.SMOOTHING:
        advice = f"label_smoothing {smoothing:g} leaves little to learn: take 0.1 or less"
        yield Verdict("loss", measured, "error" if gain < limits.NO_GAIN else "warning", advice)
    elif gain < -1e-6 and not opposite > perfect:
        advice = "reversed: training would make predictions worse. Is a minus missing or too many? Of a score, take"
        yield error("loss", measured, f"{advice} 1 - score")
    elif abs(gain) < 1e-6:
        yield error("loss", measured, "the loss does not depend on the prediction: see its `forward`")
    elif gain < limits.LITTLE_GAIN[bool(task.n_classes and not smoothing)]:
        advice = (
            "even a perfect prediction costs much: softmax or sigmoid twice, other values expected, a constant added?"
        )
        yield warning("loss", measured, advice)
    elif _grows_with_batch(task, output, target):
        advice = "the loss is a sum over the batch, so that the learning rate depends on batch_size; take its mean"
        yield warning("loss", measured, f"{advice} (reduction: mean)")
    else:
        yield Verdict("loss", measured)


def compute_losses(task: Task, output: Tensor, target: Tensor, last: str = "") -> Losses:
    """The losses of made-up predictions for a target; `output` of the network gives their shape.

    Args:
        task: Whose loss is computed.
        output: (B, K, ...), of any values.
        target: As the task makes it.
        last: The last operation of the network, see `last_operation`: logits, probabilities or their logarithms.
    """
    made = predictions(task, output, target, last)
    if made is None:
        zeros = _lowest(task, [torch.zeros_like(output)], target)
        return Losses(math.nan, zeros, math.nan)
    return Losses(*(_lowest(task, kind, target) for kind in made))


def _lowest(task: Task, outputs: list[Tensor], target: Tensor) -> float:
    with torch.no_grad():
        losses = [float(task.compute_loss(output, target)) for output in outputs]
    return min((value for value in losses if not math.isnan(value) and value < math.inf), default=math.nan)


def predictions(task: Task, output: Tensor, target: Tensor, last: str = "") -> Predictions | None:
    """Perfect, constant and opposite outputs for a target; None for tasks that compare other things."""
    if not target.is_floating_point() and output.ndim == target.ndim + 1:
        truth = functional.one_hot(target.clamp(0, output.shape[1] - 1), output.shape[1]).movedim(-1, 1).float()
    elif (
        (task.target_kind or target.ndim == 4)
        and target.ndim == output.ndim
        and target[:, : output.shape[1]].shape == output.shape
    ):
        truth = target[:, : output.shape[1]].float()  # of masked images, the last channel says what is hidden
    else:
        return None
    zeros = torch.zeros_like(truth)
    if not task.n_classes:
        mean = truth.mean([axis for axis in range(truth.ndim) if axis != 1], keepdim=True).expand_as(truth)
        # The mean of a few numbers per image is near all of them; that of many pixels is a fair constant.
        known = [mean, zeros + truth.median()] if truth.ndim == 4 else []
        return Predictions([truth], [zeros, *known], [2 * mean - truth])
    several, n = target.is_floating_point(), output.shape[1]
    even = zeros + (0.5 if several else 1 / n)
    false = 1 - truth if several else (1 - truth) / max(n - 1, 1)

    def encode(shares: Tensor) -> Tensor:
        shares = shares.clamp(1e-6, 1 - 1e-6)
        if last in PROBABILITIES:
            return shares
        if several:
            return shares.logit()
        logarithms = shares.log()
        return logarithms if last in LOGARITHMS else logarithms - logarithms.mean(1, keepdim=True)

    mixed = ([encode(share * x + (1 - share) * even) for share in CERTAINTIES] for x in (truth, false))
    perfect, opposite = mixed
    return Predictions(perfect, [encode(even)], opposite)


def _with_all_classes(target: Tensor, n_classes: int) -> Tensor:
    """Class numbers that differ: all pixels of a few crops may be background."""
    if target.is_floating_point() or len(target[target >= 0].unique()) > 1:
        return target
    return (torch.arange(target.numel(), device=target.device) % n_classes).view_as(target)


def _label_smoothing(module: nn.Module) -> float:
    names = ("label_smoothing", "smooth_factor")
    values = [getattr(part, name, None) for part in module.modules() for name in names]
    return max((float(value) for value in values if isinstance(value, int | float)), default=0.0)


def _grows_with_batch(task: Task, output: Tensor, target: Tensor) -> bool:
    zeros = torch.zeros_like(output)
    once, twice = (
        _lowest(task, [zeros], target),
        _lowest(task, [zeros.repeat_interleave(2, 0)], target.repeat_interleave(2, 0)),
    )
    return abs(once) > 1e-6 and 1.9 < twice / once < 2.1
