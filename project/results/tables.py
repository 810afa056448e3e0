"""A comparison as a table: on the terminal, as Markdown, as CSV; results of one run; coverage of intervals and sets."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.table
from rich.console import Console
from rich.text import Text

from project.files import safe_file_name, write_table, write_text
from project.formatting import format_number, format_percent
from project.metrics.conformal import COVERAGE, is_coverage
from project.results.compare import Comparison, compare
from project.results.entries import Entry
from project.results.run_results import RunResults, read_results
from project.runs.config_diff import differences, environment
from project.runs.run_folder import RUNS, Run

N_SHOWN, MOST_GROUPS = 5, 5  # metrics (the first with its interval), and groups, on a terminal
NOT_SHOWN = ("epoch", "parameters")  # columns, on a terminal
LONG_NAME = 24  # characters of an experiment's name that stay in one line
PARTS = re.compile(r" (?=[\[(±])|(?<=:) |(?<=/)")  # where a cell may become several lines
NOTHING = "-"
ARROWS = {"min": " ↓", "max": " ↑", "zero": ""}  # which way is better
CSV_PARTS = ("", "_low", "_high", "_sd", "_difference", "_difference_low", "_difference_high", "_p", "_p_holm")


class Table(NamedTuple):
    """A table of text for people; the first column is aligned left, the others right."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table without its title."""
        rule = ["---"] + ["---:"] * (len(self.columns) - 1)
        rows = ([cell.replace("|", "\\|") for cell in row] for row in [self.columns, rule, *self.rows])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def print(self) -> None:
        """Print it on the terminal."""
        console = _wide_console()
        unlimited = console.options.update_width(10_000)
        n, table = len(self.columns), self._rich(len(self.columns))
        while n > 1 and console.measure(table, options=unlimited).maximum > console.width:
            table, n = self._rich(n, in_lines=True), n - 1
        console.print(table)
        if left_out := self.columns[len(table.columns) :]:
            console.print(Text(f"Not shown in {console.width} columns: {', '.join(left_out)}"), style="dim")

    def _rich(self, n: int, in_lines: bool = False) -> rich.table.Table:
        """The first `n` columns, whose numbers are never cut; `in_lines`: intervals have lines of their own."""
        table = rich.table.Table(title=Text(self.title), title_justify="left")
        header, *rows = (
            [row[0], *(PARTS.sub("\n", cell) if in_lines else cell for cell in row[1:n])]
            for row in [self.columns, *self.rows]
        )
        table.add_column(Text(header[0]), overflow="fold", max_width=LONG_NAME)
        for name in header[1:]:
            table.add_column(Text(name), justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        return table


def format_table(comparison: Comparison, most: int | None = None, n_intervals: int | None = None) -> Table:
    """A comparison as text for people: `most` metrics, `n_intervals` of them with intervals."""
    metrics, tested = comparison.metrics[:most], comparison.reference and comparison.metrics
    marks = {comparison.monitored: " (monitored)"}
    header = [f"{name}{ARROWS[comparison.main_metrics[name]]}{marks.get(name, '')}" for name in metrics]
    header.insert(0, "experiment")
    header[2:2] = [f"{metrics[0]}: difference", "p"] if tested else []
    lines = []
    for entry in comparison.entries:
        cells = [
            format_metric(entry, metric, n_intervals is None or i < n_intervals) for i, metric in enumerate(metrics)
        ]
        cells[1:1] = _format_difference(entry, comparison, metrics[0]) if tested else []
        epochs = [run.record.epoch for run in entry.runs if not run.identity.baseline]
        epoch = ", ".join(str(epoch + 1) for epoch in epochs if epoch is not None) or NOTHING
        name = " ".join([entry.name, *(f"({mark})" for mark in _marks(entry))])
        facts = [epoch, f"{entry.first.identity.parameters:,}", *_seconds_and_commit(entry)]
        lines.append([name, *cells, *facts])
    return Table(comparison.title, [*header, "epoch", "parameters", "seconds", "commit"], lines)


def _marks(entry: Entry) -> list[str]:
    """Whether it is an oracle, or not finished."""
    marks = {"oracle": entry.first.identity.oracle, "unfinished": not entry.first.provenance.finished}
    return [name for name, holds in marks.items() if holds]


def format_metric(entry: Entry, metric: str, with_interval: bool = True) -> str:
    """A metric with its interval and its spread, as "0.512 [0.48, 0.54] ± 0.01"."""
    text = format_number(entry.values.get(metric))
    if with_interval and (ends := entry.interval(metric)):
        text += f" [{format_number(ends[0])}, {format_number(ends[1])}]"
    spread = entry.spread(metric) if with_interval else None
    return text if spread is None else f"{text} ± {spread:.2g}"


def _format_difference(entry: Entry, comparison: Comparison, metric: str) -> list[str]:
    """Difference from the reference with its interval, and p."""
    if entry is comparison.reference:
        return ["reference", NOTHING]
    if (difference := entry.differences.get(metric)) is None:
        return [NOTHING, NOTHING]
    value, *ends = (f"{'+' * (x > 0)}{format_number(x)}" for x in (difference.value, *(difference.ends or ())))
    p = difference.p_holm
    shown = NOTHING if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}"
    return [f"{value} [{', '.join(ends)}]" if ends else value, shown]


def _seconds_and_commit(entry: Entry) -> list[str]:
    """Mean time of a run; the commits of the runs, with + for changes that are not in them."""
    seconds = [run.provenance.seconds for run in entry.runs if run.provenance.seconds is not None]
    commits = {(run.identity.commit or "none")[:7] + ("+" if run.identity.dirty else "") for run in entry.runs}
    time = f"{sum(seconds) / len(seconds):.0f}" if seconds else NOTHING
    return [time, commits.pop() if len(commits) == 1 else f"{len(commits)} commits"]


def _csv_row(entry: Entry, metrics: list[str]) -> dict[str, str]:
    """A line with every number in a column of its own, for programs."""
    folds = {str(run.identity.fold) for run in entry.runs if run.identity.fold is not None}
    texts = {
        "marks": _marks(entry),
        "runs": [run.run.name for run in entry.runs],
        "seeds": dict.fromkeys(str(run.identity.seed) for run in entry.runs),
        "folds": sorted(folds),
    }
    row = {"experiment": entry.name} | {name: " ".join(words) for name, words in texts.items()}
    for metric in metrics:
        d = entry.differences.get(metric)
        values = [entry.values.get(metric), *(entry.interval(metric) or (None, None)), entry.spread(metric)]
        values += [d.value, *(d.ends or (None, None)), d.p, d.p_holm] if d else [None] * 5
        numbers = ("" if value is None else f"{value:.8g}" for value in values)
        row |= {f"{metric}{part}": number for part, number in zip(CSV_PARTS, numbers, strict=True)}
    facts = (str(entry.first.identity.parameters), *_seconds_and_commit(entry))
    return row | dict(zip(("parameters", "seconds", "commit"), facts, strict=True))


def print_table(
    run: Run, split: str = "val", reference: str | None = None, trusted: bool = False, every: bool = False
) -> None:
    """Print all runs on the data of a run, and write them to `runs/tables/`; arguments as of `compare`."""
    for comparison in compare(run, split, reference, trusted, every):
        title, columns, rows = format_table(comparison, N_SHOWN, 1)
        shown = [i for i, name in enumerate(columns) if name not in NOT_SHOWN]
        Table(title, [columns[i] for i in shown], [[row[i] for i in shown] for row in rows]).print()
        path = _write_tables(comparison)
        for note in [*comparison.notes, f"all columns: {path}, {path.with_suffix('.csv').name}"]:
            _wide_console().print(Text(note), style="dim")


def _write_tables(comparison: Comparison) -> Path:
    identity = comparison.identity
    fold = "_folds" if comparison.over_folds else "" if identity.fold is None else f"_fold{identity.fold}"
    path = RUNS / "tables" / f"{safe_file_name(f'{identity.dataset}_{identity.task}_{comparison.split}{fold}')}.md"
    notes = "".join(f"- {note}\n" for note in comparison.notes)
    write_text(path, f"{comparison.title}\n\n{format_table(comparison).markdown()}\n\n{notes}")
    write_table(path.with_suffix(".csv"), [_csv_row(entry, comparison.metrics) for entry in comparison.entries])
    return path


def print_two_runs(comparison: Comparison) -> None:
    """Print two runs metric by metric, and what was set differently: settings, code, versions and machine."""
    first, second = comparison.entries
    rows = []
    for metric in comparison.metrics:
        cells = [format_metric(entry, metric) for entry in (first, second)]
        rows.append([metric, *cells, *_format_difference(first, comparison, metric)])
    Table(comparison.title, ["", first.name, second.name, "difference", "p"], rows).print()
    names, one, other = (first.name, second.name), first.first, second.first
    settings = differences(one.configs[-1], other.configs[-1], names) or ["All settings are the same."]
    for line in [*settings, *differences(environment(one.provenance), environment(other.provenance), names)]:
        _wide_console().print(Text(f"  {line}"))


def _wide_console() -> Console:
    """The terminal, or 120 columns if the output is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 120)


def print_summary(run: Run, split: str = "val") -> None:
    """Print the metrics of one run, and where the files are."""
    console = Console()
    if (record := run.read_metrics(split)) is None:
        return
    epoch = "" if record.epoch is None or record.run.baseline else f" (epoch {record.epoch + 1}, the best)"
    images = "validation" if split == "val" else split
    console.print(f"\n[bold]{record.run.experiment}[/bold] on {record.n_samples} {images} images{epoch}:")
    first, path = next(iter(record.run.leading)), run.metrics_file(split)
    shown = [name for name in record.metrics if "/" not in name or name.startswith(f"{first}/")]
    lines = [f"  {name:16} {record.metrics[name]:.5g}" for name in shown]
    lines += [f"  {line}" for line in record.describe_undefined()]
    lines += [f"figures:  {run.folder / 'pictures'}", f"metrics:  {path} (all {len(record.metrics)})"]
    if split == "val" and run.config.is_file():
        lines.append("compare:  make eval")
    for line in lines:
        console.print(line, highlight=False, markup=False)


def coverage_table(results: RunResults) -> Table | None:
    """Coverage and mean width of the intervals, or size of the sets, of a run; None where it has none.

    The rows are all images, then the groups, the least covered first.
    """
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
    by_group = {name: values[groups == name] for name in sorted(set(results.groups))}
    ordered = sorted(by_group.items(), key=lambda item: item[1][:, 0].mean()) if 1 < len(by_group) < len(groups) else []
    rows = []
    for name, part in [("all", values), *ordered]:
        covered, *others = part.mean(0).tolist()
        rows.append([name, str(len(part)), format_percent(covered), *map(format_number, others)])
    return Table(title[0].upper() + title[1:], ["group", "images", *names], rows)


def print_coverage(run: Run, split: str = "val") -> None:
    """Print how many of the true values the intervals or sets of a run contain, of the least covered groups too."""
    if table := coverage_table(read_results(run, split)):
        table._replace(rows=table.rows[: 1 + MOST_GROUPS]).print()
