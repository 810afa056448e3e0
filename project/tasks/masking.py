"""Hiding square patches of images, for networks that learn to fill them in."""

import math

import torch
from torch import Tensor

from project.errors import UserError


def random_patches(
    n: int,
    height: int,
    width: int,
    patch: int,
    ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Which pixels are hidden: the same number of patches in every image, each image its own.

    Of `n` images, a `ratio` of the patches with sides of `patch` pixels is hidden; at least one is, and one is not.
    Patches at the lower and right border may be cut. The generator is on `device`; None is torch's own.

    Returns:
        (n, 1, height, width) bool, True where hidden.

    Raises:
        UserError: The image is one patch, of which nothing could be seen.
    """
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    if rows * columns < 2:
        raise UserError(f"patches of {patch} pixels cover a whole image of {height} x {width}; take smaller patches")
    n_hidden = min(max(1, round(ratio * rows * columns)), rows * columns - 1)
    order = torch.rand(n, rows * columns, generator=generator, device=device).argsort(1)
    hidden = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :n_hidden], True)
    cells = hidden.view(n, 1, rows, columns)
    return cells.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., :height, :width]


def hide(x: Tensor, hidden: Tensor) -> Tensor:
    """Replace hidden pixels by the mean of the visible ones, for each image and channel.

    A fixed value would be far from the background in some images, and show the network where the patches are in others.

    Args:
        x: (B, C, H, W) float.
        hidden: (B, 1, H, W) bool, with at least one pixel of each image that can be seen.
    """
    seen = (~hidden).to(x.dtype)
    mean = (x * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
    return torch.where(hidden, mean, x)
