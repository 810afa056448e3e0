"""What an inspection measures on each sample, in one pass over a split, and `images.csv`."""

import csv
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from project.data.duplicates import SIGNATURE, signature
from project.data.split_metadata import digest
from project.data.statistics import ChannelStatistics, Histogram, ImageStatistics
from project.data.store import SplitReader
from project.formatting import shorten

MEASURES = ("min", "max", "mean", "std", "contrast", "share_at_max", "saturated_share", "z", "n_not_finite")
ENDS = (0.01, 0.99)  # the contrast of an image is the distance of these quantiles: single hot pixels do not count

Key = tuple[str, str]


@dataclass
class Row:
    """What is measured on one sample.

    Attributes:
        split, id, group: Which sample.
        label: Class number, several where an image may have several classes, or None.
        size: (H, W) in pixels.
        values: (role, channel) -> the measures of `images.csv`; None where no pixel is finite.
        digests: Role -> XXH3 of its pixels.
        signature: Of the input, for near-duplicates.
        objects: Number of objects in `instances`, or None.
        foreground: Share of the annotated pixels of the mask that are not background; None without
            any, or where the dataset has no background.
        annotated: Share of the pixels of the mask that are annotated, or None without a mask.
        fold: Number of its fold, or None.
        batch: Between what brightness is compared; see `project.data.drift.exposure_groups`.
    """

    split: str
    id: str
    group: str
    label: int | tuple[int, ...] | None
    size: tuple[int, ...]
    values: dict[Key, dict[str, Any]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    signature: np.ndarray = field(default_factory=lambda: np.zeros(SIGNATURE, np.uint8))
    objects: int | None = None
    foreground: float | None = None
    annotated: float | None = None
    fold: int | None = None
    batch: str = ""

    def __str__(self) -> str:
        return f"{shorten(self.id)} ({self.place})"

    @property
    def place(self) -> str:
        """The split, or the fold in it."""
        return self.split if self.fold is None else f"fold {self.fold}"

    def is_blank(self, role: str) -> bool:
        """Whether all pixels of each channel are equal: any two such images are alike."""
        return all(v["min"] == v["max"] for (of, _), v in self.values.items() if of == role)


@dataclass
class Split:
    """One split after one pass over its file; no pixels are kept."""

    reader: SplitReader
    rows: list[Row] = field(default_factory=list)
    statistics: dict[str, ChannelStatistics] = field(default_factory=lambda: defaultdict(ChannelStatistics))
    mask: Counter[int] = field(default_factory=Counter)


def reference(rows: list[Row]) -> list[Row]:
    """What is usual is what the model learns from: the training split, if there is one."""
    return [row for row in rows if row.split == "train"] or rows


def read_split(name: str, reader: SplitReader, console: Console) -> Split:
    """Go through a split once, with one sample in memory at a time."""
    split, quiet = Split(reader), not console.is_terminal
    names = {role: reader.channel_names(role) for role in ("image", "target") if role in reader.dtypes}
    for index in track(range(len(reader)), f"Looking at {name}", console=console, transient=True, disable=quiet):
        label = None if reader.labels is None else _label(reader.labels[index])
        row = Row(name, reader.ids[index], reader.groups[index], label, reader.shapes["image"][index][-2:])
        row.fold = None if reader.folds is None else int(reader.folds[index])
        for role in reader.dtypes:
            array = reader.read(role, index)
            if role == "instances":
                row.objects = int(np.count_nonzero(np.unique(array)))
            elif role == "mask":
                _count_classes(row, array, reader, split.mask)
            elif role in names:
                row.digests[role] = digest(array)
                for channel, plane, level in zip(names[role], array, split.statistics[role].add(array), strict=True):
                    row.values[role, channel] = _measure(plane, level)
                if role == "image":
                    row.signature = signature(array) if reader.signatures is None else reader.signatures[index]
        split.rows.append(row)
    return split


def histograms(splits: dict[str, Split]) -> dict[Key, dict[str, Histogram]]:
    """(role, channel) -> split -> counts of the values."""
    found: dict[Key, dict[str, Histogram]] = defaultdict(dict)
    for name, split in splits.items():
        for role, statistics in split.statistics.items():
            for channel, histogram in zip(split.reader.channel_names(role), statistics.histograms, strict=True):
                found[role, channel][name] = histogram
    return found


def write_rows(path: Path, rows: list[Row]) -> None:
    """One row per sample; a column per measure and channel, as "image/phase mean"."""
    table = []
    for row in rows:
        label = " ".join(map(str, row.label)) if isinstance(row.label, tuple) else row.label
        flat: dict[str, Any] = {"split": row.split, "id": row.id, "group": row.group, "label": label}
        flat |= {"height": row.size[0], "width": row.size[1], "objects": row.objects, "foreground": row.foreground}
        for (role, channel), values in row.values.items():
            flat |= {f"{role}/{channel} {name}": values[name] for name in MEASURES}
        table.append(flat | {f"{role} digest": digest for role, digest in row.digests.items()})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def _label(label: np.ndarray) -> int | tuple[int, ...]:
    """The class number, or the numbers where an image may have several classes."""
    return int(label) if label.ndim == 0 else tuple(np.flatnonzero(label).tolist())


def _count_classes(row: Row, mask: np.ndarray, reader: SplitReader, total: Counter[int]) -> None:
    ignore, background = reader.attributes.get("ignore_index"), reader.attributes.get("background")
    values, numbers = np.unique(mask, return_counts=True)
    counts = dict(zip(values.tolist(), numbers.tolist(), strict=True))
    total.update(counts)
    annotated = mask.size - (counts.get(ignore, 0) if ignore is not None else 0)
    row.annotated = annotated / mask.size
    if annotated and background is not None:
        number = reader.attributes["classes"]["mask"].index(background)
        row.foreground = 1 - (counts.get(number, 0) if number != ignore else 0) / annotated


def _measure(plane: np.ndarray, level: ImageStatistics) -> dict[str, Any]:
    finite = plane[np.isfinite(plane)] if plane.dtype.kind == "f" else plane.ravel()
    if not finite.size:
        return dict.fromkeys(MEASURES) | {"n_not_finite": level.n_not_finite}
    low, high = (round(share * (finite.size - 1)) for share in ENDS)
    ordered = np.partition(finite, (low, high))
    return {
        **level._asdict(),
        "contrast": float(ordered[high]) - float(ordered[low]),
        "share_at_max": float((finite == level.max).mean()),
        "saturated_share": None,
        "z": None,
    }
