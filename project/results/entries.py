"""One line of a comparison: the runs of one configuration, their means, intervals, and differences from others."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from project.errors import UserError
from project.results import config_diff as settings
from project.results.run_results import RunResults
from project.results.statistics import (
    Aggregate,
    SeedEffect,
    bootstrap_p,
    holm,
    interval,
    per_sample_column,
    seed_effect,
    seed_interval,
    sign_flip_p,
)


@dataclass(frozen=True)
class Difference:
    """A metric of one entry minus that of the reference.

    Attributes:
        value: In the metric's units.
        ends: Of the 95 % interval, where there is one.
        p: Two-sided; None where it cannot be said.
        p_holm: Adjusted for all entries of the table.
    """

    value: float
    ends: tuple[float, float] | None
    p: float | None
    p_holm: float | None = None


@dataclass
class Entry:
    """The runs of one configuration, with any seeds, on one fold or on several.

    Attributes:
        name: Experiment, with what distinguishes the configuration from newer ones of the same experiment.
        folds: The runs of each fold, over seeds; where there are no folds, of the whole split.
        replicates: Metric -> (B,) bootstrap replicates of the mean over all runs.
        seeds: Metric -> how much the mean varies with the seeds of the trainings.
        differences: Metric -> difference from the reference; empty for the reference itself.
    """

    name: str
    folds: list[list[RunResults]]
    replicates: dict[str, np.ndarray] = field(default_factory=dict)
    seeds: dict[str, SeedEffect] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)

    @property
    def runs(self) -> list[RunResults]:
        """All of them."""
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
    def fixed(self) -> bool:
        """Whether it is a baseline or an oracle, which is fitted and not trained."""
        return bool(self.first.identity.baseline or self.first.identity.oracle)

    @cached_property
    def values(self) -> dict[str, float]:
        """Metric -> mean over seeds and folds, where it is defined in all runs."""
        means = [_mean_metrics(fold) for fold in self.folds]
        return {name: statistics.fmean(m[name] for m in means) for name in means[0] if all(name in m for m in means)}

    def spread(self, metric: str) -> float | None:
        """Standard deviation over folds or, where there are none, over seeds."""
        parts = [_mean_metrics(fold) for fold in self.folds] if len(self.folds) > 1 else [m.metrics for m in self.runs]
        values = [part[metric] for part in parts if metric in part]
        return statistics.stdev(values) if len(values) > 1 and len(values) == len(parts) else None

    @property
    def n_units(self) -> int:
        """Samples or groups that are resampled."""
        return sum(int(fold[0].units.max()) + 1 for fold in self.folds)

    def interval(self, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric; None where it cannot be said."""
        values = self.replicates.get(metric)
        if values is None or metric not in self.values:
            return None
        if (effect := self.seeds.get(metric)) is None:
            return interval(values, self.n_units)
        found = seed_interval(self.values[metric], values, self.n_units, [effect])
        return found and found[0]

    def resample(self, aggregate: Aggregate) -> None:
        """Compute `replicates` and `seeds`. Resamples of a fold are the same for all runs, those of folds independent.

        Raises:
            UserError: The rows of a run do not give its metrics.
        """
        parts = [[run.replicates(aggregate) for run in fold] for fold in self.folds]
        self.replicates = _mean_of([_mean_of(fold) for fold in parts])
        n_units = self.n_units
        for name in self.replicates:
            folds = []
            for runs, replicates in zip(self.folds, parts, strict=True):
                n = min(len(each[name]) for each in replicates)
                values = np.array([run.metrics[name] for run in runs])
                folds.append((values, np.stack([each[name][:n] for each in replicates])))
            if effect := seed_effect(folds, n_units):
                self.seeds[name] = effect


def group_entries(
    candidates: Sequence[RunResults], own: RunResults, every: bool
) -> tuple[list[Entry], dict[str, list[str]]]:
    """Runs that differ in nothing but seed and fold in one entry; of equal ones the newest counts.

    What was run counts: a training that was resumed with other settings is not one that was begun with them.

    Args:
        candidates: Comparable runs, oldest first.
        own: The run that was asked for; the configuration of its experiment is the newest.
        every: Also older configurations of an experiment.

    Returns:
        The entries, and reason -> names of runs with a damaged configuration.

    Raises:
        UserError: The configuration of `own` is damaged.
    """
    members: dict[tuple[str, ...], dict[tuple[Any, Any], RunResults]] = {}
    left_out: dict[str, list[str]] = {}
    for run in sorted(candidates, key=lambda each: each.run == own.run):  # the last one of its experiment leads
        try:
            key = run.run.experiment, *map(settings.config_key_without_seed, run.configs)
        except UserError as error:
            if run.run == own.run:
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
            continue
        folds: dict[Any, list[RunResults]] = {}
        for (fold, _), run in sorted(group.items(), key=lambda item: str(item[0])):
            folds.setdefault(fold, []).append(run)
        entry = Entry(key[0], list(folds.values()))
        if newest[key[0]] != key:
            latest = next(reversed(members[newest[key[0]]].values()))
            short = settings.short_difference(latest.configs[-1], entry.first.configs[-1])
            entry.name += f" ({short or entry.first.run.folder.name})"
        entries.append(entry)
    return entries, left_out


def compute_differences(entries: Sequence[Entry], reference: Entry, metrics: Sequence[str]) -> None:
    """Fill in `differences` of all entries but the reference."""
    for metric in metrics:
        found = [(e, d) for e in entries if e is not reference and (d := _difference(e, reference, metric))]
        adjusted = iter(holm([d.p for _, d in found if d.p is not None]))
        for entry, d in found:
            p_holm = None if d.p is None else next(adjusted)
            entry.differences[metric] = Difference(d.value, d.ends, d.p, p_holm)


def _difference(entry: Entry, reference: Entry, metric: str) -> Difference | None:
    if metric not in entry.values or metric not in reference.values:
        return None
    value = entry.values[metric] - reference.values[metric]
    a, b = entry.replicates.get(metric), reference.replicates.get(metric)
    if a is None or b is None or entry.n_units < 2:
        return Difference(value, None, None)
    n = min(len(a), len(b))
    replicates = a[:n] - b[:n]
    parts = [_contributions(each, metric) for each in (entry, reference)]
    p = bootstrap_p(replicates, entry.n_units)
    if all(part is not None for part in parts):
        own, its = (np.concatenate(part) for part in parts if part is not None)
        if np.array_equal(np.isnan(own), np.isnan(its)):  # else an exchange would change what is averaged over
            units, start = [], 0
            for fold in entry.folds:
                units.append(fold[0].units + start)
                start += int(fold[0].units.max()) + 1
            p = sign_flip_p(np.bincount(np.concatenate(units), weights=np.nan_to_num(own - its)))
    effects = [each.seeds[metric] for each in (entry, reference) if metric in each.seeds]
    if effects and (found := seed_interval(value, replicates, entry.n_units, effects)):
        return Difference(value, found[0], max(found[1], 2.0 ** (1 - entry.n_units)))  # what exchanges could show
    return Difference(value, interval(replicates, entry.n_units), p)


def _contributions(entry: Entry, metric: str) -> list[np.ndarray] | None:
    """What each sample adds to a metric that is a mean over samples, (N,) per fold; None if it is not."""
    found = []
    for fold in entry.folds:
        columns = [per_sample_column(metric, run.metrics[metric], run.rows) for run in fold]
        if any(column is None for column in columns):
            return None
        mean = np.mean([run.rows[c].numpy() for run, c in zip(fold, columns, strict=True) if c], axis=0)
        found.append(mean / max(np.count_nonzero(~np.isnan(mean)), 1) / len(entry.folds))
    return found


def _mean_metrics(runs: list[RunResults]) -> dict[str, float]:
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    return {name: statistics.fmean(run.metrics[name] for run in runs) for name in names}


def _mean_of(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = [name for name in parts[0] if all(name in part for part in parts)]
    found = {}
    for name in names:
        n = min(len(part[name]) for part in parts)
        found[name] = np.mean([part[name][:n] for part in parts], axis=0)
    return found
