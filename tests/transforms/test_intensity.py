import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from project.transforms.intensity import IntensityAugmentation, apply_blur, apply_gamma

SHAPE = (400, 2, 8, 8)


def test_nothing_to_change_changes_nothing():
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(IntensityAugmentation(gain=0, offset=0, noise=0)(x), x)


def test_gain_is_drawn_for_each_image_and_channel():
    torch.manual_seed(0)
    gain = IntensityAugmentation(gain=0.2, offset=0, noise=0)(torch.ones(SHAPE))
    assert torch.equal(gain, gain[..., :1, :1].expand(SHAPE)), "one factor for all pixels of a channel"
    logarithm = gain[..., 0, 0].log().flatten()
    assert len(logarithm.unique()) == 800
    assert logarithm.mean().item() == pytest.approx(0, abs=0.03)
    assert logarithm.std().item() == pytest.approx(0.2, rel=0.1)


def test_noise_has_another_strength_in_each_image():
    torch.manual_seed(0)
    noise = IntensityAugmentation(gain=0, offset=0, noise=0.5)(torch.zeros(400, 1, 64, 64))
    strength = noise.flatten(1).std(1)
    assert strength.max() < 0.52
    assert strength.min() < 0.03
    assert strength.mean().item() == pytest.approx(0.25, rel=0.15)


def test_blur_is_a_gaussian_of_each_image():
    x = torch.randn(3, 2, 24, 30)
    blurred = apply_blur(x, torch.tensor([0.0, 0.7, 1.4]), 5)
    assert torch.allclose(blurred[0], x[0], atol=1e-6)
    for i, sigma in ((1, 0.7), (2, 1.4)):
        expected = gaussian_filter(x[i].double().numpy(), (0, sigma, sigma), mode="mirror", radius=5)
        assert np.allclose(blurred[i], expected, atol=1e-5)


def test_gamma_keeps_the_range_of_each_channel():
    x = torch.linspace(-2, 3, 50).reshape(1, 1, 5, 10).expand(2, 1, 5, 10)
    changed = apply_gamma(x, torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
    assert torch.allclose(changed[0], x[0], atol=1e-6)
    assert torch.allclose(changed[1], -2 + 5 * ((x[1] + 2) / 5) ** 2, atol=1e-5)
    assert torch.isfinite(apply_gamma(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1))).all()
