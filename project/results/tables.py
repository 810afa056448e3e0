"""A comparison as a table: on the terminal, as Markdown, as CSV; and the results of one run."""

import csv
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from project.files import atomic_path, safe_file_name
from project.formatting import format_number
from project.results import config_diff as settings
from project.results.compare import Comparison
from project.results.entries import Entry
from project.runs.run_folder import RUNS, Run

N_SHOWN = 5  # metrics on a terminal, the first with its interval
NOTHING = "-"
ARROWS = {"min": " ↓", "max": " ↑", "zero": ""}  # which way is better


def format_table(
    comparison: Comparison, most: int | None = None, n_intervals: int | None = None
) -> tuple[list[str], list[list[str]]]:
    """Header and lines, as text for people.

    Args:
        comparison: What is shown.
        most: Metrics that are shown; all of them by default.
        n_intervals: Metrics that are shown with intervals; all of them by default.
    """
    metrics = comparison.metrics[:most]
    header = ["experiment", *(f"{name}{ARROWS[comparison.leading[name]]}" for name in metrics)]
    if comparison.reference and metrics:
        header[2:2] = [f"{metrics[0]}: difference", "p"]
    header += ["epoch", "parameters", "seconds", "commit"]
    return header, [_line(entry, comparison, metrics, n_intervals) for entry in comparison.entries]


def _line(entry: Entry, comparison: Comparison, metrics: list[str], n_intervals: int | None) -> list[str]:
    first = len(metrics) if n_intervals is None else n_intervals
    cells = [format_metric(entry, metric) for metric in metrics[:first]]
    cells += [format_number(entry.values.get(metric)) for metric in metrics[first:]]
    if comparison.reference and metrics:
        cells[1:1] = _told_difference(entry, comparison, metrics[0])
    parameters = f"{entry.first.identity.parameters:,}"
    return [entry_name(entry), *cells, _epoch(entry), parameters, seconds(entry), commit(entry)]


def _epoch(entry: Entry) -> str:
    """The epochs of the best checkpoints, from 1."""
    epochs = [run.record.epoch for run in entry.runs if not run.identity.baseline]
    return ", ".join(str(epoch + 1) for epoch in epochs if isinstance(epoch, int)) or NOTHING


def entry_name(entry: Entry) -> str:
    """Its name, with what has to be known about it."""
    marks = marks_of(entry)
    return entry.name + (f" ({', '.join(marks)})" if marks else "")


def marks_of(entry: Entry) -> list[str]:
    """Whether it is an oracle, or not finished."""
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


def _told_difference(entry: Entry, comparison: Comparison, metric: str) -> list[str]:
    if entry is comparison.reference:
        return ["reference", NOTHING]
    if (difference := entry.differences.get(metric)) is None:
        return [NOTHING, NOTHING]
    ends = difference.ends
    text = _signed(difference.value) + (f" [{_signed(ends[0])}, {_signed(ends[1])}]" if ends else "")
    return [text, format_p(difference.p_holm)]


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + format_number(value)


def format_p(p: float | None) -> str:
    """A p value without digits that mean nothing."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def seconds(entry: Entry) -> str:
    """Time that a run took, on average."""
    taken = [each.provenance.seconds for each in entry.runs if each.provenance.seconds is not None]
    return f"{sum(taken) / len(taken):.0f}" if taken else NOTHING


def commit(entry: Entry) -> str:
    """The commits of the runs; + for changes that are not in them."""
    found = [(each.identity.commit or "none")[:7] + ("+" if each.identity.dirty else "") for each in entry.runs]
    distinct = list(dict.fromkeys(found))
    return distinct[0] if len(distinct) == 1 else f"{len(distinct)} commits"


def numbers(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and lines with every number in a column of its own, for programs."""
    parts = ("", "_low", "_high", "_sd", "_difference", "_difference_low", "_difference_high", "_p", "_p_holm")
    header = [
        "experiment",
        "marks",
        "runs",
        "seeds",
        "folds",
        *(f"{m}{part}" for m in comparison.metrics for part in parts),
    ]
    header += ["parameters", "seconds", "commit", "test_evaluations"]
    lines = []
    for entry in comparison.entries:
        seeds = dict.fromkeys(str(each.identity.seed) for each in entry.runs)
        folds = dict.fromkeys(str(each.identity.fold) for each in entry.runs if each.identity.fold is not None)
        runs = " ".join(each.run.name for each in entry.runs)
        cells = [entry.name, " ".join(marks_of(entry)), runs, " ".join(seeds), " ".join(folds)]
        for metric in comparison.metrics:
            difference = entry.differences.get(metric)
            own = [entry.values.get(metric), *(entry.interval(metric) or (None, None)), entry.spread(metric)]
            own += [difference.value, *(difference.ends or (None, None))] if difference else [None] * 3
            own += [difference.p, difference.p_holm] if difference else [None] * 2
            cells += ["" if value is None else f"{value:.8g}" for value in own]
        looks = sum(len(each.provenance.test_evaluations) for each in entry.runs)
        lines.append([*cells, str(entry.first.identity.parameters), seconds(entry), commit(entry), str(looks)])
    return header, lines


def print_comparison(comparison: Comparison, root: Path = RUNS, console: Console | None = None) -> Path:
    """Print a comparison, and keep it as Markdown and CSV in `<root>/tables/`; returns the path of the first."""
    console = console or console_of_width()
    header, lines = format_table(comparison, N_SHOWN, 1)
    hidden = {header.index("epoch"), header.index("parameters")}
    printed = Table(title=Text(comparison.title), title_justify="left")
    for i, name in enumerate(header):
        if i not in hidden:
            printed.add_column(Text(name), justify="left" if i == 0 else "right", overflow="fold")
    for line in lines:
        printed.add_row(*[Text(cell) for i, cell in enumerate(line) if i not in hidden])
    console.print(printed)
    for note in comparison.notes:
        console.print(Text(note), style="dim")
    path = write_tables(comparison, root)
    console.print(Text(f"all columns: {path}, {path.with_suffix('.csv').name}"), style="dim")
    return path


def write_tables(comparison: Comparison, root: Path = RUNS) -> Path:
    """Write Markdown and CSV; returns the path of the first."""
    identity = comparison.identity
    fold = "_folds" if comparison.over_folds else "" if identity.fold is None else f"_fold{identity.fold}"
    name = safe_file_name(f"{identity.dataset}_{identity.task}_{comparison.split}{fold}")
    path = root / "tables" / f"{name}.md"
    header, lines = format_table(comparison)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    rows = "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in [header, rule, *lines]
    )
    notes = "".join(f"- {note}\n" for note in comparison.notes)
    with atomic_path(path) as temporary:
        temporary.write_text(f"{comparison.title}\n\n{rows}\n\n{notes}", encoding="utf-8")
    with atomic_path(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        header, lines = numbers(comparison)
        csv.writer(file).writerows([header, *lines])
    return path


def print_two_runs(comparison: Comparison, console: Console | None = None) -> None:
    """Print two runs metric by metric, and what was set differently."""
    console = console or console_of_width()
    first, second = comparison.entries
    printed = Table(title=Text(comparison.title), title_justify="left")
    for name in ("", first.name, second.name, "difference", "p"):
        printed.add_column(Text(name), justify="right" if name else "left")
    for metric in comparison.metrics:
        cells = [
            format_metric(first, metric),
            format_metric(second, metric),
            *_told_difference(first, comparison, metric),
        ]
        printed.add_row(*map(Text, [metric, *cells]))
    console.print(printed)
    for line in describe_differences(first, second):
        console.print(Text(f"  {line}"))


def describe_differences(first: Entry, second: Entry) -> list[str]:
    """Settings, code, versions and machine of two entries, in plain words."""
    names = first.name, second.name
    configs = [each.first.configs[-1] for each in (first, second)]
    told_settings = settings.differences(configs[0], configs[1], names)
    others = settings.environment_differences(first.first.provenance, second.first.provenance, names)
    return [*(told_settings or ["All settings are the same."]), *others]


def console_of_width() -> Console:
    """The terminal; wide enough for a table where there is none."""
    return Console(width=None if sys.stdout.isatty() else 120)


def print_summary(run: Run, split: str = "val", console: Console | None = None) -> None:
    """Print what was measured, and where the files are."""
    console = console or Console()
    path = run.metrics_file(split)
    content = run.read(path.name)
    epoch = content["epoch"]
    at = "" if epoch is None or content["run"].get("baseline") else f" (epoch {epoch + 1}, the best)"
    images = "validation" if split == "val" else split
    console.print(f"\n[bold]{content['run']['experiment']}[/bold] on {content['n_samples']} {images} images{at}:")
    metrics, first = content["metrics"], next(iter(content["run"].get("leading") or ["loss"]))
    shown = {name: value for name, value in metrics.items() if "/" not in name or name.startswith(f"{first}/")}
    for name, value in shown.items():
        console.print(f"  {name:16} {value:.5g}", highlight=False)
    undefined = {name: count for name, count in content["undefined"].items() if "/" not in name}
    for name, count in undefined.items():
        console.print(f"  {name} is not defined {count} times ({content['n_samples']} images)", highlight=False)
    if len(shown) < len(metrics):
        console.print(
            f"  {len(metrics) - len(shown)} more of single classes or channels are in {path}", highlight=False
        )
    console.print(f"pictures: {run.folder / 'pictures'}\nmetrics:  {path}", highlight=False)
    if split == "val":
        console.print("compare:  make eval", highlight=False)
