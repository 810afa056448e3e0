"""The HDF5 file of one split: the only module that knows h5py. The layout is described in data/README.md."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from project.errors import UserError

FORMAT = 2
ARRAYS = ("image", "target", "mask", "instances")
CHUNK = 128
Window = tuple[int, int, int, int]


def dataset_name(id_: str) -> str:
    """Name of a sample's dataset in a file of images of different sizes; "/" would open a group in HDF5."""
    return id_.replace("/", ":")


class SplitWriter:
    """Writes one split to `path`; use as a context manager. The file appears under its name only when complete.

    Args:
        path: Where the file shall be.
        shapes: Array name -> shape of each sample, (C, H, W) or (H, W). Equal shapes give one array (N, ...), different
            ones a group with one dataset per sample.
        dtypes: Array name -> dtype.
        ids, groups: One text per sample.
        labels: (N,) class numbers, (N, K) zeros and ones where an image may have several classes, or None.
        compression: "none" or "blosc2".
        n_classes: Number of mask classes; with it, `finish` stores the pixels of each class as `mask_counts`. Where it
            is only known once all masks were seen, set the attribute before `finish`.
        ignore_index: Mask value that is not counted.

    Attributes:
        pixels: Sample -> {mask value: number of pixels}, of the masks written so far.
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
    ) -> None:
        self.path, self.ids, self.n_classes, self.ignore_index = path, list(ids), n_classes, ignore_index
        self.pixels: dict[int, dict[int, int]] = {}
        # Looked up once: each look-up would cost more than a small image.
        self.items, self.shapes = dict[str, h5py.Dataset | h5py.Group](), shapes
        self.temporary = path.with_name(f".{path.name}.partial")
        self.file = h5py.File(self.temporary, "w")
        self.hash = hashlib.sha256()
        for name, texts in (("id", ids), ("group", groups)):
            self.file.create_dataset(name, data=np.array(list(texts), dtype=object), dtype=h5py.string_dtype("utf-8"))
            self.hash.update(json.dumps([name, *texts]).encode())
        if labels is not None:
            self.file.create_dataset("label", data=labels.astype(np.int64))
            self.hash.update(f"label{labels.shape}".encode() + labels.astype("<i8").tobytes())
        for name, each in shapes.items():
            options: dict[str, Any] = {"dtype": dtypes[name]}
            if len(set(each)) == 1:
                if compression == "blosc2":
                    options |= _blosc2((1, *each[0]))
                self.items[name] = self.file.create_dataset(name, shape=(len(each), *each[0]), **options)
            else:
                self.items[name] = group = self.file.create_group(name)
                for id_, shape in zip(ids, each, strict=True):
                    if compression == "blosc2":
                        options |= _blosc2(shape)
                    group.create_dataset(dataset_name(id_), shape=shape, **options)

    def write(self, index: int, name: str, array: np.ndarray) -> None:
        """Write sample `index` of array `name`. Samples come in order, since the content hash runs along."""
        item, shape = self.items[name], self.shapes[name][index]
        if array.shape != shape:  # HDF5 would repeat a smaller array without a word
            raise ValueError(f"{self.ids[index]}: {name} of shape {array.shape} where {shape} was announced")
        if isinstance(item, h5py.Group):
            item[dataset_name(self.ids[index])][...] = array
        else:
            _write_row(item, index, array)
        if name == "mask":
            counts = np.bincount(array.ravel())
            values = np.flatnonzero(counts)
            self.pixels[index] = dict(zip(values.tolist(), counts[values].tolist(), strict=True))
        self.hash.update(f"{name}{index}{array.dtype.str}{array.shape}".encode())
        self.hash.update(np.ascontiguousarray(array).data)

    def finish(self, attributes: dict[str, Any]) -> None:
        """Write the counts of the mask and the attributes (as JSON), close the file and give it its name."""
        if self.n_classes and self.pixels:
            self.file.create_dataset("mask_counts", data=self._mask_counts())
        self.file.attrs["format_version"] = FORMAT
        self.file.attrs["content_hash"] = self.hash.hexdigest()
        for name, value in attributes.items():
            self.file.attrs[name] = json.dumps(value, allow_nan=False)
        self.file.close()
        self.temporary.replace(self.path)

    def _mask_counts(self) -> np.ndarray:
        """(N, n_classes) int64."""
        counts = np.zeros((len(self.ids), self.n_classes), np.int64)
        for index, pixels in self.pixels.items():
            for value, n in pixels.items():
                if value < self.n_classes and value != self.ignore_index:
                    counts[index, value] = n
        return counts

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file:
            self.file.close()
            self.temporary.unlink(missing_ok=True)


def _write_row(dataset: h5py.Dataset, index: int, array: np.ndarray) -> None:
    """`dataset[index] = array`, without the making of a selection, which takes longer than writing a small image."""
    space = dataset.id.get_space()
    space.select_hyperslab((index, *(0,) * array.ndim), (1, *array.shape))
    dataset.id.write(h5py.h5s.create_simple((1, *array.shape)), space, np.ascontiguousarray(array))


def _blosc2(shape: tuple[int, ...]) -> dict[str, Any]:
    """LZ4 with byte shuffle in chunks that a crop can read alone."""
    chunks = (*shape[:-2], min(CHUNK, shape[-2]), min(CHUNK, shape[-1]))
    filters = hdf5plugin.Blosc2(cname="lz4", clevel=5, filters=hdf5plugin.Blosc2.SHUFFLE)
    return {"chunks": chunks, "compression": filters}


class SplitReader:
    """Reads one split. Opening is lazy and once per process; a pickled reader carries no handle.

    Attributes:
        path: The file.
        ids, groups: One text per sample.
        labels: (N,) int64 class numbers, (N, K) int64 zeros and ones, or None.
        mask_counts: (N, K) int64 pixels of each mask class in each sample, without those that are not annotated; None
            where the file has none.
        attributes: The file's attributes, decoded.
        dtypes: Array name -> dtype, for the arrays that the file has.

    Raises:
        UserError: The file is missing, not HDF5, or of another format version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._open_in: int | None = None
        self._file: h5py.File | None = None
        self._items: dict[tuple[str, int], Any] = {}
        if not self.path.is_file():
            dataset = self.path.parent.name
            raise UserError(f'"{self.path}" does not exist; prepare it with `make data DATASET={dataset}`')
        try:
            with h5py.File(self.path, "r") as file:
                self._read_head(file)
        except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f'"{self.path}" is damaged or not a split file ({error}); prepare it again') from error

    def _read_head(self, file: h5py.File) -> None:
        version = int(file.attrs["format_version"])
        if version != FORMAT:
            raise UserError(f'"{self.path}" has format version {version}, this code reads {FORMAT}; prepare it again')
        self.attributes: dict[str, Any] = {
            name: json.loads(value) if name not in ("format_version", "content_hash") else value
            for name, value in file.attrs.items()
        }
        self.ids: list[str] = list(file["id"].asstr()[...])
        self.groups: list[str] = list(file["group"].asstr()[...])
        self.labels: np.ndarray | None = file["label"][...] if "label" in file else None
        self.mask_counts: np.ndarray | None = file["mask_counts"][...] if "mask_counts" in file else None
        for name, each in (("label", self.labels), ("mask_counts", self.mask_counts)):
            if each is not None and len(each) != len(self.ids):
                raise UserError(f'"{self.path}": {len(each)} rows of {name} for {len(self.ids)} ids; prepare it again')
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self.ragged = {name for name in ARRAYS if isinstance(file.get(name), h5py.Group)}
        for name in ARRAYS:
            if name not in file:
                continue
            item = file[name]
            datasets = [item[dataset_name(i)] for i in self.ids] if name in self.ragged else [item]
            shapes = [d.shape for d in datasets] if name in self.ragged else [item.shape[1:]] * len(item)
            if len(shapes) != len(self.ids):
                raise UserError(f'"{self.path}": {len(shapes)} {name} arrays for {len(self.ids)} ids; prepare it again')
            self.shapes[name], self.dtypes[name] = shapes, datasets[0].dtype
        if "image" not in self.shapes:
            raise UserError(f'"{self.path}" has no image array; prepare it again')

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def content_hash(self) -> str:
        """SHA-256 over ids, groups, labels and all pixels."""
        return str(self.attributes["content_hash"])

    def read(self, name: str, index: int, window: Window | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Copy one sample, or a region of it.

        Args:
            name: "image", "target", "mask" or "instances".
            index: Which sample, from 0.
            window: (y0, y1, x0, x1) in pixels; None reads the whole.
            out: Array to fill, of the shape that results.

        Returns:
            (C, h, w) or (h, w) in the dtype of the file; never a view of the file.

        Raises:
            IndexError: The window does not lie inside the image (a slice would silently be shorter).
        """
        height, width = self.shapes[name][index][-2:]
        y0, y1, x0, x1 = window or (0, height, 0, width)
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise IndexError(f"window {window} lies outside {self.ids[index]} of {height} x {width} pixels")
        item, prefix = self._item(name, index)
        region = item[(*prefix, ..., slice(y0, y1), slice(x0, x1))]
        if out is None:
            return np.array(region)
        out[...] = region
        return out

    def _item(self, name: str, index: int) -> tuple[Any, tuple[int, ...]]:
        """The mapped array or HDF5 dataset that holds a sample, and the index of the sample in it."""
        if self._open_in != os.getpid():
            # After a fork the parent's handle must neither be used nor closed: closing would touch the parent's file.
            self._file = h5py.File(self.path, "r")
            self._items, self._open_in = {}, os.getpid()
        assert self._file is not None
        ragged = name in self.ragged
        key = (name, index if ragged else 0)
        if key not in self._items:
            dataset = self._file[name][dataset_name(self.ids[index])] if ragged else self._file[name]
            self._items[key] = _mapped(dataset, self.path)
        return self._items[key], () if ragged else (index,)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_items": {}, "_open_in": None}

    def close(self) -> None:
        """Close the file in this process; the next read opens it again."""
        if self._file is not None and self._open_in == os.getpid():
            self._items = {}
            self._file.close()
        self._file, self._open_in = None, None


def _mapped(dataset: h5py.Dataset, path: Path) -> Any:
    """The dataset as a memory map where HDF5 stores it in one piece, else the dataset itself: both can be sliced."""
    offset = dataset.id.get_offset()
    if offset is None:
        return dataset
    return np.memmap(path, dataset.dtype, "r", offset=offset, shape=dataset.shape).view(np.ndarray)
