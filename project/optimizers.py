"""Optimizer and learning-rate schedule, from their sections in an experiment file."""

import inspect
import math
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, ReduceLROnPlateau

from project.errors import UserError, format_own_traceback
from project.yaml_files import named_object

ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}


class WarmupCosine(LambdaLR):
    """Rises linearly from zero, then falls along half a cosine (Loshchilov and Hutter, 2017, eq. 5), step by step.

    Args:
        optimizer: Whose rates are scaled.
        warmup: Share of the training in which the rate rises.
        final: What is left of the rate at the end, as a share.
        total_steps: Of the training; filled in from the trainer.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.05, final: float = 0.0, total_steps: int | None = None):
        if total_steps is None:
            raise UserError("WarmupCosine: total_steps is not known")
        if not (0 <= warmup < 1 and 0 <= final <= 1):
            raise UserError(f"lr_scheduler: warmup is {warmup}, final {final}; both are shares from 0 to 1")
        self.total_steps = total_steps
        super().__init__(optimizer, partial(_warmup_cosine, warmup=warmup * total_steps, final=final, end=total_steps))


def _warmup_cosine(step: int, warmup: float, final: float, end: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)  # the first step is already taken
    done = min(1.0, (step - warmup) / max(end - warmup, 1))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def scale_rates(trainer: Trainer, factor: float) -> None:
    """Multiply all learning rates; groups and schedules keep their proportions."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for name in ("lr", "initial_lr", "max_lr", "min_lr"):
                if name in group:
                    group[name] *= factor
    for config in trainer.lr_scheduler_configs:
        config.scheduler.base_lrs = [rate * factor for rate in getattr(config.scheduler, "base_lrs", [])]


def build_optimizers(task: Any, optimizer: Any, scheduler: Any) -> OptimizerLRScheduler:
    """Optimizer and learning-rate schedule for `LightningModule.configure_optimizers`.

    Args:
        task: A LightningModule with `parameter_groups`, attached to its trainer.
        optimizer: A class or a `functools.partial` of it, or `class_path` and `init_args`; None is `ADAMW`.
        scheduler: The same, or None. `total_steps`, where it is an argument that is not given, is the length of the
            training; such a schedule takes a step per optimizer step, others one per epoch.
    """
    class_, arguments = class_and_arguments(optimizer or ADAMW)
    groups = task.parameter_groups(arguments.get("lr"))
    if _accepts(class_, "weight_decay"):
        groups = spare_from_decay(groups)
    if _fuses(task, class_, arguments):
        arguments["fused"] = True
    built = _build(class_, groups, arguments, "optimizer")
    if not scheduler:
        return built
    class_, arguments = class_and_arguments(scheduler)
    by_length, clock = _accepts(class_, "total_steps"), None
    if by_length and arguments.get("total_steps") is None:
        clock = getattr(task, "clock", None)
        steps = clock.ticks if clock else task.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise UserError(f"{class_.__name__} spans the training: set `length.steps` or `trainer.max_epochs`")
        arguments["total_steps"] = int(steps)
    if isinstance(arguments.get("max_lr"), int | float):  # one number would wipe out the proportions of the groups
        highest = max(group["lr"] for group in built.param_groups)
        arguments["max_lr"] = [arguments["max_lr"] * group["lr"] / highest for group in built.param_groups]
    rate = _build(class_, built, arguments, "lr_scheduler")
    rate.follows_clock = clock is not None
    by_step = by_length or isinstance(rate, CyclicLR)
    config: dict[str, Any] = {"scheduler": rate, "interval": "step" if by_step else "epoch"}
    if isinstance(rate, ReduceLROnPlateau):
        config["monitor"] = getattr(rate, "monitor", "val/loss")
    return {"optimizer": built, "lr_scheduler": config}  # type: ignore[return-value]


def follow_clock(scheduler: Any, progress: float) -> None:
    """Step a schedule that spans the training until it is where a share of its length is done."""
    step = round(progress * scheduler.total_steps)
    if isinstance(scheduler, LambdaLR) and step != scheduler.last_epoch:
        scheduler.last_epoch = step - 1  # also backwards, where a resumed training got more time
    while scheduler.last_epoch < step:
        scheduler.step()


def class_and_arguments(spec: Any) -> tuple[Any, dict[str, Any]]:
    """The class of a section of a configuration, and its arguments."""
    if isinstance(spec, partial):
        return spec.func, dict(spec.keywords)
    if isinstance(spec, type):
        return spec, {}
    return named_object(spec["class_path"]), dict(spec.get("init_args") or {})


def _build(class_: Any, first: Any, arguments: dict[str, Any], key: str) -> Any:
    try:
        return class_(first, **arguments)
    except (ValueError, TypeError) as error:
        trace = format_own_traceback(error)
        raise UserError(f"{key}: {error} ({class_.__name__})" + (f"\n{trace}" if trace else "")) from error


def spare_from_decay(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split parameter groups so that weight decay leaves biases and the scales of normalizations alone.

    These are the parameters with one axis or none, as in timm: decay limits how strongly inputs are weighted.
    """
    split: list[dict[str, Any]] = []
    for group in groups:
        name = {"name": f"{group['name']}.no_decay"} if "name" in group else {}
        split.append(group | {"params": [p for p in group["params"] if p.ndim > 1]})
        split.append(group | name | {"params": [p for p in group["params"] if p.ndim <= 1], "weight_decay": 0.0})
    return [group for group in split if group["params"]]


def _accepts(class_: Any, argument: str) -> bool:
    return argument in inspect.signature(class_).parameters


def _fuses(task: Any, class_: Any, given: dict[str, Any]) -> bool:
    """Whether the optimizer can update all parameters in one kernel, where no argument decides it.

    Lightning cannot clip gradients in mixed precision for such an optimizer, which would scale them itself.
    """
    decided = given.get("fused") is not None or any(given.get(key) for key in ("foreach", "differentiable"))
    clips = bool(task.trainer.gradient_clip_val) and "mixed" in str(task.trainer.precision)
    simple = all(p.dtype.is_floating_point and p.layout == torch.strided for p in task.parameters())
    on = task.trainer.strategy.root_device.type
    return _accepts(class_, "fused") and on in ("cuda", "cpu") and simple and not decided and not clips
