"""Normalization as part of the model, from the statistics of the training split or of each image."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from project.data.statistics import NARROW, RESOLUTION, ROBUST, value_range
from project.errors import UserError

# Standard deviations of the background within which asinh is nearly linear. Scores of images with two exposures did not
# differ beyond those of seeds between 1 and 6; the larger one rounds less, and stays closer to the units of the scores.
LINEAR = 6.0

Method = Literal["mean_std", "percentile", "min_max", "asinh", "image_mean_std", "image_percentile", "encoder"]


class Normalize(nn.Module):
    """(x - offset) / scale for each channel, in float32, or its inverse hyperbolic sine; and the inverse.

    Methods: "mean_std" gives mean 0 and standard deviation 1; "percentile" moves the 1st and 99th percentile to 0 and
    1; "min_max" does so with the 0.1 and 99.9 percentiles, as the extremes are those of a hot pixel. Nothing is
    clipped. Percentiles that coincide are replaced by a wider range, see `project.data.statistics.value_range`. These
    take the statistics of the training split.

    "asinh" is asinh((x - median) / scale), with a scale of six standard deviations of most pixels, by the 25th and 75th
    percentile: linear within the background, logarithmic for bright values, so that images with different exposures
    count alike. Lupton, Gunn and Szalay (1999), "A modified magnitude system", Astron. J. 118. It stabilizes
    a variance that grows with the square of the value. The inverse is exact to float32: about 1e-6 of the value.

    The "image_" variants take those of each whole image and forget its level: use them for input whose brightness means
    nothing. An image is a sample of the data file (of images that were cut into tiles, a tile). A crop is normalized
    by the statistics of the image that it is from.

    "encoder" gives the values that a pretrained encoder was trained with: the range in use (0.1 to 99.9 %; for uint8
    always 0 to 255) becomes 0 to 1, the encoder's mean is subtracted, and the result divided by its standard deviation;
    one statistic per channel for three channels, else their average.

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
            raise UserError("there are no training statistics to normalize with; prepare the dataset again")
        self.method = method
        if method == "mean_std":
            ranges = [(c["mean"], c["std"]) for c in statistics]
        elif method == "asinh":
            ranges = [_background(c) for c in statistics]
        elif method == "encoder":
            if encoder is None:
                raise UserError('normalization "encoder" is for the input of a network with an encoder')
            ranges = _as_encoder(statistics, *encoder)
        else:
            ends = [value_range(c, NARROW if method == "percentile" else ROBUST) for c in statistics]
            ranges = [(low, high - low) for low, high, _ in ends]
        offset, spread = (torch.tensor(values, dtype=torch.float64) for values in zip(*ranges, strict=True))
        self.register_buffer("offset", offset.float().view(-1, 1, 1))
        self.register_buffer("scale", _usable(spread, offset).float().view(-1, 1, 1))

    @property
    def by_image(self) -> bool:
        """Whether offset and scale are those of each image."""
        return self.method.startswith("image_")

    def forward(self, raw: Tensor, levels: Tensor | None = None) -> Tensor:
        """Raw values -> normalized float32.

        Args:
            raw: (B, C, H, W) of any dtype and unit.
            levels: (B, C, 4) statistics of the whole images that `raw` shows or is cropped from, see
                `project.data.statistics.image_statistics`; only the "image_" methods read them. Without them `raw` must
                be whole images.
        """
        values = raw.float()  # before anything else: uint16 tensors know few operations
        offset, scale = self._by_image(values, levels) if self.by_image else (self.offset, self.scale)
        normalized = (values - offset) / scale
        return normalized.asinh() if self.method == "asinh" else normalized

    def inverse(self, normalized: Tensor) -> Tensor:
        """(B, C, H, W) normalized -> float32 in the units of the file.

        Raises:
            UserError: The method is an "image_" one, which has forgotten the level.
        """
        if self.by_image:
            raise UserError(f'normalization "{self.method}" cannot be undone; take "mean_std" or "percentile"')
        values = normalized.float()
        return (values.sinh() if self.method == "asinh" else values) * self.scale + self.offset

    def _by_image(self, values: Tensor, levels: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.method == "image_mean_std":
            flat = values.flatten(2)
            offset, spread = (flat.mean(2), flat.std(2, correction=0)) if levels is None else levels[..., :2].unbind(-1)
        else:
            low, high = _percentile_range(values) if levels is None else levels[..., 2:].unbind(-1)
            offset, spread = low, high - low
        return offset[:, :, None, None], _usable(spread, offset)[:, :, None, None]


def _percentile_range(values: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) -> low and high of `image_statistics`, in operations that can be exported."""
    ordered = values.flatten(2).sort(2).values
    percents = [c for cut in (NARROW, ROBUST) for c in (cut, 100 - cut)]
    positions = torch.tensor([round(10 * c) for c in percents], device=values.device) * (ordered.shape[2] - 1)
    below, part = positions // 1000, (positions % 1000).float() / 1000
    first, second = (ordered.index_select(2, at) for at in (below, (below + 1).clamp(max=ordered.shape[2] - 1)))
    low, high, lower, higher = (first + (second - first) * part).unbind(2)
    for wider in ((lower, higher), (ordered[..., 0], ordered[..., -1])):
        spread = high - low > RESOLUTION * torch.maximum(low.abs(), high.abs())
        low, high = torch.where(spread, low, wider[0]), torch.where(spread, high, wider[1])
    return low, high


def _background(channel: dict[str, Any]) -> tuple[float, float]:
    """Median, and six standard deviations of most pixels; of ever more of them where the percentiles coincide."""
    percentiles = channel["percentiles"]
    # Distances of percentiles of a normal distribution, in standard deviations.
    widths = {("25", "75"): 1.349, ("5", "95"): 3.290, ("1", "99"): 4.653, ("0.1", "99.9"): 6.180}
    spreads = [(percentiles[high] - percentiles[low]) / width for (low, high), width in widths.items()]
    return percentiles["50"], LINEAR * next((spread for spread in spreads if spread > 0), channel["std"])


def _usable(spread: Tensor, level: Tensor) -> Tensor:
    """The spread, or 1 where it is nothing but rounding."""
    return torch.where(spread > RESOLUTION * level.abs().clamp(min=torch.finfo(torch.float32).tiny), spread, 1.0)


def _as_encoder(statistics: list[dict[str, Any]], mean: list[float], std: list[float]) -> list[tuple[float, float]]:
    """Offset and scale of each channel, in the units of the file, for the values an encoder was trained on."""
    n = len(statistics)
    means, stds = (v if len(v) == n else [sum(v) / len(v)] * n for v in (mean, std))
    ranges = []
    for channel, m, s in zip(statistics, means, stds, strict=True):
        low, high = (0.0, 255.0) if channel["dtype"] == "uint8" else value_range(channel)[:2]
        ranges.append((low + m * (high - low), s * (high - low)))
    return ranges
