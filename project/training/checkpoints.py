"""Checkpoints: last.ckpt after each epoch, files that are complete or absent, averaged weights that exist."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO

from project.files import atomic_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replace a checkpoint when its successor is complete: a process that is killed leaves the old one.

    Lightning moves the file from a temporary folder, which copies it if that is on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic_path(Path(path)) as tmp:
            torch.save(checkpoint, tmp)


class LastCheckpoint(ModelCheckpoint):
    """last.ckpt: the state after the last complete epoch, from which a training resumes.

    Attributes:
        only_validated: Leave out epochs without a validation: where epochs are short, writing would take long.
    """

    only_validated = False
    _validated = False

    def __init__(self, folder: Path, config: Any) -> None:
        super().__init__(
            folder,
            "last",
            every_n_epochs=config.every_n_epochs or 1,
            save_on_train_epoch_end=True,
            save_weights_only=config.save_weights_only,
            enable_version_counter=False,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validated or not self.only_validated:
            super().on_train_epoch_end(trainer, pl_module)
        self._validated = False


class AverageFromStart(Callback):
    """Validate and save the current weights until `WeightAveraging` has averaged something.

    Lightning uses the average from the first epoch on, which holds untrained weights until it starts
    (`update_starting_at_step`, `update_starting_at_epoch`). Must come before it in the list of callbacks.
    """

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._copy(trainer, pl_module)

    @staticmethod
    def _copy(trainer: Trainer, task: LightningModule) -> None:
        """Make the average the current weights, so that swapping the two changes nothing."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            average = callback._average_model if isinstance(callback, WeightAveraging) else None
            if average is not None and average.n_averaged == 0:
                average.module.load_state_dict(task.state_dict())
