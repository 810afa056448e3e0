"""Resume a training from last.ckpt, exactly at its last complete epoch."""

import inspect
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from project.errors import UserError, bullet_list
from project.models.checkpoint_files import read_file
from project.models.downloads import without_downloads
from project.optimizers import scale_rates
from project.runs.run_folder import Run
from project.training.history import count_epochs

# Settings of the machine, or that follow from the run folder.
MACHINE_KEYS = ("checkpoint.dirpath", "trainer.enable_progress_bar", "trainer.logger", "trainer.default_root_dir")
# What may change when a training is resumed; anything else makes another experiment.
RESUMABLE_KEYS = (
    *("trainer", "length", "optimizer.init_args", "lr_scheduler.init_args"),
    *("data.root", "data.num_workers", "data.eval_batch_size"),
    *(f"model.init_args.{name}" for name in ("compile", "channels_last")),
    *("checkpoint.verbose", "checkpoint.save_last", "checkpoint.every_n_epochs"),
)
# Attributes of schedulers that are derived from their arguments.
DERIVED = ("_schedule_phases", "total_steps", "total_size", "step_ratio", "min_lrs", "milestones")
LIMITS = ("--trainer.max_epochs", "--trainer.max_steps", "--trainer.max_time", "--length")
NEW_RUN = "Start another run from its weights with `model.init_args.pretrained`"


class ResumeState(Callback):
    """Keep in each checkpoint what Lightning does not, and restore it.

    That is: the metrics that callbacks and schedules look at; the step of a schedule that waits for a metric, which
    Lightning takes only after the checkpoint of an epoch; the settings of the optimizer, so that new command-line
    values win over the checkpoint. Random numbers need no state: they are functions of epoch and step.

    Args:
        lr_factor: Of all learning rates since the run began; see `RestartOnDivergence`. A checkpoint knows its own.
    """

    def __init__(self, lr_factor: float = 1.0) -> None:
        self.lr_factor = lr_factor
        self.loaded: dict[str, Any] | None = None
        self.scheduler_arguments: list[dict[str, Any]] = []
        self.max_steps = -1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Plain numbers only: a checkpoint is read without running code in it.
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        optimizer = plain(pl_module.optimizer)
        checkpoint["resume_state"] = {"metrics": metrics, "optimizer": optimizer, "lr_factor": self.lr_factor}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.loaded = checkpoint["resume_state"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and (state := checkpoint["callbacks"].get(callback.state_key)):
                _move_paths(state, str(callback.dirpath))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Optimizer and schedules are built, and their states are not restored yet.
        if self.loaded is not None:
            self.scheduler_arguments = [_arguments(config.scheduler) for config in trainer.lr_scheduler_configs]
            # With a limit of steps Lightning would end the last epoch again, and count it twice.
            self.max_steps = trainer.fit_loop.epoch_loop.max_steps
            trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Everything else is restored.
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            trainer.fit_loop.epoch_loop.max_steps = self.max_steps
            self._take_plateau_step(trainer, loaded["metrics"])
            self._apply_new_settings(trainer, loaded["optimizer"])
        factor = self.lr_factor / (loaded or {}).get("lr_factor", 1.0)
        if factor != 1:
            scale_rates(trainer, factor)

    @staticmethod
    def _take_plateau_step(trainer: Trainer, values: dict[str, float]) -> None:
        metrics = {name: torch.tensor(value) for name, value in values.items()}
        trainer.callback_metrics.update(metrics)
        for config in trainer.lr_scheduler_configs:
            due = config.interval == "epoch" and trainer.current_epoch % config.frequency == 0
            if config.reduce_on_plateau and due and config.monitor in metrics:
                trainer.lightning_module.lr_scheduler_step(config.scheduler, metrics[config.monitor])

    def _apply_new_settings(self, trainer: Trainer, old_optimizer: dict[str, Any]) -> None:
        old = old_optimizer.get("init_args", {})
        for name, value in plain(trainer.lightning_module.optimizer).get("init_args", {}).items():
            if name not in old or old[name] == value:
                continue
            if name == "lr":
                scale_rates(trainer, value / old[name])
                continue
            for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
                if name in group:
                    group[name] = tuple(value) if isinstance(value, list) else value
        for config, arguments in zip(trainer.lr_scheduler_configs, self.scheduler_arguments, strict=True):
            vars(config.scheduler).update(arguments)


def _arguments(scheduler: Any) -> dict[str, Any]:
    """Attributes of a scheduler that follow from its arguments, not from its progress."""
    names = {*inspect.signature(type(scheduler)).parameters, *DERIVED} - {"optimizer", "last_epoch", "lr_lambda"}
    return {name: value for name, value in vars(scheduler).items() if name in names}


def _move_paths(state: dict[str, Any], folder: str) -> None:
    """Let the state of a `ModelCheckpoint` name the folder as it is called now, or it would forget the best."""
    before = state.get("dirpath") or "/"

    def moved(path: str) -> str:
        inside = Path(path).is_relative_to(before) and ".." not in Path(path).parts
        return str(Path(folder, Path(path).relative_to(before) if inside else Path(path).name)) if path else path

    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state.get(name, ""))
    state["best_k_models"] = {moved(path): score for path, score in state.get("best_k_models", {}).items()}
    state["dirpath"] = folder


def plain(settings: Any) -> dict[str, Any]:
    """A section of the configuration as a dictionary of plain values."""
    content = settings.as_dict() if hasattr(settings, "as_dict") else dict(settings or {})
    values: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return values


# The run folder -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResumePoint:
    """Where a training resumes: without a checkpoint, from the beginning."""

    path: Path | None = None
    epoch: int = 0
    step: int = 0  # optimizer steps that are done

    def __str__(self) -> str:
        return f"from epoch {self.epoch + 1}" if self.path else "from the beginning: there is no checkpoint yet"


def newest_config(run: Run) -> dict[str, Any]:
    """The configuration that a run was last started with: of config.yaml, or of the last config.resume-N.yaml."""
    files = sorted(run.folder.glob("config.resume-*.yaml"), key=lambda path: int(path.stem.rpartition("-")[2]))
    content: dict[str, Any] = yaml.safe_load([run.config, *files][-1].read_text(encoding="utf-8"))
    return content


def config_argument(run: Run) -> str:
    """Argument for `ExperimentCLI` that builds what the run was last started with, without weights to download."""
    content = without_downloads(newest_config(run))
    content.get("checkpoint", {}).pop("dirpath", None)  # the run may have been moved
    return f"--config={json.dumps(content)}"


def resume_point(run: Run) -> ResumePoint:
    """Where last.ckpt is, which is read whole: a training never resumes from a damaged file.

    Raises:
        UserError: It is damaged or missing, holds weights only, or is of another version.
    """
    path = run.checkpoints / "last.ckpt"
    if not path.exists():
        _refuse_lost_checkpoint(run)
        return ResumePoint()
    content = read_file(path / "meta.pt" if path.is_dir() else path, "resume")  # a folder: a part for each device
    weights_only = "optimizer_states" not in content and not path.is_dir()
    if weights_only or "resume_state" not in content:
        why = "holds weights only (checkpoint.save_weights_only)" if weights_only else "is of another version"
        raise UserError(f'"{path}" {why}: a training cannot resume from it. {NEW_RUN}')
    return ResumePoint(path, content["epoch"] + 1, content["global_step"])


def _refuse_lost_checkpoint(run: Run) -> None:
    """Refuse to train again from the beginning because the last checkpoint is missing, or was never to be written."""
    config = newest_config(run)
    settings = config.get("checkpoint") or {}
    n_epochs = count_epochs(run.folder / "history.csv")
    trainer, length = config.get("trainer") or {}, config.get("length") or {}
    every = settings.get("every_n_epochs") or trainer.get("check_val_every_n_epoch") or 1
    every = math.inf if length.get("minutes") is not None else every
    # An epoch may have been killed after its line in the history, and before its checkpoint.
    if n_epochs > every or (n_epochs and not settings.get("save_last", True)):
        raise UserError(
            f'"{run.checkpoints / "last.ckpt"}" is missing, though {n_epochs} epochs were trained '
            f"(checkpoint.save_last is {settings.get('save_last')}): the run cannot be resumed. {NEW_RUN}"
        )


def start_resume(run: Run, overrides: list[str]) -> ResumePoint:
    """Where a run resumes with new settings.

    Raises:
        UserError: It is a baseline, or finished and without a new limit; or see `resume_point`.
    """
    facts = run.read("provenance.json")
    if facts.get("baseline"):
        raise UserError(
            f"{run.name} is a baseline, which is fitted at once; name a training run, such as\n"
            "  make train EXP=unet_mse RESUME=latest"
        )
    point = resume_point(run)
    if facts.get("status") == "finished" and not any(word.startswith(LIMITS) for word in overrides):
        raise _finished(run, point)
    return point


def refuse_reached_limit(run: Run, point: ResumePoint, trainer: Trainer) -> None:
    """Raise a `UserError` for a finished run that has nothing left to train."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    reached = (epochs not in (None, -1) and point.epoch >= epochs) or (steps != -1 and point.step >= steps)
    if reached and run.read("provenance.json").get("status") == "finished":
        raise _finished(run, point)


def _finished(run: Run, point: ResumePoint) -> UserError:
    return UserError(
        f"{run.name} is finished, after {point.epoch} epochs ({point.step} steps); to train on, give it more:\n"
        f'  make train RESUME={run.quoted} ARGS="--trainer.max_epochs {2 * point.epoch}"'
    )


def config_changes(run: Run, new: dict[str, Any]) -> list[str]:
    """Settings that have changed since the run was last started, as "key: old -> new".

    Raises:
        UserError: With one of them it would be another experiment.
    """
    pairs = _differences(without_downloads(newest_config(run)), without_downloads(new), "")
    changes = {key: text for key, text in pairs if not _below(key, MACHINE_KEYS)}
    if refused := [text for key, text in changes.items() if not _below(key, RESUMABLE_KEYS)]:
        raise UserError(
            "with this it would be another experiment, not the same training resumed:\n"
            f"{bullet_list(refused)}\nStart a new run: leave out RESUME (--resume)"
        )
    return list(changes.values())


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        old, new = ("null" if value is None else str(value)[:60] for value in (old, new))
        yield key, f"{key}: {old} -> {new}"


def _below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def purge_tensorboard(trainer: Trainer, step: int) -> None:
    """Let TensorBoard forget what was logged after a step: its writer continues in a new file."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            logger.experiment.close()
            logger.experiment.purge_step = step + 1
