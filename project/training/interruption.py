"""Leaving a training between two steps: after Ctrl-C, a signal, or the time that it was given."""

import logging
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from project.training.checkpoints import between_steps, can_enter_epochs, save_last

log = logging.getLogger("project")
AGREE_EVERY = 10  # steps, after which several devices ask each other whether one of them shall stop
REQUEUE = getattr(signal, "SIGUSR1", None)  # `#SBATCH --signal=USR1@120`
TIME_LIMIT = 124  # exit status, as of the command `timeout`
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, REQUEUE: TIME_LIMIT}


class Stopped(KeyboardInterrupt):
    """A training was left; the command line prints the text, and exits with the status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Leave(Exception):
    """Ends `Trainer.fit` between two steps."""


class Interruption(Callback):
    """Ends the training after a step, with a checkpoint from which it can go on exactly.

    The first Ctrl-C, SIGTERM, or SIGUSR1 (of SLURM, before the time is over) is noted, and obeyed after the current
    step. In the last step of an epoch, and before a validation, the epoch is finished first. Where a callback has to
    see the start of each epoch, no epoch can be entered in its middle: then the last epoch is lost. A second Ctrl-C
    ends the training at once, which loses the steps since the last checkpoint.

    Args:
        limit: The time from now on after which to stop, as Lightning's callback.

    Attributes:
        reason: Why the training ends; None as long as it goes on.
        status: What the process exits with.
        saved: Whether the middle of an epoch was kept.
    """

    enters_epochs = True

    def __init__(self, limit: Timer | None = None) -> None:
        self.limit = limit
        self.reason: str | None = None
        self.status = 0
        self.saved = False
        self.requeue = False
        self.agreed = False
        self._before: dict[int, Any] = {}

    def leaving(self) -> bool:
        """Whether the training ends as soon as it can; the same on all devices."""
        return self.agreed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's handlers, which save in the middle of a step or not at all."""
        if self.limit is not None:
            self.limit.on_train_start(trainer, pl_module)
        if threading.current_thread() is not threading.main_thread():
            return
        wanted = [signal.SIGINT, signal.SIGTERM]
        if REQUEUE is not None and "SLURM_JOB_ID" in os.environ:
            wanted.append(REQUEUE)
        self._before = {number: signal.signal(number, self._note) for number in wanted}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requeue = self.requeue or number == REQUEUE
        if self.reason is not None:  # SLURM sends SIGTERM after SIGUSR1, if a step takes long
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self.reason, self.status = name, STATUS[signal.Signals(number)]
        again = "; again: at once" if number == signal.SIGINT else ""
        log.info("%s: stopping after this step%s", name, again)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After everything else that is done after a step."""
        if not self._ends(trainer, batch_idx):
            return
        if trainer.fast_dev_run or not can_enter_epochs(trainer):  # type: ignore[attr-defined]
            raise Leave
        if between_steps(trainer, batch_idx):
            save_last(trainer)
            self.saved = True
            raise Leave

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A signal during validation: the epoch's own checkpoint comes soon."""
        if not trainer.sanity_checking:
            self._ends(trainer, -1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch before is complete, with its checkpoint."""
        if self.agreed:
            raise Leave

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ends(self, trainer: Trainer, batch_idx: int) -> bool:
        remaining = self.limit.time_remaining() if self.limit is not None else None
        if self.reason is None and remaining is not None and remaining <= 0:
            self.reason, self.status = "trainer.max_time", TIME_LIMIT
        if trainer.world_size == 1:
            self.agreed = self.reason is not None
        elif not self.agreed and (batch_idx + 1) % AGREE_EVERY == 0:
            self.agreed = trainer.strategy.reduce_boolean_decision(self.reason is not None, all=False)
        return self.agreed


def requeue() -> None:
    """Ask SLURM to start this job again, which then goes on with its run."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        log.warning("job %s could not be requeued: %s", job, error)
        return
    if done.returncode:
        log.warning("job %s could not be requeued: %s", job, done.stderr.strip())
    else:
        log.info("job %s is requeued", job)
