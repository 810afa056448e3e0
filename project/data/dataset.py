"""One split as a torch dataset, and the samplers that say what is read when."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from project.data.store import SplitReader, Window
from project.errors import UserError, listed

Key = tuple[int, int]  # (epoch, index)
Batch = dict[str, torch.Tensor]


class Augmentation(Protocol):
    """Anything that transforms the arrays of a sample from a seed."""

    def __call__(self, arrays: dict[str, np.ndarray], seed: np.random.SeedSequence) -> dict[str, np.ndarray]:
        """Arrays (C, H, W) or (H, W) -> arrays of the same layout and dtype."""
        ...


class SplitDataset(Dataset[Batch]):
    """Reads samples of one split in the dtype of the file: crops and augments them, and changes no value.

    What is drawn for a sample is a function of (seed, epoch, index), whatever the number of workers or devices.

    Args:
        reader: The split.
        roles: Arrays to read, such as ("image", "target"); "label" is read wherever the file has it.
        crop: Side of a random square in pixels; None reads whole images.
        crops_per_image: How many crops of each image make an epoch.
        augmentation: Applied after cropping.
        seed: First part of every sample's seed.

    Raises:
        UserError: The file lacks a role, or has images smaller than the crop.
    """

    def __init__(
        self,
        reader: SplitReader,
        roles: Sequence[str],
        crop: int | None = None,
        crops_per_image: int = 1,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        for role in roles:
            if role not in reader.dtypes:
                raise UserError(f'"{reader.path}" has no {role}, which this task needs; add it to its data config')
        if crop is not None and crop < 1:
            raise UserError(f"data.crop is {crop}; take a number of pixels, or null for whole images")
        small = [i for i, s in zip(reader.ids, reader.shapes["image"], strict=True) if crop and min(s[-2:]) < crop]
        if small:
            raise UserError(f"data.crop is {crop}, but these images are smaller:\n{listed(small)}")
        self.reader, self.roles, self.crop, self.crops_per_image = reader, tuple(roles), crop, crops_per_image
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.reader) * self.crops_per_image

    def __getitem__(self, key: Key) -> Batch:
        """One sample as a batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A whole batch, (B, C, h, w) or (B, h, w) in the dtype of the file, with `index` (B,) into the split.

        The samples go straight into one array per role: half the copying of collating single samples.
        """
        batch: dict[str, np.ndarray] = {}
        for position, (epoch, index) in enumerate(keys):
            for role, array in self._sample(epoch, index).items():
                if role not in batch:
                    batch[role] = np.empty((len(keys), *array.shape), array.dtype)
                if batch[role].shape[1:] != array.shape:
                    raise UserError(
                        f"samples of {batch[role].shape[1:]} and {array.shape} cannot share a batch: a transform turns "
                        "or resizes images that are not square; set `data.crop`"
                    )
                batch[role][position] = array
        indices = np.array([index // self.crops_per_image for _, index in keys])
        batch["index"] = indices
        if self.reader.labels is not None:
            batch["label"] = self.reader.labels[indices]
        return {role: torch.from_numpy(array) for role, array in batch.items()}

    def _sample(self, epoch: int, index: int) -> dict[str, np.ndarray]:
        where, draw = np.random.SeedSequence([self.seed, epoch, index]).spawn(2)
        image = index // self.crops_per_image
        window = self._window(image, where)
        arrays = {role: self.reader.read(role, image, window) for role in self.roles}
        return self.augmentation(arrays, draw) if self.augmentation else arrays

    def _window(self, image: int, seed: np.random.SeedSequence) -> Window | None:
        if self.crop is None:
            return None
        height, width = self.reader.shapes["image"][image][-2:]
        y, x = np.random.default_rng(seed).integers([height - self.crop + 1, width - self.crop + 1]).tolist()
        return y, y + self.crop, x, x + self.crop


class ShuffledSampler(Sampler[Key]):
    """All samples in an order drawn from (seed, epoch), shared out among ranks in equal numbers.

    The one to `len % world_size` samples left over are left out, others in each epoch: ranks must take the same number
    of steps. It yields (epoch, index), so that the epoch reaches persistent workers too.
    """

    def __init__(self, length: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.seed, self.rank, self.world_size, self.epoch = length, seed, rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.world_size

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        for index in order[self.rank : len(self) * self.world_size : self.world_size].tolist():
            yield self.epoch, index


class EvaluationBatches(Sampler[list[Key]]):
    """Every sample exactly once over all ranks, in batches of images of one size.

    Ranks may hold different numbers of samples: nothing is repeated to make them even, which would falsify metrics.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index in range(rank, len(shapes), world_size):
            by_shape.setdefault(shapes[index], []).append(index)
        self.batches = [
            [(0, index) for index in indices[start : start + batch_size]]
            for indices in by_shape.values()
            for start in range(0, len(indices), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)
