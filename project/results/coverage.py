"""Coverage of intervals and prediction sets, over all images and by group."""

from typing import NamedTuple

import numpy as np

from project.formatting import format_number, format_percent
from project.metrics.conformal import COVERAGE, is_coverage
from project.results.run_results import RunResults, read_results
from project.results.tables import print_lines
from project.runs.run_folder import Run

MOST_GROUPS = 5  # printed


class CoverageTable(NamedTuple):
    """Text for people."""

    title: str
    columns: list[str]
    rows: list[list[str]]  # all images, then groups, the least covered first


def coverage_table(results: RunResults) -> CoverageTable | None:
    """Coverage and mean width of the intervals, or size of the sets, of a run; None where it has none."""
    names = [name for name in results.rows if is_coverage(name)]
    if not names or (record := results.run.read_metrics()) is None or record.calibration is None:
        return None
    c, kind = record.calibration, names[0].partition("_")[0]
    title = f"{kind}s that should contain {format_percent(COVERAGE)} of the true values, {results.split} split: "
    unit = "groups" if c.n_groups < c.n_images else "images"
    if results.split == "val":
        title += f"each of {c.n_groups} {unit} is measured without itself"
    else:
        title += f"calibrated on {c.n_images} validation images{f' of {c.n_groups} groups' * (unit == 'groups')}"
    values = np.stack([results.rows[name].numpy() for name in names], 1)
    groups = np.array(results.groups, dtype=object)
    means = {name: values[groups == name].mean(0) for name in sorted(set(results.groups))}
    if not 1 < len(means) < len(groups):
        means = {}
    ordered = sorted(means.items(), key=lambda item: item[1][0])
    rows = [_row("all", len(values), values.mean(0)), *(_row(n, results.groups.count(n), v) for n, v in ordered)]
    return CoverageTable(title[0].upper() + title[1:], ["group", "images", *names], rows)


def print_coverage(run: Run, split: str = "val") -> None:
    """Print how many of the true values the intervals or sets of a run contain, of the least covered groups too."""
    if table := coverage_table(read_results(run, split)):
        print_lines(table.title, [table.columns, *table.rows[: 1 + MOST_GROUPS]])


def _row(name: str, n: int, values: np.ndarray) -> list[str]:
    return [name, str(n), format_percent(values[0]), *(format_number(value) for value in values[1:].tolist())]
