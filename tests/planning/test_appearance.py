"""Appearance of simulated images: symmetry, structure size and noise."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from project.planning.appearance import (
    CELLS,
    distinct_maps,
    gradient_map,
    measure_asymmetry,
    noise_share,
    structure_size,
)


def _maps(make, n: int = 60) -> np.ndarray:
    return np.array([gradient_map(make(np.random.default_rng(i))) for i in range(n)])


def _cells(rng: np.random.Generator, shape: tuple[int, int] = (96, 96)) -> np.ndarray:
    """Disks anywhere, under a lamp that is brighter on the left."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for cy, cx in rng.random((8, 2)) * shape:
        image += np.hypot(y - cy, x - cx) < 8
    return ((gaussian_filter(image, 1) + 0.05 * rng.random(shape)) * (2 - x / shape[1]))[None].astype(np.float32)


def _street(rng: np.random.Generator) -> np.ndarray:
    """Texture below a smooth sky."""
    image = _cells(rng)
    image[:, :40] = gaussian_filter(image[:, :40], 8)
    return image


def _asymmetries(maps: np.ndarray) -> tuple[float, float, float]:
    return measure_asymmetry(maps, np.zeros(len(maps), int))


def test_cells_have_no_preferred_direction_whatever_the_lamp():
    assert max(_asymmetries(_maps(_cells))) < 0.1


def test_streets_are_not_upside_down():
    left_right, up_down, turned = _asymmetries(_maps(_street))
    assert left_right < 0.1
    assert min(up_down, turned) > 0.2


def test_classes_that_are_mirror_images_of_each_other_are_no_symmetry():
    maps, classes = _maps(_street), np.arange(60) % 2
    maps[1::2] = maps[1::2, ::-1]
    assert _asymmetries(maps)[1] < 0.1
    assert measure_asymmetry(maps, classes)[1] > 0.2


def test_few_images_tell_nothing():
    assert _asymmetries(_maps(_street, 7)) == (0, 0, 0)


def test_frames_of_a_series_count_once():
    maps = _maps(_cells, 4)
    assert distinct_maps(np.concatenate([maps, maps + 1e-3])) == [0, 1, 2, 3]
    assert maps.shape == (4, CELLS, CELLS)


@pytest.mark.parametrize("diameter", [10, 20, 40])
def test_structure_size(diameter):
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:400, :400]
    image = sum((np.hypot(y - cy, x - cx) < diameter / 2) * 1.0 for cy, cx in rng.random((400 // diameter, 2)) * 400)
    assert structure_size(np.asarray(image)[None]) == pytest.approx(diameter, rel=0.35)


@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0])
def test_noise_share(noise):
    rng = np.random.default_rng(0)
    image = gaussian_filter(rng.random((200, 200)), 8)
    image = image / image.std() + noise * rng.standard_normal(image.shape)
    assert noise_share(image[None]) == pytest.approx(noise / np.hypot(1, noise), abs=0.05)


def test_a_constant_image_has_no_noise_and_one_structure():
    image = np.ones((1, 30, 40))
    assert noise_share(image) == 0
    assert structure_size(image) == 30
