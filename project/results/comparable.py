"""Which runs may be compared: measured on the same samples of the same data, by the same kind of task, in one way."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from project.errors import UserError, bullet_list
from project.results.run_results import RunResults, read_results
from project.runs.find_runs import all_runs
from project.runs.run_folder import RUNS, Run

# What must agree for two runs to be in one table. The hash of the data covers all that scores depend on.
COMPARABLE_BY = ("data_hash", "task", "scoring", "fold")
# The same for runs on any fold of one dataset.
COMPARABLE_OVER_FOLDS = ("all_folds_hash", "task", "scoring")
LABELS = {"data_hash": "the images", "task": "the task", "scoring": "what scores are computed with", "fold": "the fold"}


def read_all_results(split: str, root: Path = RUNS, also: Run | None = None) -> tuple[list[RunResults], list[str]]:
    """The results of all runs on a split, in the order in which they were started, and of `also`, a run elsewhere.

    Returns:
        Results of the runs that have any; a message for each run that cannot be read.
    """
    results, messages, folders = list[RunResults](), list[str](), set[Path]()
    for run in [*all_runs(root), *([also] if also else [])]:
        if (folder := run.folder.resolve()) in folders:
            continue
        folders.add(folder)
        try:
            if run.metrics_file(split).is_file():
                results.append(read_results(run, split))
        except UserError as error:
            messages.append(str(error).splitlines()[0])
    return results, messages


def comparable(
    subject: RunResults, results: Iterable[RunResults], same: Sequence[str] = COMPARABLE_BY
) -> tuple[list[RunResults], dict[str, list[str]]]:
    """The finished runs that were measured on the same samples as a run, and this run in any case.

    Trials of a search are left out: it has a table of its own. So is a run whose table of samples does not belong to
    its metrics, because it is damaged or is being written.

    Returns:
        The runs, and reason -> names of runs that were left out although they are of the same data and task.

    Raises:
        UserError: The table of samples of a finished `subject` is damaged.
    """
    candidates, left_out = list[RunResults](), dict[str, list[str]]()
    for other in results:
        is_subject = other.run.folder.resolve() == subject.run.folder.resolve()
        if _unequal(subject, other, same) or (other.provenance.study and not is_subject):
            continue
        if not (other.provenance.finished or is_subject):
            left_out.setdefault("not finished", []).append(other.run.name)
            continue
        try:
            assert other.ids is not None
        except UserError as error:
            if is_subject and other.provenance.finished:
                raise
            left_out.setdefault(str(error), []).append(other.run.name)
            continue
        candidates.append(other)
    ids = _ids_of_folds(subject, candidates)
    chosen = [other for other in candidates if other.ids == ids[other.identity.fold]]
    if elsewhere := [other.run.name for other in candidates if other not in chosen]:
        left_out["measured on other images of the split"] = elsewhere
    return chosen, left_out


def check_comparable(first: RunResults, second: RunResults) -> None:
    """Refuse runs that were not measured on the same samples in the same way; the message says what differs."""
    names = first.run.name, second.run.name
    lines = []
    for key in _unequal(first, second, COMPARABLE_BY):
        a, b = (_shorten(getattr(each.identity, key)) for each in (first, second))
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


def _ids_of_folds(subject: RunResults, candidates: list[RunResults]) -> dict[Any, list[str]]:
    """The samples of each fold: those of `subject` on its fold, the most frequent ones on others."""
    ids: dict[Any, list[str]] = {}
    for fold in {other.identity.fold for other in candidates}:
        counts = Counter([tuple(other.ids) for other in candidates if other.identity.fold == fold])
        ids[fold] = list(max(counts.items(), key=lambda item: (item[1], len(item[0])))[0])
    if any(other.run == subject.run for other in candidates):
        ids[subject.identity.fold] = subject.ids
    return ids


def _shorten(value: Any) -> str:
    text = str(value)
    return text[:10] if len(text) > 20 and " " not in text else text
