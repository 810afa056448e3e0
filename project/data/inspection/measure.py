"""Measurements of every sample of a split in one pass over the file, and images.csv."""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from project.data.duplicates import SIGNATURE, signature
from project.data.leakage import Image
from project.data.split_metadata import digest
from project.data.statistics import ChannelStatistics, Histogram, ImageStatistics
from project.data.store import SplitReader
from project.formatting import shorten

MEASURES = ("min", "max", "mean", "std", "contrast", "share_at_max", "saturated_share", "z", "n_not_finite")
CONTRAST = (0.01, 0.99)  # the contrast of an image is the distance of these quantiles: single hot pixels do not count

Channel = tuple[str, str]  # role and name, such as ("image", "phase")


@dataclass
class ImageMeasures:
    """Measurements of one sample.

    Attributes:
        split, id, group, fold: Which sample; no fold where the data has none.
        label: Class number, several where an image may have several classes, or None.
        size: (H, W) in pixels.
        values: Channel -> `MEASURES`, None where no pixel is finite. `channels` fills in "saturated_share", `outliers`
            "z".
        digests: Role -> digest of the pixels.
        signature: Of the input, for near-duplicates.
        objects: Number of objects in `instances`, or None.
        annotated: Share of the pixels of the mask that are annotated, or None without a mask.
        foreground: Share of the annotated pixels that are not background; None if it is not defined.
        exposure_group: Group for comparing brightness, see `project.data.drift.exposure_groups`.
    """

    split: str
    id: str
    group: str
    fold: int | None
    label: int | tuple[int, ...] | None
    size: tuple[int, ...]
    values: dict[Channel, dict[str, Any]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    signature: np.ndarray = field(default_factory=lambda: np.zeros(SIGNATURE, np.uint8))
    objects: int | None = None
    annotated: float | None = None
    foreground: float | None = None
    exposure_group: str = ""

    def __str__(self) -> str:
        return f"{shorten(self.id)} ({self.for_leakage('image').part})"

    def for_leakage(self, role: str) -> Image:
        """Input or target, for a search of copies; blank ones have no digest, since all are equal."""
        blank = all(v["min"] == v["max"] for (of, _), v in self.values.items() if of == role)
        code = b"" if blank else bytes.fromhex(self.digests.get(role, ""))
        return Image(self.id, self.split, self.group, self.fold, code, self.signature)


@dataclass
class SplitMeasures:
    """Measurements of one split, without its pixels.

    Attributes:
        reader: The file.
        images: One per sample.
        statistics: Role -> histograms of its channels.
        mask: Class number -> pixels.
    """

    reader: SplitReader
    images: list[ImageMeasures] = field(default_factory=list)
    statistics: dict[str, ChannelStatistics] = field(default_factory=lambda: defaultdict(ChannelStatistics))
    mask: Counter[int] = field(default_factory=Counter)


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
    split = SplitMeasures(reader)
    channels = {role: reader.channel_names(role) for role in ("image", "target") if role in reader.dtypes}
    for index in range(len(reader)) if indices is None else indices:
        label = None if reader.labels is None else _label(reader.labels[index])
        fold = None if reader.folds is None else int(reader.folds[index])
        size = reader.shapes["image"][index][-2:]
        image = ImageMeasures(name, reader.ids[index], reader.groups[index], fold, label, size)
        for role in reader.dtypes:
            array = reader.read(role, index)
            if role == "instances":
                image.objects = int(np.count_nonzero(np.unique(array)))
            elif role == "mask":
                _count_classes(image, array, reader, split.mask)
            elif role in channels:
                image.digests[role] = digest(array)
                statistics = split.statistics[role].add(array)
                for channel, plane, numbers in zip(channels[role], array, statistics, strict=True):
                    image.values[role, channel] = _measure(plane, numbers)
                if role == "image":
                    stored = reader.signatures
                    image.signature = signature(array) if stored is None else stored[index]
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


def write_csv(path: Path, images: list[ImageMeasures]) -> None:
    """Write one row per sample; a column per measure and channel, as "image/phase mean"."""
    rows = []
    for image in images:
        label = " ".join(map(str, image.label)) if isinstance(image.label, tuple) else image.label
        row: dict[str, Any] = {"split": image.split, "id": image.id, "group": image.group, "label": label}
        row |= {"height": image.size[0], "width": image.size[1]}
        row |= {"objects": image.objects, "foreground": image.foreground}
        for (role, channel), values in image.values.items():
            row |= {f"{role}/{channel} {name}": values[name] for name in MEASURES}
        rows.append(row | {f"{role} digest": code for role, code in image.digests.items()})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _label(label: np.ndarray) -> int | tuple[int, ...]:
    """The class number, or the numbers where an image may have several classes."""
    return int(label) if label.ndim == 0 else tuple(np.flatnonzero(label).tolist())


def _count_classes(image: ImageMeasures, mask: np.ndarray, reader: SplitReader, total: Counter[int]) -> None:
    ignore, background = reader.attributes.get("ignore_index"), reader.attributes.get("background")
    counts = Counter(dict(zip(*(a.tolist() for a in np.unique(mask, return_counts=True)), strict=True)))
    total.update(counts)
    annotated = mask.size - (0 if ignore is None else counts.pop(ignore, 0))
    image.annotated = annotated / mask.size
    if annotated and background is not None:
        image.foreground = 1 - counts[reader.attributes["classes"]["mask"].index(background)] / annotated


def _measure(plane: np.ndarray, statistics: ImageStatistics) -> dict[str, Any]:
    finite = plane[np.isfinite(plane)] if plane.dtype.kind == "f" else plane.ravel()
    if not finite.size:
        return dict.fromkeys(MEASURES) | {"n_not_finite": statistics.n_not_finite}
    low, high = (round(share * (finite.size - 1)) for share in CONTRAST)
    ordered = np.partition(finite, (low, high))
    return {
        **statistics._asdict(),
        "contrast": float(ordered[high]) - float(ordered[low]),
        "share_at_max": float((finite == statistics.max).mean()),
        "saturated_share": None,
        "z": None,
    }
