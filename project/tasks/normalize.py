"""Normalisation as part of the model, from the statistics of the training split."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from project.errors import UserError

Method = Literal["mean_std", "percentile", "min_max", "image_mean_std", "image_percentile"]
PERCENTILES = ("1", "99")
# A spread below this share of the level is rounding in float32: the channel is constant.
RESOLUTION = 1e-6


class Normalize(nn.Module):
    """(x - offset) / scale for each channel, in float32, and its inverse.

    Methods: "mean_std" gives mean 0 and standard deviation 1; "percentile" moves the 1st and 99th percentile to 0 and
    1 (nothing is clipped); "min_max" does so with the extremes. These take the statistics of the training split. The
    "image_" variants take those of each image and forget its level: use them for input whose brightness means nothing.

    A constant channel has no spread: it is only shifted, to 0.

    Args:
        statistics: One dictionary per channel, as the data file holds it.
        method: See above.

    Raises:
        UserError: There are no statistics.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, statistics: list[dict[str, Any]] | None, method: Method) -> None:
        super().__init__()
        if not statistics or any(not channel.get("n") for channel in statistics):
            raise UserError("there are no training statistics to normalise with; prepare the dataset again")
        self.method = method
        if method == "mean_std":
            ranges = [(c["mean"], c["std"]) for c in statistics]
        elif method == "percentile":
            low, high = PERCENTILES
            ranges = [(c["percentiles"][low], c["percentiles"][high] - c["percentiles"][low]) for c in statistics]
        else:
            ranges = [(c["min"], c["max"] - c["min"]) for c in statistics]
        offset, spread = (torch.tensor(values, dtype=torch.float64) for values in zip(*ranges, strict=True))
        self.register_buffer("offset", offset.float().view(-1, 1, 1))
        self.register_buffer("scale", _usable(spread, offset).float().view(-1, 1, 1))

    def forward(self, raw: Tensor) -> Tensor:
        """(B, C, H, W) of any dtype and unit -> float32, normalised."""
        values = raw.float()  # before anything else: uint16 tensors know few operations
        offset, scale = self._range(values)
        return (values - offset) / scale

    def inverse(self, normalized: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> float32 in the units of the file.

        Raises:
            UserError: The method is an "image_" one, which has forgotten the level.
        """
        if self.method.startswith("image_"):
            raise UserError(f'normalisation "{self.method}" cannot be undone; take "mean_std" or "percentile"')
        return normalized.float() * self.scale + self.offset

    def _range(self, values: Tensor) -> tuple[Tensor, Tensor]:
        if not self.method.startswith("image_"):
            return self.offset, self.scale
        flat = values.flatten(2)
        if self.method == "image_mean_std":
            offset, spread = flat.mean(2), flat.std(2, correction=0)
        else:
            n = flat.shape[2]
            low, high = (flat.kthvalue(1 + round(float(p) / 100 * (n - 1)), dim=2).values for p in PERCENTILES)
            offset, spread = low, high - low
        return offset[:, :, None, None], _usable(spread, offset)[:, :, None, None]


def _usable(spread: Tensor, level: Tensor) -> Tensor:
    """The spread, or 1 where it is nothing but rounding."""
    return torch.where(spread > RESOLUTION * level.abs().clamp(min=torch.finfo(torch.float32).tiny), spread, 1.0)
