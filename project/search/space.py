"""Search spaces: keys of an experiment and the values that they may take, from `configs/tune/*.yaml`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial

from project.errors import UserError, did_you_mean
from project.runs.config_diff import is_below
from project.yaml_files import read_yaml

FOLDER = Path("configs/tune")
# Trials that differ in these would be measured on other images, with another measure, or not at all.
MEASUREMENT = (
    *("data.dataset", "data.root", "data.fold", "data.roles", "trainer.logger", "trainer.default_root_dir"),
    *("trainer.limit_val_batches", "trainer.overfit_batches", "trainer.fast_dev_run", "trainer.callbacks"),
    *("trainer.devices", "trainer.num_nodes", "model.class_path", "checkpoint", "length", "config"),
    *("model.init_args.min_size", "model.init_args.metrics", "model.init_args.statistics"),
)
# Losses computed with these cannot rank trials that differ in them.
LOSS = ("model.init_args.loss", "model.init_args.target_normalization", "model.init_args.objects")
EXAMPLE = "space:\n    optimizer.init_args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}"


@dataclass(frozen=True)
class Space:
    """What is searched: a file of `configs/tune/`."""

    path: Path
    settings: dict[str, Any]  # dotted key -> range {low, high, log, step} or list of values

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Key -> value for a trial; numbers have as many digits as a person would write."""
        values = dict[str, Any]()
        for key, setting in self.settings.items():
            try:
                values[key] = _suggest(trial, key, setting)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                hint = "Write a range, {low: 16, high: 32} (with log: true or step: 4), or a list of values"
                raise UserError(f"{self.path}: {key}: {error}. {hint}") from error
        return values

    def corners(self) -> list[dict[str, Any]]:
        """Combinations of values in which each end of each range, and each choice, is once."""
        ends = {key: s if isinstance(s, list) else [s["low"], s["high"]] for key, s in self.settings.items()}
        n = max(map(len, ends.values()))
        return [{key: values[i % len(values)] for key, values in ends.items()} for i in range(n)]


def _suggest(trial: Trial, key: str, setting: Any) -> Any:
    if isinstance(setting, list):  # JSON tells 1, 1.0, true and "1" apart, and holds classes with their arguments
        return json.loads(trial.suggest_categorical(key, [json.dumps(value, sort_keys=True) for value in setting]))
    numbers = [value for name, value in setting.items() if name != "log"]
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError("low, high and step must be numbers")
    if all(isinstance(number, int) for number in numbers):
        return trial.suggest_int(key, **setting)
    value = float(f"{trial.suggest_float(key, **setting):.4g}")
    return min(max(value, setting["low"]), setting["high"])


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Key -> value as `--key=value`."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def find_space(experiment: str, name: str | None = None, overrides: list[str] | None = None) -> Space:
    """The search space of an experiment: the file of its name, unless another is named; no key is overridden too."""
    path = FOLDER / f"{name or experiment}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        raise UserError(
            f'there is no search space "{path}".{did_you_mean(name or experiment, known)} Choose one of '
            f"{', '.join(known)} with --space, or write it:\n  {EXAMPLE}"
        )
    space = read_space(path)
    names = [word.partition("=")[0].removeprefix("--").rstrip("+") for word in overrides or [] if word.startswith("--")]
    for key in space.settings:
        if both := next((name for name in names if is_below(key, (name,))), None):
            raise UserError(f"{path}: {key} is searched, and --{both} sets it: leave out one of them")
    return space


def read_space(path: Path) -> Space:
    """Read a file of `configs/tune/`; `UserError` if a range is impossible, or trials could not be compared."""
    content = read_yaml(path, "space: ...")
    settings = content.pop("space", None)
    if not isinstance(settings, dict) or not settings or content:
        unknown = f"unknown key {', '.join(map(str, content))}: the" if content else "the"
        raise UserError(f"{path}: {unknown} file has the key `space` with ranges, and no other:\n  {EXAMPLE}")
    for key in map(str, settings):
        if key == "seed_everything" or key.endswith(".seed"):
            raise UserError(f"{path}: {key}: a seed is luck; its best value would not be good elsewhere")
        if is_below(key, MEASUREMENT) or any(is_below(part, (key,)) for part in MEASUREMENT):
            raise UserError(f"{path}: {key}: trials that differ in it could not be compared; set it for all of them")
    space = Space(path, settings)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space.suggest(optuna.create_study().ask())  # refuses impossible ranges
    return space
