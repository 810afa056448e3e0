"""Suggestions: which settings follow from which data, with the reason in its numbers."""

import re

import numpy as np
import pytest
from test_report import RNG, look, noise, write

ALL_COUNT = {"classes": {"mask": ["soil", "root"]}}
CLASSES = ALL_COUNT | {"background": "soil"}


def suggested(folder, what):
    """The setting and the reason of the only suggestion on something, or None."""
    found = [(s["set"], s["why"]) for s in look(folder)["suggestions"] if s["what"] == what]
    assert len(found) < 2
    return found[0] if found else None


def with_tail(n=6):
    """Pixels of which one in four thousand is ten times as bright."""
    images = noise(n, 1000, 50, (1, 64, 64))
    for image in images:
        image[0, 5, 7] = 10000
    return images


def test_stable_data_keep_one_scale(tmp_path):
    write(tmp_path, "train", {"image": noise(6), "target": noise(6)}, groups=list("aaabbb"))
    assert suggested(tmp_path, "input normalisation")[0] == "input_normalization: mean_std"
    setting, why = suggested(tmp_path, "target normalisation")
    assert setting == "target_normalization: mean_std"
    assert "never scaled image by image" in why
    assert {s["what"] for s in look(tmp_path)["suggestions"]} == {"input normalisation", "target normalisation"}


def test_heavy_tail_takes_percentiles(tmp_path):
    write(tmp_path, "train", {"image": with_tail(), "target": with_tail()})
    setting, why = suggested(tmp_path, "input normalisation")
    assert setting == "input_normalization: percentile"
    assert "c0 10000 above 11" in why
    assert suggested(tmp_path, "target normalisation")[0] == "target_normalization: percentile"
    assert "SmoothL1Loss" in suggested(tmp_path, "loss of the target")[0]


def test_percentiles_that_are_equal_are_no_scale(tmp_path):
    images = [np.zeros((1, 64, 64), np.uint16) for _ in range(6)]
    for image in images:
        image[0, 0, :2] = RNG.integers(1, 60000, 2)
    write(tmp_path, "train", {"image": images})
    assert suggested(tmp_path, "input normalisation")[0] == "input_normalization: mean_std"
    # One such channel, and percentiles cannot be taken for the others either: there is one setting for all.
    write(tmp_path, "train", {"image": [np.concatenate(pair) for pair in zip(images, with_tail(), strict=True)]})
    assert suggested(tmp_path, "input normalisation")[0] == "input_normalization: mean_std"
    write(tmp_path, "train", {"image": [i + 1000 * (n > 2) for n, i in enumerate(images)]}, groups=list("aaabbb"))
    setting, why = suggested(tmp_path, "input normalisation")
    assert setting == "input_normalization: image_mean_std"
    assert "100 % of the images" in why


def test_brightness_of_groups_is_scaled_away_in_inputs_and_never_in_targets(tmp_path):
    both = noise(3) + noise(3, 10000, 500)
    write(tmp_path, "train", {"image": both, "target": both}, groups=list("aaabbb"))
    setting, why = suggested(tmp_path, "input normalisation")
    assert setting == "input_normalization: image_percentile"
    assert re.search(r"group b (9\.9|10)\S* times brighter \(c0\)", why)
    assert suggested(tmp_path, "target normalisation")[0] == "target_normalization: mean_std"
    setting, why = suggested(tmp_path, "scale of the target")
    assert setting == "one scale for all images, before preparing"
    assert "group b " in why


@pytest.mark.parametrize(("n_bright", "setting"), [(3, "image_percentile"), (1, "mean_std")])
def test_many_images_of_unusual_brightness_are_a_kind_of_their_own(tmp_path, n_bright, setting):
    write(tmp_path, "train", {"image": noise(20) + noise(n_bright, 5000)})
    assert suggested(tmp_path, "input normalisation")[0] == f"input_normalization: {setting}"
    (warning,) = (w for w in look(tmp_path)["warnings"] if "far from the usual" in w)
    assert ("another kind of image" in warning) == (n_bright == 3)


@pytest.mark.parametrize(
    ("channels", "dtype", "there"), [(3, np.uint8, True), (3, np.uint16, False), (1, np.uint8, False)]
)
def test_pretrained_weights_expect_the_scale_of_photographs(tmp_path, channels, dtype, there):
    write(tmp_path, "train", {"image": noise(3, 100, 20, (channels, 8, 8), dtype)})
    assert bool(suggested(tmp_path, "pretrained encoder")) == there


def test_crop_fits_into_the_smallest_training_image(tmp_path):
    sizes = [(1, 70, 200), (1, 130, 130), (1, 300, 101)]
    write(
        tmp_path,
        "train",
        {"image": [noise(1, shape=s)[0] for s in sizes], "target": [noise(1, shape=s)[0] for s in sizes]},
    )
    write(tmp_path, "val", {"image": noise(1, shape=(1, 20, 20)), "target": noise(1, shape=(1, 20, 20))})
    setting, why = suggested(tmp_path, "crop")
    assert setting == "data.crop: 64, data.crops_per_image: 4"  # 130 x 130 is the typical area
    assert "3 sizes, the shortest side is 70" in why
    assert "may miss" not in why
    (tmp_path / "val.h5").unlink()
    write(tmp_path, "train", {"image": noise(2, shape=(1, 40, 600))}, labels=[0, 1])
    setting, why = suggested(tmp_path, "crop")
    assert setting.startswith("data.crop: 32")
    assert "may miss what the label is about" in why
    write(tmp_path, "train", {"image": noise(2, shape=(1, 40, 500))})
    assert suggested(tmp_path, "crop") is None


@pytest.mark.parametrize(("side", "rows", "loss", "sampling"), [(300, 3, 1, 1), (300, 150, 0, 0), (32, 1, 1, 0)])
def test_rare_classes_of_pixels(tmp_path, side, rows, loss, sampling):
    mask = np.zeros((side, side), np.uint8)
    mask[:rows] = 1
    write(tmp_path, "train", {"image": noise(2, shape=(1, side, side)), "mask": [mask] * 2}, **CLASSES)
    assert bool(suggested(tmp_path, "loss of the classes")) == loss
    assert bool(suggested(tmp_path, "sampling")) == sampling
    if sampling:
        assert suggested(tmp_path, "sampling") == (
            "data.foreground_crops: 0.5",
            "mask: 1 % of the training pixels are of another class than soil: half of the crops are then centred on "
            "a pixel of such a class, each class equally often.",
        )
        write(tmp_path, "train", {"image": noise(2, shape=(1, side, side)), "mask": [1 - mask] * 2}, **ALL_COUNT)
        assert "1 % of the training pixels are soil" in suggested(tmp_path, "sampling")[1]


def test_rare_labels(tmp_path):
    names = {"classes": {"label": ["wild", "mutant"]}}
    write(tmp_path, "train", {"image": noise(8)}, labels=[0] * 6 + [1] * 2, **names)
    setting, why = suggested(tmp_path, "rare classes")
    assert setting.startswith("data.balanced: true")
    assert "6 training images of wild, 2 of mutant" in why
    write(tmp_path, "train", {"image": noise(8)}, labels=[0] * 7 + [1], **names)
    assert "balanced" not in suggested(tmp_path, "rare classes")[0]
    write(tmp_path, "train", {"image": noise(8)}, labels=[0] * 5 + [1] * 3, **names)
    assert suggested(tmp_path, "rare classes") is None
    write(tmp_path, "train", {"image": noise(8)}, labels=[[1, 0]] * 6 + [[1, 1]] * 2, **names)
    assert suggested(tmp_path, "rare classes")[0].startswith("BinaryCrossEntropy")


def test_pixels_that_are_not_annotated(tmp_path):
    mask = np.repeat(np.array([[0], [1], [1], [255]], np.uint8), 8, axis=1)
    arrays = {"image": noise(2, shape=(1, 4, 8)), "mask": [mask] * 2}
    write(tmp_path, "train", arrays, **CLASSES | {"ignore_index": 255})
    setting, why = suggested(tmp_path, "pixels that are not annotated")
    assert setting == "ignore_index: 255 (set)"
    assert "25 %" in why
    write(tmp_path, "train", arrays, **CLASSES)
    assert "in the data configuration" in suggested(tmp_path, "pixels that are not annotated")[0]
    write(tmp_path, "train", arrays | {"mask": [mask % 2] * 2}, **CLASSES)
    assert suggested(tmp_path, "pixels that are not annotated") is None


def test_a_target_of_two_values_is_a_mask(tmp_path):
    write(tmp_path, "train", {"image": noise(2), "target": [(i > 1000).astype(np.uint8) * 255 for i in noise(2)]})
    assert "mask" in suggested(tmp_path, "task")[0]
