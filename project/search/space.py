"""Search spaces: keys of an experiment and the values that they may take, from `configs/tune/*.yaml`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from project.errors import UserError, did_you_mean
from project.yaml_files import read_yaml

FOLDER = Path("configs/tune")
SECTIONS = ("model", "data", "optimizer", "lr_scheduler", "trainer")
# Trials that differ in these would be measured on other images, with another measure, or not at all.
MEASUREMENT = (
    *("data.dataset", "data.root", "data.fold", "data.roles", "trainer.logger", "trainer.default_root_dir"),
    *("trainer.limit_val_batches", "trainer.overfit_batches", "trainer.fast_dev_run", "trainer.callbacks"),
    *("trainer.devices", "trainer.num_nodes", "model.class_path", "model.init_args.tolerance"),
    *("model.init_args.min_size", "model.init_args.metrics", "model.init_args.statistics"),
)
# The validation loss is computed with these: it cannot rank trials that differ in them.
LOSS = ("model.init_args.loss", "model.init_args.target_normalization", "model.init_args.objects")
KEYS = ("space", "metric", "mode", "prune")
RANGE = ("low", "high", "log", "step")
EXAMPLE = "space:\n    optimizer.init_args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}"


@dataclass(frozen=True)
class Space:
    """What is searched, and how trials are compared.

    Attributes:
        path: The file.
        distributions: Dotted key -> distribution of Optuna; one of several values is a categorical one of JSON texts,
            which tells 1, 1.0, true and "1" apart and holds classes with their arguments.
        metric: As in metrics.json, without "val/"; None is the one by which the experiment chooses its best checkpoint.
        mode: "min" or "max"; None with `metric`.
        prune_after: Share of the epochs after which a trial may be pruned; None: never.
        prune_trials: Trials that must be complete before one is pruned.
    """

    path: Path
    distributions: dict[str, BaseDistribution]
    metric: str | None = None
    mode: str | None = None
    prune_after: float | None = 0.25
    prune_trials: int = 4

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Key -> value in the configuration, from the parameters of a trial, in the order of the file."""
        return {key: _decoded(known, params[key]) for key, known in self.distributions.items() if key in params}

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """Parameters of a trial from values of the configuration; None if one of these is outside the space."""
        params = {key: _encoded(known, values.get(key)) for key, known in self.distributions.items()}
        return None if None in params.values() else params

    def corners(self) -> list[dict[str, Any]]:
        """Combinations of values in which each end of each range, and each choice, is once."""
        ends = {key: _ends(distribution) for key, distribution in self.distributions.items()}
        n = max(map(len, ends.values()))
        return [{key: values[i % len(values)] for key, values in ends.items()} for i in range(n)]

    def describe(self) -> dict[str, str]:
        """Key -> its values in words."""
        return {key: _description(distribution) for key, distribution in self.distributions.items()}


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
    for key in content:
        if key not in KEYS:
            raise UserError(f'{path}: unknown key "{key}".{did_you_mean(key, KEYS)} Known: {", ".join(KEYS)}')
    settings = content.get("space")
    if not isinstance(settings, dict) or not settings:
        raise UserError(f"{path}: there is nothing to search; write\n  {EXAMPLE}")
    metric, mode = content.get("metric"), content.get("mode")
    if metric is not None and (not isinstance(metric, str) or mode not in ("min", "max")):
        raise UserError(f"{path}: write both, such as `metric: val/mse` and `mode: min`")
    for key in map(str, settings):
        _check_key(path, key)
    distributions = {str(key): _distribution(f"{path}: {key}", setting) for key, setting in settings.items()}
    name = metric.removeprefix("val/") if metric else None
    return Space(path, distributions, name, mode if metric else None, **_pruning(path, content))


def check_metric(space: Space, metric: str) -> None:
    """Refuse a metric by which trials of this space cannot be compared.

    Raises:
        UserError: It is the loss, and how that is computed is searched.
    """
    searched = [key for key in space.distributions if _is_below(key, LOSS)]
    if metric == "loss" and searched:
        raise UserError(
            f"{space.path}: the validation losses of trials that differ in {searched[0]} cannot be compared; add a "
            "metric in the units of the target, such as\n  metric: val/mse\n  mode: min"
        )


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
    for word in setting:
        if word not in RANGE:
            raise UserError(f'{where}: unknown key "{word}".{did_you_mean(word, RANGE)} Known: {", ".join(RANGE)}')
    low, high = (_number(where, name, setting[name]) for name in ("low", "high"))
    step = _number(where, "step", setting["step"]) if "step" in setting else None
    log = setting.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{where}: log is true or false, not {log}")
    if low >= high:
        raise UserError(f"{where}: low ({low:g}) must be less than high ({high:g})")
    if step is not None and not (step > 0 and math.isclose((high - low) / step, round((high - low) / step))):
        raise UserError(f"{where}: steps of {step:g} from {low:g} do not reach {high:g}")
    try:
        if all(isinstance(number, int) for number in (low, high, step or 1)):
            return IntDistribution(int(low), int(high), log, int(step or 1))
        return FloatDistribution(low, high, log, step)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _number(where: str, name: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: {name} must be a number")
    return value


def _pruning(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    prune = content.get("prune", {})
    if prune is None or prune is False:
        return {"prune_after": None}
    if not isinstance(prune, dict) or not prune.keys() <= {"after", "trials"}:
        raise UserError(f"{path}: write `prune: false`, or `prune: {{after: 0.25, trials: 4}}`")
    after, trials = prune.get("after", Space.prune_after), prune.get("trials", Space.prune_trials)
    if not isinstance(after, int | float) or not 0 <= after < 1 or not isinstance(trials, int) or trials < 1:
        raise UserError(f"{path}: prune: after is a share of the epochs (0 to 1), trials a number from 1 on")
    return {"prune_after": float(after), "prune_trials": trials}


def _encoded(distribution: Any, value: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return _json(value) if _json(value) in distribution.choices else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    steps = (value - distribution.low) / (distribution.step or 1)
    is_on_grid = distribution.step is None or math.isclose(steps, round(steps), abs_tol=1e-9)
    return value if distribution.low <= value <= distribution.high and is_on_grid else None


def _decoded(distribution: BaseDistribution, value: Any) -> Any:
    """A sampled number has as many digits as a person would write."""
    if isinstance(distribution, CategoricalDistribution):
        return json.loads(value)
    if isinstance(distribution, FloatDistribution):
        value = float(f"{value:.{10 if distribution.step else 4}g}")
        return min(max(value, distribution.low), distribution.high)
    return int(value)


def _ends(distribution: Any) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return [json.loads(str(text)) for text in distribution.choices]
    return [distribution.low, distribution.high]


def _description(distribution: Any) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(str(value) for value in _ends(distribution))
    steps = f" in steps of {distribution.step:g}" if distribution.step not in (None, 1) else ""
    return f"{distribution.low:g} to {distribution.high:g}{' (log)' if distribution.log else ''}{steps}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
