"""Checks of a data config: settings that do not go together. Each yields messages, so that all are reported at once."""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from project.data.config import AUTO, PAGE_USES, SPLITS, DatasetConfig, SizesConfig, given_split, makes_mask
from project.errors import UserError, bullet_list, did_you_mean, python
from project.yaml_files import BOOLEANS

LARGEST_FLOAT32 = 3.4028234663852886e38


def check_dataset(config: DatasetConfig) -> None:
    """Raise a `UserError` with all problems; name the classes by role."""
    _raise([*_source_problems(config), *_split_problems(config), *_pixel_problems(config)])
    config.classes = _classes_by_role(config)
    _raise(list(_special_class_problems(config)))


def _raise(problems: list[str]) -> None:
    if problems:
        raise UserError(problems[0] if len(problems) == 1 else f"the data config:\n{bullet_list(problems)}")


def _split_problems(config: DatasetConfig) -> Iterator[str]:
    split = config.split
    if unknown := set(split.fractions) - set(SPLITS):
        yield f"split: unknown split {sorted(unknown)}; the splits are train, val and test"
    if not split.fractions.get("train", 0) > 0:
        yield "split: there must be a train split"
    if wrong := [f"{name}: {share:g}" for name, share in split.fractions.items() if not 0 <= share <= 1]:
        yield f"split.fractions: shares are 0 to 1, not {', '.join(wrong)}"
    if split.folds < 0 or split.folds == 1:
        yield f"split.folds is {split.folds}; use a number of folds from 2 on, or 0 for none"
    if split.by == "place" and (options := [name for name in ("stratify", "folds") if getattr(split, name)]):
        yield (
            f"split: {', '.join(options)} distribute whole images, but `by: place` cuts each image into the same "
            "regions; leave out one of them"
        )
    for column, name in {"label": "labels", "split": "given splits"}.items():
        if len(sources := config.sources(column)) > 1:
            yield f"{name} come from {' and from '.join(sources)}; keep one of them"
    if config.table and config.table.separator is not None and not (config.table.separator and config.table.label):
        yield "table: separator is the text between classes in the label column, as ';'; set `label`"


def _source_problems(config: DatasetConfig) -> Iterator[str]:
    if config.source is not None:
        if not isinstance(config.source.get("class_path"), str) or set(config.source) - {"class_path", "init_args"}:
            yield "source: write `source: {class_path: my_data.Pairs, init_args: {...}}`"
        yield from _excluded(config, "source", ("arrays", "convert"), "for files that are found without your own class")
    elif config.arrays:
        yield from _excluded(config, "arrays", (), "for single image files")
        roles = [list(entry.files()) for entry in config.arrays]
        if any(names != roles[0] for names in roles):
            listed = [f"{entry.image}: {', '.join(entry.files())}" for entry in config.arrays]
            yield f"arrays: all entries must have the same keys:\n{bullet_list(listed)}"
        if splits := sorted({e.split for e in config.arrays if e.split is not None and not given_split(e.split)}):
            yield f"arrays: unknown split {', '.join(splits)}; the splits are train, val and test"
    elif not config.image:
        yield "image: name at least one channel, as `image: {phase: 'phase/{id}.tif'}`"
    if config.polygons and (other := [name for name in ("mask", "instances") if getattr(config, name)]):
        yield f"polygons: {' and '.join(other)} would be drawn from them; keep one of the two"


def _excluded(config: DatasetConfig, key: str, more: tuple[str, ...], purpose: str) -> Iterator[str]:
    names = ("image", "target", "mask", "instances", "polygons", *more, "group", "axes")
    others = [name for name in names if getattr(config, name)] + ["pages"] * (config.pages != "channels")
    if others:
        yield f"{key}: {', '.join(others)} {'is' if len(others) == 1 else 'are'} {purpose}; keep one of the two"


def _pixel_problems(config: DatasetConfig) -> Iterator[str]:
    if isinstance(config.pages, dict):
        yield from _page_problems(config.pages, config.axes)
    numbered = [pattern for pattern in config.all_patterns() if pattern.endswith("]")]
    if config.pages == "samples" and numbered:
        yield f"pages: samples takes one page at a time; leave out the channel numbers of\n{bullet_list(numbered)}"
    if config.convert:
        if config.pages == "samples" or any(pattern.endswith("]") for pattern in config.image.values()):
            yield "convert takes whole files: leave out channel numbers such as [0] in `image`, and `pages: samples`"
        if config.convert == "rgb" and len(config.image) > 1:
            yield "convert: rgb makes red, green and blue of one pattern; name one in `image`"
    if config.not_finite is not None and not abs(config.not_finite) <= LARGEST_FLOAT32:
        yield f"not_finite: {config.not_finite:g} is no finite number of 32 bits"
    if (ignored := config.ignore_index) is not None and not 0 <= ignored <= 65535:
        yield (
            f"ignore_index: the values of a mask are 0 to 65535, not {ignored}; write `ignore_index: 255` with "
            f"`mask_values: {{{ignored}: 255, 0: 0, ...}}` if that value means not annotated, or leave it out"
        )
    if config.mask_values is not None:
        yield from _mask_value_problems(config, config.mask_values)
    if config.sizes:
        yield from _size_problems(config.sizes)
    if config.compression == "blosc2" and find_spec("hdf5plugin") is None:
        yield f"compression: blosc2 needs the package hdf5plugin: `{python()} -m pip install hdf5plugin`"


def _page_problems(pages: dict[str, str | int], axes: str | None) -> Iterator[str]:
    if wrong := [str(axis) for axis in pages if not (len(str(axis)) == 1 and str(axis).isupper()) or axis in "YX"]:
        yield f"pages: {', '.join(wrong)} is no axis; write capital letters other than Y and X, as T, C, Z"
    for axis, use in pages.items():
        if isinstance(use, bool) or (use < 0 if isinstance(use, int) else use not in PAGE_USES):
            yield f"pages: {axis} is {', '.join(PAGE_USES)} or a position counted from 0, not {use}"
    if max(list(pages.values()).count(use) for use in ("samples", "channels")) > 1:
        yield "pages: only one axis can be the samples, and one the channels"
    if axes and (unknown := sorted(set(pages) - set(axes))):
        yield f"pages: {', '.join(unknown)} is none of the `axes` {axes}"


def _mask_value_problems(config: DatasetConfig, values: dict[int, int]) -> Iterator[str]:
    if config.polygons or (config.source is None and "mask" not in config.raw_roles):
        yield "mask_values: there are no files of `mask` whose values these could be"
    if wrong := [f"{value}: {number}" for value, number in values.items() if not 0 <= number <= 65535]:
        yield f"mask_values: class numbers are 0 to 65535:\n{bullet_list(wrong)}"
    if config.ignore_index in values:
        yield f"mask_values: {config.ignore_index} is the `ignore_index`, which stays as it is"
    names, codes = config.class_names("mask"), values.items()
    if names and (beyond := [f"{v}: {k}" for v, k in codes if k >= len(names) and k != config.ignore_index]):
        yield (
            f"mask_values: {', '.join(beyond)} is beyond the {len(names)} classes, 0 to {len(names) - 1} "
            f"({', '.join(map(str, names))})"
        )


def _size_problems(sizes: SizesConfig) -> Iterator[str]:
    if (sizes.size is None) != (sizes.how == "keep"):
        need = "needs `size`, as `size: 512` or `size: [512, 640]`" if sizes.size is None else "has no `size`"
        yield f"sizes: {sizes.how} {need}"
    sides = sizes.size if isinstance(sizes.size, list) else [sizes.size] * 2 if sizes.size is not None else []
    if sides and (len(sides) != 2 or min(sides) < 1):
        yield f"sizes: `size` is a number of pixels from 1 on, or [height, width], not {sizes.size}"
    elif sizes.overlap and not (sizes.how == "tile" and 0 < sizes.overlap < min(sides, default=0)):
        yield f"sizes: `overlap` is for tiles, 0 or more and less than `size`, not {sizes.overlap}"


def _roles_with_classes(config: DatasetConfig) -> list[str]:
    has = {"mask": {"mask", "instances"} & set(config.raw_roles), "label": config.sources("label")}
    return [role for role in has if has[role]]


def _classes_by_role(config: DatasetConfig) -> dict[str, list[str]]:
    """Role ("mask" or "label") -> class names as text."""
    roles = _roles_with_classes(config)
    classes = config.classes
    if isinstance(classes, list):
        if len(roles) != 1 or config.source is not None:
            content = "has both a mask and labels" if roles else "has neither mask nor labels"
            content = "has a `source`" if config.source is not None else content
            raise UserError(f"classes: the dataset {content}; write `classes: {{mask: [...], label: [...]}}`")
        classes = {roles[0]: classes}
    if unknown := sorted(set(classes) - {"mask", "label"}):
        raise UserError(f'classes: unknown key {", ".join(unknown)}; the keys are "mask" and "label"')
    if config.source is None and (missing := [role for role in classes if role not in roles]):
        raise UserError(f"classes: names are given, but the dataset has no {' and no '.join(missing)}")
    # Labels are compared with these: an accented letter may be written with one code or two.
    named = {
        role: [unicodedata.normalize("NFC", _class_name(n, role)) for n in names] for role, names in classes.items()
    }
    if twice := [f"{role}: {name}" for role, names in named.items() for name, n in Counter(names).items() if n > 1]:
        raise UserError(f"classes: every name must be given once:\n{bullet_list(twice)}")
    if makes_mask(config.raw_roles) and len(named.get("mask", "12")) != 2:
        raise UserError("classes: a mask made of `instances` has two classes, as `mask: [background, cell]`")
    return named


def _class_name(name: Any, role: str) -> str:
    if isinstance(name, str) and name.strip():
        return name.strip()
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    hint = f'{BOOLEANS}: quote them, as "no"' if isinstance(name, bool) else ""
    raise UserError(f"classes: {role}: {name!r} is no name; {hint or 'quote it, if it is meant as a name'}")


def _special_class_problems(config: DatasetConfig) -> Iterator[str]:
    for key, role in (("background", "mask"), ("positive", "label")):
        value, names = getattr(config, key), config.class_names(role)
        if value in (None, AUTO) or (key == "background" and value.casefold() == "none"):
            continue
        if config.source is None and role not in _roles_with_classes(config):
            yield f"{key}: {value} is named, but the dataset has no {role}"
        elif names and value not in names:
            hint = did_you_mean(value, names)
            yield f"{key}: no class of the {role} is called {value}.{hint}\n{bullet_list(names)}"
