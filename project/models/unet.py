"""A plain U-Net: an example of a network, which experiments name by its class path."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

NORMS = {"batch": nn.BatchNorm2d, "instance": partial(nn.InstanceNorm2d, affine=True)}


class UNet(nn.Module):
    """Ronneberger et al. (2015), MICCAI, with padded convolutions, normalization and nearest upsampling.

    It works at full resolution, hence keeps fine texture, with 0.5 million parameters at width 16. Larger encoders
    with pretrained weights: `segmentation_models_pytorch.Unet`.

    Args:
        in_channels, out_channels: Of the images.
        width: Channels at full resolution; they double with each halving.
        depth: Number of halvings; height and width must be multiples of 2**depth (see `size_divisor` of the task).
        norm: "batch", or "instance", which learns from images of several kinds in a third of the steps, but forgets how
            bright an image is, and depends a little on what else is in it (or in the tile of a large one).
        skip: How a level above joins: "concat", or "add", which takes two thirds of the time.
        block: Side of the squares of pixels that the network works on. 2 takes a quarter of the time; details below two
            pixels are guessed.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        width: int = 16,
        depth: int = 3,
        norm: Literal["batch", "instance"] = "batch",
        skip: Literal["concat", "add"] = "concat",
        block: int = 1,
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        ins = [in_channels * block**2, *widths]
        self.down = nn.ModuleList(_block(a, b, norm) for a, b in zip(ins, widths, strict=False))
        up = _Concat if skip == "concat" else _Add
        self.up = nn.ModuleList(up(a, b, norm) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.head = nn.Conv2d(width, out_channels * block**2, 1)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W), unbounded."""
        x = functional.pixel_unshuffle(x, self.block)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = block(x, skips.pop())
        return functional.pixel_shuffle(self.head(x), self.block)


class _Concat(nn.Sequential):
    """Convolutions of the level below and the skip connection, joined inside to save memory."""

    def __init__(self, width: int, below: int, norm: str) -> None:
        super().__init__(*_block(width + below, width, norm))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([skip, functional.interpolate(x, scale_factor=2.0)], dim=1))


class _Add(nn.Module):
    """Convolutions of the sum of the level below, reduced, and the skip connection."""

    def __init__(self, width: int, below: int, norm: str) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(below, width, 1, bias=False)
        self.convolve = _block(width, width, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convolve(skip + functional.interpolate(self.reduce(x), scale_factor=2.0))


def _block(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), NORMS[norm](out_channels), nn.ReLU()]
    return nn.Sequential(*layers)
