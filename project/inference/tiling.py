"""Images larger than memory allows: overlapping tiles, blended in float32."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from project.errors import UserError

OVERLAP = 128  # pixels by default: as far as most networks see with more than rounding


def tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int | None = None, multiple: int = 1
) -> Tensor:
    """Apply a function to overlapping tiles, and blend what it gives.

    Tiles begin at multiples of `multiple`, so that a network which halves its input sees each of them on the grid on
    which it would see the whole image. Of an overlap, the outer three eighths of each tile are dropped, where its own
    border shows; in between, weights rise linearly. Those of a pixel sum to 1, so nothing is divided at the end.

    Args:
        function: Maps (B, C, h, w) to (B, C', h, w), pixel by pixel in place; of any size.
        x: (B, C, H, W), any dtype.
        tile: Side of the tiles in pixels, rounded up to a multiple of `multiple`, to two of them at least: one could
            not overlap.
        overlap: Pixels that neighbours share at least, rounded up in the same way; by default 128, or half of tiles
            below 256.
        multiple: What height and width of the function's input are padded to.

    Returns:
        (B, C', H, W) float32 on the CPU.

    Raises:
        UserError: Tiles that do not go on, or an output that is no image of the tile's size.
    """
    tile = max(rounded_up(tile, multiple), 2 * multiple)
    overlap = rounded_up(min(OVERLAP, tile // 2) if overlap is None else overlap, multiple)
    if not 0 <= overlap < tile:
        raise UserError(f"tiles of {tile} pixels with an overlap of {overlap} do not go on; take larger tiles")
    rows, columns = (spans(length, tile, overlap, multiple) for length in x.shape[-2:])
    blended: Tensor | None = None
    for (y0, y1), down in zip(rows, weights(rows, overlap), strict=True):
        for (x0, x1), across in zip(columns, weights(columns, overlap), strict=True):
            part = function(x[..., y0:y1, x0:x1]).float().cpu()
            if part.shape[-2:] != (y1 - y0, x1 - x0):
                raise UserError(f"a tile of {y1 - y0} x {x1 - x0} pixels gave {tuple(part.shape)}: it cannot be tiled")
            if blended is None:
                blended = torch.zeros(*part.shape[:-2], *x.shape[-2:])
            blended[..., y0:y1, x0:x1].addcmul_(part, down[:, None] * across)
    assert blended is not None
    return blended


def spans(length: int, tile: int, overlap: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Where tiles begin and end that cover `length` pixels; all begin at multiples, and the last one reaches the end.

    Args:
        length: At least 1.
        tile: A multiple of `multiple`.
        overlap: The same.
        multiple: See `tiled`.
    """
    room = max(rounded_up(length, multiple) - tile, 0)
    starts = [*range(0, room, tile - overlap), room]
    return [(start, min(start + tile, length)) for start in starts]


def weights(places: list[tuple[int, int]], overlap: int) -> list[Tensor]:
    """The weight of each pixel in each of some spans, float32; those of one pixel sum to 1."""
    margin = 3 * overlap // 8
    ramp = max(overlap - 2 * margin, 1)
    total, found = np.zeros(places[-1][1]), []
    for i, (start, stop) in enumerate(places):
        before, after = np.arange(stop - start) + 0.5, np.arange(stop - start)[::-1] + 0.5
        weight = np.ones(stop - start)
        if overlap and i > 0:
            weight = np.minimum(weight, (before - margin) / ramp)
        if overlap and i + 1 < len(places):
            weight = np.minimum(weight, (after - margin) / ramp)
        found.append(np.maximum(weight, 0))
        total[start:stop] += found[-1]
    return [
        torch.from_numpy((weight / total[start:stop]).astype(np.float32))
        for weight, (start, stop) in zip(found, places, strict=True)
    ]


def rounded_up(length: int, multiple: int) -> int:
    """The next multiple that is no smaller."""
    return -(-length // multiple) * multiple


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and are alive at the same time.

    What a kernel takes for itself is not counted.

    Attributes:
        peak: The most at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self._alive[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self._alive.values()))
        return result
