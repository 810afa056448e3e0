"""Non-finite losses and weights: the training ends at the first, with the ids of its samples."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from project.errors import UserError, bullet_list

CHECK_EVERY = 50  # steps between checks of the losses on a GPU or on several devices: each check waits for the device
ADVICE = "--trainer.detect_anomaly true names the layer"


class Diverged(UserError):
    """The loss, or a weight, is not finite."""


class NonFiniteMonitor(Callback):
    """End a training at the first loss that is not finite, before a checkpoint of it is written.

    On one CPU each loss is checked before its backward pass. On a GPU and on several devices the losses stay there
    and are checked together, every 50 steps and before each validation and checkpoint. So are the weights.
    `trainer.detect_anomaly: true` names the first layer whose output is not finite.
    """

    def __init__(self) -> None:
        self.batch: tuple[int, Tensor | None] = 0, None  # number in the epoch, index of its samples
        self.losses: list[tuple[int, Tensor | None, Tensor]] = []  # not checked yet: number, samples, loss
        self.checked_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.every = 1 if trainer.world_size == 1 and trainer.strategy.root_device.type == "cpu" else CHECK_EVERY
        for name, module in pl_module.named_modules() if torch.is_anomaly_enabled() else ():
            if name:
                module.register_forward_hook(self._layer_check(trainer, pl_module, name))

    def _layer_check(self, trainer: Trainer, task: LightningModule, name: str) -> Any:
        def check(module: nn.Module, _: Any, output: Any) -> None:
            if task.training and isinstance(output, Tensor) and not output.isfinite().all():
                cause = f"the first layer whose output is not finite: {name} ({type(module).__name__})"
                raise _diverged(trainer, *self.batch, "an output is not finite", cause)

        return check

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch = batch_idx, batch["index"]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if loss.ndim:
            raise UserError(
                f"a loss is one number, and this has shape {tuple(loss.shape)}: take its mean (reduction: mean)"
            )
        self.losses.append((*self.batch, loss.detach()))
        if len(self.losses) >= self.every:
            self._check_losses(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._check_all(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_all(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check_all(trainer, pl_module)

    def _check_all(self, trainer: Trainer, task: LightningModule) -> None:
        if trainer.global_step == self.checked_step or trainer.state.fn != TrainerFn.FITTING:
            return
        self._check_losses(trainer)
        # One wait for the device: multiplied by zero, what is not finite becomes NaN.
        flags = [(name, (p.detach() * 0).sum()) for name, p in task.named_parameters() if p.dtype.is_floating_point]
        if flags and torch.stack([flag.float() for _, flag in flags]).isnan().any():
            name = next(name for name, flag in flags if flag.isnan())
            cause = "its gradient was not finite"
            raise _diverged(trainer, self.batch[0], None, f"the weights {name} are not finite", cause)
        self.checked_step = trainer.global_step

    def _check_losses(self, trainer: Trainer) -> None:
        losses, self.losses = self.losses, []
        bad = bool(losses) and not torch.stack([loss for *_, loss in losses]).isfinite().all().item()
        if not (trainer.strategy.reduce_boolean_decision(bad, all=False) if trainer.world_size > 1 else bad):
            return
        if not bad:
            raise Diverged("the loss is not finite on another device")
        number, index, loss = next(item for item in losses if not item[2].isfinite())
        raise _diverged(trainer, number, index, f"the loss is not finite ({loss.item()})", ADVICE)


def _diverged(trainer: Trainer, number: int, index: Tensor | None, what: str, cause: str) -> Diverged:
    reader = trainer.datamodule.reader("train")  # type: ignore[attr-defined]
    ids = [] if index is None else [reader.ids[i] for i in index.tolist()]
    samples = f" of\n{bullet_list(ids)}\n" if ids else ": "
    return Diverged(f"{what} in epoch {trainer.current_epoch + 1}, batch {number + 1}{samples}{cause}")
