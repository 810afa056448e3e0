"""Which batches fit into memory, and what a sample costs in them.

Lightning's own finder (`Tuner.scale_batch_size`) goes on until an allocation fails, which on a CPU means that the
machine swaps or the process is killed; it measures neither memory nor time, and changes the datamodule it is given.
"""

import gc
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.utilities.memory import is_oom_error
from torch.utils.data import DataLoader

from project.errors import UserError
from project.models.downloads import without_downloads
from project.training.lightning_cli import ExperimentCLI, temporary_experiment

STEPS = 4  # per batch size; the first is not timed
SECONDS = 60.0  # after which no larger batch is begun on a CPU
USABLE = 0.9  # of the memory that is free
# One device, no validation, nothing written, and the batch decides how long it takes.
ALONE = {
    **{"devices": 1, "num_nodes": 1, "strategy": "auto", "max_epochs": 1, "max_steps": -1, "max_time": None},
    **{"limit_train_batches": 1.0, "limit_val_batches": 0, "num_sanity_val_steps": 0, "overfit_batches": 0.0},
    **{"enable_progress_bar": False, "enable_model_summary": False, "fast_dev_run": False, "logger": False},
}


@dataclass(frozen=True)
class Trial:
    """One batch size.

    Attributes:
        batch: Samples per step.
        seconds: Per sample, of a whole training step.
        peak: Bytes: of the process on a CPU, of what the caching allocator holds on a GPU.
    """

    batch: int
    seconds: float
    peak: float


def try_batches(experiment: str, content: dict[str, Any], typed: list[str]) -> str:
    """Train a few steps at growing batch sizes, and say what they cost and which fits.

    On a GPU batches double until one does not fit, then the limit is narrowed down. On a CPU, where too large a batch
    would drive the machine into its swap space, only what surely fits is tried: memory grows in proportion to the
    batch, so the rest is read off a line. Weights, configuration and run folders stay as they are.

    Args:
        experiment: Its name.
        content: Its configuration.
        typed: Arguments that win over it, `--key value`.

    Returns:
        A table with advice.

    Raises:
        UserError: The configuration does not fit, there is nothing to train, or not even one sample fits.
    """
    with temporary_experiment(experiment, without_downloads(content), typed) as cli:
        if cli.config_init.get("optimizer") is None:
            raise UserError("the experiment names no optimizer")
        attempt = Attempt(cli)
        most = len(cli.datamodule.datasets["train"])
        if attempt.on_gpu:
            trials, failed = search(attempt, most)
        else:
            limit = _rss() + USABLE * free_memory()
            trials, failed = search(attempt, most, partial(_surely_fits, limit=limit, started=time.monotonic()))
    if not trials:
        raise UserError("not even one sample fits into memory; take a smaller `data.crop` or network")
    told = (
        f"{experiment}: samples of {' x '.join(map(str, attempt.shape))} on {attempt.device}, {attempt.precision}\n\n"
    )
    fits = _told_largest_tried(trials, failed, most) if attempt.on_gpu else _told_predicted(trials, limit, most)
    return told + _table(trials) + "\n" + fits + "\n" + _advice(experiment, trials)


def search(
    attempt: Callable[[int], Trial | None],
    most: int,
    may_try: Callable[[list[Trial], int], bool] = lambda trials, batch: True,
) -> tuple[list[Trial], int | None]:
    """Double the batch until it does not fit, then halve the distance until the limit is known to an eighth.

    Args:
        attempt: Tries a batch; None if it does not fit.
        most: No batch is larger.
        may_try: Whether to go on to a batch, after the trials so far.

    Returns:
        The trials by batch, and the smallest batch that did not fit.
    """
    trials: list[Trial] = []
    failed, batch = None, 1
    while failed is None and may_try(trials, batch):
        if (trial := attempt(batch)) is None:
            failed = batch
        else:
            trials.append(trial)
            if batch == most:
                break
            batch = min(2 * batch, most)
    while trials and failed is not None and failed - trials[-1].batch > max(1, trials[-1].batch // 8):
        middle = (trials[-1].batch + failed) // 2
        if (trial := attempt(middle)) is None:
            failed = middle
        else:
            trials.append(trial)
    return trials, failed


def predict(trials: list[Trial], limit: float) -> tuple[float, float, int] | None:
    """What fits into memory, from a line through the peaks.

    Args:
        trials: The last four count: small batches are drowned in what is there anyway.
        limit: Bytes.

    Returns:
        Bytes without any sample, bytes per sample, largest batch; None if memory does not grow measurably.
    """
    last = trials[-4:]
    if len(last) < 2 or max(t.peak for t in last) - min(t.peak for t in last) < 1e6:
        return None
    slope, base = np.polyfit([t.batch for t in last], [t.peak for t in last], 1)
    return None if slope <= 0 else (float(base), float(slope), max(int((limit - base) / slope), 0))


class Attempt:
    """Trains a few steps on one sample, repeated, in a fresh state of the experiment's own trainer."""

    def __init__(self, cli: ExperimentCLI) -> None:
        self.cli, self.task = cli, cli.model
        self.sample = cli.datamodule.datasets["train"][0, 0]
        self.shape = tuple(self.sample["image"].shape[1:])
        self.weights = {name: value.clone() for name, value in self.task.state_dict().items()}
        # Without a schedule: it has no part in this, and asks for the length of the training.
        self.task.lr_scheduler = None
        device = self._trainer().strategy.root_device
        self.on_gpu = device.type == "cuda"
        self.device = torch.cuda.get_device_name(device) if self.on_gpu else device.type
        self.precision = str(cli.config_init["trainer"]["precision"] or "32-true")

    def __call__(self, batch: int) -> Trial | None:
        """Train on a batch; None if it does not fit."""
        self.task.load_state_dict(self.weights)
        clock = _Clock()
        _release()
        try:
            samples = {name: value.repeat_interleave(batch, 0) for name, value in self.sample.items()}
            steps: Any = [samples] * STEPS
            self._trainer(clock).fit(self.task, train_dataloaders=DataLoader(steps, batch_size=None))
        except RuntimeError as error:  # torch.cuda.OutOfMemoryError is one
            if not (isinstance(error, torch.cuda.OutOfMemoryError) or is_oom_error(error)):
                raise
            return None
        finally:
            self.task.zero_grad(set_to_none=True)
            peak = torch.cuda.max_memory_reserved() if self.on_gpu else _peak()
        return Trial(batch, statistics.median(clock.seconds[1:]) / batch, peak)

    def _trainer(self, *callbacks: Callback) -> Trainer:
        trainer = self.cli.instantiate_trainer(**ALONE, callbacks=list(callbacks))
        kept = [c for c in self.cli.config_init["trainer"]["callbacks"] or [] if isinstance(c, WeightAveraging)]
        found = [c for c in trainer.callbacks if not isinstance(c, Checkpoint)]  # type: ignore[attr-defined]
        trainer.callbacks = [*found, *kept]  # type: ignore[attr-defined]
        return trainer


class _Clock(Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.started = self._now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seconds.append(self._now() - self.started)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


# Memory of the machine ------------------------------------------------------------------------------------------------


def free_memory() -> float:
    """Bytes that this process could still take without swapping; all of the memory where the system does not tell."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
    free = 1024.0 * int(lines["MemAvailable"].split()[0])
    for folder, most, used in (  # of a container
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            values = [Path(folder, name).read_text().strip() for name in (most, used)]
        except OSError:
            continue
        if values[0].isdigit():
            free = min(free, float(values[0]) - float(values[1]))
    return max(free, 0.0)


def _status(name: str) -> float | None:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def _rss() -> float:
    return _status("VmRSS") or _peak()


def _peak() -> float:
    import resource

    # Kilobytes on Linux, bytes on a Mac.
    factor = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor)


def _release() -> None:
    """Give back what earlier trials held, and start the peaks anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # else the peak is that of the process so far, which the largest batch made as well
        Path("/proc/self/clear_refs").write_text("5")


def _surely_fits(trials: list[Trial], batch: int, limit: float, started: float) -> bool:
    """Whether twice the peak of the last batch is at most half of the memory, and there is time for twice its steps."""
    if len(trials) < 3:
        return not trials or 2 * trials[-1].peak < limit
    needed = 2 * STEPS * trials[-1].batch * trials[-1].seconds
    return 2 * trials[-1].peak < 0.5 * limit and time.monotonic() - started + needed < SECONDS


# What is printed ------------------------------------------------------------------------------------------------------


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _table(trials: list[Trial]) -> str:
    rows = [
        f"{t.batch:7d}{1000 * t.seconds:16.2f}{_gb(t.peak):>14}\n"
        for t in sorted(trials, key=lambda trial: trial.batch)
    ]
    return "  batch   ms per sample   peak memory\n" + "".join(rows)


def _told_largest_tried(trials: list[Trial], failed: int | None, most: int) -> str:
    largest = max(trial.batch for trial in trials)
    if failed is None:
        return f"largest that fits: {largest}, all {most} samples of an epoch"
    return f"largest that fits: {largest} ({failed} did not)"


def _told_predicted(trials: list[Trial], limit: float, most: int) -> str:
    line = predict(trials, limit)
    if line is None:
        return "largest that fits: cannot be said; memory hardly grows with these batches"
    base, slope, largest = line
    few = f"; an epoch has only {most} samples" if largest > most else ""
    return (
        f"largest that fits: about {largest} (not tried but predicted: {_gb(base)} and {slope / 1e6:.1f} MB per "
        f"sample, where {_gb(limit)} may be used){few}"
    )


def _advice(experiment: str, trials: list[Trial]) -> str:
    best = min(trial.seconds for trial in trials)
    fastest = min(trial.batch for trial in trials if trial.seconds <= 1.03 * best)
    return (
        f"fastest per sample: {fastest} (the smallest within 3 % of the best)\n\n"
        f'To train with it: make train EXP={shlex.quote(experiment)} ARGS="--data.batch_size {fastest}", or write it '
        "into the experiment.\nThe learning rate belongs to the batch: find it anew. Whole images in validation have a "
        "size of their own, data.eval_batch_size."
    )
