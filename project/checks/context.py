"""Material for the checks: a copy of the task, and samples as the datamodule gives them."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from project.data.batch import Tensors
from project.data.datamodule import ImageDataModule
from project.data.dataset import SplitDataset
from project.data.statistics import ImageStatistics
from project.data.store import SplitReader, Window
from project.tasks.base import Task

CROP = 256  # pixels: side of the middle of a training sample that is looked at
SMALL = {False: (2, 96), True: (4, 128)}  # full -> samples and side of a batch on which a U-Net takes a second a step


class Context:
    """An experiment as checks see it. They work on copies, so that the training is not changed by them.

    Args:
        task: Of the experiment.
        datamodule: Set up for "fit".
        trainer: Says on which device, how long and with which clipping the experiment trains.
        full: Whether to compare more images, and to train on one batch. The quick checks do not.

    Attributes:
        train, val: Datasets of the splits, with their own augmentation.
        notes: What a check measured and a figure or a later check shows.
    """

    def __init__(self, task: Task, datamodule: ImageDataModule, trainer: Trainer, full: bool = False) -> None:
        self.data, self.trainer, self.full = datamodule, trainer, full
        self.device = trainer.strategy.root_device if trainer.world_size == 1 else torch.device("cpu")
        self.task: Task = copy.deepcopy(task).to(self.device)
        self.train, self.val = (_copied(datamodule.datasets[split]) for split in ("train", "val"))
        self.notes: dict[str, Any] = {}

    @property
    def readers(self) -> dict[str, SplitReader]:
        """Split -> reader, of training and validation."""
        return {"train": self.train.reader, "val": self.val.reader}

    @property
    def intensity_arrays(self) -> list[str]:
        """Those of "image" and "target" that the task reads."""
        return [name for name in ("image", "target") if name in self.train.roles]

    @property
    def target_array(self) -> str | None:
        """The array with a value or class per pixel that the network learns; None where it learns other things."""
        return next((name for name in ("target", "mask", "instances") if name in self.train.roles), None)

    def channel_names(self, array: str) -> list[str]:
        """One name per channel."""
        n = self.train.reader.shapes[array][0][0]
        names = self.data.channels.get(array, [])
        return list(names) if len(names) == n else [str(c) for c in range(n)]

    def image_statistics(self, split: str, array: str, name: str) -> np.ndarray:
        """(N, C): a field of `ImageStatistics` of each whole image of a split."""
        return self.readers[split].image_statistics[array][..., ImageStatistics._fields.index(name)]

    def batch(self, n: int, epoch: int = 0, side: int | None = CROP) -> Tensors:
        """A training batch on the device, as the loader gives it, of samples from all over the split.

        Args:
            n: Number of samples, at most as many as the split has.
            epoch: Seeds crops and augmentation.
            side: Arrays are cut to a square of this side in their middle; None leaves them whole.
        """
        order = np.random.default_rng(0).permutation(len(self.train))[:n]
        samples = []
        for index in order.tolist():
            sample = {name: value.clone() for name, value in self.train[epoch, index].items()}
            samples.append(sample if side is None else center(sample, side))
        return {name: torch.cat([sample[name] for sample in samples]).to(self.device) for name in samples[0]}

    def small_batch(self, factor: int = 1) -> Tensors:
        """A batch that trains fast: few samples, and only the middle where the task learns something per pixel."""
        n, side = SMALL[self.full]
        n = min(factor * n, len(self.train), max(self.data.batch_size, 1))
        return self.batch(n, side=side if self.task.is_dense else None)

    def fresh_task(self) -> Task:
        """Another copy of the task in training mode, with the random numbers of the device seeded."""
        torch.manual_seed(self.task.seed)
        task: Task = copy.deepcopy(self.task).train()
        return task

    @property
    def learning_rate(self) -> float | None:
        """The experiment's own."""
        rate = self.task.optimizer and self.task.optimizer["init_args"].get("lr")
        return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def _copied(dataset: SplitDataset) -> SplitDataset:
    dataset = copy.copy(dataset)
    dataset.augmentation = copy.deepcopy(dataset.augmentation)
    return dataset


def spread(n: int, most: int) -> list[int]:
    """At most `most` of `n` positions, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


def middle(shape: Sequence[int], side: int) -> Window:
    """The window (y0, y1, x0, x1) in the middle of an image (..., H, W), at most `side` pixels high and wide."""
    (y0, y1), (x0, x1) = ((start := max(size - side, 0) // 2, min(start + side, size)) for size in shape[-2:])
    return y0, y1, x0, x1


def center(batch: Tensors, side: int) -> Tensors:
    """The middle of all image-like arrays of a batch."""
    cut = dict(batch)
    for name in {"image", "target", "mask", "instances"} & batch.keys():
        y0, y1, x0, x1 = middle(batch[name].shape, side)
        cut[name] = batch[name][..., y0:y1, x0:x1]
    return cut
