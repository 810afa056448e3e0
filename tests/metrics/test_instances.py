import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.measure
import skimage.morphology
import torch

from project.metrics.instances import count_scores, match
from project.tasks import objects
from project.tasks.objects import boundary, components, depth_peaks, relative_depth, split_at_depth, split_touching


def discs(shape, *circles):
    """Numbered discs (y, x, radius); where two overlap, the nearer centre has the pixel."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    away = np.stack([np.hypot(y - cy, x - cx) - r for cy, cx, r in circles])
    return np.where(away.min(0) < 0, away.argmin(0) + 1, 0).astype(np.int32)


def touching():
    """Three discs in a row that touch, a fourth that stands alone, one cut by the border."""
    return discs((64, 96), (20, 20, 9.5), (20, 37, 9.5), (24, 53, 8.5), (48, 70, 9.5), (62, 20, 9.5))


def depth_of(instances):
    return relative_depth(torch.from_numpy(instances)[None])[0].numpy()


def random_instances(seed, n=12, size=40):
    rng = np.random.default_rng(seed)
    return discs((size, size), *zip(*rng.uniform(0, size, (2, n)), rng.uniform(2, 7, n), strict=True))


def same_objects(first, second):
    """Whether two maps hold the same objects, under whatever numbers."""
    pairs = set(zip(first.ravel().tolist(), second.ravel().tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) and (0, 0) in pairs


def is_numbered(instances):
    return instances.dtype == np.int32 and np.unique(instances[instances > 0]).tolist() == [
        *range(1, instances.max() + 1)
    ]


# Splitting ------------------------------------------------------------------------------------------------------------


def test_components_merge_what_touches_and_splitters_separate_it():
    true = touching()
    foreground = true > 0
    assert components(foreground, 10).max() == 3
    for found in (split_touching(foreground, 10, 8), split_at_depth(foreground, depth_of(true), 10)):
        assert is_numbered(found)
        assert np.array_equal(found > 0, foreground)
        result = match(found, true)
        assert (result.n_true, result.n_predicted, result.n_matched) == (5, 5, 5)
        assert min(result.ious) > 0.8


def test_components_are_those_of_scikit_image():
    foreground = np.random.default_rng(0).random((50, 40)) < 0.55
    found = components(foreground, 6)
    expected = skimage.measure.label(foreground, connectivity=1)
    sizes = np.bincount(expected.ravel())
    assert is_numbered(found)
    assert same_objects(found, np.where(sizes[expected] >= 6, expected, 0))
    assert 1 < found.max() < expected.max()


@pytest.mark.parametrize("min_size", [0, 1, 4, 5])
def test_objects_have_the_smallest_size(min_size):
    foreground = np.zeros((12, 12), dtype=bool)
    foreground[1, 1] = True
    foreground[5:7, 5:7] = True
    expected = {0: 2, 1: 2, 4: 1, 5: 0}[min_size]
    nothing = np.zeros_like(foreground)
    for found in (
        components(foreground, min_size),
        split_touching(foreground, min_size, 4),
        split_at_depth(foreground, nothing, min_size),
        split_at_depth(foreground, foreground, min_size),
    ):
        assert found.max() == expected
        assert is_numbered(found)


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("shape", [(9, 7), (1, 1), (1, 8)])
def test_empty_and_full_images(value, shape):
    foreground = np.full(shape, value)
    for found in (
        components(foreground, 1),
        split_touching(foreground, 1, 3),
        split_at_depth(foreground, foreground, 1),
    ):
        assert found.dtype == np.int32
        assert (found == int(value)).all()


def test_a_smooth_rod_stays_whole():
    foreground = np.zeros((40, 100), dtype=bool)
    foreground[10:20, 10:80] = True
    assert split_touching(foreground, 10, 6).max() == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_ragged_outline_does_not_split_an_object(seed):
    y, x = np.mgrid[:60, :60] - 30
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((60, 60)), 2)
    foreground = components(np.hypot(1.6 * y, x / 1.6) < 12 + noise / noise.std(), 20) > 0
    assert split_touching(foreground, 10, 8).max() == 1


# Depth ----------------------------------------------------------------------------------------------------------------


def test_the_boundary_is_where_the_window_holds_something_else():
    instances = np.stack([random_instances(seed, size=17) for seed in range(3)])
    found = boundary(torch.from_numpy(instances))
    for b, y, x in np.ndindex(instances.shape):
        window = instances[b, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        assert found[b, y, x].item() == (instances[b, y, x] > 0 and (window != instances[b, y, x]).any())


def slow_depth(instances, limit):
    """Distances of all pairs of pixels."""
    edge = np.argwhere(boundary(torch.from_numpy(instances)[None])[0].numpy())
    depth = np.zeros(instances.shape)
    for y, x in np.argwhere(instances > 0):
        depth[y, x] = min(np.hypot(*(edge - (y, x)).T).min(initial=np.inf), limit) + 1
    for number in np.unique(instances[instances > 0]):
        depth[instances == number] /= depth[instances == number].max()
    return depth


@pytest.mark.parametrize(("limit", "shape"), [(64, (30, 40)), (3, (30, 40)), (64, (1, 40)), (64, (40, 1))])
def test_depth_is_the_distance_to_the_boundary_by_that_of_the_center(limit, shape, monkeypatch):
    monkeypatch.setattr(objects, "MAX_DEPTH", limit)
    instances = np.stack([random_instances(seed)[: shape[0], : shape[1]] for seed in range(3)])
    instances[1] += 40_000 * (instances[1] > 0)
    depth = relative_depth(torch.from_numpy(instances.astype(np.uint16)))
    assert depth.dtype == torch.float32
    for image, found in zip(instances, depth.numpy(), strict=True):
        np.testing.assert_allclose(found, slow_depth(image, limit), atol=1e-6)


def test_depth_separates_large_and_small_objects_that_touch():
    true = discs((80, 80), (30, 30, 20), (30, 54, 4), (56, 30, 6))
    found = split_at_depth(true > 0, depth_of(true), 5)
    assert len([iou for iou in match(found, true).ious if iou > 0.9]) == 3


@pytest.mark.parametrize("seed", range(4))
def test_peaks_are_h_maxima(seed):
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).random((120, 130)), 4)
    depth = (0.1 + 0.85 * (noise - noise.min()) / np.ptp(noise)).astype(np.float32)
    seeds = depth_peaks(depth, np.ones(depth.shape, bool))
    fewest, most = (
        skimage.measure.label(skimage.morphology.h_maxima(depth, h)).max()
        for h in (objects.SADDLE + objects.STEP, objects.SADDLE)
    )
    assert 5 < fewest <= len(np.unique(seeds)) - 1 <= most
    parts = [skimage.measure.label(seeds == number).max() for number in np.unique(seeds[seeds > 0])]
    assert set(parts) == {1}


# Matching -------------------------------------------------------------------------------------------------------------


def ious_by_hand(predicted, target):
    """Of all pairs, pixel by pixel."""
    return [
        np.sum((predicted == p) & (target == t)) / np.sum((predicted == p) | (target == t))
        for p in np.unique(predicted[predicted > 0])
        for t in np.unique(target[target > 0])
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_matches_and_their_average_precision_are_those_of_all_pairs(dtype):
    precisions = []
    for seed in range(8):
        target = random_instances(seed)
        predicted = np.roll(random_instances(seed), 1, seed % 2)
        numbers = np.append(0, 1 + np.random.default_rng(seed).permutation(250)[: predicted.max()])  # any will do
        found = match(numbers[predicted].astype(dtype), target.astype(dtype))
        ious = np.array(ious_by_hand(predicted, target))
        assert found.n_matched == (ious > 0.5).sum()
        assert found.iou_sum == pytest.approx(math.fsum(ious[ious > 0.5]), abs=1e-12)
        assert (found.n_true, found.n_predicted) == tuple(len(np.unique(x[x > 0])) for x in (target, predicted))
        n = [(ious > t / 100).sum() for t in range(50, 100, 5)]
        expected = np.mean([k / (found.n_true + found.n_predicted - k) for k in n])
        assert found.object_ap == pytest.approx(expected, abs=1e-12)
        precisions.append(found.object_ap)
    assert 0.05 < min(precisions) < max(precisions) < 0.95
    assert match(target, target).object_ap == 1


def test_images_without_objects():
    nothing, something = np.zeros((5, 5), dtype=np.int32), np.ones((5, 5), dtype=np.int32)
    for pair, expected in (
        ((nothing, nothing), (0, 0)),
        ((something, nothing), (0, 1)),
        ((nothing, something), (1, 0)),
    ):
        found = match(*pair)
        assert (found.n_true, found.n_predicted, found.n_matched, found.iou_sum) == (*expected, 0, 0)
        assert found.object_ap == (0 if any(expected) else pytest.approx(math.nan, nan_ok=True))


# Scores of counts -----------------------------------------------------------------------------------------------------


def columns(*rows):
    return torch.tensor(rows, dtype=torch.float64).unbind(1)


def test_count_scores_by_hand():
    metrics, undefined = count_scores(
        *columns((10, 12, 9, 7.2, 0.5), (5, 3, 3, 2.1, 0.3), (0, 0, 0, 0, math.nan), (0, 2, 0, 0, 0), (7, 0, 0, 0, 0))
    )
    true, predicted = [10, 5, 0, 0, 7], [12, 3, 0, 2, 0]
    assert metrics["count_error"] == (2 + 2 + 0 + 2 + 7) / 5
    assert metrics["count_bias"] == (2 - 2 + 0 + 2 - 7) / 5
    assert metrics["count_pearson"] == pytest.approx(scipy.stats.pearsonr(true, predicted).statistic, rel=1e-12)
    assert metrics["object_f1"] == pytest.approx((18 / 22 + 6 / 8 + 0 + 0) / 4, rel=1e-12)
    assert metrics["object_f1_pooled"] == pytest.approx(24 / 39, rel=1e-12)
    assert metrics["matched_iou"] == pytest.approx(9.3 / 12, rel=1e-12)
    assert metrics["panoptic_quality"] == pytest.approx(9.3 / (12 + (10 + 5) / 2), rel=1e-12)  # unmatched: half each
    assert metrics["object_ap"] == pytest.approx(0.8 / 4)
    assert undefined == {"object_f1": 1, "object_ap": 1}


@pytest.mark.parametrize("counts", [[(3, 4)], [(3, 4), (3, 5)], [(3, 4), (5, 4)]])
def test_counts_that_do_not_vary_have_no_correlation(counts):
    metrics, undefined = count_scores(*columns(*((*pair, 3, 2, 0.4) for pair in counts)))
    assert "count_pearson" not in metrics
    assert undefined == {"count_pearson": len(counts)}
