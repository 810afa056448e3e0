import pytest
import torch

from project.transforms.intensity import IntensityAugmentation

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
