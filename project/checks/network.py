"""Checks of an untrained network: shapes, gradients, dropout and weight decay."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.learning import Steps, train_steps
from project.checks.report import Finding, error, ok, warning
from project.errors import format_own_traceback
from project.formatting import first_few, format_number, format_percent
from project.optimizers import ADAMW, class_and_arguments


def network(ctx: Context) -> Iterator[Finding]:
    """Whether the network takes the images and gives what the task needs."""
    batch, task = ctx.small_batch(), ctx.fresh_task().eval()
    shape = " x ".join(map(str, batch["image"].shape[1:]))
    try:
        with torch.no_grad():
            (output, target), (again, _) = task.forward_batch(batch), task.forward_batch(batch)
            task.decode_output(output)
            loss = task.compute_loss(output, target)
    except Exception as failure:  # a network or loss of the user may raise anything
        hint = "" if format_own_traceback(failure) else "\nsee channels and classes in model.init_args.net"
        yield error(f"fails on {shape}", _explain(failure) + hint)
        return
    if loss.ndim:
        yield error(
            type(task.loss).__name__, f"shape {tuple(loss.shape)}, not a number: take its mean (reduction: mean)"
        )
        return
    n_weights = sum(p.numel() for p in task.net.parameters())
    measured = f"{shape} -> {' x '.join(map(str, output.shape[1:]))}, {n_weights / 1e6:.2g} million weights"
    if not bool(output.isfinite().all()) or not bool(loss.isfinite()):
        yield error(measured, "NaN or infinite before any training: a logarithm, root or division in the network?")
    elif not torch.allclose(output, again, rtol=1e-2, atol=1e-2 * float(output.abs().max() or 1)):
        yield warning("random in validation too", "another output each time: dropout that ignores `eval()`?")
    else:
        yield ok(measured)


def _explain(failure: Exception) -> str:
    """First line of a message, and the traceback of the user's own code."""
    return f"{(str(failure).splitlines() or [type(failure).__name__])[0]}\n{format_own_traceback(failure)}".strip()


def gradients(ctx: Context) -> Iterator[Finding]:
    """Whether gradients reach all weights, are finite, and are not huge."""
    rate, batch = min(ctx.learning_rate or 1e-3, 1e-3), ctx.small_batch()
    try:
        done = train_steps(ctx, batch, [rate] * (3 if ctx.full else 1), augmented=True)
    except Exception as failure:  # a network or loss of the user may raise anything
        yield error(f"a training step fails: {type(failure).__name__}", _explain(failure))
        return
    weights = [p for p in done.task.parameters() if p.requires_grad]
    largest = max(done.norms, default=0.0)
    clip = ctx.clip * (math.sqrt(sum(p.numel() for p in weights)) if ctx.clips_values else 1)
    if not weights:
        yield error("no trainable weights", "everything is frozen; set requires_grad")
    elif not math.isfinite(done.losses[-1]):
        yield error(f"loss {done.losses[-1]} in step {len(done.losses)}", "a logarithm, root or division at 0?")
    elif not done.norms:
        task = ctx.fresh_task()
        with torch.enable_grad():
            cut = task.loss if task.apply_net(task.network_input(batch)).requires_grad else task.net
        advice = f"is there a detach(), no_grad(), item(), argmax or numpy in the forward of {type(cut).__name__}?"
        yield error("none reaches the weights", advice)
    elif not math.isfinite(done.norms[-1]):
        yield error(f"norm {done.norms[-1]}", "roots or logarithms at 0? correct the loss or the network")
    elif not done.with_nonzero_gradient:
        yield error("zero everywhere", "is the output multiplied by 0, or at the flat end of an activation?")
    elif problem := _unused_weights(ctx, done):
        yield problem
    elif largest > limits.EXPLODING:
        yield warning(
            f"norm {format_number(largest)}", "exploding: is the output scaled? set trainer.gradient_clip_val"
        )
    elif clip < limits.CLIPPED_AWAY * largest:
        advice = "clipping takes nearly all of each gradient: set trainer.gradient_clip_val to about the norm"
        yield warning(f"norm {format_number(largest)}, clipped at {ctx.clip:g}", advice)
    else:
        yield ok(f"norm {format_number(largest)}")


def _unused_weights(ctx: Context, done: Steps) -> Finding | None:
    """Weights that are frozen, or trainable but without a gradient, if they are many."""
    # Encoders of smp of less than full depth keep the weights of the stages that are left out.
    skipped = tuple(f"net.{name}." for name, m in done.task.net.named_modules() if getattr(m, "_depth", 5) < 5)
    named = {name: p for name, p in done.task.named_parameters() if not name.startswith(skipped)}
    trained = {name for name, p in named.items() if p.requires_grad}

    def share(names: set[str], of: set[str]) -> float:
        return sum(named[name].numel() for name in names) / max(sum(named[name].numel() for name in of), 1)

    without = done.without_gradient & trained
    unused = without or (trained - done.with_nonzero_gradient if ctx.full else set())
    if share(unused, trained) > limits.UNUSED:
        measured = f"{format_percent(share(unused, trained))} of the weights have "
        level = error if share(unused, trained) > limits.MOSTLY_UNUSED else warning
        advice = f"{first_few(sorted(unused), 'the network')}: not used, or behind a detach() or no_grad()?"
        return level(measured + ("no gradient" if without else "gradients of 0"), advice)
    frozen = named.keys() - trained
    if share(frozen, {*named}) > limits.FROZEN and done.task.finetuning is None:
        advice = f"{first_few(sorted(frozen), 'the network')}: set requires_grad, or model.init_args.finetuning"
        return warning(f"{format_percent(share(frozen, {*named}))} of the weights are frozen", advice)
    return None


def regularization(ctx: Context) -> Iterator[Finding]:
    """Whether dropout and weight decay leave something to learn with."""
    dropouts = {name: _dropout(module) for name, module in ctx.task.net.named_modules()}
    highest, name = max(((value, name) for name, value in dropouts.items()), default=(0.0, ""))
    weight_decay = float(class_and_arguments(ctx.task.optimizer or ADAMW)[1].get("weight_decay") or 0.0)
    decay = (ctx.learning_rate or 0.0) * weight_decay
    if highest >= limits.DROPOUT:
        yield warning(f"dropout {highest:g} in net.{name}", "hardly anything passes: take 0.1 to 0.5")
    if decay >= limits.DECAY:
        measured = f"weight_decay {weight_decay:g} takes {100 * decay:.2g} % off all weights in each step"
        yield warning(measured, "faster than they learn: take 1e-4 to 0.1")
    if highest < limits.DROPOUT and decay < limits.DECAY:
        yield ok(f"dropout up to {highest:g}")


def _dropout(module: nn.Module) -> float:
    """The share that a layer drops; also stochastic depth of timm and torchvision."""
    is_dropout = isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth"
    return float(getattr(module, "p" if is_dropout else "drop_prob", 0.0) or 0.0)
