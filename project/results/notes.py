"""Sentences below a comparison: what its intervals and p values say, and which runs are not in it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from project.errors import UserError
from project.results.entries import Entry
from project.results.run_results import RunResults
from project.runs.find_runs import all_runs
from project.runs.records import Provenance
from project.runs.run_folder import Run

FEW_UNITS = 10  # below which an interval is rough


def notes_on_intervals(
    entries: Sequence[Entry], reference: Entry | None, n_images: int, over_folds: bool = False
) -> list[str]:
    """What the intervals and p values of a table are about; each entry was measured on `n_images`."""
    n_units = entries[0].n_units
    unit, units = ("image", "images") if n_units == n_images else ("group of images", "groups of images")
    if n_units < 2:
        return [f"One {unit} says nothing about others: there are no intervals and no p."]
    notes = [f"In brackets: 95 % intervals by bootstrap over {n_units} {units}."]
    if n_units < FEW_UNITS:
        notes.append(
            f"With {n_units} {units} intervals are rough; the smallest p of exchanges is {2 ** (1 - n_units):.2g}."
        )
    if several := [entry for entry in entries if entry.n_seeds > 1]:
        seeds = ", ".join(f"{entry.name} ({entry.n_seeds} seeds)" for entry in several)
        notes.append(f"Means over seeds, after ± their standard deviation: {seeds}. Intervals and p include it.")
    elif over_folds:
        notes.append("After ±: standard deviation over folds.")
    trained = [entry for entry in entries if not (entry.first.identity.baseline or entry.first.identity.oracle)]
    if single := [entry.name for entry in trained if entry.n_seeds == 1]:
        notes.append(f"One seed: about these trained weights, not about the method: {', '.join(single)}.")
    if reference and len(entries) > 1:
        adjusted = "" if len(entries) == 2 else "; adjusted for the number of runs (Holm), not of metrics"
        notes.append(
            f"p: against {reference.name}, paired permutation test over {units} for means over images, bootstrap for "
            f"other metrics, Student's t with several seeds{adjusted}."
        )
    return notes


def notes_on_runs(entries: Sequence[Entry], subject: RunResults, results: list[RunResults], root: Path) -> list[str]:
    """What a reader has to know about the runs of a table, that of `subject`, among the `results` of all runs."""
    identity, notes = subject.identity, list[str]()
    for entry in entries:
        undefined = {name: n for name, n in entry.first.record.undefined.items() if "/" not in name}
        notes += [f"{entry.name}: {name} is not defined for {n} samples." for name, n in undefined.items()]
    if not any(entry.is_baseline for entry in entries):
        fold = "" if identity.fold is None else f" --fold {identity.fold}"
        dataset = shlex.quote(identity.dataset)
        notes.append(f"No baselines yet on this data: `python -m project baselines {dataset}{fold}`")
    if any(entry.first.identity.oracle for entry in entries):
        notes.append("An oracle is shown the target: no model can be expected to reach it.")
    if any(run.identity.dirty for entry in entries for run in entry.runs):
        notes.append("+ after a commit: with changes that are not in it; the run folder has them in changes.patch.")
    if others := _on_other_data(subject, results):
        names = ", ".join(others)
        notes.append(f"Left out, as {identity.dataset} has been prepared again since: {names}. Train them again.")
    if counts := count_test_evaluations(subject.run, root):
        n = sum(count for _, count in counts)
        notes.append(f"Test evaluations on this data: {n}, of {len(counts)} run{'s' * (len(counts) > 1)}.")
    return notes


def count_test_evaluations(run: Run, root: Path) -> list[tuple[str, int]]:
    """Number of test evaluations of each run on the data of a run, runs without any left out."""

    def data(provenance: Provenance) -> tuple[str, str | None]:
        return provenance.dataset, provenance.all_folds_hash or provenance.data_hash.get("train")

    wanted_data, counts = data(run.read_provenance()), []
    for other in all_runs(root):
        try:
            provenance = other.read_provenance()
        except UserError:  # reported with the results
            continue
        if provenance.test_evaluations and data(provenance) == wanted_data:
            counts.append((other.name, len(provenance.test_evaluations)))
    return counts


def _on_other_data(subject: RunResults, results: list[RunResults]) -> list[str]:
    """Experiments that were run on another preparation of the dataset, and not on this one."""

    def agrees(other: RunResults, *keys: str) -> bool:
        return all(getattr(other.identity, key) == getattr(subject.identity, key) for key in keys)

    related = [other for other in results if agrees(other, "dataset", "task")]
    here = {other.run.experiment for other in related if agrees(other, "all_folds_hash", "scoring")}
    return sorted({other.run.experiment for other in related} - here)
