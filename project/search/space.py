"""What is searched: keys of the configuration with the values that they may take, from `configs/tune/*.yaml`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.errors import UserError, did_you_mean
from project.training import config_keys as spelling
from project.yaml_files import DEFAULT_CONFIG, read_yaml

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FOLDER = Path("configs/tune")
SECTIONS = ("model", "data", "optimizer", "lr_scheduler", "trainer")
# With another value of these, trials would be measured on other images, with another measure, or not measured at all.
MEASURE = (
    *("data.dataset", "data.root", "data.fold", "data.statistics", "trainer.logger", "trainer.default_root_dir"),
    *("trainer.limit_val_batches", "trainer.overfit_batches", "trainer.fast_dev_run", "trainer.callbacks"),
    *("model.class_path", "model.init_args.tolerance", "model.init_args.min_size", "model.init_args.statistics"),
)
# The validation loss is computed with these: it can rank no trials that differ in them.
LOSS = ("model.init_args.loss", "model.init_args.target_normalization", "model.init_args.objects")
KEYS = ("space", "metric", "mode", "prune")
RANGE = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if both are.

    Attributes:
        log: Draw the logarithm evenly.
        step: Only `low`, `low + step`, and so on.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def whole(self) -> bool:
        """Whether these are whole numbers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    def ends(self) -> list[Any]:
        """The values that are tried before a search."""
        return [self.low, self.high]

    def code(self, value: Any) -> Any:
        """A value as Optuna stores it.

        Raises:
            ValueError: It is not in the range.
        """
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high or (self.whole and value != int(value)):
            raise ValueError(f"{value} is not in {self.told()}")
        if self.step and not math.isclose((value - self.low) / self.step, round((value - self.low) / self.step)):
            raise ValueError(f"{value} is none of {self.told()}")
        return int(value) if self.whole else float(value)

    def decode(self, stored: Any) -> Any:
        """The other way round: the number that a trial gets, with as many digits as a person would write."""
        if self.whole:
            return int(stored)
        return min(max(float(f"{stored:.{10 if self.step else 4}g}"), self.low), self.high)

    def distribution(self) -> "BaseDistribution":
        """For Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    def told(self) -> str:
        """In words."""
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}" + (
            f" in steps of {self.step:g}" if self.step else ""
        )


@dataclass(frozen=True)
class Choice:
    """One of several values of any kind, in no order."""

    values: tuple[Any, ...]

    def ends(self) -> list[Any]:
        """The values that are tried before a search: all."""
        return list(self.values)

    def code(self, value: Any) -> Any:
        """A value as Optuna stores it.

        Raises:
            ValueError: It is none of the values.
        """
        if _text(value) not in map(_text, self.values):
            raise ValueError(f"{_text(value)} is none of {self.told()}")
        return _text(value)

    def decode(self, stored: Any) -> Any:
        """The other way round."""
        return json.loads(stored)

    def distribution(self) -> "BaseDistribution":
        """For Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([_text(value) for value in self.values])

    def told(self) -> str:
        """In words."""
        return ", ".join(str(value) for value in self.values)


Setting = Range | Choice


@dataclass(frozen=True)
class Space:
    """What is searched, and how a trial is judged.

    Attributes:
        path: The file.
        settings: Dotted key -> values.
        metric: As in `metrics.json`, without "val/"; None is what the experiment's checkpoints go by.
        mode: "min" or "max"; None with `metric`.
        prune_after: Share of the epochs after which a trial may be given up; None: never.
        prune_trials: Trials that must be complete before the first is given up.
    """

    path: Path
    settings: dict[str, Setting] = field(default_factory=dict)
    metric: str | None = None
    mode: str | None = None
    prune_after: float | None = 0.25
    prune_trials: int = 4

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Values as they would be typed."""
        return [f"--{key}={_typed(value)}" for key, value in values.items()]

    def code(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values as Optuna stores them.

        Raises:
            ValueError: One of them is not in the space.
        """
        return {key: setting.code(values[key]) for key, setting in self.settings.items()}

    def decode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The other way round, in the order of the file."""
        return {key: setting.decode(stored[key]) for key, setting in self.settings.items() if key in stored}

    def corners(self) -> list[dict[str, Any]]:
        """Combinations in which every end of every setting is once."""
        ends = {key: setting.ends() for key, setting in self.settings.items()}
        n = max(len(values) for values in ends.values())
        return [{key: values[i % len(values)] for key, values in ends.items()} for i in range(n)]


def find_space(experiment: str, name: str | None = None) -> Space:
    """What to search for an experiment: the file of its name, unless another is named.

    Raises:
        UserError: There is none, or it is not valid.
    """
    path = FOLDER / f"{name or experiment}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        raise UserError(
            f'there is no search space "{path}".{did_you_mean(name or experiment, known)} Take another with SPACE=, of '
            f"{', '.join(known)}, or write it:\n  space:\n    {EXAMPLE}"
        )
    return read_space(path)


def read_space(path: Path) -> Space:
    """Read a file of `configs/tune/`.

    Raises:
        UserError: It is not valid, a range is impossible, or trials could not be compared.
    """
    content = read_yaml(path, "space: ...")
    for key in content:
        if key not in KEYS:
            raise UserError(f'{path}: unknown key "{key}".{did_you_mean(key, KEYS)} Known: {", ".join(KEYS)}')
    space = content.get("space")
    if not isinstance(space, dict) or not space:
        raise UserError(f"{path}: there is nothing to search; write\n  space:\n    {EXAMPLE}")
    metric, mode = content.get("metric"), content.get("mode")
    if metric is not None and (not isinstance(metric, str) or mode not in ("min", "max")):
        raise UserError(f"{path}: write both, such as `metric: val/mse` and `mode: min`")
    settings = {str(key): _setting(f"{path}: {key}", spec) for key, spec in space.items()}
    name = metric.removeprefix("val/") if metric else None
    for key in settings:
        _check_key(path, key)
    return Space(path, settings, name, mode if metric else None, **_pruning(path, content))


def default() -> dict[str, Any]:
    """What all experiments share."""
    return read_yaml(DEFAULT_CONFIG) if DEFAULT_CONFIG.is_file() else {}


def check_keys(path: Path, content: dict[str, Any], typed: list[str], space: Space) -> None:
    """Refuse what is certainly wrong, without building anything.

    Raises:
        UserError: A key is misspelt, or both typed and searched.
    """
    for corner in space.corners():
        try:
            spelling.check({DEFAULT_CONFIG: default(), path: content}, [*typed, *space.words(corner)])
        except UserError as error:
            raise UserError(f"{space.path}: {error}") from error
    given = {word.partition("=")[0].removeprefix("--").rstrip("+") for word in typed if word.startswith("--")}
    for key in space.settings:
        if both := next((name for name in given if name == key or key.startswith(f"{name}.")), None):
            raise UserError(f"--{both} is typed, and {key} is searched ({space.path}): leave out one of them")


def check_metric(space: Space, metric: str) -> None:
    """Refuse a metric by which trials of this space cannot be ranked.

    Raises:
        UserError: It is the loss, and how that is computed is searched.
    """
    searched = [key for key in space.settings if _under(key, LOSS)]
    if metric == "loss" and searched:
        raise UserError(
            f"{space.path}: trials that differ in {searched[0]} have validation losses that cannot be compared; add a "
            "metric in the target's units, such as\n  metric: val/mse\n  mode: min"
        )


EXAMPLE = "optimizer.init_args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}"


def _check_key(path: Path, key: str) -> None:
    section = key.partition(".")[0]
    if section == "seed_everything" or key.endswith(".seed"):
        raise UserError(f"{path}: {key}: a seed is luck, and no setting: its best value would not be good elsewhere")
    if section not in SECTIONS or section == key:
        raise UserError(
            f'{path}: "{key}" is no key of {", ".join(SECTIONS)}.{did_you_mean(section, SECTIONS)} Write it as it would be '  # noqa: E501
            f"typed: optimizer.init_args.lr"
        )
    if _under(key, MEASURE):
        raise UserError(f"{path}: {key}: trials that differ in it could not be compared; type it for all of them")


def _under(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _setting(where: str, spec: Any) -> Setting:
    if isinstance(spec, list):
        spec = {"values": spec}
    if isinstance(spec, dict) and "values" in spec:
        values = spec["values"]
        if len(spec) > 1 or not isinstance(values, list):
            raise UserError(f"{where}: write either a list, such as [16, 32], or {{low: 16, high: 32}}")
        if len({_text(value) for value in values}) < max(len(values), 2):
            raise UserError(f"{where}: write at least two values, no two the same")
        return Choice(tuple(values))
    if not isinstance(spec, dict) or not {"low", "high"} <= spec.keys():
        raise UserError(f"{where}: write {{low: 16, high: 32}}, or a list of values such as [16, 32]")
    for word in spec:
        if word not in RANGE:
            raise UserError(f'{where}: unknown key "{word}".{did_you_mean(word, RANGE)} Known: {", ".join(RANGE)}')
    low, high, step = (_number(where, name, spec.get(name)) for name in ("low", "high", "step"))
    log = spec.get("log", False)
    assert low is not None
    assert high is not None
    if not isinstance(log, bool):
        raise UserError(f"{where}: log is true or false, not {log}")
    if low >= high:
        raise UserError(f"{where}: low ({low:g}) must be less than high ({high:g})")
    if log and (low <= 0 or step):
        raise UserError(f"{where}: with `log: true`, low must be above 0 and there is no step")
    if step is not None and not 0 < step <= high - low:
        raise UserError(f"{where}: a step of {step:g} does not fit between {low:g} and {high:g}")
    if step is not None and not math.isclose((high - low) / step, round((high - low) / step)):
        raise UserError(f"{where}: steps of {step:g} from {low:g} do not reach {high:g}")
    return Range(low, high, log, step)


def _number(where: str, name: str, value: Any) -> int | float | None:
    """YAML takes 1e-3 for a text, 1.0e-3 for a number."""
    if value is None and name == "step":
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: {name} must be a number")
    return value


def _pruning(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    if "prune" not in content:
        return {}
    prune = content["prune"]
    if prune is None or prune is False:
        return {"prune_after": None}
    if not isinstance(prune, dict) or not prune.keys() <= {"after", "trials"}:
        raise UserError(f"{path}: write `prune: false`, or `prune: {{after: 0.25, trials: 4}}`")
    after, trials = prune.get("after", Space.prune_after), prune.get("trials", Space.prune_trials)
    if not isinstance(after, int | float) or not 0 <= after < 1 or not isinstance(trials, int) or trials < 1:
        raise UserError(f"{path}: prune: after is a share of the epochs (0 to 1), trials a number from 1 on")
    return {"prune_after": float(after), "prune_trials": trials}


def _text(value: Any) -> str:
    """A value as JSON: tells 1, 1.0, true and "1" apart, and keeps classes with their arguments."""
    return json.dumps(value, sort_keys=True)


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
