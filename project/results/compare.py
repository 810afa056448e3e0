"""All runs and baselines on one dataset and split: the one table, with intervals and tests against a reference."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from project.errors import UserError, bullet_list, did_you_mean
from project.results.comparable import (
    COMPARABLE_BY,
    COMPARABLE_OVER_FOLDS,
    check_comparable,
    comparable,
    read_all_results,
)
from project.results.entries import Entry, compute_differences, group_entries
from project.results.run_results import RunResults, build_from_run, metrics_from_rows, read_results
from project.results.statistics import Aggregate
from project.runs.records import MeasuredRun, Provenance
from project.runs.run_folder import RUNS, Run, all_runs, find_run

FEW_UNITS = 10  # below which an interval is rough


@dataclass
class Comparison:
    """All entries, best first.

    Attributes:
        entries: See `Entry`.
        reference: The entry that the others are compared with, if there is one.
        split: "val" or "test".
        leading: Metric -> direction in which it is good.
        over_folds: Whether the entries are means over folds.
        notes: What a reader has to know, one sentence each.
    """

    entries: list[Entry]
    reference: Entry | None
    split: str
    leading: dict[str, str]
    over_folds: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> list[str]:
        """Leading metrics that any entry has."""
        return [name for name in self.leading if any(name in entry.values for entry in self.entries)]

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
        """Dataset, task, split, and over what."""
        n, n_units = self.n_images, self.entries[0].n_units
        fold = self.identity.fold
        where = "all folds" if self.over_folds else "" if fold is None else f"fold {fold}"
        parts = [self.identity.dataset, self.identity.task, f"{self.split} split", where]
        grouped = f"{n} images" if n_units == n else f"{n} images in {n_units} group{'s' * (n_units > 1)}"
        return ", ".join([*filter(None, parts), grouped])


def compare(
    run: Run,
    split: str = "val",
    reference: str | None = None,
    typed: list[str] | None = None,
    trusted: bool = False,
    root: Path = RUNS,
    every: bool = True,
) -> list[Comparison]:
    """Compare all runs that were measured on the same samples of the same data as `run`.

    Args:
        run: A run folder.
        split: "val" or "test".
        reference: Experiment or run that the others are tested against; by default the best baseline.
        typed: Overrides of the configuration of `run`, from which the task is built.
        trusted: Let that configuration name any code.
        root: Folder of the runs.
        every: Also older configurations of an experiment, not only its newest (or that of `run`).

    Returns:
        One comparison and, where the data is divided into folds of which two or more were run, one over all folds.

    Raises:
        UserError: `run`, or the reference, has not been measured on the split, or the reference on other data.
    """
    own = read_results(run, split)
    results, damaged = read_all_results(split, root, run)
    with build_from_run(run, typed, trusted) as cli:
        aggregate = metrics_from_rows(cli.model)
    found = [_compare(own, results, damaged, reference, aggregate, False, root, every)]
    if own.identity.fold is not None:
        over, _ = comparable(own, results, COMPARABLE_OVER_FOLDS)
        if len({other.identity.fold for other in over}) > 1:
            found.append(_compare(own, results, damaged, reference, aggregate, True, root, every))
    return found


def compare_two(
    run: Run, other: Run, split: str = "val", typed: list[str] | None = None, trusted: bool = False
) -> Comparison:
    """Compare exactly two runs; the second is the reference.

    Raises:
        UserError: They were not measured on the same samples of the same data; the message says what differs.
    """
    first, second = read_results(run, split), read_results(other, split)
    check_comparable(first, second)
    with build_from_run(run, typed, trusted) as cli:
        aggregate = metrics_from_rows(cli.model)
    names = [first.run.experiment, second.run.experiment]
    if names[0] == names[1]:
        names = [first.run.name, second.run.name]
    entries = [Entry(name, [[each]]) for name, each in zip(names, (first, second), strict=True)]
    for entry in entries:
        entry.resample(aggregate)
    comparison = Comparison(entries, entries[1], split, _leading(first))
    # A p for each metric, which is not adjusted: there is one comparison.
    compute_differences(entries, entries[1], comparison.metrics)
    comparison.notes = _notes_on_intervals(comparison)
    return comparison


def out_of_sample(run: Run, split: str = "val", root: Path = RUNS) -> list[list[RunResults]]:
    """The run with those that differ from it in nothing but seed and fold: for each fold, its runs over seeds.

    On the test split, which is the same for all folds, only those of the fold of the run.

    Raises:
        UserError: The run has not been evaluated on the split.
    """
    own = read_results(run, split)
    over_folds = own.identity.fold is not None and split == "val"
    candidates, _ = comparable(
        own, read_all_results(split, root, run)[0], COMPARABLE_OVER_FOLDS if over_folds else COMPARABLE_BY
    )
    entries, _ = group_entries([m for m in candidates if m.run.experiment == run.experiment], own, every=False)
    return entries[0].folds


def count_test_evaluations(run: Run, root: Path = RUNS) -> list[tuple[str, int]]:
    """Number of test evaluations of each run on the data of a run, runs without any left out."""

    def data(provenance: Provenance) -> Any:
        return provenance.dataset, provenance.all_folds_hash or provenance.data_hash.get("train")

    own, found = data(run.read_provenance()), []
    for other in all_runs(root):
        try:
            provenance = other.read_provenance()
        except UserError:  # reported with the results
            continue
        if provenance.test_evaluations and data(provenance) == own:
            found.append((other.name, len(provenance.test_evaluations)))
    return found


def _compare(
    own: RunResults,
    results: list[RunResults],
    damaged: list[str],
    reference: str | None,
    aggregate: Aggregate,
    over_folds: bool,
    root: Path,
    every: bool,
) -> Comparison:
    candidates, left_out = comparable(own, results, COMPARABLE_OVER_FOLDS if over_folds else COMPARABLE_BY)
    entries, damaged_configs = group_entries(candidates, own, every)
    chosen = _named(entries, reference, own, root) if reference else None
    left_out |= damaged_configs
    if over_folds:
        entries, others = _on_the_same_folds(entries)
        left_out |= {"not run on the same folds": [entry.name for entry in others]} if others else {}
    for entry in list(entries):
        try:
            entry.resample(aggregate)
        except UserError as error:  # another run that is damaged is no reason not to compare the rest
            is_own = any(run.run == own.run for run in entry.runs) and own.provenance.finished
            if entry is chosen or is_own:
                raise
            entries.remove(entry)
            left_out.setdefault(str(error), []).append(entry.name)
    if not entries:
        raise UserError(f"{own.run.name} is being written, and nothing else can be compared; try again in a moment")
    comparison = Comparison(sorted(entries, key=_goodness), chosen, own.split, _leading(own), over_folds)
    if not reference:
        comparison.reference = next((e for e in comparison.entries if _is_baseline(e)), None)
    elif chosen not in entries:
        comparison.reference = None
    if comparison.reference:
        compute_differences(comparison.entries, comparison.reference, comparison.metrics)
    reasons = [f"Left out, {reason}: {', '.join(names)}." for reason, names in left_out.items()]
    reasons += [f"Left out: {message}" for message in damaged]
    comparison.notes = [*_notes(comparison, own, results, root), *reasons]
    return comparison


def _on_the_same_folds(entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Those that were run on as many folds as any, and the others."""
    folds = {id(entry): {run.identity.fold for run in entry.runs} for entry in entries}
    most = max(folds.values(), key=len)
    return [e for e in entries if folds[id(e)] == most], [e for e in entries if folds[id(e)] != most]


def _named(entries: list[Entry], name: str, own: RunResults, root: Path) -> Entry:
    """The entry that is meant by the name of an experiment or a run.

    Raises:
        UserError: There is none; if it is a run on other data, the message says what differs.
    """
    for entry in reversed(entries):
        if entry.name == name:
            return entry
    for entry in reversed(entries):
        if any(name.strip("/") in (r.run.experiment, r.run.name, str(r.run.folder)) for r in entry.runs):
            return entry
    known = [entry.name for entry in entries]
    if not (Path(name) / "config.yaml").is_file() and name not in {run.experiment for run in all_runs(root)}:
        raise UserError(
            f'there is no run "{name}" to compare with.{did_you_mean(name, known)} There are:\n{bullet_list(known)}'
        )
    other = find_run(name, root)
    check_comparable(own, read_results(other, own.split))
    raise UserError(f"{other.name} is not finished, or of an older configuration; name its folder with OTHER=")


def _is_baseline(entry: Entry) -> bool:
    return bool(entry.first.identity.baseline and not entry.first.identity.oracle)


def _goodness(entry: Entry) -> tuple[bool, float]:
    """Oracles last; otherwise by the leading metric."""
    name, direction = next(iter(_leading(entry.first).items()))
    value, worst = entry.values.get(name), float("inf")
    return bool(entry.first.identity.oracle), worst if value is None else value if direction == "min" else -value


def _leading(own: RunResults) -> dict[str, str]:
    return dict(own.main_metrics)


# Notes ----------------------------------------------------------------------------------------------------------------


def _notes(comparison: Comparison, own: RunResults, results: list[RunResults], root: Path) -> list[str]:
    entries, identity = comparison.entries, own.identity
    notes = _notes_on_intervals(comparison)
    for entry in entries:
        undefined = {name: n for name, n in entry.first.record.undefined.items() if "/" not in name}
        notes += [f"{entry.name}: {name} is not defined {n} times." for name, n in undefined.items()]
    if not any(map(_is_baseline, entries)):
        fold = "" if identity.fold is None else f" FOLD={identity.fold}"
        dataset = shlex.quote(identity.dataset)
        notes.append(f"No baselines yet on this data: `make baselines DATASET={dataset}{fold}`")
    if any(entry.first.identity.oracle for entry in entries):
        notes.append("An oracle is shown the target: no model can be expected to reach it.")
    if any(run.identity.dirty for entry in entries for run in entry.runs):
        notes.append("+ after a commit: changes that are not in it; they are in the run folder's changes.patch.")
    if others := _on_other_data(own, results):
        notes.append(
            f"Left out, as {identity.dataset} has been prepared anew since: {', '.join(others)}. Train them again."
        )
    if looks := count_test_evaluations(own.run, root):
        n = sum(count for _, count in looks)
        notes.append(f"Test evaluations on this data: {n}, of {len(looks)} run{'s' * (len(looks) > 1)}.")
    return notes


def _notes_on_intervals(comparison: Comparison) -> list[str]:
    """What the intervals and p values of a table are of, and what they are not."""
    entries = comparison.entries
    n_units = entries[0].n_units
    units = "image" if n_units == comparison.n_images else "group of images"
    if n_units < 2:
        return [f"One {units} says nothing about others: there are no intervals and no p."]
    units = units.replace("image", "images", 1) if units == "image" else "groups of images"
    notes = [f"In brackets: 95 % intervals by bootstrap over {n_units} {units}."]
    if n_units < FEW_UNITS:
        smallest = f"{2 ** (1 - n_units):.2g}"
        notes.append(f"With {n_units} {units} intervals are rough, and p by exchanging is at least {smallest}.")
    if several := [entry for entry in entries if entry.n_seeds > 1]:
        seeds = ", ".join(f"{entry.name} ({entry.n_seeds} seeds)" for entry in several)
        notes.append(f"Means over seeds, after ± their standard deviation: {seeds}. Intervals and p include it.")
    elif comparison.over_folds:
        notes.append("After ±: standard deviation over folds.")
    if once := [entry.name for entry in entries if entry.n_seeds == 1 and not entry.fixed]:
        notes.append(f"Of these trained weights, not of the method, as there is one seed: {', '.join(once)}.")
    if comparison.reference and len(entries) > 1:
        adjusted = "" if len(entries) == 2 else "; adjusted for the number of runs (Holm), not of metrics"
        notes.append(
            f"p: against {comparison.reference.name}, by exchanging the two in single {units} where the metric is a "
            f"mean over images, else by bootstrap; by t where there are several seeds{adjusted}."
        )
    return notes


def _on_other_data(own: RunResults, results: Iterable[RunResults]) -> list[str]:
    """Experiments that were run on another preparation of the dataset, and not on this one."""
    here, there = set[str](), set[str]()
    for other in results:
        if all(getattr(other.identity, key) == getattr(own.identity, key) for key in ("dataset", "task")):
            same = all(
                getattr(other.identity, key) == getattr(own.identity, key) for key in ("all_folds_hash", "scoring")
            )
            (here if same else there).add(other.run.experiment)
    return sorted(there - here)
