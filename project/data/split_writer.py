"""Writers of split files: parts of a split, whole splits, and the joining of parts. See data/README.md."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from project.data.hdf5 import blosc2_plugin
from project.data.split_metadata import ARRAYS, SampleRecord, SplitMetadata, dataset_name
from project.data.statistics import SplitStatistics
from project.files import atomic_path

CHUNK = 128  # side of a compressed chunk in pixels


class _ErrorRecordingFile(io.FileIO):
    """File for HDF5, which crashes on closing when a write fails: errors are recorded, and raised by `check`."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """As the method of `io.FileIO`."""
        remaining = memoryview(data).cast("B")
        n_bytes = len(remaining)
        try:
            while not self.error and len(remaining):
                remaining = remaining[super().write(remaining) :]
        except OSError as error:
            self.error = error
        return n_bytes

    def truncate(self, size: int | None = None) -> int:
        """As the method of `io.FileIO`; file systems have a maximum."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raise the recorded error, with the name of the file."""
        if self.error:
            raise OSError(self.error.errno, self.error.strerror, str(self.name))


@dataclass
class ArrayWriter:
    """Writes the arrays of samples, one after the other; made by `open_writer`."""

    file: h5py.File
    output: _ErrorRecordingFile
    compressed: bool
    shapes: dict[str, tuple[int, ...]]  # of the arrays that are one dataset
    datasets: dict[str, h5py.Dataset] = field(default_factory=dict)  # each look-up would cost more than a small image
    separate_shapes: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)  # array name -> one per sample
    n_written: int = 0  # samples

    def write(self, id_: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write all arrays of the next sample, (C, H, W) or (H, W)."""
        for name, array in arrays.items():
            if name in self.shapes:
                if array.shape != (shape := self.shapes[name][1:]):  # HDF5 would silently repeat a smaller array
                    raise ValueError(f"{id_}: {name} of shape {array.shape} where {shape} was announced")
                _write_row(self.datasets[name], self.n_written, array)
            else:
                options = _chunks(array.shape, self.compressed)
                self.file.require_group(name).create_dataset(dataset_name(id_), data=array, **options)
                self.separate_shapes.setdefault(name, []).append(array.shape)
            self.output.check()
        self.n_written += 1


@contextmanager
def open_writer(
    path: Path, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, np.dtype], compression: str = "none"
) -> Iterator[ArrayWriter]:
    """A writer of a new file, which gets its name when the block ends without an error.

    Args:
        path: The file.
        shapes: Array name -> (N, C, H, W) or (N, H, W). Of other arrays each sample is a separate dataset, in a group.
        dtypes: Array name -> dtype, for those.
        compression: "none" or "blosc2".
    """
    with atomic_path(path) as temporary, _ErrorRecordingFile(temporary, "w+") as output:
        with h5py.File(output, "w") as file:
            writer = ArrayWriter(file, output, compression == "blosc2", shapes)
            for name, shape in shapes.items():
                options = _chunks((1, *shape[1:]), writer.compressed)
                writer.datasets[name] = file.create_dataset(name, shape, dtypes[name], **options)
            yield writer
            for name, sizes in writer.separate_shapes.items():  # a reader would otherwise open every dataset for them
                file.create_dataset(f"{name}_shape", data=np.array(sizes, np.int64))
        output.check()


def write_split(
    path: Path,
    arrays: Mapping[str, Sequence[np.ndarray]],
    ids: Sequence[str],
    groups: Sequence[str],
    labels: np.ndarray | None = None,
    values: np.ndarray | None = None,
    compression: str = "none",
    folds: np.ndarray | None = None,
    **attributes: Any,
) -> dict[str, Any]:
    """Write a split file from arrays; the statistics of images and targets, and the pixels per class, are counted.

    Args:
        path: The file; its folder must exist.
        arrays: Array name ("image", "target", "mask", "instances") -> N arrays (C, H, W) or (H, W), or one (N, ...).
        ids: One text per sample.
        groups: The leakage group of each sample.
        labels: (N,) class numbers, or (N, K) zeros and ones where an image may have several classes.
        values: (N, K) numbers per image; name them in the attribute `channels`, as "value".
        compression: "none" or "blosc2".
        folds: (N,) numbers.
        **attributes: What JSON can hold, see data/README.md. `statistics`, those of the training split, are by default
            those of this split; with names of the mask's `classes`, the pixels of each are counted.

    Returns:
        The statistics of this split.
    """
    n, statistics, records = len(ids), SplitStatistics(), list[SampleRecord]()
    uniform = {name: images for name, images in arrays.items() if len({image.shape for image in images}) == 1}
    shapes, dtypes = {k: (n, *v[0].shape) for k, v in uniform.items()}, {k: v[0].dtype for k, v in uniform.items()}
    with open_writer(path, shapes, dtypes, compression) as writer:
        for index, id_ in enumerate(ids):
            sample = {name: images[index] for name, images in arrays.items()}
            writer.write(id_, sample)
            records.append(SampleRecord.measure(id_, sample, statistics))
        names = attributes.get("classes") or {}
        metadata = SplitMetadata.of(records, groups, len(names.get("mask", ())), attributes.get("ignore_index"))
        metadata.labels = None if labels is None else labels.astype(np.int64)
        metadata.values, metadata.folds = None if values is None else values.astype(np.float64), folds
        summary = statistics.summary(labels, names.get("label"), values)
        metadata.attributes = {"statistics": summary} | attributes
        metadata.write(writer.file)
    return summary


def join(path: Path, shards: list[tuple[Path, list[str]]], metadata: SplitMetadata) -> None:
    """Copy shards, written by `ArrayWriter`, into one split file; one shard at a time is in memory.

    `shards` are files with the ids of their samples, in the order of the metadata.
    """
    with open_writer(path, {}, {}) as writer:
        start, n = 0, len(metadata.ids)
        for shard, ids in shards:
            with h5py.File(shard, "r") as source:
                for name in (name for name in ARRAYS if name in source):
                    _copy(source, writer.file, name, slice(start, start + len(ids)), n)
                writer.output.check()
            start += len(ids)
        metadata.write(writer.file)


def _copy(source: h5py.File, file: h5py.File, name: str, rows: slice, n: int) -> None:
    """Copy an array of a shard to these rows of an array of `n` rows; skipped samples left empty rows at its end."""
    item = source[name]
    if isinstance(item, h5py.Group):
        group = file.require_group(name)
        for id_ in item:
            item.copy(id_, group)
        name, item = f"{name}_shape", source[f"{name}_shape"]
    if name not in file:
        options = _chunks((1, *item.shape[1:]), item.chunks is not None)
        file.create_dataset(name, (n, *item.shape[1:]), item.dtype, **options)
    file[name][rows] = item[: rows.stop - rows.start]


def _write_row(dataset: h5py.Dataset, index: int, array: np.ndarray) -> None:
    """`dataset[index] = array` without building a selection, which takes longer than writing a small image."""
    space = dataset.id.get_space()
    space.select_hyperslab((index, *(0,) * array.ndim), (1, *array.shape))
    dataset.id.write(h5py.h5s.create_simple((1, *array.shape)), space, np.ascontiguousarray(array))


def _chunks(shape: tuple[int, ...], compressed: bool) -> dict[str, Any]:
    """LZ4 with byte shuffle, in chunks that a crop can read alone."""
    if not compressed:
        return {}
    plugin, chunks = blosc2_plugin(), (*shape[:-2], min(CHUNK, shape[-2]), min(CHUNK, shape[-1]))
    return {"chunks": chunks, "compression": plugin.Blosc2(cname="lz4", clevel=5, filters=plugin.Blosc2.SHUFFLE)}
