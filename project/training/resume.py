"""Resume a training from last.ckpt, exactly at its last complete epoch."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from project.errors import UserError, bullet_list
from project.models.checkpoint_files import read_file
from project.models.downloads import without_downloads
from project.optimizers import scale_rates
from project.runs.config_diff import changed_settings, is_below, shorten
from project.runs.run_folder import Run
from project.runs.untrusted import read_config
from project.training.history import read_epochs

# Settings that follow from the terminal or the run folder.
IGNORED_KEYS = ("checkpoint.dirpath", "trainer.enable_progress_bar", "trainer.logger", "trainer.default_root_dir")
# What may change when a training is resumed; anything else makes another experiment.
RESUMABLE_KEYS = (
    *("trainer", "length", "optimizer.init_args", "lr_scheduler.init_args"),
    *("data.root", "data.num_workers", "data.eval_batch_size", "model.init_args.compile"),
    *("checkpoint.verbose", "checkpoint.save_last", "checkpoint.every_n_epochs"),
)
# Attributes of schedulers that are derived from their arguments.
DERIVED = ("_schedule_phases", "total_steps", "total_size", "step_ratio", "min_lrs", "milestones")
LIMITS = ("--trainer.max_epochs", "--trainer.max_steps", "--length")
NEW_RUN = "Start another run from its weights with `model.init_args.pretrained`"


class ResumeState(Callback):
    """Keep in each checkpoint what Lightning does not, and restore it.

    That is: the metrics that callbacks and schedules look at; the step of a schedule that waits for a metric, which
    Lightning takes only after the checkpoint of an epoch; the settings of the optimizer, so that new command-line
    values win over the checkpoint. Random numbers need no state: they are functions of epoch and step.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, Any] | None = None
        self.scheduler_arguments: list[dict[str, Any]] = []
        self.max_steps = -1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Plain numbers only: a checkpoint is read without running code in it.
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint["resume_state"] = {"metrics": metrics, "optimizer": plain(pl_module.optimizer)}

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
            self._apply_new_settings(trainer, loaded["optimizer"].get("init_args", {}))

    @staticmethod
    def _take_plateau_step(trainer: Trainer, values: dict[str, float]) -> None:
        metrics = {name: torch.tensor(value) for name, value in values.items()}
        trainer.callback_metrics.update(metrics)
        for config in trainer.lr_scheduler_configs:
            due = config.interval == "epoch" and trainer.current_epoch % config.frequency == 0
            if config.reduce_on_plateau and due and config.monitor in metrics:
                trainer.lightning_module.lr_scheduler_step(config.scheduler, metrics[config.monitor])

    def _apply_new_settings(self, trainer: Trainer, old: dict[str, Any]) -> None:
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
        inside = Path(path).is_relative_to(before)
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
    seconds: float = 0.0  # that they took

    def __str__(self) -> str:
        return f"from epoch {self.epoch + 1}" if self.path else "from the beginning: there is no checkpoint yet"


def resume_point(run: Run) -> ResumePoint:
    """Where last.ckpt is, which is read whole: a training never resumes from a damaged file."""
    provenance = run.read_provenance()
    if provenance.baseline:
        raise UserError(f"{run.name} is a baseline, which is fitted at once: name a training")
    path, epochs = run.checkpoints / "last.ckpt", read_epochs(run.folder / "history.csv")
    if not path.exists():
        # Without this the training would begin again. An epoch may have been killed before its checkpoint.
        if provenance.best and (n := len(epochs)) > 1:
            raise UserError(f'"{path}" is missing, though {n} epochs were trained: it cannot be resumed. {NEW_RUN}')
        return ResumePoint()
    content = read_file(path, "resume")
    if "optimizer_states" not in content or "resume_state" not in content:
        why = "is of another version" if "optimizer_states" in content else "holds weights only"
        raise UserError(f'"{path}" {why}: a training cannot resume from it. {NEW_RUN}')
    done = epochs[: content["epoch"] + 1]
    seconds = float(done[-1]["seconds"]) if done else 0.0
    return ResumePoint(path, content["epoch"] + 1, content["global_step"], seconds)


def refuse_finished(run: Run, point: ResumePoint, trainer: Trainer, overrides: list[str]) -> None:
    """Raise a `UserError` for a finished run without a new limit, or with nothing left to train."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    reached = (epochs not in (None, -1) and point.epoch >= epochs) or (steps != -1 and point.step >= steps)
    is_finished = run.read("provenance.json").get("status") == "finished"
    if is_finished and (reached or not any(word.startswith(LIMITS) for word in overrides)):
        raise UserError(
            f"{run.name} is finished, after {point.epoch} epochs ({point.step} steps); to train on, give it more:\n"
            f'  make train RESUME={run.quoted} ARGS="--trainer.max_epochs {2 * point.epoch}"'
        )


def config_changes(run: Run, new: dict[str, Any]) -> list[str]:
    """Settings that have changed since the run was last started, as "key: old -> new".

    `UserError` for those with which it would be another experiment.
    """
    old = without_downloads(read_config(run.configs[-1]))
    pairs = changed_settings(old, without_downloads(new), IGNORED_KEYS)
    changes = {key: f"{key}: {shorten(before)} -> {shorten(after)}" for key, before, after in pairs}
    if refused := [text for key, text in changes.items() if not is_below(key, RESUMABLE_KEYS)]:
        raise UserError(
            "with this it would be another experiment, not the same training resumed:\n"
            f"{bullet_list(refused)}\nStart a new run: leave out RESUME (--resume)"
        )
    return list(changes.values())


def purge_tensorboard(trainer: Trainer, step: int) -> None:
    """Let TensorBoard forget what was logged after a step: its writer continues in a new file."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            logger.experiment.close()
            logger.experiment.purge_step = step + 1
