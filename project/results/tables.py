"""A comparison as a table: on the terminal, as Markdown, as CSV; and the results of one run."""

import csv
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from project.files import atomic_path, safe_file_name
from project.formatting import format_number
from project.results.compare import Comparison, compare
from project.results.entries import Entry
from project.runs.config_diff import differences, environment
from project.runs.run_folder import RUNS, Run

N_SHOWN = 5  # metrics on a terminal, the first with its interval
NOT_SHOWN = ("epoch", "parameters")  # columns, on a terminal
LONG_NAME = 30  # characters of an experiment's name that stay in one line
NOTHING = "-"
ARROWS = {"min": " ↓", "max": " ↑", "zero": ""}  # which way is better
CSV_PARTS = ("", "_low", "_high", "_sd", "_difference", "_difference_low", "_difference_high", "_p", "_p_holm")


def format_table(
    comparison: Comparison, most: int | None = None, n_intervals: int | None = None
) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a comparison, as text for people: `most` metrics, `n_intervals` of them with intervals."""
    metrics, tested = comparison.metrics[:most], comparison.reference and comparison.metrics
    header = ["experiment", *(f"{name}{ARROWS[comparison.main_metrics[name]]}" for name in metrics)]
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
    return [*header, "epoch", "parameters", "seconds", "commit"], lines


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


def _csv_table(comparison: Comparison) -> list[list[str]]:
    """Header and lines with every number in a column of its own, for programs."""
    header = ["experiment", "marks", "runs", "seeds", "folds"]
    header += [f"{metric}{part}" for metric in comparison.metrics for part in CSV_PARTS]
    lines = [[*header, "parameters", "seconds", "commit"]]
    for entry in comparison.entries:
        seeds = dict.fromkeys(str(run.identity.seed) for run in entry.runs)
        folds = sorted({str(run.identity.fold) for run in entry.runs if run.identity.fold is not None})
        cells = [entry.name, *map(" ".join, (_marks(entry), [run.run.name for run in entry.runs], seeds, folds))]
        for metric in comparison.metrics:
            d = entry.differences.get(metric)
            values = [entry.values.get(metric), *(entry.interval(metric) or (None, None)), entry.spread(metric)]
            values += [d.value, *(d.ends or (None, None)), d.p, d.p_holm] if d else [None] * 5
            cells += ["" if value is None else f"{value:.8g}" for value in values]
        lines.append([*cells, str(entry.first.identity.parameters), *_seconds_and_commit(entry)])
    return lines


def print_table(
    run: Run, split: str = "val", reference: str | None = None, trusted: bool = False, every: bool = False
) -> None:
    """Print all runs on the data of a run, and write them to `runs/tables/`; arguments as of `compare`."""
    for comparison in compare(run, split, reference, trusted, every):
        print_comparison(comparison)


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison, and write it as Markdown and CSV to `runs/tables/`."""
    console = _wide_console()
    header, lines = format_table(comparison, N_SHOWN, 1)
    shown = [i for i, name in enumerate(header) if name not in NOT_SHOWN]
    print_lines(comparison.title, [[line[i] for i in shown] for line in (header, *lines)], console)
    path = write_tables(comparison)
    for note in [*comparison.notes, f"all columns: {path}, {path.with_suffix('.csv').name}"]:
        console.print(Text(note), style="dim")


def print_lines(title: str, lines: list[list[str]], console: Console | None = None) -> None:
    """Print a table, the header first; the first column is aligned left, the others right."""
    table = Table(title=Text(title), title_justify="left")
    short = max(len(line[0]) for line in lines) <= LONG_NAME
    for i, name in enumerate(lines[0]):
        table.add_column(Text(name), justify="right" if i else "left", overflow="fold", no_wrap=short and not i)
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    (console or _wide_console()).print(table)


def write_tables(comparison: Comparison) -> Path:
    """Write Markdown and CSV; returns the path of the first."""
    identity = comparison.identity
    fold = "_folds" if comparison.over_folds else "" if identity.fold is None else f"_fold{identity.fold}"
    path = RUNS / "tables" / f"{safe_file_name(f'{identity.dataset}_{identity.task}_{comparison.split}{fold}')}.md"
    notes = "".join(f"- {note}\n" for note in comparison.notes)
    with atomic_path(path) as temporary:
        table = markdown_table(*format_table(comparison))
        temporary.write_text(f"{comparison.title}\n\n{table}\n\n{notes}", encoding="utf-8")
    with atomic_path(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(_csv_table(comparison))
    return path


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown; the first column is aligned left, the others right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    rows = ([cell.replace("|", "\\|") for cell in line] for line in [header, rule, *lines])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def print_two_runs(comparison: Comparison) -> None:
    """Print two runs metric by metric, and what was set differently: settings, code, versions and machine."""
    console = _wide_console()
    first, second = comparison.entries
    lines = [["", first.name, second.name, "difference", "p"]]
    for metric in comparison.metrics:
        cells = [format_metric(entry, metric) for entry in (first, second)]
        lines.append([metric, *cells, *_format_difference(first, comparison, metric)])
    print_lines(comparison.title, lines, console)
    names, one, other = (first.name, second.name), first.first, second.first
    settings = differences(one.configs[-1], other.configs[-1], names) or ["All settings are the same."]
    for line in [*settings, *differences(environment(one.provenance), environment(other.provenance), names)]:
        console.print(Text(f"  {line}"))


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
    lines += [f"  {name} is not defined for {n} samples" for name, n in record.undefined.items() if "/" not in name]
    lines += [f"figures:  {run.folder / 'pictures'}", f"metrics:  {path} (all {len(record.metrics)})"]
    if split == "val" and run.config.is_file():
        lines.append("compare:  make eval")
    for line in lines:
        console.print(line, highlight=False, markup=False)
