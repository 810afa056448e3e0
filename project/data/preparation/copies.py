"""Copies and near-duplicates that a preparation finds: refused, reported, or left out of all splits but one."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from project.data.config import DatasetConfig
from project.data.duplicates import MOST_PAIRS
from project.data.leakage import UNLABELED, Image, Leaks
from project.errors import UserError, bullet_list

MAX_LISTED = 3  # copies of one image that a message lists of each split
Row = tuple[str, str, str, str, str]


def leak_rows(leaks: Leaks) -> list[Row]:
    """All leaks as (kind, id, split, other id, other split); a group of copies as pairs with its first image."""
    pairs = [("copy", group[0], image) for group in leaks.copies for image in group[1:]]
    pairs += [("near-duplicate", *pair) for pair in leaks.pairs]
    return [(kind, a.id, a.part, b.id, b.part) for kind, a, b in pairs]


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def copies_to_drop(leaks: Leaks) -> dict[Image, str]:
    """Images to leave out, with the reason, so that no image is in two splits: first those of train, then those of val.

    Of copies in two folds one is left out.
    """
    reasons: dict[Image, str] = {}
    groups: list[tuple[str, Sequence[Image]]] = [("the same image as", group) for group in leaks.copies]
    for relation, group in groups + [("looks like", pair) for pair in leaks.pairs]:
        scored = next((of for s in ("test", "val") if (of := [image for image in group if image.split == s])), [])
        candidates = sorted((i for i in group if i not in reasons), key=lambda i: i.split == UNLABELED)
        for remaining in (scored or candidates)[:1]:
            for image in group:
                if image not in scored and image.part != remaining.part:
                    reasons.setdefault(image, f"{relation} {remaining}")
    return reasons


def check_leaks(leaks: Leaks, config: DatasetConfig, path: Path) -> list[str]:
    """Refuse copies, and near-duplicates unless the configuration allows them; else return warnings.

    `path` is the complete list, for the message.
    """
    same = [_describe(group) for group in leaks.copies]
    similar = [f"{a} and {b}" for a, b in leaks.pairs]
    more = " or more" if len(similar) >= MOST_PAIRS else ""
    copies = [f"The same image is in more than one split:\n{bullet_list(same)}"] if same else []
    heading = f"Images in different splits look the same ({len(similar)}{more} pairs)"
    near = [f"{heading}:\n{bullet_list(similar)}"] if similar else []
    if near and not copies and config.near_duplicates == "warn":
        return [f"{near[0]}\nScores on these images are not independent of training. All pairs: {path}"]
    if copies or near:
        advice = (
            "Give copies one group (`group:` or the table), or remove them. `near_duplicates: drop` keeps those "
            "of one split: test images, else those of val."
        )
        if near:
            advice += " If near-duplicates do not show the same, set `near_duplicates: warn`."
        raise UserError("\n".join([*copies, *near, advice, f"All pairs: {path}", "Nothing was written."]))
    return []


def _describe(group: Sequence[Image]) -> str:
    """Such as "01 (train), 02 (train), 07 (val)"."""
    by_part: dict[str, list[Image]] = {}
    for image in group:
        by_part.setdefault(image.part, []).append(image)
    shown = [str(image) for images in by_part.values() for image in images[:MAX_LISTED]]
    hidden = len(group) - len(shown)
    return ", ".join(shown) + (f" and {hidden} more" if hidden else "")
