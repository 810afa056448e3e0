"""Search spaces: keys of an experiment and the values that they may take, from `configs/tune/*.yaml`."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from project.errors import UserError, did_you_mean
from project.yaml_files import read_yaml

FOLDER = Path("configs/tune")
SECTIONS = ("model", "data", "optimizer", "lr_scheduler", "trainer")
# Trials that differ in these would be measured on other images, with another measure, or not at all.
MEASUREMENT = (
    *("data.dataset", "data.root", "data.fold", "data.roles", "trainer.logger", "trainer.default_root_dir"),
    *("trainer.limit_val_batches", "trainer.overfit_batches", "trainer.fast_dev_run", "trainer.callbacks"),
    *("trainer.devices", "trainer.num_nodes", "model.class_path"),
    *("model.init_args.min_size", "model.init_args.metrics", "model.init_args.statistics"),
)
# The validation loss is computed with these: it cannot rank trials that differ in them.
LOSS = ("model.init_args.loss", "model.init_args.target_normalization", "model.init_args.objects")
KEYS = ("space", "metric", "mode", "prune")
RANGE = ("low", "high", "log", "step")
EXAMPLE = "space:\n    optimizer.init_args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}"


@dataclass(frozen=True)
class Space:
    """What is searched, and how trials are compared: a file of `configs/tune/`."""

    path: Path
    settings: dict[str, Any]  # dotted key -> range {low, high, log, step} or list of values
    metric: str | None = None  # as in metrics.json; None: the one by which the experiment chooses its best checkpoint
    mode: str | None = None  # "min" or "max"; None with `metric`
    prune_after: float | None = 0.25  # share of the epochs after which a trial may be pruned; None: never
    prune_trials: int = 4  # complete trials before one is pruned

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Dotted key -> distribution of Optuna.

        One of several values is a categorical one of JSON texts, which tells 1, 1.0, true and "1" apart and holds
        classes with their arguments.
        """
        return {key: _distribution(f"{self.path}: {key}", setting) for key, setting in self.settings.items()}

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Key -> value in the configuration, from the parameters of a trial, in the order of the file."""
        return {key: _decoded(d, params[key]) for key, d in self.distributions.items() if key in params}

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """Parameters of a trial from values of the configuration; None if one of these is outside the space."""
        params = {
            key: _json(values.get(key)) if isinstance(d, CategoricalDistribution) else values.get(key)
            for key, d in self.distributions.items()
        }
        try:
            create_trial(params=params, distributions=self.distributions, value=0.0)
        except ValueError:
            return None
        return params

    def corners(self) -> list[dict[str, Any]]:
        """Combinations of values in which each end of each range, and each choice, is once."""
        ends = {key: s if isinstance(s, list) else [s["low"], s["high"]] for key, s in self.settings.items()}
        n = max(map(len, ends.values()))
        return [{key: values[i % len(values)] for key, values in ends.items()} for i in range(n)]


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Key -> value as `--key=value`."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def find_space(experiment: str, name: str | None = None, overrides: list[str] | None = None) -> Space:
    """The search space of an experiment: the file of its name, unless another is named.

    Raises:
        UserError: There is none, it is not valid, or a key is both searched and overridden.
    """
    path = FOLDER / f"{name or experiment}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        raise UserError(
            f'there is no search space "{path}".{did_you_mean(name or experiment, known)} Choose one of '
            f"{', '.join(known)} with --space, or write it:\n  {EXAMPLE}"
        )
    space = read_space(path)
    given = [word.partition("=")[0].removeprefix("--").rstrip("+") for word in overrides or [] if word.startswith("--")]
    for key in space.distributions:
        if both := next((name for name in given if _is_below(key, (name,))), None):
            raise UserError(f"{path}: {key} is searched, and --{both} sets it: leave out one of them")
    return space


def read_space(path: Path) -> Space:
    """Read a file of `configs/tune/`.

    Raises:
        UserError: It is not valid, a range is impossible, or trials could not be compared.
    """
    content = read_yaml(path, "space: ...")
    _check_known(path, content, KEYS)
    settings = content.get("space")
    if not isinstance(settings, dict) or not settings:
        raise UserError(f"{path}: there is nothing to search; write\n  {EXAMPLE}")
    metric, mode = content.get("metric"), content.get("mode")
    if metric is not None and (not isinstance(metric, str) or mode not in ("min", "max")):
        raise UserError(f"{path}: write both, such as `metric: val/mse` and `mode: min`")
    for key in map(str, settings):
        _check_key(path, key)
    pruning = _pruning(path, content.get("prune", {}))
    space = Space(path, settings, metric and metric.removeprefix("val/"), mode if metric else None, *pruning)
    _ = space.distributions  # refuses impossible ranges
    return space


def check_metric(space: Space, metric: str) -> None:
    """Refuse the loss as the metric of trials that compute it differently (UserError)."""
    searched = [key for key in space.distributions if _is_below(key, LOSS)]
    if metric == "loss" and searched:
        raise UserError(
            f"{space.path}: the validation losses of trials that differ in {searched[0]} cannot be compared; add a "
            "metric in the units of the target, such as\n  metric: val/mse\n  mode: min"
        )


def _check_known(where: Path | str, keys: Iterable[str], known: tuple[str, ...]) -> None:
    for key in keys:
        if key not in known:
            raise UserError(f'{where}: unknown key "{key}".{did_you_mean(key, known)} Known: {", ".join(known)}')


def _check_key(path: Path, key: str) -> None:
    section = key.partition(".")[0]
    if section == "seed_everything" or key.endswith(".seed"):
        raise UserError(f"{path}: {key}: a seed is luck; its best value would not be good elsewhere")
    if section not in SECTIONS or section == key:
        raise UserError(
            f'{path}: "{key}" is no key of {", ".join(SECTIONS)}.{did_you_mean(section, SECTIONS)} Write it as on the '
            "command line: optimizer.init_args.lr"
        )
    if _is_below(key, MEASUREMENT):
        raise UserError(f"{path}: {key}: trials that differ in it could not be compared; set it for all of them")


def _is_below(key: str, parents: tuple[str, ...]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _distribution(where: str, setting: Any) -> BaseDistribution:
    if isinstance(setting, list):
        choices = [_json(value) for value in setting]
        if len(set(choices)) < max(len(choices), 2):
            raise UserError(f"{where}: write at least two values, no two the same")
        return CategoricalDistribution(choices)
    if not isinstance(setting, dict) or not {"low", "high"} <= setting.keys():
        raise UserError(f"{where}: write {{low: 16, high: 32}}, or a list of values such as [16, 32]")
    _check_known(where, setting, RANGE)
    log = setting.get("log", False)
    numbers = {name: value for name, value in setting.items() if name != "log"}
    if not isinstance(log, bool) or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers.values()):
        raise UserError(f"{where}: low, high and step must be numbers, and log true or false")
    low, high, step = numbers["low"], numbers["high"], numbers.get("step")
    if step is not None and not (step > 0 and math.isclose((high - low) / step, round((high - low) / step))):
        raise UserError(f"{where}: steps of {step:g} from {low:g} do not reach {high:g}")
    try:
        if all(isinstance(number, int) for number in numbers.values()):
            return IntDistribution(low, high, log, step or 1)
        return FloatDistribution(low, high, log, step)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _pruning(path: Path, prune: Any) -> tuple[float | None, int]:
    """`prune_after` and `prune_trials`."""
    if prune is None or prune is False:
        return None, Space.prune_trials
    settings: dict[str, Any] = dict(prune) if isinstance(prune, dict) else {}
    after, trials = settings.pop("after", Space.prune_after), settings.pop("trials", Space.prune_trials)
    is_valid = isinstance(after, int | float) and 0 <= after < 1 and isinstance(trials, int) and trials > 0
    if not is_valid or settings or not isinstance(prune, dict):
        raise UserError(
            f"{path}: write `prune: false`, or `prune: {{after: 0.25, trials: 4}}` with a share of the epochs (0 to 1) "
            "and a number of complete trials"
        )
    return float(after), trials


def _decoded(distribution: BaseDistribution, value: Any) -> Any:
    """A sampled number has as many digits as a person would write."""
    if isinstance(distribution, CategoricalDistribution):
        return json.loads(value)
    if isinstance(distribution, FloatDistribution):
        value = float(f"{value:.{10 if distribution.step else 4}g}")
        return min(max(value, distribution.low), distribution.high)
    return int(value)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
