"""A copy is found however it was saved or turned; another picture of the same kind is not."""

import io
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from project.data.duplicates import FREQUENCIES, MIN_CORRELATION, SIGNATURE, signature, similar_pairs

BLANK = np.zeros(SIGNATURE, np.uint8)


@cache
def field(seed: int, height: int = 200, width: int = 240) -> np.ndarray:
    """(1, H, W) uint8: smooth blobs, unevenly lit in the same way in every image."""
    rng = np.random.default_rng(seed)
    blobs = gaussian_filter(rng.normal(size=(height, width)), 7, mode="nearest")
    light = np.linspace(0, 3, height)[:, None] + np.linspace(1, 0, width) ** 2
    blobs = blobs / blobs.std() + light
    return np.rint((blobs - blobs.min()) / np.ptp(blobs) * 180 + 20).astype(np.uint8)[None]


@cache
def fields() -> list[np.ndarray]:
    return [signature(field(seed)) for seed in range(20)]


def jpeg(image: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image[0]).save(stream, "JPEG", quality=75)
    return np.asarray(Image.open(stream))[None]


def resized(image: np.ndarray, factor: float) -> np.ndarray:
    size = round(image.shape[2] * factor), round(image.shape[1] * factor)
    return np.asarray(Image.fromarray(image[0]).resize(size, Image.Resampling.BILINEAR))[None]


def signs(values: np.ndarray) -> np.ndarray:
    return values.view(np.int8).astype(int)


SYMMETRIES = {
    f"{'transposed ' * transposed}{turns * 90} degrees": lambda x, t=transposed, k=turns: np.rot90(
        x.swapaxes(1, 2) if t else x, k, (1, 2)
    )
    for transposed in (False, True)
    for turns in range(4)
}
COPIES = SYMMETRIES | {
    "jpeg": jpeg,
    "16 bit": lambda x: x.astype(np.uint16) * 257,
    "half the contrast": lambda x: x // 2 + 60,
    "float": lambda x: x.astype(np.float32) / 255 - 7,
    "gamma": lambda x: np.rint(255 * (x / 255) ** 1.4).astype(np.uint8),
    "half the size": lambda x: resized(x, 0.5),
    "three times the size": lambda x: resized(x, 3),
    "noise": lambda x: (x + np.random.default_rng(0).normal(0, 9, x.shape)).clip(0, 255).astype(np.uint8),
    "trimmed": lambda x: x[:, 2:-1, 1:-3],
    "RGBA": lambda x: np.concatenate([x, x, x, np.full_like(x, 255)]),
    "all at once": lambda x: resized(np.rot90(jpeg(x), 1, (1, 2)), 0.75).astype(np.float32) * 1e-3,
}


@pytest.mark.parametrize("kind", COPIES)
def test_copy_is_found_and_look_alikes_are_not(kind):
    copy = COPIES[kind](field(0))
    assert similar_pairs(np.stack([*fields(), signature(copy)])) == [(0, 20)]


@pytest.mark.parametrize("shape", [(28, 28), (57, 300), (512, 512), (700, 1100)])
def test_orientation_of_any_size(shape):
    image = gaussian_filter(np.random.default_rng(0).normal(size=shape), np.array(shape) / 25)[None]
    turned = [signature(turn(image)) for turn in SYMMETRIES.values()]
    assert similar_pairs(np.stack(turned)) == list(combinations(range(8), 2))


def wave(u: int, v: int) -> np.ndarray:
    """(1, 120, 120) a wave that alone would give the coefficient (u, v) of the signature."""
    position = (np.arange(120) + 0.5) / 120
    return np.outer(np.cos(np.pi * u * position), np.cos(np.pi * v * position))[None] / np.hypot(u, v)


def blanks() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).normal(100, 5, (1, 256, 256))
    dot = np.zeros((1, 256, 256), np.uint16)
    dot[0, 55, 105] = 60000
    return {
        "constant": np.full((1, 40, 50), 7, np.uint8),
        "constant float64": np.full((2, 41, 53), 0.1),
        "nothing finite": np.full((1, 40, 50), np.nan, np.float32),
        "one value and NaN": np.where(np.arange(2000).reshape(1, 40, 50) % 3, np.float32(0.3), np.float32(np.inf)),
        "noise": noise.astype(np.uint8),
        "a strip of noise": noise.reshape(1, 32, 2048)[:, :23],
        "hot pixel": dot,
        "one speck": np.kron(dot[:, 40:80, 90:130], np.ones((6, 6), np.uint16)),
        "hot pixel and noise": dot + noise.astype(np.uint16),
        "lit from one side": np.rint(noise / 5 + np.linspace(1000, 2000, 256)).astype(np.uint16),
        "dark corners": np.rint(3000 - np.add.outer(*[np.linspace(-30, 30, 256) ** 2] * 2)).astype(np.uint16)[None],
        "too fine": wave(14, 14),
    }


@pytest.mark.parametrize("kind", blanks())
def test_blank_has_no_signature(kind):
    np.testing.assert_array_equal(signature(blanks()[kind]), BLANK)


def test_blank_is_like_nothing():
    some = signature(field(0))
    assert similar_pairs(np.stack([BLANK, some, BLANK, some, BLANK])) == [(1, 3)]
    assert similar_pairs(np.stack([BLANK, BLANK])) == []
    assert similar_pairs(BLANK[None][:0]) == []
    assert similar_pairs(some[None]) == []


def test_missing_values_do_not_matter():
    image = np.concatenate([field(0), field(1)]).astype(np.float32)
    image[1] += 5000  # what replaces a missing value must be as bright as its channel
    dirty = image.copy()
    dirty[0, 20:30, 20:30], dirty[1, 100, 100:120], dirty[1, 150, 9] = np.nan, np.inf, -np.inf
    assert similar_pairs(np.stack([signature(image), signature(dirty)])) == [(0, 1)]
    assert np.isnan(dirty).sum() == 100  # the caller's array is left alone


def test_simple_pictures_must_agree_better():
    # Six frequencies of 144 agree by chance: what would be evidence in a rich picture is none here.
    simple = sum(wave(u, v) for u, v in [(1, 2), (3, 1), (2, 2), (4, 3), (1, 5), (3, 6)])
    values = np.stack([signature(simple + 0.3 * wave(u, v)) for u, v in [(2, 3), (5, 2), (4, 4), (7, 1)]])
    vectors = signs(values) / np.linalg.norm(signs(values), axis=1, keepdims=True)
    assert (vectors @ vectors.T).min() > MIN_CORRELATION + 0.03
    assert similar_pairs(values) == []
    saved = signature(np.rint(simple * 50 + 100).astype(np.uint8) + field(1)[:, :120, :120] // 50)
    assert similar_pairs(np.stack([signature(simple), saved])) == [(0, 1)]


def related(seed: int, n: int) -> np.ndarray:
    """(n, SIGNATURE) signatures around a few pictures in random orientations, near and far, rich and simple."""
    rng = np.random.default_rng(seed)
    fade = np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES])[None] + 1
    centres = rng.normal(size=(n // 6 + 1, FREQUENCIES, FREQUENCIES)) * fade ** rng.uniform(-0.8, 0, (n // 6 + 1, 1, 1))
    values = centres[rng.integers(len(centres), size=n)]
    values = values + rng.normal(size=values.shape) * values.std((1, 2), keepdims=True) * rng.uniform(0, 1, (n, 1, 1))
    odd = (-1) ** np.arange(FREQUENCIES)
    for k in range(n):
        flips = np.outer(odd ** rng.integers(2), odd ** rng.integers(2))
        values[k] = (values[k] if rng.integers(2) else values[k].T) * flips
    values[:, 0, 0] = 0
    values *= 127 / np.abs(values).max(axis=(1, 2), keepdims=True)
    values[rng.integers(n, size=n // 20)] = 0
    return np.rint(values).astype(np.int8).reshape(n, SIGNATURE).view(np.uint8)


def by_hand(values: np.ndarray) -> list[tuple[int, int]]:
    """The definition in the module's comments, one orientation at a time."""
    a = signs(values).reshape(-1, FREQUENCIES, FREQUENCIES).astype(float)
    energy = (a**2).reshape(len(a), -1)
    n = energy.sum(1) ** 2 / np.maximum((energy**2).sum(1), 1)
    a /= np.maximum(np.sqrt(energy.sum(1)), 1)[:, None, None]
    odd = (-1) ** np.arange(FREQUENCIES)
    best = np.full((len(a), len(a)), -1.0)
    for b in (a, a.swapaxes(1, 2)):
        for flips in (1, odd, odd[:, None], odd * odd[:, None]):
            best = np.maximum(best, np.tensordot(a, b * flips, axes=((1, 2), (1, 2))))
    dimensions = np.minimum(n[:, None], n)
    with np.errstate(divide="ignore", invalid="ignore"):
        evidence = -(dimensions - 1) / 2 * np.log10(1 - best.clip(0, 1) ** 2)
    found = (best >= 0.92) & ((evidence >= 16) | (best >= 0.995))
    return [(i, j) for i, j in combinations(range(len(a)), 2) if found[i, j]]


@pytest.mark.parametrize("n", [2, 50, 1400])
def test_pairs_are_those_of_brute_force(n):
    values = related(n, n)
    expected = by_hand(values)
    assert similar_pairs(values) == expected
    assert n < 50 or len(expected) > n / 10
