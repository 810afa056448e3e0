"""The normalization follows from the spread of the images' values, with its reason."""

import numpy as np
import pytest
from inspected_data import make_noise, write

from project.data.drift import measure_drift
from project.data.normalization import (
    Levels,
    choose_input_normalization,
    choose_target_normalization,
    measure_levels,
)
from project.data.store import SplitReader


@pytest.mark.parametrize(
    ("levels", "method"),
    [
        (Levels(), "mean_std"),
        (Levels(apart=4.0), "mean_std"),
        (Levels(apart=4.1), "image_percentile"),
        (Levels(apart=4.1, flat=0.02), "image_mean_std"),
        (Levels(apart=4.1, informs=0.26), "mean_std"),
        (Levels(apart=0.1, informs=0.9, shifts=("split test 3 times brighter (c0)",)), "image_percentile"),
        (Levels(tail=3.1), "percentile"),
        (Levels(tail=3.1, apart=4.1, informs=0.26), "percentile"),
    ],
)
def test_inputs_take_statistics_of_each_image_where_brightness_differs_and_means_nothing(levels, method):
    assert choose_input_normalization(levels).value == method


@pytest.mark.parametrize(
    ("levels", "method"),
    [
        (Levels(dominated=3.0), "mean_std"),
        (Levels(dominated=3.1), "asinh"),
        (Levels(apart=9.0, shifts=("group b 3 times brighter (c0)",)), "mean_std"),
        (Levels(tail=3.1), "percentile"),
    ],
)
def test_targets_of_several_scales_take_asinh(levels, method):
    choice = choose_target_normalization(levels)
    assert choice.value == method
    assert choice.reason


def test_levels_are_those_of_the_stored_statistics(tmp_path):
    rng = np.random.default_rng(0)
    images = make_noise(rng, 9) + make_noise(rng, 3, 5000)
    targets = make_noise(rng, 9, 100, 10) + make_noise(rng, 3, 1000, 100)
    write(tmp_path, "train", {"image": images, "target": targets}, groups=list("aaaaaaaaabbb"))
    train = SplitReader(tmp_path / "train.h5")
    drift = measure_drift({"train": train})
    pixels = np.stack(targets)
    channel = {"n": pixels.size, "std": pixels.std(), "max": 1400.0}
    channel["percentiles"] = {"1": 80.0, "50": 100.0, "99": 1200.0, "99.9": 1300.0}
    levels = measure_levels("target", train, [channel], drift)
    assert levels.dominated == pytest.approx(pixels.std() / 10, rel=0.1)
    assert levels.tail == pytest.approx(1300 / 1200)
    assert len(levels.shifts) == 2
    levels = measure_levels("image", train, [channel], drift)
    assert levels.informs == pytest.approx(1, abs=0.01)
    assert levels.must_stay
