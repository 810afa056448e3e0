"""One split as a torch dataset: crops, foreground crops and augmentation, whole batches; a loader with a thread."""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from project.data.batch import Tensors
from project.data.samplers import Key, random_bits, random_stream
from project.data.statistics import SHIPPED
from project.data.store import SplitReader, Window
from project.errors import UserError, bullet_list

# (arrays of a sample, seed) -> arrays of the same layout and dtype
Augmentation = Callable[[dict[str, np.ndarray], np.random.SeedSequence], dict[str, np.ndarray]]
PREFETCH = 2  # batches that are made before they are asked for
PER_IMAGE = {"label": "labels", "value": "values"}  # role without pixels -> attribute of the reader


class SplitDataset(Dataset[Tensors]):
    """Samples of one split in the dtype of the file, cropped and augmented; no value is changed.

    All random choices for a sample are a function of (seed, epoch, index), for any number of workers or devices. The
    arguments are those of `ImageDataModule`; `roles` are the arrays to read, such as ("image", "target"); "label" and
    "value" are read wherever the file has them. Images without foreground give random crops.

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
            raise UserError(f"data.crop is {crop}; use a number of pixels, or null for whole images")
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

    def __len__(self) -> int:
        return len(self.reader) * self.crops_per_image

    def __getitem__(self, key: Key) -> Tensors:
        """One sample as a batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Tensors:
        """A whole batch, see `project.data.batch.Batch`."""
        images = [index // self.crops_per_image for _, index in keys]
        arrays = self._read(images, self._windows(keys, images))
        if self.augmentation:
            arrays = self._augmented(keys, arrays, self.augmentation)
        batch = {role: torch.from_numpy(array) for role, array in arrays.items()}
        batch["index"] = torch.from_numpy(np.array(images))
        statistics = self.reader.image_statistics["image"][images][..., SHIPPED]
        batch["image_statistics"] = torch.from_numpy(statistics.astype(np.float32))
        if self.reader.labels is not None:
            batch["label"] = torch.from_numpy(self.reader.labels[images])
        if self.reader.values is not None:
            batch["value"] = torch.from_numpy(self.reader.values[images].astype(np.float32))
        return batch

    def _read(self, images: list[int], windows: list[Window] | None) -> dict[str, np.ndarray]:
        arrays = {}
        for role in self.roles:
            shapes = [self.reader.shapes[role][image] for image in images]
            if self.crop is not None:
                shapes = [(*shapes[0][:-2], self.crop, self.crop)]
            arrays[role] = np.empty((len(images), *shapes[0]), self.reader.dtypes[role].newbyteorder("="))
            self.reader.fill(role, images, windows, arrays[role])
        return arrays

    def _augmented(
        self, keys: Sequence[Key], arrays: dict[str, np.ndarray], augmentation: Augmentation
    ) -> dict[str, np.ndarray]:
        samples = []
        for position, (epoch, index) in enumerate(keys):
            seed = np.random.SeedSequence([self.seed, epoch, index], spawn_key=(1,))
            samples.append(augmentation({role: array[position] for role, array in arrays.items()}, seed))
        if len(shapes := {sample[self.roles[0]].shape[-2:] for sample in samples}) > 1:
            raise UserError(
                f"samples of {' and '.join(f'{h} x {w}' for h, w in sorted(shapes))} pixels cannot share a batch: a "
                "transform turns or resizes images that are not square; set `data.crop`"
            )
        return {role: np.stack([sample[role] for sample in samples]) for role in self.roles}

    def _windows(self, keys: Sequence[Key], images: list[int]) -> list[Window] | None:
        if self.crop is None:
            return None
        windows, crop = [], self.crop
        streams = {epoch: random_stream(self.seed, epoch) for epoch in {epoch for epoch, _ in keys}}
        for (epoch, index), image in zip(keys, images, strict=True):
            bits, (*_, height, width) = random_bits(streams[epoch], index), self.reader.shapes["image"][image]
            y = (bits >> 32) * (height - crop + 1) >> 32
            x = (bits & 0xFFFFFFFF) * (width - crop + 1) >> 32
            windows.append((y, y + crop, x, x + crop))
        if self.foreground:
            for position, (epoch, index) in enumerate(keys):
                rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index], spawn_key=(0,)))
                if rng.random() < self.foreground and (window := self._foreground_window(images[position], rng)):
                    windows[position] = window
        return windows

    def _foreground_window(self, image: int, rng: np.random.Generator) -> Window | None:
        """A crop around a foreground pixel, inside the image. The class is chosen first: rare ones are as likely."""
        assert self.reader.mask_counts is not None
        assert self.crop is not None
        counts = self.reader.mask_counts[image]
        present = [k for k in self.reader.foreground if counts[k]]
        if not present:
            return None
        pixel = rng.choice(self.reader.class_positions(image, int(rng.choice(present)))).tolist()
        size = self.reader.shapes["image"][image][-2:]
        y, x = (min(max(p - self.crop // 2, 0), n - self.crop) for p, n in zip(pixel, size, strict=True))
        return y, y + self.crop, x, x + self.crop


def whole_batch(batch: Any) -> Any:
    """Collate function that does nothing: the dataset makes whole batches."""
    return batch


class ThreadLoader(DataLoader[Tensors]):
    """Loader whose batches are made by one thread of this process, `PREFETCH` batches ahead.

    Copying from the mapped file and augmenting with OpenCV release Python's lock, so one thread keeps up with most
    networks, without a copy between processes. The thread starts with the first batch and ends with the epoch, or when
    the iterator is dropped. An error in it is raised where the batch is asked for.

    With `pin_memory`, batches are in page-locked memory, from where a GPU fetches them by itself.
    """

    dataset: SplitDataset

    def __init__(self, dataset: SplitDataset, **options: Any) -> None:
        super().__init__(dataset, collate_fn=whole_batch, **options)

    def __iter__(self) -> Iterator[Tensors]:  # type: ignore[override]
        assert self.batch_sampler is not None
        dataset, keys, pending = copy.copy(self.dataset), iter(self.batch_sampler), deque[Future[Tensors]]()
        dataset.augmentation = copy.deepcopy(dataset.augmentation)  # whose random state no two threads may share

        def load(batch_keys: Any) -> Tensors:
            batch = dataset.__getitems__(batch_keys)
            return {name: tensor.pin_memory() for name, tensor in batch.items()} if self.pin_memory else batch

        executor = ThreadPoolExecutor(1, thread_name_prefix="loader")
        try:
            for batch_keys in keys:
                pending.append(executor.submit(load, batch_keys))
                if len(pending) > PREFETCH:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)
