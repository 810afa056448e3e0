"""Prediction of large images: overlapping tiles, blended in float32."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from project.errors import UserError

OVERLAP = 128  # pixels: as far as most networks see with more than rounding


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, multiple: int = 1) -> Tensor:
    """Apply a function to overlapping tiles, and blend the results.

    Tiles start at multiples of `multiple`, so that a network which halves its input sees each of them on the grid of
    the whole image, and share at least 128 pixels, or half of tiles below 256. Of an overlap, the outer three eighths
    of each tile are dropped, where the tile's own border shows; in between, weights rise linearly, and sum to 1.

    Args:
        function: Maps (B, C, h, w) to (B, C', h, w) for any size; pixels keep their position.
        x: (B, C, H, W), any dtype.
        tile: Side of the tiles in pixels, rounded up to a multiple of `multiple`, to at least two of them.
        multiple: What height and width of the function's input are padded to.

    Returns:
        (B, C', H, W) float32 on the CPU.

    Raises:
        UserError: The output is no image of the tile's size.
    """
    tile = max(round_up(tile, multiple), 2 * multiple)
    overlap = round_up(min(OVERLAP, tile // 2), multiple)
    rows, columns = (spans(length, tile, overlap, multiple) for length in x.shape[-2:])
    blended = torch.empty(0)
    for (y0, y1), down in zip(rows, weights(rows, overlap), strict=True):
        for (x0, x1), across in zip(columns, weights(columns, overlap), strict=True):
            part = function(x[..., y0:y1, x0:x1]).float().cpu()
            if part.shape[-2:] != (y1 - y0, x1 - x0):
                raise UserError(f"a tile of {y1 - y0} x {x1 - x0} pixels gave {tuple(part.shape)}: it cannot be tiled")
            if not len(blended):
                blended = torch.zeros(*part.shape[:-2], *x.shape[-2:])
            blended[..., y0:y1, x0:x1].addcmul_(part, down[:, None] * across)
    return blended


def spans(length: int, tile: int, overlap: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Start and end of the tiles along an axis; all start at multiples, and the last one reaches the end."""
    last = max(round_up(length, multiple) - tile, 0)
    starts = [*range(0, last, tile - overlap), last]
    return [(start, min(start + tile, length)) for start in starts]


def weights(intervals: list[tuple[int, int]], overlap: int) -> list[Tensor]:
    """The weight of each pixel in each of the `spans`, float32; those of one pixel sum to 1."""
    margin = 3 * overlap // 8
    ramp = max(overlap - 2 * margin, 1)
    total, parts = np.zeros(intervals[-1][1]), []
    for i, (start, stop) in enumerate(intervals):
        distance = np.arange(stop - start) + 0.5
        weight = np.ones(stop - start)
        if overlap and i > 0:
            weight = np.minimum(weight, (distance - margin) / ramp)
        if overlap and i + 1 < len(intervals):
            weight = np.minimum(weight, (distance[::-1] - margin) / ramp)
        parts.append(np.maximum(weight, 0))
        total[start:stop] += parts[-1]
    return [
        torch.from_numpy((weight / total[start:stop]).astype(np.float32))
        for weight, (start, stop) in zip(parts, intervals, strict=True)
    ]


def round_up(length: int, multiple: int) -> int:
    """The next multiple that is no smaller."""
    return -(-length // multiple) * multiple
