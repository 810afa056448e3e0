"""ExperimentCLI: task, datamodule and trainer from configuration files and command-line overrides."""

import inspect
import json
import logging
import operator
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial, reduce
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, LRSchedulerTypeTuple
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.optim import Optimizer

from project.data.datamodule import ImageDataModule
from project.errors import UserError, format_own_traceback
from project.models.downloads import explain_download
from project.runs.run_folder import Run
from project.tasks.base import DATA_ATTRIBUTES, Task
from project.training.callbacks import CudnnBenchmark, CurrentBatchNorm
from project.training.checkpoints import AtomicCheckpointIO, LastCheckpoint
from project.training.data_arguments import DataArguments, data_arguments, imported_callable
from project.training.length import Length, set_length
from project.training.loggers import make_loggers, quiet_lightning
from project.training.overrides import apply_overrides, last_value, parser_arguments, shared_configs
from project.training.parser_errors import explain_parser_error
from project.training.refusals import refuse_options

log = logging.getLogger("project")
REFRESH_EVERY = 10  # batches; drawing the progress bar at each takes a third of the time of a tiny network


def integers_first(function: Callable[..., Any]) -> None:
    """Let a parser try int before float for each argument of a function that may be either.

    `typing` caches unions in any order: if another package has built `Union[float, int]` first, Lightning's is that one
    too, and `--trainer.limit_val_batches 1` is read as 1.0, which means all batches. `int | float` is not cached.
    """
    annotations = inspect.unwrap(function).__annotations__
    for name, hint in annotations.items():
        if {int, float} <= {*get_args(hint)}:
            annotations[name] = reduce(operator.or_, sorted(get_args(hint), key=lambda kind: kind is not int))


integers_first(Trainer.__init__)


class ExperimentParser(LightningArgumentParser):
    """Raises a `UserError` with the wrong key and the nearest valid one instead of printing a usage page."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser of the same class, which expects its own error
            super().error(message, ex)
        raise UserError(explain_parser_error(message, [action.dest for action in self._actions]))

    def add_function_arguments(self, *args: Any, linked_targets: Any = None, **options: Any) -> list[str]:
        """As of every parser; jsonargparse 4.53 passes `linked_targets`, of classes, for functions too."""
        return super().add_function_arguments(*args, **options)


class ExperimentCLI(LightningCLI):
    """Builds task, datamodule and trainer; does not run anything.

    Args:
        arguments: As on a command line: `--config file` and `--key value`; the last of two wins.
        run: Folder for everything that is written.
        logger: See `make_loggers`.
        callbacks: Added to those of the configuration.
        training: Refuse options with which a training would break its promises.
        build: False only checks the configuration: keys, classes and types.
        attributes: What the task has to know of its data; then no datamodule is built.
    """

    model: Task
    datamodule: ImageDataModule
    trainer: Trainer

    def __init__(
        self,
        arguments: list[str],
        run: Run,
        logger: str = "none",
        callbacks: Sequence[Callback] = (),
        training: bool = False,
        build: bool = True,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        self.run, self.logger_names, self.extra = run, logger, callbacks
        self.training, self.build, self.attributes = training, build, attributes
        settings, self.from_data = apply_overrides({}, arguments), DataArguments()
        if isinstance(seed := settings.get("seed_everything"), int) and not 0 <= seed < 2**32:
            raise UserError(f"seed_everything is {seed}: write a number from 0 to {2**32 - 1}")
        if training and (task := task_class(settings)):
            self.from_data = data_arguments(settings, last_value(arguments, "--data.crop") is not None, task)
        for line in self.from_data.notes if build else ():
            log.info("%s", line)
        super().__init__(
            Task,
            ImageDataModule if attributes is None else None,
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=0,
            parser_class=ExperimentParser,
            # Otherwise `--trainer.max_epoch` is silently taken for another key.
            parser_kwargs={"allow_abbrev": False},
            args=parser_arguments([*arguments, *self.from_data.words]),
            run=False,
            # Done by the task, when the length of the training is known.
            auto_configure_optimizers=False,
            # Hyper-parameters in a checkpoint would override the command line; config.yaml holds them.
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Length, "length")
        parser.add_class_arguments(ModelCheckpoint, "checkpoint", fail_untyped=False, sub_configs=True)
        parser.add_optimizer_args((Optimizer,), link_to="model.init_args.optimizer")
        parser.add_lr_scheduler_args(LRSchedulerTypeTuple, link_to="model.init_args.lr_scheduler")
        if self.attributes is None:
            for name in DATA_ATTRIBUTES:
                parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
            parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        for name, value in (self.attributes or {}).items():  # links leave out what the class of the task does not take
            constant = partial(lambda value, _: value, value)
            parser.link_arguments("seed_everything", f"model.init_args.{name}", compute_fn=constant)
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=_seed)

    def before_instantiate_classes(self) -> None:
        trainer = self.config.trainer
        if isinstance(trainer.callbacks, Namespace):  # a single one needs no list
            trainer.callbacks = [trainer.callbacks]
        if self.training:
            refuse_options(self.config)
        if self.build:
            self.from_data.refuse_problems()
        self.chooses_validation = trainer.check_val_every_n_epoch is None and trainer.val_check_interval is None
        if self.chooses_validation:
            trainer.check_val_every_n_epoch = 1  # until `set_length` knows the data
        if trainer.enable_progress_bar is None:
            trainer.enable_progress_bar = sys.stdout.isatty()

    def instantiate_classes(self) -> None:
        """Build everything; a class that refuses its arguments gives a `UserError` without jsonargparse's wrapping."""
        if not self.build:
            return
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, OSError, RuntimeError, LookupError, AttributeError, ImportError) as error:
            raise explain_download(error) or _innermost(error) from error
        except MisconfigurationException as error:
            raise UserError(f"trainer: {error}") from error

    def after_instantiate_classes(self) -> None:
        if self.build and self.attributes is None:
            self.datamodule.roles, self.datamodule.optional_roles = self.model.inputs, self.model.optional_inputs

    def best_checkpoint(self) -> ModelCheckpoint:
        """The callback that keeps best.ckpt, by the first main metric of the task with a direction if none is typed."""
        config = self.config.checkpoint
        if config.monitor is None:
            with_direction = (item for item in self.model.main_metrics.items() if item[1] in ("min", "max"))
            metric, config.mode = next(with_direction, ("loss", "min"))
            config.monitor = f"val/{metric}"
        # Metrics are compared with the weights that they are of, however often an epoch validates.
        has_budget = self.config.length.minutes is not None  # which validates within epochs, and at its end
        at_epoch_end = (False if has_budget else None) if config.monitor.startswith("val/") else True
        fixed = {"dirpath": str(self.run.checkpoints), "save_last": None, "every_n_epochs": None}
        return ModelCheckpoint(**config.as_dict() | fixed | {"save_on_train_epoch_end": at_epoch_end})

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer of the configuration, with the run's loggers and callbacks; `kwargs` win."""
        options: dict[str, Any] = {"default_root_dir": str(self.run.folder)}
        if self.config.trainer.logger in (None, True):
            options["logger"] = make_loggers(self.logger_names, self.run) if "logger" not in kwargs else None
        if "callbacks" not in kwargs:
            options["callbacks"] = self.ordered_callbacks()
        trainer = super().instantiate_trainer(**options | kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def ordered_callbacks(self) -> list[Callback]:
        """All callbacks. Lightning calls those that are checkpoints after the others, otherwise in this order."""
        configured = self.config_init.trainer.callbacks or []
        own, writers = ([c for c in self.extra if isinstance(c, Checkpoint) is last] for last in (False, True))
        callbacks = [
            self.best_checkpoint(),  # the first is `Trainer.checkpoint_callback`
            *own,
            *configured,
            CudnnBenchmark(self.config.trainer),
            CurrentBatchNorm(),
            *writers,
        ]
        if self.config.checkpoint.save_last:
            callbacks.append(LastCheckpoint(self.run.checkpoints, self.config.checkpoint))
        if self.config.trainer.enable_progress_bar and not any(isinstance(c, ProgressBar) for c in configured):
            callbacks.append(RichProgressBar(refresh_rate=REFRESH_EVERY))
        return callbacks

    def text(self) -> str:
        """The whole resolved configuration as YAML."""
        config = self.config.clone()
        config.pop("config", None)
        # YAML cannot hold defaults such as `torch.device("cpu")` of what is in a list: their names are written.
        listed = (item for value in list(config.values()) if isinstance(value, list) for item in value)
        for item in (item for item in listed if isinstance(item, Namespace)):
            for key, value in list(item.items()):
                if isinstance(value, torch.device | Enum):
                    item[key] = getattr(value, "value", str(value))
        return str(self.parser.dump(config, skip_none=False))


def experiment_arguments(content: dict[str, Any], overrides: list[str]) -> list[str]:
    """Arguments of `ExperimentCLI`: what experiments share, then an experiment's, then the command line's."""
    return [*shared_configs(content, overrides), f"--config={json.dumps(content)}", *overrides]


def check_config(content: dict[str, Any], overrides: list[str]) -> None:
    """Refuse unknown keys and classes, wrong types and refused options of an experiment; builds and writes nothing."""
    with quiet_lightning(logging.ERROR):
        ExperimentCLI(experiment_arguments(content, overrides), Run(Path("none/none")), training=True, build=False)


@contextmanager
def temporary_experiment(experiment: str, content: dict[str, Any], overrides: list[str]) -> Iterator[ExperimentCLI]:
    """An experiment, set up for training, to try something with; prints nothing, and leaves nothing in `runs/`."""
    # Only parts of a training will run.
    partial = (r".*You defined a `validation_step`.*", r".*`training_step` returned.*")
    with tempfile.TemporaryDirectory() as folder, quiet_lightning(logging.ERROR, *partial):
        run = Run(Path(folder) / experiment / "temporary")
        cli = ExperimentCLI(experiment_arguments(content, overrides), run, training=True)
        cli.datamodule.setup("fit")
        if hasattr(cli.model.net, "fit"):
            raise UserError(f"{experiment} is fitted, not trained: there are no training steps to try")
        cli.config.length.minutes = None  # schedules span the steps: nothing is timed
        set_length(cli)
        yield cli


def task_class(content: dict[str, Any]) -> type[Task] | None:
    """The task that a configuration names; None if it is no task, or cannot be imported: the parser says why."""
    task = imported_callable(str((content.get("model") or {}).get("class_path", "")))
    return task if isinstance(task, type) and issubclass(task, Task) else None


def _innermost(error: BaseException) -> BaseException:
    """The first error, from under jsonargparse's layers."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, UserError):
        return error
    if own := format_own_traceback(error):
        return UserError(f"{type(error).__name__}: {error}\n{own}")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return UserError(f"{type(error).__name__}: {error}{where}")


def _seed(seed: int | bool | None) -> int:
    return int(seed or 0)
