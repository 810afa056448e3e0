"""What stands in `configs/data/<dataset>.yaml`: where the raw images lie and how they are split."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from project.errors import UserError

PROCESSED = Path("data/processed")
SPLITS = ("train", "val", "test")


@dataclass
class SplitConfig:
    """How samples are divided.

    Attributes:
        by: "group" keeps all samples of a group in one split. "place" cuts every image into one region per split:
            for one large field, where neighbouring frames or tiles would leak.
        seed: Chooses which groups go where; nothing else does.
        fractions: Share of the samples (group) or of the image's length (place) per split.
        axis: Direction in which "place" cuts: "x" cuts columns, "y" rows.
        gap: Pixels left out between two regions, so that a structure on the border is in one split at most.
        regions: For "place", pixel ranges per split in place of `fractions` and `gap`, as `train: [0, 380]`.
    """

    by: Literal["group", "place"] = "group"
    seed: int = 0
    fractions: dict[str, float] = field(default_factory=lambda: {"train": 0.7, "val": 0.15, "test": 0.15})
    axis: Literal["x", "y"] = "x"
    gap: int = 0
    regions: dict[str, list[int]] | None = None


@dataclass
class TableConfig:
    """A CSV file with one row per sample.

    Attributes:
        path: Relative to the raw folder.
        id: Column that holds the sample's id, as the patterns give it.
        label: Column with the class of the image; numbers or names.
        group: Column with the group.
    """

    path: str
    id: str = "id"
    label: str | None = None
    group: str | None = None


@dataclass
class DatasetConfig:
    """One dataset: raw files, their roles, and the split.

    A pattern is a path below `raw` with `{id}` in it and any further `{field}`; `*` stands for anything; `[2]` at the
    end takes channel 2 of each file. All fields together make the sample's id.

    Attributes:
        raw: Folder of the raw images.
        image: Input channels in order, `name: pattern`.
        target: Target channels in order, `name: pattern`; for translation.
        mask: Pattern of the class images.
        instances: Pattern of the images of object numbers; 0 is background.
        ignore_index: Value in `mask` that stands for "not annotated".
        classes: Names of the classes in `mask` or of the labels, in the order of their numbers.
        group: What must not be separated, as a template of the fields, such as "{day}"; else the table's column, else
            each sample is its own group.
        table: CSV file with labels or groups.
        pages: What the pages of a stack are: "channels", or "samples" (a time series; its pages stay together).
        axes: Order of the axes in the files, as "CYX" or "YXC", where the files do not say.
        split: See `SplitConfig`.
        compression: "none" can be mapped into memory, and is fastest; "blosc2" takes about half the space.
        generate: Function that makes the raw files, for demo data: called as `function(folder, **arguments)`.
        generate_arguments: Its arguments.
    """

    raw: str
    image: dict[str, str]
    target: dict[str, str] = field(default_factory=dict)
    mask: str | None = None
    instances: str | None = None
    ignore_index: int | None = None
    classes: list[str] | None = None
    group: str | None = None
    table: TableConfig | None = None
    pages: Literal["channels", "samples"] = "channels"
    axes: str | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    compression: Literal["none", "blosc2"] = "none"
    generate: str | None = None
    generate_arguments: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = (set(self.split.fractions) | set(self.split.regions or {})) - set(SPLITS)
        if unknown:
            raise UserError(f"split: unknown split {sorted(unknown)}; the splits are train, val and test")
        if "train" not in (self.split.regions or {n for n, share in self.split.fractions.items() if share > 0}):
            raise UserError("split: there must be a train split")
        if not self.image:
            raise UserError("image: name at least one channel, as `image: {phase: 'phase/{id}.tif'}`")

    def patterns(self) -> dict[str, dict[str, str]]:
        """Role -> {channel name: pattern}."""
        roles = {"image": self.image, "target": self.target}
        roles |= {role: {role: p} for role, p in (("mask", self.mask), ("instances", self.instances)) if p}
        return {role: patterns for role, patterns in roles.items() if patterns}
