"""Weighted means under a sliding window, as sums of shifted images.

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
    """Mean with the same weights along height and width, where the window lies inside the image.

    Args:
        x: (..., H, W), in the precision that is wanted.
        weights: n of them, for a window of n x n pixels.

    Returns:
        (..., H - n + 1, W - n + 1)
    """
    for dim in (-2, -1):
        length = x.shape[dim] - len(weights) + 1
        total = torch.zeros_like(x.narrow(dim, 0, length))
        for start, weight in enumerate(weights):
            total.add_(x.narrow(dim, start, length), alpha=weight)
        x = total
    return x
