"""Metrics of predicted class probabilities: accuracy, F1, AUROC, calibration ..., over all samples of a split.

They are computed from the joined rows, in any order. A class for which a metric is not defined (absent from the labels,
for example) is left out of the mean over classes and counted under `undefined`; with NaN among the probabilities, as
from a network that has diverged, no metric is defined.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

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
    """All metrics of `single_label_scores` or `multi_label_scores`, with the confusion matrix as a detail."""

    def setup(self, task: Any) -> None:
        self.task, self.parts, self.multi_label = task, task.names, task.multi_label

    @property
    def directions(self) -> dict[str, Direction]:
        names = ("accuracy", "balanced_accuracy", "f1", "auroc", "average_precision", "ece", "exact_match", "nll")
        return {name: "min" if name in ("ece", "nll") else "max" for name in (*names, "precision", "recall")}

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """Probability of each class, `p/<class>`; true and predicted class, or `label/<class>`."""
        label, rows = batch["label"], self.by_part({"p": prediction})
        if self.multi_label:
            return rows | self.by_part({"label": label})
        predicted = prediction.argmax(1)
        return rows | {"label": label, "predicted": predicted, "correct": predicted == label}

    def aggregate(self, rows: Rows) -> Aggregate:
        probabilities, labels = self.task.probabilities(rows), self.task.labels(rows)
        if self.multi_label:
            return multi_label_scores(probabilities, labels, self.parts)
        return single_label_scores(probabilities, labels, self.parts, self.task.positive)

    def details(self, rows: Rows) -> dict[str, Any]:
        if self.multi_label:
            return {}
        matrix = confusion_matrix(rows["predicted"].long(), rows["label"].long(), len(self.parts))
        return {"confusion_matrix": {"classes": list(self.parts), "true_by_predicted": matrix.tolist()}}


def single_label_scores(
    probabilities: Tensor, label: Tensor, names: Sequence[str], positive: str | None = None
) -> Aggregate:
    """Scores where each sample has one of K classes.

    Args:
        probabilities: (N, K) float64, softmax.
        label: (N,) int64, 0 to K - 1.
        names: Of the K classes.
        positive: Of two classes, the one that precision, recall, f1 and average_precision are of.

    Returns:
        Metrics, without those that are not defined, and score -> number of classes for which it is not defined:

        - accuracy: share of samples whose most likely class is the label (the first one of equals).
        - balanced_accuracy: mean recall over classes that occur in the labels. Brodersen et al. (2010), ICPR.
        - precision: tp / (tp + fp), of classes that occur in the predictions.
        - recall: tp / (tp + fn), of classes that occur in the labels.
        - f1: 2 tp / (2 tp + fp + fn), of classes that occur in labels or predictions (as scikit-learn).
        - auroc: area under the ROC curve, each class against the rest; of classes with samples in both.
          Hanley and McNeil (1982), Radiology 143, 29-36. From torchmetrics, exact to 1e-7 (as average_precision).
        - average_precision: sum of precision times gain in recall over thresholds, for the same classes.
        - ece: expected calibration error, see `reliability`. Guo et al. (2017), ICML, eq. 3; 15 bins.
        - nll: mean of -log(probability of the label), in nats.

        Precision to average_precision are given for each class, `f1/<name>`, and as their mean over the classes
        (macro), `f1`; with a positive class the plain name is its score, and the mean is `f1_macro`.
    """
    n_classes = len(names)
    if not len(label) or probabilities.isnan().any():
        return {}, dict.fromkeys(("accuracy", "balanced_accuracy", *PER_CLASS, "ece", "nll"), n_classes)
    confusion = confusion_matrix(probabilities.argmax(1), label, n_classes).double()
    right, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    likelihood = probabilities.gather(1, label[:, None]).clamp(min=SMALLEST)
    recall = _divide(right, true)
    metrics = {
        "accuracy": (right.sum() / true.sum()).item(),
        "balanced_accuracy": recall.nanmean().item(),
        "ece": _calibration_error(probabilities, label),
        "nll": -likelihood.log().mean().item(),
    }
    by_class = _by_class(right, predicted, true, probabilities, torch.nn.functional.one_hot(label, n_classes))
    metrics, undefined = _with_classes(metrics, by_class, names, positive)
    n_absent = int(recall.isnan().sum())
    return metrics, undefined | ({"balanced_accuracy": n_absent} if n_absent else {})


def multi_label_scores(probabilities: Tensor, labels: Tensor, names: Sequence[str]) -> Aggregate:
    """Scores where each sample has any of K labels, or none; one is given where its probability is above 0.5.

    Args:
        probabilities: (N, K) float64, sigmoid.
        labels: (N, K) integer, 0 or 1.
        names: Of the K labels.

    Returns:
        Metrics, without those that are not defined, and score -> number of labels for which it is not defined:

        - accuracy: share of right decisions, over samples and labels.
        - exact_match: share of samples with all decisions right.
        - precision, recall, f1, auroc, average_precision: of each label that is present, `f1/<name>`, and their mean
          over the labels, where defined as in `single_label_scores`.
        - ece: as in `single_label_scores`, over all N * K decisions, each between two classes.
    """
    if not len(labels) or probabilities.isnan().any():
        return {}, dict.fromkeys(("accuracy", "exact_match", *PER_CLASS, "ece"), len(names))
    given, true = probabilities > 0.5, labels.bool()
    metrics = {
        "accuracy": (given == true).double().mean().item(),
        "exact_match": (given == true).all(1).double().mean().item(),
        "ece": _calibration_error(probabilities, labels),
    }
    right, n_given, n_true = (x.sum(0).double() for x in (given & true, given, true))
    return _with_classes(metrics, _by_class(right, n_given, n_true, probabilities, labels), names)


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


def _by_class(
    right: Tensor, predicted: Tensor, true: Tensor, probabilities: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Score -> (K,) float64, NaN where not defined; from (K,) numbers of samples and (N, K) zeros and ones."""
    return {
        "precision": _divide(right, predicted),
        "recall": _divide(right, true),
        "f1": _divide(2 * right, true + predicted),
        "auroc": _ranking(binary_auroc, probabilities, labels),
        "average_precision": _ranking(binary_average_precision, probabilities, labels),
    }


def _with_classes(
    metrics: dict[str, float], classes: dict[str, Tensor], names: Sequence[str], positive: str | None = None
) -> Aggregate:
    """Adds the scores, (K,) float64, of each class and of the positive one, or their mean where they are defined."""
    undefined = {}
    for score, values in classes.items():
        by_name = dict(zip(names, values.tolist(), strict=True))
        mean = values.nanmean().item()
        plain = {score: mean} if positive is None else {score: by_name[positive], f"{score}_macro": mean}
        metrics = metrics | plain | {f"{score}/{name}": value for name, value in by_name.items()}
        undefined[score] = int(values.isnan().sum())
    return {k: v for k, v in metrics.items() if not math.isnan(v)}, {k: n for k, n in undefined.items() if n}


def _ranking(score: Callable[[Tensor, Tensor], Tensor], probabilities: Tensor, labels: Tensor) -> Tensor:
    """A binary score of each class, NaN if all samples or none have it, (K,) float64."""
    defined = (labels == 1).any(0) & (labels == 0).any(0)
    columns = zip(probabilities.unbind(1), labels.unbind(1), defined.tolist(), strict=True)
    return torch.tensor([score(p, t).item() if ok else torch.nan for p, t, ok in columns], dtype=torch.float64)


def _calibration_error(probabilities: Tensor, label: Tensor) -> float:
    confidence, accuracy, count = reliability(probabilities, label)
    return float(np.nansum(np.abs(accuracy - confidence) * count) / count.sum())


def _divide(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole, torch.nan)
