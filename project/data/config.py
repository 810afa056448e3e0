"""Data config, `configs/data/<dataset>.yaml`: where the raw images are, what they mean, and how they are split."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from project.data.path_patterns import expand_channels, field_names

PROCESSED = Path("data/processed")
SPLITS = ("train", "val", "test")
# Names of folders, table cells or entries of `arrays` that give a split.
GIVEN_SPLITS = {name: name for name in SPLITS} | {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}
PAGE_USES = ("samples", "channels", "max", "mean")
AUTO = "auto"  # `background`, where the configuration does not say


def given_split(text: str) -> str | None:
    """The split that a folder or a configuration names, or None."""
    return GIVEN_SPLITS.get(text.casefold())


def makes_mask(roles: Collection[str]) -> bool:
    """Whether the mask of a dataset with these raw roles is made of the objects."""
    return "instances" in roles and "mask" not in roles


class Section:
    """Keys of a data config, for pydantic: no others are allowed."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class SplitConfig(Section):
    """How samples are divided.

    Samples whose split is given (`{split}` in a pattern, `split` in `arrays`, `table.split`, `file`) stay where they
    are; the rest is divided by `fractions`. Where every sample has a given split, none of them is given as val, and
    `fractions` has a share for val, the given training samples are divided into train and val in this ratio.
    """

    # "group" keeps all samples of a group in one split. "place" cuts every image into one region per split, for one
    # large field, where neighboring tiles would leak; images of one group (all, without groups) at the same pixels.
    by: Literal["group", "place"] = "group"
    seed: int = 0  # decides which groups go into which split
    # Share of the samples (group) or of the image's length (place) per split.
    fractions: dict[str, float] = field(default_factory=lambda: {"train": 0.7, "val": 0.15, "test": 0.15})
    axis: Literal["x", "y"] = "x"  # direction in which "place" cuts: "x" cuts columns, "y" rows
    gap: int = 0  # pixels left out between two regions, so that a structure on the border is in one split at most
    stratify: bool = False  # equal shares of the label classes in all splits and folds, as far as whole groups allow
    # Number of folds for cross-validation, from 2 on; 0 for none. train.h5 then holds all samples but those of test,
    # with their folds; training with `FOLD=k` validates on fold k. Only test counts in `fractions`.
    folds: int = 0
    # CSV file below `raw` with the columns "id" (see `TableConfig.id`) and "split", a row for each image; an empty
    # split gives none.
    file: str | None = None

    def __post_init__(self) -> None:
        if self.folds:  # everything but test is training data, so that the fractions in the file say what was done
            self.fractions = self.fractions | {"train": 1 - self.fractions.get("test", 0), "val": 0.0}


@dataclass
class TableConfig(Section):
    """A CSV table with one row per sample."""

    path: str  # relative to the raw folder
    id: str = "id"  # column with the sample's id, or the name or path of its file; zeros and suffixes may be missing
    label: str | None = None  # column with the class of the image; numbers or names
    group: str | None = None  # column with the group
    split: str | None = None  # column with the split that a sample belongs to; an empty cell gives none
    values: list[str] = field(default_factory=list)  # columns with numbers to be predicted, the array `value`
    # Text between the classes of an image that may have several, as ";" in "round;budding"; an empty cell has none.
    separator: str | None = None


@dataclass
class PolygonConfig(Section):
    """Outlines in GeoJSON files, from which `instances` (a number per feature) and `mask` (its class) are drawn.

    Coordinates are pixels: x to the right, y down, (0, 0) the upper left corner of the image. A pixel belongs to a
    polygon if its center lies in it. Where features overlap, the later one is on top. Files with a `crs` are refused.
    """

    path: str  # a pattern of the same fields as the images, such as "outlines/{id}.geojson"
    # Property with the class, a name among `classes: {mask: ...}` (whose first is the background) or a number; of an
    # object of properties as "classification.name". By default the mask is 0 background, 1 object.
    label: str | None = None


@dataclass
class SizesConfig(Section):
    """Treatment of images that differ in size."""

    # "keep" keeps each size. "crop" takes the middle, "pad" repeats the last column and row (masks: `ignore_index`, if
    # there is one), "resize" interpolates (masks: nearest), all to `size`. "tile" cuts into full tiles of `size`.
    how: Literal["keep", "crop", "pad", "resize", "tile"]
    size: int | list[int] | None = None  # pixels, of a square or as [height, width]
    overlap: int = 0  # least number of pixels that neighboring tiles share


@dataclass
class ArrayConfig(Section):
    """Files that hold many samples each, along their first axis.

    A file is NPY, NPZ or HDF5 (with the name of the array, as "set.npz:train_images", "set.h5:raw/images") or IDX, the
    format of MNIST, plain or with gzip. Paths are relative to the raw folder.
    """

    image: str  # (N, Y, X) or with channels
    target: str | None = None  # the same; for translation
    mask: str | None = None  # classes of the pixels, (N, Y, X)
    instances: str | None = None  # object numbers of the pixels, (N, Y, X)
    label: str | None = None  # class numbers, (N,) or (N, 1), or zeros and ones for several classes per image, (N, K)
    # Order of the axes of arrays with channels, as "NYXC" or "NCYX"; by default the short axis (4 or less) has them.
    axes: str | None = None
    split: str | None = None  # that all samples of this entry belong to, if it is given

    def files(self) -> dict[str, str]:
        """Role ("label" among them) -> file."""
        roles = ("image", "target", "mask", "instances", "label")
        return {role: file for role in roles if (file := getattr(self, role))}


@dataclass
class DatasetConfig(Section):
    """One dataset: raw files, their roles, and the split.

    A pattern is a path below `raw` with `{id}` in it and any further `{field}`; `*` stands for anything; `[2]` at the
    end takes channel 2 of each file. All fields together make the sample's id: their values joined by "/", in the
    alphabetical order of their names, `{id}` last. `{label}` is the class of the image, `{split}` the split it belongs
    to. `{split:train|val|test}` restricts a field, in all patterns; `{0..12}` or `{405|488}` makes one channel of each,
    called `name[0]`, `name[1]`, ...; `{00..12}` pads with zeros.

    Raises:
        UserError: Settings that do not go together.
    """

    raw: str  # folder of the raw images
    image: dict[str, str] = field(default_factory=dict)  # input channels in order, `name: pattern`
    target: dict[str, str] = field(default_factory=dict)  # target channels in order, for translation
    # Patterns of further images without targets, with the names of `image`: they become unlabeled.h5, for training
    # without labels. Each is a separate group.
    unlabelled: dict[str, str] = field(default_factory=dict)
    mask: str | None = None  # pattern of the class images; a dataset with `instances` only gets one made of the objects
    instances: str | None = None  # pattern of the images of object numbers; 0 is background
    polygons: PolygonConfig | None = None  # GeoJSON outlines, instead of `mask` and `instances`
    # Files with many samples each, instead of all these patterns. Channels are then called "0", "1", ...
    arrays: list[ArrayConfig] = field(default_factory=list)
    # Your own class that finds the samples, instead of all these: `class_path` and `init_args`; see
    # `project.data.raw.sources.Source`.
    source: dict[str, Any] | None = None
    # For `image` files of mixed kind: "rgb" repeats grey three times, "grey" takes the mean of red, green and blue,
    # rounded to the dtype of the file. Both drop alpha and look up the colors of a palette.
    convert: Literal["rgb", "grey"] | None = None
    # Value in the mask files -> class number, such as `{0: 0, 255: 1}`, where they are not the class numbers
    # themselves; values may be negative. `ignore_index` stays as it is.
    mask_values: dict[int, int] | None = None
    ignore_index: int | None = None  # value in `mask` for "not annotated"
    # Names in the order of the class numbers, `mask: [...]` for those of the pixels and `label: [...]` for those of the
    # images; a plain list where there is only one of the two. By default a mask has the classes "0", "1", ... without
    # gaps, a mask made of objects "background" and "object"; labels are called as in the table or the folders. YAML
    # reads [0, 1] as numbers.
    classes: dict[str, list[Any]] | list[Any] = field(default_factory=dict)
    # Class of the mask that is left out of mean scores, a name (without names its number, "0"); null where all classes
    # count. "auto": class 0 of a mask that is made of `instances` or `polygons`, or that has no names beside
    # `instances`; else the class with a name for background, such as "none"; else none. `make data` prints it.
    background: str | int | None = AUTO
    # Of two classes of the images, the one that precision, recall, F1 and average precision are of; by default the
    # second one.
    positive: str | int | None = None
    # Samples that must not be separated, as a template of the fields, such as "{day}"; else the table's column, else
    # each sample is its own group.
    group: str | None = None
    table: TableConfig | None = None  # labels, groups, splits or values
    # Meaning of the pages of a stack: "channels", or "samples" (a time series; its pages stay together). For files with
    # several further axes, what each is, as `{T: samples, C: channels, Z: max}`; an axis may also be "mean" (rounded
    # for integers) or a position, counted from 0.
    pages: Literal["channels", "samples"] | dict[str, str | int] = "channels"
    axes: str | None = None  # order of the axes in the files, as "CYX" or "YXC", where the files do not say
    sizes: SizesConfig | None = None  # needed where images differ in size
    # Number that replaces NaN and infinities, and so pixels of floats that a file declares as "no data"; without it
    # they are an error.
    not_finite: float | None = None
    # "stop" lists all samples that cannot be used and writes nothing; "skip" leaves them out and records them in the
    # file (`skipped`).
    on_error: Literal["stop", "skip"] = "stop"
    # Treatment of images that look the same in different splits; "drop" keeps those of one split: test images, else
    # those of val. It leaves out exact copies too, which are otherwise always refused. All pairs are listed in
    # `data/processed/<dataset>.near_duplicates.csv`.
    near_duplicates: Literal["refuse", "warn", "ignore", "drop"] = "refuse"
    split: SplitConfig = field(default_factory=SplitConfig)
    compression: Literal["none", "blosc2"] = "none"  # "none" is mapped into memory; "blosc2" takes half the space
    generate: str | None = None  # function that makes the raw files of demo data: `function(folder, **arguments)`
    generate_arguments: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("image", "target", "unlabelled"):
            setattr(self, name, expand_channels(getattr(self, name)))
        for name in ("background", "positive"):  # YAML reads the name of a class without names, 0, as a number
            setattr(self, name, None if getattr(self, name) is None else str(getattr(self, name)))
        from project.data.config_checks import check_dataset  # which imports this class

        check_dataset(self)

    def as_json(self) -> dict[str, Any]:
        """As the files hold it: tuples are lists, keys are text, and so are dates among the arguments of a source."""
        return dict(json.loads(json.dumps(asdict(self), default=str)))

    def patterns(self) -> dict[str, dict[str, str]]:
        """Role -> {channel name: pattern}, of outlines as instances; empty for `arrays` and `source`."""
        roles = {"image": self.image, "target": self.target}
        instances = self.polygons.path if self.polygons else self.instances
        roles |= {role: {role: p} for role, p in (("mask", self.mask), ("instances", instances)) if p}
        return {role: patterns for role, patterns in roles.items() if patterns}

    def class_names(self, role: str) -> list[str]:
        """The names given for "mask" or "label"; empty where there are none."""
        return self.classes.get(role, []) if isinstance(self.classes, dict) else self.classes

    @property
    def raw_roles(self) -> list[str]:
        """Roles with pixels, in the order image, target, mask, instances; those of a `source` are unknown."""
        roles = [role for role in self.arrays[0].files() if role != "label"] if self.arrays else list(self.patterns())
        return [*roles[:-1], "mask", "instances"] if self.polygons and self.polygons.label else roles

    def sources(self, column: str) -> list[str]:
        """The keys that give "label" or "split", in words; more than one is refused."""
        sources = {
            f"the column `table.{column}`": self.table and getattr(self.table, column),
            f"the field {{{column}}}": any(column in field_names(pattern) for pattern in self.all_patterns()),
            f"`{column}` in `arrays`": any(getattr(entry, column) for entry in self.arrays),
            "`split.file`": column == "split" and self.split.file,
        }
        return [source for source, is_set in sources.items() if is_set]

    def all_patterns(self) -> list[str]:
        """The patterns of all roles."""
        return [pattern for role in self.patterns().values() for pattern in role.values()]
