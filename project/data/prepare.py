"""`make data`: raw images -> data/processed/<dataset>/{train,val,test}.h5, complete or not at all."""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import shutil
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from project.data import provenance
from project.data.arrays import find_array_samples
from project.data.config import PROCESSED, DatasetConfig
from project.data.images import ImageFile, naming, open_image
from project.data.sources import (
    INTEGER_ROLES,
    Labels,
    Opener,
    Problems,
    Sample,
    find_labels,
    find_samples,
    image_files,
    read_role,
)
from project.data.splits import split_samples
from project.data.statistics import SplitStatistics
from project.data.store import SplitWriter, dataset_name
from project.errors import UserError

Header = dict[str, tuple[tuple[int, int, int], np.dtype]]
FEW = 6  # values of one image that are told
MADE_MASK = ["background", "object"]  # classes of a mask made of objects


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
    samples = find_array_samples(config) if config.arrays else _spread_pages(find_samples(config), config)
    labels = find_labels(samples, config.class_names("label"))
    headers = _read_headers(samples, config)
    parts = split_samples(samples, config.split, lambda s: headers[s.id]["image"][0][1:])
    final, partial = processed / name, processed / f".{name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_splits(partial, parts, headers, labels, config, console)
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
    opened = functools.cache(open_image)  # pages share their file
    for sample in samples:
        try:
            headers[sample.id] = {role: _header(sample, role, config, opened) for role in sample.roles}
        except UserError as error:
            problems.add(str(error))
            continue
        sizes = {role: shape[1:] for role, (shape, _) in headers[sample.id].items()}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{role} {h} x {w}" for role, (h, w) in sizes.items())
            problems.add(f"{sample.id}: sizes differ: {told}")
    problems.stop_if_any("Some files cannot be used:")
    for role in samples[0].roles:
        for what, of in (("dtype", lambda h: h[1].name), ("number of channels", lambda h: h[0][0])):
            values = Counter(of(headers[s.id][role]) for s in samples)
            usual = values.most_common(1)[0][0]
            for sample in samples:
                if (value := of(headers[sample.id][role])) != usual:
                    problems.add(f"{sample.id}: {role} has {what} {value}, most have {usual}")
    mixed = len({header["image"][0][0] for header in headers.values()}) > 1
    hint = "set `convert: rgb` or `convert: grey`, or save them as" if mixed else "convert them to"
    problems.stop_if_any(f"The files of one role must be alike; {hint} one kind (grey or RGB, one dtype):")
    return headers


def _header(sample: Sample, role: str, config: DatasetConfig, opened: Opener) -> tuple[tuple[int, int, int], np.dtype]:
    files = image_files(sample, role, config.axes, opened, config.convert)
    shapes, dtypes = [file.shape for file in files], [file.dtype for file in files]
    if len({shape[1:] for shape in shapes}) > 1 or len(set(dtypes)) > 1:
        told = ", ".join(f"{s[1]} x {s[2]} {d}" for s, d in zip(shapes, dtypes, strict=True))
        raise UserError(f"{sample.id}: the {role} channels differ in size or dtype: {told}")
    dtype = dtypes[0]
    if role in INTEGER_ROLES and dtype != np.uint8:
        dtype = np.dtype(np.uint16)
    return (sum(s[0] for s in shapes), *shapes[0][1:]), dtype


def _write_splits(
    folder: Path,
    parts: dict[str, list[Sample]],
    headers: dict[str, Header],
    labels: Labels | None,
    config: DatasetConfig,
    console: Console,
) -> None:
    """Read every sample once; all files get their names at the end, when it is known what is in all of them."""
    problems, seen = Problems(), defaultdict[str, list[tuple[str, str]]](list)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    writers, of_train = dict[str, SplitWriter](), dict[str, Any]()
    with ExitStack() as stack:
        stack.enter_context(progress)
        bar = progress.add_task("Reading", total=sum(map(len, parts.values())))
        for split, samples in parts.items():
            writer = writers[split] = stack.enter_context(
                _writer(folder / f"{split}.h5", samples, headers, labels, config)
            )
            statistics, opened = SplitStatistics(), _opener(samples[0], config)
            for index, sample in enumerate(samples):
                for role, array in _read(sample, config, opened, problems).items():
                    writer.write(index, role, array)
                    statistics.add(role, array)
                    if role == "image" and array.min() != array.max():  # any two blank images are alike
                        seen[hashlib.sha256(array.tobytes()).hexdigest()].append((split, sample.id))
                statistics.add_mask(writer.pixels.get(index, {}))
                progress.advance(bar)
            if split == "train":
                of_train = _summary(statistics, samples, labels)
        problems.stop_if_any("Some files cannot be used:")
        _refuse_leaks(seen)
        classes = {"mask": _mask_classes(writers, config)} if config.has_mask else {}
        attributes = _attributes(parts, next(iter(headers.values())), config) | {
            "classes": classes | ({"label": labels.names} if labels else {}),
            "statistics": of_train,
        }
        for writer in writers.values():
            writer.n_classes = len(classes.get("mask", ()))
            writer.finish(attributes)


def _writer(
    path: Path, samples: list[Sample], headers: dict[str, Header], labels: Labels | None, config: DatasetConfig
) -> SplitWriter:
    ids = [s.id for s in samples]
    if len({dataset_name(i) for i in ids}) < len(ids):
        raise UserError('two ids are the same once "/" is written as ":"; rename the files')
    heads = [headers[s.id.rpartition("@")[0] if s.window else s.id] for s in samples]
    shapes = {role: [_shape(s, role, h) for s, h in zip(samples, heads, strict=True)] for role in heads[0]}
    dtypes = {role: dtype for role, (_, dtype) in heads[0].items()}
    if config.makes_mask:
        shapes["mask"], dtypes["mask"] = shapes["instances"], np.dtype(np.uint8)
    return SplitWriter(
        path,
        shapes,
        dtypes,
        ids,
        [s.group for s in samples],
        labels.encode(samples) if labels else None,
        config.compression,
        ignore_index=config.ignore_index,
    )


def _read(sample: Sample, config: DatasetConfig, opened: Opener, problems: Problems) -> dict[str, np.ndarray]:
    """All arrays of a sample, the mask that is made of the objects among them; those that cannot be read are noted."""
    arrays = {}
    for role in sample.roles:
        try:
            arrays[role] = read_role(sample, role, config.axes, opened, config.convert)
        except UserError as error:
            problems.add(str(error))
    if config.makes_mask and "instances" in arrays:
        arrays["mask"] = (arrays["instances"] > 0).astype(np.uint8)
    return arrays


def _summary(statistics: SplitStatistics, samples: list[Sample], labels: Labels | None) -> dict[str, Any]:
    return statistics.summary(labels.encode(samples), labels.names) if labels else statistics.summary()


def _mask_classes(writers: dict[str, SplitWriter], config: DatasetConfig) -> list[str]:
    """Names of the mask's classes; refuses values that are none."""
    found = {
        writer.ids[index]: sorted(set(pixels) - {config.ignore_index})
        for writer in writers.values()
        for index, pixels in writer.pixels.items()
    }
    values = set().union(*found.values())
    names = config.class_names("mask") or (MADE_MASK if config.makes_mask else [])
    if not names and values == {0, 255}:
        raise UserError(
            "the masks hold 0 and 255, which would be 256 classes; save them as 0 and 1, or give the pattern as "
            "`instances` in place of `mask`, where everything above 0 is an object"
        )
    if not names:
        return [str(value) for value in range(max(values, default=0) + 1)]
    problems = Problems()
    for id_, each in sorted(found.items()):
        if stray := [str(value) for value in each if value >= len(names)]:
            problems.add(f"{id_}: {', '.join(stray[:FEW])}{' ...' if len(stray) > FEW else ''}")
    problems.stop_if_any(
        f"Mask values beyond the {len(names)} classes, 0 to {len(names) - 1} ({', '.join(names)}); correct the files, "
        "add names to `classes`, or set `ignore_index` if one value means not annotated:"
    )
    return names


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


def _channel_names(names: list[str], n_channels: int) -> list[str]:
    """One name per channel: a file with several gives `name[0]`, `name[1]`, ..."""
    if n_channels == len(names):
        return names
    each, rest = divmod(n_channels, len(names)) if names else (0, 1)
    return [f"{name}[{i}]" for name in names for i in range(each)] if not rest else [str(i) for i in range(n_channels)]


def _channels(header: Header, config: DatasetConfig) -> dict[str, list[str]]:
    """Role -> channel names. The channels of an array have numbers."""
    names = {role: list(patterns) for role, patterns in config.patterns().items()}
    names |= {role: [role] if role in INTEGER_ROLES else [] for role in config.raw_roles if role not in names}
    if config.convert == "rgb":
        names["image"] = ["red", "green", "blue"]
    if config.makes_mask:
        names["mask"] = ["mask"]
    return {role: _channel_names(each, header[role][0][0]) if role in header else each for role, each in names.items()}


def _attributes(parts: dict[str, list[Sample]], header: Header, config: DatasetConfig) -> dict[str, Any]:
    given = Counter(sample.split for part in parts.values() for sample in part if sample.split)
    return {
        "channels": _channels(header, config),
        "ignore_index": config.ignore_index,
        "split": dataclasses.asdict(config.split)
        | {"n": {name: len(samples) for name, samples in parts.items()}, "given": dict(given)},
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
