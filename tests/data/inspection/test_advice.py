"""Suggested settings follow from the data, with the reason in numbers."""

import re

import numpy as np
import pytest

ALL_COUNT = {"classes": {"mask": ["soil", "root"]}}
CLASSES = ALL_COUNT | {"background": "soil"}
INPUT, TARGET = "input normalization", "target normalization"


def suggested(prepared, what):
    """Setting and reason of the only suggestion on something, or empty texts."""
    found = [(s["set"], s["why"]) for s in prepared.report()["suggestions"] if s["what"] == what]
    assert len(found) < 2
    return found[0] if found else ("", "")


@pytest.fixture
def with_tail(noise):
    """Makes images in which one pixel in four thousand is ten times as bright."""

    def make():
        images = noise(6, shape=(1, 64, 64))
        for image in images:
            image[0, 5, 7] = 10000
        return images

    return make


def test_stable_data_have_one_scale(prepared, noise):
    prepared.write("train", {"image": noise(6), "target": noise(6)}, groups=list("aaabbb"))
    assert suggested(prepared, INPUT)[0] == "input_normalization: mean_std"
    setting, why = suggested(prepared, TARGET)
    assert setting == "target_normalization: mean_std"
    assert "never normalized image by image" in why
    assert {s["what"] for s in prepared.report()["suggestions"]} == {INPUT, TARGET}


def test_brightness_of_groups_is_normalized_away_in_inputs_and_never_in_targets(prepared, noise):
    both = noise(3) + noise(3, 10000, 500)
    prepared.write("train", {"image": both, "target": noise(6)}, groups=list("aaabbb"))
    setting, why = suggested(prepared, INPUT)
    assert setting == "input_normalization: image_percentile"
    assert re.search(r"group b (9\.9|10)\S* times brighter \(c0\)", why)
    prepared.write("train", {"image": noise(6), "target": both}, groups=list("aaabbb"))
    assert suggested(prepared, TARGET)[0] == "target_normalization: asinh"


def test_a_target_that_follows_the_brightness_of_the_input_keeps_it(prepared, noise):
    both = noise(3) + noise(3, 10000, 500)
    prepared.write("train", {"image": both, "target": both}, groups=list("aaabbb"))
    setting, why = suggested(prepared, INPUT)
    assert setting == "input_normalization: mean_std"
    assert "explains 99.9 % of the variance" in why
    assert suggested(prepared, "brightness augmentation")[0] == "intensity_augmentation: null"


def test_a_crop_fits_into_the_smallest_training_image(prepared, noise):
    images = [noise(1, shape=s)[0] for s in ((1, 70, 200), (1, 130, 130), (1, 300, 101))]
    small = noise(1, shape=(1, 20, 20))
    prepared.write("train", {"image": images, "target": images}).write("val", {"image": small, "target": small})
    setting, why = suggested(prepared, "crop")
    assert setting == "data.crop: 64"
    assert "3 sizes, the shortest side is 70" in why
    assert "may miss" not in why
    (prepared.folder / "val.h5").unlink()
    prepared.write("train", {"image": noise(2, shape=(1, 40, 600))}, labels=[0, 1])
    setting, why = suggested(prepared, "crop")
    assert setting == "data.crop: 32"
    assert "may miss what the label is about" in why
    prepared.write("train", {"image": noise(2, shape=(1, 40, 500))})
    assert suggested(prepared, "crop") == ("", "")


@pytest.mark.parametrize(("side", "rows", "loss", "sampling"), [(300, 3, 1, 1), (300, 150, 0, 0), (32, 1, 1, 0)])
def test_rare_classes_of_pixels(prepared, noise, side, rows, loss, sampling):
    mask = np.zeros((side, side), np.uint8)
    mask[:rows] = 1
    prepared.write("train", {"image": noise(2, shape=(1, side, side)), "mask": [mask] * 2}, **CLASSES)
    assert bool(suggested(prepared, "loss of the classes")[0]) == loss
    setting, why = suggested(prepared, "sampling")
    assert setting == ("data.foreground_crops: 0.5" if sampling else "")
    if sampling:
        assert why.startswith("mask: 1 % of the training pixels are of another class than soil: half of the crops")
        prepared.write("train", {"image": noise(2, shape=(1, side, side)), "mask": [1 - mask] * 2}, **ALL_COUNT)
        assert "1 % of the training pixels are soil" in suggested(prepared, "sampling")[1]


@pytest.mark.parametrize(
    ("labels", "setting"),
    [
        ([0] * 6 + [1] * 2, "data.balanced: true"),
        ([0] * 7 + [1], "more images of it"),
        ([0] * 5 + [1] * 3, None),
        ([[1, 0]] * 6 + [[1, 1]] * 2, "CrossEntropy"),
    ],
)
def test_rare_labels(prepared, noise, labels, setting):
    prepared.write("train", {"image": noise(8)}, labels=labels, classes={"label": ["wild", "mutant"]})
    given, why = suggested(prepared, "rare classes")
    assert given.startswith(setting) if setting else not given
    assert setting != "data.balanced: true" or "6 training images of wild, 2 of mutant" in why
