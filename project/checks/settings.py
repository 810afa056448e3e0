"""Checks of settings that contradict the task or lie far outside of what is usual."""

from collections.abc import Iterator

from lightning.pytorch import Trainer
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Verdict, error, warning
from project.optimizers import ADAMW, class_and_arguments
from project.tasks.base import Task

PREFIXES = ("val/", "train/", "test/")


def monitors(ctx: Context) -> Iterator[Verdict]:
    """Whether checkpoint, early stopping and plateau take the better of two values for the better one."""
    directions: dict[str, str] = {"loss": "min", **ctx.task.main_metrics}
    for key, metric, mode in monitored_metrics(ctx.trainer, ctx.task):
        name = next((metric.removeprefix(prefix) for prefix in PREFIXES if metric.startswith(prefix)), metric)
        names = (name, name.removesuffix("_pooled"), name.partition("/")[0])
        good = next((directions[name] for name in names if name in directions), mode)
        if good == "zero":
            advice = f"{metric} is best at 0, and mode {mode} is not that: monitor another metric"
            yield error("monitor", f"{key}: {metric}, {mode}", advice)
        elif good != mode:
            advice = f"the worst would be taken for the best: {metric} is best at its {good}imum; write mode: {good}"
            yield error("monitor", f"{key}: {metric}, {mode}", advice)


def monitored_metrics(trainer: Trainer, task: Task) -> Iterator[tuple[str, str, str]]:
    """Key in the configuration, metric, and mode ("min" or "max") of all that monitors a metric."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        metric, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        if metric and mode in ("min", "max"):
            is_best = callback is trainer.checkpoint_callback
            yield "checkpoint" if is_best else type(callback).__name__, metric, mode
    class_, arguments = class_and_arguments(task.lr_scheduler) if task.lr_scheduler else (object, {})
    if issubclass(class_, ReduceLROnPlateau):
        yield "lr_scheduler", arguments.get("monitor", "val/loss"), arguments.get("mode", "min")


def regularization(ctx: Context) -> Iterator[Verdict]:
    """Whether dropout and weight decay leave something to learn with."""
    clean = True
    dropouts = {name: _dropout(module) for name, module in ctx.task.net.named_modules()}
    if dropouts and (highest := max(dropouts.values())) >= limits.DROPOUT:
        clean = False
        name = next(name for name, value in dropouts.items() if value == highest)
        yield warning("regularization", f"dropout {highest:g} in net.{name}", "hardly anything passes: take 0.1 to 0.5")
    arguments = class_and_arguments(ctx.task.optimizer or ADAMW)[1]
    decay = (ctx.learning_rate or 0.0) * float(arguments.get("weight_decay") or 0.0)
    if decay >= limits.DECAY:
        clean = False
        measured = f"weight_decay {arguments['weight_decay']:g} at learning rate {ctx.learning_rate:g}"
        advice = f"each step takes {100 * decay:.2g} % off all weights, faster than they learn: take 1e-4 to 0.1"
        yield warning("regularization", measured, advice)
    if clean:
        yield Verdict("regularization", f"dropout up to {max(dropouts.values(), default=0.0):g}")


def _dropout(module: nn.Module) -> float:
    """The share that a layer drops; also stochastic depth of timm and torchvision."""
    names = ("p",) if isinstance(module, nn.modules.dropout._DropoutNd) else ("drop_prob",)
    if type(module).__name__ == "StochasticDepth":
        names = ("p",)
    return max(float(getattr(module, name, 0.0) or 0.0) for name in names)
