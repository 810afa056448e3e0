"""TrainingClock: time budget of a training, the validations that it allows, and a report of how long it takes."""

import logging
import math
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from project.training.length import MAX_VALIDATIONS, counts_epochs

log = logging.getLogger("project")
MEASURED_STEPS = 10  # after which the time that a training takes is reported
TICKS_PER_SECOND = 10  # of a schedule that follows the clock
UNMEASURED = 1.6  # first validation to the share of the sanity check: also metrics, figure, checkpoint, statistics
AGREE_SECONDS = 1.0  # between two decisions, where several devices have to learn of them
END_SHARE = 0.2  # of the time to start: what loading the best checkpoint, figures and tables take at the end


class TrainingClock(Callback):
    """Times a training, and ends it after `length.minutes`, with a validation.

    With a budget, `progress` is the share of the training time that is used: learning-rate schedules that span the
    training follow it (`project.optimizers.follow_clock`), so that they end when the training ends, however fast steps
    are. The time for the last validation and for the evaluation of the best checkpoint is reserved: it is measured
    on the sanity check, then on each validation. With several devices the first one decides.

    Args:
        started: `time.monotonic()` at the start of the command.
        seconds_before: Time of the epochs of a run that is resumed.
    """

    def __init__(self, started: float, seconds_before: float = 0.0) -> None:
        self.started, self.seconds_before = started, seconds_before
        self.budget: float | None = None  # seconds
        self.validation_share: float | None = None  # None: the interval of validations is typed
        self.progress = self.validation_seconds = 0.0
        self.n_final_passes = 1  # over the validation split, after the last step
        self.start = self.last_validation = self._validation_start = self._batch_start = time.monotonic()
        self.step_seconds = 0.0  # running mean without the first step, in which a GPU loads its kernels
        self.n_batches = self._next_decision = 0
        self._checked: list[tuple[float, int]] = []  # end and size of each batch of the sanity check
        self._validated = self.stopped = False

    def configure(self, cli: Any) -> None:
        """Take the settings of an `ExperimentCLI`, which is built after its callbacks."""
        length = cli.config.length
        self.budget = None if length.minutes is None else 60 * length.minutes
        chooses = self.budget and cli.chooses_validation and not counts_epochs(cli)
        self.validation_share = length.validation_share if chooses else None

    @property
    def ticks(self) -> int:
        """Steps of a schedule that spans the training."""
        return max(1, round((self.budget or 0.0) * TICKS_PER_SECOND))

    @property
    def end(self) -> float:
        """When the last step has to be done, in seconds of the monotonic clock."""
        reserved = self.n_final_passes * self.validation_seconds + END_SHARE * (self.start - self.started)
        deadline = self.started + (self.budget or math.inf) - self.seconds_before
        return max(deadline - reserved, self.start + (deadline - self.start) / 2)

    def time_left(self) -> float | None:
        """Seconds for further steps, 0 if there is no more; None without a budget."""
        return None if self.budget is None else max(0.0, self.end - time.monotonic()) * (not self.stopped)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        task: Any = pl_module
        self.n_final_passes = 1 + (trainer.world_size > 1)  # several devices evaluate the best checkpoint again
        if self.budget is not None:
            task.clock = self

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_start, self._validated = time.monotonic(), True

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        if trainer.sanity_checking:
            self._checked.append((time.monotonic(), batch["image"].numel()))

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate the time of a validation from that of its first batches; later images may be larger."""
        self._validated, start, checked = False, self._validation_start, self._checked
        if not checked:
            return
        if len(checked) > 1:  # starting the loader belongs to no batch
            (start, _), *checked = checked
        seconds = checked[-1][0] - start
        once = time.monotonic() - self._validation_start - seconds
        shapes = trainer.datamodule.reader("val").shapes["image"]  # type: ignore[attr-defined]
        by_size = sum(map(math.prod, shapes)) / trainer.world_size / sum(size for _, size in checked)
        by_number = sum(trainer.num_val_batches) / len(checked)
        self.validation_seconds = once + UNMEASURED * seconds * max(by_number, by_size)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = self.last_validation = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch_start = time.monotonic()
        if self._validated:  # the time includes checkpoints and figures
            self.validation_seconds = self._batch_start - self._validation_start
            self.last_validation, self._validated = self._batch_start, False

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Decide whether to stop and whether to validate."""
        seconds = time.monotonic() - self._batch_start
        self.n_batches += 1
        self.step_seconds += (seconds - self.step_seconds) / max(1, min(self.n_batches - 1, MEASURED_STEPS))
        if self.n_batches == MEASURED_STEPS and trainer.is_global_zero:
            self._report(trainer)
        if self.budget is not None:
            self._decide(trainer, batch_idx)
        elif trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
            self._stop(trainer)

    def _decide(self, trainer: Trainer, batch_idx: int) -> None:
        validates = stops = False
        if self.n_batches >= self._next_decision:
            now = time.monotonic()
            used, all_seconds = now - self.start, max(self.end - self.start, 1e-3)
            share = (self.seconds_before + used + self.step_seconds) / (self.seconds_before + all_seconds)
            n = 1 if trainer.world_size == 1 else max(1, round(AGREE_SECONDS / max(self.step_seconds, 1e-6)))
            stops = used + self.step_seconds / 2 >= all_seconds
            if (part := self.validation_share) is not None:
                interval = max(self.validation_seconds * (1 - part) / part, all_seconds / MAX_VALIDATIONS)
                validates = now - self.last_validation >= interval
            decision = min(1.0, max(share, _share_of_limits(trainer, batch_idx))), validates, stops, n
            self.progress, validates, stops, n = trainer.strategy.broadcast(decision)
            self._next_decision = self.n_batches + n
        if self.validation_share is not None:
            trainer.val_check_batch = batch_idx + 1 if validates else sys.maxsize
        if stops or _share_of_limits(trainer, batch_idx) >= 1:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        """End the training after this step, with a validation."""
        trainer.should_stop = self.stopped = True
        trainer.check_val_every_n_epoch = 1

    def _report(self, trainer: Trainer) -> None:
        """Log how long the training will take."""
        left = self.time_left()
        n = trainer.estimated_stepping_batches if left is None else left / self.step_seconds
        seconds = n * trainer.accumulate_grad_batches * self.step_seconds if left is None else left
        if math.isfinite(seconds):
            log.info("%.2g s a step: about %.0f steps in %.1f minutes", self.step_seconds, n, seconds / 60)


def _share_of_limits(trainer: Trainer, batch_idx: int) -> float:
    """Share of `max_epochs` or `max_steps` that is done; 0 without a limit."""
    epochs = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
    by_epochs = epochs / trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 0.0
    return max(by_epochs, trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0)
