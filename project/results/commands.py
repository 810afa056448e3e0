"""What `python -m project table`, `python -m project compare` and `python -m project report` do."""

from collections.abc import Sequence
from pathlib import Path

from project.errors import UserError, did_you_mean
from project.results.comparable import COMPARABLE_BY, COMPARABLE_OVER_FOLDS, read_all_results
from project.results.compare import compare, compare_two
from project.results.page import write_comparison_page, write_run_page
from project.results.run_results import RunResults
from project.results.tables import print_comparison, print_two_runs
from project.runs.find_runs import find_run, trained_on
from project.runs.run_folder import RUNS, Run


def print_table(run: Run, split: str = "val", trusted: bool = False, root: Path = RUNS) -> None:
    """Print the newest run of each experiment on the data of a run, and keep the table in `<root>/tables/`."""
    for comparison in compare(run, split, trusted=trusted, root=root, every=False):
        print_comparison(comparison, root)


def print_tables(split: str = "val", root: Path = RUNS) -> None:
    """The same for each task, version and fold of each dataset, and once over all folds.

    Raises:
        UserError: No run has been evaluated on the split.
    """
    shown = set[str]()
    for run in newest_runs(None, split, root, COMPARABLE_BY):
        try:
            comparisons = compare(run, split, root=root, every=False)
        except UserError as error:  # its data is not there any more, say
            print(f"\nLeft out, the table of {run.name}: {error}")
            continue
        for comparison in comparisons:
            key = str(
                [
                    getattr(comparison.identity, key)
                    for key in (COMPARABLE_OVER_FOLDS if comparison.over_folds else COMPARABLE_BY)
                ]
            )
            if key not in shown:
                print_comparison(comparison, root)
            shown.add(key)


def compare_run(
    run: Run, reference: str | None = None, split: str = "val", trusted: bool = False, root: Path = RUNS
) -> None:
    """Print how all runs on the data of a run did, and keep it in `<root>/tables/`."""
    for comparison in compare(run, split, reference, trusted=trusted, root=root):
        print_comparison(comparison, root)


def compare_dataset(
    dataset: str, reference: str | None = None, split: str = "val", trusted: bool = False, root: Path = RUNS
) -> None:
    """The same for every task on a dataset."""
    for run in newest_runs(dataset, split, root):
        compare_run(run, reference, split, trusted, root)


def compare_runs(run: Run, other: Run, split: str = "val", trusted: bool = False) -> None:
    """Print two runs side by side, and what was set differently."""
    print_two_runs(compare_two(run, other, split, trusted=trusted))


def report_run(
    run: Run, reference: str | None = None, split: str = "val", trusted: bool = False, root: Path = RUNS
) -> None:
    """Write the page of a run, and print where it is."""
    print(f"open {write_run_page(run, split, reference, trusted, root)}")


def report_dataset(
    dataset: str, reference: str | None = None, split: str = "val", trusted: bool = False, root: Path = RUNS
) -> None:
    """Write the page of all runs on a dataset, with those on the test split too, and print where it is."""
    splits = [split]
    if split == "val" and any(result.identity.dataset == dataset for result in read_all_results("test", root)[0]):
        splits.append("test")  # what has been measured there already
    found = [
        comparison
        for name in splits
        for run in newest_runs(dataset, name, root)
        for comparison in compare(run, name, reference, trusted=trusted, root=root)
    ]
    print(f"open {write_comparison_page(found, root)}")


def run_with_results(text: str | None, split: str, root: Path = RUNS, dataset: str | None = None) -> Run:
    """The run that is meant by a folder; of an experiment, or of all, the latest finished run that has results.

    A training that is running at this moment, or was stopped, does not hide the others. With `dataset`, only runs on it
    are meant.

    Raises:
        UserError: There is no such run.
    """
    run = find_run(text, root, dataset)
    if text is not None and text.strip("/") != run.experiment:
        return run
    results = [result for result in read_all_results(split, root)[0] if _is_usable(result)]
    finished = [result.run for result in results if text is None or result.run.experiment == run.experiment]
    finished = [other for other in finished if dataset is None or trained_on(other)[0] == dataset]
    return finished[-1] if finished else run


def newest_runs(
    dataset: str | None, split: str, root: Path = RUNS, same: Sequence[str] = COMPARABLE_OVER_FOLDS
) -> list[Run]:
    """The newest finished run on a dataset, or on all, of each task and version of the data; the newest one last.

    Raises:
        UserError: There is none.
    """
    results, damaged = read_all_results(split, root)
    newest, most = dict[str, RunResults](), dict[str, int]()

    def key(result: RunResults, names: Sequence[str]) -> str:
        return str([getattr(result.identity, name) for name in names])

    for result in results:
        most[key(result, COMPARABLE_BY)] = max(result.record.n_samples, most.get(key(result, COMPARABLE_BY), 0))
    whole = {id(result): result.record.n_samples == most[key(result, COMPARABLE_BY)] for result in results}
    for result in sorted(results, key=lambda result: (_is_usable(result), whole[id(result)])):
        if dataset in (None, result.identity.dataset):
            newest[key(result, same)] = result
    if not newest:
        names = sorted({str(result.identity.dataset) for result in results})
        which = "no run" if dataset is None else f'no run on "{dataset}"'
        lines = "".join(f"\nLeft out: {message}" for message in damaged)
        raise UserError(
            f"{which} has been evaluated on {split}.{did_you_mean(dataset or '', names)} There are runs on: "
            f"{', '.join(names) or 'nothing yet; train one with `make train EXP=unet_mse`'}{lines}"
        )
    return [result.run for result in results if any(result is other for other in newest.values())]


def _is_usable(result: RunResults) -> bool:
    """Whether a run is finished, no trial of a search, and has all files that a comparison reads."""
    try:
        return bool(result.configs and result.ids) and not (not result.provenance.finished or result.provenance.study)
    except UserError:
        return False
