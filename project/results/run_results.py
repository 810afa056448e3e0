"""Results of one run, read back from its folder: metrics, one row per sample, and their bootstrap replicates."""

import csv
import hashlib
import json
import logging
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
from project.runs.records import MeasuredRun, Metrics, Provenance
from project.runs.run_folder import Run
from project.runs.untrusted import evaluation_config, is_below_runs, read_config
from project.tasks.base import Task
from project.training.evaluate import ONE_PROCESS
from project.training.lightning_cli import ExperimentCLI
from project.training.loggers import quiet_lightning


@dataclass(frozen=True)
class RunResults:
    """One run on one split."""

    run: Run
    split: str  # "val" or "test"
    record: Metrics
    provenance: Provenance = field(repr=False)

    @property
    def identity(self) -> MeasuredRun:
        """What identifies the run, as in its metrics file."""
        return self.record.run

    @property
    def metrics(self) -> dict[str, float]:
        """Metric -> number."""
        return self.record.metrics

    @property
    def main_metrics(self) -> dict[str, str]:
        """Main metric -> "min", "max" or "zero"."""
        return self.record.run.leading

    @cached_property
    def configs(self) -> list[dict[str, Any]]:
        """The configurations that were run one after the other: config.yaml, and those of a resumed training."""
        resumed = sorted(self.run.folder.glob("config.resume-*.yaml"), key=lambda path: (len(path.name), path.name))
        return [read_config(path) for path in (self.run.config, *resumed)]

    @property
    def file(self) -> Path:
        """The table of samples."""
        return self.run.folder / "samples" / f"{self.split}.csv"

    @property
    def _how_to_repeat(self) -> str:
        return f"run `make eval RUN={self.run.quoted} SPLIT={self.split}`"

    @cached_property
    def _table(self) -> list[list[str]]:
        if not self.file.is_file():
            raise UserError(f'"{self.file}" is missing; {self._how_to_repeat}')
        try:
            with self.file.open(newline="", encoding="utf-8") as file:
                table = list(csv.reader(file))
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f'"{self.file}" is damaged ({error}); {self._how_to_repeat}') from error
        complete = len(table) == self.record.n_samples + 1 and len(table[0]) > 1
        if not complete or any(len(row) != len(table[0]) for row in table):
            raise UserError(f'"{self.file}" does not belong to the metrics file; {self._how_to_repeat}')
        return table

    @cached_property
    def ids(self) -> list[str]:
        """(N,) ids of the samples, in the order of the split."""
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
        """Column -> (N,) float64 to the last bit as the task computed it, NaN where a score is not defined."""
        try:
            values = np.array([[float(cell or "nan") for cell in row[2:]] for row in self._table[1:]])
        except ValueError as error:
            raise UserError(f'"{self.file}" is damaged ({error}); {self._how_to_repeat}') from error
        return dict(zip(self._table[0][2:], torch.from_numpy(values.T.copy()).unbind(), strict=True))

    def replicates(self, aggregate: Aggregate) -> dict[str, np.ndarray]:
        """Metric -> (B,) bootstrap replicates, of the same resamples for all runs on the same data.

        They take about a second, and are stored in the run folder for as long as rows and metrics stay the same.

        Raises:
            UserError: The rows do not give the metrics of the run: one of both is from another evaluation.
        """
        metrics, data_hash = aggregate(self.rows), str(self.identity.data_hash)
        for name, value in metrics.items():
            if not np.isclose(value, self.metrics.get(name, np.nan), rtol=1e-6, atol=1e-9):
                raise UserError(
                    f"{self.run.name}: {name} of {self.run.metrics_file(self.split).name} is not that of "
                    f"{self.file.name}; {self._how_to_repeat}"
                )
        source = self.file.read_bytes() + f"3 {data_hash} {sorted(metrics.items())}".encode()
        key, file = hashlib.sha256(source).hexdigest(), self.file.with_name(f"{self.split}.bootstrap.npz")
        is_own = is_below_runs(self.run.folder)  # of others only the table is read
        with suppress(OSError, ValueError, LookupError, zipfile.BadZipFile), np.load(file) as stored:
            if is_own and str(stored["/key"]) == key:
                return {name: stored[name] for name in stored.files if name != "/key"}
        seed = int(hashlib.sha256(data_hash.encode()).hexdigest()[:8], 16)
        resampled = replicates(self.rows, self.units, aggregate, [seed])
        if is_own:
            with suppress(OSError), atomic_path(file) as temporary, temporary.open("wb") as opened:
                np.savez(opened, **{"/key": np.array(key), **resampled})  # type: ignore[arg-type]
        return resampled


def read_results(run: Run, split: str) -> RunResults:
    """The results of a run on a split; UserError if it was not evaluated on it, or a file is damaged."""
    if (record := run.read_metrics(split)) is None:
        raise UserError(f"{run.name} has not been evaluated on {split}; run `make eval RUN={run.quoted} SPLIT={split}`")
    return RunResults(run, split, record, run.read_provenance())


@contextmanager
def build_from_run(
    run: Run, overrides: list[str] | None = None, trusted: bool = False, callbacks: list[Any] | None = None
) -> Iterator[ExperimentCLI]:
    """Task, data and trainer of a run, as for its evaluation; the network without its weights.

    Args:
        run: A run folder; its config.yaml says everything.
        overrides: They win over it, `--key value`.
        trusted: Let the configuration name any code; see `project.runs.untrusted`.
        callbacks: Of the trainer.
    """
    overrides = overrides or []
    with evaluation_config(run, overrides, trusted) as config, quiet_lightning(logging.ERROR):
        arguments = [f"--config={json.dumps(without_downloads(config))}", *ONE_PROCESS, *overrides]
        yield ExperimentCLI(arguments, run, "none", callbacks or [])


def metrics_from_rows(task: Task) -> Aggregate:
    """A function from rows to the metrics of a task and its loss, without those that are not defined."""

    def aggregate(rows: Rows) -> dict[str, float]:
        metrics, _ = task.metrics.aggregate(rows, skip_missing=True)
        return {name: value for name, value in metrics.items() if np.isfinite(value)}

    return aggregate
