"""Whether targets of other samples are found, and nothing else is taken for that."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.transform import resize_local_mean

from project.checks import alignment

N = 26


def images(seed, size, smooth):
    rng = np.random.default_rng(seed)
    return [3000 * gaussian_filter(rng.random((size, size)), smooth) + rng.normal(0, 9, (size, size)) for _ in range(N)]


def found(inputs, targets):
    shape = (2, alignment.COARSE, alignment.COARSE)
    maps = [[resize_local_mean(alignment.feature_maps(i[None]), shape) for i in part] for part in (inputs, targets)]
    return alignment.find_other(*map(np.stack, maps))


@pytest.mark.parametrize(("size", "smooth"), [(32, 1.5), (32, 6), (64, 3)])
def test_few_smooth_structures_that_fit_by_chance_give_no_alarm(size, smooth):
    inputs = images(1, size, smooth)
    own = [gaussian_filter(image, 2) for image in inputs]
    assert found(inputs, own) is None
    assert found(inputs, [-target for target in own]) is None
    assert found(inputs, images(2, size, smooth)) is None


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_part_of_the_samples_with_the_targets_of_others(share):
    inputs = images(1, 64, 1.5)
    moved = np.arange(N)
    n = round(share * N)
    moved[:n] = np.random.default_rng(0).permutation(np.roll(moved[:n], 3))
    n_others = int((moved != np.arange(N)).sum())
    result = found(inputs, [gaussian_filter(inputs[i], 2) for i in moved])
    assert result is not None
    assert result.what == f"{n_others} of {N} belong to another sample"
    assert result.correlation > 0.8
    assert abs(result.unchanged) < 0.2


def test_structure_that_all_targets_share_does_not_accuse_the_neighbors():
    inputs, others = images(1, 64, 1.5), images(2, 64, 1.5)
    # The same illumination in every input and target, and nothing else in common; the own targets are dimmer.
    shared = 6000 * gaussian_filter(np.random.default_rng(3).random((64, 64)), 2)
    lit = [0.3 * image + shared for image in inputs]
    targets = [other + (shared if i % 5 else 0) for i, other in enumerate(others)]
    assert found(lit, targets) is None


@pytest.mark.parametrize("step", [1, -2])
def test_a_list_that_slipped_is_found_under_shared_structure(step):
    inputs = images(1, 64, 1.5)
    shared = 1500 * gaussian_filter(np.random.default_rng(3).random((64, 64)), 2)
    targets = [gaussian_filter(image, 1) + shared for image in inputs]
    result = found([image + shared for image in inputs], np.roll(targets, step, axis=0))
    assert result is not None
    assert f"the one {abs(step)} {'after' if step > 0 else 'before'} it" in result.what or "another" in result.what
