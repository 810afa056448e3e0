"""All runs and baselines on one dataset and split: the one table, with intervals and tests against a reference."""

from dataclasses import dataclass, field
from pathlib import Path

from project.errors import UserError, bullet_list, did_you_mean
from project.results.comparable import (
    COMPARABLE_BY,
    COMPARABLE_OVER_FOLDS,
    check_comparable,
    comparable,
    read_all_results,
)
from project.results.entries import Entry, compute_differences, group_entries
from project.results.notes import notes_on_intervals, notes_on_runs
from project.results.run_results import RunResults, build_from_run, metrics_from_rows, read_results
from project.results.statistics import Aggregate
from project.runs.find_runs import all_runs, find_run
from project.runs.records import MeasuredRun
from project.runs.run_folder import RUNS, Run


@dataclass
class Comparison:
    """All entries, best first."""

    entries: list[Entry]
    reference: Entry | None  # the entry that the others are compared with
    split: str
    main_metrics: dict[str, str]  # of all entries -> "min", "max" or "zero"; entries are sorted by the first
    over_folds: bool = False  # whether entries are means over folds
    notes: list[str] = field(default_factory=list)  # what a reader has to know, one sentence each

    @property
    def metrics(self) -> list[str]:
        """Main metrics that any entry has."""
        return [name for name in self.main_metrics if any(name in entry.values for entry in self.entries)]

    @property
    def identity(self) -> MeasuredRun:
        """Dataset, task and fold."""
        return self.entries[0].first.identity

    @property
    def n_images(self) -> int:
        """Samples that each entry was measured on."""
        return sum(len(fold[0].ids) for fold in self.entries[0].folds)

    @property
    def title(self) -> str:
        """Dataset, task, split, fold, number of images."""
        n, n_units, fold = self.n_images, self.entries[0].n_units, self.identity.fold
        where = "all folds" if self.over_folds else "" if fold is None else f"fold {fold}"
        parts = [self.identity.dataset, self.identity.task, f"{self.split} split", where]
        grouped = f"{n} images" if n_units == n else f"{n} images in {n_units} group{'s' * (n_units > 1)}"
        return ", ".join([*filter(None, parts), grouped])


def compare(
    run: Run,
    split: str = "val",
    reference: str | None = None,
    trusted: bool = False,
    root: Path = RUNS,
    every: bool = True,
) -> list[Comparison]:
    """Compare all runs that were measured on the same samples of the same data as `run`.

    Args:
        run: A run folder.
        split: "val" or "test".
        reference: Experiment or run that the others are tested against; by default the best baseline.
        trusted: Let the configuration of `run`, from which the task is built, name any code.
        root: Folder of the runs.
        every: Also older configurations of an experiment, not only its newest (or that of `run`).

    Returns:
        One comparison and, where the data has folds of which two or more were run, one over all folds.

    Raises:
        UserError: `run`, or the reference, has not been measured on the split, or the reference on other data.
    """
    subject = read_results(run, split)
    results, damaged = read_all_results(split, root, run)
    with build_from_run(run, trusted=trusted) as cli:
        comparison = _Comparing(subject, results, damaged, reference, metrics_from_rows(cli.model), root, every)
    comparisons = [comparison.on(over_folds=False)]
    if subject.identity.fold is not None:
        runs, _ = comparable(subject, results, COMPARABLE_OVER_FOLDS)
        if len({other.identity.fold for other in runs}) > 1:
            comparisons.append(comparison.on(over_folds=True))
    return comparisons


def compare_two(run: Run, other: Run, split: str = "val", trusted: bool = False) -> Comparison:
    """Compare exactly two runs, the second as reference; UserError if they were not measured on the same samples."""
    first, second = read_results(run, split), read_results(other, split)
    check_comparable(first, second)
    with build_from_run(run, trusted=trusted) as cli:
        aggregate = metrics_from_rows(cli.model)
    names = [first.run.experiment, second.run.experiment]
    if names[0] == names[1]:
        names = [first.run.name, second.run.name]
    entries = [Entry(names[0], [[first]]), Entry(names[1], [[second]])]
    for entry in entries:
        entry.resample(aggregate)
    comparison = Comparison(entries, entries[1], split, _main_metrics(first, entries))
    compute_differences(entries, entries[1], comparison.metrics)  # one comparison: p are not adjusted
    comparison.notes = notes_on_intervals(entries, entries[1], comparison.n_images)
    return comparison


def out_of_sample(run: Run, split: str = "val", root: Path = RUNS) -> list[list[RunResults]]:
    """The run with those that differ from it in nothing but seed and fold: for each fold, its runs over seeds.

    On the test split, which is the same for all folds, only those of the fold of the run.
    """
    subject = read_results(run, split)
    over_folds = subject.identity.fold is not None and split == "val"
    same = COMPARABLE_OVER_FOLDS if over_folds else COMPARABLE_BY
    candidates, _ = comparable(subject, read_all_results(split, root, run)[0], same)
    entries, _ = group_entries([c for c in candidates if c.run.experiment == run.experiment], subject, every=False)
    return entries[0].folds


@dataclass
class _Comparing:
    """The arguments of `compare`, and what was read for it."""

    subject: RunResults
    results: list[RunResults]
    damaged: list[str]
    reference: str | None
    aggregate: Aggregate
    root: Path
    every: bool

    def on(self, over_folds: bool) -> Comparison:
        """The comparison on the fold of the run, or over all folds."""
        subject = self.subject
        candidates, left_out = comparable(subject, self.results, COMPARABLE_OVER_FOLDS if over_folds else COMPARABLE_BY)
        entries, not_shown = group_entries(candidates, subject, self.every)
        reference = self._reference(entries) if self.reference else None
        left_out |= not_shown
        if over_folds:  # only those that were run on as many folds as any
            folds = [{run.identity.fold for run in entry.runs} for entry in entries]
            most = max(folds, key=len)
            if others := [entry.name for entry, its_folds in zip(entries, folds, strict=True) if its_folds != most]:
                left_out["not run on the same folds"] = others
            entries = [entry for entry, its_folds in zip(entries, folds, strict=True) if its_folds == most]
        entries = self._resampled(entries, reference, left_out)
        if not entries:
            name = subject.run.name
            raise UserError(f"{name} is being written, and nothing else can be compared; try again in a moment")
        main_metrics = _main_metrics(subject, entries)
        entries.sort(key=lambda entry: _rank(entry, *next(iter(main_metrics.items()))))
        references = (entry for entry in entries if (entry is reference if self.reference else entry.is_baseline))
        reference = next(references, None)
        comparison = Comparison(entries, reference, subject.split, main_metrics, over_folds)
        if reference:
            compute_differences(entries, reference, comparison.metrics)
        comparison.notes = [
            *notes_on_intervals(entries, reference, comparison.n_images, over_folds),
            *notes_on_runs(entries, subject, self.results, self.root),
            *(f"Left out, {reason}: {', '.join(names)}." for reason, names in left_out.items()),
            *(f"Left out: {message}" for message in self.damaged),
        ]
        return comparison

    def _resampled(self, entries: list[Entry], reference: Entry | None, left_out: dict[str, list[str]]) -> list[Entry]:
        """The entries with replicates; another run that is damaged is left out."""
        usable = []
        for entry in entries:
            try:
                entry.resample(self.aggregate)
                usable.append(entry)
            except UserError as error:
                is_subject = any(each.run == self.subject.run for each in entry.runs)
                if entry is reference or (is_subject and self.subject.provenance.finished):
                    raise
                left_out.setdefault(str(error), []).append(entry.name)
        return usable

    def _reference(self, entries: list[Entry]) -> Entry:
        """The entry that is named as the reference; UserError if there is none, or if it is on other data."""
        name = str(self.reference)
        known = [entry.name for entry in entries]
        if name in known:
            return entries[-1 - known[::-1].index(name)]
        for entry in reversed(entries):
            if any(name.strip("/") in (r.run.experiment, r.run.name, str(r.run.folder)) for r in entry.runs):
                return entry
        if not (Path(name, "config.yaml").is_file() or name in {run.experiment for run in all_runs(self.root)}):
            raise UserError(
                f'there is no run "{name}" to compare with.{did_you_mean(name, known)} There are:\n{bullet_list(known)}'
            )
        other = find_run(name, self.root)
        check_comparable(self.subject, read_results(other, self.subject.split))
        raise UserError(f"{other.name} is not finished, or of an older configuration; name its folder with --other")


def _main_metrics(subject: RunResults, entries: list[Entry]) -> dict[str, str]:
    """Those of a run first, then those that only others have."""
    return subject.main_metrics | {
        name: direction
        for entry in entries
        for name, direction in entry.first.main_metrics.items()
        if name not in subject.main_metrics
    }


def _rank(entry: Entry, metric: str, direction: str) -> tuple[bool, float]:
    """Sort key: oracles last, otherwise by a metric."""
    value = entry.values.get(metric, float("inf") if direction == "min" else -float("inf"))
    return entry.first.identity.oracle, value if direction == "min" else -value
