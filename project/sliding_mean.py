"""Weighted means under a sliding window, as sums of shifted images; structural similarity (SSIM).

A convolution would say the same in one line. But it rounds to bfloat16 under autocast and to TF32 on GPUs, and depends
on the size of the batch: too coarse for variances, which are small differences of large numbers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def gaussian_weights(sigma: float, radius: int) -> list[float]:
    """2 * radius + 1 weights that sum to 1."""
    weights = [math.exp(-0.5 * (x / sigma) ** 2) for x in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


def window_mean(x: Tensor, weights: Sequence[float]) -> Tensor:
    """Mean under a window of n x n pixels, with the same n weights along height and width.

    (..., H, W), in the precision that is wanted -> (..., H - n + 1, W - n + 1), where the window is inside the image.
    """
    for dim in (-2, -1):
        length = x.shape[dim] - len(weights) + 1
        total = torch.zeros_like(x.narrow(dim, 0, length))
        for start, weight in enumerate(weights):
            total.add_(x.narrow(dim, start, length), alpha=weight)
        x = total
    return x


SSIM_WINDOW = gaussian_weights(1.5, radius=5)
SSIM_CONSTANTS = 0.01**2, 0.03**2


def structural_similarity(prediction: Tensor, target: Tensor) -> Tensor:
    """SSIM of each image and channel, (B, C), from (B, C, H, W) with values from 0 to 1.

    Wang et al. (2004), IEEE Trans. Image Process. 13, eq. 13: the mean over all positions at which a Gaussian window of
    sigma 1.5 and 11 pixels lies inside the image, as in `skimage.metrics.structural_similarity(gaussian_weights=True,
    use_sample_covariance=False)`.
    """
    # Variances are differences of squares: in float32 they need values near 0, so they are taken about the level.
    level = target.mean((2, 3), keepdim=True)
    p, t = prediction - level, target - level
    # The variances enter only as their sum, so the squares are averaged together.
    mean_p, mean_t, squares, products = (window_mean(x, SSIM_WINDOW) for x in (p, t, p * p + t * t, p * t))
    variances, covariance = (squares - mean_p**2 - mean_t**2).clamp(min=0), products - mean_p * mean_t
    mean_p, mean_t = mean_p + level, mean_t + level
    c1, c2 = SSIM_CONSTANTS
    levels = (2 * mean_p * mean_t + c1) / (mean_p**2 + mean_t**2 + c1)
    return (levels * (2 * covariance + c2) / (variances + c2)).mean((2, 3))
