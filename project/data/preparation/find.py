"""Finds the samples of a dataset and checks the headers of their files; no pixels are read."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from project.data.config import DatasetConfig, makes_mask
from project.data.preparation.pixels import open_role, role_notes
from project.data.preparation.workers import Workers
from project.data.raw.find_samples import collect_samples
from project.data.raw.labels import LabelEncoder, find_labels
from project.data.raw.samples import INTEGER_ROLES, UNWRITTEN, Problems, Sample, grouped_notes, listed_problems
from project.data.raw.sources import find_source
from project.errors import UserError, bullet_list

HEADERS_PER_TASK = 256
SMALL_JOB = 4096  # headers that one process reads in about a second


class ArrayHeader(NamedTuple):
    """Shape (C, H, W) and name of the dtype of one array of a sample."""

    shape: tuple[int, int, int]
    dtype: str


Header = dict[str, ArrayHeader]  # by role


@dataclass
class RawDataset:
    """The samples that can be used, as far as their headers show."""

    samples: list[Sample]  # in the order of their ids
    headers: dict[str, Header]  # by id
    labels: LabelEncoder | None  # how the labels become numbers
    problems: Problems  # holds the samples that were skipped
    notes: list[str]  # what the user should know about the files
    channels: dict[str, list[str]] = field(default_factory=dict)  # role -> names of its channels

    def header(self, sample: Sample) -> Header:
        """The header of a sample, or of the one that it is a region of, as "id@x0-320"."""
        return self.headers.get(sample.id) or self.headers[sample.id.rpartition("@")[0]]

    def size(self, sample: Sample) -> tuple[int, int]:
        """Height and width of an image, or of the window of it that is kept."""
        _, height, width = self.header(sample)["image"].shape
        y0, y1, x0, x1 = sample.window or (0, height, 0, width)
        return y1 - y0, x1 - x0


def find_raw_dataset(config: DatasetConfig, workers: Workers) -> RawDataset:
    """Find the samples and read the headers of their files; a `UserError` lists everything that does not fit."""
    problems, labels = Problems(skip=config.on_error == "skip"), None
    source = find_source(config)
    samples = collect_samples(config, problems, source)
    with problems.collected():
        labels = find_labels(samples, config.class_names("label"), problems)
    given, samples = {sample.split or "" for sample in samples}, problems.usable(samples)
    headers, notes = _read_headers(samples, workers, problems)
    raw = RawDataset(samples, headers, labels, problems, notes)
    for check in (_check_kinds, _check_sizes):
        raw.samples = problems.usable(raw.samples)
        with problems.collected():
            check(raw, config)
    problems.check()
    check_remaining(given, {sample.split or "" for sample in raw.samples}, problems)
    for role, header in raw.header(raw.samples[0]).items():
        raw.channels[role] = _channel_names(list(source.channels.get(role, [])), role, header.shape[0])
    if makes_mask(raw.channels):
        raw.channels["mask"] = ["mask"]
    return raw


def part_names(splits: Iterable[tuple[str, Iterable[Sample]]]) -> list[str]:
    """The splits and folds that have samples."""
    return list(dict.fromkeys(split if s.fold is None else f"fold {s.fold}" for split, part in splits for s in part))


def check_remaining(before: Collection[str], after: Collection[str], problems: Problems) -> None:
    """Raise a `UserError` if a split or fold, or the whole dataset, has lost all its samples."""
    if (lost := sorted(part for part in before if part and part not in after)) or not after:
        which = f" for {' and '.join(lost)}" if after else ""
        advice = ""
        if any(reason.startswith(("looks like", "the same image as")) for _, reason in problems.skipped):
            advice = "\nFor frames of one field set `split: {by: place}`; for images that only look alike "
            advice += "`near_duplicates: warn`."
        left_out = listed_problems(problems.skipped)
        raise UserError(f"no sample is left{which}; what was left out:\n{left_out}{advice}{UNWRITTEN}")


def _channel_names(names: list[str], role: str, n_channels: int) -> list[str]:
    """One name per channel: `name[0]`, `name[1]`, ... of a file with several; numbers where there are no names."""
    if role in INTEGER_ROLES:
        return [role]
    if n_channels == len(names):
        return names
    if not names or n_channels % len(names):
        return [str(i) for i in range(n_channels)]
    return [f"{name}[{i}]" for name in names for i in range(n_channels // len(names))]


def _read_headers(samples: list[Sample], workers: Workers, problems: Problems) -> tuple[dict[str, Header], list[str]]:
    headers, shared, notes = dict[str, Header](), dict[str, Header](), list[tuple[str, str]]()
    chunks = [samples[i : i + HEADERS_PER_TASK] for i in range(0, len(samples), HEADERS_PER_TASK)]
    workers.progress.begin("Reading headers", len(samples))
    for chunk, results in workers.run(_read_chunk, chunks, is_small=len(samples) < SMALL_JOB):
        for sample, result in zip(chunk, results, strict=True):
            if isinstance(result, str):
                problems.add(sample.id, result)
            else:  # most headers are equal, and kept in memory once
                headers[sample.id] = shared.setdefault(repr(result[0]), result[0])
                notes += [(sample.id, note) for note in result[1]]
        workers.progress.count(len(chunk))
    return headers, grouped_notes(notes)


def _read_chunk(samples: list[Sample]) -> list[tuple[Header, list[str]] | str]:
    """Header and notes of each sample, or its error."""
    results: list[tuple[Header, list[str]] | str] = []
    for sample in samples:
        try:
            results.append(_read_header(sample))
        except UserError as error:
            results.append(str(error))
    return results


def _read_header(sample: Sample) -> tuple[Header, list[str]]:
    arrays, notes = Header(), list[str]()
    for role in sample.roles:
        images = open_role(sample, role, lambda ref: ref.open())
        n_channels, (height, width), dtype = sum(i.shape[0] for i in images), images[0].shape[1:], images[0].dtype
        if any(image.shape[1:] != (height, width) or image.dtype != dtype for image in images):
            listed = ", ".join(f"{image.shape[1]} x {image.shape[2]} {image.dtype}" for image in images)
            raise UserError(f"the {role} channels differ in size or dtype: {listed}")
        if role in INTEGER_ROLES and n_channels != 1:
            where = f"{sample.images[role][0]}: {role} must have one channel"
            raise UserError(f"{where}, this has {n_channels}; save it as gray or palette")
        name = "uint16" if role in INTEGER_ROLES and dtype != np.uint8 else dtype.name
        arrays[role] = ArrayHeader((n_channels, height, width), name)
        notes += role_notes(role, images)
    sizes = {role: array.shape[1:] for role, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{role} {h} x {w}" for role, (h, w) in sizes.items())
        advice = "are these files of one image? If so, resize one, masks with the nearest value"
        raise UserError(f"sizes differ: {listed}; {advice}")
    if sample.window:
        (y0, y1, x0, x1), (height, width) = sample.window, sizes["image"]
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise UserError(f"the window {sample.window} lies outside the image of {height} x {width}")
    return arrays, notes


def _check_kinds(raw: RawDataset, config: DatasetConfig) -> None:
    """Images and targets have one dtype and number of channels."""
    mixed = len({raw.header(sample)["image"].shape[0] for sample in raw.samples}) > 1
    hint = "set `convert: rgb` or `convert: grey`, or save it" if mixed else "convert it"
    for role in (role for role in ("image", "target") if raw.samples and role in raw.samples[0].images):
        headers = [raw.header(sample)[role] for sample in raw.samples]
        for name, values in (
            ("dtype", [header.dtype for header in headers]),
            ("number of channels", [str(header.shape[0]) for header in headers]),
        ):
            ((usual, _),) = Counter(values).most_common(1)
            for sample, value in zip(raw.samples, values, strict=True):
                if value != usual:
                    raw.problems.add(sample.id, f"{role} has {name} {value}, most have {usual}: {hint} like the others")


def _check_sizes(raw: RawDataset, config: DatasetConfig) -> None:
    ids = defaultdict[tuple[int, int], list[str]](list)
    for sample in raw.samples:
        ids[raw.size(sample)].append(sample.id)
    if len(ids) > 1 and config.sizes is None:
        lines = [
            f"{h} x {w}: {len(names)} image{'s' * (len(names) > 1)}, {'such as ' * (len(names) > 1)}{names[0]}"
            for (h, w), names in sorted(ids.items(), key=lambda item: -len(item[1]))
        ]
        tile = 2 ** int(math.log2(min(map(min, ids))))
        raise UserError(
            f"the images have {len(ids)} sizes:\n{bullet_list(lines)}\n"
            f"Set `sizes`: `{{how: keep}}` keeps each as it is, `{{how: tile, size: {tile}}}` cuts them into tiles; "
            f"crop, pad and resize are possible too.{UNWRITTEN}"
        )
