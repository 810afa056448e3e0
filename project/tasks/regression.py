"""Regression: numbers per image, such as a count, an age or a dose."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from project.data.batch import Tensors
from project.data.dataset_facts import DatasetFacts
from project.errors import UserError
from project.metrics.base import EvaluationResult
from project.metrics.conformal import Errors
from project.metrics.regression import RegressionMetrics
from project.tasks.base import Task
from project.tasks.figures import draw_titled, draw_true_against_predicted


class RegressionTask(Task):
    """Predict K numbers per image, `value`, from `image`, with a loss on standardized numbers.

    A prediction is (B, K) in the units of the table. The numbers are the columns that `table: {values: [...]}` of the
    data config names.

    Args:
        net: Maps normalized (B, C, H, W) to (B, K), unbounded, such as
            `project.models.classifier.EncoderClassifier` with `classes: K`.
        loss: Of standardized output and target, (B, K) each; MSE by default.
        size_divisor: See `project.tasks.network.NormalizedNetwork`; these networks take images of any size.
        options: See `project.tasks.base.Task`.
    """

    kind = "regression"
    target_kind = "value"
    inputs = ("image", "value")
    default_metrics = (RegressionMetrics,)
    n_drawn_samples = 12
    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, loss: nn.Module | None = None, size_divisor: int = 1, **options: Any) -> None:
        super().__init__(net, loss or nn.MSELoss(), size_divisor=size_divisor, **options)
        statistics = self.statistics.get("value")
        if not statistics:
            raise UserError(
                "the dataset has no numbers per image; name their columns as `values` of `table` in its config"
            )
        self.parts = self.channels.get("value") or [str(k) for k in range(len(statistics))]
        self.register_buffer("mean", torch.tensor([column["mean"] for column in statistics], dtype=torch.float32))
        std = [column["std"] or 1.0 for column in statistics]  # constant values are only shifted
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    @classmethod
    def network_channels(cls, data: DatasetFacts, options: dict[str, Any]) -> tuple[int, int | None]:
        return data.n_channels["image"], data.n_channels["value"]

    def make_target(self, batch: Tensors) -> Tensor:
        """The standardized numbers, (B, K) float32."""
        return (batch["value"].float() - self.mean) / self.std

    def decode_output(self, output: Tensor) -> Tensor:
        """(B, K) standardized -> in units of the table. Other numbers of outputs are refused."""
        self.check_output(output, self.parts)
        return output * self.std + self.mean

    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        titles = []
        for sample in samples:
            numbers = zip(self.parts, sample["value"], sample["prediction"], strict=True)
            titles.append(
                "\n".join(f"{name}: {true:.4g}, predicted {predicted:.4g}" for name, true, predicted in numbers)
            )
        return draw_titled(samples, titles)

    def draw_summary(self, results: EvaluationResult) -> Figure | None:
        pairs = [(results.rows[f"true{tag}"].numpy(), results.rows[f"predicted{tag}"].numpy()) for tag in self.tags]
        return draw_true_against_predicted(pairs, self.parts)

    def errors(self, results: EvaluationResult) -> Errors:
        """Absolute errors of each number."""
        true, predicted = (
            np.stack([results.rows[f"{name}{tag}"].numpy() for tag in self.tags], 1)[:, None]
            for name in ("true", "predicted")
        )
        return Errors(predicted, np.abs(true - predicted), self.tags)

    def describe_target(self, target: Tensor) -> str:
        values = (target.to(self.mean) * self.std + self.mean).tolist()
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(self.parts, values, strict=True))
