"""Callbacks of every training: cuDNN, progress bar."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from project.data.datamodule import ImageDataModule

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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.strategy.root_device.type == "cuda" and torch.get_float32_matmul_precision() == "highest":
            torch.set_float32_matmul_precision("high")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        split = "test" if trainer.testing else "val"
        self._set(isinstance(data, ImageDataModule) and len({s[1:] for s in data.reader(split).shapes["image"]}) == 1)

    on_validation_end = on_train_start
    on_test_start = on_validation_start

    def _set(self, on: bool) -> None:
        if self.chooses:
            torch.backends.cudnn.benchmark = on


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
