"""Brightness of splits and groups, compared with the training images."""

import numpy as np
import pytest

from project.data.drift import (
    BRIGHTER,
    SHIFTED,
    Drift,
    compare_groups,
    compare_splits,
    describe_shift,
    groups_beside_classes,
    measure_drift,
)
from project.data.store import SplitReader


def images(*parts):
    """Levels, splits and groups of images, from (split, mean, group) of each."""
    splits, means, groups = zip(*parts, strict=True)
    return np.array([(mean, 50.0) for mean in means]), np.array(splits, object), np.array(groups, object)


@pytest.mark.parametrize(
    ("mean", "difference"), [(2100, "2.1 times brighter"), (400, "2.5 times darker"), (1050, None)]
)
def test_a_split_is_compared_with_training(mean, difference):
    parts = [("train", 1000, "a")] * 3 + [("val", mean, "a")] * 2 + [("test", 1000, "a")]
    sentences = Drift({"target/gfp": compare_splits(*images(*parts)[:2])}, {}).describe()
    assert len(sentences) == bool(difference)
    if difference:
        start = f"target/gfp: 1 of 3 splits has another brightness than the training split: val (mean {mean}, not 1000"
        assert sentences[0].startswith(f"{start}: {difference})")


def test_without_training_images_nothing_is_compared():
    assert compare_splits(*images(("val", 1, "a"), ("test", 1000, "a"))[:2]) == {}


def test_groups_of_all_splits_are_compared_with_the_training_groups():
    groups = compare_groups(*images(*[("train", 100, g) for g in "aabbcc"], *[("val", 1000, "d")] * 2))
    (sentence,) = Drift({"image/x": {}}, {"image/x": groups}).describe()
    assert sentence.startswith("image/x: 1 of 4 groups has another brightness")
    assert '"d" (mean 1000, not 100: 10 times brighter)' in sentence
    assert "image_percentile" in sentence
    (sentence,) = Drift({"target/x": {}}, {"target/x": groups}).describe()
    assert "must not be scaled image by image" in sentence


@pytest.mark.parametrize("groups", ["aaaa", "abcd"])
def test_one_group_or_single_images_are_no_groups(groups):
    assert compare_groups(*images(*[("train", 10.0**i, g) for i, g in enumerate(groups)])) == {}


def test_folders_are_compared_where_each_sample_is_a_group():
    assert groups_beside_classes(["d/1", "d/2", "e/1"], ["d/1", "d/2", "e/1"]) == ["d", "d", "e"]
    assert groups_beside_classes(["d/1", "d/2", "e/1"], ["x", "x", "y"]) == ["x", "x", "y"]


@pytest.mark.parametrize(
    ("groups", "labels", "expected"),
    [
        (["cat/1", "cat/2", "dog/1"], ["cat", "cat", "dog"], ["", "", ""]),  # folders of classes
        (["0/1", "0/2", "1/1"], ["cat", "cat", "dog"], ["", "", ""]),  # called otherwise
        (["mon/cat/1", "mon/dog/2", "tue/dog/1"], ["cat", "dog", "dog"], ["mon", "mon", "tue"]),
        (["cat", "cat", "dog"], ["cat", "cat", "dog"], ["", "", ""]),  # groups that are the classes
        (["1", "1", "2"], ["2", "1", "1"], ["1", "1", "2"]),
    ],
)
def test_classes_are_not_compared_as_groups(groups, labels, expected):
    """Brightness may be what tells the classes."""
    assert groups_beside_classes(groups, groups, labels) == expected


def test_brightness_is_judged_by_factor_and_by_spread():
    assert describe_shift(10 * BRIGHTER, 5, 10, 5) == f"{BRIGHTER:g} times brighter"
    assert describe_shift(10, 5, 10 * BRIGHTER, 5) == f"{BRIGHTER:g} times darker"
    assert describe_shift(19, 5, 10, 5) is None
    # Far from zero no factor shows, but the bulks lie apart.
    assert describe_shift(10000 + 100 * (SHIFTED + 1), 100, 10000, 100) == "brighter by 4 standard deviations"
    # Ten times the signal on a camera offset of 100: the smaller spread tells it, the larger would hide it.
    assert describe_shift(200, 200, 110, 20) == "brighter by 4.5 standard deviations"
    # A factor of five that comes from a few sparse pixels.
    assert describe_shift(0.5, 20, 0.1, 10) is None
    assert describe_shift(7, 0, 7, 0) is None
    assert describe_shift(-1.0, 0.1, 1.0, 0.1) == "darker by 20 standard deviations"


def test_drift_is_read_from_the_statistics_of_the_files(make_dataset):
    folder = make_dataset(dtype=np.float32)
    readers = {split: SplitReader(folder / f"{split}.h5") for split in ("train", "val", "test")}
    drift = measure_drift(readers)
    assert list(drift.splits) == ["image/in0", "target/out0"]
    means = [readers["val"].read("target", i).mean() for i in range(len(readers["val"]))]
    assert drift.splits["target/out0"]["val"].mean == pytest.approx(np.mean(means), rel=1e-5)
    assert drift.describe() == []
