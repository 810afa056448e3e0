"""Checks of the network: what it takes and gives, gradients, first loss, learning rate, whether it can learn at all.

All of them work on copies.
"""

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
from project.checks.verdicts import Context, Verdict, centre, modules
from project.data.batch import Tensors
from project.errors import format_own_traceback
from project.formatting import first_few, format_number, format_percent
from project.tasks.base import Task

Verdicts = Iterator[Verdict]

# What the last operation of a network can give: its name in the graph of gradients -> smallest and largest value.
BOUNDS = {
    "Relu": (0.0, math.inf),
    "Sigmoid": (0.0, 1.0),
    "Hardsigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softplus": (0.0, math.inf),
    "Elu": (-1.0, math.inf),
    "Gelu": (-0.17, math.inf),
    "Silu": (-0.28, math.inf),
    "Exp": (0.0, math.inf),
    "LogSoftmax": (-math.inf, 0.0),
}
# Operations that change no value.
SHAPES = (
    *("View", "UnsafeView", "Reshape", "Clone", "Slice", "Select", "Squeeze", "Unsqueeze", "Permute", "Transpose"),
    *("Alias", "ToCopy", "Expand", "T", "Contiguous"),
)


def network(ctx: Context) -> Verdicts:
    """Whether the network takes the images, and gives what the task wants."""
    batch = small(ctx)
    task = ctx.fresh().eval()
    shape = " x ".join(map(str, batch["image"].shape[1:]))
    try:
        with torch.no_grad():
            output = task.apply_net(task.network_input(batch))
            again = task.apply_net(task.network_input(batch))
            task.decode_output(output)
            loss = task.compute_loss(output, task.make_target(batch))
    except Exception as error:  # a network or loss of the user's own may raise anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        own = format_own_traceback(error)
        cause = f"{first}\n{own}" if own else f"{first}; see channels and classes in model.init_args.net"
        yield Verdict("network", f"fails on {shape}", "error", cause)
        return
    if loss.ndim:
        cause = f"a loss is one number, and this has shape {tuple(loss.shape)}: take its mean (reduction: mean)"
        yield Verdict("network", type(task.loss).__name__, "error", cause)
        return
    n = sum(p.numel() for p in task.net.parameters())
    told = f"{shape} -> {' x '.join(map(str, output.shape[1:]))}, {n / 1e6:.2g} million weights"
    if not bool(output.isfinite().all()) or not bool(loss.isfinite()):
        yield Verdict(
            "network", told, "error", "NaN or infinite answers before any training; see its first layers and the input"
        )
    elif not torch.allclose(output, again, rtol=1e-2, atol=1e-2 * float(output.abs().max() or 1)):
        yield Verdict(
            "network",
            "another answer each time in evaluation",
            "warning",
            "something is drawn in validation too: dropout or augmentation that ignores `eval()`",
        )
    else:
        yield Verdict("network", told)


def small(ctx: Context, factor: int = 1) -> Tensors:
    """A few training samples; pictures are cut, as the network takes any size."""
    n, side = limits.SMALL[ctx.kind]
    batch = ctx.batch(min(factor * n, len(ctx.train), max(ctx.batch_size, 1)))
    return centre(batch, side) if ctx.task.is_dense else batch


# The last activation and the loss -------------------------------------------------------------------------------------


def activation(ctx: Context) -> Verdicts:
    """Whether the network can give what it is asked for: unbounded logits, all values of the target."""
    task, batch = ctx.fresh(), small(ctx)
    outputs: list[Any] = []
    hook = task.net.register_forward_hook(lambda *call: outputs.append(call[2]))
    with torch.enable_grad():
        task.apply_net(task.network_input(batch))
    hook.remove()
    if not outputs or not isinstance(outputs[-1], Tensor):
        return
    last, (low, high) = last_operation(outputs[-1])
    target = task.make_target(batch)
    as_values = target.is_floating_point() and ctx.task.target_kind == "image"
    told = f"{last.lower()}: {low:g} to {high:g}" if last else "unbounded"
    wants = _wants_probabilities(ctx)
    if wants and (not last or last not in ("Softmax", "Sigmoid", "Hardsigmoid", "LogSoftmax")):
        yield Verdict(
            "last activation",
            told,
            "error",
            f"{wants} expects probabilities, and the network gives any number: take a loss of logits",
        )
    elif not as_values and last and last != "LogSoftmax":
        yield Verdict(
            "last activation",
            told,
            "error",
            "the loss and the task expect logits, which have no bounds: remove the last activation",
        )
    elif as_values and last:
        outside = float(((target < low - 0.01) | (target > high + 0.01)).float().mean())
        if outside > limits.UNREACHABLE:
            yield Verdict(
                "last activation",
                told,
                "error",
                f"{format_percent(outside)} of the normalised target lie outside: remove it, or take another normalisation",  # noqa: E501
            )
        else:
            yield Verdict("last activation", told)
    else:
        yield Verdict("last activation", told)


def last_operation(output: Tensor) -> tuple[str, tuple[float, float]]:
    """The operation that made a tensor, where it bounds the values, and the bounds; "" where it does not.

    Operations that only change the shape are passed over.
    """
    node: Any = output.grad_fn
    while node is not None:
        name = node.name().rpartition("Backward")[0].removesuffix("Safe").lstrip("_")
        if name in BOUNDS:
            return name, BOUNDS[name]
        if name not in SHAPES or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return "", (-math.inf, math.inf)


def _wants_probabilities(ctx: Context) -> str | None:
    """The loss that takes probabilities in place of logits."""
    for module in modules(ctx):
        if isinstance(module, nn.BCELoss | nn.NLLLoss) or getattr(module, "from_logits", True) is False:
            return type(module).__name__
    return None


def first_loss(ctx: Context) -> Verdicts:
    """Whether an untrained network does as badly as a constant answer, not far worse and not better."""
    task, batch = ctx.fresh(), small(ctx, 2)
    with torch.no_grad():
        output, target = task.apply_net(task.network_input(batch)), task.make_target(batch)
        first, constant = float(task.compute_loss(output, target)), constant_loss(task, output, target)
    if not math.isfinite(first):
        yield Verdict(
            "first loss", number_or_nan(first), "error", "not finite before any training; see loss and target"
        )
        return
    k = output.shape[1] if not target.is_floating_point() else 0
    plain = k > 1 and abs(constant - math.log(k)) < 0.02
    told = f"{first:.3g}, a constant answer {f'ln {k} = ' if plain else ''}{constant:.3g}"
    if constant < 1e-6:
        yield Verdict("first loss", told)
    elif first > limits.FIRST_LOSS_ABSURD * constant:
        yield Verdict(
            "first loss",
            told,
            "error",
            "the network starts far from any sensible answer: see the scale of its output and of the target",
        )
    elif first > limits.FIRST_LOSS_HIGH * constant:
        yield Verdict(
            "first loss",
            told,
            "warning",
            "the network starts far from any sensible answer: see how its last layer is initialised",
        )
    elif first < limits.FIRST_LOSS_LOW * constant and not _knows(ctx):
        yield Verdict(
            "first loss",
            told,
            "warning",
            "known before any training: does the input hold the answer, is the loss the right one?",
        )
    else:
        yield Verdict("first loss", told)


def constant_loss(task: Task, output: Tensor, target: Tensor) -> float:
    """The loss of answers that do not look at the image: all logits 0; or the mean, or 0, of a target of values."""
    zeros = torch.zeros_like(output)
    answers = [zeros]
    if target.is_floating_point() and target.shape == output.shape and target.ndim == 4:
        answers += [zeros + target.mean((0, 2, 3), keepdim=True), zeros + target.flatten().median()]
    with torch.no_grad():
        found = [float(task.compute_loss(answer, target)) for answer in answers]
    return min((each for each in found if math.isfinite(each)), default=math.nan)


def number_or_nan(value: float) -> str:
    """A number for people, also one that is none."""
    return format_number(value) if math.isfinite(value) else str(value)


def _knows(ctx: Context) -> bool:
    """Whether weights were trained before."""
    return bool(ctx.task.loaded_weights) or any(getattr(m, "pretrained_cfg", None) for m in ctx.task.net.modules())


# Steps ----------------------------------------------------------------------------------------------------------------


@dataclass
class Steps:
    """A few training steps on one batch.

    Attributes:
        losses: Of each step, before it; one that is not finite is the last.
        norms: Of the gradient of each step.
        moved: Names of parameters that had a gradient other than 0 in some step.
        without: Names of trainable parameters that never had a gradient.
        task: After the steps.
    """

    task: Task
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    moved: set[str] = field(default_factory=set)
    without: set[str] = field(default_factory=set)


def take_steps(
    ctx: Context,
    batch: Tensors,
    rates: list[float],
    seconds: float = math.inf,
    enough: float = -math.inf,
    plain: bool = True,
) -> Steps:
    """Train a fresh copy with the experiment's own optimizer, step by step at the given rates of the head.

    Args:
        ctx: The experiment.
        batch: The same in every step.
        rates: One for each step; the rates of layers keep their proportions.
        seconds: After which no step is begun.
        enough: A loss, below which no step is begun.
        plain: Leave out what is drawn on the device for each step anew.
    """
    task = ctx.fresh()
    if plain:
        task.intensity_augmentation, task.device_augmentation = nn.Identity(), nn.Identity()
    if task.finetuning and task.finetuning.freeze_epochs == -1:
        task.finetuning.apply(task.net, 0)
    done, started = Steps(task), time.monotonic()
    groups, base = task.parameter_groups(rates[0]), rates[0]
    optimizer = instantiate_class(groups, _with_rate(ctx, base))
    shares = [group["lr"] / base for group in optimizer.param_groups]
    named = [(name, p) for name, p in task.named_parameters() if p.requires_grad]
    done.without = {name for name, _ in named}
    clip = ctx.cli.config_init["trainer"].get("gradient_clip_val")
    with torch.enable_grad():
        for step, rate in enumerate(rates):
            for group, share in zip(optimizer.param_groups, shares, strict=True):
                group["lr"] = rate * share
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss: Any = task.training_step(dict(batch), step)
            loss = loss["loss"] if isinstance(loss, dict) else loss
            done.losses.append(float(loss.detach()))
            if not math.isfinite(done.losses[-1]):
                break
            loss.backward()
            with_gradient = [(name, p.grad) for name, p in named if p.grad is not None]
            done.without -= {name for name, _ in with_gradient}
            if step < 6:
                done.moved |= {name for name, grad in with_gradient if bool(grad.count_nonzero())}
            norm = nn.utils.clip_grad_norm_([p for _, p in named], float(clip or math.inf))
            done.norms.append(float(norm))
            if not math.isfinite(done.norms[-1]) or done.losses[-1] < enough:
                break
            if step + 1 < len(rates):
                optimizer.step()
            if time.monotonic() - started > seconds:
                break
    return done


def _with_rate(ctx: Context, rate: float) -> dict[str, Any]:
    section = ctx.cli.config_init["optimizer"]
    given = section["init_args"]
    arguments = {**(given.as_dict() if hasattr(given, "as_dict") else dict(given or {})), "lr": rate}
    return {"class_path": section["class_path"], "init_args": arguments}


def chosen_rate(ctx: Context) -> float | None:
    """The learning rate of the experiment."""
    section = ctx.cli.config_init.get("optimizer")
    rate = section["init_args"].get("lr") if section else None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def optimizer(ctx: Context) -> Verdicts:
    """Whether the optimizer holds everything that is to be trained."""
    task = ctx.fresh()
    rate = chosen_rate(ctx)
    if ctx.cli.config_init.get("optimizer") is None:
        yield Verdict(
            "optimizer", "none", "error", "add `optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}`"
        )
        return
    held = [id(p) for group in task.parameter_groups(rate or 1e-3) for p in group["params"]]
    trainable = {name: p for name, p in task.named_parameters() if p.requires_grad}
    missing = [name for name, p in trainable.items() if id(p) not in set(held)]
    n_all, n_trained = (sum(p.numel() for p in ps) for ps in (task.net.parameters(), trainable.values()))
    if not trainable:
        yield Verdict(
            "optimizer",
            "no trainable weights",
            "error",
            "everything is frozen; set requires_grad, or take another network",
        )
    elif missing:
        yield Verdict(
            "optimizer",
            f"{len(missing)} of {len(trainable)} tensors are not in it",
            "error",
            f"{first_few(missing, 'the network')}; parameter_groups must hold all trainable parameters",
        )
    elif len(held) != len(set(held)):
        yield Verdict("optimizer", "holds some weights twice", "error", "see parameter_groups")
    elif n_all - n_trained > limits.FROZEN * n_all and task.finetuning is None:
        frozen = [name for name, p in task.named_parameters() if not p.requires_grad]
        yield Verdict(
            "optimizer",
            f"{format_percent(1 - n_trained / n_all)} of the weights are frozen",
            "warning",
            f"{first_few(frozen, 'the network')}; say so with model.init_args.finetuning, or set requires_grad",
        )
    else:
        yield Verdict("optimizer", f"holds all {n_trained / 1e6:.2g} million trainable weights")


def gradients(ctx: Context) -> Verdicts:
    """Whether gradients reach all weights, and are neither absent nor endless."""
    n_steps = 1 if ctx.kind == "brief" else 3
    rate = chosen_rate(ctx)
    if rate is None:
        return
    batch = small(ctx)
    done = take_steps(ctx, batch, [min(rate, 1e-3)] * n_steps, plain=False)
    skipped = _left_out(done.task.net)
    sizes = {n: p.numel() for n, p in done.task.named_parameters() if p.requires_grad and not n.startswith(skipped)}
    total = sum(sizes.values())
    if not math.isfinite(done.losses[-1]):
        yield Verdict(
            "gradients",
            f"loss {done.losses[-1]}",
            "error",
            f"not finite in step {len(done.losses)}; see loss, target and input",
        )
        return
    if not math.isfinite(done.norms[-1]):
        yield Verdict(
            "gradients", f"norm {done.norms[-1]}", "error", "roots or logarithms at 0? mend the loss or the network"
        )
        return
    told = f"norm {format_number(max(done.norms))}"
    dead = [name for name in sizes if name not in done.moved]
    share = sum(sizes[name] for name in dead) / max(total, 1)
    unused = sorted(done.without & sizes.keys())
    if not done.moved:
        yield Verdict(
            "gradients",
            "zero everywhere",
            "error",
            "nothing can be learnt: is the output cut off from the loss, or at the flat end of an activation?",
        )
    elif share > limits.UNUSED and (ctx.kind == "full" or unused):
        named = unused or dead
        which = "are not used" if unused else "have gradients of 0"
        if sum(sizes[name] for name in named) > limits.UNUSED * total:
            yield Verdict(
                "gradients",
                f"{format_percent(sum(sizes[n] for n in named) / total)} of the weights {which}",
                "warning",
                f"{first_few(named, 'the network')}; see `forward` of the network",
            )
        else:
            yield Verdict("gradients", told)
    elif max(done.norms) > limits.EXPLODING:
        yield Verdict(
            "gradients",
            told,
            "warning",
            "exploding: see normalisation and initialisation, set trainer.gradient_clip_val",
        )
    else:
        yield Verdict("gradients", told)


def _left_out(net: nn.Module) -> tuple[str, ...]:
    """Where the encoders of smp are of less than full depth: they keep the weights of the stages that are left out."""
    return tuple(f"net.{name}." for name, module in net.named_modules() if getattr(module, "_depth", 5) < 5)


# Learning -------------------------------------------------------------------------------------------------------------


def repeated_batch(ctx: Context) -> Tensors:
    """The batch that is learnt by heart: few samples, of different classes where there are."""
    if ctx.task.is_dense:
        return small(ctx)
    n = min(8, len(ctx.train), max(ctx.batch_size, 2))
    batch = ctx.batch(min(64, len(ctx.train)))
    labels = batch.get("label")
    if labels is None or labels.ndim > 1:
        return {name: value[:n] for name, value in batch.items()}
    order = np.argsort([_nth(labels.tolist(), i) for i in range(len(labels))], kind="stable")[:n]
    return {name: value[torch.as_tensor(order.copy(), device=value.device)] for name, value in batch.items()}


def _nth(labels: list[int], position: int) -> int:
    """How many of the same class stand before."""
    return labels[:position].count(labels[position])


def learning_rate(ctx: Context) -> Verdicts:
    """A short range test (Smith, 2017, section 3.3) on one batch, and where the chosen rate lies in it."""
    rate = chosen_rate(ctx)
    if rate is None:
        yield Verdict("learning rate", "not given", "warning", "say optimizer.init_args.lr")
        return
    batch = repeated_batch(ctx)
    trial = time.monotonic()
    take_steps(ctx, batch, [limits.RATES[0]] * 2)
    each = (time.monotonic() - trial) / 2
    n = int(np.clip(limits.SECONDS["rate"] / max(each, 1e-6), 14, limits.RATE_STEPS))
    low, high = min(limits.RATES[0], rate / 10), max(limits.RATES[1], rate)
    rates = np.geomspace(low, high, n).tolist()
    done = take_steps(ctx, batch, rates)
    curve = smooth(done.losses)
    ctx.notes["rates"] = (rates[: len(curve)], done.losses, rate)
    found = read_range(rates, curve)
    told = f"{rate:.2g}"
    if found is None:
        yield Verdict(
            "learning rate",
            told,
            "warning",
            f"the loss falls at no rate from {low:.0e} to {high:.0e}: see loss and network",
        )
        return
    falls, best, rises = found
    suggestion = min(max(best / 5, falls), rises / 3)
    ctx.notes["suggestion"] = suggestion
    if rate >= rises:
        short = take_steps(ctx, batch, [rate] * 12, seconds=limits.SECONDS["rate"] / 3)
        diverged = not math.isfinite(short.losses[-1]) or short.losses[-1] > limits.DIVERGED * short.losses[0]
        yield Verdict(
            "learning rate",
            told,
            "error" if diverged else "warning",
            f"{'diverges; ' if diverged else ''}loss rises from {rises:.0e} on; take about {suggestion:.0e}",
        )
    elif rate < falls / limits.TOO_LOW:
        yield Verdict(
            "learning rate", told, "warning", f"loss hardly falls below {falls:.0e}; take about {suggestion:.0e}"
        )
    else:
        yield Verdict("learning rate", f"{told}, loss falls from {falls:.0e} to {min(rises, high):.0e}")


def smooth(losses: list[float], weight: float = 0.5) -> list[float]:
    """Running mean without a bias towards the start; a value that is not finite stands for itself."""
    found, mean = [], 0.0
    for step, loss in enumerate(losses, start=1):
        mean = weight * mean + (1 - weight) * loss
        found.append(mean / (1 - weight**step))
    return found


def read_range(rates: list[float], curve: list[float]) -> tuple[float, float, float] | None:
    """What a range test says.

    Args:
        rates: Rising.
        curve: Smoothed loss at each, as many or fewer.

    Returns:
        The rates at which the loss begins to fall, is lowest, and has risen again; infinity for the last if it never
        does. None if it never falls.
    """
    finite = [each if math.isfinite(each) else math.inf for each in curve]
    start, at = finite[0], int(np.argmin(finite))
    gained = start - finite[at]
    if not gained > 1e-3 * abs(start):
        return None
    falls = next(r for r, loss in zip(rates, finite, strict=False) if loss <= start - limits.FALLS * gained)
    after = zip(rates[at:], finite[at:], strict=False)
    rises = next((r for r, loss in after if loss > finite[at] + limits.RISES * gained), math.inf)
    if math.isinf(rises) and len(curve) < len(rates):
        rises = rates[len(curve) - 1]
    return falls, rates[at], rises


def one_batch(ctx: Context) -> Verdicts:
    """Whether the network can learn one batch by heart, and gives values in the range of the target then."""
    rate = chosen_rate(ctx)
    if rate is None:
        return
    suggestion = ctx.notes.get("suggestion", rate)
    if not suggestion / 30 < rate < suggestion * 30:
        rate = suggestion  # the rate has its own verdict
    batch = repeated_batch(ctx)
    task = ctx.fresh()
    with torch.no_grad():
        output, target = task.apply_net(task.network_input(batch)), task.make_target(batch)
        constant = constant_loss(task, output, target)
    limit = limits.FIT_ENOUGH * constant if constant > 0 else -math.inf
    ramp = [rate * min(1.0, (step + 1) / 5) for step in range(limits.FIT_STEPS)]
    done = take_steps(ctx, batch, ramp, limits.SECONDS["fit"], limit)
    ctx.notes["fit"] = (done.losses, constant)
    if not math.isfinite(done.losses[-1]):
        yield Verdict(
            "one batch",
            f"loss {done.losses[-1]} after {len(done.losses)} steps",
            "error",
            "lower the learning rate, or set trainer.gradient_clip_val",
        )
        return
    first = min(done.losses[0], constant) if constant > 1e-6 else done.losses[0]
    if first <= 1e-6:
        return
    left = float(np.median(done.losses[-3:])) if len(done.losses) > 3 else done.losses[-1]
    left = min(left, done.losses[-1]) / first
    told = f"{format_percent(max(left, 0.0))} of the loss left after {len(done.losses)} steps"
    slow = len(done.losses) < limits.FIT_FEWEST
    falling = done.losses[-1] < 0.97 * float(np.mean(done.losses[len(done.losses) // 2 :][:5]))
    if left > limits.FIT_FAILED and not slow:
        yield Verdict(
            "one batch",
            told,
            "error",
            "the network cannot learn even this: does its output depend on the input, do weights get gradients?",
        )
    elif left > limits.FIT_WEAK and not slow and not falling:
        yield Verdict(
            "one batch",
            told,
            "warning",
            "learns it only in part: a larger network, another rate, or targets that contradict each other?",
        )
    else:
        yield Verdict("one batch", told + (" (slow; not judged)" if slow and left > limits.FIT_WEAK else ""))
    yield from _range(ctx, done.task, batch)


def _range(ctx: Context, task: Task, batch: Tensors) -> Verdicts:
    if ctx.task.target_kind != "image":
        return
    with torch.no_grad():
        output, target = task.apply_net(task.network_input(batch)), task.make_target(batch)
    if output.shape != target.shape:
        return
    spread, ours = float(target.std()), float(output.std())
    shift = abs(float(output.mean() - target.mean()))
    told = f"{format_number(float(output.mean()))} ± {format_number(ours)}, target {format_number(float(target.mean()))} ± {format_number(spread)}"  # noqa: E501
    ctx.notes["prediction"] = (output.cpu().numpy(), target.cpu().numpy())
    if spread < 1e-6:
        return
    if shift > limits.RANGE_SHIFT * spread or not 1 / limits.RANGE_RATIO < ours / spread < limits.RANGE_RATIO:
        yield Verdict(
            "prediction range",
            told,
            "warning",
            "prediction and target lie apart after fitting one batch: see last activation and target_normalization",
        )
    else:
        yield Verdict("prediction range", told)
