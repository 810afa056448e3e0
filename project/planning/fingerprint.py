"""Fingerprint of a prepared dataset: the numbers that a plan follows from, most of them stored with the data."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from project.data.dataset_facts import DatasetFacts
from project.data.drift import measure_drift
from project.data.normalization import Levels, measure_levels
from project.data.store import SplitReader
from project.planning.appearance import Appearance, measure_appearance


@dataclass(frozen=True)
class Objects:
    """Annotated objects of the training images; lengths in pixels, of disks of the same area."""

    n: int
    touching: float  # share that is within two pixels of another one
    diameter: float  # median
    large_diameter: float  # 95th percentile
    smallest_area: float  # 1st percentile, in pixels


@dataclass(frozen=True)
class Fingerprint:
    """What is known about a dataset before anything is trained."""

    dataset: str
    roles: tuple[str, ...]  # arrays and columns of each sample
    n_train: int
    n_val: int
    sizes: dict[tuple[int, int], int]  # height and width -> number of training images
    n_channels: int = 1
    dtype: str = "uint16"
    inputs: Levels = field(default_factory=Levels)
    targets: Levels | None = None
    appearance: Appearance = field(default_factory=Appearance)
    n_folds: int = 0  # where the data is not divided into folds
    mask: dict[str, float] = field(default_factory=dict)  # class -> share of the annotated pixels; empty without a mask
    background: str | None = None  # class of the mask that is not scored
    objects: Objects | None = None
    labels: dict[str, int] = field(default_factory=dict)  # class -> training images
    multi_label: bool = False  # whether an image may have several labels
    facts: dict[str, Any] = field(default_factory=dict)  # what a plan has to fit to, see `describe_data`

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
    """The fingerprint of `data/processed/<dataset>`; reads metadata, and the pixels of some training images.

    Raises:
        UserError: It is not prepared, or its files are damaged.
    """
    train = SplitReader(folder / "train.h5")
    readers, facts = {"train": train}, DatasetFacts(train)
    if (path := folder / "val.h5").is_file():
        readers["val"] = SplitReader(path)
    n_folds = 0 if train.folds is None else int(train.folds.max()) + 1
    n_val = len(readers["val"]) if "val" in readers else 0
    statistics, names, drift = facts.statistics, facts.classes.get("label", []), measure_drift(readers)
    counts = statistics.get("mask", {})
    pixels = {n: counts.get(str(k), 0) for k, n in enumerate(facts.classes.get("mask", [])) if k != facts.ignore_index}
    levels = {role: measure_levels(role, train, statistics[role], drift) for role in train.image_statistics}
    return Fingerprint(
        dataset=folder.name,
        roles=facts.available_roles,
        n_train=len(train),
        n_val=n_val or (len(train) // n_folds if n_folds else 0),
        n_folds=n_folds,
        sizes=dict(Counter(facts.sizes)),
        n_channels=facts.n_channels["image"],
        dtype=train.dtypes["image"].name,
        inputs=levels["image"],
        targets=levels.get("target"),
        appearance=measure_appearance(train),
        mask={name: n / max(sum(pixels.values()), 1) for name, n in pixels.items()},
        background=facts.background,
        objects=_objects(statistics.get("instances")),
        labels={name: int(statistics["label"][name]) for name in names},
        multi_label=facts.multi_label,
        facts=describe_data(facts),
    )


def _objects(statistics: dict[str, Any] | None) -> Objects | None:
    if not statistics:
        return None
    areas = statistics["area_percentiles"]
    diameter, large = (2 * math.sqrt(areas[p] / math.pi) for p in ("50", "95"))
    n = statistics["n"]
    return Objects(n, statistics["n_touching"] / n, diameter, large, areas["1"])


def describe_data(data: DatasetFacts) -> dict[str, str]:
    """What a plan has to fit to, in words."""
    sides = sorted({side for size in data.sizes for side in size})
    size = "{} x {}".format(*data.sizes[0]) if len(set(data.sizes)) == 1 else f"{sides[0]} to {sides[-1]} pixels"
    facts = {"training images": str(len(data.sizes)), "size": size}
    for name, n in data.n_channels.items():
        facts[name] = f"{n} {'number' if name == 'value' else 'channel'}{'s' * (n > 1)}"
    facts |= {name: f"{len(names)} classes" for name, names in data.classes.items() if names}
    if objects := data.statistics.get("instances"):
        facts["objects"] = str(objects["n"])
    return facts | {"content": data.readers["train"].content_hash[:12]}
