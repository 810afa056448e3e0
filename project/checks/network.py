"""Checks of an untrained network: shapes, last activation, first loss, gradients."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.learning import constant_loss, train_steps
from project.checks.report import Verdict, error, warning
from project.errors import format_own_traceback
from project.formatting import first_few, format_number, format_percent

# What the last operation of a network can give: its name in the graph of gradients -> smallest and largest value.
BOUNDS = {
    **dict.fromkeys(("Relu", "Softplus", "Exp"), (0.0, math.inf)),
    **dict.fromkeys(("Sigmoid", "Hardsigmoid", "Softmax"), (0.0, 1.0)),
    "Tanh": (-1.0, 1.0),
    "Elu": (-1.0, math.inf),
    "Gelu": (-0.17, math.inf),
    "Silu": (-0.28, math.inf),
    "LogSoftmax": (-math.inf, 0.0),
}
# Operations that change no value.
RESHAPING = (
    *("View", "UnsafeView", "Reshape", "Clone", "Slice", "Select", "Squeeze", "Unsqueeze", "Permute", "Transpose"),
    *("Alias", "ToCopy", "Expand", "T", "Contiguous"),
)


def network(ctx: Context) -> Iterator[Verdict]:
    """Whether the network takes the images and gives what the task needs."""
    batch, task = ctx.small_batch(), ctx.fresh_task().eval()
    shape = " x ".join(map(str, batch["image"].shape[1:]))
    try:
        with torch.no_grad():
            (output, target), (again, _) = task.forward_batch(batch), task.forward_batch(batch)
            task.decode_output(output)
            loss = task.compute_loss(output, target)
    except Exception as failure:  # a network or loss of the user may raise anything
        cause = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
        traceback = format_own_traceback(failure)
        advice = f"{cause}\n{traceback}" if traceback else f"{cause}; see channels and classes in model.init_args.net"
        yield error("network", f"fails on {shape}", advice)
        return
    if loss.ndim:
        advice = f"a loss is one number, and this has shape {tuple(loss.shape)}: take its mean (reduction: mean)"
        yield error("network", type(task.loss).__name__, advice)
        return
    n_weights = sum(p.numel() for p in task.net.parameters())
    measured = f"{shape} -> {' x '.join(map(str, output.shape[1:]))}, {n_weights / 1e6:.2g} million weights"
    if not bool(output.isfinite().all()) or not bool(loss.isfinite()):
        advice = "NaN or infinite output before any training; see its first layers and the input"
        yield error("network", measured, advice)
    elif not torch.allclose(output, again, rtol=1e-2, atol=1e-2 * float(output.abs().max() or 1)):
        advice = "something is random in validation too: dropout or augmentation that ignores `eval()`"
        yield warning("network", "another output each time in evaluation", advice)
    elif ctx.data.batch_size == 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in task.net.modules()):
        advice = "batch normalization of one sample is noise: raise data.batch_size, or take a network with group norm"
        yield warning("network", f"{measured}, batches of 1", advice)
    else:
        yield Verdict("network", measured)


def activation(ctx: Context) -> Iterator[Verdict]:
    """Whether the last activation can give what is learned: unbounded logits, all values of the target."""
    task, batch = ctx.fresh_task(), ctx.small_batch()
    outputs: list[Any] = []
    hook = task.net.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.enable_grad():
        task.apply_net(task.network_input(batch))
    hook.remove()
    if not isinstance(outputs[-1], Tensor):
        return
    last, (low, high) = last_operation(outputs[-1])
    target = task.make_target(batch)
    has_values = target.is_floating_point() and target.shape == outputs[-1].shape and not task.n_classes
    outside = (target < low - 0.01) | (target > high + 0.01)
    measured = f"{last.lower()}: {low:g} to {high:g}" if last else "unbounded"
    takes_probabilities = [
        type(module).__name__
        for module in task.loss.modules()
        if isinstance(module, nn.BCELoss | nn.NLLLoss) or getattr(module, "from_logits", True) is False
    ]
    if takes_probabilities and last not in ("Softmax", "Sigmoid", "Hardsigmoid", "LogSoftmax"):
        advice = f"{takes_probabilities[0]} expects probabilities, the network gives any number: take a loss of logits"
        yield error("last activation", measured, advice)
    elif last and last != "LogSoftmax" and not has_values:
        advice = "the loss and the task expect logits, which have no bounds: remove the last activation"
        yield error("last activation", measured, advice)
    elif last and has_values and (share := float(outside.float().mean())) > limits.UNREACHABLE:
        advice = f"{format_percent(share)} of the normalized target lie outside: remove it, or normalize otherwise"
        yield error("last activation", measured, advice)
    else:
        yield Verdict("last activation", measured)


def last_operation(output: Tensor) -> tuple[str, tuple[float, float]]:
    """The operation that made a tensor, apart from reshaping, and the bounds of its values; "" where it has none."""
    node: Any = output.grad_fn
    while node is not None:
        name = node.name().rpartition("Backward")[0].removesuffix("Safe").lstrip("_")
        if name in BOUNDS:
            return name, BOUNDS[name]
        if name not in RESHAPING or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return "", (-math.inf, math.inf)


def first_loss(ctx: Context) -> Iterator[Verdict]:
    """Whether an untrained network does about as badly as a constant answer."""
    task, batch = ctx.fresh_task(), ctx.small_batch(2)
    with torch.no_grad():
        output, target = task.forward_batch(batch)
        first, constant = float(task.compute_loss(output, target)), constant_loss(task, output, target)
    if not math.isfinite(first):
        yield error("first loss", str(first), "not finite before any training; see loss and target")
        return
    n_classes = output.shape[1] if not target.is_floating_point() else 0
    is_logarithm = n_classes > 1 and abs(constant - math.log(n_classes)) < 0.02
    measured = f"{first:.3g}, a constant answer {f'ln {n_classes} = ' if is_logarithm else ''}{constant:.3g}"
    pretrained = bool(task.loaded_weights) or any(getattr(m, "pretrained_cfg", None) for m in task.net.modules())
    far = "the network starts far from any sensible answer: see"
    if constant >= 1e-6 and first > limits.FIRST_LOSS_ABSURD * constant:
        yield error("first loss", measured, f"{far} the scale of its output and of the target")
    elif constant >= 1e-6 and first > limits.FIRST_LOSS_HIGH * constant:
        yield warning("first loss", measured, f"{far} how its last layer is initialized")
    elif constant >= 1e-6 and first < limits.FIRST_LOSS_LOW * constant and not pretrained:
        advice = "known before any training: does the input hold the answer, is the loss the right one?"
        yield warning("first loss", measured, advice)
    else:
        yield Verdict("first loss", measured)


def gradients(ctx: Context) -> Iterator[Verdict]:
    """Whether gradients reach all weights, are finite, and are not huge."""
    if ctx.learning_rate is None:
        return
    rate = min(ctx.learning_rate, 1e-3)
    done = train_steps(ctx, ctx.small_batch(), [rate] * (3 if ctx.full else 1), augmented=True)
    # Encoders of smp of less than full depth keep the weights of the stages that are left out.
    skipped = tuple(f"net.{name}." for name, m in done.task.net.named_modules() if getattr(m, "_depth", 5) < 5)
    named = {name: p for name, p in done.task.named_parameters() if not name.startswith(skipped)}
    sizes = {name: p.numel() for name, p in named.items() if p.requires_grad}
    total = max(sum(sizes.values()), 1)
    without = sorted(done.without_gradient & sizes.keys())
    unused = without or (sorted(sizes.keys() - done.with_nonzero_gradient) if ctx.full else [])
    share = sum(sizes[name] for name in unused) / total
    frozen = {name: p.numel() for name, p in named.items() if not p.requires_grad}
    frozen_share = sum(frozen.values()) / max(sum(p.numel() for p in named.values()), 1)
    largest = max(done.norms, default=0.0)
    if not sizes:
        yield error("gradients", "no trainable weights", "everything is frozen; set requires_grad")
    elif not math.isfinite(done.losses[-1]):
        measured = f"loss {done.losses[-1]} in step {len(done.losses)}"
        yield error("gradients", measured, "not finite; see loss, target and input")
    elif not math.isfinite(done.norms[-1]):
        advice = "roots or logarithms at 0? correct the loss or the network"
        yield error("gradients", f"norm {done.norms[-1]}", advice)
    elif not done.with_nonzero_gradient:
        advice = "nothing can be learned: is the output cut off from the loss, or at the flat end of an activation?"
        yield error("gradients", "zero everywhere", advice)
    elif share > limits.UNUSED:
        which = "are not used" if without else "have gradients of 0"
        advice = f"{first_few(unused, 'the network')}; see `forward` of the network"
        yield warning("gradients", f"{format_percent(share)} of the weights {which}", advice)
    elif frozen_share > limits.FROZEN and done.task.finetuning is None:
        advice = (
            f"{first_few(list(frozen), 'the network')}; set requires_grad, or model.init_args.finetuning if it is meant"
        )
        yield warning("gradients", f"{format_percent(frozen_share)} of the weights are frozen", advice)
    elif largest > limits.EXPLODING:
        advice = "exploding: see normalization and initialization, set trainer.gradient_clip_val"
        yield warning("gradients", f"norm {format_number(largest)}", advice)
    else:
        yield Verdict("gradients", f"norm {format_number(largest)}")
