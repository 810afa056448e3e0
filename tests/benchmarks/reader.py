"""Reading crops and whole images through `SplitDataset`, against a bare memory map and other formats."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from harness import Goal, Report, Table, alternate, ratio

from project.data.dataset import SplitDataset
from project.data.split_metadata import SplitMetadata
from project.data.split_writer import ArrayWriter, join
from project.data.statistics import ImageStatistics
from project.data.store import SplitReader

CROP, BATCH = 256, 32
Read = Callable[[int, int, int, int], np.ndarray]  # image, y, x, side -> (C, side, side)


def fields(count: int, size: int) -> Iterator[np.ndarray]:
    """(2, size, size) uint16: textured blobs on a background, with the noise and the offset of a camera."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(size)
    wide = np.stack([gaussian_filter(rng.random((2 * size, 2 * size), np.float32), sigma) for sigma in (3, 6)])
    wide = (wide - wide.min((1, 2), keepdims=True)) / np.ptp(wide, (1, 2), keepdims=True)
    noise = rng.normal(0, 1, wide.shape).astype(np.float32)
    for _ in range(count):
        y, x, v, u = rng.integers(0, size, 4)
        light = 25 + 150 * wide[:, y : y + size, x : x + size] ** 3
        yield (100 + light + np.sqrt(light) * noise[:, v : v + size, u : u + size]).astype(np.uint16)


def write(path: Path, images: Sequence[np.ndarray], **options: Any) -> SplitReader:
    """A split file as `make data` writes it."""
    path.parent.mkdir()
    ids = [f"{i:05d}" for i in range(len(images))]
    part, shapes = path.with_name("part.h5"), {"image": [image.shape for image in images]}
    with ArrayWriter(part, shapes, {"image": np.dtype(np.uint16)}, ids, **options) as writer:
        for index, image in enumerate(images):
            writer.write(index, {"image": image})
        writer.complete()
    statistics = {"image": np.zeros((len(ids), 2, len(ImageStatistics._fields)))}  # batches carry them
    join(path, [(part, ids)], SplitMetadata(ids, ids, image_statistics=statistics))
    return SplitReader(path)


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
            for each in keys:
                dataset.__getitems__(each)
            return (time.perf_counter() - start) / (self.n_batches * self.batch)

        return run

    def loop(self, read: Read, share: float = 1.0) -> Callable[[], float]:
        """A plain loop that fills one batch; `share` of the samples where they take long."""
        n_batches = max(1, int(self.n_batches * share))
        batch = self.batch if self.n_batches * share >= 1 else max(1, int(self.batch * self.n_batches * share))

        def run() -> float:
            images = self.rng.integers(0, self.n, (n_batches, batch)).tolist()
            out = self.out
            start = time.perf_counter()
            for row in images:
                places = self.rng.integers(0, self.room, (batch, 2)).tolist()
                for position, (image, (y, x)) in enumerate(zip(row, places, strict=True)):
                    out[position] = read(image, y, x, self.side)
            return (time.perf_counter() - start) / (n_batches * batch)

        return run


def mapped(pixels: np.ndarray) -> Read:
    """Of an array (N, C, H, W)."""
    return lambda i, y, x, side: pixels[i, :, y : y + side, x : x + side]


def others(folder: Path, images: Sequence[np.ndarray]) -> dict[str, tuple[Read, int]]:
    """Other formats: name -> (how it is read, bytes on disk)."""
    found: dict[str, tuple[Read, int]] = {}
    n, shape = len(images), images[0].shape
    with h5py.File(folder / "gzip.h5", "w") as file:
        dataset = file.create_dataset("image", (n, *shape), np.uint16, compression="gzip")
        for i, image in enumerate(images):
            dataset[i] = image
    compressed = h5py.File(folder / "gzip.h5", "r")["image"]
    found["HDF5, gzip"] = mapped(compressed), (folder / "gzip.h5").stat().st_size
    for i, image in enumerate(images):
        tifffile.imwrite(folder / f"{i}.tif", image, compression="zlib", photometric="minisblack")

    def tiff(i: int, y: int, x: int, side: int) -> np.ndarray:
        return np.asarray(tifffile.imread(folder / f"{i}.tif")[:, y : y + side, x : x + side])

    found["TIFF, zlib"] = tiff, sum(path.stat().st_size for path in folder.glob("*.tif"))
    try:
        import zarr
    except ImportError:
        return found
    store = folder / "a.zarr"
    array = zarr.create_array(store, shape=(n, *shape), chunks=(1, *shape), dtype="u2", compressors=None)
    for i, image in enumerate(images):
        array[i] = image
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    found["Zarr v3, an image per chunk, uncompressed"] = mapped(zarr.open_array(store, mode="r")), size
    return found


# Cold -----------------------------------------------------------------------------------------------------------------


def evict(path: Path) -> None:
    """Let the system forget a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_from_disk() -> int:
    """What this process has made the system read from the device."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def cold(path: Path, open_: Callable[[], Callable[[], float]], samples: int, rounds: int) -> tuple[float, float]:
    """Samples per second, and bytes from the disk for each byte of a sample, when nothing of the file is in memory."""
    rates, shares = [], []
    for _ in range(rounds):
        evict(path)
        run, before = open_(), bytes_from_disk()
        rates.append(1 / run())
        shares.append((bytes_from_disk() - before) / (samples * 2 * CROP * CROP * 2))
        del run
    return statistics.median(rates), statistics.median(shares)


def first_epoch(folder: Path, n: int, size: int, small: SplitReader, quick: bool) -> Table:
    """Crops from files that are not in the page cache."""
    plain, packed, rows = folder / "plain/train.h5", small.path, []
    n_batches, rounds = (1, 1) if quick else (10, 3)

    def pixels(path: Path) -> np.ndarray:
        with h5py.File(path) as file:
            dataset = file["image"]
            return np.memmap(path, np.uint16, "r", dataset.id.get_offset(), dataset.shape)

    def timed() -> Timed:
        return Timed(min(n, len(small)), size, CROP, BATCH, n_batches)

    for name, path, open_ in (
        ("memory map", plain, lambda: timed().loop(mapped(pixels(plain)))),
        ("h5py, file kept open", plain, lambda: timed().loop(mapped(h5py.File(plain, "r")["image"]))),
        ("SplitDataset", plain, lambda: timed().dataset(SplitReader(plain))),
        ("SplitDataset, blosc2", packed, lambda: timed().dataset(SplitReader(packed))),
    ):
        rate, share = cold(path, open_, n_batches * BATCH, rounds)
        rows.append([name, rate, share if share > 0.05 else "the system did not forget the file"])
    return Table(
        f"First {n_batches * BATCH} crops of {size} px images that are not in memory",
        ["reader", "crops/s", "bytes from disk per byte of a crop"],
        rows,
        "The file was evicted with `posix_fadvise`; below a virtual machine another cache may hold it still.",
    )


# All of it ------------------------------------------------------------------------------------------------------------


def one_size(folder: Path, count: int, size: int, quick: bool) -> tuple[list[Goal], list[Table]]:
    """Everything for images of one size."""
    few = max(4, count // 10)
    images = list(fields(few, size))
    plain = write(folder / "plain/train.h5", _Again(images, count))
    odd = {
        "ragged": write(folder / "ragged/train.h5", images, ragged=True),
        "blosc2": write(folder / "blosc2/train.h5", images, compression="blosc2"),
    }
    cold_table = first_epoch(folder, count, size, odd["blosc2"], quick)  # before anything of the files is mapped
    (folder / "others").mkdir()
    formats = others(folder / "others", images)
    raw = few * images[0].nbytes
    with h5py.File(plain.path) as file:
        pixels = np.asarray(np.memmap(plain.path, np.uint16, "r", file["image"].id.get_offset(), file["image"].shape))
    kept = h5py.File(plain.path, "r")["image"]
    rounds, goals, rows = (1, [], []) if quick else (15, [], [])
    for what, side, batch, n_batches in (
        ("crops of 256 px", CROP, BATCH, 2 if quick else 30),
        ("whole images", size, 16 if size <= 512 else 4, 1 if quick else 10 if size <= 512 else 3),
    ):
        timed = Timed(count, size, side, batch, n_batches)
        variants = {
            "map": timed.loop(mapped(pixels)),
            "h5py, file kept open": timed.loop(mapped(kept)),
            "SplitDataset": timed.dataset(plain),
        }
        seconds = alternate(variants, rounds)
        goals.append(_goal(f"{what} of {size} px: `SplitDataset` against a memory map", seconds, "map", "≥ 0.95"))
        least = "≥ 1.2" if size == 512 else "≥ 3"
        if side == CROP:
            name = f"{what} of {size} px: `SplitDataset` against h5py with the file kept open"
            goals.append(_goal(name, seconds, "h5py, file kept open", least))
        rows += [_row(what, name, seconds, 1.0) for name in variants]

        # On fewer images, as some take long: the map is that of the same images.
        timed = Timed(few, size, side, batch, n_batches)
        less = {"map": timed.loop(mapped(pixels)), "SplitDataset": timed.dataset(plain)}
        less |= {f"SplitDataset, {name}": timed.dataset(reader) for name, reader in odd.items()}
        less |= {name: timed.loop(read, 0.02) for name, (read, _) in formats.items()}
        seconds = alternate(less, 1 if quick else 7)
        sizes = {name: taken / raw for name, (_, taken) in formats.items()}
        sizes["SplitDataset, blosc2"] = odd["blosc2"].path.stat().st_size / raw
        rows += [_row(f"{what}, {few} images", name, seconds, sizes.get(name, 1.0)) for name in less]
        if side != CROP:
            continue
        start = f"{what} of {size} px: `SplitDataset`"
        goals += [
            Goal(f"{start}, {name}, against a memory map", ratio(seconds, "map", f"SplitDataset, {name}"), aim)
            for name, aim in (("ragged", "≥ 0.85"), ("blosc2", "≥ 0.2"))
        ]
        goals.append(Goal(f"blosc2 of {size} px: bytes against uncompressed", sizes["SplitDataset, blosc2"], "≤ 0.55"))
        aims = {"HDF5, gzip": "≥ 30", "TIFF, zlib": "≥ 30", "Zarr v3, an image per chunk, uncompressed": "≥ 10"}
        goals += [_goal(f"{start} against {name}", seconds, name, aims[name]) for name in formats]
    table = Table(
        f"{count} images of 2 x {size} x {size} px, uint16",
        ["what", "reader", "samples/s", "of the map", "bytes"],
        rows,
        f"One process, files in memory, batches of {BATCH} crops. The map is the plainest loop over `np.memmap` that "
        "fills one batch again and again; it draws its places for a batch at once. gzip has h5py's own chunks."
        + ("" if len(formats) > 2 else " Zarr is not installed."),
    )
    return goals, [table, cold_table]


class _Again:
    """The same few images until there are enough."""

    def __init__(self, images: list[np.ndarray], count: int) -> None:
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        if index >= self.count:
            raise IndexError(index)  # ends a loop
        return self.images[index % len(self.images)]


def _goal(what: str, seconds: dict[str, list[float]], slow: str, aim: str) -> Goal:
    return Goal(what, ratio(seconds, slow, "SplitDataset"), aim)


def _row(what: str, name: str, seconds: dict[str, list[float]], size: float) -> list[str | int | float]:
    return [what, name, 1 / statistics.median(seconds[name]), ratio(seconds, "map", name), size]


def measure(quick: bool) -> Report:
    """2,000 images of 512 px and 50 of 2048 px, with two channels."""
    report = Report()
    for count, size in ((8, 512), (4, 1024)) if quick else ((2000, 512), (50, 2048)):
        with tempfile.TemporaryDirectory() as folder:
            goals, tables = one_size(Path(folder), count, size, quick)
        report.goals += goals
        report.tables += tables
    return report
