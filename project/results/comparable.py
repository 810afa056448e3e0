"""Which runs may be compared: measured on the same samples of the same data, by the same task, in the same way."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from project.errors import UserError, bullet_list
from project.results.run_results import RunResults, read_results
from project.runs.run_folder import RUNS, Run, all_runs

UNFINISHED = ("started", "interrupted")
# What must agree for two runs to be in one table. The hash of the data covers all that scores depend on.
COMPARABLE_BY = ("data_hash", "task", "scoring", "fold")
# The same for runs on any fold of one dataset.
COMPARABLE_OVER_FOLDS = ("all_folds_hash", "task", "scoring")
# What these are called where they do not agree.
CALLED = {
    "data_hash": "the images",
    "all_folds_hash": "the images",
    "task": "the task",
    "scoring": "what scores are computed with",
    "fold": "the fold",
}


def read_all_results(split: str, root: Path = RUNS, also: Run | None = None) -> tuple[list[RunResults], list[str]]:
    """What all runs measured on a split, in the order in which they were started, and which files are damaged.

    Args:
        split: "val" or "test".
        root: Folder of the runs.
        also: A run that may lie elsewhere.

    Returns:
        Results of the runs that have any; a message for each run that cannot be read.
    """
    found, messages, seen = list[RunResults](), list[str](), set[Path]()
    for run in [*all_runs(root), *([also] if also else [])]:
        if (folder := run.folder.resolve()) in seen:
            continue
        seen.add(folder)
        try:
            if run.metrics_file(split).is_file():
                found.append(read_results(run, split))
        except UserError as error:
            messages.append(str(error).splitlines()[0])
    return found, messages


def comparable(
    own: RunResults, results: Iterable[RunResults], same: Sequence[str] = COMPARABLE_BY
) -> tuple[list[RunResults], dict[str, list[str]]]:
    """The finished runs that were measured on the same samples as a run, and this run in any case.

    Runs of a search are not among them: it has a table of its own. Neither is a run whose table of samples does not
    belong to its metrics, because it is damaged or being written at this moment.

    Args:
        own: The run.
        results: Of all runs.
        same: `SAME`, or `SAME_BUT_FOLD` for runs on any fold.

    Returns:
        The runs, and reason -> names of runs that were left out although they are of the same data and task.

    Raises:
        UserError: The table of samples of a finished `own` is damaged.
    """
    candidates, left_out = list[RunResults](), dict[str, list[str]]()
    for other in results:
        is_own = other.run.folder.resolve() == own.run.folder.resolve()
        if any(other.what.get(key) != own.what.get(key) for key in same) or ("study" in other.facts and not is_own):
            continue
        if other.facts.get("status") in UNFINISHED and not is_own:
            left_out.setdefault("not finished", []).append(other.run.name)
            continue
        try:
            assert other.ids is not None
        except UserError as error:
            if is_own and other.facts.get("status") not in UNFINISHED:
                raise
            left_out.setdefault(str(error), []).append(other.run.name)
            continue
        candidates.append(other)
    ids = _ids_of_folds(own, candidates)
    chosen = [other for other in candidates if other.ids == ids[other.what.get("fold")]]
    if elsewhere := [other.run.name for other in candidates if other not in chosen]:
        left_out["measured on other images of the split"] = elsewhere
    return chosen, left_out


def _ids_of_folds(own: RunResults, candidates: list[RunResults]) -> dict[Any, list[str]]:
    """The samples of each fold: those of `own` on its fold, the most frequent ones on others."""
    found: dict[Any, list[str]] = {}
    for fold in {other.what.get("fold") for other in candidates}:
        counts = Counter([tuple(other.ids) for other in candidates if other.what.get("fold") == fold])
        found[fold] = list(max(counts.items(), key=lambda item: (item[1], len(item[0])))[0])
    if any(other.run == own.run for other in candidates):
        found[own.what.get("fold")] = own.ids
    return found


def check_comparable(first: RunResults, second: RunResults) -> None:
    """Refuse runs that were not measured on the same samples in the same way.

    Raises:
        UserError: The message says what differs.
    """
    unlike = [key for key in COMPARABLE_BY if first.what.get(key) != second.what.get(key)]
    lines = [
        f"{CALLED[key]}: {_short(first.what.get(key))} in {first.run.name}, "
        f"{_short(second.what.get(key))} in {second.run.name}"
        for key in unlike
    ]
    if not unlike and first.ids != second.ids:
        lines = [f"the images: {len(first.ids)} in {first.run.name}, {len(second.ids)} in {second.run.name}"]
        lines[0] += f", {len(set(first.ids) & set(second.ids))} of them in both"
    if lines:
        raise UserError(
            f"{first.run.name} and {second.run.name} cannot be compared on {first.split}, for these are not the same:\n"
            f"{bullet_list(lines)}"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text[:10] if len(text) > 20 and " " not in text else text
