"""Plan of a preparation: the split of each sample, its windows, and the shards in which it is written."""

import dataclasses
import functools
import hashlib
import io
import math
import pickle
import sys
import uuid
from pathlib import Path

import numpy as np

from project.data.config import DatasetConfig, makes_mask
from project.data.leakage import UNLABELED
from project.data.preparation.find import ArrayHeader, RawDataset, check_remaining, window_size
from project.data.preparation.series import describe_series, ungrouped_samples
from project.data.preparation.shards import Shard, ShardSettings
from project.data.preparation.sizes import cut_windows, final_size
from project.data.preparation.splits import split_samples
from project.data.raw.images import FunctionImage
from project.data.raw.samples import INTEGER_ROLES, Sample
from project.data.split_metadata import FORMAT, dataset_name
from project.errors import UserError, bullet_list

SHARD_BYTES = 128 * 2**20  # small enough to be read again after a kill
MAX_SHARDS = 128  # of a split: each takes file descriptors of every process that reads
SHARDS = "shards"  # folder, until the dataset is complete
OBJECT_CLASSES = ["background", "object"]  # classes of a mask made of objects

Shards = dict[str, list[Shard]]  # split -> its shards
Shapes = dict[str, tuple[int, ...]]  # array name -> shape


def plan_shards(raw: RawDataset, config: DatasetConfig, folder: Path, unlabeled: bool = False) -> Shards:
    """Divide the samples into splits, and each split into shards.

    Args:
        raw: See `find_raw_dataset`; gets warnings.
        config: A `UserError` if it does not go with the samples: splits, `sizes`, names.
        folder: Where the shards are written.
        unlabeled: Whether these are images without targets, which are all of one split.
    """
    if config.split.by == "place" and (cut := [s.id for s in raw.samples if s.window]):
        raise UserError(
            f"`split: {{by: place}}` cuts whole images, but these have windows already:\n{bullet_list(cut)}"
        )
    parts = split_samples(raw.samples, config.split, raw.size, raw.problems.warnings)
    if message := describe_series(ungrouped_samples(parts)):
        raw.problems.warnings.append(message)
    if unlabeled:
        parts = {UNLABELED: parts["train"]}
    pieces = {split: _cut_samples(samples, raw, config) for split, samples in parts.items()}
    raw.problems.check()
    check_remaining(parts, {split: [sample for sample, _ in each] for split, each in pieces.items()}, raw.problems)
    settings = _settings(raw, config)
    return {split: _make_shards(split, each, settings, folder) for split, each in pieces.items()}


def _cut_samples(samples: list[Sample], raw: RawDataset, config: DatasetConfig) -> list[tuple[Sample, Shapes]]:
    """What is written of each sample, and the shapes of its arrays."""
    pieces = []
    for sample in samples:
        header = raw.headers[sample.id.rpartition("@")[0] if config.split.by == "place" else sample.id]
        size = window_size(sample, header)
        try:
            windows = cut_windows(sample, size, config.sizes)
        except UserError as error:
            raw.problems.add(sample.id, str(error))
            continue
        shapes = _shapes(header, final_size(size, config.sizes))
        pieces += [(window, shapes) for window in windows]
    return pieces


def _shapes(header: dict[str, ArrayHeader], size: tuple[int, int]) -> Shapes:
    shapes: Shapes = {
        role: size if role in INTEGER_ROLES else (array.shape[0], *size) for role, array in header.items()
    }
    return shapes | {"mask": size} if makes_mask(shapes) else shapes


def _settings(raw: RawDataset, config: DatasetConfig) -> ShardSettings:
    headers = [raw.headers[sample.id] for sample in raw.samples]
    dtypes = {role: array.dtype for role, array in headers[0].items()}
    for role in INTEGER_ROLES:
        # The classes of pixels may need few bits in one file and many in another.
        if role in dtypes and any(header[role].dtype != "uint8" for header in headers):
            dtypes[role] = "uint16"
    made = makes_mask(dtypes)
    if "mask" in dtypes or made:
        codes = config.mask_values.values() if config.mask_values else ()
        highest = 1 if made else max(codes, default=255 if dtypes["mask"] == "uint8" else 65535)
        dtypes["mask"] = "uint8" if max(highest, config.ignore_index or 0) <= 255 else "uint16"
    return ShardSettings(
        dtypes,
        made,
        len(config.class_names("mask") or (OBJECT_CLASSES if made else [])),
        config.sizes,
        config.not_finite,
        config.mask_values,
        config.ignore_index,
        config.near_duplicates != "ignore",
        config.compression,
        raw.problems.skip,
    )


def _make_shards(split: str, pieces: list[tuple[Sample, Shapes]], settings: ShardSettings, folder: Path) -> list[Shard]:
    """Shards of about the same number of bytes, the same ones for any number of processes."""
    if len({dataset_name(sample.id) for sample, _ in pieces}) < len(pieces):
        raise UserError('two ids are the same once "/" is written as ":"; rename the files')
    itemsize = {role: np.dtype(name).itemsize for role, name in settings.dtypes.items()}
    sizes = [sum(math.prod(shape) * itemsize[role] for role, shape in shapes.items()) for _, shapes in pieces]
    limit = max(SHARD_BYTES, sum(sizes) / MAX_SHARDS)
    runs, filled = list[list[tuple[Sample, Shapes]]](), limit
    for piece, size in zip(pieces, sizes, strict=True):
        if filled >= limit:
            runs.append([])
            filled = 0
        runs[-1].append(piece)
        filled += size
    ragged = any(shapes != pieces[0][1] for _, shapes in pieces)
    return [
        with_key(
            Shard(
                folder / SHARDS / f"{split}-{number:05d}.h5",
                [sample for sample, _ in run],
                {role: [shapes[role] for _, shapes in run] for role in pieces[0][1]},
                settings,
                ragged,
            )
        )
        for number, run in enumerate(runs)
    ]


def with_key(shard: Shard) -> Shard:
    """The shard with a key that changes with what decides about its content: samples, settings, files, and code."""
    refs = [ref for sample in shard.samples for channels in sample.images.values() for ref in channels]
    # A class or function of the user counts as the code here does.
    modules = {(ref.function if isinstance(ref, FunctionImage) else type(ref)).__module__ for ref in refs}
    code = [FORMAT, *map(_hash_of_code, ["project.data", *sorted(modules)])]
    # The other attributes of a sample have no influence on its pixels.
    samples = [dataclasses.replace(s, group="", label=None, values=(), split=None) for s in shard.samples]
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for ref in refs for path in ref.paths]
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.fast = True  # equal objects give equal bytes, whether or not they are the same object
    try:
        pickler.dump([code, samples, shard.shapes, shard.settings, shard.ragged, files])
    except (pickle.PicklingError, AttributeError, TypeError, ValueError):
        return dataclasses.replace(shard, key=uuid.uuid4().hex)  # a local function: never the same again
    return dataclasses.replace(shard, key=hashlib.sha256(buffer.getvalue()).hexdigest())


@functools.cache
def _hash_of_code(module: str) -> str:
    """Hash of a module, or of all modules of a package."""
    path = Path(getattr(sys.modules[module], "__file__", None) or "")
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()
