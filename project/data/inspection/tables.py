"""The tables of an inspection, made once from its report, and the report on the terminal."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from project.formatting import format_number, format_percent

GROUPS_SHOWN = 12
CHANNELS_SHOWN = 24
CLASSES_SHOWN = 40
SIZES_SHOWN = 12
PERCENTILES = ("0.1", "1", "50", "99", "99.9")


@dataclass
class Table:
    """A table as text.

    Attributes:
        section: "splits", "values", "groups", "classes", "objects" or "sizes".
        title, columns, rows: The cells; the first column is a name, the others are numbers.
        shares: Of the cells that are also worth a bar, (row, column) -> from 0 to 1.
        marked: (row, column) of the cells that stand out.
    """

    section: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    shares: dict[tuple[int, int], float] = field(default_factory=dict)
    marked: set[tuple[int, int]] = field(default_factory=set)


def tables(report: dict[str, Any]) -> list[Table]:
    """All tables of a report, in the order in which they are shown."""
    return [_splits(report), *_sizes(report), *_values(report), *_groups(report), *_classes(report), *_objects(report)]


def shown_groups(report: dict[str, Any]) -> list[str]:
    """The groups that tables and pictures show: those that differ first, then others, evenly spaced over all splits."""
    groups = report["groups"]
    strange = [name for name, g in groups.items() if any(c["difference"] for c in g["channels"].values())]
    others = [name for name in groups if name not in set(strange)]
    room = min(max(GROUPS_SHOWN - len(strange), 0), len(others))
    chosen = [others[i * (len(others) - 1) // max(room - 1, 1)] for i in range(room)]
    return [*strange, *chosen][:GROUPS_SHOWN]


def _splits(report: dict[str, Any]) -> Table:
    roles = list(next(iter(report["splits"].values()))["roles"])
    rows = [
        [name, str(s["n_samples"]), str(s["n_groups"]), *(_size(s["roles"][role]) for role in roles)]
        for name, s in report["splits"].items()
    ]
    return Table("splits", f"{report['dataset']}: samples", ["split", "samples", "groups", *roles], rows)


def _size(role: dict[str, Any]) -> str:
    pairs = zip(role["smallest"], role["largest"], strict=True)
    return f"{' x '.join(str(a) if a == b else f'{a}-{b}' for a, b in pairs)} {role['dtype']}"


def _sizes(report: dict[str, Any]) -> list[Table]:
    """Nothing where all images have one size, which the table of the splits tells."""
    sizes = report["sizes"]
    if len(sizes) < 2:
        return []
    rows = [
        [f"{s['height']} x {s['width']}", str(s["n"]), *(str(n) for n in s["splits"].values())]
        for s in sizes[:SIZES_SHOWN]
    ]
    total = sum(s["n"] for s in sizes)
    shares = {(i, 1): s["n"] / total for i, s in enumerate(sizes[:SIZES_SHOWN])}
    title = f"Sizes (height x width){_cut(SIZES_SHOWN, len(sizes))}"
    return [Table("sizes", title, ["size", "images", *sizes[0]["splits"]], rows, shares)]


def _values(report: dict[str, Any]) -> list[Table]:
    found = []
    for entry in report["channels"][:CHANNELS_SHOWN]:
        rows, marked = list[list[str]](), set[tuple[int, int]]()
        for split, s in entry["splits"].items():
            cuts = s.get("percentiles", {})
            numbers = [s.get("min"), *(cuts.get(p) for p in PERCENTILES), s.get("max"), s.get("mean"), s.get("std")]
            rows.append([split, *map(format_number, numbers), format_percent(entry["saturated"][split])])
            if (report["drift"][f"{entry['role']}/{entry['channel']}"].get(split) or {}).get("difference"):
                marked.add((len(rows) - 1, 8))
        columns = ["split", "min", "0.1 %", "1 %", "median", "99 %", "99.9 %", "max", "mean", "std", "satur."]
        title = f"{entry['role']}/{entry['channel']}: {entry['text']}"
        found.append(Table("values", title, columns, rows, marked=marked))
    if len(report["channels"]) > CHANNELS_SHOWN:
        found[-1].title += f" (the other {len(report['channels']) - CHANNELS_SHOWN} channels are in report.json)"
    return found


def _groups(report: dict[str, Any]) -> list[Table]:
    groups = report["groups"]
    if not groups:
        return []
    channels = [f"{entry['role']}/{entry['channel']}" for entry in report["channels"][:CHANNELS_SHOWN]]
    rows, marked = list[list[str]](), set[tuple[int, int]]()
    for name in shown_groups(report):
        g = groups[name]
        cells = [g["channels"].get(c, {"mean": None, "std": None, "difference": None}) for c in channels]
        marked |= {(len(rows), 3 + i) for i, c in enumerate(cells) if c["difference"]}
        means = [
            f"{format_number(c['mean'])} ± {format_number(c['std'])}"
            + (f", {c['difference']}" if c["difference"] else "")
            for c in cells
        ]
        rows.append([name or "(no folder)", str(g["n_samples"]), ", ".join(g["splits"]), *means])
    title = f"Groups: mean ± standard deviation of a typical image{_cut(GROUPS_SHOWN, len(groups))}"
    return [Table("groups", title, ["group", "samples", "splits", *channels], rows, marked=marked)]


def _classes(report: dict[str, Any]) -> list[Table]:
    found = []
    for kind, by_split in report["classes"].items():
        names = list(next(iter(by_split.values())))
        rows, shares = list[list[str]](), dict[tuple[int, int], float]()
        for i, name in enumerate(names[:CLASSES_SHOWN]):
            cells = [by_split[split][name] for split in by_split]
            rows.append([name, *(f"{c['count']} ({format_percent(c['share'])})" for c in cells)])
            shares |= {(i, 1 + j): c["share"] for j, c in enumerate(cells) if c["share"] is not None}
        title = f"Classes ({kind}; {'images' if kind == 'label' else 'pixels'}){_cut(CLASSES_SHOWN, len(names))}"
        found.append(Table("classes", title, ["class", *by_split], rows, shares))
    return found


def _objects(report: dict[str, Any]) -> list[Table]:
    rows = [
        [split, format_number(o["mean"]), format_number(o["median"]), str(o["min"]), str(o["max"]), str(o["n_without"])]
        for split, o in report["objects"].items()
    ]
    columns = ["split", "mean", "median", "fewest", "most", "images without"]
    return [Table("objects", "Objects per image", columns, rows)] if rows else []


def _cut(shown: int, total: int) -> str:
    return f" ({shown} of {total}; all in report.json)" if total > shown else ""


def show(report: dict[str, Any], folder: Path, console: Console) -> None:
    """Print the report; what should be acted on comes last, before where everything lies."""
    for table in tables(report):
        _print(table, console)
    for heading, style in (("notes", "cyan"), ("warnings", "yellow")):
        if report[heading]:
            console.print(Text(f"\n{heading.capitalize()}", style=f"bold {style}"))
        for i, sentence in enumerate(report[heading], 1):
            console.print(Text(f" {i}. {sentence}"))
    if not report["warnings"]:
        console.print(Text("\nNo warnings.", style="green"))
    console.print(Text("\nSuggestions (the reasons are in the report)", style="bold cyan"))
    for suggestion in report["suggestions"]:
        console.print(Text(f" - {suggestion['what']}: {suggestion['set']}"))
    console.print(Text(f"\nPictures, images.csv and report.json are in {folder}/: {', '.join(report['pictures'])}"))
    # One line, however narrow the terminal: it is to be copied.
    console.print(Text(f"open {folder / 'report.html'}"), soft_wrap=True)


def _print(table: Table, console: Console) -> None:
    # Text, since ids and channel names may hold [brackets], which are markup to rich.
    printed = RichTable(box=None, padding=(0, 2, 0, 0))
    for i, column in enumerate(table.columns):
        printed.add_column(Text(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in table.rows:
        printed.add_row(*map(Text, row))
    console.print(Text(f"\n{table.title}", style="bold"))
    console.print(printed)
