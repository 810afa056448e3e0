"""One line of a comparison: the runs of one configuration, their means, intervals, and differences from others."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from project.errors import UserError
from project.results.config_diff import config_key_without_seed, short_difference
from project.results.run_results import RunResults
from project.results.statistics import (
    Aggregate,
    SeedEffect,
    bootstrap_p,
    holm,
    interval,
    per_sample_column,
    permutation_p,
    seed_effect,
    seed_interval,
)


@dataclass
class Difference:
    """A metric of one entry minus that of the reference."""

    value: float
    ends: tuple[float, float] | None  # of the 95 % interval
    p: float | None  # two-sided; None where it cannot be computed
    p_holm: float | None = None  # adjusted for all entries of the table


@dataclass
class Entry:
    """The runs of one configuration, with any seeds, on one fold or on several."""

    name: str  # experiment, with what distinguishes the configuration from newer ones of the same experiment
    folds: list[list[RunResults]]  # the runs of each fold, over seeds; without folds, those of the whole split
    replicates: dict[str, np.ndarray] = field(default_factory=dict)  # metric -> (B,), of the mean over all runs
    seeds: dict[str, SeedEffect] = field(default_factory=dict)  # metric -> how the mean varies with the seeds
    differences: dict[str, Difference] = field(default_factory=dict)  # metric -> difference from the reference

    @property
    def runs(self) -> list[RunResults]:
        """All runs."""
        return [run for fold in self.folds for run in fold]

    @property
    def first(self) -> RunResults:
        """The newest run of the first fold, which represents them where only one can."""
        return self.folds[0][-1]

    @property
    def n_seeds(self) -> int:
        """Trainings of one fold, the most of any."""
        return max(map(len, self.folds))

    @property
    def n_units(self) -> int:
        """Samples or groups that are resampled."""
        return sum(int(fold[0].units.max()) + 1 for fold in self.folds)

    @property
    def is_baseline(self) -> bool:
        """Whether others may be compared with it: a baseline, and no oracle."""
        return self.first.identity.baseline and not self.first.identity.oracle

    @cached_property
    def values(self) -> dict[str, float]:
        """Metric -> mean over seeds and folds, where it is defined in all runs."""
        return _mean([_mean([run.metrics for run in fold]) for fold in self.folds])

    def spread(self, metric: str) -> float | None:
        """Standard deviation over folds or, without folds, over seeds."""
        parts = [run.metrics for run in self.runs]
        if len(self.folds) > 1:
            parts = [_mean([run.metrics for run in fold]) for fold in self.folds]
        values = [part[metric] for part in parts if metric in part]
        return statistics.stdev(values) if len(values) > 1 and len(values) == len(parts) else None

    def interval(self, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric; None where it cannot be computed."""
        resampled = self.replicates.get(metric)
        if resampled is None or metric not in self.values:
            return None
        if (effect := self.seeds.get(metric)) is None:
            return interval(resampled, self.n_units)
        result = seed_interval(self.values[metric], resampled, self.n_units, [effect])
        return result and result[0]

    def resample(self, aggregate: Aggregate) -> None:
        """Compute `replicates` and `seeds`; UserError if the rows of a run do not give its metrics.

        Resamples of a fold are the same for all runs, those of folds independent.
        """
        parts = [[run.replicates(aggregate) for run in fold] for fold in self.folds]
        self.replicates = _mean_replicates([_mean_replicates(fold) for fold in parts])
        for name in self.replicates:
            values = [np.array([run.metrics[name] for run in fold]) for fold in self.folds]
            resampled = [np.stack(_same_length([part[name] for part in fold])) for fold in parts]
            if effect := seed_effect([*zip(values, resampled, strict=True)], self.n_units):
                self.seeds[name] = effect

    def contributions(self, metric: str) -> np.ndarray | None:
        """(N,) what each sample of all folds adds to a metric that is a mean over samples; None if it is not."""
        parts = []
        for fold in self.folds:
            rows = []
            for run in fold:
                if (column := per_sample_column(metric, run.metrics[metric], run.rows)) is None:
                    return None
                rows.append(run.rows[column].numpy())
            mean = np.mean(rows, axis=0)
            parts.append(mean / max(np.count_nonzero(~np.isnan(mean)), 1) / len(self.folds))
        return np.concatenate(parts)

    def units(self) -> np.ndarray:
        """(N,) number of the unit of each sample of all folds."""
        starts = np.cumsum([0, *(int(fold[0].units.max()) + 1 for fold in self.folds)])
        return np.concatenate([fold[0].units + start for fold, start in zip(self.folds, starts, strict=False)])


def group_entries(
    candidates: Sequence[RunResults], subject: RunResults, every: bool
) -> tuple[list[Entry], dict[str, list[str]]]:
    """Runs that differ in nothing but seed and fold in one entry; of equal ones the newest counts.

    A training that was resumed with other settings is not one that was started with them.

    Args:
        candidates: Comparable runs, oldest first.
        subject: The run that was asked for; the configuration of its experiment is the newest.
        every: Also older configurations of an experiment.

    Returns:
        The entries, and reason -> names of runs that are left out.
    """
    members: dict[tuple[str, ...], dict[tuple[Any, Any], RunResults]] = {}
    left_out: dict[str, list[str]] = {}
    for run in sorted(candidates, key=lambda each: each.run == subject.run):  # the last one of its experiment leads
        try:
            key = run.run.experiment, *map(config_key_without_seed, run.configs)
        except UserError as error:
            if run.run == subject.run:
                raise
            left_out.setdefault(str(error), []).append(run.run.name)
            continue
        group = members.pop(key, {})
        group[run.identity.fold, run.identity.seed] = run
        members[key] = group
    newest = {key[0]: key for key in members}
    entries = []
    for key, group in members.items():
        if not every and newest[key[0]] != key:
            names = [run.run.name for run in group.values()]
            left_out.setdefault("older configurations (`python -m project compare` has them)", []).extend(names)
            continue
        folds: dict[Any, list[RunResults]] = {}
        for (fold, _), run in sorted(group.items(), key=lambda item: str(item[0])):
            folds.setdefault(fold, []).append(run)
        entry = Entry(key[0], list(folds.values()))
        if newest[key[0]] != key:
            latest = next(reversed(members[newest[key[0]]].values()))
            text = short_difference(latest.configs[-1], entry.first.configs[-1])
            entry.name += f" ({text or entry.first.run.folder.name})"
        entries.append(entry)
    return entries, left_out


def compute_differences(entries: Sequence[Entry], reference: Entry, metrics: Sequence[str]) -> None:
    """Fill in `differences` of all entries but the reference, with p adjusted for their number."""
    for metric in metrics:
        tested = []
        for entry in entries:
            if entry is not reference and (difference := _difference(entry, reference, metric)):
                entry.differences[metric] = difference
                tested += [(difference, difference.p)] if difference.p is not None else []
        for (difference, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
            difference.p_holm = p


def _difference(entry: Entry, reference: Entry, metric: str) -> Difference | None:
    if metric not in entry.values or metric not in reference.values:
        return None
    value, n_units = entry.values[metric] - reference.values[metric], entry.n_units
    if n_units < 2 or metric not in entry.replicates or metric not in reference.replicates:
        return Difference(value, None, None)
    resampled = np.subtract(*_same_length([entry.replicates[metric], reference.replicates[metric]]))
    effects = [each.seeds[metric] for each in (entry, reference) if metric in each.seeds]
    if effects and (result := seed_interval(value, resampled, n_units, effects)):
        return Difference(value, result[0], max(result[1], 2.0 ** (1 - n_units)))  # what exchanges could show
    p = bootstrap_p(resampled, n_units)
    first, second = entry.contributions(metric), reference.contributions(metric)
    # Where the two are undefined for different samples, an exchange would change what is averaged over.
    if first is not None and second is not None and np.array_equal(np.isnan(first), np.isnan(second)):
        p = permutation_p(np.bincount(entry.units(), weights=np.nan_to_num(first - second)))
    return Difference(value, interval(resampled, n_units), p)


def _mean(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(p[name] for p in parts) for name in parts[0] if all(name in p for p in parts)}


def _mean_replicates(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.mean(_same_length([part[name] for part in parts]), axis=0) for name in names}


def _same_length(arrays: list[np.ndarray]) -> list[np.ndarray]:
    n = min(map(len, arrays))
    return [array[:n] for array in arrays]
