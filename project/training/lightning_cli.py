"""LightningCLI, with short errors and one run folder."""

import importlib
import inspect
import json
import logging
import operator
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import reduce
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, LRSchedulerTypeTuple
from torch.optim import Optimizer

from project.data.datamodule import ImageDataModule
from project.errors import UserError, explain_parser_error, format_own_traceback
from project.models.downloads import explain_download
from project.runs.run_folder import Run
from project.tasks.base import DATA_ATTRIBUTES, Task
from project.training.distributed import EqualSteps, TellBatch
from project.training.kernels import FastKernels
from project.training.lightning_options import check_options
from project.training.loggers import make_loggers
from project.training.logs import quiet_lightning
from project.training.overrides import for_parser
from project.training.progress import Progress
from project.yaml_files import DEFAULT_CONFIG

log = logging.getLogger("project")


def integers_first(function: Callable[..., Any]) -> None:
    """Let a parser try int before float for each argument of a function that may be either.

    `typing` caches unions whatever the order of their types: if another package has built `Optional[Union[float, int]]`
    before, Lightning's `Optional[Union[int, float]]` is that one too. `--trainer.limit_val_batches 1` would then be
    read as 1.0, which means all batches. `int | float` is not cached.
    """
    annotations = inspect.unwrap(function).__annotations__
    for name, hint in annotations.items():
        kinds = get_args(hint)
        if int in kinds and float in kinds:
            annotations[name] = reduce(operator.or_, sorted(kinds, key=lambda kind: kind is not int))


integers_first(Trainer.__init__)


class FriendlyParser(LightningArgumentParser):
    """Raises a `UserError` that names the wrong key, its nearest valid one and its line, in place of a usage page."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Called by argparse and jsonargparse; nested parsers of the same class expect their own error."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UserError(explain_parser_error(message, [action.dest for action in self._actions]))


class ExperimentCLI(LightningCLI):
    """Builds task, datamodule and trainer from configuration files and what was typed; runs nothing.

    Args:
        arguments: As on a command line: `--config file` and `--key value`.
        run: Folder for everything that is written.
        logger: See `make_loggers`.
        callbacks: Added to those of the configuration.
        training: Whether to refuse options with which a training would break its promises.
    """

    model: Task
    datamodule: ImageDataModule
    trainer: Trainer

    def __init__(
        self,
        arguments: list[str],
        run: Run,
        logger: str = "none",
        callbacks: list[Callback] | None = None,
        training: bool = False,
    ) -> None:
        self.training = training
        self.run, self.logger_names, self.extra = run, logger, callbacks or []
        words, kept = for_parser(arguments)
        for line in kept:
            log.info("%s", line)
        super().__init__(
            Task,
            ImageDataModule,
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=0,
            parser_class=FriendlyParser,
            # Otherwise `--trainer.max_epoch` is silently taken for another key.
            parser_kwargs={"allow_abbrev": False},
            args=words,
            run=False,
            # Done by the task, when the length of the training is known.
            auto_configure_optimizers=False,
            # Hyper-parameters in a checkpoint would win over what is typed; config.yaml holds them.
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links from the data to the task, and the checkpoint's own section."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_optimizer_args((Optimizer,))
        parser.add_lr_scheduler_args(LRSchedulerTypeTuple)
        for name in DATA_ATTRIBUTES:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_number)
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=_number)

    def before_instantiate_classes(self) -> None:
        """Everything that is written goes into the run folder; the best checkpoint is chosen after each validation."""
        if isinstance(self.config.trainer.callbacks, Namespace):  # a single one needs no list
            self.config.trainer.callbacks = [self.config.trainer.callbacks]
        if self.training:
            check_options(self.config)
        self.as_given, checkpoint = self.config.clone(), self.config.checkpoint
        checkpoint.dirpath = str(self.run.checkpoints)
        checkpoint.every_n_epochs = checkpoint.every_n_train_steps = None
        # Metrics are compared with the weights that they are of, however often an epoch validates.
        by_validation = str(checkpoint.monitor).startswith("val/")
        checkpoint.save_on_train_epoch_end = None if by_validation else True
        if self.config.trainer.precision == "bf16-mixed" and not _bf16_pays(self.config.trainer.accelerator):
            self.config.trainer.precision = "32-true"
        if self.config.trainer.enable_progress_bar is None:
            self.config.trainer.enable_progress_bar = sys.stdout.isatty()

    def instantiate_classes(self) -> None:
        """Build everything; an error inside a class is told as that class's own error.

        Raises:
            UserError: A class refused its arguments.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, OSError, RuntimeError, LookupError, AttributeError, ImportError) as error:
            raise explain_download(error) or innermost(error) from error
        except MisconfigurationException as error:
            raise UserError(f"trainer: {error}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer of the configuration with the run's loggers and callbacks."""
        kwargs |= {"default_root_dir": str(self.run.folder)}
        if self.config.trainer.logger in (None, True):
            kwargs["logger"] = make_loggers(self.logger_names, self.run)
        given = self.config_init.trainer.callbacks or []
        if self.config.trainer.enable_progress_bar and not any(isinstance(each, ProgressBar) for each in given):
            kwargs["callbacks"] = [*given, Progress()]
        trainer = super().instantiate_trainer(**kwargs)
        # `Trainer.checkpoint_callback` is the first of its kind.
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.remove(best := self.config_init.checkpoint)
        first = next((i for i, each in enumerate(callbacks) if isinstance(each, Checkpoint)), len(callbacks))
        callbacks.insert(first, best)
        trainer.callbacks += [*self.extra, FastKernels(self.config.trainer), TellBatch(), EqualSteps()]  # type: ignore[attr-defined]
        return trainer

    def after_instantiate_classes(self) -> None:
        """The datamodule reads what the task needs."""
        self.datamodule.roles, self.datamodule.optional_roles = self.model.inputs, self.model.optional_inputs
        if (optimizer := self.config_init.get("optimizer")) is not None:
            self.model.optimizer, self.model.lr_scheduler = optimizer, self.config_init.get("lr_scheduler")

    def text(self) -> str:
        """The whole resolved configuration as YAML, without what follows from the run folder."""
        config = self.config.clone()
        config.pop("config", None)
        config.checkpoint = self.as_given.checkpoint
        config.checkpoint.dirpath = None
        for value in list(config.values()):
            if isinstance(value, list):
                for item in value:
                    _name_defaults(item)
        return str(self.parser.dump(config, skip_none=False))


@contextmanager
def built_apart(experiment: str, content: dict[str, Any], typed: list[str]) -> Iterator[ExperimentCLI]:
    """An experiment, set up for training, to try something with: nothing is said, or left in `runs/`.

    Args:
        experiment: Its name.
        content: Its configuration.
        typed: Arguments that win over it, `--key value`.

    Raises:
        UserError: The configuration does not fit, or there is nothing to train.
    """
    files = [f"--config={DEFAULT_CONFIG}"] if DEFAULT_CONFIG.is_file() else []
    arguments = [*files, f"--config={json.dumps(content)}", *typed]
    # It will be run in parts.
    partly = (r".*You defined a `validation_step`.*", r".*`training_step` returned.*")
    with tempfile.TemporaryDirectory() as folder, quiet_lightning(logging.ERROR, *partly):
        cli = ExperimentCLI(arguments, Run(Path(folder) / experiment / "apart"), training=True)
        cli.datamodule.setup("fit")
        if hasattr(cli.model.net, "fit"):
            raise UserError(f"{experiment} is fitted, not trained: there are no training steps to try")
        yield cli


def task_class(content: dict[str, Any]) -> type[Task]:
    """The task that an experiment file names.

    Raises:
        UserError: It names none that exists.
    """
    path = str((content.get("model") or {}).get("class_path", ""))
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f'model.class_path: there is no class "{path}"') from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f'model.class_path: "{path}" is not a task')
    return found


def innermost(error: BaseException) -> BaseException:
    """What went wrong first, from under the layers that jsonargparse puts round it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, UserError):
        return error
    if own := format_own_traceback(error):
        return UserError(f"{type(error).__name__}: {error}\n{own}")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return UserError(f"{type(error).__name__}: {error}{where}")


def _name_defaults(item: Any) -> None:
    """A default such as `torch.device("cpu")`, of an argument of a callback, cannot be written; its name can."""
    if isinstance(item, Namespace):
        for key, value in list(item.items()):
            if isinstance(value, torch.device):
                item[key] = str(value)
            elif isinstance(value, Enum) and isinstance(value, str):
                item[key] = value.value


def _number(seed: int | bool | None) -> int:
    return int(seed or 0)


def _bf16_pays(accelerator: str) -> bool:
    """Whether bfloat16 is done in hardware; a CPU without it is slower than in float32."""
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    return not on_cpu or bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
