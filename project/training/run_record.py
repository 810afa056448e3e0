"""What a training writes about itself into provenance.json: its start, its end, its restarts."""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import WandbLogger

from project.checks.schedule import monitored_metrics
from project.data.datamodule import ImageDataModule
from project.errors import UserError
from project.files import write_json
from project.provenance import command, git_state
from project.runs import provenance
from project.runs.find_runs import link_latest
from project.runs.run_folder import Run, now
from project.training.history import truncate_history
from project.training.length import describe_length
from project.training.lightning_cli import ExperimentCLI
from project.training.loggers import ignore_warnings
from project.training.nonfinite import Diverged, RestartOnDivergence
from project.training.refusals import refuse_unknown_metrics
from project.training.resume import (
    ResumePoint,
    config_changes,
    plain,
    purge_tensorboard,
    refuse_reached_limit,
    resume_point,
)

log = logging.getLogger("project")


@dataclass
class StartRecord:
    """What a start or a resume writes: plain values, which a process for another device may be given."""

    run: Run
    facts: dict[str, Any]  # for provenance.json
    configs: dict[str, str]  # file name -> text
    lines: list[str]  # for the log
    point: ResumePoint | None = None  # where the run resumes; None for a new run

    def write(self, trainer: Trainer) -> None:
        """Write everything: nothing refuses the training any more."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.point is None:
            provenance.write_changes(self.run)
        else:
            truncate_history(self.run.folder / "history.csv", self.point.epoch)
            purge_tensorboard(trainer, self.point.step if self.point.path else -1)
            suffix = f".resume-{len(self.facts['resumed'])}"
            self.facts["resumed"][-1]["changes"] = provenance.write_changes(self.run, suffix)
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


class WriteStart(Callback):
    """Refuse to monitor metrics that do not exist, write the start once training begins, and report early stops.

    Metrics are known from the validation before training, or, on resume, from the checkpoint; without both, from the
    first validation.
    """

    def __init__(self) -> None:
        self.record: StartRecord | None = None
        self.checked = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Processes that Lightning spawns know no filters of warnings.
        ignore_warnings()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Nothing was trained yet, and everything is built and restored.
        self._check_metrics(trainer, pl_module)
        if self.record:
            self.record.write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before other callbacks look for their metrics.
        self._check_metrics(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report why a training ends before its last epoch."""
        n_epochs = trainer.current_epoch
        if self.record and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.record.run.update_provenance(trained={"epochs": n_epochs, "steps": trainer.global_step})
        for callback in trainer.callbacks if self.record and trainer.is_global_zero else ():  # type: ignore[attr-defined]
            stopped = isinstance(callback, EarlyStopping) and trainer.should_stop
            reason = callback.stopping_reason_message if stopped else None
            if reason and callback.stopped_epoch == n_epochs - 1:
                log.info("stopped early, after %d epochs: %s", n_epochs, reason)
                self.record.run.update_provenance(stopped_early=reason)  # type: ignore[union-attr]

    def _check_metrics(self, trainer: Trainer, task: Any) -> None:
        names = [name for name in trainer.callback_metrics if name.startswith("val/")]
        if self.checked or not names:
            return
        self.checked = True
        loggers = [task.training_step, *trainer.callbacks]  # type: ignore[attr-defined]
        others = any(not (item.__module__ or "").startswith(("project.", "lightning.")) for item in loggers)
        refuse_unknown_metrics(monitored_metrics(trainer, task), names, others)


def new_start(cli: ExperimentCLI, overrides: list[str], checks: list[dict[str, Any]]) -> StartRecord:
    """What a new run writes when training starts, so that a run that dies has its configuration and origin."""
    run, task, data, text = cli.run, cli.model, cli.datamodule, cli.text()
    seed = cli.config.get("seed_everything")
    n_parameters = sum(p.numel() for p in task.net.parameters())
    facts = provenance.describe_start(seed if isinstance(seed, int) else None, _data_hashes(data), text) | {
        "experiment": run.experiment,
        "dataset": data.dataset,
        "parameters": n_parameters,
        "oracle": bool(getattr(task.net, "oracle", False)),
        "baseline": hasattr(task.net, "fit"),
        "task": task.kind,
        "leading": task.main_metrics,
        "scoring": task.metrics.settings,
        "pretrained": task.loaded_weights,
        "fold": data.fold,
        # What the folds have in common; the hashes of the data are those of the fold.
        "all_folds_hash": data.whole.content_hash,
        "logger": cli.logger_names,
        "wandb": next((logger.version for logger in cli.trainer.loggers if isinstance(logger, WandbLogger)), None),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "overrides": overrides,
        "started": now(),
        "status": "started",
    }
    facts |= {"checks": checks} if checks else {}
    n_train, n_val = (len(data.reader(split)) for split in ("train", "val"))
    lines = [
        f"run folder: {run.folder}",
        f"{run.experiment} on {data.dataset}: {n_train} training and {n_val} validation images, "
        f"{n_parameters / 1e6:.2f} million parameters",
        *([] if facts["baseline"] else [describe_length(cli)]),
    ]
    return StartRecord(run, facts, {run.config.name: text}, lines)


def resumed_start(cli: ExperimentCLI, point: ResumePoint) -> StartRecord:
    """Check that it is the same training; what a resumed run writes when training starts.

    Raises:
        UserError: Data or configuration are others, or nothing is left to train.
    """
    run, text = cli.run, cli.text()
    facts = run.read("provenance.json")
    if facts.get("data_hash") != _data_hashes(cli.datamodule):
        raise UserError(
            f'"{cli.datamodule.folder}" has other content than when {run.name} was begun: name the old data with '
            "`--data.root`, or start a new run"
        )
    changes = config_changes(run, yaml.safe_load(text))
    refuse_reached_limit(run, point, cli.trainer)
    start = {"time": now(), "command": command(), **git_state(), "epoch": point.epoch, "changed": changes}
    facts.pop("stopped_early", None)
    facts |= {"status": "started", "resumed": [*facts.get("resumed", []), start]}
    n = 1 + len(list(run.folder.glob("config.resume-*.yaml")))
    lines = [f"resuming {run.folder} {point}", *(f"resuming with changed: {line}" for line in changes)]
    return StartRecord(run, facts, {f"config.resume-{n}.yaml": text} if changes else {}, lines, point)


def _data_hashes(data: ImageDataModule) -> dict[str, str]:
    return {split: data.reader(split).content_hash for split in ("train", "val")}


def restart_with_lower_lr(cli: ExperimentCLI, error: Diverged) -> None:
    """Record that a diverged training restarts from its last checkpoint; else raise a `UserError` with what to do."""
    run = cli.run
    restarts, point = run.read("provenance.json").get("restarts", []), resume_point(run)
    callbacks: list[Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    rule = next((callback for callback in callbacks if isinstance(callback, RestartOnDivergence)), None)
    if rule is None or len(restarts) >= rule.most or cli.trainer.world_size > 1:
        tried = f"\n  {len(restarts)} restarts with lower rates did not help" if restarts else ""
        good = f"{point.path} (after {point.epoch} epochs)" if point.path else "none"
        lr = plain(cli.config.get("optimizer")).get("init_args", {}).get("lr", 1e-3)
        raise UserError(
            f"{error}{tried}\n  last good checkpoint: {good}\nTo resume from there with a lower learning rate:\n"
            f'  make train RESUME={run.quoted} ARGS="--optimizer.init_args.lr {lr / 10:g}"'
        ) from error
    log.warning("%s", error)
    log.warning("restarting %s, with learning rates times %g", point, rule.factor)
    restart = {**error.facts, "factor": rule.factor, "back_to_epoch": point.epoch}
    run.update_provenance(restarts=[*restarts, restart])
