"""What `make compare` and `make report` do."""

from pathlib import Path

from project.errors import UserError, nearest
from project.experiment.comparison.compare import compare, compare_two
from project.experiment.report.page import write_comparison, write_run
from project.experiment.report.tables import show, show_two
from project.experiment.run import RUNS, Run, all_runs
from project.experiment.table import SAME_BUT_FOLD


def compare_run(
    run: Run, reference: str | None = None, split: str = "val", trusted: bool = False, root: Path = RUNS
) -> None:
    """Print how all runs on the data of a run did, and keep it in `<root>/tables/`."""
    for comparison in compare(run, split, reference, trusted=trusted, root=root):
        show(comparison, root)


def compare_dataset(
    dataset: str, reference: str | None = None, split: str = "val", trusted: bool = False, root: Path = RUNS
) -> None:
    """The same for every task on a dataset."""
    for run in newest_of_dataset(dataset, split, root):
        compare_run(run, reference, split, trusted, root)


def compare_runs(run: Run, other: Run, split: str = "val", trusted: bool = False) -> None:
    """Print two runs side by side, and what was set differently."""
    show_two(compare_two(run, other, split, trusted=trusted))


def report_run(
    run: Run, reference: str | None = None, split: str = "val", trusted: bool = False, root: Path = RUNS
) -> None:
    """Write the page of a run, and say where it is."""
    print(f"open {write_run(run, split, reference, trusted, root)}")


def report_dataset(
    dataset: str, reference: str | None = None, split: str = "val", trusted: bool = False, root: Path = RUNS
) -> None:
    """Write the page of all runs on a dataset, and say where it is."""
    found = [
        comparison
        for run in newest_of_dataset(dataset, split, root)
        for comparison in compare(run, split, reference, trusted=trusted, root=root)
    ]
    print(f"open {write_comparison(found, root)}")


def newest_of_dataset(dataset: str, split: str, root: Path = RUNS) -> list[Run]:
    """The newest run on a dataset, of each task and version of the data.

    Raises:
        UserError: There is none.
    """
    newest: dict[str, Run] = {}
    known = set()
    for run in all_runs(root):
        what = run.read(run.metrics_file(split).name).get("run", {})
        known.add(what.get("dataset"))
        if what.get("dataset") == dataset:
            newest[str([what.get(key) for key in SAME_BUT_FOLD])] = run
    if not newest:
        names = sorted(filter(None, known))
        raise UserError(
            f'no run on "{dataset}" has been evaluated on {split}.{nearest(dataset, names)} There are runs on: '
            f"{', '.join(names) or 'nothing yet'}"
        )
    return list(newest.values())
