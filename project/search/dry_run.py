"""Before the first trial: does the experiment train with the ends of all ranges, and which metric compares trials."""

from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace

from project.checks.context import Context
from project.checks.learning import train_steps
from project.checks.network import network
from project.errors import UserError, bullet_list, did_you_mean
from project.models.downloads import without_downloads
from project.search.space import Space, as_overrides, check_metric
from project.training.lightning_cli import ExperimentCLI, temporary_experiment


@dataclass(frozen=True)
class Plan:
    """What all trials of a study have in common."""

    metric: str  # by which trials are compared, as in metrics.json
    mode: str  # "min" or "max"
    epochs: int | None  # of a trial, at most; None where something else ends it
    params: dict[str, Any] | None  # of the experiment's own values; None if these are outside the space
    data: dict[str, str]  # split -> content hash


def make_plan(experiment: str, content: dict[str, Any], overrides: list[str], space: Space) -> Plan:
    """Build an experiment (name, configuration, overrides) and train it for one step with the ends of all ranges.

    Raises:
        UserError: The experiment cannot be built or trained with one of the values, or there is no such metric.
    """
    content = without_downloads(content)
    with temporary_experiment(experiment, content, overrides) as cli:
        if cli.trainer.world_size > 1:
            raise UserError(
                "a trial trains on one device: leave out trainer.devices and start the search once per GPU, each with "
                "its own CUDA_VISIBLE_DEVICES"
            )
        metric, mode = _metric(cli, space)
        epochs = cli.config.trainer.max_epochs
        epochs = epochs if isinstance(epochs, int) and epochs > 0 else None
        params = space.encode({key: _plain(cli.config.get(key)) for key in space.settings})
        hashes = {split: cli.datamodule.reader(split).content_hash for split in ("train", "val")}
    _check_corners(experiment, content, overrides, space)
    return Plan(metric, mode, epochs, params, hashes)


def _plain(value: Any) -> Any:
    """A value of the configuration as it is written: a class without arguments by its path."""
    if isinstance(value, Namespace):
        value = value.as_dict()
        return value if value.get("init_args", True) else value["class_path"]
    return value


def _metric(cli: ExperimentCLI, space: Space) -> tuple[str, str]:
    """The metric that compares trials, and "min" or "max"."""
    monitor, mode = space.metric, space.mode
    if monitor is None or mode is None:
        monitor, mode = str(cli.config.checkpoint.monitor), str(cli.config.checkpoint.mode)
        if not monitor.startswith("val/"):
            raise UserError(f"checkpoint.monitor is {monitor}: name a metric of the validation in {space.path}")
        monitor = monitor.removeprefix("val/")
    check_metric(space, monitor)
    good = cli.model.main_metrics.get(monitor, mode)
    if good in ("min", "max") and good != mode:
        raise UserError(f"{space.path}: {monitor} is best at its {good}imum, but mode is {mode}: write mode: {good}")
    trainer = cli.instantiate_trainer(limit_val_batches=1, logger=False, enable_progress_bar=False)
    trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    known = sorted({*(cli.model.results.metrics if cli.model.results else ()), *cli.model.main_metrics})
    if monitor not in known:
        hint = did_you_mean(monitor, known)
        raise UserError(f'{space.path}: there is no metric "{monitor}".{hint} There are:\n{bullet_list(known, 40)}')
    return monitor, mode


def _check_corners(experiment: str, content: dict[str, Any], overrides: list[str], space: Space) -> None:
    """Refuse values with which the experiment cannot be trained; combinations of values are only reported."""
    for corner in space.corners():
        if _failure(experiment, content, [*overrides, *as_overrides(corner)]) is None:
            continue
        for key, value in corner.items():
            if failure := _failure(experiment, content, [*overrides, *as_overrides({key: value})]):
                raise UserError(f"{space.path}: {key}: {value} is impossible: {failure}") from failure
        combination = ", ".join(f"{key} {value}" for key, value in corner.items())
        print(f"these values do not go together, such trials will fail: {combination}")


def _failure(experiment: str, content: dict[str, Any], overrides: list[str]) -> Exception | None:
    """Why the experiment cannot be trained for one step."""
    try:
        with temporary_experiment(experiment, content, overrides) as cli:
            cli.datamodule.check_training(1)
            ctx = Context(cli.model, cli.datamodule, cli.trainer)
            for verdict in network(ctx):
                if verdict.level == "error":
                    return UserError(f"the network {verdict.measured}: {verdict.advice}")
            batch = next(iter(cli.datamodule.train_dataloader()))
            batch = {name: array.to(ctx.device) for name, array in batch.items()}
            train_steps(ctx, batch, [ctx.learning_rate or 1e-3], augmented=True)
    except Exception as error:  # of a network, loss or optimizer of the user
        return error if isinstance(error, UserError) else UserError(f"{type(error).__name__}: {error}")
    return None
