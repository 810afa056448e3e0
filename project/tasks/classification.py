"""Classification of whole images: one class each, or any number of them (multi-label)."""

from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from project.data.batch import Tensors
from project.data.dataset_facts import DatasetFacts
from project.errors import UserError
from project.losses import CrossEntropy, fit_to_data
from project.metrics.base import EvaluationResult, Rows
from project.metrics.classification import ClassificationMetrics, confusion_matrix, reliability
from project.metrics.conformal import Errors, class_errors
from project.tasks.base import Task
from project.tasks.figures import draw_confusion, draw_titled


class ClassificationTask(Task):
    """Predict `label` from `image`. A prediction is the probability of each class, (B, K).

    Args:
        net: Maps normalized (B, C, H, W) to logits (B, K), one per class.
        loss: Of logits and classes (B,), or (B, K) float for `multi_label`; `CrossEntropy` by default.
        multi_label: Whether an image can have any number of the classes, from the datamodule.
        positive: Of two classes, the one that precision, recall, F1 and average precision are of, from the datamodule.
        size_divisor: See `project.tasks.network.NormalizedNetwork`; classifiers take images of any size.
        options: See `project.tasks.base.Task`.
    """

    kind = "classification"
    target_kind = "label"
    inputs = ("image", "label")
    default_metrics = (ClassificationMetrics,)
    n_drawn_samples: ClassVar[int] = 12

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module | None = None,
        multi_label: bool = False,
        positive: str | None = None,
        size_divisor: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(net, loss or CrossEntropy(), size_divisor=size_divisor, **options)
        self.names = self.parts = self.classes.get("label", [])
        self.n_classes, self.multi_label, self.positive = len(self.names), multi_label, positive
        if positive is not None and positive not in self.names:
            raise UserError(f"positive: no class is called {positive}; prepare the dataset again")
        if self.n_classes < 2:
            raise UserError("the dataset has no labels of at least two classes; see `table` in its config")
        self.check_baseline(self.n_classes)
        counts = [float(self.statistics["label"][name]) for name in self.names]
        fit_to_data(self.loss, counts, self.statistics["n_samples"] if multi_label else None)

    @classmethod
    def network_channels(cls, data: DatasetFacts, options: dict[str, Any]) -> tuple[int, int | None]:
        return data.n_channels["image"], len(data.classes["label"])

    def decode_output(self, output: Tensor) -> Tensor:
        """Logits -> probabilities (B, K)."""
        self.check_output(output, self.names)
        return output.sigmoid() if self.multi_label else output.softmax(1)

    def make_target(self, batch: Tensors) -> Tensor:
        """Class numbers (B,) int64, or (B, K) float32 of zeros and ones."""
        return batch["label"].float() if self.multi_label else batch["label"].long()

    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        titles, wrong = [], []
        for number, sample in enumerate(samples):
            true = self.describe_target(torch.as_tensor(sample["label"]))
            predicted = self._predicted_names(sample["prediction"])
            wrong += [number] if predicted != true else []
            sure = "" if self.multi_label else f" {sample['prediction'].max():.0%}"
            titles.append(f"{true}\npredicted: {predicted}{sure}")
        return draw_titled(samples, titles, wrong)

    def draw_summary(self, results: EvaluationResult) -> Figure:
        labels, matrix = self.labels(results.rows), None
        if not self.multi_label:
            matrix = confusion_matrix(results.rows["predicted"].long(), labels, self.n_classes).numpy()
        return draw_confusion(matrix, self.names, reliability(self.probabilities(results.rows), labels))

    def errors(self, results: EvaluationResult) -> Errors | None:
        """Of the true classes and of all, for prediction sets; None for several labels per image."""
        if self.multi_label:
            return None
        errors = class_errors(self.probabilities(results.rows).numpy())
        of_truth = np.take_along_axis(errors, self.labels(results.rows).numpy()[:, None], 1)[:, None]
        return Errors(np.zeros_like(of_truth), of_truth, classes=errors)

    def probabilities(self, rows: Rows) -> Tensor:
        """(N, K) probability of each class, from the rows of all samples."""
        return torch.stack([rows[f"p/{name}"] for name in self.names], 1)

    def labels(self, rows: Rows) -> Tensor:
        """(N,) int64 class numbers or, of multi-label data, (N, K) zeros and ones."""
        if self.multi_label:
            return torch.stack([rows[f"label/{name}"] for name in self.names], 1).long()
        return rows["label"].long()

    def prediction_row(
        self, prediction: np.ndarray, files: dict[str, np.ndarray], spread: np.ndarray | None = None
    ) -> dict[str, Any]:
        return {"predicted": ";".join(self._chosen(prediction))} | super().prediction_row(prediction, files, spread)

    def describe_target(self, target: Tensor) -> str:
        return self._predicted_names(target.cpu().numpy()) if self.multi_label else self.names[int(target)]

    def _predicted_names(self, prediction: np.ndarray) -> str:
        return ", ".join(self._chosen(prediction)) or "none"

    def _chosen(self, prediction: np.ndarray) -> list[str]:
        """Names of the predicted class, or of all whose probability is above 0.5."""
        chosen = np.flatnonzero(prediction > 0.5) if self.multi_label else [int(prediction.argmax())]
        return [self.names[k] for k in chosen]
