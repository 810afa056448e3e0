"""Local filters: features of a pixel from its neighborhood."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from project.sliding_mean import gaussian_weights, window_mean


class LocalFilters(nn.Module):
    """13 features of the surroundings of each pixel, per input channel.

    The value itself, and at four scales the Gaussian mean, the length of its gradient and the standard deviation under
    the same window.

    Args:
        sigmas: Scales in pixels.
    """

    def __init__(self, sigmas: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)) -> None:
        super().__init__()
        self.sigmas = sigmas

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C * (1 + 3 * scales), H, W) float32."""
        features = [x]
        for sigma in self.sigmas:
            mean = blur(x, sigma)
            down, right = torch.gradient(mean, dim=(2, 3))
            features += [mean, torch.hypot(down, right), local_deviation(x, sigma, mean)]
        return torch.cat(features, dim=1)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian mean with repeated borders, (B, C, H, W) -> the same shape."""
    radius = int(3 * sigma + 0.5)
    x = functional.pad(x, (radius, radius, radius, radius), mode="replicate")
    return window_mean(x, gaussian_weights(sigma, radius))


def local_deviation(x: Tensor, sigma: float, mean: Tensor | None = None) -> Tensor:
    """Standard deviation under a Gaussian window, (B, C, H, W) -> the same shape; `mean` is `blur(x, sigma)`."""
    mean = blur(x, sigma) if mean is None else mean
    return (blur(x**2, sigma) - mean**2).clamp(min=0).sqrt()
