"""Shards: runs of samples that one process reads and writes to one file; the unit of parallel work and of restart."""

import functools
import math
import pickle
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import numpy as np

from project.data.duplicates import signature
from project.data.preparation.pixels import PixelSettings, distinct_values, read_sample
from project.data.raw.lazy_image import LazyImage
from project.data.raw.samples import ImageRef, Sample
from project.data.split_writer import ArrayWriter
from project.data.statistics import ImageStatistics, SplitStatistics
from project.errors import UserError


@dataclass(frozen=True)
class ShardSettings(PixelSettings):
    """Settings that all shards of a dataset share."""

    signatures: bool = True  # Whether near-duplicates are searched for
    compression: str = "none"  # See `DatasetConfig`
    skip: bool = False  # Whether samples that cannot be used are left out


@dataclass(frozen=True)
class Shard:
    """Samples to read, and the file to write."""

    path: Path  # The file to write
    samples: list[Sample]  # To be read
    shapes: dict[str, list[tuple[int, ...]]]  # Array name -> shape of each sample
    settings: ShardSettings  # See `ShardSettings`
    ragged: bool  # Whether the images of the split differ in size
    key: str = ""  # Changes with everything that has an influence on the result

    @property
    def record(self) -> Path:
        """File of the `ShardResult`, until the dataset is complete."""
        return self.path.with_suffix(".result")

    @property
    def n_bytes(self) -> int:
        """Bytes of its arrays without compression."""
        sizes = {role: np.dtype(name).itemsize for role, name in self.settings.dtypes.items()}
        return sum(sizes[role] * math.prod(shape) for role, shapes in self.shapes.items() for shape in shapes)

    def select(self, chosen: list[bool]) -> "Shard":
        """The shard with some of its samples."""
        shapes = {role: list(compress(each, chosen)) for role, each in self.shapes.items()}
        return replace(self, samples=list(compress(self.samples, chosen)), shapes=shapes)

    def without(self, ids: set[str]) -> "Shard":
        """The shard without some of its samples."""
        return self.select([sample.id not in ids for sample in self.samples])


@dataclass
class SampleRecord:
    """What is known of a sample once it is written."""

    id: str  # Name of the sample
    digests: dict[str, str]  # Array name -> digest
    pixels: dict[int, int]  # Mask value -> number of pixels
    n_objects: int | None  # Number of objects, or None without instances
    statistics: dict[str, list[ImageStatistics]]  # "image" or "target" -> statistics of each channel
    renumbered: bool = False  # Whether its object numbers were changed
    signature: np.ndarray | None = None  # (SIGNATURE,) uint8, or None


@dataclass
class ShardResult:
    """What is known of a shard once it is written."""

    key: str  # Of the shard
    records: list[SampleRecord] = field(default_factory=list)  # Of the samples that were written
    problems: list[tuple[str, str]] = field(default_factory=list)  # Those that were not, as (id, reason)
    # Fold (or None) -> statistics
    statistics: dict[int | None, SplitStatistics] = field(default_factory=lambda: defaultdict(SplitStatistics))
    n_bytes: int = 0  # Size of the file
    seconds: float = 0.0  # Time that it took


def write_shard(shard: Shard) -> ShardResult:
    """Read the samples and write their file, or return what is known of one that is complete already.

    Where samples with problems are skipped, they are in no part of the result, as if they had not been there; else
    problems leave no file.
    """
    if earlier := finished_result(shard):
        return earlier
    start, problems, remaining = time.perf_counter(), list[tuple[str, str]](), shard
    result = _write(shard)
    while result.problems and shard.settings.skip:  # a disk may fail at another sample the next time
        problems += result.problems
        remaining = remaining.without({id_ for id_, _ in result.problems})
        result = _write(remaining) if remaining.samples else ShardResult(shard.key)
    result.problems += problems
    result.seconds = time.perf_counter() - start
    if shard.settings.skip or not result.problems:  # last of all: a shard with a record is complete
        partial = shard.record.with_name(f".{shard.record.name}.{uuid.uuid4().hex}.partial")
        partial.write_bytes(pickle.dumps(result))
        partial.replace(shard.record)
    return result


def finished_result(shard: Shard) -> ShardResult | None:
    """The result of this very shard, if it was written before."""
    try:
        result = pickle.loads(shard.record.read_bytes())  # written by this module, in a folder of its own
    except (OSError, EOFError, ValueError, AttributeError, ImportError, pickle.PickleError):
        return None
    is_same = isinstance(result, ShardResult) and result.key == shard.key
    return result if is_same and (shard.path.is_file() or not result.records) else None


def _write(shard: Shard) -> ShardResult:
    """Write the file, unless there are problems."""
    settings, open_image, result = shard.settings, _opener(shard.samples), ShardResult(shard.key)
    dtypes = {role: np.dtype(name) for role, name in settings.dtypes.items()}
    ids = [sample.id for sample in shard.samples]
    with ArrayWriter(shard.path, shard.shapes, dtypes, ids, settings.compression, shard.ragged) as writer:
        for index, sample in enumerate(shard.samples):
            try:
                arrays, renumbered = read_sample(sample, settings, open_image)
            except UserError as error:
                result.problems.append((sample.id, str(error)))
                continue
            if not result.problems:  # else this file will not be kept
                record = _write_sample(writer, index, arrays, result.statistics[sample.fold])
                record.renumbered = renumbered
                record.signature = signature(arrays["image"]) if settings.signatures else None
                result.records.append(record)
        if result.problems:
            result.records = []
        else:
            writer.complete()
            result.n_bytes = shard.path.stat().st_size
    return result


def _write_sample(
    writer: ArrayWriter, index: int, arrays: dict[str, np.ndarray], statistics: SplitStatistics
) -> SampleRecord:
    levels = dict[str, list[ImageStatistics]]()
    for role, array in arrays.items():
        writer.write(index, role, array)
        if of_channels := statistics.add(role, array):
            levels[role] = of_channels
    pixels = writer.pixels.get(index, {})
    statistics.add_mask(pixels)
    n_objects = int(np.count_nonzero(distinct_values(arrays["instances"]))) if "instances" in arrays else None
    return SampleRecord(writer.ids[index], writer.digests[index], pixels, n_objects, levels)


def _opener(samples: list[Sample]) -> Callable[[ImageRef], LazyImage]:
    """Opens images. If windows of them are read, the last ones stay open with what was decoded last."""
    if all(sample.window is None for sample in samples):
        return lambda ref: ref.open()
    n_images = sum(map(len, samples[0].images.values()))
    return functools.lru_cache(maxsize=n_images)(lambda ref: ref.open().cached())
