"""What a run measured, read back from its folder: metrics, one row per sample, and their bootstrap replicates."""

import csv
import hashlib
import json
import logging
import shlex
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from project.errors import UserError
from project.files import atomic_path
from project.models.downloads import without_downloads
from project.results.statistics import Aggregate, Rows, replicates, sampling_units
from project.runs import untrusted as trust
from project.runs.run_folder import RUNS, Run
from project.tasks.base import Task
from project.training.evaluate import ONE_PROCESS
from project.training.lightning_cli import ExperimentCLI
from project.training.logs import quiet_lightning


@dataclass(frozen=True)
class RunResults:
    """One run on one split.

    Attributes:
        run: The run folder.
        split: "val" or "test".
        content: Its metrics file, see `measured`.
        facts: Its provenance.
    """

    run: Run
    split: str
    content: dict[str, Any]
    facts: dict[str, Any] = field(repr=False)

    @property
    def what(self) -> dict[str, Any]:
        """What identifies the run, as it stands in its metrics file."""
        return dict(self.content["run"])

    @property
    def metrics(self) -> dict[str, float]:
        """Name -> number."""
        return dict(self.content["metrics"])

    @cached_property
    def configs(self) -> list[dict[str, Any]]:
        """The configurations that were run one after the other: config.yaml, and those of a resumed training.

        Raises:
            UserError: One of them is damaged.
        """

        def number(path: Path) -> int:
            text = path.stem.rpartition("-")[2]
            return int(text) if text.isdecimal() else 0

        files = [self.run.config, *sorted(self.run.folder.glob("config.resume-*.yaml"), key=number)]
        return [trust.read_config(path) for path in files]

    @property
    def file(self) -> Path:
        """The table of its samples."""
        return self.run.folder / "samples" / f"{self.split}.csv"

    @cached_property
    def _table(self) -> list[list[str]]:
        if not self.file.is_file():
            raise UserError(f'"{self.file}" is not there; {self._again}')
        try:
            with self.file.open(newline="", encoding="utf-8") as file:
                table = list(csv.reader(file))
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f'"{self.file}" is damaged ({error}); {self._again}') from error
        whole = len(table) == self.content["n_samples"] + 1 and len(table[0]) > 1
        if not whole or any(len(row) != len(table[0]) for row in table):
            raise UserError(f'"{self.file}" does not belong to the metrics beside it; {self._again}')
        return table

    @property
    def _again(self) -> str:
        return f"run `make eval RUN={shlex.quote(str(self.run.folder))} SPLIT={self.split}`"

    @cached_property
    def ids(self) -> list[str]:
        """(N,) the samples, in the order of the split."""
        return [row[0] for row in self._table[1:]]

    @cached_property
    def groups(self) -> list[str]:
        """(N,) their groups."""
        return [row[1] for row in self._table[1:]]

    @cached_property
    def units(self) -> np.ndarray:
        """(N,) see `project.results.statistics.sampling_units`."""
        return sampling_units(self.groups)

    @cached_property
    def rows(self) -> Rows:
        """Column -> (N,) float64, NaN where a score is not defined: what the task computed, to the last bit.

        Raises:
            UserError: The table is damaged.
        """
        try:
            values = np.array([[float(cell or "nan") for cell in row[2:]] for row in self._table[1:]])
        except ValueError as error:
            raise UserError(f'"{self.file}" is damaged ({error}); {self._again}') from error
        return dict(zip(self._table[0][2:], torch.from_numpy(values.T.copy()).unbind(), strict=True))

    def replicates(self, aggregate: Aggregate) -> dict[str, np.ndarray]:
        """Metric -> (B,) bootstrap replicates, see `project.results.statistics.replicates`.

        They are kept in the run folder, as long as rows and metrics are those that they were made of.

        Raises:
            UserError: The rows do not give the metrics of the run: one of both is of another evaluation.
        """
        found = aggregate(self.rows)
        for name, value in found.items():
            if not np.isclose(value, self.metrics.get(name, np.nan), rtol=1e-6, atol=1e-9):
                raise UserError(
                    f"{self.run.name}: {name} of metrics.json is not that of {self.file.name}; {self._again}"
                )
        data_hash = str(self.what.get("data_hash"))
        seed = int(hashlib.sha256(data_hash.encode()).hexdigest()[:8], 16)
        state = hashlib.sha256(self.file.read_bytes() + f"2 {data_hash} {sorted(found.items())}".encode()).hexdigest()
        kept = self.file.with_name(f"{self.split}.bootstrap.npz")
        own = trust._is_below(self.run.folder, RUNS)  # from elsewhere only the table is read
        if own and (before := _read(kept, state)):
            return before
        made = replicates(self.rows, self.units, aggregate, [seed])
        if own:
            # In a folder that cannot be written to they are computed again each time.
            with suppress(OSError), atomic_path(kept) as temporary, temporary.open("wb") as file:
                np.savez(file, **{"/state": np.array(state), **made})  # type: ignore[arg-type]
        return made


def _read(path: Path, state: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["/state"]) == state:
                return {name: file[name] for name in file.files if name != "/state"}
    except (OSError, ValueError, LookupError, zipfile.BadZipFile):
        pass
    return None


def read_results(run: Run, split: str) -> RunResults:
    """What a run measured on a split.

    Raises:
        UserError: It has not been evaluated on it, or a file is damaged.
    """
    path = run.metrics_file(split)
    content = run.read(path.name)
    again = f"run `make eval RUN={shlex.quote(str(run.folder))} SPLIT={split}`"
    if not content:
        raise UserError(f"{run.name} has not been evaluated on {split}; {again}")
    if not _has_results(content):
        raise UserError(f'"{path}" is damaged or of another version; {again}')
    facts = run.read("provenance.json")
    if not isinstance(facts.get("test_evaluations", []), list):
        raise UserError(f'"{run.folder / "provenance.json"}" is damaged: test_evaluations is no list')
    return RunResults(run, split, content, facts)


def _has_results(content: dict[str, Any]) -> bool:
    """Whether a metrics file has all that is read of it, of the right types."""
    what, metrics = content.get("run"), content.get("metrics")
    leading = what.get("leading") or {} if isinstance(what, dict) else None
    return (
        isinstance(what, dict)
        and all(isinstance(what.get(key, ""), str) for key in ("experiment", "dataset", "task"))
        and isinstance(what.get("parameters", 0), int)
        and isinstance(leading, dict)
        and all(direction in ("min", "max", "zero") for direction in leading.values())
        and isinstance(metrics, dict)
        and all(isinstance(value, int | float) for value in metrics.values())
        and isinstance(content.get("n_samples"), int)
        and isinstance(content.get("undefined", {}), dict)
    )


@contextmanager
def build_from_run(
    run: Run, typed: list[str] | None = None, trusted: bool = False, callbacks: list[Any] | None = None
) -> Iterator[ExperimentCLI]:
    """Task, data and trainer of a run, as for its evaluation; the network without its weights.

    Args:
        run: A run folder; its config.yaml says everything.
        typed: Arguments that win over it, `--key value`.
        trusted: Let the configuration name any code; see `project.runs.untrusted`.
        callbacks: Of the trainer.

    Raises:
        UserError: The configuration names code from elsewhere, or what it names is not there.
    """
    with trust.evaluation_config(run, typed or [], trusted) as config, quiet_lightning(logging.ERROR):
        arguments = [f"--config={json.dumps(without_downloads(config))}", *ONE_PROCESS, *(typed or [])]
        yield ExperimentCLI(arguments, run, "none", callbacks or [])


def metrics_from_rows(task: Task) -> Aggregate:
    """Rows -> metrics of a task, its loss among them, without those that are not defined.

    Some tasks score from more than their rows, such as the similarity of all pairs. Of theirs, the leading metrics that
    are means of a column are left: how they would vary with other samples to compare with is not in the rows.
    """

    def aggregate(rows: Rows) -> dict[str, float]:
        counted = rows["n_annotated"] > 0 if "n_annotated" in rows else slice(None)
        try:
            metrics = task.aggregate(dict(rows))[0]
        except LookupError:
            metrics = {name: rows[name].nanmean().item() for name in task.leading if name in rows}
        metrics = {"loss": rows["loss"][counted].mean().item(), **metrics}
        return {name: value for name, value in metrics.items() if np.isfinite(value)}

    return aggregate
