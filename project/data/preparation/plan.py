"""Plan of a preparation: the split of each sample, its windows, and the shards in which it is written."""

import dataclasses
import functools
import hashlib
import io
import pickle
import re
import sys
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from project.data.config import DatasetConfig, SplitConfig, makes_mask
from project.data.leakage import UNLABELED
from project.data.preparation.find import RawDataset, check_remaining, find_raw_dataset, part_names
from project.data.preparation.pixels import PixelSettings, Shapes
from project.data.preparation.shards import Piece, Shard
from project.data.preparation.sizes import cut_windows, target_size
from project.data.preparation.splits import split_samples
from project.data.preparation.workers import Workers
from project.data.raw.images import FunctionImage
from project.data.raw.samples import INTEGER_ROLES, Sample
from project.data.split_metadata import FORMAT, dataset_name
from project.errors import UserError, bullet_list

SHARD_BYTES = 128 * 2**20  # small enough to be in memory, and to be read again after a kill
SHARDS = "shards"  # folder, until the dataset is complete
OBJECT_CLASSES = ["background", "object"]  # classes of a mask made of objects


def find_and_plan(config: DatasetConfig, workers: Workers, folder: Path) -> tuple[RawDataset, list[Shard]]:
    """Find the samples with targets, and plan the shards of these and of the images without; see `plan_shards`."""
    raw = find_raw_dataset(config, workers)
    shards = plan_shards(raw, config, folder)
    if config.unlabelled:
        shards += _plan_unlabeled(raw, config, workers, folder)
    return raw, shards


def plan_shards(raw: RawDataset, config: DatasetConfig, folder: Path, unlabeled: bool = False) -> list[Shard]:
    """Divide the samples into splits, and each split into shards below `folder`; `raw` gets warnings.

    `unlabeled` images, without targets, are all of one split. A `UserError` if the samples do not go with the split,
    `sizes` or names of the configuration.
    """
    if config.split.by == "place" and (windows := [s.id for s in raw.samples if s.window]):
        raise UserError(
            f"`split: {{by: place}}` cuts whole images, but these have windows already:\n{bullet_list(windows)}"
        )
    parts = split_samples(raw.samples, config.split, raw.size, raw.problems.warnings)
    if config.split.by == "place" and len(raw.samples) > 1 and all(s.group == s.id for s in raw.samples):
        raw.problems.notes.append(
            f"the {len(raw.samples)} images without a group are frames of one field, one group for intervals and tests;"
            ' if they show different fields: `group: "field {id}"`'
        )
    if message := describe_series(parts):
        raw.problems.warnings.append(message)
    if unlabeled:
        parts = {UNLABELED: parts["train"]}
    pieces = {split: _cut_samples(samples, raw, config) for split, samples in parts.items()}
    raw.problems.check()
    settings = _settings(raw, config)
    cut = ((split, (sample for sample, _ in of_split)) for split, of_split in pieces.items())
    check_remaining(part_names(parts.items()), part_names(cut), raw.problems)
    return [shard for split, of_split in pieces.items() for shard in _make_shards(split, of_split, settings, folder)]


def _cut_samples(samples: list[Sample], raw: RawDataset, config: DatasetConfig) -> list[Piece]:
    pieces = []
    for sample in samples:
        header, size = raw.header(sample), raw.size(sample)
        try:
            windows = cut_windows(sample, size, config.sizes)
        except UserError as error:
            raw.problems.add(sample.id, str(error))
            continue
        size = target_size(size, config.sizes)
        shapes: Shapes = {
            role: size if role in INTEGER_ROLES else (array.shape[0], *size) for role, array in header.items()
        }
        shapes |= {"mask": size} if makes_mask(shapes) else {}
        pieces += [(window, shapes) for window in windows]
    return pieces


def _settings(raw: RawDataset, config: DatasetConfig) -> PixelSettings:
    headers = [raw.header(sample) for sample in raw.samples]
    dtypes = {role: array.dtype for role, array in headers[0].items()}
    for role in set(INTEGER_ROLES).intersection(dtypes):
        # The classes of pixels may need few bits in one file and many in another.
        dtypes[role] = "uint16" if any(header[role].dtype == "uint16" for header in headers) else "uint8"
    made = makes_mask(dtypes)
    if "mask" in dtypes or made:
        codes = config.mask_values.values() if config.mask_values else ()
        highest = 1 if made else max(codes, default=np.iinfo(dtypes["mask"]).max)
        dtypes["mask"] = "uint8" if max(highest, config.ignore_index or 0) <= 255 else "uint16"
    return PixelSettings(
        dtypes,
        len(config.class_names("mask") or (OBJECT_CLASSES if made else [])),
        config.sizes,
        config.not_finite,
        config.mask_values,
        config.ignore_index,
        config.near_duplicates != "ignore",
        config.compression,
        raw.problems.skip,
    )


def _make_shards(split: str, pieces: list[Piece], settings: PixelSettings, folder: Path) -> list[Shard]:
    """Shards of about the same number of bytes, the same ones for any number of processes."""
    if len({dataset_name(sample.id) for sample, _ in pieces}) < len(pieces):
        raise UserError('two ids are the same once "/" is written as ":"; rename the files')
    shards, filled, ragged = list[Shard](), SHARD_BYTES, any(shapes != pieces[0][1] for _, shapes in pieces)
    for piece in pieces:
        if filled >= SHARD_BYTES:
            path, filled = folder / SHARDS / f"{split}-{len(shards):05d}.h5", 0
            shards.append(Shard(path, split, [], settings, ragged))
        shards[-1].pieces.append(piece)
        filled += settings.n_bytes(piece[1])
    return [with_key(shard) for shard in shards]


def with_key(shard: Shard) -> Shard:
    """The shard with a key that changes with what decides about its content: samples, settings, files, and code."""
    refs = [ref for sample in shard.samples for channels in sample.images.values() for ref in channels]
    # A class or function of the user counts as the code here does.
    modules = {(ref.function if isinstance(ref, FunctionImage) else type(ref)).__module__ for ref in refs}
    code = [FORMAT, *map(_hash_of_code, ["project.data", *sorted(modules)])]
    irrelevant: dict[str, Any] = {"group": "", "label": None, "values": (), "split": None}
    pieces = [(dataclasses.replace(sample, **irrelevant), shapes) for sample, shapes in shard.pieces]
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for ref in refs for path in ref.paths]
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.fast = True  # equal objects give equal bytes, whether or not they are the same object
    try:
        pickler.dump([code, pieces, shard.settings, shard.ragged, files])
    except (pickle.PicklingError, AttributeError, TypeError, ValueError):
        return dataclasses.replace(shard, key=uuid.uuid4().hex)  # a local function: never the same again
    return dataclasses.replace(shard, key=hashlib.sha256(buffer.getvalue()).hexdigest())


@functools.cache
def _hash_of_code(module: str) -> str:
    """Hash of a module, or of all modules of a package."""
    path = Path(getattr(sys.modules[module], "__file__", None) or "")
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


MIN_LENGTH = 3  # numbers that make a series
# What is before the number of a frame, a tile or a position on the stage.
FRAME = re.compile(
    r"(?<![^\W\d_])(t|time|timepoint|tp|f|fr|frame|z|slice|sl|plane|stack|x|y|row|col|r|c|tile|patch|s|p|pos|position|xy|"
    r"point|stage|fov|field|scan)[_\- ]*$",
    re.IGNORECASE,
)


def describe_series(parts: dict[str, list[Sample]]) -> str:
    """A warning where samples are divided although their ids are numbered as frames are, or in several series; else "".

    Groups and given splits say which samples belong together: nothing is said beside them.
    """
    samples = sorted((sample for part in parts.values() for sample in part), key=lambda sample: sample.id)
    is_divided = len(parts) > 1 or len({sample.fold for sample in samples}) > 1
    if not is_divided or any(sample.group != sample.id for sample in samples):
        return ""
    series: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)  # texts around a number -> number -> id
    for sample in (sample for sample in samples if sample.split is None):
        labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
        text = "/".join(part for part in sample.id.split("/") if part not in labels)
        for match in re.finditer(r"\d+", text):
            series[text[: match.start()], text[match.end() :]][int(match[0])] = sample.id
    long = {around: numbers for around, numbers in series.items() if len(numbers) >= MIN_LENGTH}
    named = [numbers for (before, _), numbers in long.items() if FRAME.search(before)]
    several = [numbers for (_, after), numbers in long.items() if not re.search(r"\d", after)]
    if not named and len(several) < 2:
        return ""
    numbers = (named or several)[0]
    examples = ", ".join(f'"{numbers[number]}"' for number in sorted(numbers)[:MIN_LENGTH])
    return (
        f"ids run in series without a group, such as {examples}. Neighbours that overlap or hardly differ leak between "
        "the splits: set `group` (a field such as {movie} in the patterns, or `table.group`), or `split: {by: place}` "
        "for one field"
    )


def _plan_unlabeled(labeled: RawDataset, config: DatasetConfig, workers: Workers, folder: Path) -> list[Shard]:
    """Find the images without targets, `unlabelled:` of a data config, and return their shards.

    The raw dataset `labeled` gets notes, warnings, and the images that are skipped. A file that cannot be used, or of
    another kind than those of the splits, is a `UserError`.
    """
    same = ("raw", "convert", "pages", "axes", "sizes", "not_finite", "on_error", "near_duplicates", "compression")
    options: dict[str, Any] = {key: getattr(config, key) for key in same}
    config = DatasetConfig(image=config.unlabelled, split=SplitConfig(fractions={"train": 1.0}), **options)
    try:
        raw = find_raw_dataset(config, workers)
    except UserError as error:
        raise UserError(f"unlabelled: {error}") from error
    if (kind := _describe_kind(raw)) != (expected := _describe_kind(labeled)):
        raise UserError(f"unlabelled: the images have {kind}, those with targets {expected}; they must be of one kind")
    shards = plan_shards(raw, config, folder, unlabeled=True)
    labeled.problems.skipped += [(f"{id_} ({UNLABELED})", reason) for id_, reason in raw.problems.skipped]
    labeled.problems.warnings += raw.problems.warnings
    labeled.notes += [f"unlabelled: {note}" for note in raw.notes]  # files without a pattern are counted there
    return shards


def _describe_kind(raw: RawDataset) -> str:
    header = raw.headers[raw.samples[0].id]["image"]
    return f"{header.shape[0]} channel(s) ({', '.join(raw.channels['image'])}) of {header.dtype}"
