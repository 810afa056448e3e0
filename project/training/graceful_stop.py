"""Stop a training between two steps, at Ctrl-C or SIGTERM, so that it can be resumed."""

import logging
import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from project.runs.run_folder import Run

log = logging.getLogger("project")
AGREE_EVERY = 10  # steps after which several devices agree on stopping


class Interrupted(KeyboardInterrupt):
    """A training was stopped; the command line prints the text, and exits with the status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class StopTraining(Exception):
    """Raised between two steps to leave `Trainer.fit`."""


class GracefulStop(Callback):
    """End the training after the current step, at the first Ctrl-C or SIGTERM.

    It resumes from the last complete epoch, the one of last.ckpt. A second Ctrl-C ends the training immediately.

    Attributes:
        reason: Why the training ends; None while it continues.
        status: Exit status of the process.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.status = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Instead of Lightning's handlers, which save in the middle of a step or not at all.
        self._handlers = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal: note the first one; raise `KeyboardInterrupt` at the second Ctrl-C."""
        if self.reason is None:
            self.reason, self.status = signal.Signals(number).name, 128 + number
            log.info("%s: stopping after this step%s", self.reason, "; again: now" if number == signal.SIGINT else "")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # The validation and the checkpoint of an epoch are still done.
        if batch_idx + 1 < trainer.num_training_batches and self._agreed(trainer, (batch_idx + 1) % AGREE_EVERY == 0):
            raise StopTraining

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreed(trainer, True):
            raise StopTraining

    def _agreed(self, trainer: Trainer, ask_others: bool) -> bool:
        stops = self.reason is not None
        if trainer.world_size == 1:
            return stops
        return ask_others and trainer.strategy.reduce_boolean_decision(stops, all=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def interrupted(self, error: BaseException, trainer: Trainer, run: Run) -> Interrupted:
        """What to raise when a training was stopped: the reason, what is lost, how to resume."""
        text, status = f"stopped by {self.reason}", self.status
        if isinstance(error, SystemExit):
            text, status = "stopped immediately", 130
        elif self.reason is None:  # a signal before the first step, or after the last
            text, status = "stopped", 143 if isinstance(error, SIGTERMException) else 130
        done, n = trainer.fit_loop.batch_idx + 1, trainer.num_training_batches
        if trainer.state.fn == TrainerFn.FITTING and done < n:
            text += f" in epoch {trainer.current_epoch + 1}, after batch {done} of {n}, which is trained again"
        if run.config.is_file():
            text += f"; resume with\n  make train RESUME={run.quoted}"
        # Lightning would kill the first process as soon as another ended with a status.
        return Interrupted(text, status if trainer.is_global_zero else 0)
