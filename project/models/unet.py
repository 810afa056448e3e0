"""A plain U-Net: an example of a network, which experiments name by its class path."""

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """Ronneberger et al. (2015), MICCAI, with padded convolutions, batch normalization and nearest upsampling.

    It works at full resolution, hence keeps fine texture, with 0.5 million parameters at width 16. Larger encoders
    with pretrained weights: `segmentation_models_pytorch.Unet`.

    Args:
        in_channels, out_channels: Of the images.
        width: Channels at full resolution; they double with each halving.
        depth: Number of halvings; height and width must be multiples of 2**depth (see `size_divisor` of the task).
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([in_channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(_Up(*_block(a + b, a)) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.head = nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W), unbounded."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = block(x, skips.pop())
        return self.head(x)


class _Up(nn.Sequential):
    """Convolutions of the level below and the skip connection, joined inside to save memory."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([skip, nn.functional.interpolate(x, scale_factor=2.0)], dim=1))


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)
