"""Semantic segmentation: the class of each pixel; and, where single objects are annotated, their number."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from project.data.batch import Tensors
from project.data.dataset_facts import DatasetFacts
from project.data.object_statistics import median_diameter
from project.errors import UserError
from project.losses import CrossEntropy, fit_to_data
from project.metrics.base import EvaluationResult
from project.metrics.instances import ObjectMetrics
from project.metrics.segmentation import BoundaryF1, OverlapMetrics
from project.tasks.base import Task
from project.tasks.figures import draw_segmentation, draw_true_against_predicted
from project.tasks.objects import components, relative_depth, split_at_depth, split_touching

IGNORED = -100  # what torch's losses ignore


class SegmentationTask(Task):
    """Predict the class of each pixel, `mask`, from `image`.

    A prediction is the probability of each class, (B, K, H, W). Every class has its scores; mean scores are over the
    classes that are not background, which the dataset names, or over all where there is none.

    Objects are found where the dataset has `instances`, with which they are matched, or where `objects` asks for them:
    connected parts of one class that is not background. Each object, true or predicted, is of one class.

    Empty masks: a class that is neither in the mask nor in the prediction of an image has no score there, which is
    counted under "undefined"; one that is predicted where there is none scores 0.

    Args:
        net: Maps normalized (B, C, H, W) to logits (B, K, H, W), one per class; one more for `objects: depth`.
        loss: Of logits and classes (B, H, W); cross entropy by default.
        objects: How the predicted pixels of a class become objects. "components": connected pixels are one object.
            "distance": those are split at their necks. "depth": the network also learns how deep each pixel is in its
            object, from `instances`, from 0 at the boundary to 1 in the middle, whose peaks become objects
            (watershed). By default "components" where the dataset has `instances`, else there are no objects.
        min_size: Smaller predicted objects are removed, in pixels; true objects never are. By default half the size
            that one in a hundred training objects is below.
        spacing: For "distance", centers nearer than this are of one object, in pixels; by default a third of the
            median diameter of the training objects.
        background: Class of the mask that is left out of mean scores, from the datamodule; None where all count.
        has_instances: Whether the dataset has `instances`, from the datamodule.
        options: See `project.tasks.base.Task`.
    """

    kind = "segmentation"
    target_kind = "mask"
    inputs: Sequence[str] = ("image", "mask")
    optional_inputs = ("instances",)
    default_metrics = (OverlapMetrics, BoundaryF1, ObjectMetrics)

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module | None = None,
        objects: Literal["components", "distance", "depth"] | None = None,
        min_size: int | None = None,
        spacing: float | None = None,
        background: str | None = None,
        has_instances: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(net, loss or CrossEntropy(), **options)
        self.names = self.classes.get("mask", [])
        self.n_classes = len(self.names)
        if self.n_classes < 2:
            raise UserError(
                "the dataset has no mask with at least two classes; add `mask` or `instances` to its config"
            )
        if background is not None and background not in self.names:
            raise UserError(f"background: no class of the mask is called {background}; prepare the dataset again")
        self.background, self.has_instances = background, has_instances
        # A class number that stands for "not annotated" is no class.
        self.scored = [k for k in range(self.n_classes) if k != self.ignore_index]
        self.foreground = [k for k in self.scored if self.names[k] != background]
        self.objects = objects or ("components" if has_instances else None)
        of_data = self.statistics.get("instances", {}).get("area_percentiles", {})
        self.min_size = int(of_data.get("1", 0) / 2) if min_size is None else min_size
        self.spacing = (median_diameter(self.statistics) or 18.0) / 3 if spacing is None else spacing
        self.inputs = self.needed_inputs({"objects": objects})
        self.check_baseline(self.n_classes)
        counts = [float(self.statistics["mask"].get(str(value), 0)) for value in range(self.n_classes)]
        fit_to_data(self.loss, class_counts=counts, ignore_index=None if self.ignore_index is None else IGNORED)

    @property
    def prediction_settings(self) -> dict[str, Any]:
        return {"background": self.background, "depth of objects": self.objects == "depth"}

    @classmethod
    def needed_inputs(cls, options: dict[str, Any]) -> tuple[str, ...]:
        return (*cls.inputs, "instances") if options.get("objects") == "depth" else tuple(cls.inputs)

    @classmethod
    def network_channels(cls, data: DatasetFacts, options: dict[str, Any]) -> tuple[int, int | None]:
        return data.n_channels["image"], len(data.classes["mask"]) + (options.get("objects") == "depth")

    def decode_output(self, output: Tensor) -> Tensor:
        """Logits -> probabilities (B, K, H, W); with `objects: depth` the last channel is the depth, 0 to 1."""
        self.check_output(output, [*self.names, "depth"] if self.objects == "depth" else self.names)
        classes = output[:, : self.n_classes].softmax(1)
        return classes if self.objects != "depth" else torch.cat([classes, output[:, self.n_classes :].sigmoid()], 1)

    def make_target(self, batch: Tensors) -> Tensor:
        """Classes (B, H, W) int64; with `objects: depth` classes and depth, (B, 2, H, W) float32."""
        classes = self.class_target(batch)
        return classes if self.objects != "depth" else torch.stack([classes, relative_depth(batch["instances"])], 1)

    def class_target(self, batch: Tensors) -> Tensor:
        """Classes (B, H, W) int64, and -100 where nothing is annotated."""
        mask = batch["mask"].long()
        return mask if self.ignore_index is None else mask.masked_fill(mask == self.ignore_index, IGNORED)

    def compute_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of the classes; with `objects: depth` plus the relative entropy of the depth, a probability."""
        if self.objects != "depth":
            return self._class_loss(output, target)
        classes, depth = target[:, 0].long(), target[:, 1]
        entropy = torch.special.entr(depth) + torch.special.entr(1 - depth)
        cross_entropy = functional.binary_cross_entropy_with_logits(output[:, -1], depth, reduction="none")
        annotated = classes != IGNORED
        error = ((cross_entropy - entropy) * annotated).sum() / annotated.sum().clamp(min=1)
        return self._class_loss(output[:, : self.n_classes], classes) + error

    def _class_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Where nothing is annotated it is not defined, and a training step then learns nothing."""
        if self.ignore_index is None:
            return super().compute_loss(output, target)
        # Focal loss would give NaN and Lovasz no number at all, so any class is taken; the device is not waited for.
        nothing = (target == IGNORED).all()
        loss = super().compute_loss(output, target.masked_fill(nothing, 0))
        return loss.masked_fill(nothing, 0.0 if self.training else torch.nan)

    def class_map(self, probabilities: Tensor, batch: Tensors | None = None) -> Tensor:
        """(B, K, H, W) -> the most probable class (B, H, W) int64; in a batch it is stored, for all its metrics."""
        batch = {} if batch is None else batch
        if "class_map" not in batch:
            batch["class_map"] = most_probable(probabilities[:, : self.n_classes])
        return batch["class_map"]

    def label_objects(self, probabilities: np.ndarray, annotated: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (K, H, W) of one image, and the annotated pixels (H, W) -> object numbers (H, W) int32."""
        classes = self.class_map(torch.from_numpy(probabilities)[None])[0].numpy()
        return self.find_objects(classes, probabilities[-1], annotated)[0]

    def find_objects(
        self, classes: np.ndarray, depth: np.ndarray, annotated: np.ndarray | None
    ) -> tuple[np.ndarray, list[int]]:
        """Objects of one image, class by class, so that touching objects of two classes stay two.

        Args:
            classes: (H, W) most probable classes.
            depth: (H, W) the last channel of the prediction, which counts with `objects: depth`.
            annotated: (H, W) bool, or None where all pixels are.

        Returns:
            Object numbers (H, W) int32, and the number of objects of each class in `foreground`.
        """
        numbers, counts = np.zeros(classes.shape, np.int32), list[int]()
        for k in self.foreground:
            part = classes == k if annotated is None else (classes == k) & annotated
            if self.objects == "depth":
                objects = split_at_depth(part, depth, self.min_size)
            elif self.objects == "distance":
                objects = split_touching(part, self.min_size, self.spacing)
            else:
                objects = components(part, self.min_size)
            numbers = np.where(objects > 0, objects + sum(counts), numbers)
            counts.append(int(objects.max(initial=0)))
        return numbers.astype(np.int32, copy=False), counts

    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        background = None if self.background is None else self.names.index(self.background)
        shown = []
        for sample in samples:
            probabilities = sample["prediction"]
            classes = self.class_map(torch.from_numpy(probabilities)[None])[0].numpy()
            annotated = None if self.ignore_index is None else sample["mask"] != self.ignore_index
            objects = self.label_objects(probabilities, annotated) if "instances" in sample else None
            shown.append({**sample, "classes": classes, "objects": objects})
        return draw_segmentation(shown, self.names, self.ignore_index, background)

    def draw_summary(self, results: EvaluationResult) -> Figure | None:
        if "n_true" not in results.rows:
            return None
        pair = results.rows["n_true"].numpy(), results.rows["n_predicted"].numpy()
        return draw_true_against_predicted([pair], ["number of objects"])

    def prediction_files(
        self, prediction: np.ndarray, spread: np.ndarray | None = None, rounded: bool = False
    ) -> dict[str, np.ndarray]:
        arrays = {"": self.class_map(torch.from_numpy(prediction)[None])[0].numpy()}
        if self.objects:
            arrays["_objects"] = self.label_objects(prediction)
        files = {
            suffix: array.astype(np.min_scalar_type(int(array.max(initial=0)))) for suffix, array in arrays.items()
        }
        return files if spread is None else files | {"_spread": spread.max(0)}

    def prediction_row(
        self, prediction: np.ndarray, files: dict[str, np.ndarray], spread: np.ndarray | None = None
    ) -> dict[str, Any]:
        classes, objects = files[""], files.get("_objects")
        counts = np.bincount(classes.ravel(), minlength=self.n_classes)
        row = {f"pixels/{name}": int(n) for name, n in zip(self.names, counts, strict=True)}
        if objects is None:
            return row
        row["objects"] = int(objects.max())
        for k in self.foreground if len(self.foreground) > 1 else ():
            row[f"objects/{self.names[k]}"] = int(np.count_nonzero(np.unique(objects[classes == k])))
        return row


def most_probable(probabilities: Tensor) -> Tensor:
    """(B, K, H, W) -> the most probable class (B, H, W), the first of equals; as `argmax(1)`.

    Class by class, which is many times faster on a CPU.
    """
    best, classes = probabilities[:, 0], torch.zeros_like(probabilities[:, 0], dtype=torch.int64)
    for k in range(1, probabilities.shape[1]):
        better = probabilities[:, k] > best
        best, classes = torch.where(better, probabilities[:, k], best), classes.masked_fill(better, k)
    return classes
