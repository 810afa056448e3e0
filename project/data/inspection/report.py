"""`make inspect`: what is in a prepared dataset: sizes, ranges, classes, objects, and what looks wrong about it."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from project.data.config import SPLITS
from project.data.drift import measure_drift
from project.data.inspection import balance, figures, findings
from project.data.inspection import images as single
from project.data.inspection.advice import suggestions
from project.data.inspection.page import write_page
from project.data.inspection.rows import Row, Split, histograms, read_split, write_rows
from project.data.inspection.tables import show
from project.data.store import SplitReader
from project.errors import UserError


def inspect(folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Look at a prepared dataset; tables go to the terminal, everything to `folder/inspect/`.

    Written are `report.html` (all of it on one page, for a browser or a printer), `report.json`, `images.csv` (a row
    per sample), `histograms.png`, `brightness.png` and a `contact_<split>.png` per split. An earlier inspection is
    replaced when the new one is complete.

    Args:
        folder: `data/processed/<dataset>`, with any of train.h5, val.h5 and test.h5.
        console: Where the tables go.

    Returns:
        Plain JSON without NaN, pixel values in the units of the files: "dataset", "splits", "sizes", "channels",
        "drift" (of splits), "groups", "images" (those that stand out), "classes", "objects", "source" and
        "split_definition" (as in the files), "notes" (nothing to do), "warnings" (something to do), "suggestions"
        (what to set in an experiment, and why), "pictures".

    Raises:
        UserError: There is no split in `folder`, one is damaged, or nothing can be written there.
    """
    console = console or Console()
    final, partial = folder / "inspect", folder / ".inspect.partial"
    paths = {name: folder / f"{name}.h5" for name in SPLITS if (folder / f"{name}.h5").is_file()}
    if not paths:
        raise UserError(
            f'no train.h5, val.h5 or test.h5 in "{folder}"; run `make data DATASET={shlex.quote(folder.name)}` first'
        )
    splits = {name: read_split(name, SplitReader(path), console) for name, path in paths.items()}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        report = _write(partial, folder.name, splits)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except OSError as error:
        raise UserError(f'the inspection could not be written to "{final}": {error}') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for split in splits.values():
            split.reader.close()
    show(report, final, console)
    return report


def _write(folder: Path, dataset: str, splits: dict[str, Split]) -> dict[str, Any]:
    report, rows = make_report(dataset, splits)
    readers = {name: split.reader for name, split in splits.items()}
    report["pictures"] = figures.draw(readers, histograms(splits), report, rows, folder)
    (folder / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_rows(folder / "images.csv", rows)
    write_page(folder, report, readers)
    return report


def make_report(dataset: str, splits: dict[str, Split]) -> tuple[dict[str, Any], list[Row]]:
    """Everything that is known after the pass, as plain JSON, and the rows with z and saturated share filled in."""
    rows = [row for split in splits.values() for row in split.rows]
    attributes = next(iter(splits.values())).reader.attributes
    balance.set_batches(rows)
    channels = [findings.channel(key, by_split, rows) for key, by_split in histograms(splits).items()]
    single.set_unusual(rows, channels)
    brightness = measure_drift({name: split.reader for name, split in splits.items()})
    notes, warnings = findings.notes(channels, rows), brightness.describe()
    by_place = (attributes.get("split") or {}).get("by") == "place"
    report = {
        "dataset": dataset,
        "splits": {name: _contents(split) for name, split in splits.items()},
        "sizes": balance.sizes(splits),
        "channels": channels,
        "drift": balance.splits(brightness),
        "groups": balance.groups(rows, brightness),
        "images": single.images(rows, channels, notes, warnings, by_place),
        "classes": balance.classes(splits, rows, warnings),
        "background": attributes.get("background"),
        "objects": balance.objects(rows, warnings),
        "source": attributes.get("source") or {},
        "split_definition": attributes.get("split") or {},
        "notes": notes,
        "warnings": warnings,
    }
    report["suggestions"] = suggestions(report, rows, attributes.get("ignore_index"))
    return report, rows


def _contents(split: Split) -> dict[str, Any]:
    reader, roles = split.reader, {}
    for role, shapes in reader.shapes.items():
        each = np.array(shapes)
        roles[role] = {
            "dtype": reader.dtypes[role].name,
            "smallest": each.min(axis=0).tolist(),
            "largest": each.max(axis=0).tolist(),
            "channels": reader.channel_names(role) if role in ("image", "target") else [role],
        }
    return {
        "n_samples": len(reader),
        "n_groups": len(set(reader.groups)),
        "content_hash": reader.content_hash,
        "roles": roles,
    }
