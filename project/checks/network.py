"""Checks of an untrained network: shapes, first loss, gradients."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.learning import Steps, train_steps
from project.checks.loss import compute_losses
from project.checks.report import Verdict, error, warning
from project.errors import format_own_traceback
from project.formatting import FEW, format_number, format_percent


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
        advice = "NaN or infinite output before any training: a logarithm, root or division in the network?"
        yield error("network", measured, advice)
    elif not torch.allclose(output, again, rtol=1e-2, atol=1e-2 * float(output.abs().max() or 1)):
        advice = "something is random in validation too: dropout or augmentation that ignores `eval()`"
        yield warning("network", "another output each time in evaluation", advice)
    elif ctx.data.batch_size == 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in task.net.modules()):
        advice = "batch normalization of one sample is noise: raise data.batch_size, or take a network with group norm"
        yield warning("network", f"{measured}, batches of 1", advice)
    else:
        yield Verdict("network", measured)


def first_loss(ctx: Context) -> Iterator[Verdict]:
    """Whether an untrained network does about as badly as a constant answer."""
    task, batch = ctx.fresh_task(), ctx.small_batch(2)
    with torch.no_grad():
        output, target = task.forward_batch(batch)
        first, constant = float(task.compute_loss(output, target)), compute_losses(task, output, target).constant
    if not math.isfinite(first):
        advice = "not finite before any training: a logarithm, root or division in the loss?"
        yield error("first loss", str(first), advice)
        return
    n_classes = output.shape[1] if not target.is_floating_point() else 0
    is_logarithm = n_classes > 1 and abs(constant - math.log(n_classes)) < 0.02
    measured = f"{first:.3g}, a constant answer {f'ln {n_classes} = ' if is_logarithm else ''}{constant:.3g}"
    pretrained = bool(task.loaded_weights) or any(getattr(m, "pretrained_cfg", None) for m in task.net.modules())
    large = bool(n_classes) or float(output.square().mean().sqrt()) > limits.OUTPUT_LARGE
    far = "the network starts far from any sensible answer:"
    if constant >= 1e-6 and large and first > limits.FIRST_LOSS_ABSURD * constant:
        yield error("first loss", measured, f"{far} does it scale its output, or expect another range of values?")
    elif constant >= 1e-6 and large and first > limits.FIRST_LOSS_HIGH * constant:
        yield warning("first loss", measured, f"{far} are the weights of its last layer too large?")
    elif constant >= 1e-6 and first < limits.FIRST_LOSS_LOW * constant and not pretrained:
        advice = "known before any training: does the input hold the answer, is the loss the right one?"
        yield warning("first loss", measured, advice)
    else:
        yield Verdict("first loss", measured)


def gradients(ctx: Context) -> Iterator[Verdict]:
    """Whether gradients reach all weights, are finite, and are not huge."""
    rate = min(ctx.learning_rate or 1e-3, 1e-3)
    batch = ctx.small_batch()
    try:
        done = train_steps(ctx, batch, [rate] * (3 if ctx.full else 1), augmented=True)
    except Exception as failure:  # a network or loss of the user may raise anything
        advice = f"{(str(failure).splitlines() or [''])[0]}\n{format_own_traceback(failure)}".strip()
        yield error("gradients", f"a training step fails: {type(failure).__name__}", advice)
        return
    weights = [p for p in done.task.parameters() if p.requires_grad]
    largest = max(done.norms, default=0.0)
    if not weights:
        yield error("gradients", "no trainable weights", "everything is frozen; set requires_grad")
    elif not math.isfinite(done.losses[-1]):
        measured = f"loss {done.losses[-1]} in step {len(done.losses)}"
        yield error("gradients", measured, "not finite: a logarithm, root or division at 0 in the loss or the network?")
    elif not done.norms:
        task = ctx.fresh_task()
        with torch.enable_grad():
            cut = task.loss if task.apply_net(task.network_input(batch)).requires_grad else task.net
        advice = f"is there a detach(), no_grad(), item(), argmax or numpy in the forward of {type(cut).__name__}?"
        yield error("gradients", "none reaches the weights", advice)
    elif not math.isfinite(done.norms[-1]):
        advice = "roots or logarithms at 0? correct the loss or the network"
        yield error("gradients", f"norm {done.norms[-1]}", advice)
    elif not done.with_nonzero_gradient:
        advice = "nothing can be learned: is the output multiplied by 0, or at the flat end of an activation?"
        yield error("gradients", "zero everywhere", advice)
    elif problem := _unused_weights(ctx, done):
        yield problem
    elif largest > limits.EXPLODING:
        advice = "exploding: does the network scale its output? otherwise set trainer.gradient_clip_val"
        yield warning("gradients", f"norm {format_number(largest)}", advice)
    elif (
        ctx.clip * (math.sqrt(sum(p.numel() for p in weights)) if ctx.clips_values else 1)
        < limits.CLIPPED_AWAY * largest
    ):
        advice = "clipping takes nearly all of each gradient: set trainer.gradient_clip_val to about the norm"
        yield warning("gradients", f"norm {format_number(largest)}, clipped at {ctx.clip:g}", advice)
    else:
        yield Verdict("gradients", f"norm {format_number(largest)}")


def _unused_weights(ctx: Context, done: Steps) -> Verdict | None:
    """Weights that are frozen, or trainable but without a gradient, if they are many."""
    # Encoders of smp of less than full depth keep the weights of the stages that are left out.
    skipped = tuple(f"net.{name}." for name, m in done.task.net.named_modules() if getattr(m, "_depth", 5) < 5)
    named = {name: p for name, p in done.task.named_parameters() if not name.startswith(skipped)}
    sizes = {name: p.numel() for name, p in named.items() if p.requires_grad}
    without = sorted(done.without_gradient & sizes.keys())
    unused = without or (sorted(sizes.keys() - done.with_nonzero_gradient) if ctx.full else [])
    share = sum(sizes[name] for name in unused) / max(sum(sizes.values()), 1)
    frozen = {name: p.numel() for name, p in named.items() if not p.requires_grad}
    frozen_share = sum(frozen.values()) / max(sum(p.numel() for p in named.values()), 1)
    if share > limits.UNUSED:
        measured = f"{format_percent(share)} of the weights have {'no gradient' if without else 'gradients of 0'}"
        advice = f"{_names(unused)}: not used in `forward`, or behind a detach() or no_grad()?"
        return Verdict("gradients", measured, "error" if share > limits.MOSTLY_UNUSED else "warning", advice)
    if frozen_share > limits.FROZEN and done.task.finetuning is None:
        advice = f"{_names(list(frozen))}: set requires_grad, or model.init_args.finetuning if it is meant"
        return warning("gradients", f"{format_percent(frozen_share)} of the weights are frozen", advice)
    return None


def _names(parameters: list[str]) -> str:
    more = f" and {len(parameters) - FEW} more" if len(parameters) > FEW else ""
    return f"{', '.join(parameters[:FEW])}{more}"
