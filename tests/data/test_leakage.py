"""Copies and near-duplicates: one rule."""

import numpy as np
import pytest

from project.data.duplicates import SIGNATURE
from project.data.leakage import Images, find_leaks

RNG = np.random.default_rng(0)
SCENES = RNG.integers(1, 255, (9, SIGNATURE), np.uint8)


def images(*each: tuple[str, int, int]) -> Images:
    """Place, scene (0 has none) and digest (0 is blank) of each; the name is its number."""
    found = Images()
    found.add(
        [f"i{n}" for n in range(len(each))],
        [place for place, _, _ in each],
        [bytes([digest]) for _, _, digest in each],
        [digest == 0 for _, _, digest in each],
        np.stack([SCENES[scene] * (scene > 0) for _, scene, _ in each]),
    )
    return found


@pytest.mark.parametrize(
    ("places", "leaks"),
    [
        (("train", "train"), False),
        (("train", "val"), True),
        (("val", "test"), True),
        (("fold 0", "fold 1"), True),
        (("fold 1", "fold 1"), False),
        (("fold 1", "test"), True),
        (("train", "unlabelled"), False),
        (("unlabelled", "unlabelled"), False),
        (("unlabelled", "test"), True),
        (("fold 0", "unlabelled"), True),
    ],
)
def test_places_that_must_not_share_an_image(places, leaks):
    first, second = places
    found = find_leaks(images((first, 1, 1), (second, 1, 1)))
    assert (len(found.copies), len(found.pairs)) == (int(leaks), 0)
    found = find_leaks(images((first, 1, 1), (second, 1, 2)))
    assert (len(found.copies), len(found.pairs)) == (0, int(leaks))
    assert not find_leaks(images((first, 0, 0), (second, 0, 0)))  # blank
    assert not find_leaks(images((first, 1, 1), (second, 2, 2)))


def test_copies_without_structure_are_found():
    assert find_leaks(images(("unlabelled", 0, 5), ("test", 0, 5))).copies == [[0, 1]]


def test_many_unlabelled_images_do_not_hide_a_leak(monkeypatch):
    monkeypatch.setattr("project.data.duplicates.MOST_PAIRS", 4)
    each = [("unlabelled", 1, 10 + n) for n in range(3)] + [("train", 1, 20 + n) for n in range(3)]
    assert len(find_leaks(images(*each, ("train", 2, 1), ("test", 2, 2))).pairs) == 1


def test_training_copies_are_left_out():
    found = find_leaks(
        images(
            ("train", 1, 1), ("train", 1, 1), ("val", 1, 1),  # a group of copies
            ("unlabelled", 2, 2), ("test", 2, 3),
            ("val", 3, 4), ("test", 3, 4), ("train", 3, 5),
            ("train", 4, 6),
        )
    )  # fmt: skip
    reasons, rest = found.without_training_copies()
    assert set(reasons) == {0, 1, 3, 7}
    assert reasons[0] == "the same image as i2 (val)"
    assert reasons[3] == "looks like i4 (test)"
    assert (rest.copies, rest.pairs) == ([[5, 6]], [])


def test_one_of_two_folds_keeps_the_image():
    each = [("unlabelled", 1, 1), ("fold 0", 1, 1), ("fold 1", 1, 1), ("fold 0", 1, 1), ("fold 2", 1, 2)]
    reasons, rest = find_leaks(images(*each)).without_training_copies()
    assert set(reasons) == {0, 2, 4}
    assert not rest


def test_the_complete_list():
    found = find_leaks(images(("train", 1, 1), ("val", 1, 1), ("test", 1, 1), ("test", 1, 2)))
    assert found.rows() == [
        ("copy", "i0", "train", "i1", "val"),
        ("copy", "i0", "train", "i2", "test"),
        ("near-duplicate", "i0", "train", "i3", "test"),
        ("near-duplicate", "i1", "val", "i3", "test"),
    ]
    assert found.describe_copies() == ["i0 (train), i1 (val), i2 (test)"]
