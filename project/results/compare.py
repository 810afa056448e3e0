"""All runs and baselines that were measured on the same samples: the one table, with intervals and tests."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from project.errors import UserError, bullet_list
from project.results.entries import Entry, compute_differences, group_entries
from project.results.run_results import RunResults, metrics_from_rows, read_all_results, read_results, usable_results
from project.results.statistics import Aggregate
from project.runs.find_runs import find_run
from project.runs.records import MeasuredRun
from project.runs.run_folder import Run
from project.training.evaluate import rebuilt

# What must agree for two runs to be in one table. The hash of the data covers all that scores depend on.
COMPARABLE_BY = ("data_hash", "task", "scoring", "fold")
# The same for runs on any fold of one dataset.
COMPARABLE_OVER_FOLDS = ("all_folds_hash", "task", "scoring")
LABELS = {"data_hash": "the images", "task": "the task", "scoring": "what scores are computed with", "fold": "the fold"}
MAX_LENGTH = 60  # characters of a value in a message
FEW_UNITS = 10  # below which an interval is rough


@dataclass
class Comparison:
    """All entries, best first."""

    entries: list[Entry]
    reference: Entry | None  # the entry that the others are compared with
    split: str
    main_metrics: dict[str, str]  # of all entries -> "min", "max" or "zero"; entries are sorted by the first
    over_folds: bool = False  # whether entries are means over folds, without intervals and tests
    notes: list[str] = field(default_factory=list)  # what a reader has to know, one sentence each

    @property
    def metrics(self) -> list[str]:
        """Main metrics that any entry has."""
        return [name for name in self.main_metrics if any(name in entry.values for entry in self.entries)]

    @property
    def monitored(self) -> str | None:
        """The metric that chose the best checkpoint of all trained entries, None where they differ."""
        return _monitored_metric(self.entries)

    @property
    def identity(self) -> MeasuredRun:
        """Dataset, task and fold."""
        return self.entries[0].first.identity

    @property
    def title(self) -> str:
        """Dataset, task, split, fold, number of images."""
        first, fold = self.entries[0].first, self.identity.fold
        parts = [self.identity.dataset, self.identity.task, f"{self.split} split"]
        if self.over_folds:
            return ", ".join([*parts, f"{len({run.identity.fold for run in self.entries[0].runs})} folds"])
        n, n_units = len(first.ids), first.n_units
        grouped = f"{n} images" if n_units == n else f"{n} images in {n_units} group{'s' * (n_units > 1)}"
        return ", ".join([*parts, *([] if fold is None else [f"fold {fold}"]), grouped])


def compare(
    run: Run, split: str = "val", reference: str | None = None, trusted: bool = False, every: bool = True
) -> list[Comparison]:
    """Compare all runs that were measured on the same samples of the same data as `run`.

    Args:
        run: A run folder.
        split: "val" or "test".
        reference: Experiment or run that the others are tested against; by default the best baseline.
        trusted: Let the configuration of `run`, from which the task is built, name any code.
        every: Also older configurations of an experiment, not only its newest (or that of `run`).

    Returns:
        One comparison and, where the data has folds of which two or more were run, the means over all folds.
    """
    subject = read_results(run, split)
    results, damaged = read_all_results(split, run)
    with rebuilt(run, trusted=trusted) as cli:
        aggregate = metrics_from_rows(cli.model)
    left_out = dict[str, list[str]]()
    entries = group_entries(comparable(subject, results, left_out, aggregate=aggregate), subject, every, left_out)
    named = _find_reference(entries, reference, subject, left_out) if reference else None
    for entry in entries:
        entry.resample(aggregate)
    comparison = _ranked(entries, subject)
    comparison.reference = named or next((entry for entry in comparison.entries if entry.is_baseline), None)
    if comparison.reference:
        compute_differences(entries, comparison.reference, comparison.metrics)
    comparison.notes = [
        *_notes_on_intervals(comparison),
        *_notes_on_runs(comparison.entries, subject, results),
        *_notes_on_left_out(left_out),
        *(f"Left out: {message}" for message in damaged),
    ]
    over_folds = _compare_folds(subject, results, every)
    return [comparison, *([over_folds] if over_folds else [])]


def _compare_folds(subject: RunResults, results: list[RunResults], every: bool) -> Comparison | None:
    """Means over the folds; None unless two or more were run. Entries have as many folds as any."""
    left_out = dict[str, list[str]]()
    entries = group_entries(comparable(subject, results, left_out, COMPARABLE_OVER_FOLDS), subject, every, left_out)
    folds = [{run.identity.fold for run in entry.runs} for entry in entries]
    most = max(folds, key=len)
    if subject.identity.fold is None or len(most) < 2:
        return None
    if others := [entry.name for entry, of_entry in zip(entries, folds, strict=True) if of_entry != most]:
        left_out["not run on the same folds"] = others
    entries = [entry for entry, of_entry in zip(entries, folds, strict=True) if of_entry == most]
    comparison = _ranked(entries, subject, over_folds=True)
    means = "Means over folds and seeds, after ± the standard deviation over the runs."
    comparison.notes = [means, *_notes_on_left_out(left_out)]
    return comparison


def compare_two(run: Run, other: Run, split: str = "val", trusted: bool = False) -> Comparison:
    """Compare exactly two runs, the second as reference; UserError if they were not measured on the same samples."""
    first, second = read_results(run, split), read_results(other, split)
    check_comparable(first, second)
    with rebuilt(run, trusted=trusted) as cli:
        aggregate = metrics_from_rows(cli.model)
    names = [first.run.experiment, second.run.experiment]
    if names[0] == names[1]:
        names = [first.run.name, second.run.name]
    entries = [Entry(names[0], [first]), Entry(names[1], [second])]
    for entry in entries:
        entry.first.check(aggregate)
        entry.resample(aggregate)
    comparison = Comparison(entries, entries[1], split, _main_metrics(first, entries))
    compute_differences(entries, entries[1], comparison.metrics)  # one comparison: p are not adjusted
    return comparison


def out_of_sample(run: Run, split: str = "val") -> list[list[RunResults]]:
    """The run with those that differ from it in nothing but seed and fold: for each fold, its runs over seeds.

    On the test split, which is the same for all folds, only those of the fold of the run.
    """
    subject = read_results(run, split)
    over_folds = subject.identity.fold is not None and split == "val"
    same = COMPARABLE_OVER_FOLDS if over_folds else COMPARABLE_BY
    candidates = comparable(subject, read_all_results(split, run)[0], {}, same)
    of_experiment = [other for other in candidates if other.run.experiment == run.experiment]
    runs = group_entries(of_experiment, subject, False, {})[0].runs
    folds = sorted({other.identity.fold for other in runs}, key=str)
    return [[other for other in runs if other.identity.fold == fold] for fold in folds]


# Which runs may be compared -------------------------------------------------------------------------------------------


def comparable(
    subject: RunResults,
    results: Iterable[RunResults],
    left_out: dict[str, list[str]],
    same: Sequence[str] = COMPARABLE_BY,
    aggregate: Aggregate | None = None,
) -> list[RunResults]:
    """The finished runs that were measured on the same samples as a run, and this run in any case.

    Trials of a search are left out. Reason -> names of others of the same data and task are added to `left_out`: among
    them runs whose table of samples does not belong to their metrics, as it is damaged or is being written.
    """
    candidates, ids = list[RunResults](), dict[int | None, list[str]]()
    for other in results:
        is_subject = other.run == subject.run
        if _unequal(subject, other, same) or (other.provenance.study and not is_subject):
            continue
        try:
            if not (other.provenance.finished or is_subject):
                raise UserError("not finished")
            other.check(aggregate)
            candidates.append(other)
        except UserError as error:
            if is_subject:
                raise
            left_out.setdefault(str(error), []).append(other.run.name)
    # The samples of a fold: the most that any run was measured on, but those of `subject` on its fold.
    for other in sorted(candidates, key=lambda other: (other.run == subject.run, len(other.ids))):
        ids[other.identity.fold] = other.ids
    chosen = [other for other in candidates if other.ids == ids[other.identity.fold]]
    if elsewhere := [other.run.name for other in candidates if other not in chosen]:
        left_out["measured on other images of the split"] = elsewhere
    return chosen


def check_comparable(first: RunResults, second: RunResults) -> None:
    """Refuse runs that were not measured on the same samples in the same way; the message says what differs."""
    names = first.run.name, second.run.name
    lines = []
    for key in _unequal(first, second, COMPARABLE_BY):
        a, b = (str(getattr(result.identity, key))[:MAX_LENGTH] for result in (first, second))
        lines.append(f"{LABELS[key]}: {a} in {names[0]}, {b} in {names[1]}")
    if not lines and first.ids != second.ids:
        n_common = len(set(first.ids) & set(second.ids))
        lines = [f"the images: {len(first.ids)} in {names[0]}, {len(second.ids)} in {names[1]}, {n_common} in both"]
    if lines:
        raise UserError(
            f"{names[0]} and {names[1]} cannot be compared on {first.split}, as these are not the same:\n"
            f"{bullet_list(lines)}"
        )


def _unequal(first: RunResults, second: RunResults, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if getattr(first.identity, key) != getattr(second.identity, key)]


def _find_reference(entries: list[Entry], name: str, subject: RunResults, left_out: dict[str, list[str]]) -> Entry:
    """The entry that is named as the reference; UserError if there is none, or if it is on other data."""
    for entry in reversed(entries):
        names = {entry.name, *(n for r in entry.runs for n in (r.run.experiment, r.run.name, str(r.run.folder)))}
        if name.strip("/") in names:
            return entry
    other = find_run(name)
    check_comparable(subject, read_results(other, subject.split))
    reason = next((reason for reason, names in left_out.items() if other.name in names), "older configuration")
    raise UserError(f"{other.name} is left out ({reason}); name its folder with --other")


def _ranked(entries: list[Entry], subject: RunResults, over_folds: bool = False) -> Comparison:
    """A comparison of entries, the best first, oracles last."""
    main_metrics = _main_metrics(subject, entries)
    metric, direction = next(iter(main_metrics.items()))
    sign = -1 if direction == "max" else 1
    entries.sort(key=lambda e: (e.first.identity.oracle, sign * e.values.get(metric, sign * float("inf"))))
    return Comparison(entries, None, subject.split, main_metrics, over_folds)


def _main_metrics(subject: RunResults, entries: list[Entry]) -> dict[str, str]:
    """The one that all trainings monitor first, then those of a run, then those that only others have."""
    others = {name: direction for entry in entries for name, direction in entry.first.main_metrics.items()}
    metrics = subject.main_metrics | {name: d for name, d in others.items() if name not in subject.main_metrics}
    monitored = _monitored_metric(entries)
    return {monitored: metrics[monitored], **metrics} if monitored and monitored in metrics else metrics


def _monitored_metric(entries: Sequence[Entry]) -> str | None:
    """See `Comparison.monitored`."""
    monitors = {
        str((entry.first.configs[-1].get("checkpoint") or {}).get("monitor")).removeprefix("val/")
        for entry in entries
        if not entry.first.identity.baseline
    }
    return monitors.pop() if len(monitors) == 1 else None


# Notes ----------------------------------------------------------------------------------------------------------------


def _notes_on_left_out(left_out: dict[str, list[str]]) -> list[str]:
    return [f"Left out, {reason}: {', '.join(names)}." for reason, names in left_out.items()]


def _notes_on_intervals(comparison: Comparison) -> list[str]:
    """What the intervals and p values of a table are about."""
    entries, first = comparison.entries, comparison.entries[0].first
    n_units = first.n_units
    unit, units = ("image", "images") if n_units == len(first.ids) else ("group of images", "groups of images")
    if n_units < 2:
        return [f"One {unit} says nothing about others: there are no intervals and no p."]
    notes = [f"In brackets: 95 % intervals by bootstrap over {n_units} {units}."]
    if n_units < FEW_UNITS:
        notes.append(
            f"With {n_units} {units} intervals are rough; the smallest p of exchanges: {2 ** (1 - n_units):.2g}."
        )
    if several := [f"{entry.name} ({len(entry.runs)} seeds)" for entry in entries if len(entry.runs) > 1]:
        notes.append(f"Mean ± standard deviation over seeds, which intervals and p include: {', '.join(several)}.")
    trained = [entry for entry in entries if not (entry.first.identity.baseline or entry.first.identity.oracle)]
    if single := [entry.name for entry in trained if len(entry.runs) == 1]:
        notes.append(f"One seed: about these trained weights, not about the method: {', '.join(single)}.")
    if comparison.reference and len(entries) > 1:
        notes.append(
            f"p: against {comparison.reference.name}, paired permutation test over {units} for means over images, "
            "bootstrap for other metrics, Student's t with several seeds; adjusted for the number of runs (Holm)."
        )
    return notes


def _note_on_baselines(subject: RunResults) -> str:
    """How to get baselines into the table: evaluate those that were fitted on the data of a run, or fit them."""
    fitted = {
        other.run.experiment: f"`make eval RUN={other.run.quoted} SPLIT={subject.split}`"
        for other in usable_results("val")
        if other.identity.baseline
        and not other.identity.oracle
        and not _unequal(subject, other, ("all_folds_hash", "task", "scoring", "fold"))
    }
    if fitted and subject.split != "val":
        return f"No baseline has been evaluated on the {subject.split} split: {', '.join(fitted.values())}"
    fold = "" if subject.identity.fold is None else f" FOLD={subject.identity.fold}"
    return f"No baselines yet on this data: `make baselines DATASET={shlex.quote(subject.identity.dataset)}{fold}`"


def _notes_on_runs(entries: Sequence[Entry], subject: RunResults, results: list[RunResults]) -> list[str]:
    """What a reader has to know about the runs of a table, that of `subject`, among the `results` of all runs."""
    identity, notes = subject.identity, list[str]()
    for entry in entries:
        notes += [f"{entry.name}: {line}." for line in entry.first.record.describe_undefined()]
    if not any(entry.is_baseline for entry in entries) and identity.task != "pretraining":  # which has none
        notes.append(_note_on_baselines(subject))
    if any(entry.first.identity.oracle for entry in entries):
        notes.append("An oracle is shown the target: no model can be expected to reach it.")
    related = [other for other in results if not _unequal(subject, other, ("dataset", "task"))]
    here = [other for other in related if not _unequal(subject, other, ("all_folds_hash", "scoring"))]
    if others := sorted({other.run.experiment for other in related} - {other.run.experiment for other in here}):
        names = ", ".join(others)
        notes.append(f"Left out, as {identity.dataset} has been prepared again since: {names}. Train them again.")
    if n := sum(len(other.provenance.test_evaluations) for other in here):
        notes.append(f"Test evaluations on this data and task: {n}.")
    return notes
