"""Checkpoints that are written while training goes on."""

import contextlib
import copy
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    WeightAveraging,
)
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from project.errors import UserError, write_failure

# These may miss the start of an epoch that is entered in its middle.
INDIFFERENT = (LearningRateMonitor, ProgressBar)


class NotWritten(UserError):
    """A checkpoint could not be written; the old one is whole."""


class BackgroundCheckpoints(TorchCheckpointIO):
    """Writes checkpoints in a thread: training waits for the copy to memory only.

    What is written is the state at the moment of the call. A file is written under another name, flushed to the disk
    and renamed when complete, so that a process that is killed leaves the old checkpoint. One copy at most is kept in
    memory: the next one waits until the last is written. A second checkpoint of the same state (best.ckpt, then
    last.ckpt) becomes another name of the same file. An error is raised at the next call, or when the training ends.

    Lightning's `AsyncCheckpointIO` queues copies without limit, writes through a temporary folder that may lie on
    another disk, flushes nothing, and reads a file that is still being written.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread: ThreadPoolExecutor | None = None  # a process that is forked makes its own
        self._jobs: list[Future[None]] = []
        # What identifies the state that was written last, its file, and who writes it.
        self._last: tuple[Any, Path, Future[None]] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Copy everything to memory, and write it in the background.

        Raises:
            UserError: An earlier checkpoint could not be written.
        """
        if storage_options is not None:
            raise TypeError("checkpoints take no storage_options")
        path, state = Path(path), _state(checkpoint)
        if self._last is not None and self._last[0] == state and path != self._last[1]:
            self._start(_link, self._last[2], self._last[1], path)
            return
        self.wait()
        self._last = state, path, self._start(_write, _snapshot(checkpoint, {}), path)

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        """As Lightning's, once everything is written."""
        self.wait()
        return super().load_checkpoint(path, *args, **options)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file, once everything is written."""
        self.wait()
        self._last = None
        super().remove_checkpoint(path)

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            UserError: Something could not be written.
        """
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()

    def teardown(self) -> None:
        """Called by Lightning when a training, or an evaluation, ends."""
        self._last = None
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None
        self.wait()

    def _start(self, work: Any, *arguments: Any) -> Future[None]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._jobs.append(self._thread.submit(_told, work, *arguments))
        return self._jobs[-1]


class KeepLast(Checkpoint):
    """Writes last.ckpt after epochs and, if a training can be resumed there, between steps.

    With a monitored metric Lightning writes it only in epochs in which the best improved, and in the middle of
    validations, from which no training can be resumed.

    Args:
        wanted: False, as `save_last: false`, writes it only where the training is left.
        every_n_epochs, every_n_train_steps: How often.
        leaving: Whether the training will be left after this epoch, which is then always kept.
        best_known: Called at the end of each epoch, when `ModelCheckpoint` has decided which is the best.
    """

    def __init__(
        self,
        wanted: bool = True,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        leaving: Callable[[], bool] = lambda: False,
        best_known: Callable[[Trainer], None] = lambda trainer: None,
    ) -> None:
        self.wanted, self.leaving, self.best_known = wanted, leaving, best_known
        self.every_n_epochs, self.every_n_train_steps = every_n_epochs or 1, every_n_train_steps

    def configure(self, settings: Any, rule: Any) -> None:
        """Take over from the `ModelCheckpoint` of a configuration what is about last.ckpt."""
        self.wanted, rule.save_last = bool(settings.save_last), None
        self.every_n_epochs, self.every_n_train_steps = settings.every_n_epochs or 1, settings.every_n_train_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after that of all other callbacks but `Interruption`."""
        every = self.every_n_train_steps
        due = every and trainer.global_step % every == 0 and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if due and self.wanted and between_steps(trainer, batch_idx) and can_enter_epochs(trainer):
            save_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after that of `ModelCheckpoint`, as Lightning calls all of a kind after other callbacks."""
        self.best_known(trainer)
        rule = trainer.checkpoint_callback
        if not isinstance(rule, ModelCheckpoint) or not rule.dirpath or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.leaving():
            save_last(trainer)
        elif self.wanted and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            save_last(trainer, rule.save_weights_only)


class AverageFromStart(Callback):
    """Lets `WeightAveraging` validate the weights themselves as long as it has averaged nothing.

    Lightning validates and saves the average from the first epoch on, which is that of untrained weights until it
    starts (`update_starting_at_step`, `update_starting_at_epoch`). Must come before it in the list of callbacks.
    """

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the average be the current weights: exchanging the two then changes nothing."""
        self._copy(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint between two validations holds the current weights too."""
        self._copy(trainer, pl_module)

    @staticmethod
    def _copy(trainer: Trainer, task: LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            average = callback._average_model if isinstance(callback, WeightAveraging) else None
            if average is not None and average.n_averaged == 0:
                average.module.load_state_dict(task.state_dict())


def between_steps(trainer: Trainer, batch_idx: int) -> bool:
    """Whether nothing but the next step follows: no validation, no end of an epoch, no half of an accumulation."""
    done = batch_idx + 1
    every = trainer.val_check_batch
    validates = isinstance(every, int) and done % every == 0
    return done < trainer.num_training_batches and done % trainer.accumulate_grad_batches == 0 and not validates


def can_enter_epochs(trainer: Trainer) -> bool:
    """Whether no callback has to see the start of an epoch: Lightning does not call it when one is entered later."""
    return not any(
        type(callback).on_train_epoch_start is not Callback.on_train_epoch_start
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if not isinstance(callback, INDIFFERENT) and not getattr(callback, "enters_epochs", False)
    )


def save_last(trainer: Trainer, weights_only: bool = False) -> Path:
    """Write last.ckpt, on all devices at the same time; returns its path."""
    rule = trainer.checkpoint_callback
    assert isinstance(rule, ModelCheckpoint)
    assert rule.dirpath is not None
    path = Path(rule.dirpath) / f"{rule.CHECKPOINT_NAME_LAST}{rule.FILE_EXTENSION}"
    trainer.save_checkpoint(path, weights_only)
    return path


def _told(work: Any, *arguments: Any) -> None:
    try:
        work(*arguments)
    except Exception as error:  # torch raises a RuntimeError over that of a full disk
        if message := write_failure(error):
            raise NotWritten(message) from error
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise NotWritten(f'the checkpoint "{arguments[-1]}" could not be written: {reason}') from error
        raise


def _write(content: dict[str, Any], path: Path) -> None:
    """Write a file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path) as beside, beside.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _link(writing: Future[None], written: Path, path: Path) -> None:
    """Give a file a second name; renaming a new file to the first name leaves this one as it is."""
    writing.result()  # is done, or has failed: then the name would be that of an older state
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path) as beside:
        try:
            os.link(written, beside)
        except OSError:  # a file system without links
            shutil.copyfile(written, beside)
            with beside.open("rb+") as file:
                os.fsync(file.fileno())


@contextlib.contextmanager
def _beside(path: Path) -> Any:
    beside = path.with_name(f".{path.name}.partial")
    beside.unlink(missing_ok=True)
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _snapshot(value: Any, copied: dict[Any, Tensor]) -> Any:
    """A copy on the CPU that nothing changes any more; tensors that are one stay one."""
    if isinstance(value, Tensor):
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in copied or not value.numel():
            copied[key] = value.detach().to("cpu", copy=True)
        return copied[key]
    if isinstance(value, dict):
        new = copy.copy(value)  # of its own kind, with the versions that state dictionaries carry as attributes
        for name, item in value.items():
            new[name] = _snapshot(item, copied)
        return new
    if type(value) in (list, tuple):
        return type(value)(_snapshot(item, copied) for item in value)
    return copy.deepcopy(value)


def _state(value: Any) -> Any:
    """What is equal only for two checkpoints of one moment: each tensor counts how often it was written to."""
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.stride(), None if value.is_inference() else value._version
    if isinstance(value, dict):
        # One callback knows its own path; what is kept to go on is made anew each time, and the same in one moment.
        skipped = ("callbacks", "continuation", "epoch_loss")
        return {name: _state(item) for name, item in value.items() if name not in skipped}
    if isinstance(value, list | tuple):
        return [_state(item) for item in value]
    return value if isinstance(value, int | float | str | None) else object()
