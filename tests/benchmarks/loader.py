"""Batches for training, read and turned, against the chain that most projects use; and what they cost a training."""

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import h5py
import numpy as np
import torch
from harness import Goal, Report, Table, alternate, ratio, write_dataset
from torch.utils.data import DataLoader, Dataset, Sampler

from project.data.augment import GeometricAugmentation
from project.data.dataset import SplitDataset, ThreadLoader, whole_batch
from project.data.samplers import Key
from project.data.store import SplitReader
from project.models.unet import UNet

CROP, SIZE, BATCH = 256, 512, 64
USUAL = "usual, 2 workers"


class Usual(Dataset[dict[str, torch.Tensor]]):
    """One sample after another: the whole image as float32, everything else in albumentations."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, None
        self.transform = A.Compose([A.RandomCrop(CROP, CROP), A.D4(p=1), A.ToTensorV2()])

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        if self.file is None:
            self.file = h5py.File(self.path, "r")
            self.image, self.mask = self.file["image"], self.file["mask"]
        image = self.image[key[1]].transpose(1, 2, 0).astype(np.float32)
        return dict(self.transform(image=image, mask=self.mask[key[1]]))


class Batches(Sampler[list[Key]]):
    """So many batches of random samples; others in each epoch."""

    def __init__(self, length: int, n_batches: int, batch: int) -> None:
        self.length, self.n_batches, self.batch, self.epoch = length, n_batches, batch, 0

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[list[Key]]:
        self.epoch += 1
        rng = np.random.default_rng(self.epoch)
        for row in rng.integers(0, self.length, (self.n_batches, self.batch)).tolist():
            yield [(self.epoch, index) for index in row]


def loaders(reader: SplitReader, n_batches: int, batch: int, crop: int = CROP) -> dict[str, DataLoader[Any]]:
    """The usual chain, and ours with every way of working."""
    dataset = SplitDataset(reader, ("image", "mask"), crop, augmentation=GeometricAugmentation([A.D4(p=1)]))

    def loader(kind: Any, source: Any, workers: int = 0, **options: Any) -> DataLoader[Any]:
        options |= {"num_workers": workers, "persistent_workers": True} if workers else {}
        return kind(source, batch_sampler=Batches(len(reader), n_batches, batch), **options)

    ours = {f"{n} workers": loader(DataLoader, dataset, n, collate_fn=whole_batch) for n in range(3)}
    return {USUAL: loader(DataLoader, Usual(reader.path), 2), "thread": loader(ThreadLoader, dataset), **ours}


def consumed(loader: Iterable[Any], step: Callable[[Any], object] | None = None) -> Callable[[], float]:
    """Takes an epoch of batches, as fast as they come or through a step; returns seconds per batch."""

    def run() -> float:
        start, n = time.perf_counter(), 0
        for batch in loader:
            n += 1
            if step:
                step(batch)
        return (time.perf_counter() - start) / n

    return run


def training_step() -> Callable[[dict[str, torch.Tensor]], object]:
    """A step of a small U-Net."""
    net = UNet(in_channels=2, out_channels=1, width=4, depth=2).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step(batch: dict[str, torch.Tensor]) -> None:
        image = batch["image"].float() / 400
        loss = net(image.contiguous(memory_format=torch.channels_last)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(quick: bool) -> Report:
    """1,000 images; batches of 64 crops alone, and of 16 in front of a small U-Net."""
    warnings.filterwarnings("ignore", ".*DataLoader will create.*")
    warnings.filterwarnings("ignore", ".*use of fork.*", DeprecationWarning)
    count, n_batches, batch = (8, 2, 4) if quick else (1000, 12, BATCH)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder, "set"), {"train": count}, SIZE, ("image", "mask"), 2)
        reader = SplitReader(Path(folder, "set", "train.h5"))
        chains = loaders(reader, n_batches, batch)
        seconds = alternate({name: consumed(loader) for name, loader in chains.items()}, 1 if quick else 9)
        del chains
        n_batches, batch_2, crop = (2, 2, 64) if quick else (6, 16, 128)
        step, chains = training_step(), loaders(reader, n_batches, batch_2, crop)
        del chains[USUAL]
        steps = alternate({name: consumed(loader, step) for name, loader in chains.items()}, 1 if quick else 7)
        del chains
    what = "crops read, turned (D4) and batched, against the usual chain with 2 workers: by"
    goals = [Goal(f"{what} {name}", ratio(seconds, USUAL, name), "≥ 3") for name in ("thread", "2 workers")]
    rows = [[name, batch / statistics.median(s), ratio(seconds, USUAL, name)] for name, s in seconds.items()]
    alone = Table(
        f"Batches of {batch} crops of 2 x {CROP} x {CROP} px with masks, from images of {SIZE} px",
        ["chain", "samples/s", "of the usual"],
        rows,
        "The usual chain reads a whole image by h5py from an open file, makes it float32, crops and turns it in "
        "albumentations, and collates tensors. Ours gives the dtype of the file. Nothing is done with the batches.",
    )
    rows = [[name, 1000 * statistics.median(s), ratio(steps, "0 workers", name)] for name, s in steps.items()]
    title = f"Steps of a small U-Net on {batch_2} crops of {crop} px"
    return Report(goals, [alone, Table(title, ["reading", "ms per step", "speed against 0 workers"], rows)])
