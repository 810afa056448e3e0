"""Metrics of predicted numbers per image: MAE and RMSE in units of the table, R2 and Pearson correlation."""

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

    @property
    def directions(self) -> dict[str, Direction]:
        return {"mae": "min", "rmse": "min", "r2": "max", "pearson": "max"}

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """True and predicted value and their absolute difference."""
        true, predicted = batch["value"].double(), prediction.double()
        return self.by_part({"true": true, "predicted": predicted, "mae": (predicted - true).abs()})

    def aggregate(self, rows: Rows) -> Aggregate:
        by_tag = {tag: _metrics_of(rows[f"true{tag}"], rows[f"predicted{tag}"]) for tag in self.tags}
        metrics = {f"{name}{tag}": value for tag, values in by_tag.items() for name, value in values.items()}
        if len(self.tags) > 1:
            for name in self.directions:
                metrics[name] = torch.tensor([values[name] for values in by_tag.values()]).nanmean().item()
        return metrics, {}


def _metrics_of(true: Tensor, predicted: Tensor) -> dict[str, float]:
    error, total = predicted - true, ((true - true.mean()) ** 2).sum()
    values = {
        "mae": error.abs().mean(),
        "rmse": (error**2).mean().sqrt(),
        "r2": torch.where(total > 0, 1 - (error**2).sum() / total, torch.nan),
        "pearson": correlation(true, predicted),
    }
    return {name: value.item() for name, value in values.items()}
