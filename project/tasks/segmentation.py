"""Semantic segmentation: the class of each pixel; and, where single objects are annotated, their number."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from project.errors import UserError
from project.tasks.base import Batch, Results, Rows, Task
from project.tasks.losses import CrossEntropy, fit_to_data
from project.tasks.objects import boundary_class, components, count_scores, match, split_at_boundary, split_touching
from project.tasks.overlap import boundary_f1, class_counts, overlap_scores
from project.tasks.pictures import draw_counts, draw_segmentation

SCORES = ("dice", "iou", "precision", "recall", "boundary_f1")
COUNTS = ("tp", "fp", "fn")
IGNORED = -100  # what torch's losses ignore
OBJECTS = ("n_true", "n_predicted", "n_matched")


class SegmentationTask(Task):
    """Predict the class of each pixel, `mask`, from `image`.

    A prediction is the probability of each class, (B, K, H, W). Class 0 is background: it has its own scores in no
    mean, and what is not background is an object. Where the file has `instances`, the objects in the prediction are
    counted and matched with them.

    Empty masks: a class that is neither in the mask nor in the prediction of an image has no score there, which is
    counted under "undefined"; one that is predicted where there is none scores 0.

    Args:
        net: Maps normalised (B, C, H, W) to logits (B, K, H, W), one per class; one more for `objects: boundary`.
        loss: Of logits and classes (B, H, W); cross entropy by default.
        objects: How the predicted foreground becomes objects. "components": what is connected is one object.
            "distance": those are split at their waists. "boundary": the network learns the rims of objects as a class
            of its own, from `instances`, which separates objects that touch; for all scores a rim is foreground.
        min_size: Smaller objects are not counted, neither true nor predicted ones, in pixels.
        spacing: For "distance", centres nearer than this are of one object, in pixels; a third of an object's diameter.
        tolerance: Of the boundary score, in pixels.
        options: See `project.tasks.base.Task`.
    """

    roles: ClassVar[tuple[str, ...]] = ("image", "mask")
    optional_roles: ClassVar[tuple[str, ...]] = ("instances",)
    leading: ClassVar[dict[str, Literal["min", "max", "zero"]]] = {
        "dice": "max",
        "iou": "max",
        "dice_pooled": "max",
        "boundary_f1": "max",
        "object_f1": "max",
        "count_error": "min",
        "count_pearson": "max",
        "count_bias": "zero",
        "iou_pooled": "max",
    }

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module | None = None,
        objects: Literal["components", "distance", "boundary"] = "components",
        min_size: int = 10,
        spacing: float = 6.0,
        tolerance: float = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(net, loss or CrossEntropy(), **options)
        self.names = self.classes.get("mask", [])
        self.n_classes = len(self.names) + (objects == "boundary")  # of the network
        if len(self.names) < 2:
            raise UserError(
                "the dataset has no mask with at least two classes; add `mask` or `instances` to its config"
            )
        self.objects, self.min_size, self.spacing, self.tolerance = objects, min_size, spacing, tolerance
        counts = [float(self.statistics["mask"].get(str(value), 0)) for value in range(len(self.names))]
        if objects == "boundary":
            self.roles = ("image", "mask", "instances")  # type: ignore[misc]
        fit_to_data(
            self.loss,
            class_counts=None if objects == "boundary" else counts,  # nothing counts the pixels of rims beforehand
            ignore_index=None if self.ignore_index is None else IGNORED,
        )
        self.check_baseline()

    @property
    def scoring(self) -> dict[str, float]:
        """What counts as a boundary and as an object."""
        return {"tolerance": self.tolerance, "min_size": self.min_size}

    def to_units(self, output: Tensor) -> Tensor:
        """Logits -> probabilities (B, K, H, W); with `objects: boundary` the rim's are the last."""
        if output.shape[1] != self.n_classes:
            told = ", ".join([*self.names, "rim"][: self.n_classes])
            raise UserError(
                f"the network gives {output.shape[1]} channels, but there are {self.n_classes} classes ({told})"
            )
        return output.softmax(1)

    def encode_target(self, batch: Batch) -> Tensor:
        """Classes (B, H, W) int64, and -100 where nothing is annotated."""
        mask = batch["mask"].long()
        target = mask
        if self.objects == "boundary":
            target = target.masked_fill(boundary_class(batch["instances"]), len(self.names))
        if self.ignore_index is not None:  # which may be the very number of the rims
            target = target.masked_fill(mask == self.ignore_index, IGNORED)
        return target

    def compute_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss; where nothing is annotated it is not defined, and a training step then learns nothing."""
        if self.ignore_index is None:
            return super().compute_loss(output, target)
        # Focal loss would give NaN and Lovasz no number at all, so any class stands in; and nobody asks the device.
        nothing = (target == IGNORED).all()
        loss = super().compute_loss(output, target.masked_fill(nothing, 0))
        return loss.masked_fill(nothing, 0.0 if self.training else torch.nan)

    def class_map(self, probabilities: Tensor) -> Tensor:
        """(B, K, H, W) -> the most probable class (B, H, W) int64; a rim belongs to the likeliest object class."""
        return self._without_rims(most_probable(probabilities), probabilities)

    def _without_rims(self, classes: Tensor, probabilities: Tensor) -> Tensor:
        n = len(self.names)
        if self.n_classes == n:
            return classes
        return torch.where(classes == n, 1 + most_probable(probabilities[:, 1:n]), classes)

    def label_objects(self, probabilities: np.ndarray, annotated: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (K, H, W) of one image, and the annotated pixels (H, W) -> object numbers (H, W) int32."""
        classes = most_probable(torch.from_numpy(probabilities)[None])[0]
        return self._objects(classes.numpy(), annotated)

    def _objects(self, classes: np.ndarray, annotated: np.ndarray | None) -> np.ndarray:
        """As `label_objects`, from the most probable classes, of which a rim is one."""
        foreground = classes > 0
        if annotated is not None:
            foreground &= annotated
        if self.objects == "boundary":
            return split_at_boundary(foreground & (classes < len(self.names)), foreground, self.min_size)
        if self.objects == "distance":
            return split_touching(foreground, self.min_size, self.spacing)
        return components(foreground, self.min_size)

    def score(self, prediction: Tensor, batch: Batch) -> Rows:
        """Scores and counts of pixels per class, `dice/<class>`; numbers of objects where they are annotated."""
        target, n = batch["mask"].long(), len(self.names)
        classes = most_probable(prediction)
        predicted = self._without_rims(classes, prediction)
        counts = class_counts(predicted, target, n, self.ignore_index)
        scores = overlap_scores(counts)
        scores["boundary_f1"] = boundary_f1(predicted, target, n, self.ignore_index, self.tolerance)
        columns = {**scores, **counts}
        rows = {f"{name}/{self.names[k]}": columns[name][:, k] for name in columns for k in range(n)}
        rows["n_annotated"] = (counts["tp"] + counts["fn"]).sum(1)
        return rows | (self._score_objects(classes, batch) if "instances" in batch else {})

    def _score_objects(self, classes: Tensor, batch: Batch) -> Rows:
        found = []
        arrays = (x.cpu().numpy() for x in (classes, batch["mask"], batch["instances"]))
        for predicted, mask, instances in zip(*arrays, strict=True):
            annotated = None if self.ignore_index is None else mask != self.ignore_index
            objects = self._objects(predicted, annotated)
            truth = instances.astype(np.int32) * (1 if annotated is None else annotated)
            # What is too small to be found is not missed either.
            sizes = np.bincount(truth.ravel())
            found.append(match(objects, np.where(sizes[truth] < self.min_size, 0, truth)))
        return {name: torch.tensor([float(getattr(m, name)) for m in found], dtype=torch.float64) for name in OBJECTS}

    def aggregate(self, rows: Rows) -> tuple[dict[str, float], dict[str, int]]:
        """Means over the images in which a score is defined, `_pooled` ones over all pixels; macro over the objects'.

        With more than one class besides the background each has its metrics, and the plain name is their mean.
        """
        names = self.names[1:]
        metrics: dict[str, float] = {}
        undefined: dict[str, int] = {}
        found = {s: torch.stack([rows[f"{s}/{name}"].nanmean() for name in names]) for s in SCORES}
        pooled = overlap_scores({c: torch.stack([rows[f"{c}/{name}"].sum() for name in names])[None] for c in COUNTS})
        found |= {f"{s}_pooled": values[0] for s, values in pooled.items()}
        for score, values in found.items():
            metrics[score] = values.nanmean().item()
            if len(names) > 1:
                metrics |= {f"{score}/{name}": value for name, value in zip(names, values.tolist(), strict=True)}
        for score in SCORES:
            count = sum(int(rows[f"{score}/{name}"].isnan().sum()) for name in names)
            undefined |= {score: count} if count else {}
        if "n_true" in rows:
            counted, not_counted = count_scores(*(rows[name] for name in OBJECTS))
            metrics, undefined = metrics | counted, undefined | not_counted
        return {name: value for name, value in metrics.items() if value == value}, undefined

    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        """Input, true and predicted classes or objects, and where they differ."""
        shown = []
        for sample in samples:
            probabilities = sample["prediction"]
            classes = self.class_map(torch.from_numpy(probabilities)[None])[0].numpy()
            annotated = None if self.ignore_index is None else sample["mask"] != self.ignore_index
            objects = self.label_objects(probabilities, annotated) if "instances" in sample else None
            shown.append({**sample, "classes": classes, "objects": objects})
        return draw_segmentation(shown, self.names, self.ignore_index)

    def draw_summary(self, results: Results) -> Figure | None:
        """Predicted against true number of objects."""
        if "n_true" not in results.rows:
            return None
        return draw_counts(results.rows["n_true"].numpy(), results.rows["n_predicted"].numpy())

    def to_files(self, prediction: np.ndarray) -> dict[str, np.ndarray]:
        """The class of each pixel, and object numbers."""
        classes = self.class_map(torch.from_numpy(prediction)[None])[0].numpy()
        objects = self.label_objects(prediction)
        return {"": classes.astype(_dtype(classes)), "_objects": objects.astype(_dtype(objects))}


def most_probable(probabilities: Tensor) -> Tensor:
    """(B, K, H, W) -> the most probable class (B, H, W), the first of equals; as `argmax(1)`.

    Class by class, which is many times faster on a CPU.
    """
    best, classes = probabilities[:, 0], torch.zeros_like(probabilities[:, 0], dtype=torch.int64)
    for k in range(1, probabilities.shape[1]):
        better = probabilities[:, k] > best
        best, classes = torch.where(better, probabilities[:, k], best), classes.masked_fill(better, k)
    return classes


def _dtype(numbers: np.ndarray) -> np.dtype:
    """The smallest unsigned integers that hold these."""
    return np.min_scalar_type(int(numbers.max(initial=0)))
