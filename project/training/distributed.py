"""What several devices change: the batch, and the number of steps."""

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy

from project.data.datamodule import ImageDataModule
from project.errors import UserError

log = logging.getLogger("project")


class TellBatch(Callback):
    """States how many samples a step of the optimizer sees, and at what rate: nothing is scaled silently."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called once the number of devices, and what the schedule made of the rates, is known."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not isinstance(data, ImageDataModule):
            return
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rate = max((group.get("initial_lr", group["lr"]) for group in groups), default=0.0)
        log.info(told(data.batch_size, trainer.world_size, trainer.accumulate_grad_batches, rate))


def told(batch_size: int, n_devices: int, n_accumulated: int, rate: float) -> str:
    """Samples per step of the optimizer, and its rate, in one line."""
    parts = [f"{batch_size} samples"]
    if n_devices > 1:
        parts[0] += " per device"
        parts.append(f"{n_devices} devices")
    if n_accumulated > 1:
        parts.append(f"{n_accumulated} batches")
    product = f" = {batch_size * n_devices * n_accumulated} samples" if len(parts) > 1 else ""
    unscaled = ", as configured: it is not scaled with the batch" if len(parts) > 1 else ""
    return f"a step: {' x '.join(parts)}{product}; learning rate {rate:g}{unscaled}"


class EqualSteps(Callback):
    """Refuses what would wait for ever, where a strategy shares out the weights: every step is one of all devices.

    With `ddp` devices may have different numbers of images to validate: it sends the statistics of batch normalisation
    from the first device to the others in the first step of a validation, and nothing after that.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called on all devices, for the first time before training.

        Raises:
            UserError: Devices have different numbers of batches.
        """
        if isinstance(trainer.strategy, FSDPStrategy):
            _check_equal_steps(trainer.num_val_batches)


def _check_equal_steps(own: list[Any]) -> None:
    steps: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(steps, own)
    if any(each != own for each in steps):
        told = ", ".join(str(sum(each)) for each in steps)
        raise UserError(
            f"fsdp needs as many validation batches on every device, and there are {told}: choose "
            "`data.eval_batch_size` and `trainer.devices` so that they divide, or take --trainer.strategy ddp"
        )
