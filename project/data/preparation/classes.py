"""The classes with a special part in the scores: the background of a mask, and the positive class of two labels."""

import re
from collections.abc import Collection

from project.data.config import AUTO, DatasetConfig, makes_mask
from project.errors import UserError, listed, nearest

# Names of a background class, beside all that have the word "background" in them; letters only, in lower case.
BACKGROUND_NAMES = frozenset(
    ("bg", "back ground", "void", "none", "nothing", "empty", "null", "no object", "unlabelled", "unlabeled")
)


def is_background_name(name: str) -> bool:
    """Whether a class of this name is background."""
    words = re.findall("[a-z]+", name.casefold())
    return "background" in words or " ".join(words) in BACKGROUND_NAMES


def background_class(names: list[str], roles: Collection[str], config: DatasetConfig) -> tuple[str | None, str]:
    """The class of a mask that is left out of mean scores, and the reason as a note for the user.

    The data config decides (`background`). By default it is class 0 where what is no object has it: in a mask that is
    made of `instances` or `polygons`, and in one without class names beside `instances`. Otherwise it is the class
    whose name says so. Otherwise there is none, and all classes count.

    Args:
        names: Of the classes, in the order of their numbers.
        roles: Arrays of the raw data, such as "mask" and "instances".
        config: Of the dataset.

    Raises:
        UserError: `background` is none of the names.
    """
    given = None if config.background is None else str(config.background)
    if given != AUTO:
        if given in names:
            return given, f"mask: class {given} is background: it is left out of mean scores"
        if given is None or given.casefold() == "none":
            return None, "mask: there is no background: all classes count in mean scores"
        raise UserError(f"background: no class is called {given}.{nearest(given, names)} Classes:\n{listed(names)}")
    unnamed = "instances" in roles and not config.class_names("mask")
    by_construction = makes_mask(roles) or config.polygons or unnamed
    chosen = names[0] if by_construction else next(filter(is_background_name, names), None)
    if chosen is None:
        why = f"mask: no class is called background: all {len(names)} classes count in mean scores"
        return None, f'{why}; if class {names[0]} is background, set `background: "{names[0]}"`'
    why = f"mask: class {chosen} is taken as background: it is left out of mean scores"
    return chosen, f"{why}; `background: null` lets all classes count"


def positive_class(names: list[str], several: bool, config: DatasetConfig) -> tuple[str | None, str | None]:
    """The class of two that precision, recall, F1 and average precision are of, and a note for the user.

    Args:
        names: Of the labels, in the order of their numbers.
        several: Whether an image may have several labels: there is no positive class then, nor with three or more.
        config: Of the dataset.

    Raises:
        UserError: `positive` is none of the names, or there are not two classes to choose from.
    """
    given = None if config.positive is None else str(config.positive)
    if several or len(names) != 2:
        if given is not None:
            kind = "several labels per image" if several else f"{len(names)} classes"
            raise UserError(f"positive: it is for two classes, and there are {kind}; leave it out")
        return None, None
    if given is None:
        why = f"label: the positive class is {names[1]}, the second of two"
        return names[1], f'{why}; `positive: "{names[0]}"` takes the other'
    if given not in names:
        raise UserError(f"positive: no class is called {given}; the classes are {' and '.join(names)}")
    return given, f"label: the positive class is {given}"
