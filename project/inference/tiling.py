"""Prediction of large images: overlapping tiles, blended in float32, with the instance norms of the whole image."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

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
    blended = torch.empty(0)
    for place, weight in tiles(x.shape, tile, multiple):
        part = function(x[place]).float().cpu()
        if part.shape[-2:] != weight.shape:
            height, width = weight.shape
            raise UserError(f"a tile of {height} x {width} pixels gave {tuple(part.shape)}: it cannot be tiled")
        if not len(blended):
            blended = torch.zeros(*part.shape[:-2], *x.shape[-2:])
        blended[place].addcmul_(part, weight)
    return blended


@contextmanager
def whole_image_norms(
    net: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor, tile: int, multiple: int = 1
) -> Iterator[None]:
    """Let each instance norm of a network use mean and variance of the whole image, inside the context.

    With those of a tile, a prediction would depend on where the tiles are. What a norm gets depends on the norms before
    it: each is measured by a pass over all tiles that ends there. A sample of the tiles is not enough, nor are the
    statistics of all tiles as they are without this: on nuclei, 73 % and 57 % of the objects stayed the same.

    Args:
        net: The network inside `function`.
        function: As for `tiled`; also the others.
        x: The image.
        tile: Side of the tiles.
        multiple: Of height and width.
    """
    norms = instance_norms(net)
    order, parts = list[nn.Module](), tiles(x.shape, tile, multiple)
    with ExitStack() as stack:
        if norms and len(parts) > 1:
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # a compiled network overlooks hooks
            with ExitStack() as hooks:
                for norm in norms:
                    hooks.enter_context(norm.register_forward_pre_hook(lambda norm, _: order.append(norm)))
                function(x[parts[0][0]])
        for norm in order if len(order) == len(set(order)) else []:  # of one that is used twice, none is measured
            moments = _Moments(multiple)
            with norm.register_forward_pre_hook(moments.add):
                for place, moments.weight in parts:
                    with suppress(_Measured):
                        function(x[place])
            stack.enter_context(norm.register_forward_hook(moments.normalize))
        yield


def instance_norms(net: nn.Module) -> list[nn.Module]:
    """The layers that normalize an image by its own statistics."""
    return [m for m in net.modules() if isinstance(m, nn.InstanceNorm2d) and not m.track_running_stats]


class _Measured(Exception):
    """The rest of the network need not be computed."""


class _Moments:
    """Mean and variance over an image of what a norm gets, (B, C, 1, 1).

    Attributes:
        weight: (h, w), of the pixels of the present tile.
    """

    weight: Tensor

    def __init__(self, multiple: int) -> None:
        self.multiple, self.total, self.area = multiple, torch.zeros(2, 1, 1, dtype=torch.float64), 0.0

    def add(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        """Add the features (B, C, h / n, w / n) of a tile."""
        x, (height, width) = inputs[0].float(), self.weight.shape
        pad = 0, -width % self.multiple, 0, -height % self.multiple
        weight = functional.pad(self.weight[None, None], pad, mode="replicate")  # as the task pads the tile
        weight = functional.interpolate(weight, x.shape[-2:], mode="area").to(x.device)
        sums = torch.stack([(x * weight).sum((2, 3)), (x.square() * weight).sum((2, 3))])
        self.total, self.area = self.total + sums.cpu().double(), self.area + float(weight.sum())
        raise _Measured

    def normalize(self, norm: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """The output of the norm with these moments."""
        mean, square = self.total[..., None, None] / self.area
        factor = (square - mean.square() + norm.eps).rsqrt().to(inputs[0].device, torch.float32)
        x = (inputs[0].float() - mean.to(factor)) * factor
        if norm.affine:
            x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
        return x.to(output.dtype)


def tiles(shape: Sequence[int], tile: int, multiple: int = 1) -> list[tuple[tuple[Any, ...], Tensor]]:
    """Index of each tile in (..., H, W), and the weights (h, w) of its pixels; see `tiled`."""
    tile = max(round_up(tile, multiple), 2 * multiple)
    overlap = round_up(min(OVERLAP, tile // 2), multiple)
    rows, columns = (
        list(zip(places, weights(places, overlap), strict=True))
        for places in (spans(length, tile, overlap, multiple) for length in shape[-2:])
    )
    return [((..., slice(*y), slice(*x)), down[:, None] * across) for y, down in rows for x, across in columns]


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
