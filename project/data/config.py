"""What stands in `configs/data/<dataset>.yaml`: where the raw images lie and how they are split."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from project.errors import UserError, listed

PROCESSED = Path("data/processed")
SPLITS = ("train", "val", "test")
# How a folder or an entry of `arrays` may call a split that is given.
GIVEN_SPLITS = {name: name for name in SPLITS} | {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}


def given_split(text: str) -> str | None:
    """The split that a folder or a configuration means, or None where it means none."""
    return GIVEN_SPLITS.get(text.casefold())


@dataclass
class SplitConfig:
    """How samples are divided.

    Samples whose split is given (`{split}` in a pattern, `split` in `arrays`) stay where they are; the rest is divided
    by `fractions`. Where every sample has a given split, none of them is given as val, and `fractions` has a share for
    val, the given training samples are divided into train and val, in the ratio of these two fractions.

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
        separator: What stands between the classes of an image that may have several, as ";" in "round;budding". The
            labels are then multi-label, and an empty cell means none of the classes.
    """

    path: str
    id: str = "id"
    label: str | None = None
    group: str | None = None
    separator: str | None = None


@dataclass
class ArrayConfig:
    """Files that hold many samples each, along their first axis.

    A file is NPY, NPZ (with the name of the array, as "set.npz:train_images") or IDX, the format of MNIST, plain or
    with gzip. Paths are relative to the raw folder.

    Attributes:
        image: Input, (N, Y, X) or with channels.
        target: Target, the same; for translation.
        mask: Classes of the pixels, (N, Y, X).
        instances: Object numbers of the pixels, (N, Y, X).
        label: Class numbers, (N,) or (N, 1), or zeros and ones for several classes per image, (N, K).
        axes: Order of the axes of arrays with channels, as "NYXC" or "NCYX"; by default the short axis (4 or less) has
            the channels. Arrays without channels are (N, Y, X).
        split: The split that all samples of this entry belong to, if it is given.
    """

    image: str
    target: str | None = None
    mask: str | None = None
    instances: str | None = None
    label: str | None = None
    axes: str | None = None
    split: str | None = None

    def files(self) -> dict[str, str]:
        """Role ("label" among them) -> file."""
        roles = ("image", "target", "mask", "instances", "label")
        return {role: file for role in roles if (file := getattr(self, role))}


@dataclass
class DatasetConfig:
    """One dataset: raw files, their roles, and the split.

    A pattern is a path below `raw` with `{id}` in it and any further `{field}`; `*` stands for anything; `[2]` at the
    end takes channel 2 of each file. All fields together make the sample's id. Two fields have a meaning: `{label}` is
    the class of the image, `{split}` (train, val, test, or training, valid, validation, testing) the split it belongs
    to.

    Attributes:
        raw: Folder of the raw images.
        image: Input channels in order, `name: pattern`.
        target: Target channels in order, `name: pattern`; for translation.
        mask: Pattern of the class images. A dataset with `instances` and no `mask` gets one made of the objects: 0 is
            background, 1 object.
        instances: Pattern of the images of object numbers; 0 is background.
        arrays: Files with many samples each, in place of all these patterns. Channels are then called "0", "1", ...
        convert: For `image` files of mixed kind: "rgb" repeats grey three times, "grey" takes the plain mean of red,
            green and blue, rounded to the dtype of the file. Both drop alpha and look up the colours of a palette.
        ignore_index: Value in `mask` that stands for "not annotated".
        classes: Names in the order of the class numbers, `mask: [...]` for those of the pixels and `label: [...]` for
            those of the images; a plain list where there is only one of the two. By default a mask has the classes
            "0", "1", ... up to its largest value, a mask made of objects "background" and "object"; labels are called
            as in the table or the folders.
        group: What must not be separated, as a template of the fields, such as "{day}"; else the table's column, else
            each sample is its own group.
        table: CSV file with labels or groups.
        pages: What the pages of a stack are: "channels", or "samples" (a time series; its pages stay together).
        axes: Order of the axes in the files, as "CYX" or "YXC", where the files do not say.
        split: See `SplitConfig`.
        compression: "none" can be mapped into memory, and is fastest; "blosc2" takes about half the space.
        generate: Function that makes the raw files, for demo data: called as `function(folder, **arguments)`.
        generate_arguments: Its arguments.

    Raises:
        UserError: Settings that do not go together.
    """

    raw: str
    image: dict[str, str] = field(default_factory=dict)
    target: dict[str, str] = field(default_factory=dict)
    mask: str | None = None
    instances: str | None = None
    arrays: list[ArrayConfig] = field(default_factory=list)
    convert: Literal["rgb", "grey"] | None = None
    ignore_index: int | None = None
    classes: dict[str, list[str]] | list[str] = field(default_factory=dict)
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
        if self.arrays:
            self._check_arrays()
        elif not self.image:
            raise UserError("image: name at least one channel, as `image: {phase: 'phase/{id}.tif'}`")
        self._check_labels()
        if self.convert:
            self._check_convert()
        self.classes = self._classes_by_role()

    def patterns(self) -> dict[str, dict[str, str]]:
        """Role -> {channel name: pattern}; empty where the samples come from `arrays`."""
        roles = {"image": self.image, "target": self.target}
        roles |= {role: {role: p} for role, p in (("mask", self.mask), ("instances", self.instances)) if p}
        return {role: patterns for role, patterns in roles.items() if patterns}

    def class_names(self, role: str) -> list[str]:
        """The names given for "mask" or "label"; empty where there are none."""
        return self.classes.get(role, []) if isinstance(self.classes, dict) else self.classes

    @property
    def raw_roles(self) -> list[str]:
        """Arrays that the raw files hold, in the order image, target, mask, instances."""
        return [r for r in self.arrays[0].files() if r != "label"] if self.arrays else list(self.patterns())

    @property
    def has_mask(self) -> bool:
        """Whether the prepared files have a mask."""
        return not {"mask", "instances"}.isdisjoint(self.raw_roles)

    @property
    def makes_mask(self) -> bool:
        """Whether the mask is made of the objects."""
        return "instances" in self.raw_roles and "mask" not in self.raw_roles

    def _label_sources(self) -> list[str]:
        patterns = [pattern for role in self.patterns().values() for pattern in role.values()]
        found = {
            "the column `table.label`": self.table and self.table.label,
            "the field {label}": any("{label}" in pattern for pattern in patterns),
            "`label` in `arrays`": any(entry.label for entry in self.arrays),
        }
        return [source for source, there in found.items() if there]

    def _check_arrays(self) -> None:
        others = [name for name in ("image", "target", "mask", "instances", "group", "axes") if getattr(self, name)]
        if self.pages != "channels":
            others.append("pages")
        if others:
            raise UserError(
                f"arrays: {', '.join(others)} {'is' if len(others) == 1 else 'are'} for single image files; leave out "
                "either these or `arrays`"
            )
        roles = [list(entry.files()) for entry in self.arrays]
        if any(each != roles[0] for each in roles):
            told = [f"{entry.image}: {', '.join(each)}" for entry, each in zip(self.arrays, roles, strict=True)]
            raise UserError(f"arrays: all entries must have the same keys:\n{listed(told)}")
        if splits := sorted({e.split for e in self.arrays if e.split is not None and not given_split(e.split)}):
            raise UserError(f"arrays: unknown split {', '.join(splits)}; the splits are train, val and test")

    def _check_labels(self) -> None:
        if len(sources := self._label_sources()) > 1:
            raise UserError(f"labels come from {' and from '.join(sources)}; keep one of them")
        if self.table and self.table.separator is not None and not (self.table.separator and self.table.label):
            raise UserError("table: separator is what stands between classes in the label column, as ';'; set `label`")

    def _check_convert(self) -> None:
        if self.pages == "samples":
            raise UserError("convert does not go together with `pages: samples`, which takes single channels")
        numbered = [pattern for pattern in self.image.values() if pattern.endswith("]")]
        if numbered:
            raise UserError(f"convert takes whole files; leave out the channel numbers of\n{listed(numbered)}")
        if self.convert == "rgb" and len(self.image) > 1:
            raise UserError("convert: rgb makes red, green and blue of one pattern; name one in `image`")

    def _classes_by_role(self) -> dict[str, list[str]]:
        there = {"mask": self.has_mask, "label": bool(self._label_sources())}
        given = self.classes
        if isinstance(given, list):
            roles = [role for role in there if there[role]]
            if len(roles) != 1:
                what = "both a mask and labels" if roles else "neither mask nor labels"
                raise UserError(f"classes: the dataset has {what}; write `classes: {{mask: [...], label: [...]}}`")
            given = {roles[0]: given}
        if unknown := sorted(set(given) - set(there)):
            raise UserError(f'classes: unknown key {", ".join(unknown)}; the keys are "mask" and "label"')
        if missing := [role for role in given if not there[role]]:
            raise UserError(f"classes: names are given, but the dataset has no {' and no '.join(missing)}")
        twice = [f"{role}: {name}" for role, names in given.items() for name, n in Counter(names).items() if n > 1]
        if twice:
            raise UserError(f"classes: every name may stand once:\n{listed(twice)}")
        if self.makes_mask and len(given.get("mask", "12")) != 2:
            raise UserError("classes: a mask made of `instances` has two classes, as `mask: [background, cell]`")
        return given
