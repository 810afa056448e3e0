"""Loggers, the terminal and log.txt; warnings of Lightning that do not apply."""

import logging
import netrc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from project.errors import UserError, did_you_mean, python
from project.files import write_text
from project.runs.run_folder import MLFLOW_ID, Run, remove_unused

log = logging.getLogger("project")
# Warnings of Lightning that do not apply here, each with its reason.
IGNORED_WARNINGS = (
    r".*LightningCLI's args parameter is intended.*",  # the command line has already taken its own options
    r".*does not have many workers.*",  # cheap samples are fastest in the training process
    r".*The number of training batches.*is smaller than the logging interval.*",  # history has every epoch
    r".*Checkpoint directory .* exists and is not empty.*",  # two callbacks write there, and a run may be resumed
    r".*The dirpath has changed from.*",  # a run folder may be moved
    r".*It is recommended to use `self.log.*sync_dist=True.*",  # every device logs the numbers of all samples
    r".*You're using the WeightAveraging callback, but loading.*",  # the checkpoint holds the averaged weights
    r".*your dataloader is not resumable.*",  # a training resumes at the start of an epoch
    r".*callbacks used to create the checkpoint need to be provided.*",  # callbacks may be left out on resume
    r".*Precision bf16-mixed is not supported by the model summary.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # inside Lightning, with newer torch
)


def make_loggers(names: str, run: Run) -> list[Logger]:
    """The loggers named in a comma-separated list, writing into the run folder; none may stop a training."""
    kinds = [name.strip() for name in names.split(",")]
    for name in kinds:
        if name not in LOGGERS:
            raise UserError(
                f'there is no logger "{name}".{did_you_mean(name, LOGGERS)} Known: {", ".join(LOGGERS)}. '
                "history.csv is always written; others: --trainer.logger CometLogger --trainer.logger.project mine"
            )
    made = [make(run) for name, make in LOGGERS.items() if name in kinds]
    return [logger for logger in made if logger]


def _mlflow(run: Run) -> MLFlowLogger | None:
    """On the server of MLFLOW_TRACKING_URI, else a database in the folder of all runs (`mlflow ui`).

    A training that is resumed continues the run whose id is in its folder.
    """
    database = f"sqlite:///{run.folder.parent.parent / 'mlflow.db'}"
    address, record = os.environ.get("MLFLOW_TRACKING_URI") or database, run.folder / MLFLOW_ID
    id_ = record.read_text(encoding="utf-8").strip() if record.is_file() else None
    try:
        logger = MLFlowLogger(run.experiment, run_name=run.folder.name, tracking_uri=address, run_id=id_)
        if new_id := logger.run_id:  # connects; None in processes for further devices
            write_text(record, new_id)
    except ModuleNotFoundError as error:
        raise UserError(f"the logger mlflow needs the package mlflow: {python()} -m pip install mlflow") from error
    except Exception as error:  # whatever goes wrong there, the training continues
        log.warning("MLflow did not start: %s", error)
        return None
    return logger


def _wandb(run: Run) -> WandbLogger | None:
    """Online if the user is logged in, else offline; None, with a warning, if neither works. Never a prompt."""
    run.folder.mkdir(parents=True, exist_ok=True)
    online = os.environ.get("WANDB_MODE", "online") == "online" and logged_in()
    project = os.environ.get("WANDB_PROJECT", "project")
    before = sorted((run.folder / "wandb").glob("*run-*-*"))  # a training that is resumed continues its curves
    id_ = before[-1].name.rpartition("-")[2] if before else None
    for offline in (False, True) if online else (True,):
        try:
            logger = WandbLogger(
                name=run.name, id=id_, project=project, save_dir=str(run.folder), offline=offline, resume="allow"
            )
            _ = logger.experiment  # starts it, so that a failure comes now and not in the first step
        except Exception as error:  # whatever goes wrong there, the training continues
            log.warning("Weights & Biases did not start%s: %s", " offline" if offline else "", error)
            continue
        if offline:
            log.info("Weights & Biases is offline (not logged in); later: wandb sync %s", run.folder / "wandb")
        return logger
    return None


LOGGERS: dict[str, Callable[[Run], Logger | None]] = {
    "tensorboard": lambda run: TensorBoardLogger(str(run.folder), name="tensorboard", version=""),
    "wandb": _wandb,
    "mlflow": _mlflow,
    "csv": lambda run: CSVLogger(str(run.folder), name="csv"),
    "none": lambda run: None,
}


def logged_in() -> bool:
    """Whether there is a key for Weights & Biases, in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC", str(Path.home() / ".netrc"))).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@contextmanager
def logging_to(run: Run) -> Iterator[None]:
    """Log to the terminal and to the run's log.txt, without Lightning's warnings that do not apply."""
    log.setLevel(logging.INFO)
    log.propagate = False
    run.folder.mkdir(parents=True, exist_ok=True)
    terminal, file = logging.StreamHandler(sys.stdout), logging.FileHandler(run.folder / "log.txt", encoding="utf-8")
    terminal.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [file] if log.handlers else [terminal, file]
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


def ignore_warnings(*more: str) -> None:
    """Ignore Lightning's warnings that do not apply, in this process."""
    for message in (*IGNORED_WARNINGS, *more):
        warnings.filterwarnings("ignore", message)


@contextmanager
def quiet_lightning(level: int, *more: str) -> Iterator[None]:
    """Hide Lightning's log messages below a level, its warnings that do not apply, and those that match patterns."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            ignore_warnings(*more)
            yield
    finally:
        for logger, old in zip(loggers, levels, strict=True):
            logger.setLevel(old)
