"""`make data ESTIMATE=1`: how long it will take, how much it reads and writes, and what memory it needs."""

import dataclasses
import heapq
import math
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from project.data.config import PROCESSED, DatasetConfig
from project.data.duplicates import BLOCK, SIGNATURE, similar_pairs
from project.data.preparation.executors import Reporter, Workers, duration, workers
from project.data.preparation.plan import Found, find, make_shards
from project.data.preparation.prepare import generate_raw
from project.data.preparation.shards import Shard, peak_memory, write_shard
from project.data.preparation.writing import LITTLE
from project.data.raw.samples import INTEGER_ROLES
from project.data.split_metadata import SplitMetadata
from project.data.statistics import ImageStatistics
from project.errors import UserError

SECONDS = 10.0  # of trying
LEAST_BATCHES = 8
BATCH_IMAGES, BATCH_BYTES = 256, 16 * 2**20
PAIRS = 8192  # images compared for near-duplicates on trial
HEADS = 4096  # samples of which what is known is written on trial
COPIES = 20  # bytes that the search for near-duplicates takes for each one of all signatures
FLOOR = 0.1  # least uncertainty: another day, the disk is as busy as that


@dataclass(frozen=True)
class Estimate:
    """What a preparation will take; an uncertainty is about two standard errors.

    Attributes:
        images: Samples in the files.
        seconds, seconds_off: Of wall time, and their uncertainty.
        bytes_in: Size of the raw files.
        bytes_out, bytes_out_off: Size of the prepared files.
        memory, memory_off: Of all processes together, in bytes.
        processes: How many work at a time.
    """

    images: int
    seconds: float
    seconds_off: float
    bytes_in: int
    bytes_out: float
    bytes_out_off: float
    memory: float
    memory_off: float
    processes: int

    def __str__(self) -> str:
        share = self.seconds_off / self.seconds
        return (
            f"{self.images} images, with {self.processes} process{'es' if self.processes > 1 else ''}:\n"
            f"  time    {duration(self.seconds)} ± {share:.0%}\n"
            f"  reads   {_size(self.bytes_in)}\n"
            f"  writes  {_size(self.bytes_out)} ± {self.bytes_out_off / self.bytes_out:.0%}\n"
            f"  memory  {_size(self.memory)} ± {self.memory_off / max(self.memory, 1):.0%}"
        )


def estimate(
    name: str,
    config: DatasetConfig,
    processed: Path = PROCESSED,
    console: Console | None = None,
    processes: int | None = None,
    cluster: str | None = None,
) -> Estimate:
    """Prepare some of the images on trial, into a folder that is removed again.

    Args:
        name: Of the dataset.
        config: See `prepare`, as for the rest.
        processed: The trial is written to the same disk.
        console: Where progress is shown.
        processes: Timed as asked for.
        cluster: The same.

    Raises:
        UserError: Whatever is wrong with the names and headers of the files, or with the images that were tried.
    """
    console = console or Console()
    generate_raw(config, console)
    processed.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{name}.estimate-", dir=processed) as folder,
        Reporter(console) as reporter,
        workers(processes, cluster) as crew,
    ):
        start = time.perf_counter()
        found = find(config, crew, reporter)
        shards = [shard for each in make_shards(found, config, Path(folder)).values() for shard in each]
        finding = time.perf_counter() - start
        images, n_bytes = sum(len(s.samples) for s in shards), sum(s.n_bytes for s in shards)
        at_a_time = crew.at_a_time if n_bytes >= LITTLE or crew.always else 1
        starting, tried = _try(shards, crew, n_bytes < LITTLE, Path(folder))
    seconds, off = _ratio(tried[:, 0], tried[:, 1])
    out, out_off = _ratio(tried[:, 2], tried[:, 1])
    longest = _longest(shards, at_a_time)
    total = finding + starting + seconds * longest
    if config.near_duplicates != "ignore":
        total += _comparing(images)
    peaks, own = tried[:, 3], peak_memory()
    working = min(at_a_time, len(shards))
    memory = peaks.max() if at_a_time == 1 and not cluster else own + working * peaks.max()
    if config.near_duplicates != "ignore":
        memory += images * SIGNATURE * COPIES
    paths = {path for s in found.samples for refs in s.images.values() for ref in refs for path in ref.paths}
    return Estimate(
        images,
        total,
        max(off * longest, FLOOR * total),
        sum(path.stat().st_size for path in paths),
        out * n_bytes + images * _head_bytes(shards, found),
        out_off * n_bytes,
        float(memory),
        max(float(np.ptp(peaks)) * working, FLOOR * float(memory)),
        at_a_time,
    )


def _try(shards: list[Shard], crew: Workers, little: bool, folder: Path) -> tuple[float, np.ndarray]:
    """Seconds until the processes work; and of each batch its seconds, bytes of arrays, bytes written and peak."""
    batches = _batches(shards, folder)
    # The first round starts the processes, which import what they need; it is not counted.
    begun, at_a_time = time.perf_counter(), 1 if little and not crew.always else crew.at_a_time
    first = [result.seconds for _, result in crew.run(write_shard, islice(batches, at_a_time), little)]
    starting = max(time.perf_counter() - begun - max(first, default=0.0), 0.0)
    begun, tried = time.perf_counter(), list[tuple[float, int, int, int]]()
    everything = sum(shard.n_bytes for shard in shards)

    def in_time() -> Iterator[Shard]:
        n_bytes = 0
        for number, batch in enumerate(batches):
            enough = n_bytes > everything or time.perf_counter() - begun > SECONDS
            if number >= LEAST_BATCHES and enough:
                return
            yield batch
            n_bytes += batch.n_bytes

    for batch, result in crew.run(write_shard, in_time(), little):
        if result.problems and not batch.settings.skip:
            raise UserError(f"one of the images tried cannot be used: {': '.join(result.problems[0])}")
        # Not the result: its histograms would count as memory that is needed.
        tried.append((result.seconds, batch.n_bytes, result.n_bytes, result.peak))
        batch.path.unlink(missing_ok=True)
    return starting, np.array(tried, float)


def _batches(shards: list[Shard], folder: Path) -> Iterator[Shard]:
    """Runs of neighbouring samples from anywhere, the first few times around the largest image."""
    draw = random.Random(0)
    sizes = [shard.n_bytes for shard in shards]
    largest = max(shards, key=lambda shard: shard.n_bytes / len(shard.samples))
    number = 0
    while True:
        shard = largest if number == 1 else draw.choices(shards, sizes)[0]
        each = shard.n_bytes / len(shard.samples)
        length = max(1, min(BATCH_IMAGES, int(BATCH_BYTES / each), len(shard.samples)))
        at = draw.randrange(len(shard.samples) - length + 1)
        yield dataclasses.replace(
            shard,
            path=folder / f"{number}.h5",
            samples=shard.samples[at : at + length],
            shapes={role: shapes[at : at + length] for role, shapes in shard.shapes.items()},
            key=f"{number}",
        )
        number += 1


def _ratio(values: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Sum of the values per sum of the sizes, and twice its standard error (Cochran, Sampling Techniques, 6.4)."""
    ratio = values.sum() / sizes.sum()
    rest = values - ratio * sizes
    return float(ratio), float(2 * np.sqrt((rest**2).sum() / max(len(values) - 1, 1) / len(values)) / sizes.mean())


def _head_bytes(shards: list[Shard], found: Found) -> float:
    """What a file holds of each sample beside its arrays; with small images it is a good part."""
    samples = [sample for shard in shards for sample in shard.samples][:HEADS]
    roles = {role: shapes[0][0] for role, shapes in shards[0].shapes.items() if role not in INTEGER_ROLES}
    head = SplitMetadata(
        [sample.id for sample in samples],
        [sample.group for sample in samples],
        found.labels.encode(samples) if found.labels else None,
        np.array([sample.values for sample in samples], np.float64),
        image_statistics={
            role: np.zeros((len(samples), channels, len(ImageStatistics._fields))) for role, channels in roles.items()
        },
        signatures=np.zeros((len(samples), SIGNATURE), np.uint8) if shards[0].settings.signatures else None,
        digests=[{"image": "0" * 32}] * len(samples),
        raw_files={f"{role}/{sample.id}.tif": (0, 0) for sample in samples for role in shards[0].shapes},
    )
    return head.n_bytes() / len(samples)


def _longest(shards: list[Shard], at_a_time: int) -> int:
    """Bytes of that worker that gets most, if whoever is free takes the next shard."""
    loads = [0] * at_a_time
    for shard in shards:
        heapq.heapreplace(loads, loads[0] + shard.n_bytes)
    return max(loads)


def _comparing(images: int) -> float:
    """Seconds that the search for near-duplicates will take: it compares all pairs."""
    n = min(images, PAIRS)
    signatures = np.random.default_rng(0).integers(1, 255, (n, SIGNATURE), np.uint8)
    similar_pairs(signatures[:BLOCK])  # the first time, it starts threads
    start = time.perf_counter()
    similar_pairs(signatures)
    seconds, blocks, all_blocks = time.perf_counter() - start, math.ceil(n / BLOCK), math.ceil(images / BLOCK)
    return seconds * all_blocks * (all_blocks + 1) / (blocks * (blocks + 1))


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.3g} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g} MB"
