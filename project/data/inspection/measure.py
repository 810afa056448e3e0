"""Measurements of every sample of a split in one pass over the file, and images.csv."""

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from project.data.leakage import Image, read_images
from project.data.statistics import ChannelStatistics, Histogram
from project.data.store import SplitReader
from project.formatting import shorten

MEASURES = ("min", "max", "mean", "std", "contrast", "share_at_max", "saturated_share", "z", "n_not_finite")

Channel = tuple[str, str]  # role and name, such as ("image", "phase")


@dataclass
class ImageMeasures:
    """Measurements of one sample."""

    split: str
    id: str
    group: str
    compared: Image  # what a search of copies and near-duplicates needs
    size: tuple[int, ...]  # (H, W) in pixels
    # Channel -> `MEASURES`, None where no pixel is finite. `contrast` is the distance of the 1st and 99th percentile;
    # `channels` fills in "saturated_share", `outliers` "z".
    values: dict[Channel, dict[str, Any]] = field(default_factory=dict)
    objects: int | None = None  # number of objects in `instances`
    annotated: float | None = None  # share of the pixels of the mask that are annotated
    foreground: float | None = None  # share of the annotated pixels that are not background, if that is defined
    target_is_image: bool = False  # whether the target equals the input, pixel for pixel
    exposure_group: str = ""  # group for comparing brightness, see `project.data.drift.exposure_groups`

    def __str__(self) -> str:
        return f"{shorten(self.id)} ({self.compared.part})"


@dataclass
class SplitMeasures:
    """Measurements of one split, without its pixels."""

    reader: SplitReader
    images: list[ImageMeasures] = field(default_factory=list)  # one per sample
    statistics: dict[str, ChannelStatistics] = field(default_factory=lambda: defaultdict(ChannelStatistics))  # by role


def training_images(images: list[ImageMeasures]) -> list[ImageMeasures]:
    """The images that others are compared with: those of the training split, or all where there is none."""
    return [image for image in images if image.split == "train"] or images


def measure_split(name: str, reader: SplitReader, indices: Iterable[int] | None = None) -> SplitMeasures:
    """Measure all samples of a split; one sample is in memory at a time.

    Args:
        name: "train", "val" or "test".
        reader: The split.
        indices: All indices, for a progress bar.
    """
    split, compared = SplitMeasures(reader), read_images(reader, name, folds=True)
    for index in range(len(reader)) if indices is None else indices:
        size = reader.shapes["image"][index][-2:]
        image = ImageMeasures(name, reader.ids[index], reader.groups[index], compared[index], size)
        arrays = {role: reader.read(role, index) for role in ("image", "target") if role in reader.dtypes}
        for role, array in arrays.items():
            statistics = split.statistics[role].add(array)
            for channel, plane, numbers in zip(reader.channel_names(role), array, statistics, strict=True):
                known = bool(np.isfinite(numbers.mean))
                image.values[role, channel] = dict.fromkeys(MEASURES) | {"n_not_finite": numbers.n_not_finite}
                if known:
                    image.values[role, channel] |= {
                        **{measure: getattr(numbers, measure) for measure in ("min", "max", "mean", "std")},
                        # Where the percentiles are equal, the range is a wider one.
                        "contrast": numbers.high - numbers.low if numbers.cut == 1 else 0.0,
                        "share_at_max": np.count_nonzero(plane == numbers.max) / (plane.size - numbers.n_not_finite),
                    }
        image.target_is_image = "target" in arrays and np.array_equal(arrays["image"], arrays["target"])
        if "instances" in reader.dtypes:
            image.objects = int(np.count_nonzero(np.unique(reader.read("instances", index))))
        if reader.mask_counts is not None:
            counts, n_annotated = reader.mask_counts[index], reader.mask_counts[index].sum()
            image.annotated = float(n_annotated / np.prod(size))
            if n_annotated and reader.attributes.get("background") is not None:
                image.foreground = float(counts[reader.foreground].sum() / n_annotated)
        split.images.append(image)
    return split


def histograms(splits: dict[str, SplitMeasures]) -> dict[Channel, dict[str, Histogram]]:
    """Channel -> split -> counts of the values."""
    result: dict[Channel, dict[str, Histogram]] = defaultdict(dict)
    for name, split in splits.items():
        for role, statistics in split.statistics.items():
            for channel, histogram in zip(split.reader.channel_names(role), statistics.histograms, strict=True):
                result[role, channel][name] = histogram
    return result


def write_csv(path: Path, splits: dict[str, SplitMeasures]) -> None:
    """Write one row per sample; a column per measure and channel, as "image/phase mean"."""
    rows: list[dict[str, Any]] = []
    for split in splits.values():
        labels = split.reader.labels
        for index, image in enumerate(split.images):
            row: dict[str, Any] = {"split": image.split, "id": image.id, "group": image.group}
            if labels is not None:  # class numbers
                numbers = labels[index : index + 1] if labels.ndim == 1 else np.flatnonzero(labels[index])
                row["label"] = " ".join(map(str, numbers.tolist()))
            row |= {"height": image.size[0], "width": image.size[1]}
            row |= {"objects": image.objects, "foreground": image.foreground}
            for (role, channel), values in image.values.items():
                row |= {f"{role}/{channel} {name}": values[name] for name in MEASURES}
            rows.append(row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
