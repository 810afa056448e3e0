"""Reader of the HDF5 file of a split: metadata, and pixels through a memory map. The layout is in data/README.md."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from project.data.hdf5 import DAMAGED, blosc2_plugin, check_size, explained_errors
from project.data.split_metadata import ARRAYS, FORMAT, SplitMetadata, dataset_name
from project.errors import UserError

Window = tuple[int, int, int, int]  # y0, y1, x0, x1 in pixels
MAX_POSITIONS = 256  # of the pixels of a class in a large mask, as centers of foreground crops
LARGE_MASK = 256 * 256  # pixels; smaller ones are read as a whole, in a few microseconds


def _no_handles() -> dict[str, Any]:
    return {"_file": None, "_map": None, "_open_in": None, "_arrays": {}, "_positions": {}}


class SplitReader(SplitMetadata):
    """Reads one split. The file is opened lazily, once per process; a pickled reader carries no handle.

    Raises:
        UserError: The file is missing, damaged, not HDF5, or of another format version.
    """

    shapes: dict[str, list[tuple[int, ...]]]  # array name -> shape of each sample
    dtypes: dict[str, np.dtype]  # array name -> dtype, for the arrays in the file
    _open_in: int | None  # process
    _file: h5py.File | None
    _map: Any
    _arrays: dict[Any, Any]
    _positions: dict[str, dict[int, np.ndarray]]  # sample -> class -> pixels

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.__dict__ |= _no_handles()
        if not self.path.is_file():
            raise UserError(f'"{self.path}" does not exist; prepare it with `{_command(self.path)}`')
        with explained_errors(self.path), h5py.File(self.path, "r") as file:
            version = int(file.attrs["format_version"])
            if version != FORMAT:
                raise UserError(
                    f'"{self.path}" has format version {version}, this code reads {FORMAT}; prepare it again with '
                    f"`{_command(self.path)}`"
                )
            self.__dict__ |= vars(SplitMetadata.from_file(file))
            self._read_layout(file)
            self._stamp = _stamp(self.path)

    def _read_layout(self, file: h5py.File) -> None:
        self.shapes, self.dtypes = {}, {}
        self.ragged = {name for name in ARRAYS if isinstance(file.get(name), h5py.Group)}
        self._rows, self._names = list(range(len(self.ids))), [dataset_name(id_) for id_ in self.ids]
        for name in (name for name in ARRAYS if name in file):
            if name in self.ragged:
                self.shapes[name] = [tuple(shape) for shape in file[f"{name}_shape"][...].tolist()]
                self.dtypes[name] = file[name][self._names[0]].dtype
            else:
                self.shapes[name] = [check_size(file[name]).shape[1:]] * len(file[name])
                self.dtypes[name] = file[name].dtype
            if len(self.shapes[name]) != len(self.ids):
                raise ValueError(f"{len(self.shapes[name])} {name} arrays for {len(self.ids)} ids")
        if {len(shape) for shape in self.shapes["image"]} != {3}:
            raise ValueError("image arrays are not (C, H, W)")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def content_hash(self) -> str:
        """XXH3 over everything that scores depend on."""
        return str(self.attributes["content_hash"])

    def channel_names(self, role: str) -> list[str]:
        """One name for each channel of "image" or "target"."""
        names, n = list((self.attributes.get("channels") or {}).get(role, [])), self.shapes[role][0][0]
        return names if len(names) == n else [role] if n == 1 else [f"{role}[{i}]" for i in range(n)]

    @property
    def foreground(self) -> list[int]:
        """Class numbers of the mask without the background; all where there is none."""
        names = (self.attributes.get("classes") or {}).get("mask", [])
        return [k for k, name in enumerate(names) if name != self.attributes.get("background")]

    @property
    def label_counts(self) -> np.ndarray | None:
        """(N, K) zeros and ones, the classes of each image; None without labels."""
        if self.labels is None or self.labels.ndim == 2:
            return self.labels
        names = (self.attributes.get("classes") or {}).get("label") or range(self.labels.max() + 1)
        return (self.labels[:, None] == np.arange(len(names))).astype(np.int64)

    def fold_subset(self, fold: int, training: bool) -> "SplitReader":
        """The samples of one fold, or with `training` all others; both with the statistics of the others."""
        assert self.folds is not None
        indices = np.flatnonzero((self.folds != fold) if training else (self.folds == fold)).tolist()
        attributes = {
            "statistics": self.attributes["fold_statistics"][fold],
            "content_hash": f"{self.content_hash}-{'all-but-' if training else ''}fold-{fold}",
        }
        return self.subset(indices, attributes)

    def subset(self, indices: list[int], attributes: dict[str, Any]) -> "SplitReader":
        """The samples at these positions; `attributes` are those in which it differs, with its content hash."""
        subset = object.__new__(SplitReader)
        subset.__dict__ |= self.__getstate__() | self.select(indices) | {"attributes": self.attributes | attributes}
        subset.shapes = {name: [shapes[i] for i in indices] for name, shapes in self.shapes.items()}
        subset._rows, subset._names = [self._rows[i] for i in indices], [self._names[i] for i in indices]
        return subset

    def read(self, name: str, index: int, window: Window | None = None) -> np.ndarray:
        """Copy one sample, or the window of it, as (C, h, w) or (h, w) in the dtype of the file.

        `name` is "image", "target", "mask" or "instances".
        """
        shape = self.shapes[name][index]
        y0, y1, x0, x1 = window or (0, shape[-2], 0, shape[-1])
        out = np.empty((1, *shape[:-2], max(y1 - y0, 0), max(x1 - x0, 0)), self.dtypes[name])
        self.fill(name, [index], window and [window], out)
        return np.asarray(out[0])

    def fill(self, name: str, indices: Sequence[int], windows: Sequence[Window] | None, out: np.ndarray) -> None:
        """Copy several samples, or a region of each, into one array: `read` without its cost per call.

        `out` is (len(indices), C, h, w) or (len(indices), h, w); for the others see `read`.

        Raises:
            IndexError: A window is not inside its image.
            ValueError: A region has another shape than `out[0]`.
        """
        shapes, ragged = self.shapes[name], name in self.ragged
        array: Any = None if ragged else self._array(name)
        for position, index in enumerate(indices):
            *_, height, width = shapes[index]
            y0, y1, x0, x1 = window = windows[position] if windows else (0, height, 0, width)
            if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
                raise IndexError(f"window {window} is outside {self.ids[index]} of {height} x {width} pixels")
            try:
                if ragged:
                    region = self._array(name, index)[..., y0:y1, x0:x1]
                else:
                    region = array[self._rows[index], ..., y0:y1, x0:x1]
            except DAMAGED:  # such as a chunk that cannot be decompressed
                with explained_errors(self.path):
                    raise
            if region.shape != out.shape[1:]:  # NumPy would repeat a smaller one
                raise ValueError(f"{self.ids[index]}: {name} of shape {region.shape} for {out.shape[1:]}")
            out[position] = region

    def class_positions(self, index: int, value: int) -> np.ndarray:
        """(n, 2) y and x of pixels of one mask class; of large masks a uniform sample, which is remembered.

        The name of the sample is the seed.
        """
        id_ = self.ids[index]
        if id_ not in self._positions:
            mask = self.read("mask", index)
            if mask.size < LARGE_MASK:
                return np.argwhere(mask == value)
            self._positions[id_] = {}
            for k in np.flatnonzero(np.bincount(mask.ravel())).tolist():
                pixels = np.flatnonzero(mask == k)
                if len(pixels) > MAX_POSITIONS:
                    rng = np.random.default_rng([xxhash.xxh3_64_intdigest(id_.encode()), k])
                    pixels = np.sort(rng.choice(pixels, MAX_POSITIONS, replace=False))
                self._positions[id_][k] = np.stack(np.unravel_index(pixels, mask.shape), 1).astype(np.uint32)
        return self._positions[id_][value]

    def _array(self, name: str, index: int | None = None) -> Any:
        """Memory-mapped array where HDF5 stores it in one piece, else its dataset; `index` for a separate sample."""
        if self._open_in != os.getpid():  # after a fork the parent's handles must neither be used nor closed
            self.__dict__ |= _no_handles() | {"_open_in": os.getpid()}
        key = name if index is None else (name, self._names[index])
        if key not in self._arrays:
            with explained_errors(self.path):
                self._arrays[key] = self._open_array(name, index)
        return self._arrays[key]

    def _open_array(self, name: str, index: int | None) -> Any:
        if self._file is None:
            if _stamp(self.path) != self._stamp:  # its pixels may be in another order than the ids that were read
                raise UserError(f'"{self.path}" was prepared again while this process used it; start it again')
            self._file, self._map = h5py.File(self.path, "r"), np.memmap(self.path, np.uint8, "r")
        dataset = check_size(self._file[name] if index is None else self._file[name][self._names[index]])
        if dataset.chunks:
            blosc2_plugin()
        offset = dataset.id.get_offset()
        return dataset if offset is None else np.ndarray(dataset.shape, dataset.dtype, self._map.data, offset)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | _no_handles()


def _command(path: Path) -> str:
    return f"make data DATASET={shlex.quote(path.parent.name)}"


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def read_raw_files(path: Path) -> dict[str, tuple[int, int]]:
    """Raw files that a split file was prepared from, with bytes and time stamps; empty where it has none."""
    with h5py.File(path, "r") as file:
        if "raw_file" not in file:
            return {}
        stamps = map(tuple, file["raw_file_stamp"][...].tolist())
        return dict(zip(file["raw_file"].asstr()[...], stamps, strict=True))
