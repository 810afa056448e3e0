"""Measurements of every sample of a dataset in one pass over its files, and images.csv."""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from project.data.drift import exposure_groups
from project.data.leakage import Image, read_image
from project.data.statistics import Histogram
from project.data.store import SplitReader

MEASURES = ("min", "max", "mean", "std", "contrast", "share_at_max", "saturated_share", "z", "n_not_finite")

Channel = tuple[str, str]  # role and name, such as ("image", "phase")


@dataclass
class Measures:
    """Measurements of all N samples, split by split. Numbers are NaN where they are not defined."""

    readers: dict[str, SplitReader]
    images: list[Image]  # names, and what a search of copies and near-duplicates needs
    # Columns (N,): "height" and "width" in pixels, "objects" (their number), "annotated" (share of the pixels of the
    # mask), "foreground" (share of the annotated pixels), "target_is_image" (1 where it equals the input).
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
        images = self.images
        return np.array(exposure_groups([image.id for image in images], [image.group for image in images]))


def measure_dataset(
    readers: dict[str, SplitReader], track: Callable[[range, str], Iterable[int]] = lambda indices, _: indices
) -> Measures:
    """Measure all samples of the splits; one sample is in memory at a time. `track` draws a progress bar."""
    images: list[Image] = []
    rows: list[dict[str, float]] = []
    values: dict[Channel, list[dict[str, float]]] = defaultdict(list)
    histograms: dict[Channel, dict[str, Histogram]] = defaultdict(dict)
    for split, reader in readers.items():
        for index in track(range(len(reader)), f"Measuring {split}"):
            arrays = {role: reader.read(role, index) for role in reader.image_statistics}
            images.append(read_image(reader, split, index, folds=True, pixels=arrays["image"]))
            for role, array in arrays.items():
                for name, plane in zip(reader.channel_names(role), array, strict=True):
                    by_split = histograms[role, name]
                    if split not in by_split:
                        by_split[split] = Histogram(plane.dtype)
                    values[role, name].append(_measure_plane(plane, by_split[split]))
            rows.append(_measure_sample(reader, index, arrays))
    return Measures(
        readers,
        images,
        _columns(rows),
        {channel: _columns(measured) for channel, measured in values.items()},
        histograms,
    )


def _columns(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def _measure_plane(plane: np.ndarray, histogram: Histogram) -> dict[str, float]:
    """Count one channel of an image, and measure it."""
    numbers = histogram.count(plane)
    at_max = np.count_nonzero(plane == numbers.max)
    return {
        **{measure: getattr(numbers, measure) for measure in ("min", "max", "mean", "std", "n_not_finite")},
        # Where the percentiles are equal, the range is a wider one.
        "contrast": (numbers.high - numbers.low) * (numbers.cut == 1),
        "share_at_max": at_max / max(plane.size - numbers.n_not_finite, 1),
    }


def _measure_sample(reader: SplitReader, index: int, arrays: dict[str, np.ndarray]) -> dict[str, float]:
    height, width = arrays["image"].shape[-2:]
    row = {"height": height, "width": width, "objects": np.nan, "annotated": np.nan, "foreground": np.nan}
    row["target_is_image"] = "target" in arrays and np.array_equal(arrays["image"], arrays["target"])
    if "instances" in reader.dtypes:
        row["objects"] = np.count_nonzero(np.unique(reader.read("instances", index)))
    if reader.mask_counts is not None:
        counts = reader.mask_counts[index]
        row["annotated"] = counts.sum() / (height * width)
        if counts.any() and reader.attributes.get("background") is not None:
            row["foreground"] = counts[reader.foreground].sum() / counts.sum()
    return row


def write_csv(path: Path, measures: Measures) -> None:
    """Write one row per sample; a column per measure and channel, as "image/phase mean"."""
    images, labels = measures.images, list[str]()
    for reader in measures.readers.values():
        if reader.labels is None:
            labels += [""] * len(reader)
            continue
        rows = reader.labels[:, None] if reader.labels.ndim == 1 else map(np.flatnonzero, reader.labels)
        labels += [" ".join(map(str, row.tolist())) for row in rows]  # class numbers
    table: dict[str, list[str]] = {
        **{name: [getattr(image, name) for image in images] for name in ("split", "id", "group")},
        **({"label": labels} if any(labels) else {}),
        **{name: _cells(measures.columns[name]) for name in ("height", "width", "objects", "foreground")},
    }
    for (role, channel), values in measures.values.items():
        table |= {f"{role}/{channel} {name}": _cells(values[name]) for name in MEASURES}
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([table, *zip(*table.values(), strict=True)])


def _cells(column: np.ndarray) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.10g}" for value in column]
