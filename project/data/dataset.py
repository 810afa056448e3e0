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
        foreground: Share of the crops, between 0 and 1, that are centred on a pixel of a class of the mask other than
            0, each class of the image being equally likely. Images without such a class give random crops.
        augmentation: Applied after cropping.
        seed: First part of every sample's seed.

    Raises:
        UserError: The file lacks a role, has images smaller than the crop, or no mask to find the foreground in.
    """

    def __init__(
        self,
        reader: SplitReader,
        roles: Sequence[str],
        crop: int | None = None,
        crops_per_image: int = 1,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        foreground: float = 0.0,
    ) -> None:
        for role in roles:
            if role not in reader.dtypes and not (role == "label" and reader.labels is not None):
                raise UserError(f'"{reader.path}" has no {role}, which this task needs; add it to its data config')
        if crop is not None and crop < 1:
            raise UserError(f"data.crop is {crop}; take a number of pixels, or null for whole images")
        small = [i for i, s in zip(reader.ids, reader.shapes["image"], strict=True) if crop and min(s[-2:]) < crop]
        if small:
            raise UserError(f"data.crop is {crop}, but these images are smaller:\n{listed(small)}")
        if not 0 <= foreground <= 1 or (foreground and (crop is None or reader.mask_counts is None)):
            raise UserError(
                f"data.foreground_crops is {foreground}; it is a share from 0 to 1, and needs `data.crop` and a mask"
            )
        self.reader, self.crop, self.crops_per_image = reader, crop, crops_per_image
        self.roles = tuple(role for role in roles if role != "label")
        self.augmentation, self.seed, self.foreground = augmentation, seed, foreground

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
        rng = np.random.default_rng(seed)
        y, x = rng.integers([height - self.crop + 1, width - self.crop + 1]).tolist()
        if self.foreground and rng.random() < self.foreground and (pixel := self._foreground_pixel(image, rng)):
            # Centred as far as the border allows.
            y, x = (min(max(p - self.crop // 2, 0), n - self.crop) for p, n in zip(pixel, (height, width), strict=True))
        return y, y + self.crop, x, x + self.crop

    def _foreground_pixel(self, image: int, rng: np.random.Generator) -> tuple[int, int] | None:
        """A pixel of a class other than 0, the class drawn first: rare ones are as likely as common ones."""
        assert self.reader.mask_counts is not None
        present = np.flatnonzero(self.reader.mask_counts[image, 1:]) + 1
        if not len(present):
            return None
        mask = self.reader.read("mask", image)
        pixels = np.flatnonzero(mask == rng.choice(present))
        y, x = np.unravel_index(rng.choice(pixels), mask.shape)
        return int(y), int(x)


class ShuffledSampler(Sampler[Key]):
    """All samples in an order drawn from (seed, epoch), shared out among ranks in equal numbers.

    The one to `len % world_size` samples left over are left out, others in each epoch: ranks must take the same number
    of steps. It yields (epoch, index), so that the epoch reaches persistent workers too.

    Args:
        length: Number of samples.
        seed: Of the order.
        rank, world_size: Which of how many devices.
        labels: (length,) class of each sample, for balanced sampling: an epoch is as long as before, but holds every
            class as often as any other (to one sample), repeating those of rare classes evenly.
    """

    def __init__(
        self, length: int, seed: int = 0, rank: int = 0, world_size: int = 1, labels: np.ndarray | None = None
    ) -> None:
        self.length, self.seed, self.rank, self.world_size, self.epoch = length, seed, rank, world_size, 0
        self.members = [] if labels is None else [np.flatnonzero(labels == value) for value in np.unique(labels)]

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.world_size

    def __iter__(self) -> Iterator[Key]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self._balanced(rng) if self.members else self.length)
        for index in order[self.rank : len(self) * self.world_size : self.world_size].tolist():
            yield self.epoch, index

    def _balanced(self, rng: np.random.Generator) -> np.ndarray:
        """As many samples of each class; a class gives each of its samples once before it gives any again."""
        counts = np.full(len(self.members), self.length // len(self.members))
        counts[rng.permutation(len(counts))[: self.length % len(counts)]] += 1
        chosen = []
        for members, count in zip(self.members, counts, strict=True):
            rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
            chosen.append(np.concatenate(rounds)[:count])
        return np.concatenate(chosen)


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
