"""What `python -m project compare` and `python -m project report` do, and the table after `eval`."""

from pathlib import Path

from project.errors import UserError, did_you_mean
from project.results.compare import COMPARABLE_OVER_FOLDS, compare, compare_two
from project.results.run_results import RunResults, read_all_results
from project.results.tables import print_comparison, print_two_runs
from project.runs.find_runs import find_run
from project.runs.run_folder import RUNS, Run


def print_table(run: Run, split: str = "val", trusted: bool = False, root: Path = RUNS) -> None:
    """Print the newest run of each experiment on the data of a run, and keep the table in `<root>/tables/`."""
    for comparison in compare(run, split, trusted=trusted, root=root, every=False):
        print_comparison(comparison, root)


def compare_run(
    run: Run, reference: str | None = None, split: str = "val", trusted: bool = False, root: Path = RUNS
) -> None:
    """The same with the older configurations of each experiment."""
    for comparison in compare(run, split, reference, trusted=trusted, root=root):
        print_comparison(comparison, root)


def compare_dataset(
    dataset: str, reference: str | None = None, split: str = "val", trusted: bool = False, root: Path = RUNS
) -> None:
    """The same for each task and version of a dataset; UserError if no run was evaluated on it."""
    results, damaged = read_all_results(split, root)
    newest = dict[str, RunResults]()
    for result in sorted(results, key=_is_usable):
        if result.identity.dataset == dataset:
            newest[str([getattr(result.identity, name) for name in COMPARABLE_OVER_FOLDS])] = result
    if not newest:
        names = sorted({result.identity.dataset for result in results})
        lines = "".join(f"\nLeft out: {message}" for message in damaged)
        raise UserError(
            f'no run on "{dataset}" has been evaluated on {split}.{did_you_mean(dataset, names)} There are runs on: '
            f"{', '.join(names) or 'nothing yet; train one with `make train EXP=unet_mse`'}{lines}"
        )
    for result in newest.values():
        compare_run(result.run, reference, split, trusted, root)


def compare_runs(run: Run, other: Run, split: str = "val", trusted: bool = False) -> None:
    """Print two runs side by side, and what was set differently."""
    print_two_runs(compare_two(run, other, split, trusted=trusted))


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
    usable = [result for result in read_all_results(split, root)[0] if _is_usable(result)]
    runs = [result.run for result in usable if dataset in (None, result.identity.dataset)]
    return next((other for other in reversed(runs) if text is None or other.experiment == run.experiment), run)


def _is_usable(result: RunResults) -> bool:
    """Whether a run is finished, no trial of a search, and has all files that a comparison reads."""
    try:
        return bool(result.configs and result.ids and result.provenance.finished and not result.provenance.study)
    except UserError:
        return False
