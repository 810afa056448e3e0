"""One split as a torch dataset, and the samplers that say what is read when."""

import copy
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from project.data.batch import Tensors
from project.data.buffers import Buffers
from project.data.statistics import SHIPPED
from project.data.store import SplitReader, Window
from project.errors import UserError, bullet_list

Key = tuple[int, int]  # (epoch, index)
WORD = 2**64 - 1
PER_IMAGE = {"label": "labels", "value": "values"}  # role without pixels -> attribute of the reader


class Augmentation(Protocol):
    """Anything that transforms the arrays of a sample from a seed."""

    def __call__(self, arrays: dict[str, np.ndarray], seed: np.random.SeedSequence) -> dict[str, np.ndarray]:
        """Arrays (C, H, W) or (H, W) -> arrays of the same layout and dtype."""
        ...


def stored_image_statistics(reader: SplitReader, images: Sequence[int]) -> torch.Tensor:
    """(B, C, 4) float32 statistics of these whole images, see `project.data.statistics.image_statistics`."""
    return torch.from_numpy(reader.image_statistics["image"][list(images)][..., SHIPPED].astype(np.float32))


class SplitDataset(Dataset[Tensors]):
    """Reads samples of one split in the dtype of the file: crops and augments them, and changes no value.

    What is drawn for a sample is a function of (seed, epoch, index), whatever the number of workers or devices.

    Args:
        reader: The split.
        roles: Arrays to read, such as ("image", "target"); "label" and "value" are read wherever the file has them.
        crop: Side of a random square in pixels; None reads whole images.
        crops_per_image: How many crops of each image make an epoch.
        foreground: Share of the crops, between 0 and 1, that are centred on a pixel of a class of the mask other than
            the background, each class of the image being equally likely. Images without such a class give random crops.
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
            if role not in reader.dtypes and getattr(reader, PER_IMAGE.get(role, ""), None) is None:
                raise UserError(f'"{reader.path}" has no {role}, which this task needs; add it to its data config')
        if crop is not None and crop < 1:
            raise UserError(f"data.crop is {crop}; take a number of pixels, or null for whole images")
        small = [i for i, s in zip(reader.ids, reader.shapes["image"], strict=True) if crop and min(s[-2:]) < crop]
        if small:
            raise UserError(f"data.crop is {crop}, but these images are smaller:\n{bullet_list(small)}")
        if not 0 <= foreground <= 1 or (foreground and (crop is None or reader.mask_counts is None)):
            raise UserError(
                f"data.foreground_crops is {foreground}; it is a share from 0 to 1, and needs `data.crop` and a mask"
            )
        self.reader, self.crop, self.crops_per_image = reader, crop, crops_per_image
        self.roles = tuple(role for role in roles if role not in PER_IMAGE)
        self.augmentation, self.seed, self.foreground = augmentation, seed, foreground
        self._buffers = Buffers()

    def __len__(self) -> int:
        return len(self.reader) * self.crops_per_image

    def __getitem__(self, key: Key) -> Tensors:
        """One sample as a batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Tensors:
        """A whole batch, see `project.data.batch.Batch`.

        Samples go straight from the file into one array per role, or through the augmentation.
        """
        images = [index // self.crops_per_image for _, index in keys]
        windows = self._windows(keys, images)
        batch = self._augmented(keys, images, windows) if self.augmentation else self._read(images, windows)
        batch["index"] = torch.from_numpy(np.array(images))
        if "image" in self.reader.image_statistics:
            batch["image_statistics"] = stored_image_statistics(self.reader, images)
        if self.reader.labels is not None:
            batch["label"] = torch.from_numpy(self.reader.labels[images])
        if self.reader.values is not None:
            batch["value"] = torch.from_numpy(self.reader.values[images].astype(np.float32))
        return batch

    def for_thread(self, pinned: bool = False) -> "SplitDataset":
        """The same samples, for another thread: reader and file are shared, memory and augmentation are its own.

        Args:
            pinned: Whether batches shall lie where a GPU can fetch them by itself.
        """
        other = copy.copy(self)
        other.augmentation, other._buffers = copy.deepcopy(self.augmentation), Buffers(pinned)
        return other

    def _read(self, images: list[int], windows: list[Window] | None) -> Tensors:
        batch: Tensors = {}
        for role in self.roles:
            shape = self._shape(role, images[0])
            if not windows:
                for image in images:
                    _check_alike(shape, self.reader.shapes[role][image])
            batch[role] = self._buffers.empty((len(images), *shape), self.reader.dtypes[role])
            self.reader.fill(role, images, windows, batch[role].numpy())
        return batch

    def _augmented(self, keys: Sequence[Key], images: list[int], windows: list[Window] | None) -> Tensors:
        assert self.augmentation is not None
        batch: Tensors = {}
        for position, (epoch, index) in enumerate(keys):
            image, window = images[position], windows[position] if windows else None
            arrays = {role: self.reader.read(role, image, window) for role in self.roles}
            seed = np.random.SeedSequence([self.seed, epoch, index], spawn_key=(1,))
            for role, array in self.augmentation(arrays, seed).items():
                if role not in batch:
                    batch[role] = self._buffers.empty((len(keys), *array.shape), array.dtype)
                _check_alike(tuple(batch[role].shape[1:]), array.shape)
                batch[role][position].numpy()[...] = array
        return batch

    def _shape(self, role: str, image: int) -> tuple[int, ...]:
        shape = self.reader.shapes[role][image]
        return shape if self.crop is None else (*shape[:-2], self.crop, self.crop)

    def _windows(self, keys: Sequence[Key], images: list[int]) -> list[Window] | None:
        """Where to crop; drawn without a generator of NumPy, as making one takes as long as reading a crop."""
        if self.crop is None:
            return None
        windows, shapes, crop, known = [], self.reader.shapes["image"], self.crop, None
        for (epoch, index), image in zip(keys, images, strict=True):
            if epoch != known:
                stream, known = stream_of(self.seed, epoch), epoch
            number, shape = draw(stream, index), shapes[image]
            y = (number >> 32) * (shape[-2] - crop + 1) >> 32
            x = (number & 0xFFFFFFFF) * (shape[-1] - crop + 1) >> 32
            windows.append((y, y + crop, x, x + crop))
        if self.foreground:
            for position, (epoch, index) in enumerate(keys):
                rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index], spawn_key=(0,)))
                if rng.random() < self.foreground and (pixel := self._foreground_pixel(images[position], rng)):
                    windows[position] = self._centred(images[position], pixel)
        return windows

    def _centred(self, image: int, pixel: tuple[int, int]) -> Window:
        """The crop round a pixel, as far as the border allows."""
        assert self.crop is not None
        size = self.reader.shapes["image"][image][-2:]
        y, x = (min(max(p - self.crop // 2, 0), n - self.crop) for p, n in zip(pixel, size, strict=True))
        return y, y + self.crop, x, x + self.crop

    def _foreground_pixel(self, image: int, rng: np.random.Generator) -> tuple[int, int] | None:
        """A pixel that is not background, its class drawn first: rare ones are as likely as common ones."""
        assert self.reader.mask_counts is not None
        counts = self.reader.mask_counts[image]
        present = [k for k in self.reader.foreground if counts[k]]
        if not present:
            return None
        y, x = rng.choice(self.reader.class_positions(image, int(rng.choice(present)))).tolist()
        return y, x


def draw(stream: int, index: int) -> int:
    """A random number of 64 bits: the one that stands at `index` in a stream of SplitMix64.

    Steele, Lea and Flood 2014 (Fast splittable pseudorandom number generators, OOPSLA): a state that goes on by a
    constant is mixed.
    """
    state = stream + index * 0x9E3779B97F4A7C15 & WORD
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & WORD
    return state ^ (state >> 31)


def stream_of(seed: int, epoch: int) -> int:
    """The start of a stream for `draw`, itself drawn."""
    return draw(draw(0, seed + 1), epoch + 1)


def _check_alike(first: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if shape != first:
        raise UserError(
            f"samples of {first} and {shape} cannot share a batch: a transform turns or resizes images that are not "
            "square; set `data.crop`"
        )


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
        self.first = 0, 0
        self.members = [] if labels is None else [np.flatnonzero(labels == value) for value in np.unique(labels)]

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def start_at(self, epoch: int, n_done: int) -> None:
        """Begin with an epoch of which `n_done` samples of this rank are done: they are left out, without reading."""
        self.epoch, self.first = epoch, (epoch, n_done)

    def __len__(self) -> int:
        return self.length // self.world_size

    def __iter__(self) -> Iterator[Key]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self._balanced(rng) if self.members else self.length)
        epoch, (first, n_done) = self.epoch, self.first
        mine = order[self.rank : len(self) * self.world_size : self.world_size].tolist()
        for index in mine[n_done if epoch == first else 0 :]:
            yield epoch, index

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
