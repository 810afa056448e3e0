"""One line of a comparison: the runs of one configuration, their means, intervals, and differences from others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from project.errors import python
from project.results import statistics
from project.results.run_results import RunResults
from project.results.statistics import Aggregate, SeedEffect
from project.runs.config_diff import config_key_without_seed, short_difference


@dataclass
class Difference:
    """A metric of one entry minus that of the reference."""

    value: float
    ends: tuple[float, float] | None  # of the 95 % interval
    p: float | None  # two-sided; None where it cannot be computed
    p_holm: float | None = None  # adjusted for all entries of the table


@dataclass
class Entry:
    """The runs of one configuration: of several seeds and, in a table over all folds, of several folds."""

    name: str  # experiment, with what distinguishes the configuration from newer ones of the same experiment
    runs: list[RunResults]  # the newest last
    replicates: dict[str, np.ndarray] = field(default_factory=dict)  # metric -> (B,), of the mean over the runs
    seeds: dict[str, SeedEffect] = field(default_factory=dict)  # metric -> how the mean varies with the seeds
    differences: dict[str, Difference] = field(default_factory=dict)  # metric -> difference from the reference

    @property
    def first(self) -> RunResults:
        """The newest run, which represents them where only one can."""
        return self.runs[-1]

    @property
    def is_baseline(self) -> bool:
        """Whether others may be compared with it: a baseline, and no oracle."""
        return self.first.identity.baseline and not self.first.identity.oracle

    @cached_property
    def values(self) -> dict[str, float]:
        """Metric -> mean over the runs, where it is defined in all of them; each fold counts once."""
        names = [name for name in self.first.metrics if all(name in run.metrics for run in self.runs)]
        folds = [[run for run in self.runs if run.identity.fold == k] for k in {r.identity.fold for r in self.runs}]
        means = {name: [np.mean([run.metrics[name] for run in runs]) for runs in folds] for name in names}
        return {name: float(np.mean(of_folds)) for name, of_folds in means.items()}

    def spread(self, metric: str) -> float | None:
        """Standard deviation over the runs."""
        if metric not in self.values or len(self.runs) < 2:
            return None
        return float(np.std([run.metrics[metric] for run in self.runs], ddof=1))

    def interval(self, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric; None where it cannot be computed."""
        resampled, n_units = self.replicates.get(metric), self.first.n_units
        if resampled is None or metric not in self.values:
            return None
        if (effect := self.seeds.get(metric)) is None:
            return statistics.interval(resampled, n_units)
        result = statistics.seed_interval(self.values[metric], resampled, n_units, [effect])
        return result and result[0]

    def resample(self, aggregate: Aggregate) -> None:
        """Compute `replicates` and `seeds` of runs on one fold."""
        parts = [run.replicates(aggregate) for run in self.runs]
        for name in (name for name in parts[0] if all(name in part for part in parts)):
            resampled = np.stack([part[name] for part in parts])
            self.replicates[name] = resampled.mean(0)
            values = np.array([run.metrics[name] for run in self.runs])
            if effect := statistics.seed_effect(values, resampled, self.first.n_units):
                self.seeds[name] = effect

    def mean_rows(self, metric: str) -> np.ndarray | None:
        """(N,) mean over the runs of the column that a metric is the mean of; None if there is no such column."""
        rows = []
        for run in self.runs:
            if (column := statistics.per_sample_column(metric, run.metrics[metric], run.rows)) is None:
                return None
            rows.append(run.rows[column].numpy())
        return np.asarray(np.mean(rows, axis=0))


def group_entries(
    candidates: Sequence[RunResults], subject: RunResults, every: bool, left_out: dict[str, list[str]]
) -> list[Entry]:
    """Runs that differ in nothing but seed and fold in one entry; of equal ones the newest counts.

    A training that was resumed with other settings is not one that was started with them. The candidates are comparable
    runs, oldest first; the configuration of `subject`, the run that was asked for, counts as the newest. Unless `every`
    one is wanted, older configurations of an experiment are added to `left_out`.
    """
    members: dict[tuple[str, ...], dict[tuple[int | None, int | None], RunResults]] = {}
    for run in sorted(candidates, key=lambda other: other.run == subject.run):  # the last of its experiment leads
        key = run.run.experiment, *map(config_key_without_seed, run.configs)
        group = members.pop(key, {})
        group.pop((run.identity.fold, run.identity.seed), None)
        members[key] = group | {(run.identity.fold, run.identity.seed): run}
    newest, entries = {key[0]: key for key in members}, []
    for key, group in members.items():
        entry = Entry(key[0], list(group.values()))
        if newest[key[0]] != key:
            if not every:
                names = [run.run.name for run in entry.runs]
                left_out.setdefault(f"older configurations (`{python()} -m project compare` has them)", []).extend(
                    names
                )
                continue
            latest = list(members[newest[key[0]]].values())[-1]
            text = short_difference(latest.configs[-1], entry.first.configs[-1])
            entry.name += f" ({text or entry.first.run.folder.name})"
        entries.append(entry)
    return entries


def compute_differences(entries: Sequence[Entry], reference: Entry, metrics: Sequence[str]) -> None:
    """Fill in `differences` of all entries but the reference, with p adjusted for their number."""
    for metric in metrics:
        tested = []
        for entry in entries:
            if entry is not reference and metric in entry.values and metric in reference.values:
                entry.differences[metric] = difference = _difference(entry, reference, metric)
                tested += [difference] if difference.p is not None else []
        for difference, p in zip(tested, statistics.holm([d.p for d in tested if d.p is not None]), strict=True):
            difference.p_holm = p


def _difference(entry: Entry, reference: Entry, metric: str) -> Difference:
    value, n_units = entry.values[metric] - reference.values[metric], entry.first.n_units
    if n_units < 2 or metric not in entry.replicates or metric not in reference.replicates:
        return Difference(value, None, None)
    resampled = entry.replicates[metric] - reference.replicates[metric]
    effects = [one.seeds[metric] for one in (entry, reference) if metric in one.seeds]
    if effects and (result := statistics.seed_interval(value, resampled, n_units, effects)):
        return Difference(value, result[0], max(result[1], 2.0 ** (1 - n_units)))  # what exchanges could show
    p = statistics.bootstrap_p(resampled, n_units)
    first, second = entry.mean_rows(metric), reference.mean_rows(metric)
    # Where the two are undefined for different samples, an exchange would change what is averaged over.
    if first is not None and second is not None and np.array_equal(np.isnan(first), np.isnan(second)):
        p = statistics.permutation_p(np.bincount(entry.first.units, weights=np.nan_to_num(first - second)))
    return Difference(value, statistics.interval(resampled, n_units), p)
