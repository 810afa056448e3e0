"""Results of one run, read back from its folder: metrics, one row per sample, and their bootstrap replicates."""

import csv
import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from project.errors import UserError
from project.results.statistics import Aggregate, Rows, replicates, sampling_units
from project.runs.find_runs import all_runs, find_run
from project.runs.records import MeasuredRun, Metrics, Provenance
from project.runs.run_folder import Run
from project.runs.untrusted import read_config
from project.tasks.base import Task


@dataclass(frozen=True)
class RunResults:
    """One run on one split; a table of samples that does not fit raises UserError where it is read."""

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
        return [read_config(path) for path in self.run.configs]

    @cached_property
    def _table(self) -> tuple[list[str], list[list[str]], np.ndarray]:
        """Columns, id and group of each sample, and (N, columns) float64."""
        file = self.run.folder / "samples" / f"{self.split}.csv"
        try:
            with file.open(newline="", encoding="utf-8") as opened:
                header, *table = csv.reader(opened)
            if len(table) != self.record.n_samples or not table:
                raise ValueError(f"it has {len(table)} rows for {self.record.n_samples} samples")
            values = np.array([[float(cell or "nan") for cell in row[2:]] for row in table])
            return header[2:], [row[:2] for row in table], values.reshape(len(table), len(header) - 2)
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(
                f'"{file}" is missing, damaged, or does not belong to the metrics file ({error}); run '
                f"`make eval RUN={self.run.quoted} SPLIT={self.split}`"
            ) from error

    @cached_property
    def ids(self) -> list[str]:
        """(N,) ids of the samples, in the order of the split."""
        return [row[0] for row in self._table[1]]

    @cached_property
    def groups(self) -> list[str]:
        """(N,) their groups."""
        return [row[1] for row in self._table[1]]

    @cached_property
    def units(self) -> np.ndarray:
        """(N,) see `project.results.statistics.sampling_units`."""
        return sampling_units(self.groups)

    @property
    def n_units(self) -> int:
        """Samples or groups that are resampled."""
        return int(self.units.max()) + 1

    @cached_property
    def rows(self) -> Rows:
        """Column -> (N,) float64 to the last bit as the task computed it, NaN where a score is not defined."""
        columns, _, values = self._table
        return dict(zip(columns, torch.from_numpy(values.T.copy()).unbind(), strict=True))

    def check(self, aggregate: Aggregate | None = None) -> None:
        """Read all files that a comparison needs; `UserError` if one is damaged, or rows do not give the metrics."""
        _ = self.configs, self.ids
        for name, value in (aggregate(self.rows) if aggregate else {}).items():
            if not np.isclose(value, self.metrics.get(name, np.nan), rtol=1e-6, atol=1e-9):
                raise UserError(
                    f"{self.run.name}: {name} of {self.run.metrics_file(self.split).name} is not that of "
                    f"{self.split}.csv; run `make eval RUN={self.run.quoted} SPLIT={self.split}`"
                )

    def replicates(self, aggregate: Aggregate) -> dict[str, np.ndarray]:
        """Metric -> (B,) bootstrap replicates, of the same resamples for all runs on the same data."""
        seed = int(hashlib.sha256(str(self.identity.data_hash).encode()).hexdigest()[:8], 16)
        return replicates(self.rows, self.units, aggregate, [seed])


def read_results(run: Run, split: str) -> RunResults:
    """The results of a run on a split; UserError if it was not evaluated on it, or a file is damaged."""
    if (record := run.read_metrics(split)) is None:
        raise UserError(f"{run.name} has not been evaluated on {split}; run `make eval RUN={run.quoted} SPLIT={split}`")
    return RunResults(run, split, record, run.read_provenance())


def read_all_results(split: str, also: Run | None = None) -> tuple[list[RunResults], list[str]]:
    """The results of all runs on a split, in the order in which they were started, and of `also`, a run elsewhere.

    And a message for each run that cannot be read.
    """
    results, messages = list[RunResults](), list[str]()
    runs = {run.folder.resolve(): run for run in [*([also] if also else []), *all_runs()]}
    runs |= {also.folder.resolve(): also} if also else {}
    for run in runs.values():
        try:
            if run.metrics_file(split).is_file():
                results.append(read_results(run, split))
        except UserError as error:
            messages.append(str(error).splitlines()[0])
    return results, messages


def usable_results(split: str) -> list[RunResults]:
    """Those of finished runs that are no trials of a search and have all files."""
    usable = []
    for result in read_all_results(split)[0]:
        with suppress(UserError):
            result.check()
            usable += [result] if result.provenance.finished and not result.provenance.study else []
    return usable


def run_with_results(text: str | None, split: str, dataset: str | None = None) -> Run:
    """The run that is meant by a folder; of an experiment, or of all, the latest finished run that has results.

    A training that is running at this moment, or was stopped, does not hide the others.
    """
    run = find_run(text, dataset)
    if text is not None and text.strip("/") != run.experiment:
        return run
    runs = [result.run for result in usable_results(split) if dataset in (None, result.identity.dataset)]
    return next((other for other in reversed(runs) if text is None or other.experiment == run.experiment), run)


def newest_runs(dataset: str, split: str, distinct: tuple[str, ...]) -> list[Run]:
    """The newest usable run on a dataset for each combination of these fields of its identity, else the newest run."""
    on_data = [result for result in usable_results(split) if result.identity.dataset == dataset]
    newest = {str([getattr(result.identity, name) for name in distinct]): result.run for result in on_data}
    return list(newest.values()) or [find_run(None, dataset)]


def metrics_from_rows(task: Task) -> Aggregate:
    """A function from rows to the metrics of a task and its loss, without those that are not defined."""

    def aggregate(rows: Rows) -> dict[str, float]:
        metrics, _ = task.metrics.aggregate(rows, skip_missing=True)
        return {name: value for name, value in metrics.items() if np.isfinite(value)}

    return aggregate
