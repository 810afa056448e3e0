"""Checks of an untrained network: shapes, gradients, dropout and weight decay."""

import inspect
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.learning import Steps, train_steps
from project.checks.report import Finding, error, not_judged, ok, warning
from project.data.batch import Tensors
from project.errors import format_own_traceback
from project.formatting import first_few, format_number, format_percent
from project.optimizers import ADAMW, class_and_arguments
from project.tasks.base import Task


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
        where = "loss" if bool(output.isfinite().all()) else "network"
        yield error(measured, f"NaN or infinite before any training: a logarithm, root or division in the {where}?")
    elif not torch.allclose(output, again, rtol=1e-2, atol=1e-2 * float(output.abs().max() or 1)):
        yield warning("random in validation too", "another output each time: dropout that ignores `eval()`?")
    else:
        yield ok(measured)


def dependence(ctx: Context) -> Iterator[Finding]:
    """Whether the output for an image depends on this image and no other, and changes where the image does."""
    task = ctx.fresh_task().eval()
    x = task.network_input(ctx.batch(2, side=64 if task.is_dense else None))
    changed = x.clone()  # in its first image; of maps, in the upper right corner
    height, width = (size // 4 if task.is_dense else size for size in x.shape[2:])
    changed[0, :, :height, -width:] = 1 - x[0, :, :height, -width:].flip(-1)
    with torch.no_grad():
        for weights in task.net.parameters():  # last layers that begin with zeros give the same for all inputs
            weights.add_(0.01 * torch.randn_like(weights))
        difference = (_output(task, changed) - (output := _output(task, x))).abs().double()
    quarters = difference[0].mean(0, keepdim=True) if output.ndim == 4 else torch.zeros(1, 2, 2)
    quarters = nn.functional.adaptive_avg_pool2d(quarters, 2)[0].flatten()
    where = ("upper left", "upper right", "lower left", "lower right")[int(quarters.argmax())]
    if float(difference[0].max()) == 0 and float(output.abs().max()) > 0:  # else an activation ended at 0
        yield error("the output of the network does not depend on its input", "is the input used in `forward`?")
    elif len(x) > 1 and float(difference[1:].max()) > limits.MIXED * float(difference[0].max()):
        advice = "a view or reshape that mixes axes, or batch norm without running statistics?"
        yield error("the output for an image changes with other images of the batch", advice)
    elif float(quarters.max()) > limits.MISPLACED * float(quarters[1]):
        advice = f"the {where} changes in the output: a transpose, flip, view or reshape that mixes axes?"
        yield error("where the upper right of the input changes", advice)
    else:
        yield ok("each output on its own image")


def _output(task: Task, x: Tensor) -> Tensor:
    torch.manual_seed(0)  # dropout that ignores `eval()` is reported elsewhere
    return task.apply_net(x)


def _explain(failure: Exception) -> str:
    """First line of a message, and the traceback of the user's own code."""
    return f"{(str(failure).splitlines() or [type(failure).__name__])[0]}\n{format_own_traceback(failure)}".strip()


def gradients(ctx: Context) -> Iterator[Finding]:
    """Whether gradients reach all weights, are finite, and are not huge."""
    if not ctx.task.automatic_optimization:
        if "zero_grad" in inspect.getsource(type(ctx.task)):
            yield not_judged("manual optimization", "its steps need a trainer")
        else:
            yield error("manual optimization without zero_grad()", "gradients of all steps add up: call it in each")
        return
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
    elif len(done.without_gradient) == len(weights):
        advice = (
            f"is there a detach(), no_grad(), item(), argmax or numpy in the {_where_cut(ctx.fresh_task(), batch)}?"
        )
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


def _where_cut(task: Task, batch: Tensors) -> str:
    """The method of the user's code that no gradient gets through."""
    with torch.enable_grad():
        output, target = task.forward_batch(batch)
        is_connected = task.compute_loss(output, target).grad_fn is not None
    if output.requires_grad and is_connected:
        return f"training_step of {type(task).__name__}"
    return f"forward of {type(task.loss if output.requires_grad else task.net).__name__}"


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
    """Whether dropout, weight decay, size of the steps and batch norm leave something to learn with."""
    dropouts = {name: _dropout(module) for name, module in ctx.task.net.named_modules()}
    highest, name = max(((value, name) for name, value in dropouts.items()), default=(0.0, ""))
    class_, arguments = class_and_arguments(ctx.task.optimizer or ADAMW)
    rate, weight_decay = ctx.learning_rate or 0.0, float(arguments.get("weight_decay") or 0.0)
    weights = [p.detach().flatten() for p in ctx.task.net.parameters() if p.requires_grad and p.ndim > 1]
    size = float(torch.cat(weights).square().mean().sqrt()) if weights else math.inf
    problems = []
    if highest >= limits.DROPOUT:
        problems.append((f"dropout {highest:g} in net.{name}", "hardly anything passes: take 0.1 to 0.5"))
    if rate > limits.STEP * size and any(word in class_.__name__ for word in limits.ADAPTIVE):
        measured = f"a step of {class_.__name__} changes weights by {rate:g}; they are {size:.2g}"
        problems.append((measured, "the learning rate is too high: take 1e-4 to 1e-2"))
    elif rate * weight_decay >= limits.DECAY:
        measured = f"weight_decay {weight_decay:g} takes {100 * rate * weight_decay:.2g} % off all weights in each step"
        problems.append((measured, "faster than they learn: take 1e-4 to 0.1"))
    norms = [module for module in ctx.task.net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if ctx.data.batch_size == 1 and any(norm.weight is not None and norm.weight.requires_grad for norm in norms):
        advice = "each image is normalized by itself in training, but not in validation: larger batches, or group norm"
        problems.append(("batch_size 1 with batch norm", advice))
    yield from (warning(*problem) for problem in problems)
    if not problems:
        yield ok(f"dropout up to {highest:g}")


def _dropout(module: nn.Module) -> float:
    """The share that a layer drops; also stochastic depth of timm and torchvision."""
    is_dropout = isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth"
    return float(getattr(module, "p" if is_dropout else "drop_prob", 0.0) or 0.0)
