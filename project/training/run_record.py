"""What a training writes about itself into provenance.json: its start and its end."""

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from project.errors import UserError
from project.files import write_json
from project.provenance import command, file_hash, git_state, hardware, versions, write_changes
from project.runs.find_runs import link_latest
from project.runs.run_folder import Run, now
from project.training.history import truncate_history
from project.training.length import describe_length
from project.training.lightning_cli import ExperimentCLI
from project.training.loggers import ignore_warnings
from project.training.refusals import refuse_unknown_metrics
from project.training.results_writer import writes
from project.training.resume import ResumePoint, config_changes, purge_tensorboard, refuse_finished

log = logging.getLogger("project")


class RunRecord(Callback):
    """Write how a training starts and ends into its run folder, and refuse to monitor metrics that do not exist.

    The start is written once training begins: nothing refuses the training any more. Metrics are known from the
    validation before training, or, on resume, from the checkpoint; without both, from the first validation.

    Args:
        run: The run folder.
        point: Where the run resumes; None for a new run.

    Attributes:
        facts: For provenance.json; empty until everything is built.
    """

    def __init__(self, run: Run, point: ResumePoint | None) -> None:
        # Plain values, which a process for another device may be given.
        self.run, self.point = run, point
        self.facts: dict[str, Any] = {}
        self.configs: dict[str, str] = {}  # file name -> text
        self.lines: list[str] = []  # for the log
        self.checked = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Processes that Lightning spawns know no filters of warnings.
        ignore_warnings()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Nothing was trained yet, and everything is built and restored.
        self._check_metrics(trainer, pl_module)
        self.write_start(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before other callbacks look for their metrics.
        self._check_metrics(trainer, pl_module)

    def _check_metrics(self, trainer: Trainer, task: Any) -> None:
        if not self.checked and any(name.startswith("val/") for name in trainer.callback_metrics):
            self.checked = True
            refuse_unknown_metrics(trainer, task)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the number of steps, and why a training ends before its last epoch."""
        if not writes(trainer):
            return
        n_epochs = trainer.current_epoch
        self.run.update_provenance(trained={"epochs": n_epochs, "steps": trainer.global_step})
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            stopped = isinstance(callback, EarlyStopping) and callback.stopped_epoch == n_epochs - 1
            if stopped and trainer.should_stop and (reason := callback.stopping_reason_message):
                log.info("stopped early, after %d epochs: %s", n_epochs, reason)
                self.run.update_provenance(stopped_early=reason)

    def write_start(self, trainer: Trainer) -> None:
        """Write everything that is known at the start."""
        if not writes(trainer):
            return
        if self.point is None:
            write_changes(self.run.folder)
        else:
            truncate_history(self.run.folder / "history.csv", self.point.epoch)
            purge_tensorboard(trainer, self.point.step if self.point.path else -1)
            suffix = f".resume-{len(self.facts['resumed'])}"
            self.facts["resumed"][-1]["changes"] = write_changes(self.run.folder, suffix)
        write_json(self.run.folder / "provenance.json", self.facts)
        for name, text in self.configs.items():
            (self.run.folder / name).write_text(text, encoding="utf-8")
        link_latest(self.run.folder.parent)
        for line in self.lines:
            log.info("%s", line)

    def write_end(self, trainer: Trainer, seconds: float, status: str, reason: str | None) -> None:
        """Record how a training ended, if its start was written, perhaps by a process for another device."""
        facts = self.run.read("provenance.json")
        written = facts and len(facts.get("resumed", [])) == len(self.facts.get("resumed", []))
        if not written or not trainer.is_global_zero:
            return
        facts.pop("reason", None)
        facts |= {"status": status, "seconds": round(facts.get("seconds", 0.0) + seconds, 1)}
        with suppress(OSError):  # the disk may be full; the error itself is reported
            write_json(self.run.folder / "provenance.json", facts | ({"reason": reason} if reason else {}))

    def describe(self, cli: ExperimentCLI, overrides: list[str], checks: list[dict[str, Any]]) -> None:
        """Take what is written when training starts, so that a run that dies has its configuration and origin."""
        if self.point is None:
            self._describe_start(cli, overrides, checks)
        else:
            self._describe_resume(cli, overrides, self.point)

    def _describe_start(self, cli: ExperimentCLI, overrides: list[str], checks: list[dict[str, Any]]) -> None:
        task, data, text = cli.model, cli.datamodule, cli.text()
        seed, is_baseline = cli.config.get("seed_everything"), hasattr(task.net, "fit")
        n_parameters = sum(p.numel() for p in task.net.parameters())
        # Columns of the tables: the metric that chose the best checkpoint follows the first of the task.
        first, *others = task.main_metrics.items()
        self.configs = {self.run.config.name: text}
        self.facts = {
            "command": command(),
            **git_state(),
            "config_hash": hashlib.sha256(text.encode()).hexdigest(),
            "lock_hash": file_hash(Path("requirements.lock")),
            "data_hash": _data_hashes(cli),
            "seed": seed if isinstance(seed, int) else None,
            "versions": versions(),
            "hardware": hardware(),
            "experiment": self.run.experiment,
            "dataset": data.dataset,
            "parameters": n_parameters,
            "oracle": bool(getattr(task.net, "oracle", False)),
            "baseline": is_baseline,
            "task": task.kind,
            "leading": dict(
                [first, *sorted(others, key=lambda item: f"val/{item[0]}" != cli.config.checkpoint.monitor)]
            ),
            "scoring": task.metrics.settings,
            "pretrained": task.loaded_weights,
            "fold": data.fold,
            # What the folds have in common; the hashes of the data are those of the fold.
            "all_folds_hash": data.whole.content_hash,
            "logger": cli.logger_names,
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "overrides": overrides,
            "started": now(),
            "status": "started",
            **({"checks": checks} if checks else {}),
        }
        n_train, n_val = (len(data.reader(split)) for split in ("train", "val"))
        self.lines = [
            f"run folder: {self.run.folder}",
            f"{self.run.experiment} on {data.dataset}: {n_train} training and {n_val} validation images, "
            f"{n_parameters / 1e6:.2f} million parameters",
            *([] if is_baseline else [describe_length(cli)]),
        ]

    def _describe_resume(self, cli: ExperimentCLI, overrides: list[str], point: ResumePoint) -> None:
        """`UserError` if data or configuration are others, or nothing is left to train."""
        run, text, facts = self.run, cli.text(), self.run.read("provenance.json")
        if facts.get("data_hash") != _data_hashes(cli):
            raise UserError(
                f'"{cli.datamodule.folder}" has other content than when {run.name} was begun: name the old data with '
                "`--data.root`, or start a new run"
            )
        changes = config_changes(run, yaml.safe_load(text))
        refuse_finished(run, point, cli.trainer, overrides)
        start = {"time": now(), "command": command(), **git_state(), "epoch": point.epoch, "changed": changes}
        facts.pop("stopped_early", None)
        self.facts = facts | {"status": "started", "resumed": [*facts.get("resumed", []), start]}
        self.lines = [f"resuming {run.folder} {point}", *(f"resuming with changed: {line}" for line in changes)]
        self.configs = {f"config.resume-{len(run.configs)}.yaml": text} if changes else {}


def _data_hashes(cli: ExperimentCLI) -> dict[str, str]:
    return {split: cli.datamodule.reader(split).content_hash for split in ("train", "val")}
