"""What `make data` is going to do: which samples there are, what each is like, where it goes; no pixel is read."""

import dataclasses
import functools
import hashlib
import io
import math
import pickle
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from project.data.config import DatasetConfig, makes_mask
from project.data.preparation.executors import Reporter, Workers
from project.data.preparation.series import describe_series, without_groups
from project.data.preparation.shards import Settings, Shard
from project.data.preparation.sizes import final_size, place
from project.data.preparation.splits import split_samples
from project.data.raw.find import find_samples
from project.data.raw.images import FunctionImage
from project.data.raw.labels import LabelEncoder, find_labels
from project.data.raw.roles import check_one_channel, open_role, role_notes
from project.data.raw.samples import INTEGER_ROLES, Problems, Sample, grouped_notes, listed_problems
from project.data.raw.sources import find_source
from project.data.split_metadata import FORMAT, dataset_name
from project.errors import UserError, bullet_list

SHARD_BYTES = 128 * 2**20  # little enough to be done again after a kill
MOST_SHARDS = 128  # of a split: each takes file descriptors of every process that reads
HEADERS_AT_A_TIME = 256
FEW = 4096  # headers that one process reads in about a second
MADE_MASK = ["background", "object"]  # classes of a mask made of objects

Shape = tuple[int, ...]
Header = dict[str, tuple[tuple[int, ...], str]]  # role -> (C, H, W) and the name of the dtype


@dataclass
class Found:
    """The samples that can be used, as far as their headers tell.

    Attributes:
        samples: In the order of their ids.
        headers: Id -> header.
        labels: How the labels become numbers, or None.
        problems: Holds the samples that were skipped.
        notes: What is worth knowing about the files.
        channels: Role -> names of its channels.
    """

    samples: list[Sample]
    headers: dict[str, Header]
    labels: LabelEncoder | None
    problems: Problems
    notes: list[str]
    channels: dict[str, list[str]]


def find(config: DatasetConfig, workers: Workers, reporter: Reporter) -> Found:
    """Find the samples and read the headers of their files.

    Raises:
        UserError: Anything that does not fit; all offenders of a kind are listed.
    """
    problems, labels = Problems(skip=config.on_error == "skip"), None
    with problems.reported_together():
        _check_values(config)
        source = find_source(config)
        samples = find_samples(config, problems, source)
        with problems.deferred():
            labels = find_labels(problems.without_reported(samples), config.class_names("label"), problems)
        samples, given = problems.without_skipped(samples), _by_split(samples)
        reporter.start("Reading headers", len(samples))
        headers, notes = _read_headers(samples, workers, reporter, problems)
        samples = [sample for sample in samples if headers[sample.id]]
        _check_alike(samples, headers, problems)
        samples = problems.without_skipped(samples)
        if not problems.sections:
            check_left(given, _by_split(samples), problems)
        _check_sizes(samples, headers, config)
    channels = {
        role: _channel_names(list(source.channels.get(role, [])), role, shape[0])
        for role, (shape, _) in headers[samples[0].id].items()
    }
    if makes_mask(channels):
        channels["mask"] = ["mask"]
    return Found(samples, headers, labels, problems, notes, channels)


def _check_values(config: DatasetConfig) -> None:
    """Refuse values that no pixel can have."""
    fill, ignored, names = config.not_finite, config.ignore_index, config.class_names("mask")
    if fill is not None and not abs(fill) <= float(np.finfo(np.float32).max):
        raise UserError(f"not_finite: {fill:g} is no finite number of 32 bits")
    if ignored is not None and not 0 <= ignored <= 65535:
        raise UserError(
            f"ignore_index: the values of a mask are 0 to 65535, not {ignored}; write `ignore_index: 255` with "
            f"`mask_values: {{{ignored}: 255, 0: 0, ...}}` if that value means not annotated, or leave it out"
        )
    codes = {code: number for code, number in (config.mask_values or {}).items() if number != ignored}
    if names and (beyond := [f"{code}: {number}" for code, number in codes.items() if number >= len(names)]):
        raise UserError(
            f"mask_values: {', '.join(beyond)} is beyond the {len(names)} classes, 0 to {len(names) - 1} "
            f"({', '.join(names)})"
        )


def _by_split(samples: list[Sample]) -> dict[str, list[Sample]]:
    """The samples of each given split; "" for none."""
    parts: dict[str, list[Sample]] = {}
    for sample in samples:
        parts.setdefault(sample.split or "", []).append(sample)
    return parts


def check_left(before: dict[str, list[Sample]], after: dict[str, list[Sample]], problems: Problems) -> None:
    """Raise a `UserError` if a split or fold, or the whole dataset, has lost all its samples."""
    places, left = (
        dict.fromkeys(
            split if s.fold is None else f"fold {s.fold}" for split, samples in parts.items() for s in samples
        )
        for parts in (before, after)
    )
    if (lost := [place for place in places if place and place not in left]) or not left:
        where = f" for {' and '.join(lost)}" if left else ""
        raise UserError(
            f"no sample is left{where}; what was left out:\n{listed_problems(problems.skipped)}\nNothing was written."
        )


def _channel_names(names: list[str], role: str, n_channels: int) -> list[str]:
    """One name per channel: a file with several gives `name[0]`, `name[1]`, ...; without names they have numbers."""
    if role in INTEGER_ROLES:
        return [role]
    if n_channels == len(names):
        return names
    each, rest = divmod(n_channels, len(names)) if names else (0, 1)
    return [f"{name}[{i}]" for name in names for i in range(each)] if not rest else [str(i) for i in range(n_channels)]


def _read_headers(
    samples: list[Sample], workers: Workers, reporter: Reporter, problems: Problems
) -> tuple[dict[str, Header], list[str]]:
    headers, alike, notes = dict[str, Header](), dict[str, Header](), list[tuple[str, str]]()
    chunks = (samples[i : i + HEADERS_AT_A_TIME] for i in range(0, len(samples), HEADERS_AT_A_TIME))
    for chunk, results in workers.run(headers_of, chunks, little=len(samples) < FEW):
        for sample, (header, error, told) in zip(chunk, results, strict=True):
            if error:
                problems.add(sample.id, error)
            headers[sample.id] = alike.setdefault(repr(header), header)  # most are equal, and kept once
            notes += [(sample.id, note) for note in told]
        reporter.advance(len(chunk))
    problems.pending.sort()  # chunks come in any order
    problems.raise_or_skip("Some files cannot be used:")
    return headers, grouped_notes(notes)


def headers_of(samples: list[Sample]) -> list[tuple[Header, str, list[str]]]:
    """Header, error (or nothing) and notes of each sample."""
    results: list[tuple[Header, str, list[str]]] = []
    for sample in samples:
        try:
            results.append(_header(sample))
        except UserError as error:
            results.append(({}, str(error), []))
    return results


def _header(sample: Sample) -> tuple[Header, str, list[str]]:
    header, notes = Header(), []
    for role in sample.roles:
        files = open_role(sample, role, lambda ref: ref.open())
        shapes, dtypes = [file.shape for file in files], [file.dtype for file in files]
        if len({shape[1:] for shape in shapes}) > 1 or len(set(dtypes)) > 1:
            told = ", ".join(f"{s[1]} x {s[2]} {d}" for s, d in zip(shapes, dtypes, strict=True))
            raise UserError(f"the {role} channels differ in size or dtype: {told}")
        if role in INTEGER_ROLES:
            check_one_channel(sample, role, sum(shape[0] for shape in shapes))
        dtype = "uint16" if role in INTEGER_ROLES and dtypes[0] != np.uint8 else dtypes[0].name
        header[role] = (sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype
        notes += role_notes(role, files)
    sizes = {role: shape[1:] for role, (shape, _) in header.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"sizes differ: {', '.join(f'{role} {h} x {w}' for role, (h, w) in sizes.items())}")
    if sample.window:
        (y0, y1, x0, x1), (height, width) = sample.window, sizes["image"]
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise UserError(f"the window {sample.window} lies outside the image of {height} x {width}")
    return header, "", notes


def _check_alike(samples: list[Sample], headers: dict[str, Header], problems: Problems) -> None:
    """All have the same roles; images and targets have one dtype and number of channels."""
    if not samples:
        return
    roles = _usual(tuple(headers[s.id]) for s in samples)
    for sample in samples:
        if (own := tuple(headers[sample.id])) != roles:
            problems.add(sample.id, f"has {', '.join(own)}, most have {', '.join(roles)}")
    problems.raise_or_skip("All samples must have the same arrays:")
    samples = problems.without_skipped(samples)
    whats: dict[str, Callable[[Header, str], Any]] = {
        "dtype": lambda header, role: header[role][1],
        "number of channels": lambda header, role: header[role][0][0],
    }
    for role in (role for role in roles if role not in INTEGER_ROLES):
        for what, of in whats.items():
            usual = _usual(of(headers[s.id], role) for s in samples)
            for sample in samples:
                if (value := of(headers[sample.id], role)) != usual:
                    problems.add(sample.id, f"{role} has {what} {value}, most have {usual}")
    mixed = len({headers[s.id]["image"][0][0] for s in samples}) > 1
    hint = "set `convert: rgb` or `convert: grey`, or save them as" if mixed else "convert them to"
    problems.raise_or_skip(f"The files of one role must be alike; {hint} one kind (grey or RGB, one dtype):")


def _usual(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _check_sizes(samples: list[Sample], headers: dict[str, Header], config: DatasetConfig) -> None:
    ids = defaultdict[tuple[int, int], list[str]](list)
    for sample in samples:
        ids[_size(sample, headers[sample.id])].append(sample.id)
    if len(ids) > 1 and config.sizes is None:
        lines = [
            f"{h} x {w}: {len(names)} image{'s' * (len(names) > 1)}, {'such as ' * (len(names) > 1)}{names[0]}"
            for (h, w), names in sorted(ids.items(), key=lambda item: -len(item[1]))
        ]
        least = min(min(size) for size in ids)
        raise UserError(
            f"the images have {len(ids)} sizes:\n{bullet_list(lines)}\n"
            "Say what shall be done: `sizes: {how: keep}` keeps each as it is, `sizes: {how: tile, size: "
            f"{2 ** int(math.log2(least))}}}` cuts them into tiles; crop, pad and resize are there too.\n"
            "Nothing was written."
        )


def _size(sample: Sample, header: Header) -> tuple[int, int]:
    """Height and width of what is kept of an image."""
    y0, y1, x0, x1 = sample.window or (0, header["image"][0][1], 0, header["image"][0][2])
    return y1 - y0, x1 - x0


def make_shards(found: Found, config: DatasetConfig, folder: Path) -> dict[str, list[Shard]]:
    """Divide the samples into splits, and each split into shards.

    Args:
        found: See `find`.
        config: Of the dataset.
        folder: Where the shards are written.

    Raises:
        UserError: The splits cannot be made, images do not fit `sizes`, or names collide.
    """
    headers = found.headers
    if config.split.by == "place" and (cut := [s.id for s in found.samples if s.window]):
        raise UserError(
            f"`split: {{by: place}}` cuts whole images, but these have windows already:\n{bullet_list(cut)}"
        )
    parts = split_samples(found.samples, config.split, lambda s: _size(s, headers[s.id]), found.problems.warnings)
    if message := describe_series(without_groups(parts)):
        found.problems.warnings.append(message)
    settings = _settings(found, config)
    placed = {split: _placed(samples, headers, config, found.problems) for split, samples in parts.items()}
    found.problems.raise_or_skip("Some images do not fit what `sizes` says:")
    check_left(parts, {split: [sample for sample, _ in each] for split, each in placed.items()}, found.problems)
    return {split: _cut(split, each, settings, folder) for split, each in placed.items()}


Placed = tuple[Sample, dict[str, Shape]]


def _placed(
    samples: list[Sample], headers: dict[str, Header], config: DatasetConfig, problems: Problems
) -> list[Placed]:
    """What is written of each sample, and the shapes of its arrays."""
    found = []
    for sample in samples:
        header = headers[sample.id.rpartition("@")[0] if config.split.by == "place" else sample.id]
        size = _size(sample, header)
        try:
            pieces = place(sample, size, config.sizes)
        except UserError as error:
            problems.add(sample.id, str(error))
            continue
        found += [(piece, _shapes(header, size, config)) for piece in pieces]
    return found


def _shapes(header: Header, size: tuple[int, int], config: DatasetConfig) -> dict[str, Shape]:
    h, w = final_size(size, config.sizes)
    shapes: dict[str, Shape] = {
        role: (h, w) if role in INTEGER_ROLES else (shape[0], h, w) for role, (shape, _) in header.items()
    }
    if makes_mask(shapes):
        shapes["mask"] = (h, w)
    return shapes


def _settings(found: Found, config: DatasetConfig) -> Settings:
    headers = [found.headers[sample.id] for sample in found.samples]
    dtypes = {role: dtype for role, (_, dtype) in headers[0].items()}
    for role in INTEGER_ROLES:
        # The classes of pixels may need few bits in one file and many in another.
        if role in dtypes and any(header[role][1] != "uint8" for header in headers):
            dtypes[role] = "uint16"
    made = makes_mask(dtypes)
    if "mask" in dtypes or made:
        codes = config.mask_values.values() if config.mask_values else ()
        highest = 1 if made else max(codes, default=255 if dtypes["mask"] == "uint8" else 65535)
        dtypes["mask"] = "uint8" if max(highest, config.ignore_index or 0) <= 255 else "uint16"
    n_classes = len(config.class_names("mask") or (MADE_MASK if made else []))
    return Settings(
        dtypes,
        made,
        n_classes,
        config.near_duplicates != "ignore",
        config.sizes,
        config.not_finite,
        config.mask_values,
        config.ignore_index,
        config.compression,
        found.problems.skip,
    )


def _cut(split: str, placed: list[Placed], settings: Settings, folder: Path) -> list[Shard]:
    """Shards of about the same number of bytes, the same ones however many processes work on them."""
    names = Counter(dataset_name(sample.id) for sample, _ in placed)
    if max(names.values()) > 1:
        raise UserError('two ids are the same once "/" is written as ":"; rename the files')
    itemsize = {role: np.dtype(name).itemsize for role, name in settings.dtypes.items()}
    sizes = [sum(math.prod(shape) * itemsize[role] for role, shape in shapes.items()) for _, shapes in placed]
    most = max(SHARD_BYTES, sum(sizes) / MOST_SHARDS)
    runs, filled = list[list[Placed]](), most
    for each, size in zip(placed, sizes, strict=True):
        if filled >= most:
            runs.append([])
            filled = 0
        runs[-1].append(each)
        filled += size
    roles = list(placed[0][1])
    ragged = any(shapes != placed[0][1] for _, shapes in placed)
    shards = []
    for number, run in enumerate(runs):
        path = folder / (f"{split}.h5" if len(runs) == 1 else f"shards/{split}-{number:05d}.h5")
        shapes = {role: [shapes[role] for _, shapes in run] for role in roles}
        shard = Shard(path, [sample for sample, _ in run], shapes, settings, ragged)
        shards.append(dataclasses.replace(shard, key=shard_key(shard)))
    return shards


def shard_key(shard: Shard) -> str:
    """Changes with everything that decides what is in the shard: the task as it is sent to a process, files, code."""
    refs = [ref for s in shard.samples for each in s.images.values() for ref in each]
    # A class or function of the user's own counts as the code here does.
    modules = {(ref.function if isinstance(ref, FunctionImage) else type(ref)).__module__ for ref in refs}
    code = [FORMAT, _code(), *map(_code_of, sorted(modules))]
    # Of a sample, only this is no matter of its pixels.
    samples = [dataclasses.replace(s, group="", label=None, values=(), split=None) for s in shard.samples]
    content = [code, samples, shard.shapes, shard.settings, shard.ragged, [_stamps(ref.paths) for ref in refs]]
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.fast = True  # equal objects give equal bytes, whether or not they are the same object
    try:
        pickler.dump(content)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError):
        return uuid.uuid4().hex  # such as a local function: what was made of it before is not used again
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _stamps(paths: tuple[Path, ...]) -> list[tuple[str, int, int]]:
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path in paths for stat in [path.stat()]]


@functools.cache
def _code() -> str:
    """Hash of the modules that read and write."""
    content = [path.read_bytes() for path in sorted(Path(__file__).parents[1].glob("**/*.py"))]
    return hashlib.sha256(b"".join(content)).hexdigest()


@functools.cache
def _code_of(module: str) -> str:
    """Hash of one module."""
    path = getattr(sys.modules[module], "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else module
