"""What is said, on the terminal and in the run's log.txt, and what is not."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from project.runs.run_folder import Run, remove_unused

log = logging.getLogger("project")
# Advice of Lightning that is wrong here, each with its reason.
NOISE = (
    r".*LightningCLI's args parameter is intended.*",  # the front has taken its own words away
    r".*does not have many workers.*",  # cheap samples are fastest in the training process
    r".*The number of training batches.*is smaller than the logging interval.*",  # history has every epoch
    r".*Checkpoint directory .* exists and is not empty.*",  # the run folder is new; Lightning looks twice
    r".*The dirpath has changed from.*",  # a run folder may be moved
    r".*It is recommended to use `self.log.*sync_dist=True.*",  # every device logs the numbers of all samples
    r".*You're using the WeightAveraging callback, but loading.*",  # what was kept are the averaged weights
    r".*your dataloader is not resumable.*",  # the datamodule keeps the position
    r".*callbacks used to create the checkpoint need to be provided.*",  # callbacks may be left out on resume
    r".*Precision bf16-mixed is not supported by the model summary.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # inside Lightning, with newer torch
)


@contextmanager
def logging_to(run: Run) -> Iterator[None]:
    """Log to the terminal and to the run's log.txt, without Lightning's advice that is wrong here."""
    handlers: list[logging.Handler] = []
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        terminal = logging.StreamHandler(sys.stdout)
        terminal.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
        handlers.append(terminal)
    run.folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(run.folder / "log.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers.append(file)
    for handler in handlers:
        log.addHandler(handler)
    try:
        with quiet_lightning(logging.WARNING):
            yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        remove_unused(run)


def hide_wrong_advice(*more: str) -> None:
    """Ignore Lightning's advice that is wrong here, in this process."""
    for message in (*NOISE, *more):
        warnings.filterwarnings("ignore", message)


@contextmanager
def quiet_lightning(level: int, *more: str) -> Iterator[None]:
    """Leave out what Lightning says below a level, and its advice that is wrong here.

    Args:
        level: Of `logging`.
        more: Patterns of warnings that are wrong at this place too.
    """
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(level)
    try:
        with warnings.catch_warnings():
            hide_wrong_advice(*more)
            yield
    finally:
        for each, old in zip(loggers, before, strict=True):
            each.setLevel(old)
