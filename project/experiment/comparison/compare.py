"""All runs and baselines on one dataset and split, with intervals, and tests against a reference."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from project.errors import UserError, listed, nearest
from project.experiment.comparison import settings
from project.experiment.comparison.measured import Measured, aggregate_of, measured, rebuilt
from project.experiment.comparison.resampling import (
    Aggregate,
    bootstrap_p,
    column_of,
    holm,
    interval,
    sign_flip_p,
)
from project.experiment.run import RUNS, Run, all_runs, find_run
from project.experiment.table import SAME, SAME_BUT_FOLD, UNFINISHED
from project.experiment.trust import read_config

FEW_UNITS = 10  # below which an interval is rough
# What the parts of a comparison are called where they do not agree.
CALLED = {
    "data_hash": "the images",
    "all_folds_hash": "the images",
    "task": "the task",
    "scoring": "what scores are computed with",
    "fold": "the fold",
}


@dataclass(frozen=True)
class Difference:
    """A metric of one model minus that of the reference.

    Attributes:
        value: In the metric's units.
        ends: Of the 95 % interval, where there is one.
        p: Two-sided, of the two models being exchangeable; None where it cannot be said.
        p_holm: Adjusted for all models of the table.
    """

    value: float
    ends: tuple[float, float] | None
    p: float | None
    p_holm: float | None = None


@dataclass
class Entry:
    """One line of a comparison: the runs of one configuration, with any seeds, on one fold or on several.

    Attributes:
        name: Experiment, with what sets the configuration apart from newer ones of the same experiment.
        folds: The runs of each fold, over seeds; where there are no folds, of the whole split.
        replicates: Metric -> (B,) bootstrap replicates of the mean over all runs.
        differences: Metric -> difference from the reference; empty for the reference itself.
    """

    name: str
    folds: list[list[Measured]]
    replicates: dict[str, np.ndarray] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)

    @property
    def runs(self) -> list[Measured]:
        """All of them."""
        return [each for fold in self.folds for each in fold]

    @property
    def first(self) -> Measured:
        """The newest run of the first fold, which stands for them where only one can."""
        return self.folds[0][-1]

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
        """Samples or groups that are drawn."""
        return sum(int(fold[0].units.max()) + 1 for fold in self.folds)

    def interval(self, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric; None where it cannot be said."""
        values = self.replicates.get(metric)
        return None if values is None or metric not in self.values else interval(values, self.n_units)


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
    def what(self) -> dict[str, Any]:
        """Dataset, task and fold."""
        return self.entries[0].first.what

    @property
    def title(self) -> str:
        """Dataset, task, split, and over what."""
        first = self.entries[0]
        n = sum(len(fold[0].ids) for fold in first.folds)
        where = (
            "all folds" if self.over_folds else f"fold {self.what['fold']}" if self.what.get("fold") is not None else ""
        )
        parts = [self.what.get("dataset", "?"), self.what.get("task", "?"), f"{self.split} split", where]
        grouped = f"{n} images" if first.n_units == n else f"{n} images in {first.n_units} groups"
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
    """Compare all runs that were measured on the same split of the same data as `run`.

    Args:
        run: A run folder.
        split: "val" or "test".
        reference: Experiment or run that the others are tested against; by default the best baseline.
        typed: Arguments that win over the configuration of `run`, from which the task is built.
        trusted: Let that configuration name any code.
        root: Folder of the runs.
        every: Also older configurations of an experiment, not only its newest (or that of `run`).

    Returns:
        One comparison and, where the data is divided into folds of which two or more were run, one over all folds.

    Raises:
        UserError: `run`, or the reference, has not been measured on the split, or the reference on other data.
    """
    own = measured(run, split)
    with rebuilt(run, typed, trusted) as cli:
        aggregate = aggregate_of(cli.model)
    found = [_compare(_candidates(own, root, SAME), own, reference, aggregate, False, root, every)]
    if own.what.get("fold") is not None:
        over = _candidates(own, root, SAME_BUT_FOLD)
        if len({other.what["fold"] for other in over}) > 1:
            found.append(_compare(over, own, reference, aggregate, True, root, every))
    return found


def compare_two(
    run: Run, other: Run, split: str = "val", typed: list[str] | None = None, trusted: bool = False
) -> Comparison:
    """Compare exactly two runs; the second is the reference.

    Raises:
        UserError: They were not measured on the same split of the same data; the message says what differs.
    """
    first, second = measured(run, split), measured(other, split)
    check_comparable(first, second)
    with rebuilt(run, typed, trusted) as cli:
        aggregate = aggregate_of(cli.model)
    names = [first.run.experiment, second.run.experiment]
    if names[0] == names[1]:
        names = [first.run.name, second.run.name]
    entries = [Entry(name, [[each]]) for name, each in zip(names, (first, second), strict=True)]
    for entry in entries:
        entry.replicates = _replicates(entry, aggregate)
    # A p of its own for each metric: nothing is adjusted, as there is one comparison.
    return _tested(Comparison(entries, entries[1], split, _leading(first)))


def check_comparable(first: Measured, second: Measured, same: Iterable[str] = SAME) -> None:
    """Refuse runs that were not measured on the same samples in the same way.

    Raises:
        UserError: The message says what differs.
    """
    unlike = [key for key in same if first.what.get(key) != second.what.get(key)]
    if not unlike and first.ids != second.ids:
        unlike = ["data_hash"]
    if unlike:
        lines = [
            f"{CALLED[key]}: {_short(first.what.get(key))} in {first.run.name}, "
            f"{_short(second.what.get(key))} in {second.run.name}"
            for key in unlike
        ]
        raise UserError(
            f"{first.run.name} and {second.run.name} cannot be compared on {first.split}, for these are not the same:\n"
            f"{listed(lines)}"
        )


def out_of_sample(run: Run, split: str = "val", root: Path = RUNS) -> list[list[Measured]]:
    """The run with those that differ from it in nothing but seed and fold: for each fold, its runs over seeds.

    On the test split, which is the same for all folds, only those of the fold of the run.

    Raises:
        UserError: The run has not been evaluated on the split.
    """
    own = measured(run, split)
    whole = own.what.get("fold") is not None and split == "val"
    candidates = [
        m for m in _candidates(own, root, SAME_BUT_FOLD if whole else SAME) if m.run.experiment == run.experiment
    ]
    (entry,) = _entries(candidates, own, every=False)
    return entry.folds


def looks_at_test(run: Run, root: Path = RUNS) -> list[tuple[str, int]]:
    """How often each run on the data of a run was evaluated on the test split, runs without a look left out."""
    facts = run.read("provenance.json")
    found = []
    for other in all_runs(root):
        theirs = other.read("provenance.json")
        if theirs.get("test_evaluations") and _data(theirs) == _data(facts):
            found.append((other.name, len(theirs["test_evaluations"])))
    return found


def _data(facts: dict[str, Any]) -> Any:
    return facts.get("dataset"), facts.get("all_folds_hash") or (facts.get("data_hash") or {}).get("train")


# Which runs stand together --------------------------------------------------------------------------------------------


def _candidates(own: Measured, root: Path, same: Iterable[str]) -> list[Measured]:
    """Finished runs that were measured on the same samples, oldest first, and the run itself wherever it lies."""
    found, seen = [], set()
    for run in [*all_runs(root), own.run]:
        content = run.read(run.metrics_file(own.split).name)
        place = run.folder.resolve()
        what = content.get("run", {})
        if place in seen or not what or any(what.get(k) != own.what.get(k) for k in same):
            continue
        facts = run.read("provenance.json")
        trial = facts.get("status") in UNFINISHED or "study" in facts  # of a search, which has a table of its own
        if trial and place != own.run.folder.resolve():
            continue
        seen.add(place)
        found.append(Measured(run, own.split, content, facts))
    return found


def _compare(
    candidates: list[Measured],
    own: Measured,
    reference: str | None,
    aggregate: Aggregate,
    over_folds: bool,
    root: Path,
    every: bool,
) -> Comparison:
    entries = _entries(candidates, own, every)
    notes = []
    chosen = _named(entries, reference, own, root) if reference else None
    if over_folds:
        entries, left_out = _on_the_same_folds(entries, own)
        notes += [f"Left out, as they were not run on the same folds: {', '.join(left_out)}."] if left_out else []
    for entry in list(entries):
        try:
            entry.replicates = _replicates(entry, aggregate)
        except UserError as error:  # another run that is damaged is no reason not to compare the rest
            if entry is chosen or any(each.run == own.run for each in entry.runs):
                raise
            entries.remove(entry)
            notes.append(f"Left out: {error}")
    comparison = Comparison(sorted(entries, key=_goodness), chosen, own.split, _leading(own), over_folds, notes)
    if not reference:
        comparison.reference = _best_baseline(comparison.entries)
    elif chosen not in entries:
        comparison.reference = None
    comparison.notes += _notes(comparison, own, root)
    return _tested(comparison)


def _entries(candidates: list[Measured], own: Measured, every: bool) -> list[Entry]:
    """Runs that differ in nothing but seed and fold together; of equal ones the newest counts."""
    apart: dict[tuple[str, str], dict[tuple[Any, Any], Measured]] = {}
    configs = {}
    for each in candidates:
        config = read_config(each.run.config)
        key = each.run.experiment, settings.same_but_seed(config)
        newest = apart.pop(key, {})  # the configuration that was run last comes last
        newest[each.what.get("fold"), each.what.get("seed")] = each
        apart[key], configs[key] = newest, config
    own_key = own.run.experiment, settings.same_but_seed(read_config(own.run.config))
    apart[own_key][own.what.get("fold"), own.what.get("seed")] = own
    leading = {key[0]: key for key in apart} | {own_key[0]: own_key}
    entries = []
    for key, members in apart.items():
        if not every and leading[key[0]] != key:
            continue
        folds: dict[Any, list[Measured]] = {}
        for (fold, _), each in sorted(members.items(), key=lambda item: str(item[0])):
            folds.setdefault(fold, []).append(each)
        name = key[0]
        if leading[name] != key:
            short = settings.in_short(configs[leading[name]], configs[key])
            name += f" ({short or next(iter(folds.values()))[-1].run.folder.name})"
        entries.append(Entry(name, list(folds.values())))
    return entries


def _on_the_same_folds(entries: list[Entry], own: Measured) -> tuple[list[Entry], list[str]]:
    """Those that were run on as many folds as any, and the names of the others."""
    numbers = [{each.what["fold"] for each in entry.runs} for entry in entries]
    most = max(numbers, key=len)
    return (
        [entry for entry, folds in zip(entries, numbers, strict=True) if folds == most],
        [entry.name for entry, folds in zip(entries, numbers, strict=True) if folds != most],
    )


def _named(entries: list[Entry], name: str, own: Measured, root: Path) -> Entry:
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
        raise UserError(f'there is no run "{name}" to compare with.{nearest(name, known)} There are:\n{listed(known)}')
    other = find_run(name, root)
    check_comparable(own, measured(other, own.split))
    raise UserError(f"{other.name} is not finished, or of an older configuration; name its folder with OTHER=")


def _best_baseline(entries: list[Entry]) -> Entry | None:
    baselines = [e for e in entries if e.first.what.get("baseline") and not e.first.what.get("oracle")]
    return baselines[0] if baselines else None


def _goodness(entry: Entry) -> tuple[bool, float]:
    """Oracles last; otherwise by the leading metric."""
    name, direction = next(iter(_leading(entry.first).items()))
    value, worst = entry.values.get(name), float("inf")
    return bool(entry.first.what.get("oracle")), worst if value is None else value if direction == "min" else -value


def _leading(each: Measured) -> dict[str, str]:
    return dict(each.what.get("leading") or {"loss": "min"})


# Numbers --------------------------------------------------------------------------------------------------------------


def _mean_metrics(runs: list[Measured]) -> dict[str, float]:
    names = [name for name in runs[0].metrics if all(name in each.metrics for each in runs)]
    return {name: statistics.fmean(each.metrics[name] for each in runs) for name in names}


def _replicates(entry: Entry, aggregate: Aggregate) -> dict[str, np.ndarray]:
    """Of the mean over seeds and folds: resamples of a fold are the same for all seeds, those of folds independent."""
    folds = [_mean_of([each.replicates(aggregate) for each in fold]) for fold in entry.folds]
    return _mean_of(folds)


def _mean_of(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = [name for name in parts[0] if all(name in part for part in parts)]
    found = {}
    for name in names:
        n = min(len(part[name]) for part in parts)
        found[name] = np.mean([part[name][:n] for part in parts], axis=0)
    return found


def _tested(comparison: Comparison) -> Comparison:
    """The comparison with differences from its reference."""
    reference = comparison.reference
    if reference is None:
        return comparison
    others = [entry for entry in comparison.entries if entry is not reference]
    for metric in comparison.metrics:
        found = [(entry, d) for entry in others if (d := _difference(entry, reference, metric))]
        adjusted = iter(holm([d.p for _, d in found if d.p is not None]))
        for entry, d in found:
            p_holm = None if d.p is None else next(adjusted)
            entry.differences[metric] = Difference(d.value, d.ends, d.p, p_holm)
    return comparison


def _difference(entry: Entry, reference: Entry, metric: str) -> Difference | None:
    if metric not in entry.values or metric not in reference.values:
        return None
    value = entry.values[metric] - reference.values[metric]
    a, b = entry.replicates.get(metric), reference.replicates.get(metric)
    if a is None or b is None:
        return Difference(value, None, None)
    n = min(len(a), len(b))
    apart = a[:n] - b[:n]
    parts = [_contributions(each, metric) for each in (entry, reference)]
    p = bootstrap_p(apart, entry.n_units)
    if all(part is not None for part in parts):
        own, its = (np.concatenate(part) for part in parts if part is not None)
        if np.array_equal(np.isnan(own), np.isnan(its)):  # else an exchange would change what is averaged over
            units, start = [], 0
            for fold in entry.folds:
                units.append(fold[0].units + start)
                start += int(fold[0].units.max()) + 1
            p = sign_flip_p(np.bincount(np.concatenate(units), weights=np.nan_to_num(own - its)))
    return Difference(value, interval(apart, entry.n_units), p)


def _contributions(entry: Entry, metric: str) -> list[np.ndarray] | None:
    """What each sample adds to a metric that is a mean over samples, (N,) per fold; None if it is not."""
    found = []
    for fold in entry.folds:
        columns = [column_of(metric, each.metrics[metric], each.rows) for each in fold]
        if any(column is None for column in columns):
            return None
        mean = np.mean([each.rows[c].numpy() for each, c in zip(fold, columns, strict=True) if c], axis=0)
        found.append(mean / max(np.count_nonzero(~np.isnan(mean)), 1) / len(entry.folds))
    return found


def _notes(comparison: Comparison, own: Measured, root: Path) -> list[str]:
    entries, what = comparison.entries, own.what
    notes = []
    n_units, n = entries[0].n_units, sum(len(fold[0].ids) for fold in entries[0].folds)
    drawn = "images" if n_units == n else "groups of images"
    notes.append(f"In brackets: 95 % intervals by bootstrap over {n_units} {drawn}.")
    if n_units < FEW_UNITS:
        notes.append(
            f"With {n_units} {drawn} intervals are rough, and p by exchanging is at least {2 ** (1 - n_units):.2g}."
        )
    several = [entry for entry in entries if max(len(fold) for fold in entry.folds) > 1]
    if several:
        seeds = ", ".join(f"{entry.name} ({max(map(len, entry.folds))} seeds)" for entry in several)
        notes.append(f"Means over seeds: {seeds}; after ± their standard deviation.")
    elif comparison.over_folds:
        notes.append("After ±: standard deviation over folds.")
    if comparison.reference:
        notes.append(
            f"p: against {comparison.reference.name}, by exchanging the two in single {drawn} where the metric is a "
            "mean over images, else by bootstrap; adjusted for the number of runs (Holm)."
        )
    elif _best_baseline(entries) is None:
        fold = "" if what.get("fold") is None else f" FOLD={what['fold']}"
        notes.append(f"No baselines yet on this data: `make baselines DATASET={what.get('dataset')}{fold}`")
    if any(entry.first.what.get("oracle") for entry in entries):
        notes.append("An oracle is shown the target: no model can be expected to reach it.")
    if others := _on_other_data(own, root):
        notes.append(
            f"Left out, as {what.get('dataset')} has been prepared anew since: {', '.join(others)}. Train them again."
        )
    if looks := looks_at_test(own.run, root):
        total = sum(count for _, count in looks)
        often = f"{total} time{'s' * (total > 1)}"
        notes.append(f"The test split of this data was looked at {often}, by {len(looks)} run{'s' * (len(looks) > 1)}.")
    return notes


def _on_other_data(own: Measured, root: Path) -> list[str]:
    """Experiments that were run on another preparation of the dataset, and not on this one."""
    here, there = set[str](), set[str]()
    for run in all_runs(root):
        what = run.read(run.metrics_file(own.split).name).get("run", {})
        if what.get("dataset") == own.what.get("dataset") and what.get("task") == own.what.get("task"):
            same = all(what.get(key) == own.what.get(key) for key in ("all_folds_hash", "scoring"))
            (here if same else there).add(run.experiment)
    return sorted(there - here)


def _short(value: Any) -> str:
    text = str(value)
    return text[:10] if len(text) > 20 and " " not in text else text
