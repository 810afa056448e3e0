"""Checks of the loss and the last activation: a perfect prediction must be possible, and cost less than others."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Finding, error, not_judged, ok, warning
from project.data.batch import Tensors
from project.formatting import format_percent
from project.tasks.base import Task

PROBABILITIES = ("Sigmoid", "Hardsigmoid", "Softmax")
LOGARITHMS = ("LogSoftmax", "LogSigmoid")
# What the last operation of a network can give: its name in the graph of gradients -> smallest and largest value.
BOUNDS = {
    **dict.fromkeys(("Relu", "Softplus", "Exp", "Abs"), (0.0, math.inf)),
    **dict.fromkeys(PROBABILITIES, (0.0, 1.0)),
    **dict.fromkeys(LOGARITHMS, (-math.inf, 0.0)),
    "Tanh": (-1.0, 1.0),
}
# Operations that change no value.
RESHAPING = (
    *("View", "UnsafeView", "Reshape", "Clone", "Slice", "Select", "Squeeze", "Unsqueeze", "Permute", "Transpose"),
    *("Alias", "ToCopy", "Expand", "T", "Contiguous"),
)
# Shares of the truth in predictions of classes: with label smoothing, certainty is not the best.
CERTAINTIES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.99, 1 - 1e-4, 1 - 1e-6)


def activation(ctx: Context) -> Iterator[Finding]:
    """Whether the last activation can give what is learned: unbounded logits, all values of the target."""
    task, batch = ctx.fresh_task(), ctx.small_batch()
    if (output := _traced_output(task, batch)) is None:
        return
    last, (low, high) = last_operation(output)
    target, modules = task.make_target(batch), list(task.loss.modules())
    has_values = target.is_floating_point() and target.shape == output.shape and not task.n_classes
    outside = float(((target < low - 0.01) | (target > high + 0.01)).float().mean()) if has_values else 0.0
    measured = f"{last.lower()}: {low:g} to {high:g}" if last else "unbounded"
    of_probabilities = [
        m for m in modules if isinstance(m, nn.BCELoss | nn.NLLLoss) or not getattr(m, "from_logits", True)
    ]
    advice = ""
    if target.is_floating_point() and task.n_classes and any(isinstance(m, nn.CrossEntropyLoss) for m in modules):
        advice = "torch's CrossEntropyLoss takes one class per image, not several: take project.losses.CrossEntropy"
    elif of_probabilities and last not in (*PROBABILITIES, *LOGARITHMS):
        advice = f"{type(of_probabilities[0]).__name__} expects probabilities: take a loss of logits"
    elif last and last not in LOGARITHMS and not has_values:
        advice = "the loss and the task expect logits, which have no bounds: remove the last activation"
    elif last and outside > limits.UNREACHABLE:
        share = format_percent(outside)
        advice = f"{share} of the normalized target lie outside: remove it, or normalize otherwise"
    yield error(measured, advice) if advice else ok(measured)


def _traced_output(task: Task, batch: Tensors) -> Tensor | None:
    """Output of the network with its graph of gradients; None if it fails with these, which another check reports."""
    try:
        with torch.enable_grad():
            return task.apply_net(task.network_input(batch))
    except Exception:  # a network of the user may raise anything
        return None


def last_operation(output: Tensor) -> tuple[str, tuple[float, float]]:
    """The operation that made a tensor, apart from reshaping, and the bounds of its values; "" where it has none."""
    node: Any = output.grad_fn
    while node is not None:
        name = node.name().rpartition("Backward")[0].removesuffix("Safe").lstrip("_")
        if name == "Hardtanh":  # also of ReLU6
            return name, (float(node._saved_min_val), float(node._saved_max_val))
        if name == "Clamp":
            low, high = node._saved_min, node._saved_max
            return name, (-math.inf if low is None else float(low), math.inf if high is None else float(high))
        if name in BOUNDS:
            return name, BOUNDS[name]
        if name not in RESHAPING or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return "", (-math.inf, math.inf)


def loss(ctx: Context) -> Iterator[Finding]:
    """Whether a perfect prediction has a lower loss than a constant one."""
    task, batch = ctx.fresh_task().eval(), ctx.small_batch(8)
    output = _traced_output(task, {name: values[:2] for name, values in batch.items()})
    if output is None:
        return
    last, target = last_operation(output)[0], _with_all_classes(task.make_target(batch), output.shape[1])
    output = output.detach()[:1].expand(len(target), *output.shape[1:])
    if (made := predictions(task, output, target, last)) is None:
        return  # this task compares other things
    perfect, constant, opposite = compute_losses(task, output, target, last)
    if math.isnan(perfect):
        yield not_judged("not finite for a perfect prediction", "a logarithm, root or division at 0?")
        return
    other = opposite if math.isnan(constant) else constant
    gain = (other - perfect) / (max(abs(other), abs(perfect)) or 1)
    least = perfect - 0.5 * (other - perfect) if gain > 0 else -math.inf
    measured = f"{perfect + 0.0:.3g} for a perfect prediction, {other:.3g} for a constant one"
    names = ("label_smoothing", "smooth_factor")
    smoothing = max(float(getattr(part, name, 0.0) or 0.0) for part in task.loss.modules() for name in names)
    if smoothing > limits.SMOOTHING:
        level = error if gain < limits.NO_GAIN else warning
        yield level(measured, f"label_smoothing {smoothing:g} leaves little to learn: take 0.1 or less")
    elif problem := _misses_target(task, made[0][-1], target, least, last):
        yield error(measured, problem)
    elif gain < -1e-6 and not opposite > perfect + 1e-6 * abs(perfect):
        yield error(measured, "reversed: predictions would become worse. A minus? Of a score, take 1 - score")
    elif abs(gain) < 1e-6:
        yield error(measured, "the loss does not depend on the prediction: see its `forward`")
    elif gain < limits.LITTLE_GAIN[bool(task.n_classes and not smoothing)]:
        yield warning(measured, "even a perfect prediction costs much: softmax or sigmoid twice, a constant?")
    elif _grows_with_batch(task, output, target):
        yield warning(measured, "the loss is a sum over the batch: take its mean (reduction: mean)")
    else:
        yield ok(measured)


def _misses_target(task: Task, truth: Tensor, target: Tensor, least: float, last: str) -> str:
    """Why the loss is not lowest at the target: it does not use it, or is below `least` far beyond it; or ""."""
    n = task.n_classes
    another = torch.where((target < 0) | (target >= n), target, n - 1 - target) if n else -2 * target
    first, second = (_lowest(task, [truth], answer) for answer in (target, another))
    if abs(first - second) <= 1e-6 * abs(first):
        return "the loss does not depend on the target: see its `forward`"
    far = [] if last in (*PROBABILITIES, *LOGARITHMS) else [100 * truth] if n else [truth + 10, truth - 10]
    if (lowest := _lowest(task, far, target)) < least:
        return f"{lowest:.3g} for one far off: no log_softmax, or no square or absolute value of the difference?"
    return ""


def compute_losses(task: Task, output: Tensor, target: Tensor, last: str = "") -> list[float]:
    """The lowest losses of perfect, constant and opposite predictions; NaN where it is not known or not finite.

    `output` (B, K, ...) of the network gives the shape of predictions, its last operation whether they are logits,
    probabilities or their logarithms.
    """
    made = predictions(task, output, target, last)
    return [_lowest(task, kind, target) for kind in made or ([], [torch.zeros_like(output)], [])]


def _lowest(task: Task, outputs: list[Tensor], target: Tensor) -> float:
    with torch.no_grad():
        losses = [float(task.compute_loss(output, target)) for output in outputs]
    return min((value for value in losses if not math.isnan(value) and value < math.inf), default=math.nan)


def predictions(task: Task, output: Tensor, target: Tensor, last: str = "") -> tuple[list[Tensor], ...] | None:
    """Perfect, constant and opposite outputs, (B, K, ...) each, for a target; None for tasks that compare other things.

    Their losses must be the lowest, in between, and the highest.
    """
    n = output.shape[1]
    if not target.is_floating_point() and output.ndim == target.ndim + 1:
        truth = functional.one_hot(target.clamp(0, n - 1), n).movedim(-1, 1).float()
    elif (task.target_kind or target.ndim == 4) and target.ndim == output.ndim and target[:, :n].shape == output.shape:
        truth = target[:, :n].float()  # of masked images, the last channel says what is hidden
    else:
        return None
    zeros = torch.zeros_like(truth)
    if not task.n_classes:
        mean = truth.mean([axis for axis in range(truth.ndim) if axis != 1], keepdim=True).expand_as(truth)
        # The mean of a few numbers per image is near all of them; that of many pixels is a fair constant.
        known = [mean, zeros + truth.median()] if truth.ndim == 4 else []
        return [truth], [zeros, *known], [2 * mean - truth]
    several = target.is_floating_point()
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

    perfect, opposite = ([encode(share * x + (1 - share) * even) for share in CERTAINTIES] for x in (truth, false))
    return perfect, [encode(even)], opposite


def _with_all_classes(target: Tensor, n_classes: int) -> Tensor:
    """Class numbers that differ: all pixels of a few crops may be background."""
    if target.is_floating_point() or len(target[target >= 0].unique()) > 1:
        return target
    return (torch.arange(target.numel(), device=target.device) % n_classes).view_as(target)


def _grows_with_batch(task: Task, output: Tensor, target: Tensor) -> bool:
    zeros = torch.zeros_like(output)
    once = _lowest(task, [zeros], target)
    twice = _lowest(task, [zeros.repeat_interleave(2, 0)], target.repeat_interleave(2, 0))
    return abs(once) > 1e-6 and 1.9 < twice / once < 2.1


def first_loss(ctx: Context) -> Iterator[Finding]:
    """Whether an untrained network does about as badly as a constant answer."""
    task, batch = ctx.fresh_task(), ctx.small_batch(2)
    with torch.no_grad():
        try:
            output, target = task.forward_batch(batch)
        except Exception:  # in training only, which the check of gradients reports
            return
        first, constant = float(task.compute_loss(output, target)), compute_losses(task, output, target)[1]
    if not math.isfinite(first):
        yield error(str(first), "not finite before any training: a logarithm, root or division in the loss?")
        return
    n_classes = output.shape[1] if not target.is_floating_point() else 0
    measured = f"{first:.3g}, a constant answer {constant:.3g}"
    is_pretrained = bool(task.loaded_weights) or any(getattr(m, "pretrained_cfg", None) for m in task.net.modules())
    is_large = bool(n_classes) or float(output.square().mean().sqrt()) > limits.OUTPUT_LARGE
    ratio = first / constant if constant >= 1e-6 else 1.0
    far = "the network starts far from any sensible answer:"
    if is_large and ratio > limits.FIRST_LOSS_ABSURD:
        yield error(measured, f"{far} does it scale its output, or expect another range of values?")
    elif is_large and ratio > limits.FIRST_LOSS_HIGH:
        yield warning(measured, f"{far} are the weights of its last layer too large?")
    elif ratio < limits.FIRST_LOSS_LOW and not is_pretrained:
        yield warning(measured, "known before any training: does the input hold the answer, is the loss the right one?")
    else:
        yield ok(measured)
