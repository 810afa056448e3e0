"""`make data`: raw images -> data/processed/<dataset>/{train,val,test}.h5, complete or not at all."""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from project.data import provenance
from project.data.config import PROCESSED, SPLITS, DatasetConfig
from project.data.images import ImageFile, naming, open_image
from project.data.sources import INTEGER_ROLES, Opener, Problems, Sample, find_samples, pick, read_role
from project.data.splits import split_samples
from project.data.statistics import ChannelStatistics
from project.data.store import SplitWriter, dataset_name
from project.errors import UserError, listed

Header = dict[str, tuple[tuple[int, int, int], np.dtype]]


def prepare(name: str, config: DatasetConfig, processed: Path = PROCESSED, console: Console | None = None) -> Path:
    """Prepare one dataset.

    Args:
        name: Name of the dataset: the folder below `processed`.
        config: Where the images lie and how they are split.
        processed: Parent of all prepared datasets.
        console: Where progress is shown.

    Returns:
        The folder with the splits. An earlier version is replaced only when the new one is complete.

    Raises:
        UserError: Anything about the raw files that does not fit; nothing was written then.
    """
    console = console or Console()
    generate_raw(config, console)
    samples = _spread_pages(find_samples(config), config)
    headers = _read_headers(samples, config)
    parts = split_samples(samples, config.split, lambda s: headers[s.id]["image"][0][1:])
    labels, classes = _encode_labels(samples, config)
    final, partial = processed / name, processed / f".{name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_splits(partial, parts, headers, labels, classes, config, console)
        _swap(partial, final)
    except OSError as error:
        raise UserError(f"the prepared data could not be written below {processed}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def generate_raw(config: DatasetConfig, console: Console) -> None:
    """Make the raw files of a demo dataset if they are not there."""
    raw = Path(config.raw)
    if config.generate is None or raw.exists():
        return
    module, _, function = config.generate.rpartition(".")
    partial = raw.with_name(f".{raw.name}.partial")
    try:
        make = getattr(importlib.import_module(module), function)
        inspect.signature(make).bind(partial, **config.generate_arguments)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f'generate: "{config.generate}" could not be called: {error}') from error
    console.print(f"Making the demo images in {raw} ...")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial, **config.generate_arguments)
        partial.rename(raw)
    except OSError as error:
        raise UserError(f"the demo images could not be written to {raw}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _spread_pages(samples: list[Sample], config: DatasetConfig) -> list[Sample]:
    """One sample per page where pages are samples; pages of a file stay in one group."""
    if config.pages == "channels":
        return samples
    problems, spread = Problems(), []
    for sample in samples:
        try:
            pages = {path: _open(path, config).shape[0] for files in sample.files.values() for path, _ in files}
        except UserError as error:
            problems.add(str(error))
            continue
        if len(set(pages.values())) > 1:
            told = ", ".join(f"{path} {n}" for path, n in pages.items())
            problems.add(f"{sample.id}: the numbers of pages differ: {told}")
        if any(channel is not None for files in sample.files.values() for _, channel in files):
            raise UserError("pages: samples does not go together with a channel number in a pattern")
        spread += [
            dataclasses.replace(sample, id=f"{sample.id}/page{page:04d}", page=page)
            for page in range(min(pages.values()))
        ]
    problems.stop_if_any("Some files cannot be used:")
    return spread


def _open(path: Path, config: DatasetConfig) -> ImageFile:
    with naming(path):
        return open_image(path, config.axes)


def _read_headers(samples: list[Sample], config: DatasetConfig) -> dict[str, Header]:
    """Shape and dtype of each role of each sample, checked against each other."""
    problems, headers = Problems(), {}
    opened = functools.cache(lambda path: _open(path, config))  # pages share their file
    for sample in samples:
        try:
            headers[sample.id] = {role: _header(sample, role, opened) for role in sample.files}
        except UserError as error:
            problems.add(str(error))
            continue
        sizes = {role: shape[1:] for role, (shape, _) in headers[sample.id].items()}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{role} {h} x {w}" for role, (h, w) in sizes.items())
            problems.add(f"{sample.id}: sizes differ: {told}")
    problems.stop_if_any("Some files cannot be used:")
    for role in samples[0].files:
        for what, of in (("dtype", lambda h: h[1].name), ("number of channels", lambda h: h[0][0])):
            values = Counter(of(headers[s.id][role]) for s in samples)
            usual = values.most_common(1)[0][0]
            for sample in samples:
                if (value := of(headers[sample.id][role])) != usual:
                    problems.add(f"{sample.id}: {role} has {what} {value}, most have {usual}")
    problems.stop_if_any("The files of one role must be alike; convert them to one kind (grey or RGB, one dtype):")
    return headers


def _header(sample: Sample, role: str, opened: Callable[[Path], ImageFile]) -> tuple[tuple[int, int, int], np.dtype]:
    shapes, dtypes = [], []
    for path, channel in sample.files[role]:
        file = opened(path)
        with naming(path):
            shapes.append(pick(file, channel, sample.page)[0])
        dtypes.append(file.dtype)
    if len({shape[1:] for shape in shapes}) > 1 or len(set(dtypes)) > 1:
        told = ", ".join(f"{s[1]} x {s[2]} {d}" for s, d in zip(shapes, dtypes, strict=True))
        raise UserError(f"{sample.id}: the {role} channels differ in size or dtype: {told}")
    dtype = dtypes[0]
    if role in INTEGER_ROLES and dtype != np.uint8:
        dtype = np.dtype(np.uint16)
    return (sum(s[0] for s in shapes), *shapes[0][1:]), dtype


def _encode_labels(samples: list[Sample], config: DatasetConfig) -> tuple[dict[str, int], list[str] | None]:
    texts = {sample.id: sample.label for sample in samples if sample.label is not None}
    if not texts:
        return {}, config.classes
    classes = config.classes or sorted(
        set(texts.values()), key=lambda t: (not t.isdecimal(), int(t) if t.isdecimal() else t)
    )
    if not set(texts.values()) <= set(classes) and all(text.isdecimal() for text in texts.values()):
        # The table has numbers, the configuration their names.
        texts = {id_: classes[int(t)] if int(t) < len(classes) else t for id_, t in texts.items()}
    stray = sorted(set(texts.values()) - set(classes))
    if stray:
        raise UserError(f"labels that are not among the classes {classes}:\n{listed(stray)}")
    return {id_: classes.index(text) for id_, text in texts.items()}, classes


def _write_splits(
    folder: Path,
    parts: dict[str, list[Sample]],
    headers: dict[str, Header],
    labels: dict[str, int],
    classes: list[str] | None,
    config: DatasetConfig,
    console: Console,
) -> None:
    base = {s.id: s.id.rpartition("@")[0] if s.window else s.id for part in parts.values() for s in part}
    problems, seen = Problems(), defaultdict[str, list[tuple[str, str]]](list)
    attributes = _attributes(parts, next(iter(headers.values())), classes, config)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("Reading", total=sum(map(len, parts.values())))
        # Train comes first: its statistics stand in all files.
        for split in (name for name in SPLITS if name in parts):
            samples = parts[split]
            heads = [headers[base[s.id]] for s in samples]
            shapes = {role: [_shape(s, role, h) for s, h in zip(samples, heads, strict=True)] for role in heads[0]}
            dtypes = {role: dtype for role, (_, dtype) in heads[0].items()}
            numbers = np.array([labels[base[s.id]] for s in samples]) if labels else None
            ids = [s.id for s in samples]
            if len({dataset_name(i) for i in ids}) < len(ids):
                raise UserError('two ids are the same once "/" is written as ":"; rename the files')
            counts, opened = _Counts(config), _opener(samples[0], config)
            with SplitWriter(
                folder / f"{split}.h5", shapes, dtypes, ids, [s.group for s in samples], numbers, config.compression
            ) as writer:
                for index, sample in enumerate(samples):
                    for role, dtype in dtypes.items():
                        try:
                            array = read_role(sample, role, config.axes, opened)
                        except UserError as error:
                            problems.add(str(error))
                            continue
                        writer.write(index, role, array.astype(dtype, copy=False))
                        counts.add(role, array)
                        if role == "image" and array.min() != array.max():  # any two blank images are alike
                            seen[hashlib.sha256(array.tobytes()).hexdigest()].append((split, sample.id))
                    progress.advance(bar)
                if split == "train":
                    attributes["statistics"] = counts.summary(numbers, classes)
                if not problems.lines:
                    writer.finish(attributes)
    problems.stop_if_any("Some files cannot be used:")
    _refuse_leaks(seen)


def _opener(sample: Sample, config: DatasetConfig) -> Opener:
    """Opens files; where pages are samples, the files of one sample stay decoded until the next one's are needed."""
    if config.pages == "channels":
        return open_image

    @functools.lru_cache(maxsize=sum(map(len, sample.files.values())))
    def opened(path: Path, axes: str | None) -> ImageFile:
        file = open_image(path, axes)
        return dataclasses.replace(file, read=functools.cache(file.read))

    return opened


def _shape(sample: Sample, role: str, header: Header) -> tuple[int, ...]:
    channels, height, width = header[role][0]
    if sample.window:
        height, width = sample.window[1] - sample.window[0], sample.window[3] - sample.window[2]
    return (height, width) if role in INTEGER_ROLES else (channels, height, width)


class _Counts:
    """Statistics of one split, gathered while it is written."""

    def __init__(self, config: DatasetConfig) -> None:
        self.config = config
        self.channels = {"image": ChannelStatistics(), "target": ChannelStatistics()}
        self.mask: Counter[int] = Counter()

    def add(self, role: str, array: np.ndarray) -> None:
        if role in self.channels:
            self.channels[role].add(array)
        elif role == "mask":
            values, counts = np.unique(array, return_counts=True)
            self.mask.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def summary(self, labels: np.ndarray | None, classes: list[str] | None) -> dict[str, Any]:
        summary: dict[str, Any] = {role: c.summary() for role, c in self.channels.items() if c.histograms}
        if self.mask:
            summary["mask"] = {str(value): count for value, count in sorted(self.mask.items())}
        if labels is not None and classes:
            summary["label"] = dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))
        return summary


def _channel_names(names: list[str], n_channels: int) -> list[str]:
    """One name per channel: a file with several gives `name[0]`, `name[1]`, ..."""
    if n_channels == len(names):
        return names
    each, rest = divmod(n_channels, len(names))
    return [f"{name}[{i}]" for name in names for i in range(each)] if not rest else [str(i) for i in range(n_channels)]


def _attributes(
    parts: dict[str, list[Sample]], header: Header, classes: list[str] | None, config: DatasetConfig
) -> dict[str, Any]:
    return {
        "channels": {
            role: _channel_names(list(names), header[role][0][0]) for role, names in config.patterns().items()
        },
        "classes": classes,
        "ignore_index": config.ignore_index,
        "split": dataclasses.asdict(config.split) | {"n": {name: len(samples) for name, samples in parts.items()}},
        "source": {
            "command": provenance.command(),
            **provenance.git_state(),
            "versions": provenance.versions(),
            "config": json.loads(json.dumps(dataclasses.asdict(config))),
        },
    }


def _refuse_leaks(seen: dict[str, list[tuple[str, str]]]) -> None:
    problems = Problems()
    for places in seen.values():
        if len({split for split, _ in places}) > 1:
            problems.add(", ".join(f"{id_} ({split})" for split, id_ in places))
    problems.stop_if_any("The same image stands in more than one split; give its copies one group, or remove them:")


def _swap(partial: Path, final: Path) -> None:
    """Put the complete folder where it belongs; the old one goes last."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
