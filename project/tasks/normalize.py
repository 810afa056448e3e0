"""Normalisation as part of the model, from the statistics of the training split."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from project.errors import UserError

Method = Literal["mean_std", "percentile", "min_max", "image_mean_std", "image_percentile", "encoder"]
PERCENTILES = ("1", "99")
# A spread below this share of the level is rounding in float32: the channel is constant.
RESOLUTION = 1e-6


class Normalize(nn.Module):
    """(x - offset) / scale for each channel, in float32, and its inverse.

    Methods: "mean_std" gives mean 0 and standard deviation 1; "percentile" moves the 1st and 99th percentile to 0 and
    1 (nothing is clipped); "min_max" does so with the extremes. These take the statistics of the training split. The
    "image_" variants take those of each image and forget its level: use them for input whose brightness means nothing.
    "encoder" is what a pretrained encoder was trained with: the range in use becomes 0 to 1 (uint8 always 0 to 255, as
    then), from which the encoder's mean is subtracted, divided by its standard deviation; one statistic per channel for
    three channels, else their average.

    A constant channel has no spread: it is only shifted, to 0.

    Args:
        statistics: One dictionary per channel, as the data file holds it.
        method: See above.
        encoder: For "encoder", its (mean, std) of red, green and blue between 0 and 1.

    Raises:
        UserError: There are no statistics.
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        statistics: list[dict[str, Any]] | None,
        method: Method,
        encoder: tuple[list[float], list[float]] | None = None,
    ) -> None:
        super().__init__()
        if not statistics or any(not channel.get("n") for channel in statistics):
            raise UserError("there are no training statistics to normalise with; prepare the dataset again")
        self.method = method
        if method == "mean_std":
            ranges = [(c["mean"], c["std"]) for c in statistics]
        elif method == "percentile":
            low, high = PERCENTILES
            ranges = [(c["percentiles"][low], c["percentiles"][high] - c["percentiles"][low]) for c in statistics]
        elif method == "encoder":
            if encoder is None:
                raise UserError('normalisation "encoder" is for the input of a network with an encoder')
            ranges = _as_encoder(statistics, *encoder)
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


def _as_encoder(statistics: list[dict[str, Any]], mean: list[float], std: list[float]) -> list[tuple[float, float]]:
    """Offset and scale of each channel, in the units of the file, that give an encoder what it was trained on."""
    n = len(statistics)
    means, stds = (v if len(v) == n else [sum(v) / len(v)] * n for v in (mean, std))
    ranges = []
    for channel, m, s in zip(statistics, means, stds, strict=True):
        low, high = (0.0, 255.0) if channel["dtype"] == "uint8" else (channel["min"], channel["max"])
        ranges.append((low + m * (high - low), s * (high - low)))
    return ranges
