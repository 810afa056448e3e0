"""Metrics of predicted class probabilities: accuracy, F1, AUROC, calibration ..., over all samples of a split.

They are computed from the joined rows, in any order. A class for which a metric is not defined (absent from the labels,
for example) is left out of the mean over classes and counted under `undefined`; with NaN among the probabilities, as
from a network that has diverged, no metric is defined.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from project.data.batch import Tensors
from project.metrics.base import Aggregate, Direction, Metric, Rows

PER_CLASS = ("precision", "recall", "f1", "auroc", "average_precision")
ECE_BINS = 15  # as in Guo et al. (2017)
# Softmax in float32 gives 0 where a class is very unlikely: nll counts at most 87.3 nats for a sample.
SMALLEST = torch.finfo(torch.float32).tiny


class ClassificationMetrics(Metric):
    """All metrics of `class_scores`, with the confusion matrix as a detail."""

    directions: ClassVar[dict[str, Direction]] = {
        **dict.fromkeys(("accuracy", "balanced_accuracy", "f1", "auroc", "average_precision"), "max"),
        **{"ece": "min", "exact_match": "max", "nll": "min", "precision": "max", "recall": "max"},
    }

    def setup(self, task: Any) -> None:
        self.task, self.parts, self.multi_label = task, task.names, task.multi_label

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """Probability of each class, `p/<class>`; true and predicted class, or `label/<class>`."""
        label, rows = batch["label"], self.by_part({"p": prediction})
        if self.multi_label:
            return rows | self.by_part({"label": label})
        predicted = prediction.argmax(1)
        return rows | {"label": label, "predicted": predicted, "correct": predicted == label}

    def aggregate(self, rows: Rows) -> Aggregate:
        positive = None if self.multi_label else self.task.positive
        return class_scores(self.task.probabilities(rows), self.task.labels(rows), self.parts, positive)

    def details(self, rows: Rows) -> dict[str, Any]:
        if self.multi_label:
            return {}
        matrix = confusion_matrix(rows["predicted"].long(), rows["label"].long(), len(self.parts))
        return {"confusion_matrix": {"classes": list(self.parts), "true_by_predicted": matrix.tolist()}}


def class_scores(probabilities: Tensor, labels: Tensor, names: Sequence[str], positive: str | None = None) -> Aggregate:
    """Scores where each sample has one of K classes; or, multi-label, any of them, given where p is above 0.5.

    Args:
        probabilities: (N, K) float64, softmax; multi-label sigmoid.
        labels: (N,) int64, 0 to K - 1; multi-label (N, K) integer, 0 or 1.
        names: Of the K classes.
        positive: Of two classes, the one that precision, recall, f1 and average_precision are of.

    Returns:
        Metrics, without those that are not defined, and score -> number of classes for which it is not defined:

        - accuracy: share of samples whose most likely class is the label (the first one of equals); multi-label of
          right decisions, over samples and classes.
        - balanced_accuracy: mean recall over classes that occur in the labels. Brodersen et al. (2010), ICPR. Not
          multi-label.
        - exact_match: share of samples with all decisions right. Multi-label only.
        - precision: tp / (tp + fp), of classes that occur in the predictions.
        - recall: tp / (tp + fn), of classes that occur in the labels.
        - f1: 2 tp / (2 tp + fp + fn), of classes that occur in labels or predictions (as scikit-learn).
        - auroc: area under the ROC curve, each class against the rest; of classes with samples in both.
          Hanley and McNeil (1982), Radiology 143, 29-36. From torchmetrics, exact to 1e-7 (as average_precision).
        - average_precision: sum of precision times gain in recall over thresholds, for the same classes.
        - ece: expected calibration error, see `reliability`. Guo et al. (2017), ICML, eq. 3; 15 bins.
        - nll: mean of -log(probability of the label), in nats. Not multi-label.

        Precision to average_precision are given for each class, `f1/<name>`, and as their mean over the classes
        (macro), `f1`; with a positive class the plain name is its score, and the mean is `f1_macro`.
    """
    n_classes, multi_label = len(names), labels.ndim == 2
    if not len(labels) or probabilities.isnan().any():
        others = ("exact_match",) if multi_label else ("balanced_accuracy", "nll")
        return {}, dict.fromkeys(("accuracy", *others, *PER_CLASS, "ece"), n_classes)
    best = probabilities > 0.5 if multi_label else torch.nn.functional.one_hot(probabilities.argmax(1), n_classes) > 0
    truth = labels > 0 if multi_label else torch.nn.functional.one_hot(labels, n_classes) > 0
    right, predicted, true = (x.sum(0).double() for x in (best & truth, best, truth))
    by_class = {
        "precision": _divide(right, predicted),
        "recall": _divide(right, true),
        "f1": _divide(2 * right, true + predicted),
        "auroc": _ranking(binary_auroc, probabilities, truth.long()),
        "average_precision": _ranking(binary_average_precision, probabilities, truth.long()),
    }
    confidence, accuracy, count = reliability(probabilities, labels)
    metrics = {"accuracy": ((best == truth) if multi_label else (best & truth).any(1)).double().mean().item()}
    metrics["ece"] = float(np.nansum(np.abs(accuracy - confidence) * count) / count.sum())
    undefined = {score: int(values.isnan().sum()) for score, values in by_class.items()}
    if multi_label:
        metrics["exact_match"] = (best == truth).all(1).double().mean().item()
    else:
        likelihood = probabilities.gather(1, labels[:, None]).clamp(min=SMALLEST)
        metrics |= {"nll": -likelihood.log().mean().item(), "balanced_accuracy": by_class["recall"].nanmean().item()}
        undefined["balanced_accuracy"] = undefined["recall"]
    for score, values in by_class.items():
        by_name = dict(zip(names, values.tolist(), strict=True))
        mean = values.nanmean().item()
        metrics |= {score: mean} if positive is None else {score: by_name[positive], f"{score}_macro": mean}
        metrics |= {f"{score}/{name}": value for name, value in by_name.items()}
    return {k: v for k, v in metrics.items() if not math.isnan(v)}, {k: n for k, n in undefined.items() if n}


def confusion_matrix(predicted: Tensor, label: Tensor, n_classes: int) -> Tensor:
    """Number of samples of each true (row) and predicted (column) class, (K, K) int64, from (N,) int64."""
    return torch.bincount(label * n_classes + predicted, minlength=n_classes**2).view(n_classes, n_classes)


def reliability(probabilities: Tensor, label: Tensor, n_bins: int = ECE_BINS) -> tuple[np.ndarray, ...]:
    """Confidence and accuracy of decisions, in bins of equal width: a reliability diagram.

    Guo et al. (2017), ICML, "On Calibration of Modern Neural Networks", section 2: bin m holds the confidences above
    (m - 1) / M up to and including m / M. (torchmetrics keeps confidences of exactly 1 in a bin of their own.)

    Args:
        probabilities: (N, K) float64.
        label: (N,) int64: one decision per sample, its confidence the largest probability. Or (N, K), 0 or 1: N * K
            decisions, the confidence of each being p if above 0.5, otherwise 1 - p.
        n_bins: M, from 0 to 1.

    Returns:
        Mean confidence and accuracy, (M,) float64, NaN for empty bins, and number of decisions, (M,) int64.
    """
    if label.ndim == 2:
        confidence = torch.maximum(probabilities, 1 - probabilities).flatten()
        right = ((probabilities > 0.5) == label.bool()).flatten()
    else:
        confidence, decision = probabilities.max(1)
        right = decision == label
    edges = torch.linspace(0, 1, n_bins + 1, dtype=confidence.dtype, device=confidence.device)
    bins = torch.bucketize(confidence, edges[1:-1])
    count, sums, hits = (
        torch.bincount(bins, weights=weights, minlength=n_bins) for weights in (None, confidence, right.double())
    )
    return _divide(sums, count).cpu().numpy(), _divide(hits, count).cpu().numpy(), count.cpu().numpy()


def _ranking(score: Callable[[Tensor, Tensor], Tensor], probabilities: Tensor, labels: Tensor) -> Tensor:
    """A binary score of each class, NaN if all samples or none have it, (K,) float64."""
    defined = (labels == 1).any(0) & (labels == 0).any(0)
    columns = zip(probabilities.unbind(1), labels.unbind(1), defined.tolist(), strict=True)
    return torch.tensor([score(p, t).item() if ok else torch.nan for p, t, ok in columns], dtype=torch.float64)


def _divide(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole, torch.nan)
