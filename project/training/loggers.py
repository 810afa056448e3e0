"""TensorBoard and Weights & Biases, neither of which may ever stop a training."""

import logging
import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from project.errors import UserError, did_you_mean
from project.runs.run_folder import Run

log = logging.getLogger("project")
KNOWN = ("tensorboard", "wandb", "none")


def make_loggers(names: str, run: Run) -> list[Logger]:
    """The loggers named in a comma-separated list, writing into the run folder.

    Raises:
        UserError: A name is not known.
    """
    loggers: list[Logger] = []
    for name in (part.strip() for part in names.split(",")):
        if name not in KNOWN:
            raise UserError(f'there is no logger "{name}".{did_you_mean(name, KNOWN)} Known: {", ".join(KNOWN)}')
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(str(run.folder), name="tensorboard", version=""))
        elif name == "wandb" and (logger := _wandb(run)):
            loggers.append(logger)
    return loggers


def _wandb(run: Run) -> WandbLogger | None:
    """Online if the person is logged in, else offline; None, with a warning, if neither works. Never a prompt."""
    run.folder.mkdir(parents=True, exist_ok=True)
    online = os.environ.get("WANDB_MODE", "online") == "online" and logged_in()
    for offline in (False, True) if online else (True,):
        try:
            logger = WandbLogger(name=run.name, save_dir=str(run.folder), project="project", offline=offline)
            _ = logger.experiment  # starts it, so that a failure comes now and not in the first step
        except Exception as error:  # whatever goes wrong there, training goes on
            log.warning("Weights & Biases did not start%s: %s", " offline" if offline else "", error)
            continue
        if offline:
            log.info("Weights & Biases is offline (not logged in); later: wandb sync %s", run.folder / "wandb")
        return logger
    return None


def logged_in() -> bool:
    """Whether there is a key for Weights & Biases, in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC", str(Path.home() / ".netrc"))).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
