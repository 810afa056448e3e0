import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from project.data.statistics import SplitStatistics, image_statistics
from project.errors import UserError
from project.transforms.normalize import Normalize

RNG = np.random.default_rng(0)
RAW = {
    "uint16 near the top": RNG.normal(60_000, 900, (6, 2, 16, 17)).clip(0, 65535).astype(np.uint16),
    "uint16 that holds 8 bits": RNG.integers(0, 256, (6, 2, 16, 17)).astype(np.uint16),
    "uint8": RNG.integers(0, 256, (6, 2, 16, 17)).astype(np.uint8),
    "floats from 0 to 1": RNG.random((6, 2, 16, 17)).astype(np.float32),
    "floats about 0": RNG.normal(0, 1e-3, (6, 2, 16, 17)).astype(np.float32),
}
every_kind = pytest.mark.parametrize("raw", RAW.values(), ids=RAW)
METHODS = ("mean_std", "percentile", "min_max")
IMAGE_METHODS = ("image_mean_std", "image_percentile")


def statistics(raw):
    counts = SplitStatistics()
    for image in raw:
        counts.add("image", image)
    return counts.summary()["image"]


def reference(pixels, method):
    """Offset and scale with numpy."""
    pixels = pixels.astype(np.float64)
    if method == "mean_std":
        return pixels.mean(), pixels.std()
    low, high = np.percentile(pixels, [1, 99] if method == "percentile" else [0.1, 99.9])
    return low, high - low


@every_kind
@pytest.mark.parametrize("method", [*METHODS, *IMAGE_METHODS])
def test_channels_are_normalized_as_numpy_does(raw, method):
    """By the pixels of all images, or of each."""
    raw = raw.copy()
    raw[:, 1] = raw[:, 1] // 2 if raw.dtype.kind == "u" else raw[:, 1] / 2  # channels differ
    found = Normalize(statistics(raw), method)(torch.from_numpy(raw)).numpy()
    assert found.dtype == np.float32
    # Percentiles of floats come from bins of 0.4 %.
    tolerance = 0.01 if method in ("percentile", "min_max") and raw.dtype.kind == "f" else 1e-3
    for images in [slice(None)] if method in METHODS else range(len(raw)):
        for channel in range(2):
            offset, scale = reference(raw[images][..., channel, :, :], method.removeprefix("image_"))
            expected = (raw[images][..., channel, :, :] - offset) / scale
            np.testing.assert_allclose(found[images][..., channel, :, :], expected, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(st.floats(-1e5, 1e5, width=32), st.floats(0.015625, 1e5, width=32), st.sampled_from(METHODS), st.integers(0, 99))
def test_the_round_trip_holds_for_any_level_and_spread(level, spread, method, seed):
    raw = (level + spread * np.random.default_rng(seed).random((2, 1, 8, 8))).astype(np.float32)
    normalize = Normalize(statistics(raw), method)
    back = normalize.inverse(normalize(torch.from_numpy(raw))).numpy()
    limit = 1e-4 * np.ptp(raw) + 4 * np.spacing(np.abs(raw).max())
    np.testing.assert_allclose(back, raw, atol=limit, rtol=0)


@pytest.mark.parametrize("level", [0, 30, 40_000])
def test_asinh_is_undone_over_the_whole_range_of_the_dtype(level):
    dim = (level + RNG.integers(0, 60, (3, 1, 32, 32))).astype(np.uint16)
    dim[0, 0, 0, :9] = 65_535
    normalize = Normalize(statistics(dim), "asinh")
    raw = torch.cat([torch.arange(65_536.0), -torch.logspace(-3, 4, 100)])[None, None, None]
    normalized = normalize(raw)
    limit = 1e-6 * raw.abs().clamp(min=float(normalize.offset + normalize.scale))
    assert ((normalize.inverse(normalized) - raw).abs() <= limit).all()
    assert (normalized.flatten()[1:65_536] > normalized.flatten()[:65_535]).all()


@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_image_methods_forget_the_level_and_cannot_be_undone(method):
    raw = torch.from_numpy(RAW["floats from 0 to 1"])
    normalize = Normalize(statistics(raw.numpy()), method)
    torch.testing.assert_close(normalize(raw * 7 + 3), normalize(raw), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="cannot be undone"):
        normalize.inverse(raw)


@pytest.mark.parametrize("method", [*METHODS, "asinh", *IMAGE_METHODS])
@pytest.mark.parametrize("value", [0, 60_000, 65_535])
def test_a_constant_channel_becomes_zero(method, value):
    raw = np.full((3, 1, 8, 9), value, np.uint16)
    found = Normalize(statistics(raw), method)(torch.from_numpy(raw))
    assert torch.equal(found, torch.zeros(3, 1, 8, 9))


@pytest.mark.parametrize("missing", [None, [], [{"dtype": "uint16", "n": 0}], [{}]])
@pytest.mark.parametrize("method", METHODS + IMAGE_METHODS)
def test_without_statistics_there_is_no_normalisation(missing, method):
    with pytest.raises(UserError, match="no training statistics"):
        Normalize(missing, method)


def sparse(dtype=np.uint16):
    """300 of 65,536 pixels are bright: the 99th percentile is background."""
    raw = np.full((1, 1, 256, 256), 100, dtype)
    raw.reshape(-1)[:300] = np.linspace(150, 200, 300).astype(dtype)
    return raw


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("method", ["percentile", "image_percentile"])
def test_percentiles_of_a_sparse_image_fall_back_to_a_wider_range(method, dtype):
    raw = sparse(dtype)
    found = Normalize(statistics(raw), method)(torch.from_numpy(raw), torch.from_numpy(image_statistics(raw[0]))[None])
    high = np.percentile(raw, 99.9)
    assert found.min() == pytest.approx(0, abs=0.01)
    assert found.max() == pytest.approx(100 / (high - 100), rel=0.02)  # 1.15


@every_kind
@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_given_levels_are_those_that_whole_images_give(raw, method):
    normalize, levels = Normalize(statistics(raw), method), np.stack([image_statistics(image) for image in raw])
    images, levels = torch.from_numpy(raw), torch.from_numpy(levels)
    whole = normalize(images, levels)
    torch.testing.assert_close(normalize(images), whole, atol=2e-4, rtol=0)
    assert torch.equal(normalize(images[..., 3:9, 2:8], levels), whole[..., 3:9, 2:8])
    if raw.dtype.kind == "u":
        images, levels = torch.from_numpy(sparse()), torch.from_numpy(image_statistics(sparse()[0]))[None]
        torch.testing.assert_close(normalize(images), normalize(images, levels), atol=2e-4, rtol=0)


ENCODER = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def test_an_encoder_gets_8_bit_colours_as_it_was_trained():
    raw = RNG.integers(10, 200, (4, 3, 9, 9)).astype(np.uint8)  # not the whole range: 255 is still white
    normalize = Normalize(statistics(raw), "encoder", ENCODER)
    mean, std = (np.array(x)[:, None, None] for x in ENCODER)
    assert np.allclose(normalize(torch.from_numpy(raw)), (raw / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_an_encoder_gets_the_range_in_use_as_0_to_1(channels):
    raw = RNG.integers(300, 900, (4, channels, 9, 9)).astype(np.uint16)
    found = Normalize(statistics(raw), "encoder", ENCODER)(torch.from_numpy(raw)).numpy()
    mean, std = (np.array(x) if channels == 3 else np.full(channels, np.mean(x)) for x in ENCODER)
    low, high = np.percentile(raw, [0.1, 99.9], axis=(0, 2, 3))[:, :, None, None]
    expected = ((raw - low) / (high - low) - mean[:, None, None]) / std[:, None, None]
    assert np.allclose(found, expected, atol=1e-5)
