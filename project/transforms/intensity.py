"""Intensity augmentation of the normalized input, on the device, in training only."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad


class IntensityAugmentation(nn.Module):
    """Random gain, offset and noise for each image and channel: differences between lamps and cameras.

    All are in units of the normalized input, so they mean the same for every camera. Gamma and blur are for tasks
    whose input values mean no amounts: classification and segmentation.

    Args:
        gain: Standard deviation of the logarithm of a factor: 0.1 is about 10 %.
        offset: Standard deviation of a shift.
        noise: Largest standard deviation of white noise; sampled for each image from 0 to this.
        gamma: Standard deviation of the logarithm of an exponent, applied between minimum and maximum of a channel.
        blur: Largest standard deviation of a Gaussian in pixels, for half of the images; sampled from 0 to this.
    """

    def __init__(
        self, gain: float = 0.1, offset: float = 0.1, noise: float = 0.05, gamma: float = 0.0, blur: float = 0.0
    ) -> None:
        super().__init__()
        self.gain, self.offset, self.noise, self.gamma, self.blur = gain, offset, noise, gamma, blur

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        shape = (*x.shape[:2], 1, 1)
        gain = torch.exp(self.gain * torch.randn(shape, device=x.device))
        offset = self.offset * torch.randn(shape, device=x.device)
        noise = self.noise * torch.rand(shape, device=x.device)
        if self.gamma:
            x = apply_gamma(x, torch.exp(self.gamma * torch.randn(shape, device=x.device)))
        if self.blur:
            sigma = self.blur * (2 * torch.rand(len(x), device=x.device) - 1).clamp(min=0)
            x = apply_blur(x, sigma, math.ceil(3 * self.blur))
        return x * gain + offset + noise * torch.randn_like(x)


def apply_gamma(x: Tensor, gamma: Tensor) -> Tensor:
    """Raise each channel, scaled to its own range, to an exponent; x (B, C, H, W), gamma (B, C, 1, 1)."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    spread = (high - low).clamp(min=1e-6)
    return low + spread * ((x - low) / spread).clamp(min=0) ** gamma


def apply_blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Convolve each image with a Gaussian; x (B, C, H, W), sigma (B,) in pixels, 0 changes nothing."""
    radius = min(radius, min(x.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernels = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0).to(x.dtype)[:, None]
    rows = pad(x, (radius,) * 4, "reflect").reshape(1, -1, *(size + 2 * radius for size in x.shape[2:]))
    columns = conv2d(rows, kernels[:, :, None], groups=kernels.shape[0])
    return conv2d(columns, kernels[..., None], groups=kernels.shape[0]).reshape(x.shape)
