"""Kernels of the GPU: the faster ones where they are as good as the others."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from project.data.datamodule import ImageDataModule


class FastKernels(Callback):
    """Lets cuDNN try its algorithms where batches have one size, and matrices be multiplied in TF32.

    TF32 is what convolutions use anyway. Training batches have one size. In validation each new size would be tried
    anew, which takes longer than it saves: there the search is on only if all images have one size. What the
    configuration says itself is left as it is, and `trainer.deterministic` turns the search off, which may choose
    another algorithm in the next run.

    Args:
        config: The section `trainer`.
    """

    def __init__(self, config: Any) -> None:
        self.searches = config.benchmark is None and not config.deterministic
        self.before = torch.backends.cudnn.benchmark

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once the device is known."""
        self.before = torch.backends.cudnn.benchmark
        if trainer.strategy.root_device.type == "cuda" and torch.get_float32_matmul_precision() == "highest":
            torch.set_float32_matmul_precision("high")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Crops have one size, and so have whole images that can be trained on."""
        self._search(True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whole images."""
        self._search(_of_one_size(trainer, "val"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on."""
        self._search(True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whole images."""
        self._search(_of_one_size(trainer, "test"))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the setting as it was."""
        torch.backends.cudnn.benchmark = self.before

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning does not call `teardown` then."""
        torch.backends.cudnn.benchmark = self.before

    def _search(self, on: bool) -> None:
        if self.searches:
            torch.backends.cudnn.benchmark = on


def _of_one_size(trainer: Trainer, split: str) -> bool:
    data = trainer.datamodule  # type: ignore[attr-defined]
    return isinstance(data, ImageDataModule) and len({shape[1:] for shape in data.reader(split).shapes["image"]}) == 1
