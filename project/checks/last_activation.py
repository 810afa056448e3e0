"""The last operation of a network, read from the graph of gradients, and whether it suits loss and target."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Verdict, error
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
    "Elu": (-1.0, math.inf),
    "Gelu": (-0.17, math.inf),
    "Silu": (-0.28, math.inf),
}
# Operations that change no value.
RESHAPING = (
    *("View", "UnsafeView", "Reshape", "Clone", "Slice", "Select", "Squeeze", "Unsqueeze", "Permute", "Transpose"),
    *("Alias", "ToCopy", "Expand", "T", "Contiguous"),
)


def last_activation(ctx: Context) -> Iterator[Verdict]:
    """Whether the last activation can give what is learned: unbounded logits, all values of the target."""
    task, batch = ctx.fresh_task(), ctx.small_batch()
    output = traced_output(task, batch)
    if output is None:
        return
    last, (low, high) = last_operation(output)
    target = task.make_target(batch)
    has_values = target.is_floating_point() and target.shape == output.shape and not task.n_classes
    outside = (target < low - 0.01) | (target > high + 0.01)
    measured = f"{last.lower()}: {low:g} to {high:g}" if last else "unbounded"
    takes_probabilities = [
        type(module).__name__
        for module in task.loss.modules()
        if isinstance(module, nn.BCELoss | nn.NLLLoss) or getattr(module, "from_logits", True) is False
    ]
    several = target.is_floating_point() and bool(task.n_classes)
    if several and any(isinstance(module, nn.CrossEntropyLoss) for module in task.loss.modules()):
        advice = "CrossEntropyLoss is for one class per image, and images have several: take BinaryCrossEntropy"
        yield error("last activation", measured, advice)
    elif takes_probabilities and last not in (*PROBABILITIES, *LOGARITHMS):
        advice = f"{takes_probabilities[0]} expects probabilities, the network gives any number: take a loss of logits"
        yield error("last activation", measured, advice)
    elif last and last not in LOGARITHMS and not has_values:
        advice = "the loss and the task expect logits, which have no bounds: remove the last activation"
        yield error("last activation", measured, advice)
    elif last and has_values and (share := float(outside.float().mean())) > limits.UNREACHABLE:
        advice = f"{format_percent(share)} of the normalized target lie outside: remove it, or normalize otherwise"
        yield error("last activation", measured, advice)
    else:
        yield Verdict("last activation", measured)


def traced_output(task: Task, batch: Tensors) -> Tensor | None:
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
