"""Intensity augmentation of the normalized input, on the device, in training only."""

import torch
from torch import Tensor, nn


class IntensityAugmentation(nn.Module):
    """Random gain, offset and noise for each image and channel: differences between lamps and cameras.

    All are in units of the normalized input, so they mean the same for every camera. Any other module of (B, C, H, W)
    can be named instead, such as `torchvision.transforms.v2.GaussianBlur`.

    Args:
        gain: Standard deviation of the logarithm of a factor: 0.1 is about 10 %.
        offset: Standard deviation of a shift.
        noise: Largest standard deviation of white noise; sampled for each image from 0 to this.
    """

    def __init__(self, gain: float = 0.1, offset: float = 0.1, noise: float = 0.05) -> None:
        super().__init__()
        self.gain, self.offset, self.noise = gain, offset, noise

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        shape = (*x.shape[:2], 1, 1)
        gain = torch.exp(self.gain * torch.randn(shape, device=x.device))
        offset = self.offset * torch.randn(shape, device=x.device)
        noise = self.noise * torch.rand(shape, device=x.device)
        return x * gain + offset + noise * torch.randn_like(x)
