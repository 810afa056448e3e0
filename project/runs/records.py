"""What metrics.json and provenance.json hold, as dataclasses, and how they are read back.

Files of earlier versions are read too: a field that a file lacks has its default, a key that is no field is ignored.
"""

import types
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from project.errors import UserError
from project.files import safe_file_name

UNFINISHED = ("started", "interrupted")
DIRECTIONS = ("min", "max", "zero")  # in which a metric is good
Record = TypeVar("Record")


@dataclass(kw_only=True)
class Identity:
    """What identifies a run in a table; both files hold these fields.

    Attributes:
        experiment: Name of the experiment file.
        dataset: Name of the prepared dataset.
        task: Kind of the task, such as "segmentation".
        leading: Main metrics, the first one first -> "min", "max" or "zero", the direction in which they are good.
        scoring: Settings of the task on which scores depend.
        commit, dirty: Of the code; whether tracked files differed from it.
        config_hash: SHA-256 of config.yaml.
        seed: `seed_everything`.
        parameters: Number of weights of the network.
        oracle: Whether the network is shown the target.
        baseline: Whether it was fitted and not trained.
        fold: For validation, where the data has folds.
        all_folds_hash: Content hash of the training data of all folds.
    """

    experiment: str
    dataset: str = ""
    task: str = ""
    leading: dict[str, str] = field(default_factory=lambda: {"loss": "min"})
    scoring: dict[str, Any] | None = None
    commit: str | None = None
    dirty: bool | None = None
    config_hash: str = ""
    seed: int | None = None
    parameters: int = 0
    oracle: bool = False
    baseline: bool = False
    fold: int | None = None
    all_folds_hash: str | None = None

    def __post_init__(self) -> None:
        """Check what becomes part of a file name, and the directions of metrics.

        Raises:
            ValueError: A name leads out of its folder, or a direction is unknown.
        """
        for key in ("experiment", "dataset", "task"):
            value = getattr(self, key)
            if not isinstance(value, str) or (value and value != safe_file_name(value)):
                raise ValueError(f"{key} is {value!r}, which is no name")
        self.leading = self.leading or {"loss": "min"}
        if not set(self.leading.values()) <= set(DIRECTIONS):
            raise ValueError(f"leading is {self.leading!r}; directions are {', '.join(DIRECTIONS)}")


@dataclass(kw_only=True)
class MeasuredRun(Identity):
    """The part "run" of a metrics file.

    Attributes:
        name: Experiment and time of the run.
        data_hash: Content hash of the split that was measured.
        overrides: Of an evaluation that was changed by them.
    """

    name: str = ""
    data_hash: str | None = None
    overrides: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Metrics:
    """metrics.json (validation) or metrics.test.json: what one evaluation measured.

    Attributes:
        metrics: Name -> finite number.
        n_samples: Samples that were measured.
        undefined: Metric -> number of samples for which it is not defined.
        details: Further results of the task, such as a confusion matrix.
        epoch: Of the checkpoint, from 0.
        split: "val" or "test".
        run: Which run, on which data.
    """

    metrics: dict[str, float]
    n_samples: int
    run: MeasuredRun
    undefined: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    epoch: int | None = None
    split: str = "val"


@dataclass(kw_only=True)
class Provenance(Identity):
    """provenance.json: what was run on which data, code and machine, and how it ended.

    Attributes:
        started: Time of the start, ISO 8601.
        status: "started", "interrupted" or "finished".
        reason: Why it was interrupted.
        stopped_early: Why a callback ended it before its last epoch.
        seconds: Of training, without the time in which it was stopped.
        command, overrides: As given on the command line.
        logger, wandb: Name of the logger; id of the run there.
        slurm_job: Id of the job.
        study: Of the search that it is a trial of.
        data_hash: Split -> content hash.
        reading: How the data was read.
        pretrained: One line for each thing that should be known about loaded weights.
        checks: Verdicts of the checks before training.
        versions, hardware, lock_hash: Of packages; of the machine; SHA-256 of requirements.lock.
        best: {"checkpoint": path below checkpoints/, "epoch": from 0, "step": optimizer steps}.
        resumed: One entry for each time the training was resumed.
        restarts: One entry for each time it diverged and was restarted with lower learning rates.
        test_evaluations: One entry for each evaluation on the test split.
    """

    started: str = ""
    status: str = ""
    reason: str | None = None
    stopped_early: str | None = None
    seconds: float | None = None
    command: str = ""
    overrides: list[str] = field(default_factory=list)
    logger: str | None = None
    wandb: str | None = None
    slurm_job: str | None = None
    study: Any = None
    data_hash: dict[str, str] = field(default_factory=dict)
    reading: dict[str, Any] = field(default_factory=dict)
    pretrained: list[str] = field(default_factory=list)
    checks: Any = None
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    lock_hash: str | None = None
    best: dict[str, Any] | None = None
    resumed: list[dict[str, Any]] = field(default_factory=list)
    restarts: list[dict[str, Any]] = field(default_factory=list)
    test_evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the training ended by itself; runs of early versions do not say, and count as finished."""
        return self.status not in UNFINISHED

    def identity(self) -> dict[str, Any]:
        """The fields of `Identity`, for a metrics file."""
        return {item.name: getattr(self, item.name) for item in fields(Identity)}


def read_record(kind: type[Record], content: Any, path: Path) -> Record:
    """A dataclass of this module from the content of a JSON file.

    Raises:
        UserError: A field is missing, of another type, or not plausible.
    """
    try:
        return _build(kind, content)
    except (TypeError, ValueError) as error:
        raise UserError(f'"{path}" is damaged or of another version: {error}') from error


def _build(kind: type[Record], content: Any) -> Record:
    if not isinstance(content, dict):
        raise TypeError(f"expected an object, found {type(content).__name__}")
    hints = get_type_hints(kind)
    values = {}
    for name in hints.keys() & content.keys():
        value, hint = content[name], hints[name]
        if is_dataclass(hint) and isinstance(hint, type):
            value = _build(hint, value)
        elif value is None and not _matches(None, hint):
            continue  # as if it were missing
        elif not _matches(value, hint):
            raise TypeError(f"{name} is {str(value)[:40]!r}")
        values[name] = value
    return kind(**values)


def _matches(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of an annotated type, with the items of lists and objects."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_matches(value, argument) for argument in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(_matches(item, arguments[1]) for item in value.values())
    if origin is list:
        return isinstance(value, list) and all(_matches(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint)
