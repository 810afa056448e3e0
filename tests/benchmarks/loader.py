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
from harness import Goal, Report, Table, alternate, ratio
from torch.utils.data import DataLoader, Dataset, Sampler

from project.data.augment import GeometricAugmentation
from project.data.dataset import SplitDataset, ThreadLoader, whole_batch
from project.data.samplers import Key
from project.data.split_writer import write_split
from project.data.store import SplitReader

CROP, SIZE, BATCH = 256, 512, 64


def write(path: Path, count: int) -> SplitReader:
    """Images (2, 512, 512) uint16, smooth with the noise of a camera, with masks of two classes."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    wide = gaussian_filter(rng.random((2, 2 * SIZE, 2 * SIZE), np.float32), (0, 4, 4))
    wide = (wide - wide.min()) / np.ptp(wide)
    noise = rng.normal(0, 8, wide.shape).astype(np.float32)
    ids = [f"{i:05d}" for i in range(count)]
    arrays: dict[str, list[np.ndarray]] = {"image": [], "mask": []}
    for _ in range(count):
        y, x, v, u = rng.integers(0, SIZE, 4)
        field = wide[:, y : y + SIZE, x : x + SIZE]
        arrays["image"].append((120 + 250 * field + noise[:, v : v + SIZE, u : u + SIZE]).astype(np.uint16))
        arrays["mask"].append((field[0] > 0.5).astype(np.uint8))
    write_split(path, arrays, ids, ids)
    return SplitReader(path)


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
    lasting = {"persistent_workers": True, "collate_fn": whole_batch}

    def batches() -> Batches:
        return Batches(len(reader), n_batches, batch)

    found: dict[str, DataLoader[Any]] = {
        "usual, 2 workers": DataLoader(
            Usual(reader.path), batch_sampler=batches(), num_workers=2, persistent_workers=True
        ),
        "0 workers": DataLoader(dataset, batch_sampler=batches(), collate_fn=whole_batch),
        "thread": ThreadLoader(dataset, batch_sampler=batches()),
    }
    for n in (1, 2):
        found[f"{n} worker{'s' * (n > 1)}"] = DataLoader(dataset, batch_sampler=batches(), num_workers=n, **lasting)
    return found


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


def training_step(width: int) -> Callable[[dict[str, torch.Tensor]], object]:
    """A step of a small U-Net on whatever device there is."""
    from project.models.unet import UNet

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = UNet(in_channels=2, out_channels=1, width=width, depth=2).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step(batch: dict[str, torch.Tensor]) -> None:
        image = batch["image"].to(device, non_blocking=True).float() / 400
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
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        reader = write(Path(folder) / "train.h5", count)
        chains = loaders(reader, n_batches, batch)
        seconds = alternate({name: consumed(loader) for name, loader in chains.items()}, 1 if quick else 9)
        rows = [
            [name, batch / statistics.median(taken), ratio(seconds, "usual, 2 workers", name)]
            for name, taken in seconds.items()
        ]
        report.goals = [
            Goal("crops read, turned (D4) and batched, by a thread: against the usual chain with 2 workers",
                 ratio(seconds, "usual, 2 workers", "thread"), "≥ 3"),
            Goal("crops read, turned (D4) and batched, by 2 workers: against the usual chain with 2 workers",
                 ratio(seconds, "usual, 2 workers", "2 workers"), "≥ 3"),
        ]  # fmt: skip
        report.tables.append(
            Table(
                f"Batches of {batch} crops of 2 x {CROP} x {CROP} px with masks, from images of {SIZE} px",
                ["chain", "samples/s", "of the usual"],
                rows,
                "The usual chain reads a whole image by h5py from an open file, makes it float32, crops and turns "
                "it in albumentations, and collates tensors. Ours gives the dtype of the file, which is made float32 "
                "on the device. Nothing is done with the batches.",
            )
        )
        del chains
        report.tables.append(in_training(reader, quick))
    return report


def in_training(reader: SplitReader, quick: bool) -> Table:
    """The same in front of a network, where reading and computing share the cores."""
    n_batches, batch, crop = (2, 2, 64) if quick else (6, 16, 128)
    chains = loaders(reader, n_batches, batch, crop)
    del chains["usual, 2 workers"]
    step = training_step(4)
    seconds = alternate({name: consumed(loader, step) for name, loader in chains.items()}, 1 if quick else 7)
    rows: list[list[str | int | float]] = [
        [name, 1000 * statistics.median(taken), ratio(seconds, "0 workers", name)] for name, taken in seconds.items()
    ]
    return Table(
        f"Steps of a small U-Net on {batch} crops of {crop} px",
        ["reading", "ms per step", "speed against 0 workers"],
        rows,
    )
