"""Going on with a training exactly where it stopped."""

import inspect
import json
import logging
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from project.data.datamodule import ImageDataModule
from project.errors import UserError, bullet_list
from project.models.checkpoint_files import read_file
from project.models.downloads import without_downloads
from project.optimizers import scale_rates
from project.runs.run_folder import Run
from project.training.lightning_cli import ExperimentCLI

log = logging.getLogger("project")

# Settings that are of the machine, or follow from the run folder.
OF_THE_MACHINE = ("checkpoint.dirpath", "trainer.enable_progress_bar", "trainer.logger", "trainer.default_root_dir")
# What may change when a training goes on; anything else makes another experiment.
MAY_CHANGE = (
    *("trainer", "optimizer.init_args", "lr_scheduler.init_args"),
    *("data.root", "data.num_workers", "data.eval_batch_size"),
    *(f"model.init_args.{name}" for name in ("compile", "channels_last")),
    *("checkpoint.verbose", "checkpoint.save_last", "checkpoint.every_n_epochs", "checkpoint.every_n_train_steps"),
)
# Of schedules: what they make of their arguments.
MADE = ("_schedule_phases", "total_steps", "total_size", "step_ratio", "min_lrs", "milestones")
LIMITS = ("--trainer.max_epochs", "--trainer.max_steps", "--trainer.max_time")
Changes = dict[str, tuple[Any, Any]]


class Continuation(Callback):
    """Keeps in each checkpoint what Lightning does not, and puts it back.

    That is: the metrics that callbacks and schedules look at; the step of a schedule that waits for a metric, which
    Lightning takes only after the last checkpoint of an epoch; the random states of Python and NumPy, for callbacks and
    networks that draw from them; the settings of the optimizer, so that what is typed anew can win over the checkpoint;
    the time. What is drawn for samples and on the device is a function of epoch and step, and needs no state.

    Args:
        seconds: Gives the time since the training began; what is kept is given to `went_on`.
        went_on: Called with the seconds of the checkpoint.
        factor: On all learning rates, since the beginning of the run; a checkpoint knows the one that it was made with.

    Attributes:
        optimizer: `class_path` and `init_args`, plain values, as they are now.
    """

    def __init__(
        self,
        seconds: Callable[[], float] = lambda: 0.0,
        went_on: Callable[[float], None] = lambda seconds: None,
        factor: float = 1.0,
    ) -> None:
        self.optimizer: dict[str, Any] = {}
        self.seconds, self.went_on, self.factor = seconds, went_on, factor
        self.kept: dict[str, Any] | None = None
        self.built: list[dict[str, Any]] = []
        self.max_steps = -1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Plain numbers only: a checkpoint is read without running code in it."""
        progress: Any = trainer.fit_loop.epoch_progress.current
        kind, keys, *position = np.random.get_state(legacy=True)  # noqa: NPY002 - what others draw from
        version, state, gauss = random.getstate()
        checkpoint["continuation"] = {
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "epoch_ended": progress.processed > progress.completed,
            "optimizer": self.optimizer,
            "factor": self.factor,
            "seconds": self.seconds(),
            "random": {
                "python": [version, list(state), gauss],
                "numpy": [str(kind), np.asarray(keys).tolist(), *position],
            },
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before anything else is put back."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.kept = checkpoint.get("continuation", {})
        for rule in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(rule, ModelCheckpoint) and (state := checkpoint["callbacks"].get(rule.state_key)):
                _move(state, str(rule.dirpath))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Optimizer and schedules are built; their states are not put back yet."""
        if self.kept is None:
            return
        self.built = [_arguments(config.scheduler) for config in trainer.lr_scheduler_configs]
        # With a number of steps as its limit, Lightning would end the last epoch a second time, and count it twice.
        self.max_steps = trainer.fit_loop.epoch_loop.max_steps
        trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything else is put back."""
        kept, self.kept = self.kept, None
        if kept is not None:
            trainer.fit_loop.epoch_loop.max_steps = self.max_steps
            self._put_back(trainer, kept)
            self._let_what_is_typed_win(trainer, kept)
        factor = self.factor / (kept or {}).get("factor", 1.0)
        if factor != 1:
            scale_rates(trainer, factor)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """An epoch that was entered in its middle ends like any other: schedules look at their metric."""
        if trainer.fit_loop.restarting:
            trainer.fit_loop._restarting = False

    def _put_back(self, trainer: Trainer, kept: dict[str, Any]) -> None:
        metrics = {name: torch.tensor(value) for name, value in kept.get("metrics", {}).items()}
        trainer.callback_metrics.update(metrics)
        if kept.get("epoch_ended"):
            for config in trainer.lr_scheduler_configs:
                due = config.interval == "epoch" and trainer.current_epoch % config.frequency == 0
                if config.reduce_on_plateau and due and config.monitor in metrics:
                    trainer.lightning_module.lr_scheduler_step(config.scheduler, metrics[config.monitor])
        self.went_on(kept.get("seconds", 0.0))
        if states := kept.get("random"):
            version, state, gauss = states["python"]
            random.setstate((version, tuple(state), gauss))
            kind, keys, *position = states["numpy"]
            np.random.set_state((kind, np.array(keys, dtype=np.uint32), *position))  # noqa: NPY002

    def _let_what_is_typed_win(self, trainer: Trainer, kept: dict[str, Any]) -> None:
        old = (kept.get("optimizer") or self.optimizer).get("init_args", {})
        for name, value in self.optimizer.get("init_args", {}).items():
            if name not in old or old[name] == value:
                continue
            if name == "lr":
                scale_rates(trainer, value / old[name])
                continue
            for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
                if name in group:
                    group[name] = tuple(value) if isinstance(value, list) else value
        for config, arguments in zip(trainer.lr_scheduler_configs, self.built, strict=False):
            state = vars(config.scheduler)
            for name, value in arguments.items():
                if name in state and state[name] != value:
                    if name not in MADE:
                        log.info("resuming with changed: %s", _told(name, state[name], value))
                    state[name] = value


def _arguments(scheduler: Any) -> dict[str, Any]:
    """Attributes of a schedule that follow from its arguments, and not from how far it is."""
    names = [*inspect.signature(type(scheduler)).parameters, *MADE]
    skipped = ("optimizer", "last_epoch", "lr_lambda")
    return {name: vars(scheduler)[name] for name in names if name in vars(scheduler) and name not in skipped}


def _move(state: dict[str, Any], folder: str) -> None:
    """Let the state of a `ModelCheckpoint` speak of the folder as it is called now, or it would forget the best."""
    before = state.get("dirpath") or "/"

    def moved(path: str) -> str:
        inside = Path(path).is_relative_to(before) and ".." not in Path(path).parts
        return str(Path(folder, Path(path).relative_to(before) if inside else Path(path).name)) if path else path

    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state.get(name, ""))
    state["best_k_models"] = {moved(path): score for path, score in state.get("best_k_models", {}).items()}
    state["dirpath"] = folder


# The run folder -------------------------------------------------------------------------------------------------------


def newest_config(run: Run) -> Path:
    """The configuration that a run was last started with: config.yaml, or the last config.resume-N.yaml."""
    files = sorted(run.folder.glob("config.resume-*.yaml"), key=lambda path: int(path.stem.rpartition("-")[2]))
    return files[-1] if files else run.config


def arguments(run: Run) -> list[str]:
    """Arguments for `ExperimentCLI` that build what the run was last started with, but for weights to download."""
    content = without_downloads(yaml.safe_load(newest_config(run).read_text(encoding="utf-8")))
    content.get("checkpoint", {}).pop("dirpath", None)  # the run may have been moved
    return [f"--config={json.dumps(content)}"]


@dataclass(frozen=True)
class Position:
    """Where a training goes on.

    Attributes:
        path: The checkpoint; None to begin anew.
        epoch: From 0.
        batches: Of this epoch that are done.
        step: Optimizer steps that are done.
    """

    path: Path | None = None
    epoch: int = 0
    batches: int = 0
    step: int = 0

    def told(self) -> str:
        """In words."""
        if self.path is None:
            return "from the beginning: there is no checkpoint yet"
        return f"from epoch {self.epoch + 1}" + (f", batch {self.batches + 1}" if self.batches else "")


def last_position(run: Run) -> Position:
    """Where last.ckpt is, which is read whole: a training never goes on from a damaged file.

    Raises:
        UserError: It is damaged, or holds weights only.
    """
    path = run.checkpoints / "last.ckpt"
    if not path.exists():
        _check_lost(run)
        return Position()
    sharded = path.is_dir()  # a part of the weights per device
    content = read_file(path / "meta.pt" if sharded else path, "resume")
    if "optimizer_states" not in content and not sharded:
        raise UserError(
            f'"{path}" holds weights only (checkpoint.save_weights_only): a training cannot go on from it. Start '
            "another run from these weights with `model.init_args.pretrained`"
        )
    state = content.get(ImageDataModule.__qualname__, {})
    epoch = state.get("epoch", content["epoch"] + 1)
    return Position(path, epoch, state.get("batches", 0), content["global_step"])


def _check_lost(run: Run) -> None:
    """Refuse to train from the beginning what was trained for epochs, because its last checkpoint is not there.

    Raises:
        UserError: last.ckpt is missing, or was never to be written.
    """
    history, config = run.folder / "history.csv", yaml.safe_load(newest_config(run).read_text(encoding="utf-8"))
    n_epochs = len(history.read_text(encoding="utf-8").splitlines()) - 1 if history.is_file() else 0
    settings = config.get("checkpoint") or {}
    # An epoch may have been killed after its line in the history, and before its checkpoint.
    if n_epochs > (settings.get("every_n_epochs") or 1) or (n_epochs and not settings.get("save_last", True)):
        raise UserError(
            f'"{run.checkpoints / "last.ckpt"}" is missing, though {n_epochs} epochs were trained '
            f"(checkpoint.save_last is {settings.get('save_last')}): the run cannot be resumed. Start another run from "
            "its best weights with `model.init_args.pretrained`"
        )


def position_of(run: Run, facts: dict[str, Any], typed: list[str]) -> Position:
    """Where a run goes on, of which `facts` are the provenance.

    Raises:
        UserError: It is finished, and nothing is typed that makes it longer; or see `last_position`.
    """
    position = last_position(run)
    if facts.get("status") == "finished" and not any(word.startswith(LIMITS) for word in typed):
        raise UserError(_finished(run, position))
    return position


def check_limits(run: Run, trainer: Trainer, finished: bool, position: Position) -> None:
    """Refuse to go on with a finished run that has nothing left to do.

    Raises:
        UserError: Its limit is reached.
    """
    epochs, steps = trainer.max_epochs, trainer.max_steps
    done = (epochs not in (None, -1) and position.epoch >= epochs) or (steps != -1 and position.step >= steps)
    if finished and done:
        raise UserError(_finished(run, position))


def _finished(run: Run, position: Position) -> str:
    return (
        f"{run.name} is finished, after {position.epoch} epochs ({position.step} steps); to train on, give it more:\n"
        f'  make train RESUME={run.quoted} ARGS="--trainer.max_epochs {2 * position.epoch}"'
    )


def plain(settings: Any) -> dict[str, Any]:
    """A section of the configuration as a dictionary of values that a checkpoint may hold."""
    content = settings.as_dict() if hasattr(settings, "as_dict") else dict(settings or {})
    found: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return found


def changed_config(run: Run, cli: ExperimentCLI) -> tuple[list[str], dict[str, str]]:
    """What has changed since the run was last started, in words, and the file to keep the new configuration in, if any.

    Raises:
        UserError: It would be another experiment.
    """
    text = cli.text()
    old, new = yaml.safe_load(newest_config(run).read_text(encoding="utf-8")), yaml.safe_load(text)
    changes = compare(old, new)
    n = 1 + len(list(run.folder.glob("config.resume-*.yaml")))
    return [_told(key, *values) for key, values in changes.items()], {
        f"config.resume-{n}.yaml": text
    } if changes else {}


def compare(old: dict[str, Any], new: dict[str, Any]) -> Changes:
    """Settings that differ, by their dotted keys.

    Args:
        old: As from YAML, before.
        new: The same, now.

    Raises:
        UserError: With one of them it would be another experiment.
    """
    found = dict(_differences(without_downloads(old), without_downloads(new), ""))
    found = {key: value for key, value in found.items() if not _under(key, OF_THE_MACHINE)}
    if refused := [_told(key, *found[key]) for key in found if not _under(key, MAY_CHANGE)]:
        raise UserError(
            "with this it would be another experiment, not the same training that goes on:\n"
            f"{bullet_list(refused)}\nStart a new run: leave out RESUME (--resume)"
        )
    return found


def _differences(old: Any, new: Any, key: str) -> list[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        parts = [_differences(old.get(name), new.get(name), f"{key}.{name}".lstrip(".")) for name in names]
        return [item for part in parts for item in part]
    return [] if old == new else [(key, (old, new))]


def _under(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _told(key: str, old: Any, new: Any) -> str:
    return f"{key}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def hide_lost_steps(trainer: Trainer, step: int) -> None:
    """Let TensorBoard forget what was logged after a step: it will be logged again.

    Its writer goes on in a new file, which begins with the step.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            logger.experiment.close()
            logger.experiment.purge_step = step + 1


@contextmanager
def same_wandb_run(facts: dict[str, Any]) -> Iterator[None]:
    """Let Weights & Biases go on with the run that it had; it reads this variable when it starts."""
    before = os.environ.get("WANDB_RUN_ID")
    if identity := facts.get("wandb"):
        os.environ["WANDB_RUN_ID"] = str(identity)
    try:
        yield
    finally:
        os.environ.pop("WANDB_RUN_ID", None)
        if before is not None:
            os.environ["WANDB_RUN_ID"] = before
