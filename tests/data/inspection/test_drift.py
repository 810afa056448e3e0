"""Drift as plain functions, which the preparation uses too, and what several channels say in one sentence."""

import numpy as np
import pytest
from test_report import look, noise, said, write

from project.data.drift import ImageLevel, batches, group_drift, split_drift


def level(split, mean, group="a", std=50.0):
    return ImageLevel(split, group, mean, std)


@pytest.mark.parametrize(("mean", "said"), [(2100, "2.1 times brighter"), (400, "2.5 times darker"), (1050, None)])
def test_a_split_is_compared_with_training(mean, said):
    images = [level("train", 1000)] * 3 + [level("val", mean)] * 2 + [level("test", 1000)]
    sentences = split_drift(images, "target/gfp")
    assert len(sentences) == bool(said)
    if said:
        assert sentences[0].startswith(f"target/gfp: val is {said} than train: mean {mean}, train 1000")


def test_without_training_images_nothing_is_compared():
    assert split_drift([level("val", 1), level("test", 1000)], "image/x") == []


def test_groups_of_all_splits_are_compared_with_the_training_groups():
    images = [level("train", 100, g) for g in "aabbcc"] + [level("val", 1000, "d")] * 2
    (sentence,) = group_drift(images, "image/x")
    assert sentence.startswith("image/x: 1 of 4 groups has another brightness")
    assert "d (mean 1000, 10 times brighter)" in sentence
    assert "image_percentile" in sentence
    (sentence,) = group_drift(images, "target/x")
    assert "must not be scaled image by image" in sentence
    assert "image_percentile" not in sentence


@pytest.mark.parametrize("groups", ["aaaa", "abcd"])
def test_one_group_or_single_images_are_no_groups(groups):
    assert group_drift([level("train", 10.0**i, g) for i, g in enumerate(groups)], "image/x") == []


def test_folders_stand_in_where_each_sample_is_a_group():
    assert batches(["d/1", "d/2", "e/1"], ["d/1", "d/2", "e/1"]) == ["d", "d", "e"]
    assert batches(["d/1", "d/2", "e/1"], ["x", "x", "y"]) == ["x", "x", "y"]


def test_what_several_channels_say_is_said_once(tmp_path):
    names = {"channels": {"image": ["red", "green", "blue"]}}
    dark = [i // 10 for i in noise(3, shape=(3, 16, 16))]
    images = noise(8, shape=(3, 16, 16))
    images[2][:] = 65535
    images[5][1, :8] = 65535
    write(tmp_path, "train", {"image": images + dark}, groups=["a"] * 4 + ["b"] * 4 + ["c"] * 3, **names)
    write(
        tmp_path,
        "val",
        {"image": [i[0:1] // 30 + 0 * i for i in noise(3, shape=(3, 16, 16))]},
        groups=["d"] * 3,
        **names,
    )
    report = look(tmp_path)
    for kind in ("than train: mean", "another brightness", "one value everywhere", "at the largest value"):
        assert len(said(report, kind)) <= 1
    assert said(report, "image/red, green, blue: val is not as bright as train: red ", "green ", "blue ")
    assert said(report, "image/red, green, blue: 2 of 4 groups have another brightness", "c (red mean ")
    assert said(report, "image/red, green, blue: 1 of 14 images has one value everywhere: train2 (train, red, 65535)")
    # The image whose green alone is saturated counts too, and its channel is named.
    assert said(
        report, "image/red, green, blue: 2 of 14 images have", "train2 (train, red, 100 %), train5 (train, green, "
    )


def test_notes_on_several_channels_are_one(tmp_path):
    image = np.stack([np.full((8, 8), 10), np.full((8, 8), 20)]).astype(np.uint16)
    image[:, 0, 0] = 0, 1
    write(tmp_path, "train", {"image": [image]})
    (note,) = (n for n in look(tmp_path)["notes"] if "8-bit" in n)
    assert note.startswith("image/c0, c1: 8-bit values in uint16 files (largest value 10 / 20)")
