"""Metrics of predicted images: MSE, MAE, R2, Pearson correlation, PSNR and SSIM, per image and pooled over all pixels.

Computed in float64 from the moments of each image, in units of the target, so that metrics do not depend on how a split
was batched.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from project.data.batch import Tensors
from project.metrics.base import Aggregate, Direction, Metric, Rows
from project.sliding_mean import SSIM_WINDOW, structural_similarity

# An image whose standard deviation is below this share of its largest value is constant but for rounding in float32.
CONSTANT = 1e-6
MOMENTS = ("n", "sum_squared_error", "sum_absolute_error", "mean_p", "mean_t", "m2_p", "m2_t", "c_pt")


class ImageMetrics(Metric):
    """Metrics of images with C channels: per image, `mse`, and over the pixels of all images, `mse_pooled`.

    With several channels each has its metrics, `mse/<channel>`. The plain name is the mean over the channels; of a
    pooled metric it is over the pixels of all channels, as if they were one image.
    """

    names = ("mse", "mae", "r2", "pearson", "psnr", "ssim")
    directions: ClassVar[dict[str, Direction]] = {
        **dict.fromkeys(("mse", "mae"), "min"),
        **dict.fromkeys(("r2", "pearson", "r2_pooled", "pearson_pooled", "psnr", "ssim"), "max"),
    }
    low: Tensor
    high: Tensor

    def setup(self, task: Any) -> None:
        """PSNR and SSIM refer to the range of the training targets, `task.low` to `task.high`, (C,) each."""
        super().setup(task)
        self.low, self.high = task.low, task.high

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """Metrics and moments of each image and channel."""
        self.low, self.high = self.low.to(prediction.device), self.high.to(prediction.device)
        return self.by_part(image_scores(prediction, batch["target"].float(), self.low, self.high))

    def aggregate(self, rows: Rows) -> Aggregate:
        metrics, undefined = self.mean_of_defined(rows, self.names)
        moments = {name: torch.stack([rows[f"{name}{tag}"] for tag in self.tags], 1) for name in MOMENTS}
        for name, values in pooled_scores(moments).items():
            metrics |= self.with_mean(name, values)
        over_channels = pooled_scores({name: values.reshape(-1, 1) for name, values in moments.items()})
        return metrics | {name: value.item() for name, value in over_channels.items()}, undefined


def image_scores(prediction: Tensor, target: Tensor, low: Tensor, high: Tensor) -> dict[str, Tensor]:
    """Metrics and moments of each image and channel.

    Prediction and target are (B, C, H, W) in the target's units; `low` and `high`, (C,), are the range of the training
    targets, see `project.data.statistics.value_range`.

    Returns:
        Name -> (B, C) float64; NaN where a metric is not defined:

        - mse, mae: means over the pixels.
        - r2: 1 - squared error / squared deviation of the target from its mean over this image. Not defined for a
          constant target.
        - pearson: correlation over the pixels. Not defined if either image is constant.
        - psnr: 10 log10(range^2 / mse) in dB. Not defined for a perfect prediction, or without a range.
        - ssim: see `project.sliding_mean`, after moving `low` to 0 and `high` to 1. Not defined for images
          below 11 pixels, or without a range.
        - the moments from which `pooled_scores` follow.
    """
    if prediction.device.type == "cpu" and len(prediction) > 1:
        # One image at a time stays in the processor's cache, which halves the time.
        pairs = zip(prediction.split(1), target.split(1), strict=True)
        images = [image_scores(p, t, low, high) for p, t in pairs]
        return {name: torch.cat([scores[name] for scores in images]) for name in images[0]}
    p, t = prediction.double().flatten(2), target.double().flatten(2)
    error, mean_p, mean_t = p - t, p.mean(2), t.mean(2)
    dp, dt = p - mean_p[..., None], t - mean_t[..., None]
    rows = {
        "n": torch.full_like(mean_p, p.shape[2]),
        "sum_squared_error": (error**2).sum(2),
        "sum_absolute_error": error.abs().sum(2),
        **{"mean_p": mean_p, "mean_t": mean_t},
        "m2_p": _zero_if_rounding((dp**2).sum(2), p),
        "m2_t": _zero_if_rounding((dt**2).sum(2), t),
        "c_pt": (dp * dt).sum(2),
    }
    range_ = (high - low).double()
    scores = {
        "mse": rows["sum_squared_error"] / rows["n"],
        "mae": rows["sum_absolute_error"] / rows["n"],
        "r2": _divide_from_one(rows["sum_squared_error"], rows["m2_t"]),
        "pearson": _correlation(rows["c_pt"], rows["m2_p"], rows["m2_t"]),
    }
    defined = (scores["mse"] > 0) & (range_ > 0)
    scores["psnr"] = torch.where(defined, 10 * torch.log10(range_**2 / scores["mse"]), torch.nan)
    scores["ssim"] = torch.full_like(mean_p, torch.nan)
    if min(target.shape[2:]) >= len(SSIM_WINDOW):
        scale, low = torch.where(range_ > 0, range_, torch.nan)[:, None, None], low.double()[:, None, None]
        scores["ssim"] = structural_similarity(*((x.double() - low) / scale for x in (prediction, target)))
    return scores | rows


def pooled_scores(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Metrics over all pixels of all images as if they were one, (C,) float64, from `MOMENTS` (N, C).

    Pooled correlation rewards knowing which image is brighter: a predictor of each image's mean can score 0.99 pooled
    and 0 per image.
    """
    n = rows["n"].sum(0)
    means = {x: (rows[f"mean_{x}"] * rows["n"]).sum(0) / n for x in "pt"}
    shifts = {x: rows[f"mean_{x}"] - means[x] for x in "pt"}
    # Moments about the common mean: Chan, Golub and LeVeque (1979), eq. 2.1.
    m2 = {x: (rows[f"m2_{x}"] + rows["n"] * shifts[x] ** 2).sum(0) for x in "pt"}
    c = (rows["c_pt"] + rows["n"] * shifts["p"] * shifts["t"]).sum(0)
    squared = rows["sum_squared_error"].sum(0)
    m2 = {x: torch.where(m2[x] > n * (CONSTANT * means[x]) ** 2, m2[x], 0.0) for x in "pt"}
    return {
        "mse_pooled": squared / n,
        "mae_pooled": rows["sum_absolute_error"].sum(0) / n,
        "r2_pooled": _divide_from_one(squared, m2["t"]),
        "pearson_pooled": _correlation(c, m2["p"], m2["t"]),
    }


def _zero_if_rounding(m2: Tensor, values: Tensor) -> Tensor:
    return torch.where(m2 > values.shape[2] * (CONSTANT * values.abs().amax(2)) ** 2, m2, 0.0)


def _divide_from_one(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, 1 - part / whole, torch.nan)


def _correlation(c: Tensor, m2_p: Tensor, m2_t: Tensor) -> Tensor:
    return torch.where((m2_p > 0) & (m2_t > 0), c / (m2_p.sqrt() * m2_t.sqrt()), torch.nan)
