"""Report about a prepared dataset: report.json, images.csv, report.html, and a summary on the terminal."""

import json
import shlex
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from project.data.config import SPLITS
from project.data.drift import measure_drift
from project.data.inspection import figures
from project.data.inspection.contents import count_classes, count_objects, count_sizes, describe_channel
from project.data.inspection.measure import Measures, measure_dataset, write_csv
from project.data.inspection.outliers import KINDS, find_copies, find_outliers
from project.data.store import SplitReader
from project.errors import UserError
from project.files import write_json, write_text
from project.formatting import format_channels
from project.pages.render import figure_uri, render

MOST_RANGES = 6  # channels whose range is in the summary

Report = dict[str, Any]


def inspect_dataset(folder: Path, console: Console | None = None) -> Report:
    """Inspect any of train.h5, val.h5 and test.h5 in a folder; writes `folder/inspect/`, prints a summary.

    Written are `report.html` (everything on one page), `report.json` and `images.csv` (a row per sample).

    Returns:
        Plain JSON without NaN, pixel values in the units of the files: "dataset", "splits", "sizes", "channels",
        "drift", "outliers", "copies", "classes", "objects", "source" and "split_definition" (as in the files), and
        "warnings".

    Raises:
        UserError: There is no split in `folder`, one is damaged, or nothing can be written there.
    """
    final, console = folder / "inspect", console or Console()
    paths = {name: folder / f"{name}.h5" for name in SPLITS if (folder / f"{name}.h5").is_file()}
    if not paths:
        raise UserError(
            f'no train.h5, val.h5 or test.h5 in "{folder}"; run `make data DATASET={shlex.quote(folder.name)}` first'
        )
    measures = measure_dataset({name: SplitReader(path) for name, path in paths.items()}, console)
    report = make_report(folder.name, measures)
    page = make_page(report, measures)
    try:
        write_text(final / "report.html", page)
        write_csv(final / "images.csv", measures)
        write_json(final / "report.json", report)
    except OSError as error:
        raise UserError(f'the inspection could not be written to "{final}": {error}') from error
    print_summary(report, final, console)
    return report


def make_report(dataset: str, measures: Measures) -> Report:
    """The report as plain JSON; completes the measures."""
    readers = measures.readers
    attributes = next(iter(readers.values())).attributes
    channels = [describe_channel(channel, measures) for channel in measures.histograms]
    drift = measure_drift(readers)
    warnings = drift.describe()
    return {
        "dataset": dataset,
        "splits": {name: _contents(reader) for name, reader in readers.items()},
        "sizes": count_sizes(readers),
        "channels": channels,
        "drift": asdict(drift),
        "outliers": find_outliers(measures, channels, warnings),
        "copies": find_copies(measures.images, warnings),
        "classes": count_classes(readers, warnings),
        "objects": count_objects(measures),
        "source": attributes.get("source") or {},
        "split_definition": attributes.get("split") or {},
        "warnings": warnings,
    }


def _contents(reader: SplitReader) -> Report:
    """Numbers of samples and groups, and dtype and shapes of each role, as "1 x 32 x 32-40 uint16"."""
    roles = {}
    for role, shapes in reader.shapes.items():
        ends = zip(np.min(shapes, axis=0).tolist(), np.max(shapes, axis=0).tolist(), strict=True)
        sides = [str(a) if a == b else f"{a}-{b}" for a, b in ends]
        roles[role] = f"{' x '.join(sides)} {reader.dtypes[role].name}"
    n_groups = len(set(reader.groups))
    return {"n_samples": len(reader), "n_groups": n_groups, "content_hash": reader.content_hash, "roles": roles}


# Page and summary -----------------------------------------------------------------------------------------------------


def make_page(report: Report, measures: Measures) -> str:
    """The page as text: numbers and sentences of the report, figures, and at most some hundred thumbnails."""
    readers, division = measures.readers, report["split_definition"]
    unused = {"axis", "gap"} if division.get("by") == "group" else set()
    title = report["dataset"]
    return render(
        "dataset.html.j2",
        f"{title}: inspection",
        "Inspection of the dataset",
        title,
        report=report,
        cards_shown=_sizes_of_splits(report),
        ranges=_ranges(report),
        n_samples=len(measures.images),
        division={k: v for k, v in division.items() if k not in unused and v not in (None, {}, [], False)},
        figures={
            "histograms": figure_uri(figures.draw_histograms(measures.histograms, report)),
            "brightness": figure_uri(figures.draw_brightness(measures, report)),
            "samples": {
                name: figure_uri(figures.draw_contact_sheet(r, f"{title}, {name}")) for name, r in readers.items()
            },
        },
        kinds={kind: text for kind, (text, _) in KINDS.items()},
        thumbnails_of=lambda split, *sample: figures.thumbnails(readers[split], *sample),
        config=json.dumps(report["source"], indent=2, ensure_ascii=False) if report["source"] else "",
    )


def _sizes_of_splits(report: Report) -> list[tuple[str, str]]:
    """Numbers and what they count: samples, samples of each split, pixels."""
    numbers = [(str(sum(split["n_samples"] for split in report["splits"].values())), "samples")]
    for name, split in report["splits"].items():
        n, groups = split["n_samples"], split["n_groups"]
        grouped = f" in {groups} group{'s' * (groups != 1)}" if groups != n else ""
        numbers.append((str(n), f"{name}{grouped}"))
    first, *others = report["sizes"]
    more = f", and {len(others)} other size{'s' * (len(others) > 1)}" if others else ""
    return [*numbers, (f"{first['height']} x {first['width']}", f"pixels{more}")]


def _ranges(report: Report) -> list[tuple[str, str]]:
    """Channels and the range of their values; channels with the same range together."""
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in report["channels"]:
        names[entry["role"], entry["text"]].append(entry["channel"])
    ranges = [(format_channels(role, channels), text) for (role, text), channels in names.items()]
    more = [("more", f"{len(ranges) - MOST_RANGES} in report.json")] if len(ranges) > MOST_RANGES else []
    return ranges[:MOST_RANGES] + more


def print_summary(report: Report, folder: Path, console: Console) -> None:
    """Print sizes, ranges, warnings, and where the page is."""
    numbers = ", ".join(f"{number} {text}" for number, text in _sizes_of_splits(report))
    console.print(Text(f"{report['dataset']}: {numbers}"))
    for name, text in _ranges(report):
        console.print(Text(f" {name}: {text}"))
    heading, style = ("Warnings", "bold yellow") if report["warnings"] else ("No warnings.", "green")
    console.print(Text(f"\n{heading}", style=style))
    for i, sentence in enumerate(report["warnings"], 1):
        console.print(Text(f" {i}. {sentence}"))
    # One line, however narrow the terminal: it is to be copied.
    console.print(Text(f"\nopen {folder / 'report.html'}"), soft_wrap=True)
