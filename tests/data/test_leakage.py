"""Copies and near-duplicates: one rule about which parts of a dataset may share images."""

import numpy as np
import pytest

from project.data.duplicates import SIGNATURE
from project.data.leakage import Image, find_leaks, images_of
from project.data.store import SplitReader

SCENES = np.random.default_rng(0).integers(1, 255, (9, SIGNATURE), np.uint8)


def images(*descriptions: tuple[str, int, int]) -> list[Image]:
    """Images i0, i1, ... of (part, scene, digest); scene 0 has no structure, digest 0 is blank."""
    result = []
    for number, (part, scene, digest) in enumerate(descriptions):
        fold = int(part.removeprefix("fold ")) if part.startswith("fold") else None
        split = part if fold is None else "train"
        result.append(Image(f"i{number}", split, "", fold, bytes([digest] * (digest > 0)), SCENES[scene] * (scene > 0)))
    return result


@pytest.mark.parametrize(
    ("parts", "leaks"),
    [
        (("train", "train"), False),
        (("train", "val"), True),
        (("val", "test"), True),
        (("fold 0", "fold 1"), True),
        (("fold 1", "fold 1"), False),
        (("fold 1", "test"), True),
        (("train", "unlabeled"), False),
        (("unlabeled", "unlabeled"), False),
        (("unlabeled", "test"), True),
        (("fold 0", "unlabeled"), True),
    ],
)
def test_parts_that_must_not_share_an_image(parts, leaks):
    first, second = parts
    result = find_leaks(images((first, 1, 1), (second, 1, 1)))
    assert (len(result.copies), len(result.pairs)) == (int(leaks), 0)
    result = find_leaks(images((first, 1, 1), (second, 1, 2)))
    assert (len(result.copies), len(result.pairs)) == (0, int(leaks))
    for different in (images((first, 0, 0), (second, 0, 0)), images((first, 1, 1), (second, 2, 2))):  # blank; others
        result = find_leaks(different)
        assert result.copies == result.pairs == []


def test_copies_without_structure_are_found():
    compared = images(("unlabeled", 0, 5), ("test", 0, 5))
    assert find_leaks(compared).copies == [compared]


def test_many_unlabeled_images_do_not_hide_a_leak(monkeypatch):
    monkeypatch.setattr("project.data.duplicates.MOST_PAIRS", 4)
    alike = [("unlabeled", 1, 10 + n) for n in range(3)] + [("train", 1, 20 + n) for n in range(3)]
    assert len(find_leaks(images(*alike, ("train", 2, 1), ("test", 2, 2))).pairs) == 1


def test_images_of_a_file_that_holds_no_signatures(tiny_dataset):
    reader = SplitReader(tiny_dataset / "train.h5")
    assert reader.signatures is None
    compared = images_of(reader, "train", (0, 3))
    assert [image.id for image in compared] == [reader.ids[0], reader.ids[3]]
    assert all(image.digest and image.signature.any() for image in compared)
    other = images_of(reader, "val", (3, 5))
    assert [[str(image) for image in group] for group in find_leaks(compared + other).copies] == [
        [f"{reader.ids[3]} (train)", f"{reader.ids[3]} (val)"]
    ]
