"""Stopping at the first loss that is not finite, and saying where it came from."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from project.data.datamodule import ImageDataModule
from project.errors import UserError
from project.tasks.base import Batch, Task

log = logging.getLogger("project")
# Steps on a GPU, or on several devices, after which the losses are looked at: to look means to wait for the device.
LOOK_EVERY = 50
N_NAMED = 12  # samples


class Diverged(UserError):
    """The loss, or the weights, are not finite.

    Attributes:
        facts: Where and why, as plain JSON, for provenance.json.
    """

    def __init__(self, text: str, facts: dict[str, Any]) -> None:
        super().__init__(text)
        self.facts = facts


class RestartOnDivergence(Callback):
    """Lets a training that diverges go back to its last checkpoint, and go on with lower rates.

    It stands in `trainer.callbacks`.

    Args:
        factor: On all learning rates, each time.
        most: How often.

    Raises:
        UserError: A number makes no sense.
    """

    def __init__(self, factor: float = 0.5, most: int = 3) -> None:
        if not (0 < factor < 1 and most >= 1):
            raise UserError(f"RestartOnDivergence: factor is {factor}, most {most}; write 0 < factor < 1 and most >= 1")
        self.factor, self.most = factor, most


class Watch(Callback):
    """Ends a training at the first loss that is not finite, before a checkpoint of it is written.

    On one CPU each loss is looked at before it can do harm, so that the layer can be named in which the first value
    that is not finite appeared: the batch is computed once more, with the same weights and the same noise. On a GPU,
    and on several devices, the losses stay where they are and are looked at together, every 50 steps; the batch is
    known then, but its weights are gone. `trainer.detect_anomaly: true` looks at each loss there too.

    Weights are looked at before each validation, and before each checkpoint.

    Args:
        each: Whether to look at each loss even if that means to wait for the device.
    """

    def __init__(self, each: bool = False) -> None:
        self.each = each
        self.at_once = False
        self.now: tuple[Batch, int] | None = None
        self.losses: list[tuple[int, Tensor, Tensor]] = []  # batch, its samples, its loss
        self.good = -1  # step after which everything was finite

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The devices are known."""
        one_cpu = trainer.world_size == 1 and trainer.strategy.root_device.type == "cpu"
        self.at_once = one_cpu or (self.each and trainer.world_size == 1)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch until its loss is known."""
        if self.at_once:
            self.now = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """The loss of the batch is known, and has changed nothing yet."""
        now, self.now = self.now, None
        if now is not None and not torch.isfinite(loss).item():
            batch, number = now
            assert isinstance(pl_module, Task)
            cause = cause_of(pl_module, batch, number)
            raise _diverged(trainer, number, batch["index"], loss, cause)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss, and look at all of them from time to time."""
        if self.at_once or not isinstance(outputs, dict):
            return
        self.losses.append((batch_idx, batch["index"], outputs["loss"].detach()))
        if len(self.losses) >= LOOK_EVERY:
            self._look(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before time is spent on it, and before a checkpoint follows."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._look_at_everything(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before callbacks and schedules make something of its loss."""
        self._look_at_everything(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Whoever writes it: a bad checkpoint never takes the place of a good one."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._look_at_everything(trainer, pl_module)

    def _look_at_everything(self, trainer: Trainer, task: LightningModule) -> None:
        if trainer.global_step == self.good:
            return
        self._look(trainer)
        if name := _first_not_finite(task):
            number = trainer.fit_loop.batch_idx
            raise _diverged(trainer, number, None, None, f"the weights {name} are not finite, though each loss is")
        self.good = trainer.global_step

    def _look(self, trainer: Trainer) -> None:
        losses, self.losses = self.losses, []
        bad = bool(losses) and not torch.stack([loss for *_, loss in losses]).isfinite().all().item()
        anywhere = trainer.strategy.reduce_boolean_decision(bad, all=False) if trainer.world_size > 1 else bad
        if not anywhere:
            return
        if not bad:
            raise Diverged("the loss is not finite on another device", {"epoch": trainer.current_epoch})
        number, index, loss = next(item for item in losses if not item[2].isfinite())
        cause = "look at each step, and at each layer, with --trainer.detect_anomaly true"
        raise _diverged(trainer, number, index, loss, cause)


def cause_of(task: Task, batch: Batch, batch_idx: int) -> str:
    """Where the first value that is not finite appears when a batch is computed again, with the same noise.

    Args:
        task: In training, with the weights of that step.
        batch: As it was given to `training_step`.
        batch_idx: Its number in the epoch.
    """
    for role, array in batch.items():
        if array.dtype.is_floating_point and not array.isfinite().all():
            return f"the data is not finite: {role}"
    if name := _first_not_finite(task):
        return f"the weights {name} are not finite since the step before: its gradients were not"
    found: list[str] = []
    with torch.no_grad(), _watching(task.net, found):
        task.on_train_batch_start(batch, batch_idx)
        batch = task.device_augmentation(batch)
        x = task.intensity_augmentation(task.network_input(batch))
        if not x.isfinite().all():
            return "the input is not finite after normalisation and augmentation"
        if not (target := task.make_target(batch)).isfinite().all():
            return "the encoded target is not finite"
        output = task.apply_net(x)
    if found:
        return f"the first layer whose output is not finite: {found[0]}"
    loss = type(task.loss).__name__
    return f"all layers are finite, but not {loss} of outputs {_range(output)} and targets {_range(target)}"


@contextmanager
def _watching(net: nn.Module, found: list[str]) -> Iterator[None]:
    """Note the names of modules whose output is not finite, in the order in which they are computed."""
    handles: list[RemovableHandle] = []
    for name, module in net.named_modules():

        def look(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(f"net.{name} ({type(module).__name__})" if name else f"net ({type(module).__name__})")

        handles.append(module.register_forward_hook(look))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_not_finite(task: nn.Module) -> str | None:
    """Name of the first parameter that is not finite; waits for the device once."""
    named = [(name, p.detach()) for name, p in task.named_parameters() if p.dtype.is_floating_point]
    if not named:
        return None
    # Multiplied by zero, what is not finite becomes NaN, and a sum of zeros cannot overflow.
    flags = torch.stack([(p * 0).sum().float() for _, p in named]).isnan()
    return next(name for (name, _), bad in zip(named, flags.tolist(), strict=True) if bad) if flags.any() else None


def _range(x: Tensor) -> str:
    return f"{x.min().item():.3g} to {x.max().item():.3g}"


def _diverged(trainer: Trainer, number: int, index: Tensor | None, loss: Tensor | None, cause: str) -> Diverged:
    data = trainer.datamodule  # type: ignore[attr-defined]
    ids = []
    if index is not None and isinstance(data, ImageDataModule):
        ids = [data.reader("train").ids[i] for i in index.tolist()]
    facts: dict[str, Any] = {"epoch": trainer.current_epoch, "batch": number, "samples": ids, "cause": cause}
    where = f"epoch {trainer.current_epoch + 1}, batch {number + 1}"
    what = "the weights are not finite" if loss is None else f"the loss is not finite ({loss.item()})"
    more = f" and {len(ids) - N_NAMED} more" if len(ids) > N_NAMED else ""
    samples = f"\n  samples: {', '.join(ids[:N_NAMED])}{more}" if ids else ""
    return Diverged(f"{what} in {where}{samples}\n  {cause}", facts)
