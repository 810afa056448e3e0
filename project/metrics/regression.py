"""Metrics of predicted numbers per image: MAE and RMSE in units of the table, R2 and Pearson correlation."""

from typing import ClassVar

import torch
from torch import Tensor

from project.data.batch import Tensors
from project.metrics.base import Aggregate, Direction, Metric, Rows, correlation


class RegressionMetrics(Metric):
    """Errors of K numbers per image; with several each has its metrics, `mae/<name>`, and the plain name is their mean.

    - mae: mean over the images of |predicted - true|.
    - rmse: root of the mean squared error.
    - r2: 1 - squared error / squared deviation of the true values from their mean; not defined for constant values.
    - pearson: correlation over the images; not defined if either is constant.
    """

    directions: ClassVar[dict[str, Direction]] = {"mae": "min", "rmse": "min", "r2": "max", "pearson": "max"}

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """True and predicted value and their absolute difference."""
        true, predicted = batch["value"].double(), prediction.double()
        return self.by_part({"true": true, "predicted": predicted, "mae": (predicted - true).abs()})

    def aggregate(self, rows: Rows) -> Aggregate:
        true, predicted = (torch.stack([rows[f"{name}{tag}"] for tag in self.tags]) for name in ("true", "predicted"))
        error, total = predicted - true, ((true - true.mean(1, keepdim=True)) ** 2).sum(1)
        values = {
            "mae": error.abs().mean(1),
            "rmse": (error**2).mean(1).sqrt(),
            "r2": torch.where(total > 0, 1 - (error**2).sum(1) / total, torch.nan),
            "pearson": torch.stack([correlation(t, p) for t, p in zip(true, predicted, strict=True)]),
        }
        return {k: v for name, value in values.items() for k, v in self.with_mean(name, value).items()}, {}
