"""Reading crops and whole images through `SplitDataset`, against a bare memory map and other formats."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from harness import Goal, Report, Table, alternate, ratio, write_dataset

from project.data.dataset import SplitDataset
from project.data.store import SplitReader

CROP, BATCH = 256, 32
Read = Callable[[int, int, int, int], np.ndarray]  # image, y, x, side -> (C, side, side)


class Timed:
    """Variants of reading random regions; each returns its seconds per sample."""

    def __init__(self, n: int, size: int, side: int, batch: int, n_batches: int) -> None:
        self.n, self.room, self.side, self.batch, self.n_batches = n, size - side + 1, side, batch, n_batches
        self.rng, self.epoch = np.random.default_rng(0), 0
        self.out = np.empty((batch, 2, side, side), np.uint16)

    def dataset(self, reader: SplitReader) -> Callable[[], float]:
        """Batches of `SplitDataset`, of other places in every round."""
        dataset = SplitDataset(reader, ("image",), self.side if self.room > 1 else None)

        def run() -> float:
            self.epoch += 1
            images = self.rng.integers(0, self.n, (self.n_batches, self.batch)).tolist()
            keys = [[(self.epoch, i) for i in row] for row in images]
            start = time.perf_counter()
            for batch in keys:
                dataset.__getitems__(batch)
            return (time.perf_counter() - start) / (self.n_batches * self.batch)

        return run

    def loop(self, read: Read, share: float = 1.0) -> Callable[[], float]:
        """A plain loop that fills one batch; `share` of the samples where they take long."""
        n = max(1, int(self.n_batches * self.batch * share))

        def run() -> float:
            images = self.rng.integers(0, self.n, n).tolist()
            corners = self.rng.integers(0, self.room, (n, 2)).tolist()
            start = time.perf_counter()
            for i, (image, (y, x)) in enumerate(zip(images, corners, strict=True)):
                self.out[i % self.batch] = read(image, y, x, self.side)
            return (time.perf_counter() - start) / n

        return run


def mapped(pixels: Any) -> Read:
    """Of an array (N, C, H, W)."""
    return lambda i, y, x, side: pixels[i, :, y : y + side, x : x + side]


def other_formats(folder: Path, images: Sequence[np.ndarray]) -> dict[str, Read]:
    """Other formats: name -> how it is read."""
    folder.mkdir()
    with h5py.File(folder / "gzip.h5", "w") as file:
        file.create_dataset("image", data=np.stack(images), compression="gzip")
    for i, image in enumerate(images):
        tifffile.imwrite(folder / f"{i}.tif", image, compression="zlib", photometric="minisblack")

    def tiff(i: int, y: int, x: int, side: int) -> np.ndarray:
        return np.asarray(tifffile.imread(folder / f"{i}.tif")[:, y : y + side, x : x + side])

    formats = {"HDF5, gzip": mapped(h5py.File(folder / "gzip.h5", "r")["image"]), "TIFF, zlib": tiff}
    try:
        import zarr
    except ImportError:
        return formats
    chunks, store = (1, *images[0].shape), folder / "a.zarr"
    array = zarr.create_array(store, shape=(len(images), *chunks[1:]), chunks=chunks, dtype="u2", compressors=None)
    array[:] = np.stack(images)
    return formats | {"Zarr v3, an image per chunk, uncompressed": mapped(zarr.open_array(store, mode="r"))}


def one_size(folder: Path, count: int, size: int, quick: bool) -> Report:
    """Everything for images of one size."""
    few = max(4, count // 10)
    write_dataset(folder / "plain", {"train": count}, size, ("image",), 2)
    write_dataset(folder / "blosc2", {"train": few}, size, ("image",), 2, "blosc2")
    plain, packed = (SplitReader(folder / name / "train.h5") for name in ("plain", "blosc2"))
    formats = other_formats(folder / "others", [plain.read("image", i) for i in range(few)])
    hdf5 = h5py.File(plain.path, "r")["image"]
    pixels = np.memmap(plain.path, np.uint16, "r", hdf5.id.get_offset(), hdf5.shape)
    report, rows, step = Report(), [], "`SplitDataset`"
    for what, side, batch, n_batches in (
        ("crops of 256 px", CROP, BATCH, 2 if quick else 30),
        ("whole images", size, 16 if size <= 512 else 4, 1 if quick else 10 if size <= 512 else 3),
    ):
        name, timed = f"{what} of {size} px: {step}", Timed(count, size, side, batch, n_batches)
        variants = {"map": timed.loop(mapped(pixels)), "h5py, file kept open": timed.loop(mapped(hdf5))}
        seconds = alternate(variants | {step: timed.dataset(plain)}, 1 if quick else 15)
        report.goals.append(Goal(f"{name} against a memory map", ratio(seconds, "map", step), "≥ 0.95"))
        rows += [[what, key, 1 / statistics.median(s), ratio(seconds, "map", key)] for key, s in seconds.items()]

        # On fewer images, as some take long: the map is that of the same images.
        timed = Timed(few, size, side, batch, n_batches)
        variants = {"map": timed.loop(mapped(pixels)), step: timed.dataset(plain)}
        variants |= {f"{step}, blosc2": timed.dataset(packed)}
        variants |= {key: timed.loop(read, 0.02) for key, read in formats.items()}
        seconds = alternate(variants, 1 if quick else 7)
        label = f"{what}, {few} images"
        rows += [[label, key, 1 / statistics.median(s), ratio(seconds, "map", key)] for key, s in seconds.items()]
        if side == CROP:
            aims = [*(("≥ 30", key) for key in ("HDF5, gzip", "TIFF, zlib")), ("≥ 10", [*formats][-1])]
            report.goals += [Goal(f"{name} against {key}", ratio(seconds, key, step), aim) for aim, key in aims]
    note = (
        f"One process, files in memory, batches of {BATCH} crops. The map is the plainest loop over `np.memmap` that "
        f"fills one batch again and again. gzip has h5py's own chunks. blosc2: {packed.path.stat().st_size:,} bytes "
        f"for {few * pixels[0].nbytes:,}."
    )
    title = f"{count} images of 2 x {size} x {size} px, uint16"
    report.tables.append(Table(title, ["what", "reader", "samples/s", "of the map"], rows, note))
    return report


def measure(quick: bool) -> Report:
    """2,000 images of 512 px and 50 of 2048 px, with two channels."""
    report = Report()
    for count, size in ((8, 512), (4, 1024)) if quick else ((2000, 512), (50, 2048)):
        with tempfile.TemporaryDirectory() as folder:
            part = one_size(Path(folder), count, size, quick)
        report.goals += part.goals
        report.tables += part.tables
    return report
