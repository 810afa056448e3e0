"""Results of one run, read back from its folder: metrics, one row per sample, and their bootstrap replicates."""

import csv
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from project.errors import UserError
from project.models.downloads import without_downloads
from project.results.statistics import Aggregate, Rows, replicates, sampling_units
from project.runs.find_runs import all_runs
from project.runs.records import MeasuredRun, Metrics, Provenance
from project.runs.run_folder import RUNS, Run
from project.runs.untrusted import evaluation_config, read_config
from project.tasks.base import Task
from project.training.evaluate import ONE_PROCESS
from project.training.lightning_cli import ExperimentCLI
from project.training.loggers import quiet_lightning


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
        resumed = sorted(self.run.folder.glob("config.resume-*.yaml"), key=lambda path: (len(path.name), path.name))
        return [read_config(path) for path in (self.run.config, *resumed)]

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

    def replicates(self, aggregate: Aggregate) -> dict[str, np.ndarray]:
        """Metric -> (B,) bootstrap replicates, of the same resamples for all runs on the same data.

        Raises:
            UserError: The rows do not give the metrics of the run: one of both is from another evaluation.
        """
        for name, value in aggregate(self.rows).items():
            if not np.isclose(value, self.metrics.get(name, np.nan), rtol=1e-6, atol=1e-9):
                raise UserError(
                    f"{self.run.name}: {name} of {self.run.metrics_file(self.split).name} is not that of "
                    f"{self.split}.csv; run `make eval RUN={self.run.quoted} SPLIT={self.split}`"
                )
        seed = int(hashlib.sha256(str(self.identity.data_hash).encode()).hexdigest()[:8], 16)
        return replicates(self.rows, self.units, aggregate, [seed])


def read_results(run: Run, split: str) -> RunResults:
    """The results of a run on a split; UserError if it was not evaluated on it, or a file is damaged."""
    if (record := run.read_metrics(split)) is None:
        raise UserError(f"{run.name} has not been evaluated on {split}; run `make eval RUN={run.quoted} SPLIT={split}`")
    return RunResults(run, split, record, run.read_provenance())


def read_all_results(split: str, root: Path = RUNS, also: Run | None = None) -> tuple[list[RunResults], list[str]]:
    """The results of all runs on a split, in the order in which they were started, and of `also`, a run elsewhere.

    Returns:
        Results of the runs that have any; a message for each run that cannot be read.
    """
    results, messages = list[RunResults](), list[str]()
    runs = {run.folder.resolve(): run for run in [*([also] if also else []), *all_runs(root)]}
    for run in runs.values():
        try:
            if run.metrics_file(split).is_file():
                results.append(read_results(run, split))
        except UserError as error:
            messages.append(str(error).splitlines()[0])
    return results, messages


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
