"""Validation with scores of every sample against a bare forward pass over the same batches.

And the counting of pixels, from which Dice, IoU, precision and recall follow, against counting by hand and against
torchmetrics.
"""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from harness import Goal, Report, Table, alternate
from scipy.ndimage import gaussian_filter, label
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex, BinaryPrecision, BinaryRecall

from project.data.statistics import SplitStatistics
from project.metrics.image import image_scores
from project.metrics.instances import match
from project.metrics.segmentation import boundary_f1, class_counts, overlap_scores
from project.models.unet import UNet
from project.tasks.base import Task
from project.tasks.objects import components
from project.tasks.segmentation import SegmentationTask, most_probable
from project.tasks.translation import TranslationTask

BATCH = 8


def made_up(n: int, size: int) -> dict[str, Tensor]:
    """Smooth blobs with the noise of a camera; a target that is their square; their masks and numbers."""
    rng = np.random.default_rng(0)
    blobs = gaussian_filter(rng.random((n, 1, size, size), np.float32), (0, 0, 6, 6))
    blobs = (blobs - blobs.mean((2, 3), keepdims=True)) / blobs.std((2, 3), keepdims=True)
    instances = np.stack([label(image[0] > 1)[0] for image in blobs])
    noisy = [100 + 60 * np.clip(x, -1.5, None) + rng.normal(0, 3, x.shape) for x in (blobs, blobs**2)]
    arrays = {
        **dict(zip(("image", "target"), (x.astype(np.uint16) for x in noisy), strict=True)),
        "mask": (instances > 0).astype(np.uint8),
        "instances": instances.astype(np.uint16),
        "index": np.arange(n),
    }
    return {role: torch.from_numpy(array) for role, array in arrays.items()}


def statistics_of(batch: dict[str, Tensor]) -> dict[str, Any]:
    """As the data file would hold them."""
    found: dict[str, Any] = {"mask": dict(zip("01", torch.bincount(batch["mask"].flatten()).tolist(), strict=True))}
    counted = SplitStatistics()
    for role in ("image", "target"):
        for array in batch[role]:
            counted.add(role, array.numpy())
    return found | counted.summary()


def tasks(batch: dict[str, Tensor], quick: bool) -> dict[str, tuple[Task, tuple[str, ...]]]:
    """The shipped networks and losses, and the arrays that each reads."""
    data: dict[str, Any] = {"statistics": statistics_of(batch), "classes": {"mask": ["background", "cell"]}}
    cells = {**data, "background": "background"}
    objects = {**cells, "has_instances": True}
    unet = {"width": 2, "depth": 1} if quick else {"width": 16, "depth": 3}
    encoder = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=2)
    loss = smp.losses.DiceLoss("multiclass")
    return {
        "translation, U-Net": (TranslationTask(UNet(1, 1, **unet), **data), ("target",)),
        "segmentation, U-Net": (SegmentationTask(UNet(1, 2, **unet), loss, **cells), ("mask",)),
        "objects, U-Net": (SegmentationTask(UNet(1, 2, **unet), loss, **objects), ("mask", "instances")),
        "objects, ResNet-18 U-Net": (SegmentationTask(encoder, loss, **objects), ("mask", "instances")),
    }


def shipped(task: Task, batches: list[dict[str, Tensor]]) -> None:
    """All that validation does in a batch and at the end, but for Lightning."""
    task.on_validation_epoch_start()
    for batch in batches:
        task.validation_step(batch, 0)
    task.results = task.metrics.compute("val")


def bare(net: nn.Module, batches: list[dict[str, Tensor]], offset: float, scale: float) -> None:
    """Normalise and predict."""
    for batch in batches:
        x = (batch["image"].float() - offset) / scale
        net(x.contiguous(memory_format=torch.channels_last))


def by_hand(predicted: Tensor, target: Tensor) -> list[Tensor]:
    """Three sums for each class and image."""
    counts = []
    for k in range(2):
        p, t = predicted == k, target == k
        counts += [(p & t).sum((1, 2)), (p & ~t).sum((1, 2)), (~p & t).sum((1, 2))]
    return counts


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Milliseconds."""
    return {name: 1e3 * statistics.median(each) for name, each in seconds.items()}


def passes(report: Report, batch: dict[str, Tensor], size: int, quick: bool) -> None:
    """Whole validation passes."""
    rows = []
    n = 1 if quick else 2
    for name, (task, roles) in tasks(batch, quick).items():
        task.eval()
        task.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        batches = [{role: batch[role] for role in ("image", "index", *roles)} for _ in range(n)]
        batches = [{**each, "index": each["index"] + BATCH * i} for i, each in enumerate(batches)]
        numbers = task.statistics["image"][0]
        with torch.inference_mode():
            variants: dict[str, Callable[[], object]] = {
                "bare": lambda t=task, b=batches, c=numbers: bare(t.net, b, c["mean"], c["std"]),
                "shipped": lambda t=task, b=batches: shipped(t, b),
            }
            seconds = alternate(variants, rounds=1 if quick else 5)
        value = statistics.median(s / b for s, b in zip(seconds["shipped"], seconds["bare"], strict=True))
        found = medians(seconds)
        rows.append([name, found["bare"] / n, found["shipped"] / n, value])
        report.goals.append(
            Goal(f"validating with rows of scores against a bare forward pass: {name}", value, "≤ 1.15")
        )
    note = f"Batches of {BATCH} images of {size} x {size} pixels; loss and scores of each image, metrics at the end."
    report.tables.append(
        Table("Validation", ["task", "bare, ms a batch", "with scores, ms a batch", "ratio"], rows, note)
    )


def parts(report: Report, batch: dict[str, Tensor], quick: bool) -> None:
    """Where the time goes that the scores take, and counting."""
    target, mask = batch["target"].float(), batch["mask"]
    prediction = target + 10 * torch.randn(target.shape)
    probabilities = torch.stack([1.5 - mask.float(), mask + 0.4 * torch.randn(mask.shape)], 1).softmax(1)
    predicted = most_probable(probabilities)
    instances = batch["instances"].numpy().astype(np.int32)
    objects = [components(image > 0, 10) for image in predicted.numpy()]
    low, high = target.amin((0, 2, 3)), target.amax((0, 2, 3))
    collections = {
        checked: MetricCollection(
            [kind(validate_args=checked) for kind in (BinaryF1Score, BinaryJaccardIndex, BinaryPrecision, BinaryRecall)]
        )
        for checked in (True, False)
    }
    variants: dict[str, Callable[[], object]] = {
        "by hand: three sums per class": lambda: by_hand(predicted, mask),
        "class_counts and overlap_scores": lambda: overlap_scores(class_counts(predicted, mask, 2)),
        "the same, with an ignored value": lambda: overlap_scores(class_counts(predicted, mask, 2, 255)),
        "torchmetrics, MetricCollection of four": lambda: collections[True].update(predicted, mask),
        "torchmetrics, validate_args=False": lambda: collections[False].update(predicted, mask),
        "image_scores (MSE ... SSIM, float64)": lambda: image_scores(prediction, target, low, high),
        "most probable class": lambda: most_probable(probabilities),
        "boundary_f1": lambda: boundary_f1(predicted, mask, 2),
        "objects: components": lambda: [components(image > 0, 10) for image in predicted.numpy()],
        "objects: match": lambda: [match(p, t) for p, t in zip(objects, instances, strict=True)],
    }
    seconds = alternate(variants, rounds=1 if quick else 15)
    hand = seconds["by hand: three sums per class"]
    rows = [
        [name, 1e3 * statistics.median(each), statistics.median(s / h for s, h in zip(each, hand, strict=True))]
        for name, each in seconds.items()
    ]
    ours = next(row[2] for row in rows if row[0] == "class_counts and overlap_scores")
    report.goals.append(
        Goal("Dice, IoU, precision and recall per image against counting pixels by hand", float(ours), "≤ 2")
    )
    note = (
        f"A batch of {BATCH}. torchmetrics gives the pooled scores only; with `validate_args=False` it does not notice "
        "values that are no class."
    )
    report.tables.append(Table("Where the time goes", ["what", "ms a batch", "by hand = 1"], rows, note))


def measure(quick: bool) -> Report:
    """Batches of 8 images of 256 px, two classes."""
    torch.manual_seed(0)
    size, report = 64 if quick else 256, Report()
    batch = made_up(BATCH, size)
    passes(report, batch, size, quick)
    parts(report, batch, quick)
    return report
