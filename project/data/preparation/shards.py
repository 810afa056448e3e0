"""A shard: some samples that are read and written together, by whichever process comes to it."""

import functools
import math
import pickle
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import numpy as np

from project.data.config import SizesConfig
from project.data.duplicates import signature
from project.data.mask_summary import Positions
from project.data.preparation.sizes import fit
from project.data.raw.lazy_image import LazyImage
from project.data.raw.roles import read_role
from project.data.raw.samples import ImageRef, Sample
from project.data.split_writer import ArrayWriter
from project.data.statistics import ImageStatistics, SplitStatistics
from project.errors import UserError

FEW = 6  # values of one image that are told
HIGHEST = 2**16 - 1  # class or object number in the files


@dataclass(frozen=True)
class Settings:
    """What the configuration says about the pixels.

    Attributes:
        dtypes: Array name -> name of the dtype in the file.
        makes_mask: Whether the mask is made of the objects.
        n_classes: Number of mask classes, or 0 where it is not known before.
        signatures: Whether near-duplicates are looked for.
        sizes, not_finite, mask_values, ignore_index, compression: See `DatasetConfig`.
        skip: Whether samples that cannot be used are left out.
    """

    dtypes: dict[str, str]
    makes_mask: bool
    n_classes: int
    signatures: bool
    sizes: SizesConfig | None
    not_finite: float | None
    mask_values: dict[int, int] | None
    ignore_index: int | None
    compression: str
    skip: bool


@dataclass(frozen=True)
class Shard:
    """What is to be done.

    Attributes:
        path: The file to write.
        samples: To be read.
        shapes: Array name -> shape of each sample.
        settings: See `Settings`.
        ragged: Whether the images of the split differ in size.
        key: Changes with everything that has an influence on the result.
    """

    path: Path
    samples: list[Sample]
    shapes: dict[str, list[tuple[int, ...]]]
    settings: Settings
    ragged: bool
    key: str = ""

    @property
    def record(self) -> Path:
        """Where the `Result` is kept, until all shards are there."""
        return self.path.with_suffix(".result")

    @property
    def n_bytes(self) -> int:
        """What its arrays take without compression."""
        sizes = {role: np.dtype(name).itemsize for role, name in self.settings.dtypes.items()}
        return sum(sizes[role] * math.prod(shape) for role, each in self.shapes.items() for shape in each)


@dataclass
class Result:
    """What is known of a shard once it is written; the lists have one entry per sample.

    Attributes:
        key: Of the shard.
        ids: The samples that were written.
        problems: Those that were not, as (id, reason).
        digests: Array name -> digest, per sample.
        pixels: Mask value -> number of pixels, per sample.
        positions: Some pixels of each mask value, per sample.
        n_objects: Number of objects, per sample, where there are instances.
        renumbered: Ids of the samples whose object numbers were changed.
        levels: Role -> levels of the channels, per sample.
        signatures: (n, SIGNATURE) uint8, or None.
        statistics: Fold (or None) -> statistics.
        n_bytes: Size of the file.
        seconds: That it took.
        peak: Most memory that the process ever took, in bytes.
    """

    key: str
    ids: list[str]
    problems: list[tuple[str, str]] = field(default_factory=list)
    digests: list[dict[str, str]] = field(default_factory=list)
    pixels: list[dict[int, int]] = field(default_factory=list)
    n_objects: list[int] = field(default_factory=list)
    renumbered: list[str] = field(default_factory=list)
    positions: list[Positions] = field(default_factory=list)
    levels: dict[str, list[list[ImageStatistics]]] = field(default_factory=lambda: defaultdict(list))
    signatures: np.ndarray | None = None
    statistics: dict[int | None, SplitStatistics] = field(default_factory=lambda: defaultdict(SplitStatistics))
    n_bytes: int = 0
    seconds: float = 0.0
    peak: int = 0


def write_shard(shard: Shard) -> Result:
    """Read the samples of a shard one after the other and write them, unless that was done before.

    Samples that cannot be used stand in `problems`. The file is then written without them where they are skipped, else
    not at all; those after the first are tried all the same, so that all are known.

    Raises:
        OSError: The file cannot be written.
    """
    if earlier := finished(shard):
        return earlier
    start = time.perf_counter()
    result, problems, left = _write(shard), list[tuple[str, str]](), shard
    while result.problems:
        problems += result.problems
        left = without(left, {id_ for id_, _ in result.problems})
        if not shard.settings.skip or not left.samples:
            return _kept(shard, Result(shard.key, [], problems))
        result = _write(left)
    result.problems, result.seconds = problems, time.perf_counter() - start
    return _kept(shard, result)


def finished(shard: Shard) -> Result | None:
    """The result of this very shard, if it was written before."""
    try:
        result = pickle.loads(shard.record.read_bytes())  # written by this module, in a folder of its own
    except (OSError, EOFError, ValueError, AttributeError, ImportError, pickle.PickleError):
        return None
    there = isinstance(result, Result) and result.key == shard.key
    return result if there and (shard.path.is_file() or not result.ids) else None


def _kept(shard: Shard, result: Result) -> Result:
    """The result, written down; last of all, so that a shard with a record is complete."""
    if shard.settings.skip or not result.problems:
        partial = shard.record.with_name(f".{shard.record.name}.{uuid.uuid4().hex}.partial")
        partial.write_bytes(pickle.dumps(result))
        partial.replace(shard.record)
    return result


def without(shard: Shard, ids: set[str]) -> Shard:
    """The shard without some of its samples."""
    left = [sample.id not in ids for sample in shard.samples]
    shapes = {role: list(compress(each, left)) for role, each in shard.shapes.items()}
    return replace(shard, samples=list(compress(shard.samples, left)), shapes=shapes)


def _write(shard: Shard) -> Result:
    """Write the file, unless there are problems."""
    settings, opened = shard.settings, _opener(shard.samples)
    result, signatures = Result(shard.key, [sample.id for sample in shard.samples]), []
    dtypes = {role: np.dtype(name) for role, name in settings.dtypes.items()}
    with ArrayWriter(shard.path, shard.shapes, dtypes, result.ids, settings.compression, shard.ragged) as writer:
        for index, sample in enumerate(shard.samples):
            try:
                arrays = read_sample(sample, settings, opened, result.renumbered)
            except UserError as error:
                result.problems.append((sample.id, str(error)))
                continue
            if result.problems:
                continue  # this file will not be kept
            for role, array in arrays.items():
                writer.write(index, role, array)
                if levels := result.statistics[sample.fold].add(role, array):
                    result.levels[role].append(levels)
            result.pixels.append(writer.pixels.get(index, {}))
            result.positions.append(writer.positions.get(index, {}))
            if "instances" in arrays:
                result.n_objects.append(int(np.count_nonzero(_values(arrays["instances"]))))
            result.statistics[sample.fold].add_mask(result.pixels[-1])
            if settings.signatures:
                signatures.append(signature(arrays["image"]))
        if not result.problems:
            writer.complete()
            result.digests, result.n_bytes = writer.digests, shard.path.stat().st_size
    result.signatures = np.stack(signatures) if signatures else None
    result.peak = peak_memory()
    return result


def peak_memory() -> int:
    """The most memory that this process ever took, in bytes; 0 on systems that do not say."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: `getrusage` counts what the parent took before it started this process
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_sample(
    sample: Sample,
    settings: Settings,
    opened: Callable[[ImageRef], LazyImage],
    renumbered: list[str] | None = None,
) -> dict[str, np.ndarray]:
    """All arrays of a sample as they will stand in the file, the mask that is made of the objects among them.

    Args:
        sample: To be read.
        settings: See `Settings`.
        opened: See `read_role`.
        renumbered: Gets the id of the sample if its object numbers are changed.

    Raises:
        UserError: A file cannot be read, or holds values that cannot be used.
    """
    arrays = dict[str, np.ndarray]()

    def keep(role: str, array: np.ndarray) -> None:
        array = array.astype(settings.dtypes[role], copy=False)
        arrays[role] = fit(array, role, settings.sizes, settings.ignore_index)

    for role in sample.roles:
        array = read_role(sample, role, opened)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            array = _finite(array, role, settings.not_finite)
        if role == "mask":
            array = _classes(array, settings)
        elif role == "instances":
            if array.dtype == np.int64 and renumbered is not None:
                renumbered.append(sample.id)
            array = _numbered(array)
        keep(role, array)
        if role == "instances" and settings.makes_mask:
            keep("mask", array > 0)
    return arrays


def _finite(array: np.ndarray, role: str, fill: float | None) -> np.ndarray:
    if fill is None:
        n = array.size - np.count_nonzero(np.isfinite(array))
        raise UserError(f"{n} pixels of the {role} are NaN or infinite; set `not_finite: 0` or the like, or mend it")
    return np.where(np.isfinite(array), array, np.float32(fill))


def _values(array: np.ndarray) -> np.ndarray:
    """The values that occur in an array of whole numbers, in order."""
    counted = array.dtype in (np.uint8, np.uint16)  # far faster than sorting all pixels
    return np.flatnonzero(np.bincount(array.ravel())) if counted else np.unique(array)


def _classes(mask: np.ndarray, settings: Settings) -> np.ndarray:
    """The class numbers, checked."""
    codes, ignore, n_classes = settings.mask_values, settings.ignore_index, settings.n_classes or HIGHEST + 1
    values = _values(mask)
    known = codes if codes is not None else range(n_classes)
    if stray := [int(value) for value in values if value not in known and value != ignore]:
        shown = ", ".join(map(str, stray[:FEW])) + (" ..." if len(stray) > FEW else "")
        if codes is not None:
            raise UserError(f"mask values {shown} are not in `mask_values`")
        raise UserError(
            f"mask values {shown} are beyond the {n_classes} classes, 0 to {n_classes - 1}; correct the file, add "
            "names to `classes`, set `ignore_index` if one means not annotated, or give each value its class, as "
            f"`mask_values: {{{stray[0]}: {0 if ignore is None else ignore}, ...}}`"
        )
    if codes is None:
        return mask
    numbers = np.array([codes.get(int(value), int(value)) for value in values], np.uint16)
    if mask.dtype == np.int64:
        return numbers[np.searchsorted(values, mask)]
    table = np.zeros(HIGHEST + 1, np.uint16)
    table[values] = numbers
    return table[mask]


def _numbered(instances: np.ndarray) -> np.ndarray:
    """The object numbers, counted from 1 in their order where uint16 cannot hold them."""
    if instances.dtype != np.int64:
        return instances
    values = _values(instances)
    if values[0] < 0:
        raise UserError(f"the instances hold {values[0]}; objects have numbers above 0, and 0 is background")
    values = values[values > 0]
    if len(values) > HIGHEST:
        raise UserError(f"the image has {len(values)} objects; only {HIGHEST} can be told apart. Cut it into tiles")
    return (np.searchsorted(values, instances) + (instances > 0)).astype(np.uint16)


def _opener(samples: list[Sample]) -> Callable[[ImageRef], LazyImage]:
    """Opens images. Those of which windows are read stay open while they are needed, with what was decoded last."""
    if all(sample.window is None for sample in samples):
        return lambda ref: ref.open()

    n_images = sum(map(len, samples[0].images.values()))
    return functools.lru_cache(maxsize=n_images)(lambda ref: ref.open().cached())
