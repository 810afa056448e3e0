"""Writers of split files: parts of a split, whole splits, and the joining of parts. See data/README.md."""

import io
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from project.data.hdf5 import blosc2_plugin
from project.data.split_metadata import ARRAYS, SplitMetadata, dataset_name, digest, mask_counts
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

    Attributes:
        pixels: Sample -> {mask value: number of pixels}, of the masks written so far.
        digests: Sample -> array name -> digest.
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
        self.pixels: dict[int, dict[int, int]] = {}
        self.digests: list[dict[str, str]] = [{} for _ in ids]
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

    def write(self, index: int, name: str, array: np.ndarray) -> None:
        """Write sample `index` of array `name`."""
        item, shape = self.items[name], self.shapes[name][index]
        if array.shape != shape:  # HDF5 would silently repeat a smaller array
            raise ValueError(f"{self.ids[index]}: {name} of shape {array.shape} where {shape} was announced")
        if isinstance(item, h5py.Group):
            item[dataset_name(self.ids[index])][...] = array
        else:
            _write_row(item, index, array)
        if name == "mask":
            counts = np.bincount(array.ravel())
            values = np.flatnonzero(counts)
            self.pixels[index] = dict(zip(values.tolist(), counts[values].tolist(), strict=True))
        self.output.check()
        self.digests[index][name] = digest(array)

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


class SplitWriter(ArrayWriter):
    """Writes one split to one file; use as a context manager. The file gets its name when it is complete.

    Args:
        path, shapes, dtypes, ids, compression: As of `ArrayWriter`.
        groups: One text per sample.
        labels: (N,) class numbers, (N, K) zeros and ones where an image may have several classes, or None.
        n_classes: Number of mask classes; with it, `finish` stores the pixels of each class as `mask_counts`.
        ignore_index: Mask value that is not counted.
        values: (N, K) numbers per image, or None; name them in the attribute `channels`, as "value".

    Attributes:
        statistics: Of what was written so far; those of the training split are an attribute of all files.
    """

    def __init__(
        self,
        path: Path,
        shapes: dict[str, list[tuple[int, ...]]],
        dtypes: dict[str, np.dtype],
        ids: Sequence[str],
        groups: Sequence[str],
        labels: np.ndarray | None = None,
        compression: str = "none",
        n_classes: int = 0,
        ignore_index: int | None = None,
        values: np.ndarray | None = None,
    ) -> None:
        super().__init__(path, shapes, dtypes, ids, compression)
        self.n_classes, self.ignore_index, self.statistics = n_classes, ignore_index, SplitStatistics()
        self.metadata = SplitMetadata(list(ids), list(groups), digests=self.digests)
        self.metadata.labels = None if labels is None else labels.astype(np.int64)
        self.metadata.values = None if values is None else values.astype(np.float64)

    def write(self, index: int, name: str, array: np.ndarray) -> None:
        """Write sample `index` of array `name`, and measure images and targets."""
        super().write(index, name, array)
        if name == "mask":
            self.statistics.add_mask(self.pixels[index])
        if len(measured := np.array(self.statistics.add(name, array))):
            rows = self.metadata.image_statistics.setdefault(name, np.full((len(self.ids), *measured.shape), np.nan))
            rows[index] = measured

    def finish(self, attributes: dict[str, Any]) -> None:
        """Write mask counts and attributes (as JSON), close the file and give it its name."""
        if self.n_classes and self.pixels:
            pixels = [self.pixels.get(index, {}) for index in range(len(self.ids))]
            self.metadata.mask_counts = mask_counts(pixels, self.n_classes, self.ignore_index)
        self.metadata.attributes = attributes
        self.complete(self.metadata)


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
