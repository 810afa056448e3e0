"""The progress bar."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

PER_SECOND = 10  # more than anyone can read


class Progress(RichProgressBar):
    """Lightning's bar, brought up to date ten times a second in place of in every step.

    Of a tiny network's step the bar takes a third otherwise, and its thread draws it up to a hundred times a second.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=PER_SECOND)
        self._shown = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step, unless one was shown just now; the last one of an epoch always."""
        now = time.monotonic()
        if now - self._shown >= 1 / PER_SECOND or batch_idx + 1 == trainer.num_training_batches:
            self._shown = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
