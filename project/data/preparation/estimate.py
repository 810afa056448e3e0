"""`make data` with `--estimate`: time, disk space and memory of a preparation, from some images that are tried."""

import dataclasses
import itertools
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from project.data.config import PROCESSED, DatasetConfig
from project.data.duplicates import SIGNATURE
from project.data.preparation.plan import find_and_plan
from project.data.preparation.prepare import generate_raw_files
from project.data.preparation.shards import Shard, write_shard
from project.data.preparation.workers import format_duration, start_workers
from project.data.preparation.write import SMALL_JOB
from project.errors import UserError

SECONDS = 10.0  # of trying
BATCH_BYTES = 16 * 2**20
METADATA_BYTES = 300  # per image: id, group, statistics, digest
COMPARISON_BYTES = 20  # memory of the search for near-duplicates, per byte of the signatures


@dataclass(frozen=True)
class Estimate:
    """What a preparation will take."""

    images: int  # samples in the files
    seconds: float  # wall time
    bytes_in: int  # of the raw files
    bytes_out: float  # of the prepared files
    memory: float  # bytes of all processes together
    processes: int

    def __str__(self) -> str:
        lines = [
            f"{self.images} images, with {self.processes} process{'es' * (self.processes > 1)}, about:",
            f"  time    {format_duration(self.seconds)}",
        ]
        for name, n in {"reads": self.bytes_in, "writes": self.bytes_out, "memory": self.memory}.items():
            lines.append(f"  {name:<8}" + (f"{n / 1e9:.3g} GB" if n >= 1e9 else f"{n / 1e6:.3g} MB"))
        return "\n".join(lines)


def estimate(name: str, config: DatasetConfig, processed: Path = PROCESSED, processes: int | None = None) -> Estimate:
    """Prepare some of the images into a folder that is removed again; arguments and errors as of `prepare`."""
    console = Console()
    generate_raw_files(config, console)
    processed.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{name}.estimate-", dir=processed) as folder,
        start_workers(console, processes) as workers,
    ):
        start = time.perf_counter()
        _, shards = find_and_plan(config, workers, Path(folder))
        finding = time.perf_counter() - start
        seconds, written = _try(shards, Path(folder))
    images, n_bytes = sum(len(s.samples) for s in shards), sum(s.n_bytes for s in shards)
    n_processes = min(workers.count, len(shards)) if n_bytes >= SMALL_JOB or workers.for_small_jobs else 1
    signatures = 0 if config.near_duplicates == "ignore" else images * SIGNATURE
    paths = {path for shard in shards for sample in shard.samples for path in sample.paths}
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]  # or a Zarr folder
    return Estimate(
        images=images,
        seconds=finding + seconds * n_bytes / n_processes,
        bytes_in=sum(file.stat().st_size for file in files),
        bytes_out=written * n_bytes + images * (METADATA_BYTES + SIGNATURE),
        memory=peak_memory() * n_processes + signatures * COMPARISON_BYTES,
        processes=n_processes,
    )


def _try(shards: list[Shard], folder: Path) -> tuple[float, float]:
    """Seconds, and bytes in the file, per byte of an array: runs of samples, the first ones the largest."""
    generator, begin, weights = random.Random(0), time.perf_counter(), [shard.n_bytes for shard in shards]
    seconds, tried, written = 0.0, 0, 0
    largest = max(shards, key=lambda shard: shard.n_bytes / len(shard.pieces))
    for number in itertools.count():
        shard = generator.choices(shards, weights)[0] if number else largest
        n = len(shard.pieces)
        length = max(1, min(n, n * BATCH_BYTES // shard.n_bytes))
        start, path = generator.randrange(n - length + 1), folder / f"{number}.h5"
        part = dataclasses.replace(shard, pieces=shard.pieces[start : start + length], path=path, key=f"{number}")
        result = write_shard(part)
        if result.problems and not part.settings.skip:
            raise UserError(f"one of the images tried cannot be used: {': '.join(result.problems[0])}")
        part.path.unlink(missing_ok=True)
        if number:  # the first one also loads the libraries
            seconds, tried, written = seconds + result.seconds, tried + part.n_bytes, written + result.n_bytes
            if tried >= sum(weights) or time.perf_counter() - begin > SECONDS:
                return seconds / tried, written / tried
    raise AssertionError


def peak_memory() -> int:
    """Peak memory of this process in bytes; 0 on Windows, which does not report it."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
