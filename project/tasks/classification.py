"""Classification of whole images: one class each, or any number of them (multi-label)."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from project.errors import UserError
from project.losses import BinaryCrossEntropy, CrossEntropy, fit_to_data
from project.metrics.classification import confusion_matrix, multi_label_scores, reliability, single_label_scores
from project.tasks.base import Batch, Results, Rows, Task
from project.tasks.figures import draw_classification, draw_confusion


class ClassificationTask(Task):
    """Predict `label` from `image`. A prediction is the probability of each class, (B, K).

    Args:
        net: Maps normalised (B, C, H, W) to logits (B, K), one per class.
        loss: Of logits and classes (B,), or (B, K) float for `multi_label`; cross entropy, or binary cross entropy,
            by default.
        multi_label: Whether an image can have any number of the classes, from the datamodule.
        positive: Of two classes, the one that precision, recall, F1 and average precision are of, from the datamodule.
        pad_to: See `project.tasks.base.Task`; classifiers take any size, and a padded border is no sight to learn.
        options: See `project.tasks.base.Task`.
    """

    roles: ClassVar[tuple[str, ...]] = ("image", "label")
    leading: ClassVar[dict[str, Literal["min", "max", "zero"]]] = {
        "accuracy": "max",
        "balanced_accuracy": "max",
        "f1": "max",
        "auroc": "max",
        "average_precision": "max",
        "ece": "min",
        "exact_match": "max",
        "nll": "min",
        "precision": "max",
        "recall": "max",
    }
    n_pictures: ClassVar[int] = 12

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module | None = None,
        multi_label: bool = False,
        positive: str | None = None,
        pad_to: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(
            net, loss or (BinaryCrossEntropy() if multi_label else CrossEntropy()), pad_to=pad_to, **options
        )
        self.names, self.multi_label = self.classes.get("label", []), multi_label
        self.n_classes = len(self.names)
        self.positive = positive
        if positive is not None and positive not in self.names:
            raise UserError(f"positive: no class is called {positive}; prepare the dataset again")
        if len(self.names) < 2:
            raise UserError("the dataset has no labels of at least two classes; see `table` in its config")
        counts = [float(self.statistics["label"][name]) for name in self.names]
        fit_to_data(self.loss, class_counts=counts, n_samples=self.statistics.get("n_samples"))
        self.check_baseline()

    def to_units(self, output: Tensor) -> Tensor:
        """Logits -> probabilities (B, K)."""
        if output.ndim != 2 or output.shape[1] != len(self.names):
            raise UserError(
                f"the network gives {tuple(output.shape[1:])} numbers per image, but there are {len(self.names)} "
                f"classes: {', '.join(self.names)}"
            )
        return output.sigmoid() if self.multi_label else output.softmax(1)

    def encode_target(self, batch: Batch) -> Tensor:
        """Class numbers (B,) int64, or (B, K) float32 of zeros and ones."""
        return batch["label"].float() if self.multi_label else batch["label"].long()

    def score(self, prediction: Tensor, batch: Batch) -> Rows:
        """Probability of each class, `p/<class>`; true and predicted class, or `label/<class>`."""
        rows = {f"p/{name}": prediction[:, k] for k, name in enumerate(self.names)}
        if self.multi_label:
            return rows | {f"label/{name}": batch["label"][:, k] for k, name in enumerate(self.names)}
        predicted = prediction.argmax(1)
        return rows | {"label": batch["label"], "predicted": predicted, "correct": predicted == batch["label"]}

    def aggregate(self, rows: Rows) -> tuple[dict[str, float], dict[str, int]]:
        """See `project.metrics.classification`."""
        probabilities = self._probabilities(rows)
        if self.multi_label:
            return multi_label_scores(probabilities, self._labels(rows), self.names)
        return single_label_scores(probabilities, rows["label"].long(), self.names, self.positive)

    def _probabilities(self, rows: Rows) -> Tensor:
        return torch.stack([rows[f"p/{name}"] for name in self.names], 1)

    def _labels(self, rows: Rows) -> Tensor:
        return torch.stack([rows[f"label/{name}"] for name in self.names], 1).long()

    def details(self, rows: Rows) -> dict[str, Any]:
        """The confusion matrix, rows are the truth."""
        if self.multi_label:
            return {}
        matrix = confusion_matrix(rows["predicted"].long(), rows["label"].long(), len(self.names))
        return {"confusion_matrix": {"classes": self.names, "true_by_predicted": matrix.tolist()}}

    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        """Images with their true and predicted classes."""
        return draw_classification(samples, self.names)

    def draw_summary(self, results: Results) -> Figure | None:
        """Confusion matrix and reliability."""
        if self.multi_label:
            return None
        probabilities = self._probabilities(results.rows)
        matrix = np.array(results.details["confusion_matrix"]["true_by_predicted"])
        return draw_confusion(matrix, self.names, reliability(probabilities, results.rows["label"].long()))

    def to_files(self, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """None: the probabilities stand in samples/<split>.csv."""
        return {}
