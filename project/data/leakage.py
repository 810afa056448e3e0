"""Leakage: copies and near-duplicates of one image in splits or folds that must not share any, and what to do."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from project.data.config import DatasetConfig
from project.data.duplicates import MOST_PAIRS, SIGNATURE, signature, similar_pairs
from project.data.split_metadata import SplitMetadata, digest
from project.data.store import SplitReader
from project.errors import UserError, bullet_list

UNLABELED = "unlabeled"  # the "split" of images without targets
MAX_LISTED = 3  # copies of one image that a message lists of each split


@dataclass(frozen=True, eq=False, slots=True)
class Image:
    """What is compared of an image."""

    id: str  # Name of the sample
    split: str  # "train", "val", "test" or "unlabeled"
    group: str = ""  # Leakage group
    fold: int | None = None  # Number of the fold of a training image, or None
    digest: bytes = b""  # Digest of the pixels; empty where it is unknown, and for blank images, which are all alike
    signature: np.ndarray | None = None  # (SIGNATURE,) uint8, see `signature`; None or zeros where it is unknown

    @property
    def part(self) -> str:
        """The split, or "fold 0", "fold 1", ... of it: what must not share images with another part."""
        return self.split if self.fold is None else f"fold {self.fold}"

    def __str__(self) -> str:
        return f"{self.id} ({self.part})"


Pair = tuple[Image, Image]
Row = tuple[str, str, str, str, str]  # kind, id, split, other id, other split


@dataclass(frozen=True)
class Leaks:
    """Images in parts that must not share any."""

    copies: list[list[Image]]  # Groups of equal images
    pairs: list[Pair]  # Near-duplicates that are not equal, at most `MOST_PAIRS`

    @property
    def rows(self) -> list[Row]:
        """All leaks; a group of copies as pairs with its first image."""
        pairs = [("copy", group[0], image) for group in self.copies for image in group[1:]]
        pairs += [("near-duplicate", *pair) for pair in self.pairs]
        return [(kind, a.id, a.part, b.id, b.part) for kind, a, b in pairs]


def find_leaks(images: Sequence[Image]) -> Leaks:
    """Copies and near-duplicates in different parts. Unlabeled images may be copies of training images."""
    copies = []
    for group in equal_images(images):
        parts = {image.part for image in group}
        if UNLABELED in parts and not parts - {UNLABELED, "train"}:
            group = [image for image in group if image.split != UNLABELED]
        if len({image.part for image in group}) > 1:
            copies.append(group)
    pairs = near_duplicates([image for image in images if image.split != UNLABELED], lambda image: image.part)
    if any(image.split == UNLABELED for image in images):
        compared = [image for image in images if image.part != "train"]
        unlabeled_pairs = near_duplicates(compared, lambda image: str(image.split == UNLABELED))
        pairs += [(a, b) if a.split == UNLABELED else (b, a) for a, b in unlabeled_pairs]
    return Leaks(copies, pairs[:MOST_PAIRS])


def equal_images(images: Iterable[Image]) -> list[list[Image]]:
    """Groups of images with equal pixels, in whatever part they are."""
    groups: dict[bytes, list[Image]] = defaultdict(list)
    for image in images:
        if image.digest:
            groups[image.digest].append(image)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(images: Sequence[Image], part: Callable[[Image], str]) -> list[Pair]:
    """Pairs of images in different parts that look the same but do not have equal pixels; at most `MOST_PAIRS`."""
    blank = np.zeros(SIGNATURE, np.uint8)
    if len(images) < 2:
        return []
    signatures = np.stack([blank if image.signature is None else image.signature for image in images])
    codes = np.unique([part(image) for image in images], return_inverse=True)[1]
    pairs = ((images[i], images[j]) for i, j in similar_pairs(signatures, codes))
    return [(a, b) for a, b in pairs if not a.digest or a.digest != b.digest]


def images_of(
    data: SplitMetadata, split: str, indices: Iterable[int] | None = None, folds: bool = False
) -> list[Image]:
    """What is compared of these images of a split, by default of all; what the file lacks is computed from the pixels.

    With `folds`, the folds of the training images are parts of their own.
    """
    images, blank = [], (data.statistic("image", "min") == data.statistic("image", "max")).all(1)
    for i in range(len(data.ids)) if indices is None else indices:
        fold = int(data.folds[i]) if folds and data.folds is not None else None
        code = None if data.image_digests is None else data.image_digests[i].tobytes()
        signs = None if data.signatures is None else data.signatures[i]
        if isinstance(data, SplitReader) and (code is None or signs is None):
            pixels = data.read("image", i)
            code, signs = bytes.fromhex(digest(pixels)), signature(pixels)
        images.append(Image(data.ids[i], split, data.groups[i], fold, b"" if blank[i] else code or b"", signs))
    return images


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
    lines = []
    if leaks.copies:
        lines.append(f"The same image is in more than one split:\n{bullet_list(map(_describe, leaks.copies))}")
    if leaks.pairs:
        more = " or more" if len(leaks.pairs) >= MOST_PAIRS else ""
        heading = f"Images in different splits look the same ({len(leaks.pairs)}{more} pairs)"
        lines.append(f"{heading}:\n{bullet_list(f'{a} and {b}' for a, b in leaks.pairs)}")
    if not leaks.copies and config.near_duplicates == "warn":
        return [f"{near}\nScores on these images are not independent of training. All pairs: {path}" for near in lines]
    if lines:
        advice = (
            "Give copies one group (`group:` or the table), or remove them. `near_duplicates: drop` keeps those of "
        )
        advice += "one split: test images, else those of val."
        advice += " If near-duplicates do not show the same, set `near_duplicates: warn`." * bool(leaks.pairs)
        raise UserError("\n".join([*lines, advice, f"All pairs: {path}", "No split was written."]))
    return []


def _describe(group: Sequence[Image]) -> str:
    """Such as "01 (train), 02 (train), 07 (val)"."""
    by_part: dict[str, list[Image]] = {}
    for image in group:
        by_part.setdefault(image.part, []).append(image)
    shown = [str(image) for images in by_part.values() for image in images[:MAX_LISTED]]
    hidden = len(group) - len(shown)
    return ", ".join(shown) + (f" and {hidden} more" if hidden else "")
