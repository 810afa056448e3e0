"""What is known before the first trial: whether everything fits, the experiment's own values, what it will cost."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from project.errors import UserError, bullet_list, did_you_mean
from project.models.downloads import without_downloads
from project.search.space import Space, check_metric, default
from project.training.batch_size import ALONE, Attempt
from project.training.lightning_cli import ExperimentCLI, built_apart
from project.training.resume import plain
from project.training.train import _check
from project.yaml_files import DEFAULT_CONFIG


@dataclass(frozen=True)
class Plan:
    """What a study is; kept in it, as plain JSON. Trials can be compared only as long as it stays the same.

    Attributes:
        experiment: Its name.
        content: Its configuration, and that of all experiments.
        typed: What all trials have besides, as typed.
        searched: Key -> its values in words.
        data: Content of the training and validation images.
        metric, mode: What a trial is judged by, as in `metrics.json`.
        own: The experiment's own values; empty if not all of them lie in the space.
        epochs: At most, of a trial; None where something else ends it.
        seconds: Of a trial, about, without its start; None if it cannot be said.
        megabytes: Of the checkpoints of a trial.
    """

    experiment: str
    content: dict[str, Any]
    typed: list[str]
    searched: dict[str, str]
    data: dict[str, str]
    metric: str
    mode: str
    own: dict[str, Any]
    epochs: int | None
    seconds: float | None
    megabytes: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def difference(self, content: dict[str, Any], typed: list[str], space: Space) -> str | None:
        """What is not as it was when the study began, in words."""
        if content != self.content["experiment"]:
            return "the experiment file"
        if default() != self.content["default"]:
            return f"{DEFAULT_CONFIG}"
        if typed != self.typed:
            return f"what is typed ({' '.join(self.typed) or 'nothing'} then)"
        if {key: setting.told() for key, setting in space.settings.items()} != self.searched:
            return f"{space.path}"
        if space.metric is not None and (space.metric, space.mode) != (self.metric, self.mode):
            return f"the metric in {space.path} ({self.mode} of {self.metric} then)"
        return None


def make_plan(experiment: str, content: dict[str, Any], typed: list[str], space: Space) -> Plan:
    """Build the experiment with its own values and with those at the ends of all ranges.

    Args:
        experiment: Its name.
        content: Its configuration.
        typed: Arguments that all trials have, `--key value`.
        space: What is searched.

    Raises:
        UserError: With one of the values it cannot be built, or there is no such metric.
    """
    bare = without_downloads(content)
    with built_apart(experiment, bare, typed) as cli:
        cli.datamodule.check_training(1)
        config = plain(cli.config)
        metric, mode = _metric(config, cli, space)
        own = {key: _at(config, key) for key in space.settings}
        epochs = config["trainer"]["max_epochs"]
        epochs = epochs if isinstance(epochs, int) and epochs > 0 else None
        seconds = _seconds(cli, metric, epochs, space)
        size = sum(p.numel() * p.element_size() for p in cli.model.parameters())
        data = {split: cli.datamodule.reader(split).content_hash for split in ("train", "val")}
    _check_ends(experiment, bare, typed, space)
    try:
        own = space.code(own)
    except ValueError as error:
        print(f"the experiment's own values are not tried: {error}")
        own = {}
    return Plan(
        experiment,
        {"experiment": content, "default": default()},
        typed,
        {key: setting.told() for key, setting in space.settings.items()},
        data,
        metric,
        mode,
        own,
        epochs,
        seconds,
        2 * 3 * size / 1e6,  # best and last, each with the optimizer's two moments
    )


def _metric(config: dict[str, Any], cli: ExperimentCLI, space: Space) -> tuple[str, str]:
    monitor, mode = space.metric, space.mode
    if monitor is None or mode is None:
        monitor, mode = str(config["checkpoint"]["monitor"]), str(config["checkpoint"]["mode"])
        if not monitor.startswith("val/"):
            raise UserError(f"checkpoint.monitor is {monitor}: name a metric of the validation in {space.path}")
        monitor = monitor.removeprefix("val/")
    check_metric(space, monitor)
    good = cli.model.main_metrics.get(monitor, mode)
    if good in ("min", "max") and good != mode:
        raise UserError(f"{space.path}: {monitor} is best at its {good}imum, but mode is {mode}: write mode: {good}")
    return monitor, mode


def _at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, None where there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    if isinstance(node, Mapping) and not node.get("init_args", True):
        return node.get("class_path")  # a class without arguments is written by its path
    return node


def _seconds(cli: ExperimentCLI, metric: str, epochs: int | None, space: Space) -> float | None:
    """Of a training, from a few steps and one batch of validation, which also shows what metrics there are.

    Raises:
        UserError: There is no such metric.
    """
    attempt = Attempt(cli)
    options = ALONE | {"limit_val_batches": 1}
    trainer = cli.instantiate_trainer(**options, callbacks=[])
    trainer.callbacks = []  # type: ignore[attr-defined]
    started = time.monotonic()
    trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    validating = time.monotonic() - started
    known = {*(cli.model.results.metrics if cli.model.results else ()), *cli.model.main_metrics}
    if metric not in known:
        raise UserError(
            f'{space.path}: there is no metric "{metric}".{did_you_mean(metric, sorted(known))} There are:\n'
            f"{bullet_list(sorted(known), 40)}"
        )
    tried = attempt(cli.datamodule.batch_size)
    if tried is None or epochs is None:
        return None
    train, val = (len(cli.datamodule.datasets[split]) for split in ("train", "val"))
    validating *= math.ceil(val / cli.datamodule.eval_batch_size)
    return epochs * train * tried.seconds + (epochs + 1) * validating


def _check_ends(experiment: str, content: dict[str, Any], typed: list[str], space: Space) -> None:
    """Refuse values with which the experiment cannot be built, or no step be trained.

    All ends are tried in as few combinations as there can be. Where a combination fails, though none of its values does
    alone, trials of that kind will fail, which a search can bear.
    """
    for corner in space.corners():
        if _failure(experiment, content, [*typed, *space.words(corner)]) is None:
            continue
        for key, value in corner.items():
            if error := _failure(experiment, content, [*typed, *space.words({key: value})]):
                raise UserError(f"{space.path}: {key}: {value} is impossible: {error}") from error
        told = ", ".join(f"{key} {value}" for key, value in corner.items())
        print(f"not everything goes together, and such trials will fail: {told}")


def _failure(experiment: str, content: dict[str, Any], words: list[str]) -> UserError | None:
    """What goes wrong until the first step of a training is done."""
    try:
        with built_apart(experiment, content, words) as cli:
            cli.datamodule.check_training(1)
            _check(cli)
            trainer = cli.instantiate_trainer(**ALONE | {"max_epochs": cli.config_init["trainer"]["max_epochs"]})
            trainer.callbacks = [_OneStep()]  # type: ignore[attr-defined]
            trainer.fit(cli.model, datamodule=cli.datamodule)
    except _Enough:
        return None
    except UserError as error:
        return error
    except Exception as error:  # of a network, a loss, an optimizer: whatever it is, it would be that of every trial
        return UserError(f"{type(error).__name__}: {error}")
    return UserError("there is not one step of training")


class _Enough(Exception):
    """Ends a training after its first step."""


class _OneStep(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        raise _Enough
