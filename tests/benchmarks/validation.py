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
from harness import Goal, Report, Samples, Table, alternate, ratio
from scipy.ndimage import label
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex, BinaryPrecision, BinaryRecall

from project.data.statistics import SplitStatistics
from project.metrics.segmentation import class_counts, overlap_scores
from project.models.unet import UNet
from project.tasks.base import Task
from project.tasks.segmentation import SegmentationTask
from project.tasks.translation import TranslationTask

BATCH = 8


def make_batch(size: int) -> dict[str, Tensor]:
    """Images with targets, masks and numbers of objects."""
    arrays = {role: np.stack(Samples(role, BATCH, size)) for role in ("image", "target", "mask")}
    arrays["instances"] = np.stack([label(mask)[0] for mask in arrays["mask"]]).astype(np.uint16)
    batch = {role: torch.from_numpy(array) for role, array in arrays.items()}
    return batch | {"index": torch.arange(BATCH)}


def statistics_of(batch: dict[str, Tensor]) -> dict[str, Any]:
    """As the data file would hold them."""
    counted = SplitStatistics()
    for role in ("image", "target"):
        for array in batch[role]:
            counted.add(role, array.numpy())
    pixels = torch.bincount(batch["mask"].flatten()).tolist()
    return {"mask": dict(zip("01", pixels, strict=True)), **counted.summary()}


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
    """Normalize and predict."""
    for batch in batches:
        x = (batch["image"].float() - offset) / scale
        net(x.contiguous(memory_format=torch.channels_last))


def passes(batch: dict[str, Tensor], size: int, quick: bool) -> Report:
    """Whole validation passes."""
    report, rows, n = Report(), [], 1 if quick else 2
    for name, (task, roles) in tasks(batch, quick).items():
        task.eval()
        task.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        batches = [{role: batch[role] for role in ("image", "index", *roles)} for _ in range(n)]
        batches = [{**one, "index": one["index"] + BATCH * i} for i, one in enumerate(batches)]
        numbers = task.statistics["image"][0]
        with torch.inference_mode():
            variants: dict[str, Callable[[], object]] = {
                "bare": lambda t=task, b=batches, c=numbers: bare(t.net, b, c["mean"], c["std"]),
                "shipped": lambda t=task, b=batches: shipped(t, b),
            }
            seconds = alternate(variants, rounds=1 if quick else 5)
        value = ratio(seconds, "shipped", "bare")
        rows.append([name, *(1e3 * statistics.median(values) / n for values in seconds.values()), value])
        what = f"validating with rows of scores against a bare forward pass: {name}"
        report.goals.append(Goal(what, value, "≤ 1.15"))
    note = f"Batches of {BATCH} images of {size} x {size} pixels; loss and scores of each image, metrics at the end."
    columns = ["task", "bare, ms a batch", "with scores, ms a batch", "ratio"]
    report.tables.append(Table("Validation", columns, rows, note))
    return report


def counting(report: Report, mask: Tensor, quick: bool) -> None:
    """Pixels of each class that are right, too many, missing."""
    predicted = mask.roll(3, 2)
    kinds = (BinaryF1Score, BinaryJaccardIndex, BinaryPrecision, BinaryRecall)
    collection = MetricCollection([kind(validate_args=False) for kind in kinds])

    def by_hand() -> None:
        for k in range(2):
            p, t = predicted == k, mask == k
            for both in (p & t, p & ~t, ~p & t):
                both.sum((1, 2))

    hand, ours = "by hand: three sums per class", "class_counts and overlap_scores"
    variants: dict[str, Callable[[], object]] = {
        hand: by_hand,
        ours: lambda: overlap_scores(class_counts(predicted, mask, 2)),
        "torchmetrics, MetricCollection of four, validate_args=False": lambda: collection.update(predicted, mask),
    }
    seconds = alternate(variants, rounds=1 if quick else 15)
    rows = [[name, 1e3 * statistics.median(values), ratio(seconds, name, hand)] for name, values in seconds.items()]
    what = "Dice, IoU, precision and recall per image against counting pixels by hand"
    report.goals.append(Goal(what, ratio(seconds, ours, hand), "≤ 2"))
    note = f"A batch of {BATCH}. torchmetrics gives the pooled scores only."
    report.tables.append(Table("Counting pixels", ["what", "ms a batch", "by hand = 1"], rows, note))


def measure(quick: bool) -> Report:
    """Batches of 8 images of 256 px, two classes."""
    torch.manual_seed(0)
    size = 64 if quick else 256
    batch = make_batch(size)
    report = passes(batch, size, quick)
    counting(report, batch["mask"], quick)
    return report
