"""Statistics by histograms, compared with NumPy over all pixels at once."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from project.data.statistics import (
    PERCENTILES,
    PIECE,
    Histogram,
    ImageStatistics,
    SplitStatistics,
    value_range,
)


def counted(*parts: np.ndarray) -> Histogram:
    histogram = Histogram(parts[0].dtype)
    for part in parts:
        histogram.count(part)
    return histogram


def summary_of(*parts: np.ndarray) -> dict:
    return counted(*parts).summary()


def check_integers(summary: dict, values: np.ndarray) -> None:
    numbers = values.ravel().tolist()
    mean = Fraction(sum(numbers), len(numbers))
    variance = Fraction(sum(v * v for v in numbers), len(numbers)) - mean**2
    assert summary["n"] == values.size
    assert summary["n_distinct"] == len(np.unique(values))
    assert (summary["min"], summary["max"]) == (values.min(), values.max())
    assert summary["mean"] == float(mean) == values.mean(dtype=np.float64)
    assert summary["std"] == float(np.sqrt(float(variance))) == pytest.approx(values.std(dtype=np.float64), rel=1e-9)
    for percent in PERCENTILES:
        expected = np.percentile(values, percent)  # which rounds while it interpolates
        assert summary["percentiles"][f"{percent:g}"] == pytest.approx(expected, rel=1e-12, abs=1e-11 * values.max())


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.uint8, 0, 256), (np.uint16, 0, 65536), (np.uint16, 60000, 60010), (np.uint8, 255, 256)],
)
def test_integers_are_exact(dtype, low, high):
    values = np.random.default_rng(low).integers(low, high, (3, 50, 41), dtype)
    check_integers(summary_of(values), values)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 65535), min_size=1, max_size=9), min_size=1, max_size=5))
def test_merged_is_all_at_once(parts):
    arrays = [np.array(part, np.uint16) for part in parts]
    merged = Histogram(np.dtype(np.uint16))
    for array in arrays:
        merged.merge(counted(array))
    assert merged.summary() == summary_of(*arrays)
    check_integers(merged.summary(), np.concatenate(arrays))


@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (60000, 3), (1e6, 10), (-1e6, 10), (1e-6, 1e-9)])
def test_floats_far_from_zero(offset, spread):
    values = np.random.default_rng(1).normal(offset, spread, (40, 50, 60)).astype(np.float32)
    exact = values.astype(np.float64)
    merged = Histogram(values.dtype)
    for part in values:
        merged.merge(counted(part))
    for summary in (summary_of(values), summary_of(*values), merged.summary()):
        assert (summary["min"], summary["max"]) == (values.min(), values.max())
        assert summary["n"] == values.size
        assert summary["mean"] == pytest.approx(exact.mean(), rel=1e-6, abs=1e-6 * exact.std())
        assert summary["std"] == pytest.approx(exact.std(), rel=1e-6)
        for percent in PERCENTILES:
            expected = np.percentile(exact, percent)
            assert summary["percentiles"][f"{percent:g}"] == pytest.approx(expected, rel=0.004, abs=0.001 * spread)


def test_nan_and_infinity_are_counted_apart():
    clean = np.array([1, 2, 3, 4], np.float32)
    dirty = np.concatenate([clean, np.array([np.nan, np.inf, -np.inf], np.float32)])
    summary = summary_of(dirty)
    assert summary["n_not_finite"] == 3
    assert summary | {"n_not_finite": 0} == summary_of(clean)
    merged = counted(dirty).merge(counted(dirty))
    assert (merged.summary()["n"], merged.summary()["n_not_finite"]) == (8, 6)


def test_nothing_to_count():
    assert summary_of(np.empty(0, np.uint16)) == {"dtype": "uint16", "n": 0, "n_not_finite": 0}
    assert summary_of(np.full(5, np.nan, np.float32)) == {"dtype": "float32", "n": 0, "n_not_finite": 5}
    some = counted(np.ones(3, np.float32))
    assert some.merge(Histogram(np.dtype(np.float32))).summary() == summary_of(np.ones(3, np.float32))


def test_percentile_of_float_zeros_is_zero():
    values = np.array([0, 0, 0, 0, 1], np.float32)
    assert counted(values).summary()["percentiles"]["50"] == 0.0


# --- statistics of single images ---


def expected_statistics(values: np.ndarray) -> ImageStatistics:
    """By NumPy."""
    finite = values[np.isfinite(values)].astype(np.float64)
    pairs = [(*np.percentile(finite, [cut, 100 - cut]), cut) for cut in (1, 0.1, 0)]
    range_ = next((pair for pair in pairs if pair[0] < pair[1]), pairs[-1])
    return ImageStatistics(finite.min(), finite.max(), finite.mean(), finite.std(), values.size - finite.size, *range_)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.uint8, 0, 256), (np.uint16, 0, 65536), (np.uint16, 60000, 60010), (np.uint16, 7, 8), (np.float32, -9, 1e6)],
)
def test_statistics_of_single_images(dtype, low, high):
    images = np.random.default_rng(3).uniform(low, high, (5, 2, 40, 30)).astype(dtype)
    statistics = SplitStatistics()
    for image in images:
        for measured, channel in zip(statistics.add("image", image), image, strict=True):
            assert measured == pytest.approx(expected_statistics(channel), rel=1e-12)
            assert all(type(number) is float for number in measured[:4] + measured[5:])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(("n_bright", "cut"), [(700, 1), (300, 0.1), (30, 0)])
def test_the_range_of_sparse_images_leaves_out_as_much_as_it_can(dtype, n_bright, cut):
    image = np.full(65_536, 9, dtype)
    image[:n_bright] = np.linspace(20, 90, n_bright)
    measured = Histogram(np.dtype(dtype)).count(image)
    assert measured.cut == cut
    assert (measured.low, measured.high) == pytest.approx(np.percentile(image, [cut, 100 - cut]))
    summary = counted(image).summary()
    assert value_range(summary, 1).cut == cut
    assert value_range(summary).cut == min(cut, 0.1)


def test_large_images_are_counted_like_small_ones():
    image = np.random.default_rng(4).integers(0, 5000, (1, 2, PIECE // 2 + 7), np.uint16)
    image[0, 1, -1] = 65535
    statistics = SplitStatistics()
    assert statistics.add("image", image)[0] == pytest.approx(expected_statistics(image), rel=1e-12)
    np.testing.assert_array_equal(statistics.channels["image"][0].counts, np.bincount(image.ravel(), minlength=65536))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_merged_parts_are_all_at_once(dtype):
    rng = np.random.default_rng(5)
    parts, everything = [SplitStatistics() for _ in range(3)], SplitStatistics()
    for i in range(9):
        image, mask = rng.integers(0, 200, (2, 8, 9)).astype(dtype), {0: i, 3: 1}
        for statistics in (parts[i % 3], everything):
            statistics.add("image", image)
            statistics.mask.update(mask)
    merged = SplitStatistics()
    for part in parts:
        merged.merge(part)
    summary, expected = (part.summary(np.arange(9) % 2, ["a", "b"]) for part in (merged, everything))
    assert summary | {"image": 0} == {"image": 0, "mask": {"0": 36, "3": 9}, "label": {"a": 5, "b": 4}, "n_samples": 9}
    for channel, other in zip(summary["image"], expected["image"], strict=True):
        assert channel.pop("percentiles") == other.pop("percentiles")
        for name in ("mean", "std"):
            assert channel.pop(name) == pytest.approx(other.pop(name), rel=1e-12)
        assert channel == other
