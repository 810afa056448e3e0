"""What metrics.json and provenance.json hold, as dataclasses, and how they are read back.

Files of earlier versions are read too: a field that a file lacks has its default, a key that is no field is ignored.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from project.errors import UserError
from project.files import safe_file_name
from project.metrics.conformal import Calibration

UNFINISHED = ("started", "interrupted")
DIRECTIONS = ("min", "max", "zero")  # in which a metric is good
Record = TypeVar("Record")


@dataclass(kw_only=True)
class Identity:
    """What identifies a run in a table; both files hold these fields."""

    experiment: str
    dataset: str = ""
    task: str = ""  # its kind, such as "segmentation"
    leading: dict[str, str] = field(default_factory=lambda: {"loss": "min"})  # main metrics, most important first
    scoring: dict[str, Any] | None = None  # settings of the task on which scores depend
    commit: str | None = None
    dirty: bool | None = None  # whether tracked files differ from the commit
    config_hash: str = ""  # SHA-256 of config.yaml
    seed: int | None = None
    parameters: int = 0  # number of weights of the network
    oracle: bool = False  # whether the network is shown the target
    baseline: bool = False  # whether it was fitted and not trained
    fold: int | None = None  # for validation, where the data has folds
    all_folds_hash: str | None = None  # content hash of the training data of all folds

    def __post_init__(self) -> None:
        """Check what becomes part of a file name, and the directions of metrics; ValueError if they are damaged."""
        for key in ("experiment", "dataset", "task"):
            value = getattr(self, key)
            if not isinstance(value, str) or (value and value != safe_file_name(value)):
                raise ValueError(f"{key} is {value!r}, which is no name")
        self.leading = self.leading or {"loss": "min"}
        if not set(self.leading.values()) <= set(DIRECTIONS):
            raise ValueError(f"leading is {self.leading!r}; directions are {', '.join(DIRECTIONS)}")


@dataclass(kw_only=True)
class MeasuredRun(Identity):
    """The part "run" of a metrics file."""

    name: str = ""  # experiment and time
    data_hash: str | None = None  # content hash of the split that was measured
    overrides: list[str] = field(default_factory=list)  # of an evaluation


@dataclass(kw_only=True)
class Metrics:
    """metrics.json (validation) or metrics.test.json: what one evaluation measured."""

    metrics: dict[str, float]  # finite numbers
    n_samples: int
    run: MeasuredRun
    undefined: dict[str, int] = field(default_factory=dict)  # metric -> number of samples or classes without it
    details: dict[str, Any] = field(default_factory=dict)  # further results, such as a confusion matrix
    epoch: int | None = None  # of the checkpoint, from 0
    split: str = "val"
    calibration: Calibration | None = None  # of intervals or prediction sets; on validation

    def __post_init__(self) -> None:
        """ValueError if there is no number of samples, or a metric is no number."""
        if not isinstance(self.n_samples, int) or not all(isinstance(x, int | float) for x in self.metrics.values()):
            raise ValueError("a metric is no number")

    def describe_undefined(self) -> list[str]:
        """One line for each metric that is not defined for all samples, classes, or whatever it is a mean over."""
        return [
            f"{name}: {n} values are not defined; it is the mean of the others"
            if name in self.metrics
            else f"{name} is not defined"
            for name, n in self.undefined.items()
            if "/" not in name
        ]


@dataclass(kw_only=True)
class Provenance(Identity):
    """provenance.json: what was run on which data, code and machine, and how it ended."""

    started: str = ""  # ISO 8601
    status: str = ""  # "started", "interrupted" or "finished"
    reason: str | None = None  # why it was interrupted
    trained: dict[str, int] = field(default_factory=dict)  # epochs, the last perhaps in part, and optimizer steps
    stopped_early: str | None = None  # why a callback ended it before its last epoch
    seconds: float | None = None  # of training, without the time in which it was stopped
    command: str = ""
    overrides: list[str] = field(default_factory=list)
    logger: str | None = None
    slurm_job: str | None = None
    study: Any = None  # of the search that it is a trial of
    data_hash: dict[str, str] = field(default_factory=dict)  # split -> content hash
    pretrained: list[str] = field(default_factory=list)  # what should be known about loaded weights
    checks: Any = None  # findings of the checks before training
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    lock_hash: str | None = None  # SHA-256 of requirements.lock
    best: dict[str, Any] | None = None  # checkpoint: path below checkpoints/; epoch: from 0; step: of the optimizer
    resumed: list[dict[str, Any]] = field(default_factory=list)
    test_evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the training ended by itself; runs of early versions do not say, and count as finished."""
        return self.status not in UNFINISHED

    def identity(self) -> dict[str, Any]:
        """The fields of `Identity`, for a metrics file."""
        return {item.name: getattr(self, item.name) for item in fields(Identity)}


def read_record(kind: type[Record], content: Any, path: Path) -> Record:
    """A dataclass of this module from the content of a JSON file; UserError if it is damaged."""
    try:
        if kind is Metrics:
            content = content | {"run": _build(MeasuredRun, content["run"])}
            if calibration := content.get("calibration"):
                content["calibration"] = _build(Calibration, calibration)
        return _build(kind, content)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(f'"{path}" is damaged or of another version: {error}') from error


def _build(kind: type[Record], content: dict[str, Any]) -> Record:
    items = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    known = {name: value for name, value in content.items() if name in items and value is not None}
    for name, value in known.items():
        if (container := items[name].default_factory) in (dict, list) and not isinstance(value, container):
            raise TypeError(f"{name} is no {container.__name__}")
    return kind(**known)
