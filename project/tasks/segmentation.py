"""Semantic segmentation: the class of each pixel; and, where single objects are annotated, their number."""

import logging
import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from project.errors import UserError
from project.losses import CrossEntropy, fit_to_data
from project.metrics.instances import (
    OBJECTS,
    Matches,
    boundary_class,
    components,
    count_scores,
    match_by_class,
    split_at_boundary,
    split_touching,
)
from project.metrics.segmentation import boundary_f1, class_counts, overlap_scores
from project.tasks.base import Batch, EvaluationResult, Rows, Task
from project.tasks.figures import draw_counts, draw_segmentation

SCORES = ("dice", "iou", "precision", "recall", "boundary_f1")
COUNTS = ("tp", "fp", "fn")
IGNORED = -100  # what torch's losses ignore

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
        net: Maps normalised (B, C, H, W) to logits (B, K, H, W), one per class; one more for `objects: boundary`.
        loss: Of logits and classes (B, H, W); cross entropy by default.
        objects: How the predicted pixels of a class become objects. "components": connected pixels are one object.
            "distance": those are split at their waists. "boundary": the network learns the rims of objects as a class
            of its own, from `instances`, which separates objects that touch; for all scores a rim is part of its
            object. By default "components" where the dataset has `instances`, else there are no objects.
        min_size: Smaller predicted objects are removed, in pixels; true objects never are.
        spacing: For "distance", centres nearer than this are of one object, in pixels; a third of an object's diameter.
        tolerance: Of the boundary score, in pixels.
        background: Class of the mask that is left out of mean scores, from the datamodule; None where all count.
        has_instances: Whether the dataset has `instances`, from the datamodule.
        options: See `project.tasks.base.Task`.
    """

    kind = "segmentation"
    target_kind = "mask"
    inputs: ClassVar[tuple[str, ...]] = ("image", "mask")
    optional_inputs: ClassVar[tuple[str, ...]] = ("instances",)
    main_metrics: ClassVar[dict[str, Literal["min", "max", "zero"]]] = {
        "dice": "max",
        "iou": "max",
        "dice_pooled": "max",
        "boundary_f1": "max",
        "object_f1": "max",
        "count_error": "min",
        "count_pearson": "max",
        "count_bias": "zero",
        "iou_pooled": "max",
        "pixel_accuracy": "max",
    }

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module | None = None,
        objects: Literal["components", "distance", "boundary"] | None = None,
        min_size: int = 0,
        spacing: float = 6.0,
        tolerance: float = 2.0,
        background: str | None = None,
        has_instances: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(net, loss or CrossEntropy(), **options)
        self.names = self.classes.get("mask", [])
        self.n_classes = len(self.names) + (objects == "boundary")  # of the network
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
        self.min_size, self.spacing, self.tolerance = min_size, spacing, tolerance
        self.warned = False
        counts = [float(self.statistics["mask"].get(str(value), 0)) for value in range(len(self.names))]
        if objects == "boundary":
            self.inputs = ("image", "mask", "instances")  # type: ignore[misc]
        fit_to_data(
            self.loss,
            class_counts=None if objects == "boundary" else counts,  # nothing counts the pixels of rims beforehand
            ignore_index=None if self.ignore_index is None else IGNORED,
        )
        self.check_baseline()

    @property
    def metric_settings(self) -> dict[str, float]:
        """What counts as a boundary."""
        return {"tolerance": self.tolerance}

    def decode_output(self, output: Tensor) -> Tensor:
        """Logits -> probabilities (B, K, H, W); with `objects: boundary` the rim's are the last."""
        if output.shape[1] != self.n_classes:
            told = ", ".join([*self.names, "rim"][: self.n_classes])
            raise UserError(
                f"the network gives {output.shape[1]} channels, but there are {self.n_classes} classes ({told})"
            )
        return output.softmax(1)

    def make_target(self, batch: Batch) -> Tensor:
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
        if len(self.foreground) == 1:
            return classes.masked_fill(classes == n, self.foreground[0])
        likeliest = torch.tensor(self.foreground, device=classes.device)[
            most_probable(probabilities[:, self.foreground])
        ]
        return torch.where(classes == n, likeliest, classes)

    def label_objects(self, probabilities: np.ndarray, annotated: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (K, H, W) of one image, and the annotated pixels (H, W) -> object numbers (H, W) int32."""
        batch = torch.from_numpy(probabilities)[None]
        classes = most_probable(batch)
        return self._objects(classes[0].numpy(), self._without_rims(classes, batch)[0].numpy(), annotated)[0]

    def _objects(
        self, classes: np.ndarray, predicted: np.ndarray, annotated: np.ndarray | None
    ) -> tuple[np.ndarray, list[int]]:
        """Objects of one image, class by class, so that touching objects of two classes stay two.

        Args:
            classes: (H, W) most probable classes, of which a rim is one.
            predicted: (H, W) the same, a rim being of the class of its object.
            annotated: (H, W) bool, or None where all pixels are.

        Returns:
            Object numbers (H, W) int32, and the number of objects of each class in `foreground`.
        """
        numbers, counts = np.zeros(classes.shape, np.int32), []
        for k in self.foreground:
            part = predicted == k if annotated is None else (predicted == k) & annotated
            if self.objects == "boundary":
                found = split_at_boundary(part & (classes == k), part, self.min_size)
            elif self.objects == "distance":
                found = split_touching(part, self.min_size, self.spacing)
            else:
                found = components(part, self.min_size)
            counts.append(int(found.max(initial=0)))
            numbers = np.where(found > 0, found + sum(counts[:-1]), numbers) if len(self.foreground) > 1 else found
        return numbers.astype(np.int32, copy=False), counts

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
        return rows | (self._score_objects(classes, predicted, batch) if "instances" in batch else {})

    def _score_objects(self, classes: Tensor, predicted: Tensor, batch: Batch) -> Rows:
        arrays = (x.cpu().numpy() for x in (classes, predicted, batch["mask"], batch["instances"]))
        rows = [self._match(*each) for each in zip(*arrays, strict=True)]
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

    def _match(
        self, classes: np.ndarray, predicted: np.ndarray, mask: np.ndarray, instances: np.ndarray
    ) -> dict[str, float]:
        """Numbers of objects in one image, of all classes, and `n_true/<class>` where there are several."""
        annotated = None if self.ignore_index is None else mask != self.ignore_index
        numbers, counts = self._objects(classes, predicted, annotated)
        truth = instances.astype(np.int32) * (1 if annotated is None else annotated)
        found = match_by_class(numbers, truth, counts, mask, self.foreground)
        whole = Matches(len(np.unique(truth[truth > 0])), sum(counts), 0, 0.0) if len(found) > 1 else found[0]
        row = {name: float(getattr(whole, name)) for name in OBJECTS}
        if len(found) > 1:
            row |= {name: math.fsum(getattr(each, name) for each in found) for name in ("n_matched", "iou_sum")}
            for k, each in zip(self.foreground, found, strict=True):
                row |= {f"{name}/{self.names[k]}": float(getattr(each, name)) for name in OBJECTS}
        if self.min_size > 1:
            sizes = np.bincount(truth.ravel())[1:]
            row["n_true_small"] = float(np.count_nonzero((sizes > 0) & (sizes < self.min_size)))
        return row

    def aggregate(self, rows: Rows) -> tuple[dict[str, float], dict[str, int]]:
        """Means over the images in which a score is defined; `_pooled` over all pixels, `_micro` over all classes too.

        Every class has its metrics; the plain name is the mean over the classes that are not background. With objects
        of several classes, the plain name is of all objects, which match only within their class.
        """
        names = [self.names[k] for k in self.scored]
        foreground = [position for position, k in enumerate(self.scored) if k in self.foreground]
        undefined: dict[str, int] = {}
        found = {s: torch.stack([rows[f"{s}/{name}"].nanmean() for name in names]) for s in SCORES}
        sums = {c: torch.stack([rows[f"{c}/{name}"].sum() for name in names]) for c in COUNTS}
        found |= {f"{s}_pooled": values for s, values in overlap_scores(sums).items()}
        metrics = {score: values[foreground].nanmean().item() for score, values in found.items()}
        micro = overlap_scores({c: values.sum() for c, values in sums.items()})
        metrics |= {f"{score}_micro": micro[score].item() for score in ("dice", "iou")}
        metrics["pixel_accuracy"] = micro["recall"].item()
        for score, values in found.items():
            metrics |= {f"{score}/{name}": value for name, value in zip(names, values.tolist(), strict=True)}
        for score in SCORES:
            count = sum(int(rows[f"{score}/{self.names[k]}"].isnan().sum()) for k in self.foreground)
            undefined |= {score: count} if count else {}
        if "n_true" in rows:
            several = len(self.foreground) > 1
            for tag in ("", *(f"/{self.names[k]}" for k in self.foreground if several)):
                counted, not_counted = count_scores(*(rows[f"{name}{tag}"] for name in OBJECTS))
                metrics |= {f"{name}{tag}": value for name, value in counted.items()}
                undefined |= {f"{name}{tag}": value for name, value in not_counted.items()}
        return {name: value for name, value in metrics.items() if value == value}, undefined

    def details(self, rows: Rows) -> dict[str, Any]:
        """True objects that `min_size` keeps the prediction from finding."""
        n = int(rows["n_true_small"].sum()) if "n_true_small" in rows else 0
        if n and not self.warned:
            log.warning("%d true objects are smaller than min_size, %d pixels: they cannot be found", n, self.min_size)
            self.warned = True
        return {"true_objects_below_min_size": n} if n else {}

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
