"""A comparison as a table: on the terminal, as Markdown, as CSV; and the results of one run."""

import csv
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from project.files import atomic_path, safe_file_name
from project.formatting import format_number
from project.results.compare import Comparison
from project.results.config_diff import differences, environment
from project.results.entries import Entry
from project.runs.run_folder import RUNS, Run
from project.runs.untrusted import foreign_code, read_config

N_SHOWN = 5  # metrics on a terminal, the first with its interval
NOT_SHOWN = ("epoch", "parameters")  # columns, on a terminal
NOTHING = "-"
ARROWS = {"min": " ↓", "max": " ↑", "zero": ""}  # which way is better
CSV_PARTS = ("", "_low", "_high", "_sd", "_difference", "_difference_low", "_difference_high", "_p", "_p_holm")


def format_table(
    comparison: Comparison, most: int | None = None, n_intervals: int | None = None
) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a comparison, as text for people: `most` metrics, `n_intervals` of them with intervals."""
    metrics = comparison.metrics[:most]
    header = ["experiment", *(f"{name}{ARROWS[comparison.main_metrics[name]]}" for name in metrics)]
    if comparison.reference and metrics:
        header[2:2] = [f"{metrics[0]}: difference", "p"]
    header += ["epoch", "parameters", "seconds", "commit"]
    return header, [_line(entry, comparison, metrics, n_intervals) for entry in comparison.entries]


def _line(entry: Entry, comparison: Comparison, metrics: list[str], n_intervals: int | None) -> list[str]:
    n = len(metrics) if n_intervals is None else n_intervals
    cells = [format_metric(entry, metric) for metric in metrics[:n]]
    cells += [format_number(entry.values.get(metric)) for metric in metrics[n:]]
    if comparison.reference and metrics:
        cells[1:1] = _format_difference(entry, comparison, metrics[0])
    epochs = [run.record.epoch + 1 for run in entry.runs if run.record.epoch is not None and not run.identity.baseline]
    parameters = f"{entry.first.identity.parameters:,}"
    return [entry_name(entry), *cells, ", ".join(map(str, epochs)) or NOTHING, parameters, *_seconds_and_commit(entry)]


def entry_name(entry: Entry) -> str:
    """Its name, with whether it is an oracle, or not finished."""
    marks = _marks(entry)
    return entry.name + (f" ({', '.join(marks)})" if marks else "")


def _marks(entry: Entry) -> list[str]:
    marks = {"oracle": entry.first.identity.oracle, "unfinished": not entry.first.provenance.finished}
    return [name for name, holds in marks.items() if holds]


def format_metric(entry: Entry, metric: str) -> str:
    """A metric with its interval and its spread, as "0.512 [0.48, 0.54] ± 0.01"."""
    if (value := entry.values.get(metric)) is None:
        return NOTHING
    ends, spread = entry.interval(metric), entry.spread(metric)
    text = format_number(value)
    if ends:
        text += f" [{format_number(ends[0])}, {format_number(ends[1])}]"
    return text + (f" ± {spread:.2g}" if spread is not None else "")


def _format_difference(entry: Entry, comparison: Comparison, metric: str) -> list[str]:
    """Difference from the reference with its interval, and p."""
    if entry is comparison.reference:
        return ["reference", NOTHING]
    if (difference := entry.differences.get(metric)) is None:
        return [NOTHING, NOTHING]

    def signed(value: float) -> str:
        return ("+" if value > 0 else "") + format_number(value)

    ends, p = difference.ends, difference.p_holm
    text = signed(difference.value) + (f" [{signed(ends[0])}, {signed(ends[1])}]" if ends else "")
    return [text, NOTHING if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}"]


def _seconds_and_commit(entry: Entry) -> list[str]:
    """Mean time of a run; the commits of the runs, with + for changes that are not in them."""
    seconds = [run.provenance.seconds for run in entry.runs if run.provenance.seconds is not None]
    commits = {(run.identity.commit or "none")[:7] + ("+" if run.identity.dirty else "") for run in entry.runs}
    return [
        f"{sum(seconds) / len(seconds):.0f}" if seconds else NOTHING,
        commits.pop() if len(commits) == 1 else f"{len(commits)} commits",
    ]


def _csv_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and lines with every number in a column of its own, for programs."""
    header = ["experiment", "marks", "runs", "seeds", "folds"]
    header += [f"{metric}{part}" for metric in comparison.metrics for part in CSV_PARTS]
    header += ["parameters", "seconds", "commit", "test_evaluations"]
    lines = []
    for entry in comparison.entries:
        seeds = dict.fromkeys(str(run.identity.seed) for run in entry.runs)
        folds = dict.fromkeys(str(run.identity.fold) for run in entry.runs if run.identity.fold is not None)
        names = [run.run.name for run in entry.runs]
        cells = [entry.name, *map(" ".join, (_marks(entry), names, seeds, folds))]
        for metric in comparison.metrics:
            d = entry.differences.get(metric)
            values = [entry.values.get(metric), *(entry.interval(metric) or (None, None)), entry.spread(metric)]
            values += [d.value, *(d.ends or (None, None)), d.p, d.p_holm] if d else [None] * 5
            cells += ["" if value is None else f"{value:.8g}" for value in values]
        n_evaluations = sum(len(run.provenance.test_evaluations) for run in entry.runs)
        lines.append([*cells, str(entry.first.identity.parameters), *_seconds_and_commit(entry), str(n_evaluations)])
    return header, lines


def print_comparison(comparison: Comparison, root: Path = RUNS) -> None:
    """Print a comparison, and write it as Markdown and CSV to `<root>/tables/`."""
    console = _wide_console()
    header, lines = format_table(comparison, N_SHOWN, 1)
    shown = [i for i, name in enumerate(header) if name not in NOT_SHOWN]
    _print_table(console, comparison.title, [[line[i] for i in shown] for line in (header, *lines)])
    for note in comparison.notes:
        console.print(Text(note), style="dim")
    path = write_tables(comparison, root)
    console.print(Text(f"all columns: {path}, {path.with_suffix('.csv').name}"), style="dim")


def _print_table(console: Console, title: str, lines: list[list[str]]) -> None:
    """Print a table, the header first; the first column is aligned left, the others right."""
    table = Table(title=Text(title), title_justify="left")
    for i, name in enumerate(lines[0]):
        table.add_column(Text(name), justify="right" if i else "left", overflow="fold")
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    console.print(table)


def write_tables(comparison: Comparison, root: Path = RUNS) -> Path:
    """Write Markdown and CSV; returns the path of the first."""
    identity = comparison.identity
    fold = "_folds" if comparison.over_folds else "" if identity.fold is None else f"_fold{identity.fold}"
    name = safe_file_name(f"{identity.dataset}_{identity.task}_{comparison.split}{fold}")
    path = root / "tables" / f"{name}.md"
    notes = "".join(f"- {note}\n" for note in comparison.notes)
    with atomic_path(path) as temporary:
        table = markdown_table(*format_table(comparison))
        temporary.write_text(f"{comparison.title}\n\n{table}\n\n{notes}", encoding="utf-8")
    with atomic_path(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        header, lines = _csv_table(comparison)
        csv.writer(file).writerows([header, *lines])
    return path


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown; the first column is aligned left, the others right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in [header, rule, *lines]
    )


def print_two_runs(comparison: Comparison) -> None:
    """Print two runs metric by metric, and what was set differently."""
    console = _wide_console()
    first, second = comparison.entries
    lines = [["", first.name, second.name, "difference", "p"]]
    for metric in comparison.metrics:
        cells = [format_metric(entry, metric) for entry in (first, second)]
        lines.append([metric, *cells, *_format_difference(first, comparison, metric)])
    _print_table(console, comparison.title, lines)
    for line in describe_differences(first, second):
        console.print(Text(f"  {line}"))


def describe_differences(first: Entry, second: Entry) -> list[str]:
    """Differences between two entries in settings, code, versions and machine, one line each."""
    names = first.name, second.name
    settings = differences(first.first.configs[-1], second.first.configs[-1], names)
    environments = environment(first.first.provenance), environment(second.first.provenance)
    return [*(settings or ["All settings are the same."]), *differences(*environments, names)]


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
    first = next(iter(record.run.leading))
    shown = [name for name in record.metrics if "/" not in name or name.startswith(f"{first}/")]
    lines = [f"  {name:16} {record.metrics[name]:.5g}" for name in shown]
    lines += [f"  {name} is not defined for {n} samples" for name, n in record.undefined.items() if "/" not in name]
    path = run.metrics_file(split)
    if n_others := len(record.metrics) - len(shown):
        lines.append(f"  {n_others} more of single classes or channels are in {path}")
    lines += [f"figures:  {run.folder / 'pictures'}", f"metrics:  {path}"]
    if split == "val" and run.config.is_file():
        lines.append("compare:  make eval")
        if foreign := foreign_code(read_config(run.config)):
            lines.append(f"          after `git add` of the code of {', '.join(foreign)}, or with --trust")
    for line in lines:
        console.print(line, highlight=False, markup=False)
