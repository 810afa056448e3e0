"""Semantic segmentation: the class of each pixel; and, where single objects are annotated, their number."""

import logging
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
from project.tasks.figures import draw_counts, draw_segmentation
from project.tasks.objects import (
    boundary_class,
    components,
    relative_depth,
    split_at_boundary,
    split_at_depth,
    split_touching,
)

IGNORED = -100  # what torch's losses ignore
LEARNED = ("boundary", "depth")  # ways to separate objects that need an output of the network

log = logging.getLogger("project")


class SegmentationTask(Task):
    """Predict the class of each pixel, `mask`, from `image`.

    A prediction is the probability of each class, (B, K, H, W). Every class has its scores; mean scores are over the
    classes that are not background, which the dataset names, or over all where there is none.

    Objects are found where the dataset has `instances`, with which they are matched, or where `objects` asks for them:
    connected parts of one class that is not background. Each object, true or predicted, is of one class.

    Empty masks: a class that is neither in the mask nor in the prediction of an image has no score there, which is
    counted under "undefined"; one that is predicted where there is none scores 0.

    Args:
        net: Maps normalized (B, C, H, W) to logits (B, K, H, W), one per class; one more for `objects: boundary` and
            `objects: depth`.
        loss: Of logits and classes (B, H, W); cross entropy by default.
        objects: How the predicted pixels of a class become objects. "components": connected pixels are one object.
            "distance": those are split at their necks. "boundary": the network learns the rims of objects as a class
            of its own, from `instances`, which separates objects that touch; for all scores a rim is part of its
            object. "depth": the network also learns how deep each pixel is in its object, from 0 at the boundary to
            1 at the center, whose peaks become objects (watershed). By default "components" where the dataset has
            `instances`, else there are no objects.
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
        objects: Literal["components", "distance", "boundary", "depth"] | None = None,
        min_size: int | None = None,
        spacing: float | None = None,
        background: str | None = None,
        has_instances: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(net, loss or CrossEntropy(), **options)
        self.names = self.classes.get("mask", [])
        self.n_outputs = n_outputs(self.names, objects)  # of the network
        self.n_classes = len(self.names) + (objects == "boundary")  # between which it decides
        if len(self.names) < 2:
            raise UserError(
                "the dataset has no mask with at least two classes; add `mask` or `instances` to its config"
            )
        if background is not None and background not in self.names:
            raise UserError(f"background: no class of the mask is called {background}; prepare the dataset again")
        self.background, self.has_instances = background, has_instances
        # A class number that stands for "not annotated" is no class.
        self.scored = [k for k in range(len(self.names)) if k != self.ignore_index]
        self.foreground = [k for k in self.scored if self.names[k] != background]
        self.objects = objects or ("components" if has_instances else None)
        of_data = self.statistics.get("instances", {}).get("area_percentiles", {})
        self.min_size = int(of_data.get("1", 0) / 2) if min_size is None else min_size
        self.spacing = (median_diameter(self.statistics) or 18.0) / 3 if spacing is None else spacing
        self.warned = False
        counts = [float(self.statistics["mask"].get(str(value), 0)) for value in range(len(self.names))]
        self.inputs = self.needed_inputs({"objects": objects})
        self.check_baseline(self.n_classes)
        fit_to_data(
            self.loss,
            class_counts=None if objects == "boundary" else counts,  # nothing counts the pixels of rims beforehand
            ignore_index=None if self.ignore_index is None else IGNORED,
        )

    @classmethod
    def needed_inputs(cls, options: dict[str, Any]) -> tuple[str, ...]:
        """Boundaries and depth are learned from `instances`."""
        return (*cls.inputs, "instances") if options.get("objects") in LEARNED else tuple(cls.inputs)

    @classmethod
    def network_channels(cls, data: DatasetFacts, options: dict[str, Any]) -> tuple[int, int | None]:
        """One output per class, and one for boundaries or depth."""
        return data.n_channels["image"], n_outputs(data.classes["mask"], options.get("objects"))

    def decode_output(self, output: Tensor) -> Tensor:
        """Logits -> probabilities (B, K, H, W).

        With `objects: boundary` the rim's are the last; with `objects: depth` the last channel is the depth, 0 to 1.
        """
        if output.shape[1] != self.n_outputs:
            names = ", ".join([*self.names, {"boundary": "rim"}.get(str(self.objects), "depth")][: self.n_outputs])
            raise UserError(f"the network gives {output.shape[1]} channels, but {self.n_outputs} are needed ({names})")
        classes = output[:, : self.n_classes].softmax(1)
        return classes if self.objects != "depth" else torch.cat([classes, output[:, self.n_classes :].sigmoid()], 1)

    def make_target(self, batch: Tensors) -> Tensor:
        """Classes (B, H, W) int64; with `objects: depth` classes and depth, (B, 2, H, W) float32."""
        classes = self.class_target(batch)
        return classes if self.objects != "depth" else torch.stack([classes, relative_depth(batch["instances"])], 1)

    def class_target(self, batch: Tensors) -> Tensor:
        """Classes (B, H, W) int64, and -100 where nothing is annotated."""
        mask = batch["mask"].long()
        target = mask
        if self.objects == "boundary":
            target = target.masked_fill(boundary_class(batch["instances"]), len(self.names))
        if self.ignore_index is not None:  # which may be the very number of the rims
            target = target.masked_fill(mask == self.ignore_index, IGNORED)
        return target

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

    def class_map(self, probabilities: Tensor) -> Tensor:
        """(B, K, H, W) -> the most probable class (B, H, W) int64; a rim belongs to the most probable object class."""
        return self.class_maps(probabilities, {})[1]

    def class_maps(self, probabilities: Tensor, batch: Tensors) -> tuple[Tensor, Tensor]:
        """Most probable classes (B, H, W) int64, of which the rim is one with `objects: boundary`; and without rims.

        Args:
            probabilities: (B, K, H, W).
            batch: Where the maps are stored, so that all metrics of a batch share them.
        """
        if "class_map" not in batch:
            probabilities = probabilities[:, : self.n_classes]
            batch["class_map_with_rims"] = most_probable(probabilities)
            batch["class_map"] = self._without_rims(batch["class_map_with_rims"], probabilities)
        return batch["class_map_with_rims"], batch["class_map"]

    def _without_rims(self, classes: Tensor, probabilities: Tensor) -> Tensor:
        n = len(self.names)
        if self.n_classes == n:
            return classes
        if len(self.foreground) == 1:
            return classes.masked_fill(classes == n, self.foreground[0])
        numbers = torch.tensor(self.foreground, device=classes.device)
        return torch.where(classes == n, numbers[most_probable(probabilities[:, self.foreground])], classes)

    def label_objects(self, probabilities: np.ndarray, annotated: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (K, H, W) of one image, and the annotated pixels (H, W) -> object numbers (H, W) int32."""
        classes, predicted = (x[0].numpy() for x in self.class_maps(torch.from_numpy(probabilities)[None], {}))
        return self.find_objects(classes, predicted, probabilities[-1], annotated)[0]

    def find_objects(
        self, classes: np.ndarray, predicted: np.ndarray, depth: np.ndarray, annotated: np.ndarray | None
    ) -> tuple[np.ndarray, list[int]]:
        """Objects of one image, class by class, so that touching objects of two classes stay two.

        Args:
            classes: (H, W) most probable classes, of which a rim is one.
            predicted: (H, W) the same, a rim being of the class of its object.
            depth: (H, W) the last channel of the prediction, which counts with `objects: depth`.
            annotated: (H, W) bool, or None where all pixels are.

        Returns:
            Object numbers (H, W) int32, and the number of objects of each class in `foreground`.
        """
        numbers, counts = np.zeros(classes.shape, np.int32), []
        for k in self.foreground:
            part = predicted == k if annotated is None else (predicted == k) & annotated
            if self.objects == "boundary":
                objects = split_at_boundary(part & (classes == k), part, self.min_size)
            elif self.objects == "depth":
                objects = split_at_depth(part, depth, self.min_size)
            elif self.objects == "distance":
                objects = split_touching(part, self.min_size, self.spacing)
            else:
                objects = components(part, self.min_size)
            counts.append(int(objects.max(initial=0)))
            numbers = np.where(objects > 0, objects + sum(counts[:-1]), numbers)
        return numbers.astype(np.int32, copy=False), counts

    def draw(self, samples: list[dict[str, Any]]) -> Figure:
        """Input, true and predicted classes or objects, and where they differ."""
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
        """Predicted against true number of objects."""
        if "n_true" not in results.rows:
            return None
        return draw_counts(results.rows["n_true"].numpy(), results.rows["n_predicted"].numpy())

    def finish_evaluation(self, split: str) -> None:
        """As of every task, and a warning of true objects that are too small to be found."""
        super().finish_evaluation(split)
        n = self.results.details.get("true_objects_below_min_size") if self.results else None
        if n and not self.warned:
            log.warning("%d true objects are smaller than min_size, %d pixels: they cannot be found", n, self.min_size)
            self.warned = True

    def prediction_files(
        self, prediction: np.ndarray, spread: np.ndarray | None = None, rounded: bool = False
    ) -> dict[str, np.ndarray]:
        """The class of each pixel, object numbers where there are objects, and the largest spread."""
        arrays = {"": self.class_map(torch.from_numpy(prediction)[None])[0].numpy()}
        if self.objects:
            arrays["_objects"] = self.label_objects(prediction)
        files = {suffix: array.astype(_dtype(array)) for suffix, array in arrays.items()}
        return files if spread is None else files | {"_spread": spread.max(0)}

    def prediction_row(
        self, prediction: np.ndarray, files: dict[str, np.ndarray], spread: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Numbers of pixels and of objects of each class."""
        classes = files[""]
        counts = np.bincount(classes.ravel(), minlength=len(self.names))
        row = {f"pixels/{name}": int(n) for name, n in zip(self.names, counts, strict=False)}
        if "_objects" in files:
            objects = files["_objects"]
            row["objects"] = int(objects.max())
            if len(classes_of_objects := [k for k, name in enumerate(self.names) if name != self.background]) > 1:
                row |= {
                    f"objects/{self.names[k]}": int(np.count_nonzero(np.unique(objects[classes == k])))
                    for k in classes_of_objects
                }
        return row


def n_outputs(classes: Sequence[str], objects: Any) -> int:
    """Number of outputs of a network for these classes of the mask and this setting of `objects`."""
    return len(classes) + (objects in LEARNED)


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
