"""Numbers, sizes and contact of annotated objects."""

import numpy as np
import pytest

from project.data.object_statistics import median_diameter, touching
from project.data.statistics import SplitStatistics


def near(instances, number):
    """Whether an object is within a gap of one pixel of another, by distances of all pixels."""
    own = np.argwhere(instances == number)
    other = np.argwhere((instances > 0) & (instances != number))
    if not len(own) or not len(other):
        return False
    step = np.abs(own[:, None] - other[None])
    return bool(((step.max(2) == 1) | ((step.max(2) == 2) & (step.min(2) == 0))).any())


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 2), (12, 13)])
def test_objects_touch_across_at_most_one_pixel(shape):
    rng = np.random.default_rng(0)
    for density in (0.03, 0.1, 0.3):
        instances = (rng.integers(1, 12, shape) * (rng.random(shape) < density)).astype(np.uint16)
        expected = [near(instances, number) for number in range(instances.max() + 1)]
        np.testing.assert_array_equal(touching(instances), [False, *expected[1:]])


def test_summary_of_merged_parts():
    first, second = np.zeros((2, 20, 20), np.uint8)
    first[:4, :4], first[:4, 4:8], second[5:9, 5:15] = 1, 9, 3
    parts = [SplitStatistics(), SplitStatistics()]
    for part, instances in zip(parts, (first, second), strict=True):
        part.add("instances", instances)
    parts[0].merge(parts[1])
    summary = parts[0].summary()["instances"]
    assert (summary["n"], summary["n_touching"]) == (3, 2)
    assert summary["area_percentiles"]["50"] == 16
    assert summary["area_percentiles"]["100"] == 40
    assert median_diameter({"instances": summary}) == pytest.approx(2 * np.sqrt(16 / np.pi))


def test_splits_without_objects_have_no_such_statistics():
    statistics = SplitStatistics()
    statistics.add("instances", np.zeros((3, 3), np.uint8))
    assert statistics.summary() == {"n_samples": 0}
    assert median_diameter(statistics.summary()) is None
