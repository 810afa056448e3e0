"""A plain U-Net: an example of a network, which experiments name by its class path."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": partial(nn.InstanceNorm2d, affine=True),
}


class UNet(nn.Module):
    """Ronneberger et al. (2015), MICCAI, with padded convolutions, normalization and nearest upsampling.

    It works at full resolution, hence keeps fine texture, with 0.5 million parameters at width 16. Larger encoders
    with pretrained weights: `segmentation_models_pytorch.Unet`.

    Args:
        in_channels, out_channels: Of the images.
        width: Channels at full resolution; they double with each halving.
        depth: Number of halvings; height and width must be multiples of 2**depth (see `size_divisor` of the task).
        norm: "batch", or "instance", which learns from images of several kinds in half of the steps, but forgets how
            bright an image is; prediction in tiles takes a pass over the image for each norm.
        skip: How a level above joins: "concat", or "add", with which a step takes three quarters of the time.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        width: int = 16,
        depth: int = 3,
        norm: Literal["batch", "instance"] = "batch",
        skip: Literal["concat", "add"] = "concat",
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_block(a, b, norm) for a, b in zip([in_channels, *widths], widths, strict=False))
        self.adds, levels = skip == "add", list(zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.reduce = nn.ModuleList(nn.Conv2d(b, a, 1, bias=False) if self.adds else nn.Identity() for a, b in levels)
        self.up = nn.ModuleList(_block(a if self.adds else a + b, a, norm) for a, b in levels)
        self.head = nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W), unbounded."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for reduce, block in zip(self.reduce, self.up, strict=True):
            x = functional.interpolate(reduce(x), scale_factor=2.0)
            x = block(skips.pop() + x if self.adds else torch.cat([skips.pop(), x], dim=1))
        return self.head(x)


def _block(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), NORMS[norm](out_channels), nn.ReLU()]
    return nn.Sequential(*layers)
