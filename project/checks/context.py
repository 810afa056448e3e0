"""Material for the checks: a copy of the task, and samples as the datamodule gives them."""

import copy
import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from project.checks import thresholds as limits
from project.data.batch import Tensors
from project.data.crops import middle, spread
from project.data.datamodule import ImageDataModule
from project.data.store import SplitReader
from project.optimizers import ADAMW, class_and_arguments
from project.tasks.base import Task

CROP = 256  # pixels: side of the middle of a training sample that is looked at
SMALL = {False: (2, 96), True: (4, 128)}  # full -> samples and side of a batch on which a U-Net takes a second a step


class Context:
    """Copies of the parts of an experiment, so that checks do not change the training.

    The datamodule is set up for "fit"; the trainer says on which device and with which clipping is trained. `full`
    checks compare more images and train on one batch; the quick ones do not.
    """

    def __init__(self, task: Task, datamodule: ImageDataModule, trainer: Trainer, full: bool = False) -> None:
        self.data, self.trainer, self.full = datamodule, trainer, full
        self.device = trainer.strategy.root_device if trainer.world_size == 1 else torch.device("cpu")
        self.task: Task = copy.deepcopy(task).to(self.device)
        self.train, self.val = (copy.copy(datamodule.datasets[split]) for split in ("train", "val"))
        self.train.augmentation = copy.deepcopy(self.train.augmentation)
        self.readers: dict[str, SplitReader] = {"train": self.train.reader, "val": self.val.reader}
        self.suggested_rate: float | None = None  # of the range test, where the experiment's is far off
        self.clip = float(trainer.gradient_clip_val or math.inf)
        self.clips_values = trainer.gradient_clip_algorithm == "value"  # else the norm

    @property
    def intensity_arrays(self) -> list[str]:
        """Those of "image" and "target" that the task reads."""
        return [name for name in ("image", "target") if name in self.train.roles]

    @property
    def target_array(self) -> str | None:
        """The array with a value or class per pixel that the network learns; None where it learns other things."""
        return next((name for name in ("target", "mask", "instances") if name in self.train.roles), None)

    def column(self, name: str) -> list[Any]:
        """The "ids", "groups" or "labels" of all images, training first."""
        return [value for reader in self.readers.values() for value in getattr(reader, name)]

    def read(self, array: str, side: int) -> list[np.ndarray]:
        """The middle, at most `side` pixels, of some training images from all over the split."""
        reader = self.train.reader
        indices = spread(len(reader), limits.LOOKED_AT[self.full])
        return [reader.read(array, i, middle(reader.shapes[array][i], side)) for i in indices]

    def batch(self, n: int, epoch: int = 0, side: int | None = CROP) -> Tensors:
        """A training batch on the device, as the loader gives it: at most `n` samples from all over the split.

        Image-like arrays are cut to a square of `side` pixels in their middle; None leaves them whole.
        """
        samples = []
        for index in np.random.default_rng(0).permutation(len(self.train))[:n].tolist():
            sample = {name: value.clone() for name, value in self.train[epoch, index].items()}
            for name in {"image", "target", "mask", "instances"} & sample.keys() if side else ():
                y0, y1, x0, x1 = middle(sample[name].shape, side or 0)
                sample[name] = sample[name][..., y0:y1, x0:x1]
            samples.append(sample)
        return {name: torch.cat([sample[name] for sample in samples]).to(self.device) for name in samples[0]}

    def small_batch(self, factor: int = 1) -> Tensors:
        """A batch that trains fast: few samples, and only the middle where the task learns something per pixel."""
        n, side = SMALL[self.full]
        n = min(factor * n, len(self.train), max(self.data.batch_size, 1))
        return self.batch(n, side=side if self.task.is_dense else None)

    def fresh_task(self) -> Task:
        """Another copy of the task in training mode, with the random numbers of the device seeded."""
        torch.manual_seed(self.task.seed)
        return copy.deepcopy(self.task).train()

    @property
    def learning_rate(self) -> float | None:
        """Of the experiment; None if it is not given."""
        rate = class_and_arguments(self.task.optimizer or ADAMW)[1].get("lr")
        return float(rate) if isinstance(rate, int | float) and rate > 0 else None
