"""CudnnBenchmark: speed of GPUs in training and validation."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from project.data.datamodule import ImageDataModule


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
