"""Fingerprint of a prepared dataset: the numbers that a plan follows from, most of them stored with the data."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from project.data.dataset_facts import DatasetFacts
from project.data.normalization import Levels, measure_levels
from project.data.store import SplitReader
from project.errors import UserError
from project.planning.appearance import Appearance, measure_appearance
from project.planning.experiment_file import describe_data


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
class Fingerprint:
    """What is known about a dataset before anything is trained.

    Attributes:
        dataset: Name.
        roles: Arrays and columns of each sample.
        n_train, n_val: Images.
        n_folds: 0 where the data is not divided into folds.
        sizes: Height and width -> number of training images.
        n_channels, dtype: Of the images.
        inputs, targets: Levels of the pixels, see `project.data.normalization`.
        appearance: Structure size, noise and symmetry of the inputs.
        mask: Class -> share of the annotated pixels; empty without a mask.
        background: Class of the mask that is not scored.
        objects: Of `instances`.
        labels: Class -> training images.
        multi_label: Whether an image may have several labels.
        facts: What a plan has to fit to, see `describe_data`.
    """

    dataset: str
    roles: tuple[str, ...]
    n_train: int
    n_val: int
    sizes: dict[tuple[int, int], int]
    n_channels: int = 1
    dtype: str = "uint16"
    inputs: Levels = field(default_factory=Levels)
    targets: Levels | None = None
    appearance: Appearance = field(default_factory=Appearance)
    n_folds: int = 0
    mask: dict[str, float] = field(default_factory=dict)
    background: str | None = None
    objects: Objects | None = None
    labels: dict[str, int] = field(default_factory=dict)
    multi_label: bool = False
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
    statistics, names = facts.statistics, facts.classes.get("label", [])
    return Fingerprint(
        dataset=folder.name,
        roles=facts.available_roles,
        n_train=len(train),
        n_val=n_val or (len(train) // n_folds if n_folds else 0),
        n_folds=n_folds,
        sizes=dict(Counter(facts.sizes)),
        n_channels=facts.n_channels["image"],
        dtype=train.dtypes["image"].name,
        inputs=measure_levels("image", readers, statistics["image"]),
        targets=measure_levels("target", readers, statistics["target"]) if "target" in train.dtypes else None,
        appearance=measure_appearance(train),
        mask=_class_shares(facts),
        background=facts.background,
        objects=_objects(statistics.get("instances")),
        labels={name: int(statistics["label"][name]) for name in names},
        multi_label=facts.multi_label,
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
