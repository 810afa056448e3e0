"""`make inspect`: what is in a prepared dataset: sizes, ranges, classes, objects, and what looks wrong about it."""

import csv
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from project.data import inspection_balance as balance
from project.data import inspection_findings as findings
from project.data import inspection_pictures as pictures
from project.data.config import SPLITS
from project.data.inspection_findings import Key, Row
from project.data.statistics import ChannelStatistics, Histogram
from project.data.store import SplitReader
from project.errors import UserError

MEASURES = ("min", "max", "mean", "std", "share_at_max", "saturated_share", "z", "n_not_finite")


@dataclass
class Split:
    """One split after one pass over its file; no pixels are kept."""

    reader: SplitReader
    rows: list[Row] = field(default_factory=list)
    statistics: dict[str, ChannelStatistics] = field(default_factory=lambda: defaultdict(ChannelStatistics))
    mask: Counter[int] = field(default_factory=Counter)


def inspect(folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Look at a prepared dataset; tables go to the terminal, everything else to `folder/inspect/`.

    Written are `report.json`, `images.csv` (a row per sample), `histograms.png` and a `contact_<split>.png` per split.
    An earlier inspection is replaced when the new one is complete.

    Args:
        folder: `data/processed/<dataset>`, with any of train.h5, val.h5 and test.h5.
        console: Where the tables go.

    Returns:
        Plain JSON without NaN, pixel values in the units of the files: "dataset", "splits", "channels", "images",
        "groups", "classes", "objects", "notes" (nothing to do), "warnings" (something to do), "pictures".

    Raises:
        UserError: There is no split in `folder`, one is damaged, or nothing can be written there.
    """
    console = console or Console()
    final, partial = folder / "inspect", folder / ".inspect.partial"
    paths = {name: folder / f"{name}.h5" for name in SPLITS if (folder / f"{name}.h5").is_file()}
    if not paths:
        raise UserError(f'no train.h5, val.h5 or test.h5 in "{folder}"; run `make data DATASET={folder.name}` first')
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
    pictures.show(report, final, console)
    return report


def _write(folder: Path, dataset: str, splits: dict[str, Split]) -> dict[str, Any]:
    report, rows = make_report(dataset, splits)
    readers = {name: split.reader for name, split in splits.items()}
    report["pictures"] = pictures.draw(readers, histograms(splits), report, folder)
    (folder / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _write_rows(folder / "images.csv", rows)
    return report


def read_split(name: str, reader: SplitReader, console: Console) -> Split:
    """Go through a split once, with one sample in memory at a time."""
    split, quiet = Split(reader), not console.is_terminal
    for index in track(range(len(reader)), f"Looking at {name}", console=console, transient=True, disable=quiet):
        label = None if reader.labels is None else _label(reader.labels[index])
        row = Row(name, reader.ids[index], reader.groups[index], label, reader.shapes["image"][index][-2:])
        for role in reader.dtypes:
            array = reader.read(role, index)
            if role == "instances":
                row.objects = int(np.count_nonzero(np.unique(array)))
            elif role == "mask":
                values, counts = np.unique(array, return_counts=True)
                split.mask.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            else:
                split.statistics[role].add(array)
                row.digests[role] = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()
                for channel, plane in zip(pictures.channel_names(reader, role), array, strict=True):
                    row.values[role, channel] = _measure(plane)
        split.rows.append(row)
    return split


def _label(label: np.ndarray) -> int | tuple[int, ...]:
    """The class number, or the numbers where an image may have several classes."""
    return int(label) if label.ndim == 0 else tuple(np.flatnonzero(label).tolist())


def _measure(plane: np.ndarray) -> dict[str, Any]:
    finite = plane[np.isfinite(plane)] if plane.dtype.kind == "f" else plane
    n_not_finite = plane.size - finite.size
    if not finite.size:
        return dict.fromkeys(MEASURES) | {"n_not_finite": n_not_finite}
    return {
        "min": float(finite.min()),
        "max": float(finite.max()),
        "mean": float(finite.mean(dtype=np.float64)),
        "std": float(finite.std(dtype=np.float64)),
        "share_at_max": float((finite == finite.max()).mean()),
        "saturated_share": None,
        "z": None,
        "n_not_finite": n_not_finite,
    }


def histograms(splits: dict[str, Split]) -> dict[Key, dict[str, Histogram]]:
    """(role, channel) -> split -> counts of the values."""
    found: dict[Key, dict[str, Histogram]] = defaultdict(dict)
    for name, split in splits.items():
        for role, statistics in split.statistics.items():
            names = pictures.channel_names(split.reader, role)
            for channel, histogram in zip(names, statistics.histograms, strict=True):
                found[role, channel][name] = histogram
    return found


def make_report(dataset: str, splits: dict[str, Split]) -> tuple[dict[str, Any], list[Row]]:
    """Everything that is known after the pass, as plain JSON, and the rows with z and saturated share filled in."""
    rows = [row for split in splits.values() for row in split.rows]
    findings.set_batches(rows)
    channels = [_channel(key, by_split, rows) for key, by_split in histograms(splits).items()]
    findings.set_saturated(rows, channels)
    usual = findings.set_unusual(rows, channels)
    warnings: list[str] = []
    balance.splits(rows, channels, warnings)
    report = {
        "dataset": dataset,
        "splits": {name: _sizes(split) for name, split in splits.items()},
        "channels": channels,
        "images": findings.images(rows, channels, usual, warnings),
        "groups": balance.groups(rows, channels, warnings),
        "classes": _classes(splits, rows, warnings),
        "objects": balance.objects(rows, warnings),
        "notes": [note for channel in channels for note in findings.notes(channel, rows)],
        "warnings": warnings,
    }
    return report, rows


def _sizes(split: Split) -> dict[str, Any]:
    reader, roles = split.reader, {}
    for role, shapes in reader.shapes.items():
        each = np.array(shapes)
        roles[role] = {
            "dtype": reader.dtypes[role].name,
            "smallest": each.min(axis=0).tolist(),
            "largest": each.max(axis=0).tolist(),
            "channels": pictures.channel_names(reader, role) if role in ("image", "target") else [role],
        }
    return {
        "n_samples": len(reader),
        "n_groups": len(set(reader.groups)),
        "content_hash": reader.content_hash,
        "roles": roles,
    }


def _channel(key: Key, by_split: dict[str, Histogram], rows: list[Row]) -> dict[str, Any]:
    """The used range over all splits, and the statistics of each."""
    whole = Histogram(next(iter(by_split.values())).dtype)
    for histogram in by_split.values():
        whole.merge(histogram)
    summary = whole.summary()
    entry = {
        "role": key[0],
        "channel": key[1],
        **{name: summary.get(name) for name in ("dtype", "n", "n_not_finite", "n_distinct", "min", "max")},
        "dtype_max": None,
        "used_share": None,
        "bits": None,
        "step": None,
        "ceiling": findings.ceiling(whole, key, rows),
        "splits": {name: histogram.summary() for name, histogram in by_split.items()},
    }
    if whole.exact:
        used = np.flatnonzero(whole.counts)
        entry["dtype_max"] = int(np.iinfo(whole.dtype).max)
        entry["used_share"] = (summary["max"] - summary["min"]) / entry["dtype_max"]
        entry["bits"] = float(np.log2(summary["max"] - summary["min"] + 1))
        entry["step"] = int(np.gcd.reduce(np.diff(used))) if len(used) > 1 else None
    entry["text"] = findings.range_text(entry)
    return entry


def _classes(splits: dict[str, Split], rows: list[Row], warnings: list[str]) -> dict[str, Any]:
    """Pixels per class of the mask, and images per label."""
    attributes = next(iter(splits.values())).reader.attributes
    names, ignore = attributes.get("classes") or {}, attributes.get("ignore_index")
    masks = {name: split.mask for name, split in splits.items() if split.mask}
    found = {}
    if masks:
        found["mask"] = balance.balance("mask", masks, names.get("mask"), ignore, warnings)
    labels = [(row.split, row.label) for row in rows if row.label is not None]
    if labels:
        counts: dict[str, Counter[int]] = {name: Counter() for name in splits}
        for split, label in labels:
            counts[split].update(label if isinstance(label, tuple) else (label,))
        # With several classes per image, shares are of the images, and need not add up to 1.
        n_images = Counter(split for split, _ in labels)
        found["label"] = balance.balance("label", counts, names.get("label"), None, warnings, n_images)
    return found


def _write_rows(path: Path, rows: list[Row]) -> None:
    """One row per sample; a column per measure and channel, as "image/phase mean"."""
    table = []
    for row in rows:
        label = " ".join(map(str, row.label)) if isinstance(row.label, tuple) else row.label
        flat: dict[str, Any] = {"split": row.split, "id": row.id, "group": row.group, "label": label}
        flat |= {"height": row.size[0], "width": row.size[1], "objects": row.objects}
        for (role, channel), values in row.values.items():
            flat |= {f"{role}/{channel} {name}": values[name] for name in MEASURES}
        table.append(flat | {f"{role} sha256": digest for role, digest in row.digests.items()})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
