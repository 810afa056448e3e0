"""Metrics of predicted objects: counts, F1 and average precision of matched objects, and panoptic quality."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from project.data.batch import Tensors
from project.metrics.base import Aggregate, Direction, Metric, Rows, correlation

OBJECTS = ("n_true", "n_predicted", "n_matched", "iou_sum", "object_ap")
THRESHOLDS = np.arange(50, 100, 5) / 100  # of the intersection over union, for the average precision


class Matches(NamedTuple):
    """Numbers of true and predicted objects of an image, and intersections over union of the pairs that match."""

    n_true: int
    n_predicted: int
    ious: tuple[float, ...]

    @property
    def n_matched(self) -> int:
        """Pairs of a true and a predicted object."""
        return len(self.ious)

    @property
    def iou_sum(self) -> float:
        """Divided by n_matched, the segmentation quality of Kirillov et al. (2019), "Panoptic Segmentation", eq. 2.

        The same number in whatever order objects are numbered.
        """
        return math.fsum(self.ious)

    @property
    def object_ap(self) -> float:
        """Matched / (matched + missed + wrong), the mean over `THRESHOLDS`; NaN where there is no object.

        As in the 2018 Data Science Bowl: Caicedo et al. (2019), Nat. Methods 16, 1247-1253.
        """
        n_matched = (np.array(self.ious)[:, None] > THRESHOLDS).sum(0)
        n_objects = self.n_true + self.n_predicted - n_matched
        return float((n_matched / n_objects).mean()) if n_objects[0] else math.nan

    def columns(self, tag: str = "") -> dict[str, float]:
        """All numbers, with the ending of a class."""
        return {f"{name}{tag}": float(getattr(self, name)) for name in OBJECTS}


class ObjectMetrics(Metric):
    """Counts and matches of objects, see `count_scores`; where the data has `instances`.

    With objects of several classes each has its metrics, `object_f1/<class>`; the plain name is of all objects, which
    match only within their class.
    """

    directions: ClassVar[dict[str, Direction]] = {
        **{"object_f1": "max", "object_ap": "max", "panoptic_quality": "max"},
        **{"count_error": "min", "count_pearson": "max", "count_bias": "zero"},
    }

    def setup(self, task: Any) -> None:
        self.task, self.classes = task, task.foreground
        self.parts = [task.names[k] for k in self.classes]

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """Numbers of true, predicted and matched objects of each image."""
        if "instances" not in batch:
            return {}
        maps = self.task.class_map(prediction, batch), prediction[:, -1], batch["mask"], batch["instances"]
        rows = [self._row(*image) for image in zip(*(x.cpu().numpy() for x in maps), strict=True)]
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

    def _row(self, classes: np.ndarray, depth: np.ndarray, mask: np.ndarray, instances: np.ndarray) -> dict[str, float]:
        annotated = None if self.task.ignore_index is None else mask != self.task.ignore_index
        numbers, counts = self.task.find_objects(classes, depth, annotated)
        truth = instances.astype(np.int32) * (1 if annotated is None else annotated)
        matches = match_by_class(numbers, truth, counts, mask, self.classes)
        if len(matches) == 1:
            return matches[0].columns()
        n_true = len(np.unique(truth[truth > 0]))
        row = Matches(n_true, sum(counts), tuple(iou for pairs in matches for iou in pairs.ious)).columns()
        for tag, of_class in zip(self.tags, matches, strict=False):
            row |= of_class.columns(tag)
        return row

    def aggregate(self, rows: Rows) -> Aggregate:
        metrics, undefined = dict[str, float](), dict[str, int]()
        for tag in dict.fromkeys(["", *self.tags]) if "n_true" in rows else ():
            values, counts = count_scores(*(rows[f"{name}{tag}"] for name in OBJECTS))
            metrics |= {f"{name}{tag}": value for name, value in values.items()}
            undefined |= {f"{name}{tag}": count for name, count in counts.items()}
        return metrics, undefined


def match(predicted: np.ndarray, target: np.ndarray) -> Matches:
    """Pair predicted with true objects whose intersection over union is above 0.5.

    No object can be in two pairs, so nothing has to be assigned: the common pixels of such a pair are more than half of
    either object, and two disjoint objects cannot both hold more than half of a third. Kirillov et al. (2019),
    "Panoptic Segmentation", section 4.1.

    Args:
        predicted: (H, W) integer, object number of each pixel; any numbers, 0 and below are background.
        target: (H, W) integer.
    """
    true, t = np.unique(target[target > 0], return_counts=True)
    guessed, p = np.unique(predicted[predicted > 0], return_counts=True)
    both = (target > 0) & (predicted > 0)
    # Only pairs that share pixels are ever listed: the table of all pairs would be large and almost empty.
    row, column = np.searchsorted(true, target[both]), np.searchsorted(guessed, predicted[both])
    pairs, common = np.unique(row * len(guessed) + column, return_counts=True)
    row, column = np.divmod(pairs, len(guessed))
    iou = common / (t[row] + p[column] - common)
    return Matches(len(true), len(guessed), tuple(iou[iou > 0.5].tolist()))


def match_by_class(
    predicted: np.ndarray, target: np.ndarray, counts: Sequence[int], mask: np.ndarray, classes: Sequence[int]
) -> list[Matches]:
    """Matches of each class, of objects of the same class.

    Args:
        predicted: (H, W) object numbers from 1, those of the first class first.
        target: (H, W) true object numbers. The class of an object is the commonest of `classes` among its pixels; an
            object without any of them is in no class.
        counts: Number of predicted objects of each class.
        mask: (H, W) true class of each pixel.
        classes: Class numbers in `mask`; a single one has all true objects.
    """
    if len(classes) == 1:
        return [match(predicted, target)]
    votes = np.stack([np.bincount(target[mask == k], minlength=target.max() + 1) for k in classes], 1)
    votes[0] = 0  # no object
    true_class = np.where(votes.any(1), votes.argmax(1), -1)[target]
    ends = np.cumsum([0, *counts])
    return [
        match(np.where((predicted > low) & (predicted <= high), predicted, 0), np.where(true_class == k, target, 0))
        for k, (low, high) in enumerate(pairwise(ends))
    ]


def count_scores(
    n_true: Tensor, n_predicted: Tensor, n_matched: Tensor, iou_sum: Tensor, object_ap: Tensor
) -> tuple[dict[str, float], dict[str, int]]:
    """How well objects are counted and found over a split.

    The arguments are those of `Matches`, (N,) float64 each, one value per image.

    Returns:
        Metrics, without those that are not defined, and score -> number of images for which it is not defined:

        - count_error: mean over images of |predicted - true|.
        - count_bias: mean of predicted - true.
        - count_pearson: correlation of the counts; not defined for fewer than two images or if either is constant.
        - object_f1: mean over images of 2 matched / (true + predicted); not defined for an image without any object.
        - object_f1_pooled: the same ratio of the sums over all images.
        - object_ap: mean of the average precisions; not defined for an image without any object.
        - matched_iou: mean intersection over union of all matched pairs.
        - panoptic_quality: object_f1_pooled * matched_iou. Kirillov et al. (2019), "Panoptic Segmentation", eq. 2.
    """
    error, both = n_predicted - n_true, n_true + n_predicted
    present = both > 0
    metrics = {
        "count_error": error.abs().mean().item(),
        "count_bias": error.mean().item(),
        "count_pearson": correlation(n_true, n_predicted).item(),
        "object_f1": (2 * n_matched[present] / both[present]).mean().item(),
        "object_f1_pooled": (2 * n_matched.sum() / both.sum()).item(),
        "object_ap": object_ap.nanmean().item(),
        "matched_iou": (iou_sum.sum() / n_matched.sum()).item(),
        "panoptic_quality": (2 * iou_sum.sum() / both.sum()).item(),
    }
    undefined = {name: len(n_true) for name, value in metrics.items() if math.isnan(value)}
    if not present.all():
        undefined |= dict.fromkeys(("object_f1", "object_ap"), int((~present).sum()))
    return {name: value for name, value in metrics.items() if not math.isnan(value)}, undefined
