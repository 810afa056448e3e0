"""Callbacks of every training: cuDNN, batch size, progress bar."""

import logging
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.strategies import FSDPStrategy

from project.data.datamodule import ImageDataModule
from project.errors import UserError

log = logging.getLogger("project")
REDRAWS_PER_SECOND = 10  # of the progress bar


class CudnnBenchmark(Callback):
    """Let cuDNN try its algorithms where batches have one size, and multiply matrices in TF32 on GPUs.

    Training batches have one size. In validation each new size would be tried again, which takes longer than it saves:
    it is on there only if all images have one size. `trainer.benchmark` and `trainer.deterministic` win.

    Args:
        config: The section `trainer`.
    """

    def __init__(self, config: Any) -> None:
        self.chooses = config.benchmark is None and not config.deterministic
        self.before = torch.backends.cudnn.benchmark

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.before = torch.backends.cudnn.benchmark
        if trainer.strategy.root_device.type == "cuda" and torch.get_float32_matmul_precision() == "highest":
            torch.set_float32_matmul_precision("high")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(_one_size(trainer, "val"))

    on_validation_end = on_train_start

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(_one_size(trainer, "test"))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        torch.backends.cudnn.benchmark = self.before

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning does not call `teardown` after an exception."""
        torch.backends.cudnn.benchmark = self.before

    def _set(self, on: bool) -> None:
        if self.chooses:
            torch.backends.cudnn.benchmark = on


def _one_size(trainer: Trainer, split: str) -> bool:
    data = trainer.datamodule  # type: ignore[attr-defined]
    return isinstance(data, ImageDataModule) and len({shape[1:] for shape in data.reader(split).shapes["image"]}) == 1


class LogEffectiveBatchSize(Callback):
    """Log how many samples one optimizer step sees, and its learning rate: nothing is scaled silently."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and isinstance(data, ImageDataModule):
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            lr = max((group.get("initial_lr", group["lr"]) for group in groups), default=0.0)
            log.info(describe_step(data.batch_size, trainer.world_size, trainer.accumulate_grad_batches, lr))


def describe_step(batch_size: int, n_devices: int, n_accumulated: int, lr: float) -> str:
    """Samples per optimizer step and the learning rate, in one line."""
    parts = [f"{batch_size} samples"]
    if n_devices > 1:
        parts[0] += " per device"
        parts.append(f"{n_devices} devices")
    if n_accumulated > 1:
        parts.append(f"{n_accumulated} batches")
    product = f" = {batch_size * n_devices * n_accumulated} samples" if len(parts) > 1 else ""
    unscaled = ", as configured: it is not scaled with the batch" if len(parts) > 1 else ""
    return f"a step: {' x '.join(parts)}{product}; learning rate {lr:g}{unscaled}"


class CheckEqualValBatches(Callback):
    """Refuse unequal numbers of validation batches with FSDP, whose every step is one of all devices: a deadlock."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(trainer.strategy, FSDPStrategy):
            return
        counts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(counts, trainer.num_val_batches)
        if any(count != counts[0] for count in counts):
            raise UserError(
                f"fsdp needs as many validation batches on every device, and there are "
                f"{', '.join(str(sum(count)) for count in counts)}: choose `data.eval_batch_size` and "
                "`trainer.devices` so that they divide, or take --trainer.strategy ddp"
            )


class ThrottledProgressBar(RichProgressBar):
    """Lightning's bar, redrawn ten times a second: in every step it would take a third of a tiny network's time."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=REDRAWS_PER_SECOND)
        self._shown = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self._shown >= 1 / REDRAWS_PER_SECOND or batch_idx + 1 == trainer.num_training_batches:
            self._shown = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
