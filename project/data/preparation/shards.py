"""Shards: runs of samples that one process reads and writes to one file; the unit of parallel work and of restart."""

import functools
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from project.data.duplicates import signature
from project.data.preparation.pixels import PixelSettings, Shapes, read_sample
from project.data.raw.lazy_image import LazyImage
from project.data.raw.samples import ImageRef, Sample
from project.data.split_metadata import SampleRecord
from project.data.split_writer import open_writer
from project.data.statistics import SplitStatistics
from project.errors import UserError
from project.files import atomic_path

Piece = tuple[Sample, Shapes]


@dataclass(frozen=True)
class Shard:
    """Samples to read, and the file to write."""

    path: Path
    split: str
    pieces: list[Piece]  # what is written of each sample, and the shapes of its arrays
    settings: PixelSettings
    ragged: bool  # whether the images of the split differ in size
    key: str = ""  # changes with everything that has an influence on the result

    @property
    def samples(self) -> list[Sample]:
        """Its samples, in the order of their ids."""
        return [sample for sample, _ in self.pieces]

    @property
    def record(self) -> Path:
        """File of the `ShardResult`, until the dataset is complete."""
        return self.path.with_suffix(".result")

    @property
    def n_bytes(self) -> int:
        """Bytes of its arrays without compression."""
        return sum(self.settings.n_bytes(shapes) for _, shapes in self.pieces)

    def select(self, ids: Container[str]) -> "Shard":
        """The shard with some of its samples."""
        return replace(self, pieces=[piece for piece in self.pieces if piece[0].id in ids])


@dataclass
class ShardResult:
    """What is known of a shard once it is written."""

    key: str  # of the shard
    records: list[SampleRecord] = field(default_factory=list)  # of the samples that were written
    problems: list[tuple[str, str]] = field(default_factory=list)  # those that were not, as (id, reason)
    # Fold (or None) -> statistics
    statistics: dict[int | None, SplitStatistics] = field(default_factory=lambda: defaultdict(SplitStatistics))
    n_bytes: int = 0  # of the file
    seconds: float = 0.0  # of working time


def write_shard(shard: Shard) -> ShardResult:
    """Read the samples and write their file, or return what is known of one that is complete already.

    Where samples with problems are skipped, they are in no part of the result, as if they had not been there; else
    problems leave no file.
    """
    if earlier := finished_result(shard):
        return earlier
    start, settings, result = time.perf_counter(), shard.settings, ShardResult(shard.key)
    open_image: Callable[[ImageRef], LazyImage] = lambda ref: ref.open()  # noqa: E731
    if any(sample.window for sample in shard.samples):  # the last images stay open, with what was decoded last
        n_images = sum(map(len, shard.samples[0].images.values()))
        open_image = functools.lru_cache(maxsize=n_images)(lambda ref: ref.open().cached())
    shapes = {} if shard.ragged else {r: (len(shard.pieces), *shape) for r, shape in shard.pieces[0][1].items()}
    dtypes = {role: np.dtype(name) for role, name in settings.dtypes.items()}
    with open_writer(shard.path, shapes, dtypes, settings.compression) as writer:
        for sample in shard.samples:
            try:
                arrays, renumbered = read_sample(sample, settings, open_image)
            except UserError as error:
                result.problems.append((sample.id, str(error)))
                continue
            if settings.skip or not result.problems:  # else this file will not be kept
                writer.write(sample.id, arrays)
                record = SampleRecord.measure(sample.id, arrays, result.statistics[sample.fold])
                record.renumbered = renumbered
                record.signature = signature(arrays["image"]) if settings.signatures else None
                result.records.append(record)
    result.n_bytes, result.seconds = shard.path.stat().st_size, time.perf_counter() - start
    if settings.skip or not result.problems:  # last of all: a shard with a record is complete
        with atomic_path(shard.record) as partial:
            partial.write_bytes(pickle.dumps(result))
    else:
        shard.path.unlink()
    return result


def finished_result(shard: Shard) -> ShardResult | None:
    """The result of this very shard, if it was written before."""
    try:
        result = pickle.loads(shard.record.read_bytes())  # written by this module, in a folder of its own
    except (OSError, EOFError, ValueError, AttributeError, ImportError, pickle.PickleError):
        return None
    is_same = isinstance(result, ShardResult) and result.key == shard.key
    return result if is_same and shard.path.is_file() else None
