"""Measurements of every sample of a dataset, most of them stored in its files, and images.csv."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from project.data.drift import exposure_groups
from project.data.leakage import Image, images_of
from project.data.statistics import Histogram, ImageStatistics
from project.data.store import SplitReader
from project.files import write_table

MEASURES = ("min", "max", "mean", "std", "contrast", "share_at_max", "saturated_share", "z", "n_not_finite")

Channel = tuple[str, str]  # role and name, such as ("image", "phase")


@dataclass
class Measures:
    """Measurements of all N samples, split by split. Numbers are NaN where they are not defined."""

    readers: dict[str, SplitReader]
    images: list[Image]  # names, and what a search of copies and near-duplicates needs
    # Columns (N,): "height" and "width" in pixels, "objects" (their number), "annotated" (share of the pixels of the
    # mask), "foreground" (share of the annotated pixels).
    columns: dict[str, np.ndarray]
    # Channel -> `MEASURES` -> (N,). `contrast` is the distance of the 1st and 99th percentile; `contents` adds
    # "saturated_share" and "z".
    values: dict[Channel, dict[str, np.ndarray]]
    histograms: dict[Channel, dict[str, Histogram]]  # channel -> split -> counts of the values

    @property
    def splits(self) -> np.ndarray:
        """(N,) names of the splits."""
        return np.array([image.split for image in self.images])

    @property
    def exposure_groups(self) -> np.ndarray:
        """(N,) groups for comparing brightness."""
        return np.array(exposure_groups(self.readers.values()))


def measure_dataset(readers: dict[str, SplitReader], console: Console) -> Measures:
    """Measure all samples of the splits; one sample is in memory at a time. A terminal shows the progress."""
    options: dict[str, Any] = {"console": console, "transient": True, "disable": not console.is_terminal}
    columns, values, row = _columns(readers), _stored_statistics(readers), itertools.count()
    histograms = {channel: {s: Histogram(r.dtypes[channel[0]]) for s, r in readers.items()} for channel in values}
    for split, reader in readers.items():
        for index in track(range(len(reader)), f"Measuring {split}", **options):
            i, arrays = next(row), {role: reader.read(role, index) for role in reader.image_statistics}
            for role, array in arrays.items():
                for name, plane in zip(reader.channel_names(role), array, strict=True):
                    histograms[role, name][split].count(plane)
                    measures = values[role, name]
                    n_finite = max(plane.size - measures["n_not_finite"][i], 1)
                    measures["share_at_max"][i] = np.count_nonzero(plane == measures["max"][i]) / n_finite
            if "instances" in reader.dtypes:
                columns["objects"][i] = np.count_nonzero(np.unique(reader.read("instances", index)))
    images = [image for s, r in readers.items() for image in images_of(r, s, folds=True)]
    return Measures(readers, images, columns, values, histograms)


def _stored_statistics(readers: dict[str, SplitReader]) -> dict[Channel, dict[str, np.ndarray]]:
    """Measures that are in the files, and room for "share_at_max"."""
    first, values = next(iter(readers.values())), {}
    for role in first.image_statistics:
        stored = np.concatenate([reader.image_statistics[role] for reader in readers.values()])
        for number, name in enumerate(first.channel_names(role)):
            levels = dict(zip(ImageStatistics._fields, stored[:, number].T, strict=True))
            # Where the percentiles are equal, the range is a wider one.
            contrast = (levels["high"] - levels["low"]) * (levels["cut"] == 1)
            values[role, name] = levels | {"contrast": contrast, "share_at_max": np.zeros(len(stored))}
    return values


def _columns(readers: dict[str, SplitReader]) -> dict[str, np.ndarray]:
    """Columns that follow from the metadata, and room for the others."""
    tables = []
    for reader in readers.values():
        height, width = np.array([shape[-2:] for shape in reader.shapes["image"]], float).T
        table = {"height": height, "width": width}
        table |= {name: np.full(len(reader), np.nan) for name in ("objects", "annotated", "foreground")}
        if reader.mask_counts is not None:
            annotated = reader.mask_counts.sum(1)
            table["annotated"] = annotated / (height * width)
            if reader.attributes.get("background") is not None:
                foreground = reader.mask_counts[:, reader.foreground].sum(1)
                table["foreground"] = foreground / np.where(annotated > 0, annotated, np.nan)
        tables.append(table)
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def write_csv(path: Path, measures: Measures) -> None:
    """Write one row per sample; a column per measure and channel, as "image/phase mean"."""
    labels = list[str]()
    for reader in measures.readers.values():
        if reader.labels is None:
            labels += [""] * len(reader)
            continue
        rows = reader.labels[:, None] if reader.labels.ndim == 1 else map(np.flatnonzero, reader.labels)
        labels += [" ".join(map(str, row.tolist())) for row in rows]  # class numbers
    names = ("split", "id", "group")
    table: dict[str, list[str]] = {name: [getattr(image, name) for image in measures.images] for name in names}
    table |= {"label": labels} if any(labels) else {}
    table |= {name: _cells(measures.columns[name]) for name in ("height", "width", "objects", "foreground")}
    for (role, channel), values in measures.values.items():
        table |= {f"{role}/{channel} {name}": _cells(values[name]) for name in MEASURES}
    write_table(path, [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)])


def _cells(column: np.ndarray) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.10g}" for value in column]
