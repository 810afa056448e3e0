"""Writers of split files: parts of a split, whole splits, and the joining of parts. See data/README.md."""

import io
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from project.data.hdf5 import blosc2_plugin
from project.data.split_metadata import ARRAYS, SampleRecord, SplitMetadata, dataset_name
from project.data.statistics import SplitStatistics

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
            self._record(error)
        return n_bytes

    def truncate(self, size: int | None = None) -> int:
        """As the method of `io.FileIO`; file systems have a maximum."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._record(error)
            return size or 0

    def _record(self, error: OSError) -> None:
        self.error = self.error or OSError(error.errno, error.strerror, str(self.name))

    def check(self) -> None:
        """Raise the recorded error."""
        if self.error:
            raise self.error


class ArrayWriter:
    """Writes the arrays of some samples; use as a context manager. The file gets its name when it is complete.

    Args:
        path, ids: The file, and one text per sample.
        shapes, dtypes: Array name -> shape of each sample, (C, H, W) or (H, W); dtype.
        compression: "none" or "blosc2".
        ragged: Store each sample as a separate dataset in a group per array, instead of one array (N, ...); by default
            where the shapes of an array differ.
    """

    def __init__(
        self,
        path: Path,
        shapes: dict[str, list[tuple[int, ...]]],
        dtypes: dict[str, np.dtype],
        ids: Sequence[str],
        compression: str = "none",
        ragged: bool | None = None,
    ) -> None:
        self.path, self.ids, self.shapes = path, list(ids), shapes
        # A unique name: a lost worker may still write a part that another one has taken over.
        self.temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        self.output = _ErrorRecordingFile(self.temporary, "w+")
        try:
            self.file = h5py.File(self.output, "w")
            # Looked up once: each look-up would cost more than a small image.
            self.items: dict[str, h5py.Dataset | h5py.Group] = {}
            for name, sizes in shapes.items():
                self.items[name] = self._create(name, sizes, dtypes[name], compression, ragged)
        except BaseException:  # nobody else would remove the file
            self._discard()
            raise

    def _create(self, name: str, shapes: Any, dtype: np.dtype, compression: str, ragged: bool | None) -> Any:
        if not (len(set(shapes)) > 1 if ragged is None else ragged):
            options = _chunks((1, *shapes[0]), compression == "blosc2")
            return self.file.create_dataset(name, shape=(len(shapes), *shapes[0]), dtype=dtype, **options)
        group = self.file.create_group(name)
        for id_, shape in zip(self.ids, shapes, strict=True):
            options = _chunks(shape, compression == "blosc2")
            group.create_dataset(dataset_name(id_), shape=shape, dtype=dtype, **options)
        # A reader would otherwise open every dataset to know them.
        self.file.create_dataset(f"{name}_shape", data=np.array(shapes, np.int64))
        return group

    def write(self, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write all arrays of sample `index`."""
        for name, array in arrays.items():
            item, shape = self.items[name], self.shapes[name][index]
            if array.shape != shape:  # HDF5 would silently repeat a smaller array
                raise ValueError(f"{self.ids[index]}: {name} of shape {array.shape} where {shape} was announced")
            if isinstance(item, h5py.Group):
                item[dataset_name(self.ids[index])][...] = array
            else:
                _write_row(item, index, array)
            self.output.check()

    def complete(self, metadata: SplitMetadata | None = None) -> None:
        """Write the metadata, if given, close the file and give it its name."""
        if metadata:
            metadata.write(self.file)
        self.file.close()
        self.output.check()
        self.output.close()
        self.temporary.replace(self.path)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def _discard(self) -> None:
        """Close the file, and remove it unless it was completed."""
        try:
            if hasattr(self, "file"):
                self.file.close()
            self.output.close()
        finally:
            self.temporary.unlink(missing_ok=True)


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
    shapes = {name: [images[index].shape for index in range(n)] for name, images in arrays.items()}
    dtypes = {name: images[0].dtype for name, images in arrays.items()}
    with ArrayWriter(path, shapes, dtypes, ids, compression) as writer:
        for index, id_ in enumerate(ids):
            sample = {name: images[index] for name, images in arrays.items()}
            writer.write(index, sample)
            records.append(SampleRecord.measure(id_, sample, statistics))
        names = attributes.get("classes") or {}
        metadata = SplitMetadata.of(records, groups, len(names.get("mask", ())), attributes.get("ignore_index"))
        metadata.labels = None if labels is None else labels.astype(np.int64)
        metadata.values, metadata.folds = None if values is None else values.astype(np.float64), folds
        summary = statistics.summary(labels, names.get("label"), values)
        metadata.attributes = {"statistics": summary} | attributes
        writer.complete(metadata)
    return summary


def join(path: Path, shards: list[tuple[Path, list[str]]], metadata: SplitMetadata) -> None:
    """Copy shards, written by `ArrayWriter`, into one split file; one shard at a time is in memory.

    `shards` are files with the ids of their samples, in the order of the metadata.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with _ErrorRecordingFile(temporary, "w+") as output:
        with h5py.File(output, "w") as file:
            start, n = 0, len(metadata.ids)
            for shard, ids in shards:
                with h5py.File(shard, "r") as source:
                    for name in (name for name in ARRAYS if name in source):
                        _copy(source, file, name, start, n)
                    output.check()
                start += len(ids)
            metadata.write(file)
        output.check()
    temporary.replace(path)


def _copy(source: h5py.File, file: h5py.File, name: str, start: int, n: int) -> None:
    """Copy an array of a shard to the rows from `start` of an array of `n` rows."""
    item = source[name]
    if isinstance(item, h5py.Group):
        group = file.require_group(name)
        for id_ in item:
            item.copy(id_, group)
        name, item = f"{name}_shape", source[f"{name}_shape"]
    if name not in file:
        options = _chunks((1, *item.shape[1:]), item.chunks is not None)
        file.create_dataset(name, (n, *item.shape[1:]), item.dtype, **options)
    file[name][start : start + len(item)] = item[...]


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
