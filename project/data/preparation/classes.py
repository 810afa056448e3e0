"""Classes of a mask, its background, the positive class of two labels, and object numbers."""

import re
from collections.abc import Collection, Sequence

from project.data.config import AUTO, DatasetConfig, makes_mask
from project.data.preparation.find import RawDataset
from project.data.preparation.plan import OBJECT_CLASSES
from project.data.raw.samples import Problems
from project.data.split_metadata import SampleRecord
from project.errors import UserError, bullet_list, did_you_mean

# Names of a background class, beside all that have the word "background" in them; letters only, in lower case.
BACKGROUND_NAMES = frozenset(
    ("bg", "back ground", "void", "none", "nothing", "empty", "null", "no object", "unlabelled", "unlabeled")
)

MAX_CLASSES = 64  # of pixels, without names: more are most likely object numbers, or values that JPEG changed
MANY_IMAGES, MANY_NUMBERS = 8, 3  # with as many images, and largest numbers, counted values are objects
BLURRED = 0.6  # share of the pixels with the smallest or largest value, where all others are their mixtures
MAX_LISTED = 8  # values of masks in a message


def is_background_name(name: str) -> bool:
    """Whether a class of this name is background."""
    words = re.findall("[a-z]+", name.casefold())
    return "background" in words or " ".join(words) in BACKGROUND_NAMES


def background_class(names: list[str], roles: Collection[str], config: DatasetConfig) -> tuple[str | None, str]:
    """The class of a mask that is left out of mean scores, and the reason as a note for the user.

    The data config decides (`background`). By default it is class 0 of a mask made of `instances` or `polygons`,
    or that has no class names beside `instances`; otherwise the class whose name says so; otherwise none: all count.
    `roles` are the arrays of the raw data. A `background` that is none of the names is a `UserError`.
    """
    given = None if config.background is None else str(config.background)
    if given in names and given != AUTO:
        return given, f"mask: class {given} is background: it is left out of mean scores"
    if given is None or given.casefold() == "none":
        return None, "mask: there is no background: all classes count in mean scores"
    if given != AUTO:
        raise UserError(
            f"background: no class is called {given}.{did_you_mean(given, names)} Classes:\n{bullet_list(names)}"
        )
    unnamed = "instances" in roles and not config.class_names("mask")
    by_construction = makes_mask(roles) or config.polygons or unnamed
    chosen = names[0] if by_construction else next(filter(is_background_name, names), None)
    if chosen is None:
        why = f"mask: no class is called background: all {len(names)} classes count in mean scores"
        return None, f'{why}; if class {names[0]} is background, set `background: "{names[0]}"`'
    why = f"mask: class {chosen} is taken as background: it is left out of mean scores"
    return chosen, f"{why}; `background: null` lets all classes count"


def positive_class(names: list[str], several: bool, config: DatasetConfig) -> tuple[str | None, str]:
    """The class of two that precision, recall, F1 and average precision are of, by default the second; and a note.

    There is none where an image may have several labels (`several`), nor with three or more classes; a `positive` in
    the data config is a `UserError` then.
    """
    given = None if config.positive is None else str(config.positive)
    options = names if len(names) == 2 and not several else []
    if given is not None and given not in options:
        kind = "several labels per image" if several else f"the classes {', '.join(names)}"
        raise UserError(
            f'positive: "{given}" must be one of two classes, there are {kind}; correct it, or leave it out'
        )
    if not options:
        return None, ""
    positive = given or names[1]
    other = next(name for name in names if name != positive)
    return positive, f'label: the positive class is {positive}; `positive: "{other}"` takes the other'


def mask_classes(pixels: Sequence[dict[int, int]], raw: RawDataset, config: DatasetConfig) -> list[str]:
    """Names of the classes of a mask; by default their numbers, none of which may be missing.

    `pixels` are, of each image, value of the mask -> number of pixels; `raw` gets warnings. A `UserError` if the
    configuration does not say what values with gaps, or too many of them, mean.
    """
    if not any(pixels):
        return []
    numbers = {value for counts in pixels for value in counts} - {config.ignore_index}
    names = config.class_names("mask") or (OBJECT_CLASSES if makes_mask(raw.samples[0].roles) else [])
    if not names and not config.mask_values:
        if _are_objects(pixels, config.ignore_index):
            raw.problems.warnings.append(
                "mask: each image holds all values from 0 to a number that differs. If these are numbers of objects, "
                "give the pattern as `instances` instead of `mask`"
            )
        if numbers != set(range(max(numbers, default=-1) + 1)) - {config.ignore_index} or len(numbers) > MAX_CLASSES:
            raise UserError(_describe_gaps(sorted(numbers), pixels, config))
        return [str(number) for number in range(max(numbers, default=0) + 1)]
    named = {*(config.mask_values or {}).values(), *range(len(names))} - {config.ignore_index}
    names = names or [str(number) for number in range(max(named, default=0) + 1)]
    if absent := [names[number] for number in sorted(named - numbers)]:
        raw.problems.warnings.append(f"mask: no pixel of any image is of class {', '.join(absent)}")
    return names


def _are_objects(pixels: Sequence[dict[int, int]], ignore_index: int | None) -> bool:
    """Whether each of many images holds all numbers up to its largest one, which differ: such classes are unlikely."""
    highest = [max(counts, default=0) for counts in pixels]
    counted = all({*counts} - {ignore_index} == {*range(len({*counts} - {ignore_index}))} for counts in pixels)
    return counted and len(pixels) >= MANY_IMAGES and min(highest) >= 2 and len({*highest}) >= MANY_NUMBERS


def _describe_gaps(values: list[int], pixels: Sequence[dict[int, int]], config: DatasetConfig) -> str:
    more, shown, last = len(values) > MAX_LISTED, values[:MAX_LISTED], values[-1]
    listed = ", ".join(map(str, shown)) + f" ... {last}" * more
    codes = ", ".join(f"{value}: {number}" for number, value in enumerate(shown)) + ", ..." * more
    ends = sum(counts.get(value, 0) for counts in pixels for value in (values[0], last))
    is_blurred = (
        len(values) > MAX_LISTED and last > MAX_CLASSES and ends > BLURRED * sum(sum(c.values()) for c in pixels)
    )
    hints = {
        f"most pixels are {values[0]} or {last}, others between them: resized with interpolation, or saved as "
        "JPEG? Save the masks again as PNG, and resize with the nearest value": is_blurred,
        f"give each value its class, `mask_values: {{{codes}}}`": not config.polygons,
        "name all classes from number 0 on, `classes: {mask: [...]}`": True,
        f"set `ignore_index: {last}` if that means not annotated": config.ignore_index is None and values[2:],
        "if these are numbers of objects, give the pattern as `instances` instead of `mask`": values[2:] or last > 255,
    }
    gaps = f", which are not the class numbers 0 to {len(values) - 1}"
    return (
        f"the masks hold the values {listed}"
        + (f"; more than {MAX_CLASSES} classes need names" if len(values) > MAX_CLASSES else gaps)
        + f":\n{bullet_list(hint for hint, applies in hints.items() if applies)}\nNo split was written."
    )


def check_objects(records: Sequence[SampleRecord], problems: Problems) -> None:
    """Note objects that were renumbered, and warn of masks that are given as object numbers."""
    counts = [record.n_objects for record in records if record.n_objects is not None]
    if renumbered := [record.id for record in records if record.renumbered]:
        problems.notes.append(
            f"instances: object numbers beyond 65535 are counted from 1 in {len(renumbered)} images, such as "
            f'"{renumbered[0]}"'
        )
    if len(counts) > 1 and max(counts) == 1:
        problems.warnings.append(
            "instances: no image has more than one object. If these are masks of 0 and another value, give the pattern "
            "as `mask` with `mask_values`; objects need a number each"
        )
