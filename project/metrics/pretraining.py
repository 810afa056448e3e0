"""Metrics of pretraining: errors of filled-in patches."""

from typing import Any, ClassVar

from torch import Tensor

from project.data.batch import Tensors
from project.metrics.base import Aggregate, Direction, Metric, Rows


class MaskedPatchMetrics(Metric):
    """Squared error over the hidden pixels of each image in normalized units, and R2 over all hidden pixels.

    The deviation is from the mean of each image: the network sees the brightness of an image.
    """

    directions: ClassVar[dict[str, Direction]] = {"mse": "min", "r2_pooled": "max"}

    def setup(self, task: Any) -> None:
        self.patch, self.ratio = task.patch, task.ratio

    @property
    def settings(self) -> dict[str, float]:
        return {"patch": self.patch, "ratio": self.ratio}

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """Sums of each image; the last channel of `network_target` is where it is hidden."""
        target = batch["network_target"].double()
        x, hidden = target[:, :-1], target[:, -1:]
        n = hidden.sum((2, 3))
        mean = ((x * hidden).sum((2, 3)) / n)[..., None, None]
        squares = (((prediction.double() - x) * hidden) ** 2).sum((1, 2, 3))
        deviation = (((x - mean) * hidden) ** 2).sum((1, 2, 3))
        return {"mse": squares / (n[:, 0] * x.shape[1]), "sum_squared_error": squares, "deviation": deviation}

    def aggregate(self, rows: Rows) -> Aggregate:
        """Mean over the images, and R2 over all hidden pixels; not defined where these are constant."""
        metrics, undefined = self.mean_of_defined(rows, ["mse"])
        if (deviation := rows["deviation"].sum()) > 0:
            metrics["r2_pooled"] = (1 - rows["sum_squared_error"].sum() / deviation).item()
        return metrics, undefined
