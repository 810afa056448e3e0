"""Leakage: copies and near-duplicates of images in splits or folds that must not share any."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from project.data.duplicates import MOST_PAIRS, SIGNATURE, similar_pairs
from project.data.store import SplitReader

UNLABELLED = "unlabelled"
SCORED = ("val", "test")  # places of images that scores are measured on, and that are never dropped
SHOWN = 3  # copies of one image that are listed of each place


@dataclass
class Images:
    """What is compared of images; one entry for each in all lists.

    Attributes:
        ids: Names.
        places: "train", "val", "test", "fold 0" ..., or "unlabelled".
        digests: Of the pixels; empty where it is not known.
        blank: Whether all pixels of each channel are equal: any two blank images are alike.
        signatures: (SIGNATURE,) uint8 of each, zeros where near-duplicates are not looked for.
    """

    ids: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    blank: list[bool] = field(default_factory=list)
    signatures: list[np.ndarray] = field(default_factory=list)

    def add(
        self,
        ids: Sequence[str],
        places: Sequence[str],
        digests: Sequence[bytes],
        blank: Sequence[bool],
        signatures: np.ndarray | None,
    ) -> None:
        """Add images, see the attributes; `signatures` (N, SIGNATURE), or None."""
        self.ids += ids
        self.places += places
        self.digests += digests
        self.blank += blank
        self.signatures.append(np.zeros((len(ids), SIGNATURE), np.uint8) if signatures is None else signatures)

    def name(self, index: int) -> str:
        """Such as "01 (val)"."""
        return f"{self.ids[index]} ({self.places[index]})"


@dataclass
class Leaks:
    """Images in places that must not share any.

    Attributes:
        images: All that were compared; the others are positions in it.
        copies: Groups of equal images.
        pairs: Near-duplicates that are not equal.
    """

    images: Images
    copies: list[list[int]]
    pairs: list[tuple[int, int]]

    def __bool__(self) -> bool:
        return bool(self.copies or self.pairs)

    def part(self, unlabelled: bool) -> "Leaks":
        """Those with images without targets, or those without any."""
        places = self.images.places

        def fits(indices: Sequence[int]) -> bool:
            return any(places[i] == UNLABELLED for i in indices) == unlabelled

        return Leaks(self.images, [*filter(fits, self.copies)], [*filter(fits, self.pairs)])

    def without_training_copies(self) -> tuple[dict[int, str], "Leaks"]:
        """Which images to leave out so that validation and test images have no copies elsewhere.

        Of copies in two folds one is left out. Copies among validation and test images stay.

        Returns:
            Position -> reason; and the leaks that stay.
        """
        places, reasons = self.images.places, dict[int, str]()
        groups: list[tuple[str, Sequence[int]]] = [("the same image as", group) for group in self.copies]
        for what, group in groups + [("looks like", pair) for pair in self.pairs]:
            scored = [i for i in group if places[i] in SCORED]
            left = sorted((i for i in group if i not in reasons), key=lambda i: places[i] == UNLABELLED)
            for kept in (scored or left)[:1]:
                for index in group:
                    if index not in scored and places[index] != places[kept]:
                        reasons.setdefault(index, f"{what} {self.images.name(kept)}")

        def stays(group: Sequence[int]) -> bool:
            return len({places[i] for i in group if places[i] in SCORED}) > 1

        return reasons, Leaks(self.images, [*filter(stays, self.copies)], [*filter(stays, self.pairs)])

    def describe_copies(self) -> list[str]:
        """A line for each group, such as "01 (train), 02 (train), 07 (val)"."""
        return [self._describe(group) for group in self.copies]

    def _describe(self, group: list[int]) -> str:
        by_place: dict[str, list[int]] = {}
        for index in group:
            by_place.setdefault(self.images.places[index], []).append(index)
        shown = [self.images.name(index) for indices in by_place.values() for index in indices[:SHOWN]]
        more = len(group) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")

    def describe_pairs(self) -> list[str]:
        """A line for each pair, such as "01 (train) and 07 (val)"."""
        return [f"{self.images.name(i)} and {self.images.name(j)}" for i, j in self.pairs]

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """All of them as (kind, id, place, id, place); a group of copies as pairs with its first image."""
        pairs = [("copy", group[0], index) for group in self.copies for index in group[1:]]
        pairs += [("near-duplicate", i, j) for i, j in self.pairs]
        ids, places = self.images.ids, self.images.places
        return [(kind, ids[i], places[i], ids[j], places[j]) for kind, i, j in pairs]


def equal_images(digests: Sequence[bytes], blank: Sequence[bool]) -> list[list[int]]:
    """Groups of equal images, wherever they are; blank ones are in none."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        if digest and not blank[index]:
            groups[digest].append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(images: Images, places: Sequence[str], rows: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """Pairs of images in different places that look the same without being equal.

    Args:
        images: See `Images`.
        places: Of each image.
        rows: Positions of the images to compare, by default all.
    """
    chosen = np.arange(len(images.ids)) if rows is None else np.array(rows, np.int64)
    if len(chosen) < 2:
        return []
    signatures = np.concatenate(images.signatures)[chosen]
    codes = np.unique(np.array(places, dtype=object)[chosen].astype(str), return_inverse=True)[1]
    pairs = [(int(chosen[i]), int(chosen[j])) for i, j in similar_pairs(signatures, codes)]
    digests = images.digests
    return [(i, j) for i, j in pairs if not digests[i] or digests[i] != digests[j]]


def find_leaks(images: Images) -> Leaks:
    """Copies and near-duplicates in different places. Images without targets may be copies of training images."""
    places = images.places
    copies = []
    for group in equal_images(images.digests, images.blank):
        found = {places[index] for index in group}
        if UNLABELLED in found:  # those of training, and each other, they may resemble
            group = group if found - {UNLABELLED, "train"} else [i for i in group if places[i] != UNLABELLED]
        if len({places[index] for index in group}) > 1:
            copies.append(group)
    labelled = [i for i, place in enumerate(places) if place != UNLABELLED]
    pairs = near_duplicates(images, places, labelled)
    if len(labelled) < len(places):
        compared = [i for i, place in enumerate(places) if place != "train"]
        halves = [UNLABELLED if place == UNLABELLED else "" for place in places]
        pairs += [pair if halves[pair[0]] else pair[::-1] for pair in near_duplicates(images, halves, compared)]
    return Leaks(images, copies, pairs[:MOST_PAIRS])


def read_images(reader: SplitReader, place: str | None, images: Images) -> None:
    """Add the images of a split file.

    Args:
        reader: The split.
        place: Where they are; None for the folds of train.h5.
        images: To add to.
    """
    n, folds = len(reader), reader.folds if place is None else None
    places = [place or "train"] * n if folds is None else [f"fold {fold}" for fold in folds]
    digests = [b""] * n if reader.image_digests is None else [row.tobytes() for row in reader.image_digests]
    levels = reader.image_statistics.get("image")
    blank = [False] * n if levels is None else (levels[:, :, 0] == levels[:, :, 1]).all(1).tolist()
    images.add(reader.ids, places, digests, blank, reader.signatures)
