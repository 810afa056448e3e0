"""Metrics of pretraining: errors of filled-in patches, and how well two views of an image find each other."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from project.data.batch import Tensors
from project.metrics.base import Aggregate, Direction, Metric, Rows

CHUNK = 1024  # images compared with all others at a time


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


class RetrievalMetrics(Metric):
    """How well an image finds its own view among the views of all images of the split, on whose number they depend.

    `rank`: number of other images whose views are nearer to an image than its own. `top1`: whether there is none.
    `loss`: cross entropy of finding the own view among all.
    """

    directions: ClassVar[dict[str, Direction]] = {"top1": "max", "rank": "min"}

    def setup(self, task: Any) -> None:
        self.temperature, self.direction = task.temperature, task.decode_output

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """Directions (B, D) of images and views, which `join` compares."""
        return {"image": prediction, "view": self.direction(batch["network_target"])}

    def join(self, rows: Rows) -> Rows:
        """Rank and loss of each sample instead of its directions."""
        images, views = rows.pop("image"), rows.pop("view")
        ranks, losses = [], []
        for start in range(0, len(images), CHUNK):
            similarity = images[start : start + CHUNK] @ views.T / self.temperature
            own = similarity.diagonal(start)[:, None]
            ranks.append((similarity > own).sum(1))
            losses.append(similarity.logsumexp(1) - own[:, 0])
        rank = torch.cat(ranks).double()
        return rows | {"loss": torch.cat(losses), "rank": rank, "top1": (rank == 0).double()}

    def aggregate(self, rows: Rows) -> Aggregate:
        return self.mean_of_defined(rows, ("top1", "rank"))
