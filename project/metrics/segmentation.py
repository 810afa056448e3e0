"""Metrics of predicted masks: overlap of classes and agreement of their boundaries, per image and pooled.

Pixel counts are whole numbers in float64, so that metrics do not depend on how a split was batched.

Empty masks: a class that is predicted where there is none scores 0; a class in neither mask is not defined for this
image (NaN).
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from project.data.batch import Tensors
from project.metrics.base import Aggregate, Direction, Metric, Rows

COUNTS = ("tp", "fp", "fn")


class ClassMetric(Metric):
    """Base of metrics with a value for each class: `dice/<class>`; `dice` is the mean over the foreground classes."""

    names: Sequence[str]

    def setup(self, task: Any) -> None:
        self.n_classes, self.ignore_index, self.class_map = task.n_classes, task.ignore_index, task.class_map
        self.scored, self.parts = task.scored, [task.names[k] for k in task.scored]
        self.main = [task.scored.index(k) for k in task.foreground]

    @property
    def tags(self) -> list[str]:
        return [f"/{part}" for part in self.parts]

    def of_scored(self, columns: Rows) -> Rows:
        """(B, K) columns of all classes -> those of the classes that are scored, (B,) each."""
        return self.by_part({name: values[:, self.scored] for name, values in columns.items()})

    def aggregate(self, rows: Rows) -> Aggregate:
        return self.mean_of_defined(rows, self.names)


class OverlapMetrics(ClassMetric):
    """Dice, IoU, precision and recall per class and image; `_pooled`: over all pixels; `_micro`: over classes too."""

    names = ("dice", "iou", "precision", "recall")

    directions: ClassVar[dict[str, Direction]] = dict.fromkeys(
        ("dice", "iou", "dice_pooled", "iou_pooled", "pixel_accuracy"), "max"
    )

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """Metrics and pixel counts of each class, and the number of annotated pixels."""
        classes = self.class_map(prediction, batch)
        counts = class_counts(classes, batch["mask"].long(), self.n_classes, self.ignore_index)
        annotated = (counts["tp"] + counts["fn"]).sum(1)
        return self.of_scored({**overlap_scores(counts), **counts}) | {"n_annotated": annotated}

    def aggregate(self, rows: Rows) -> Aggregate:
        metrics, undefined = super().aggregate(rows)
        sums = {count: torch.stack([rows[f"{count}{tag}"].sum() for tag in self.tags]) for count in COUNTS}
        for name, values in overlap_scores(sums).items():
            metrics |= self.with_mean(f"{name}_pooled", values)
        micro = overlap_scores({count: values.sum() for count, values in sums.items()})
        metrics |= {f"{name}_micro": micro[name].item() for name in ("dice", "iou")}
        return metrics | {"pixel_accuracy": micro["recall"].item()}, undefined


class BoundaryF1(ClassMetric):
    """Agreement of the boundaries of each class, see `boundary_f1`.

    Args:
        tolerance: Largest distance between partners, in pixels.
    """

    name = "boundary_f1"
    names = (name,)

    def __init__(self, tolerance: float = 2.0) -> None:
        self.tolerance = tolerance

    @property
    def settings(self) -> dict[str, float]:
        return {"tolerance": self.tolerance}

    def columns(self, prediction: Tensor, batch: Tensors) -> Rows:
        """The metric of each class."""
        masks = self.class_map(prediction, batch), batch["mask"].long()
        return self.of_scored({self.name: boundary_f1(*masks, self.n_classes, self.ignore_index, self.tolerance)})


def class_counts(
    predicted: Tensor, target: Tensor, n_classes: int, ignore_index: int | None = None
) -> dict[str, Tensor]:
    """Pixels of each class that are right, too many, and missing.

    Both masks are (B, H, W) integer, class of each pixel, 0 to K - 1, on one device. Pixels with `ignore_index` in
    `target` do not count, whatever is predicted there.

    Returns:
        tp, fp, fn: (B, K) float64 on the CPU (not every device has float64).
    """
    predicted, target = _small(predicted, target, n_classes, ignore_index)
    image = torch.arange(len(target), dtype=torch.int32, device=target.device)[:, None, None]
    cell = (image * (n_classes + 1) + target) * n_classes + predicted
    confusion = torch.bincount(cell.flatten(), minlength=len(target) * (n_classes + 1) * n_classes)
    # The row of the ignored pixels is left out.
    confusion = confusion.cpu().double().view(-1, n_classes + 1, n_classes)[:, :-1]
    tp = confusion.diagonal(dim1=1, dim2=2)
    return {"tp": tp, "fp": confusion.sum(1) - tp, "fn": confusion.sum(2) - tp}


def overlap_scores(counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Dice coefficient, intersection over union, precision and recall.

    From the counts tp, fp, fn of `class_counts`, (B, K); summed over images, (K,), they give the pooled scores.

    Returns:
        Of the same shape, float64, NaN for a class in neither mask:

        - dice: 2 tp / (2 tp + fp + fn). Dice (1945), Ecology 26, 297-302: "coincidence index".
        - iou: tp / (tp + fp + fn). Jaccard (1912), New Phytologist 11, 37-50: "coefficient of community".
        - precision: tp / (tp + fp); also NaN for a class that is not predicted.
        - recall: tp / (tp + fn); also NaN for a class that is not in the mask.
    """
    tp, fp, fn = counts["tp"], counts["fp"], counts["fn"]
    parts = {"dice": (2 * tp, 2 * tp + fp + fn), "iou": (tp, tp + fp + fn), "precision": (tp, tp + fp)}
    parts["recall"] = tp, tp + fn
    return {name: torch.where(whole > 0, part / whole, torch.nan) for name, (part, whole) in parts.items()}


def boundary_f1(
    predicted: Tensor, target: Tensor, n_classes: int, ignore_index: int | None = None, tolerance: float = 2
) -> Tensor:
    """How well the outlines of each class agree: the BF score of Csurka et al. (2013), BMVC, section 3.3.

    A boundary pixel of a class has one of its four neighbors, inside the image, in another class. Precision is the
    share of predicted boundary pixels with a true one of the same class within `tolerance`, recall the reverse; the
    score is their harmonic mean.

    Boundary pixels in or beside an ignored pixel (four neighbors) are dropped from both masks: they neither count nor
    serve as the partner of another. So what is predicted at ignored pixels has no influence.

    Arguments as of `class_counts`; `tolerance` is the largest Euclidean distance of partners, in pixels. The paper
    takes 0.75 % of the image's diagonal.

    Returns:
        (B, K) float64 on the CPU. 0 if only one of the masks has a boundary of the class; NaN if neither has one: the
        class is absent, or fills the image.
    """
    predicted, target = _small(predicted, target, n_classes, ignore_index)
    ignored = target == n_classes
    usable = ~(ignored | _beside_another(ignored))
    p_edge, t_edge = (_beside_another(x) & usable for x in (predicted, target))
    scores = []
    for k in range(n_classes):
        p, t = p_edge & (predicted == k), t_edge & (target == k)
        # A pixel has a partner within the tolerance exactly if it is in the dilation of all possible partners.
        precision, n_predicted = _hit_rate(p, _dilated(t, tolerance))
        recall, n_true = _hit_rate(t, _dilated(p, tolerance))
        both = precision + recall
        score = torch.where(both > 0, 2 * precision * recall / both, 0.0)
        scores.append(torch.where(n_predicted + n_true > 0, score, torch.nan))
    return torch.stack(scores, 1)


def _small(predicted: Tensor, target: Tensor, n_classes: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Both masks as small integers; an ignored pixel has class K in the target and 0 in the prediction."""
    predicted, target = predicted.int(), target.int()  # uint16 knows no comparison
    if ignore_index is not None:
        ignored = target == ignore_index
        predicted, target = predicted.masked_fill(ignored, 0), target.masked_fill(ignored, n_classes)
    small = torch.uint8 if n_classes < 256 else torch.int32
    return predicted.to(small), target.to(small)


def _beside_another(x: Tensor) -> Tensor:
    """Pixels of (B, H, W) with one of four neighbors, inside the image, of another value."""
    beside = torch.zeros_like(x, dtype=torch.bool)
    rows, columns = x[:, 1:] != x[:, :-1], x[:, :, 1:] != x[:, :, :-1]
    beside[:, 1:] |= rows
    beside[:, :-1] |= rows
    beside[:, :, 1:] |= columns
    beside[:, :, :-1] |= columns
    return beside


def _dilated(edge: Tensor, tolerance: float) -> Tensor:
    """Pixels within a Euclidean distance of a boundary pixel, (B, H, W) bool: row by row of a disc."""
    dilated, wide, width, height = edge.clone(), edge.clone(), 0, edge.shape[1]
    for dy in range(min(int(tolerance), height - 1), -1, -1):  # the rows of the disc become wider towards its middle
        while math.sqrt(dy**2 + (width + 1) ** 2) <= tolerance:
            width += 1
            wide[:, :, width:] |= edge[:, :, :-width]
            wide[:, :, :-width] |= edge[:, :, width:]
        dilated[:, dy:] |= wide[:, : height - dy]
        dilated[:, : height - dy] |= wide[:, dy:]
    return dilated


def _hit_rate(edge: Tensor, reachable: Tensor) -> tuple[Tensor, Tensor]:
    """Share of boundary pixels (B, H, W) that have a partner, 0 without any; and their number, (B,) float64."""
    hits, n = ((x.flatten(1).sum(1)).cpu().double() for x in (edge & reachable, edge))
    return torch.where(n > 0, hits / n, 0.0), n
