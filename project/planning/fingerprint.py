"""Fingerprint of a prepared dataset: the numbers that a plan follows from, most of them stored with the data."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from project.data.dataset_facts import DatasetFacts
from project.data.drift import exposure_groups, measure_drift
from project.data.statistics import ImageStatistics, value_range
from project.data.store import SplitReader
from project.errors import UserError
from project.planning.appearance import Appearance, measure_appearance
from project.planning.planned_data import describe_data

FIELD = {name: position for position, name in enumerate(ImageStatistics._fields)}


@dataclass(frozen=True)
class Objects:
    """Annotated objects of the training images; lengths in pixels, of disks of the same area.

    Attributes:
        n: Number of objects.
        touching: Share that is within two pixels of another one.
        diameter, large_diameter: Median and 95th percentile.
        smallest_area: 1st percentile of the areas, in pixels.
    """

    n: int
    touching: float
    diameter: float
    large_diameter: float
    smallest_area: float


@dataclass(frozen=True)
class Intensity:
    """Values of image or target, over all channels.

    Attributes:
        names: Of the channels.
        dtype: Of the file.
        tail: Largest distance of a channel's maximum from its median, relative to that of its 99.9th percentile.
        flat: Share of the images with a channel in which 98 % of the pixels are equal.
        spread: Standard deviation of the images' means, relative to that of the pixels of an image.
        factor: Largest ratio between the contrasts of groups, see `project.data.drift.exposure_groups`.
        shifted: Number of groups and splits with another brightness than the others, see `project.data.drift`.
    """

    names: tuple[str, ...]
    dtype: str
    tail: float = 1.0
    flat: float = 0.0
    spread: float = 0.0
    factor: float = 1.0
    shifted: int = 0


@dataclass(frozen=True)
class Fingerprint:
    """What is known about a dataset before anything is trained.

    Attributes:
        dataset: Name.
        roles: Arrays and columns of each sample.
        n_train, n_val, n_unlabeled: Images.
        n_folds: 0 where the data is not divided into folds.
        sizes: Height and width -> number of training images.
        image, target: Values of the pixels.
        appearance: Structure size, noise and symmetry of the inputs.
        mask: Class -> share of the annotated pixels; empty without a mask.
        background: Class of the mask that is not scored.
        ignore_index: Value of the mask that stands for "not annotated".
        objects: Of `instances`.
        labels: Class -> training images.
        multi_label: Whether an image may have several labels.
        brightness_informs: Share of the variance of what is predicted that the mean of an image explains, 0 to 1.
        facts: What a plan has to fit to, see `project.planning.planned_data`.
    """

    dataset: str
    roles: tuple[str, ...]
    n_train: int
    n_val: int
    sizes: dict[tuple[int, int], int]
    image: Intensity
    appearance: Appearance = field(default_factory=Appearance)
    target: Intensity | None = None
    n_unlabeled: int = 0
    n_folds: int = 0
    mask: dict[str, float] = field(default_factory=dict)
    background: str | None = None
    ignore_index: int | None = None
    objects: Objects | None = None
    labels: dict[str, int] = field(default_factory=dict)
    multi_label: bool = False
    values: tuple[str, ...] = ()
    brightness_informs: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def shortest(self) -> int:
        """Shortest side of a training image, in pixels."""
        return min(map(min, self.sizes))

    @property
    def longest(self) -> int:
        """Longest side of a training image, in pixels."""
        return max(map(max, self.sizes))

    @property
    def area(self) -> float:
        """Mean number of pixels of a training image."""
        return sum(h * w * n for (h, w), n in self.sizes.items()) / sum(self.sizes.values())

    @property
    def foreground(self) -> float:
        """Share of the annotated pixels that are not background; of the rarest class where there is none."""
        if self.background in self.mask:
            return 1 - self.mask[self.background]
        return min((share for share in self.mask.values() if share), default=1.0)


def measure_fingerprint(folder: Path) -> Fingerprint:
    """The fingerprint of a prepared dataset; reads metadata, and the pixels of some training images.

    Args:
        folder: `data/processed/<dataset>`.

    Raises:
        UserError: It is not prepared, has no training images, or its files are damaged.
    """
    readers = {name: SplitReader(path) for name in ("train", "val") if (path := folder / f"{name}.h5").is_file()}
    if "train" not in readers:
        raise UserError(f'"{folder}" has no train.h5; prepare the dataset first')
    train, facts = readers["train"], DatasetFacts(readers["train"])
    n_folds = 0 if train.folds is None else int(train.folds.max()) + 1
    n_val = len(readers["val"]) if "val" in readers else 0
    unlabeled = folder / "unlabeled.h5"
    statistics, names = facts.statistics, facts.classes.get("label", [])
    image = _intensity("image", readers)
    return Fingerprint(
        dataset=folder.name,
        roles=facts.available_roles,
        n_train=len(train),
        n_val=n_val or (len(train) // n_folds if n_folds else 0),
        n_unlabeled=len(SplitReader(unlabeled)) if unlabeled.is_file() else 0,
        n_folds=n_folds,
        sizes=dict(Counter(facts.sizes)),
        image=image,
        target=_intensity("target", readers) if "target" in train.dtypes else None,
        appearance=measure_appearance(train),
        mask=_class_shares(facts),
        background=facts.background,
        ignore_index=facts.ignore_index,
        objects=_objects(statistics.get("instances")),
        labels={name: int(statistics["label"][name]) for name in names},
        multi_label=facts.multi_label,
        values=tuple(facts.channels.get("value", ())) if train.values is not None else (),
        brightness_informs=_brightness_informs(train),
        facts=describe_data(facts),
    )


def _objects(statistics: dict[str, Any] | None) -> Objects | None:
    if not statistics or not statistics["n"]:
        return None
    areas = statistics["area_percentiles"]
    diameter, large = (2 * math.sqrt(areas[p] / math.pi) for p in ("50", "95"))
    n = statistics["n"]
    return Objects(n, statistics["n_touching"] / n, diameter, large, areas["1"])


def _class_shares(facts: DatasetFacts) -> dict[str, float]:
    counts = facts.statistics.get("mask", {})
    pixels = {n: counts.get(str(k), 0) for k, n in enumerate(facts.classes.get("mask", [])) if k != facts.ignore_index}
    return {name: n / max(sum(pixels.values()), 1) for name, n in pixels.items()}


def _intensity(role: str, readers: dict[str, SplitReader]) -> Intensity:
    train = readers["train"]
    rows = train.image_statistics[role]
    mean, std = (np.nan_to_num(rows[..., FIELD[name]]) for name in ("mean", "std"))
    typical = np.median(std, axis=0)
    drift = measure_drift(readers)
    parts = [p for by in (drift.splits, drift.groups) for name, p in by.items() if name.startswith(f"{role}/")]
    shifted = {name for part in parts for name, brightness in part.items() if brightness.difference}
    return Intensity(
        names=tuple(train.channel_names(role)),
        dtype=train.dtypes[role].name,
        tail=max((_tail(channel) for channel in train.attributes["statistics"][role]), default=1.0),
        flat=float((rows[..., FIELD["cut"]] < 1).any(1).mean()),
        spread=float(np.max(mean.std(0) / np.where(typical > 0, typical, np.inf), initial=0.0)),
        factor=_contrast_factor(exposure_groups(train.ids, train.groups), std),
        shifted=len(shifted),
    )


def _tail(channel: dict[str, Any]) -> float:
    low, high, _ = value_range(channel)
    middle = channel["percentiles"]["50"]
    return max(channel["max"] - middle, 0) / max(high - middle, 1e-12) if high > low else 1.0


def _contrast_factor(groups: list[str], std: np.ndarray) -> float:
    """Largest ratio between the contrasts (N, C) of groups, the 10th to the 90th percentile of their medians."""
    names = np.array(groups)
    levels = np.array([np.median(std[names == name], axis=0) for name in dict.fromkeys(groups)])
    low, high = np.quantile(levels, [0.1, 0.9], axis=0, method="nearest")
    return float(max((b / a for a, b in zip(low, high, strict=True) if a > 0), default=1.0))


def _brightness_informs(train: SplitReader) -> float:
    """Largest share of the variance of labels, values or mean targets that the images' mean brightness explains."""
    predictors = train.image_statistics["image"][..., FIELD["mean"]]
    if train.labels is not None:
        # The labels as 0 and 1 for each class, explained by brightness or the other way round: the share is the same.
        labels = train.labels if train.labels.ndim == 2 else np.eye(train.labels.max() + 1)[train.labels]
    elif train.values is not None:
        labels = train.values
    elif "target" in train.image_statistics:
        labels = train.image_statistics["target"][..., FIELD["mean"]]
    else:
        return 0.0
    return max((_determination(x, y) for x in predictors.T for y in labels.T), default=0.0)


def _determination(x: np.ndarray, y: np.ndarray) -> float:
    """Squared correlation, corrected for the number of pairs (adjusted R2)."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 4 or not x.std() or not y.std():
        return 0.0
    share = float(np.corrcoef(x, y)[0, 1] ** 2)
    return max(0.0, 1 - (1 - share) * (len(x) - 1) / (len(x) - 2))
