"""The HDF5 files of one split: the only module that knows h5py. The layout is described in data/README.md."""

import errno
import io
import json
import math
import os
import shlex
import struct
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import xxhash

from project.data.positions import Positions, position_starts, sample_positions, stack_positions
from project.data.statistics import ImageStatistics, measure_image
from project.errors import UserError, did_you_mean

FORMAT = 5
ARRAYS = ("image", "target", "mask", "instances")
# Attributes that scores depend on, with their defaults.
SCORED: dict[str, Any] = {"classes": {}, "ignore_index": None, "background": None, "positive": None}
CHUNK = 128
# What damaged files fail with, in h5py, in JSON and in what is made of them.
DAMAGED = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError)
# How systems answer where another program holds a lock, or where a file system has none.
LOCKED = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Bytes in a file that a chunk takes at least, its place in the index included, and those of the largest chunk.
LEAST_CHUNK, LARGEST_CHUNK = 32, 2**28
# How a collection of texts begins, and where they are: the bytes at the beginning and at the end of a file.
HEAP, HEAD, TAIL = b"GCOL\1\0\0\0", 2**20, 2**24
SPARE = 2**24  # bytes that an array may have beyond the file: one that was never written reads as zeros
Window = tuple[int, int, int, int]


def dataset_name(id_: str) -> str:
    """Name of a sample's dataset in a file of images of different sizes; "/" would open a group in HDF5."""
    return id_.replace("/", ":")


def digest(array: np.ndarray) -> str:
    """XXH3 (128 bits, https://xxhash.com) over dtype, shape and values: an eighth of the time of SHA-256."""
    state = xxhash.xxh3_128(f"{array.dtype.newbyteorder('<').str}{array.shape}".encode())
    state.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return state.hexdigest()


@dataclass
class SplitMetadata:
    """What a split file holds beside its arrays; the first axis of everything is the sample.

    Attributes:
        ids, groups: One text per sample.
        labels: (N,) int64 class numbers, (N, K) zeros and ones, or None.
        values: (N, K) float64 numbers to be predicted, or None.
        folds: (N,) int64 number of each sample's fold, or None.
        mask_counts: (N, K) int64, see `SplitReader`, or None.
        image_statistics: "image" or "target" -> (N, C, 8) float64, the `ImageStatistics` of each image and channel.
        signatures: (N, S) uint8, by which images that look the same are found, or None.
        digests: Array name -> `digest` of each sample.
        positions: (P, 2) pixels of the mask classes, see `project.data.positions`, or None.
        raw_files: Raw file -> its bytes and time stamp (ns), see `project.data.preparation.outdated`.
        attributes: Anything that JSON can hold; those of `SCORED` are added where they are missing.
    """

    ids: Sequence[str]
    groups: Sequence[str]
    labels: np.ndarray | None = None
    values: np.ndarray | None = None
    folds: np.ndarray | None = None
    mask_counts: np.ndarray | None = None
    image_statistics: dict[str, np.ndarray] = field(default_factory=dict)
    signatures: np.ndarray | None = None
    digests: list[dict[str, str]] = field(default_factory=list)
    positions: np.ndarray | None = None
    raw_files: dict[str, tuple[int, int]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def content_hash(self) -> str:
        """XXH3 over everything that scores depend on; the same in whatever order samples and arrays were written."""
        order = sorted(range(len(self.ids)), key=lambda index: (self.ids[index], self.groups[index]))
        rows = [(self.ids[i], self.groups[i], sorted(self.digests[i].items()) if self.digests else []) for i in order]
        scored = [SCORED[name] if (value := self.attributes.get(name)) is None else value for name in SCORED]
        state = xxhash.xxh3_128(json.dumps([rows, scored]).encode())
        for name in ("labels", "values", "folds"):
            if (array := getattr(self, name)) is not None:
                state.update(f"{name}{digest(array[order])}".encode())
        return state.hexdigest()

    def write(self, file: h5py.File) -> None:
        """Add everything to an open file."""
        texts_of = {"id": self.ids, "group": self.groups} | ({"raw_file": [*self.raw_files]} if self.raw_files else {})
        for name, texts in texts_of.items():
            file.create_dataset(name, data=np.array(list(texts), dtype=object), dtype=h5py.string_dtype("utf-8"))
        arrays = {"label": self.labels, "value": self.values, "fold": self.folds, "mask_counts": self.mask_counts}
        arrays |= {"signature": self.signatures, "mask_positions": self.positions}
        arrays["raw_file_stamp"] = np.array([*self.raw_files.values()], np.int64) if self.raw_files else None
        if self.digests and "image" in self.digests[0]:
            joined = "".join(each["image"] for each in self.digests)
            arrays["image_digest"] = np.frombuffer(bytes.fromhex(joined), np.uint8).reshape(len(self.digests), -1)
        for name, array in (
            arrays | {f"{role}_statistics": each for role, each in self.image_statistics.items()}
        ).items():
            if array is not None:
                file.create_dataset(name, data=array)
        file.attrs["format_version"] = FORMAT
        file.attrs["content_hash"] = self.content_hash()
        for name, value in (SCORED | self.attributes).items():
            file.attrs[name] = json.dumps(value, allow_nan=False)

    def n_bytes(self) -> int:
        """What it takes in a file."""
        with io.BytesIO() as memory:
            with h5py.File(memory, "w") as file:
                self.write(file)
            return len(memory.getbuffer())


class _Output(io.FileIO):
    """A file that HDF5 writes to. HDF5 cannot deal with a full disk: it crashes later, when it closes the file.

    So it is told that all went well, and whoever uses it asks with `check`.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, or keep the error."""
        left = memoryview(data).cast("B")
        n_bytes = len(left)
        try:
            while not self.error and len(left):
                left = left[super().write(left) :]
        except OSError as error:
            self._remember(error)
        return n_bytes

    def truncate(self, size: int | None = None) -> int:
        """Make the file as long as HDF5 says, or keep the error: a file may not be as long as that."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._remember(error)
            return size or 0

    def _remember(self, error: OSError) -> None:
        self.error = self.error or OSError(error.errno, error.strerror, str(self.name))

    def check(self) -> None:
        """Raise what went wrong."""
        if self.error:
            raise self.error


@contextmanager
def _changing(path: Path, mode: str) -> Iterator[h5py.File]:
    """An HDF5 file, made ("w") or changed ("r+")."""
    with _Output(path, {"w": "w+"}.get(mode, mode)) as output:
        with h5py.File(output, mode) as file:
            yield file
        output.check()


class ArrayWriter:
    """Writes the arrays of some samples; use as a context manager. The file appears under its name when complete.

    Args:
        path: Where the file shall be.
        shapes: Array name -> shape of each sample, (C, H, W) or (H, W).
        dtypes: Array name -> dtype.
        ids: One text per sample.
        compression: "none" or "blosc2".
        ragged: Whether the samples get datasets of their own, in a group for each array, in place of one array
            (N, ...); by default where the shapes of an array differ.

    Attributes:
        pixels: Sample -> {mask value: number of pixels}, of the masks written so far.
        positions: Sample -> some pixels of each mask value, see `project.data.positions`.
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
        self.positions: dict[int, Positions] = {}
        self.digests: list[dict[str, str]] = [{} for _ in ids]
        # A name of its own: a worker of a cluster may still write what another is told to write anew.
        self.temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        self.output = _Output(self.temporary, "w+")
        try:
            self._create(dtypes, compression, ragged)
        except BaseException:  # nobody else would remove the file
            self._discard()
            raise

    def _create(self, dtypes: dict[str, np.dtype], compression: str, ragged: bool | None) -> None:
        self.file = h5py.File(self.output, "w")
        # Looked up once: each look-up would cost more than a small image.
        self.items = dict[str, h5py.Dataset | h5py.Group]()
        for name, each in self.shapes.items():
            options: dict[str, Any] = {"dtype": dtypes[name]}
            if len(set(each)) > 1 if ragged is None else ragged:
                self.items[name] = group = self.file.create_group(name)
                for id_, shape in zip(self.ids, each, strict=True):
                    if compression == "blosc2":
                        options |= _blosc2(shape)
                    group.create_dataset(dataset_name(id_), shape=shape, **options)
            else:
                if compression == "blosc2":
                    options |= _blosc2((1, *each[0]))
                self.items[name] = self.file.create_dataset(name, shape=(len(each), *each[0]), **options)

    def write(self, index: int, name: str, array: np.ndarray) -> None:
        """Write sample `index` of array `name`."""
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
            self.positions[index] = sample_positions(array, values.tolist(), self.ids[index])
        self.output.check()
        self.digests[index][name] = digest(array)

    def complete(self, head: SplitMetadata | None = None) -> None:
        """Close the file, with a head if there is one, and give it its name."""
        for name, item in self.items.items():
            if isinstance(item, h5py.Group):  # a reader would otherwise open every dataset to know them
                self.file.create_dataset(f"{name}_shape", data=np.array(self.shapes[name], np.int64))
        if head:
            head.write(self.file)
        self.file.close()
        self.output.check()
        self.output.close()
        self.temporary.replace(self.path)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        """Close the file, and remove it unless it has its name."""
        try:
            if hasattr(self, "file"):
                self.file.close()
            self.output.close()
        finally:
            self.temporary.unlink(missing_ok=True)


class SplitWriter(ArrayWriter):
    """Writes one split to one file; use as a context manager. The file appears under its name only when complete.

    Args:
        path, shapes, dtypes, ids, compression: See `ArrayWriter`.
        groups: One text per sample.
        labels: (N,) class numbers, (N, K) zeros and ones where an image may have several classes, or None.
        values: (N, K) numbers per image, or None; their names belong in the attribute `channels`, as "value".
        n_classes: Number of mask classes; with it, `finish` stores the pixels of each class as `mask_counts`.
        ignore_index: Mask value that is not counted.
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
        self.n_classes, self.ignore_index = n_classes, ignore_index
        self.head = SplitMetadata(list(ids), list(groups), None if labels is None else labels.astype(np.int64))
        self.head.values = None if values is None else values.astype(np.float64)
        self.head.image_statistics = {
            role: np.full((len(ids), shapes[role][0][0], len(ImageStatistics._fields)), np.nan)
            for role in ("image", "target")
            if shapes.get(role)
        }

    def write(self, index: int, name: str, array: np.ndarray) -> None:
        """Write sample `index` of array `name`, and note the levels of images and targets."""
        super().write(index, name, array)
        if name in self.head.image_statistics:
            self.head.image_statistics[name][index] = measure_image(array)

    def finish(self, attributes: dict[str, Any]) -> None:
        """Write the counts of the mask and the attributes (as JSON), close the file and give it its name."""
        if self.n_classes and self.pixels:
            each = [self.pixels.get(index, {}) for index in range(len(self.ids))]
            self.head.mask_counts = mask_counts(each, self.n_classes, self.ignore_index)
            positions = [self.positions.get(index, {}) for index in range(len(self.ids))]
            self.head.positions = stack_positions(positions, self.head.mask_counts)
        self.head.digests = self.digests
        self.head.attributes = attributes
        self.complete(self.head)


def mask_counts(pixels: Sequence[dict[int, int]], n_classes: int, ignore_index: int | None) -> np.ndarray:
    """(N, n_classes) int64 of N dictionaries {mask value: pixels}."""
    counts = np.zeros((len(pixels), n_classes), np.int64)
    for row, each in zip(counts, pixels, strict=True):
        for value, n in each.items():
            if value < n_classes and value != ignore_index:
                row[value] = n
    return counts


def join(path: Path, shards: list[tuple[Path, list[str]]], head: SplitMetadata) -> None:
    """Make one split file of shards, which lie in the folder of `path` or below.

    A single shard becomes the file itself. Of several, every array is an HDF5 virtual dataset over the shards, or a
    group of external links where the samples have datasets of their own: any HDF5 tool sees one file.

    Args:
        path: The split file.
        shards: Each with the ids of its samples, in the order of the head.
        head: Of all samples.
    """
    temporary = path.with_name(f".{path.name}.partial")
    if len(shards) == 1:
        # Under another name while it is being changed: after a kill it is not taken for a finished shard.
        shards[0][0].replace(temporary)
        with _changing(temporary, "r+") as file:
            head.write(file)
    else:
        head.attributes["shards"] = [[s.relative_to(path.parent).as_posix(), len(ids)] for s, ids in shards]
        with _changing(temporary, "w") as file:
            with h5py.File(shards[0][0], "r") as first:
                names = {name: isinstance(first[name], h5py.Group) for name in ARRAYS if name in first}
            for name, ragged in names.items():
                (_link if ragged else _virtual)(file, name, path.parent, shards)
            head.write(file)
    temporary.replace(path)


def _virtual(file: h5py.File, name: str, folder: Path, shards: list[tuple[Path, list[str]]]) -> None:
    with h5py.File(shards[0][0], "r") as first:
        shape, dtype = first[name].shape[1:], first[name].dtype
    # Not by h5py's VirtualLayout, which stores the time: the same content shall give the same bytes.
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    space, start = h5py.h5s.create_simple((sum(len(ids) for _, ids in shards), *shape)), 0
    for shard, ids in shards:
        part = (len(ids), *shape)
        space.select_hyperslab((start, *(0,) * len(shape)), part)
        source = shard.relative_to(folder).as_posix().encode()
        properties.set_virtual(space, source, name.encode(), h5py.h5s.create_simple(part))
        start += len(ids)
    space.select_all()
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, properties)


def _link(file: h5py.File, name: str, folder: Path, shards: list[tuple[Path, list[str]]]) -> None:
    group, shapes = file.create_group(name), []
    for shard, ids in shards:
        with h5py.File(shard, "r") as source:
            shapes.append(source[f"{name}_shape"][...])
        for id_ in ids:
            group[dataset_name(id_)] = h5py.ExternalLink(
                shard.relative_to(folder).as_posix(), f"{name}/{dataset_name(id_)}"
            )
    file.create_dataset(f"{name}_shape", data=np.concatenate(shapes))


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


def open_hdf5_dataset(path: Path, name: str) -> h5py.Dataset:
    """A dataset of any HDF5 file, opened for reading in this process; it stays open as long as it is kept.

    Raises:
        UserError: There is no such dataset; the message lists those there are.
    """
    file = h5py.File(path, "r")
    if not isinstance(file.get(name), h5py.Dataset):
        known: list[str] = []
        file.visititems(lambda key, item: known.append(key) if isinstance(item, h5py.Dataset) else None)
        file.close()
        there = ", ".join(known[:12]) or "none"
        raise UserError(f'{path}: there is no dataset "{name}"; it holds {there}.{did_you_mean(name, known)}')
    return file[name]


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def read_raw_files(path: Path) -> dict[str, tuple[int, int]]:
    """The raw files that a split file was prepared from, with bytes and time stamps; empty where it does not say."""
    with h5py.File(path, "r") as file:
        if "raw_file" not in file:
            return {}
        stamps = map(tuple, file["raw_file_stamp"][...].tolist())
        return dict(zip(file["raw_file"].asstr()[...], stamps, strict=True))


def _is_inside(name: str) -> bool:
    """Whether a file named in another one lies in its folder or below."""
    return bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts


class _Attributes(dict[str, Any]):
    """The attributes of a file; one that is missing is told in words."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise UserError(f'"{self.path}" does not say its {name}; prepare it again')

    def __reduce__(self) -> tuple[Any, ...]:
        return _Attributes, (self.path, dict(self))


def _attributes(file: h5py.File, path: Path) -> _Attributes:
    """The decoded attributes."""
    ends, n_bytes = _ends(path), path.stat().st_size
    for data in ends:
        _check_heaps(data, whole=data is ends[-1])
        _check_texts(data, list(file.attrs), n_bytes)
    found: dict[str, Any] = {}
    for name in file.attrs:
        stored = file.attrs.get_id(name)
        # Of other types than these HDF5 would take memory for whatever a damaged file claims.
        if stored.shape != () or (h5py.check_string_dtype(stored.dtype) is None and stored.dtype.kind not in "iuf"):
            raise ValueError(f"{name} is neither a text nor a number")
        value = file.attrs[name]
        found[name] = value if name in ("format_version", "content_hash") else json.loads(value)
    return _Attributes(path, found)


def _ends(path: Path) -> list[bytes]:
    """The bytes at the beginning and at the end of a file; pixels are between them."""
    with path.open("rb") as file:
        head, n_bytes = file.read(HEAD), path.stat().st_size
        if n_bytes <= HEAD + TAIL:
            return [head + file.read()]
        file.seek(n_bytes - TAIL)
        return [head, file.read()]


def _check_texts(data: bytes, names: list[str], n_bytes: int) -> None:
    """Refuse attributes whose texts claim to be longer than the file: HDF5 takes the memory before it looks.

    Format: HDF5 File Format Specification 3.0, IV.A.2.m, "The Attribute Message", versions 1 and 3.
    """
    for name in (name.encode() for name in names):
        position = data.find(name + b"\0")
        while position >= 9:
            for version, start, unit in ((1, position - 8, 8), (3, position - 9, 1)):
                if data[start] == version:
                    sizes = struct.unpack_from("<HHH", data, start + 2)
                    place = position + sum(-(-size // unit) * unit for size in sizes)
                    text = sizes[0] == len(name) + 1 and len(data) > place + 4
                    kind = data[position + -(-sizes[0] // unit) * unit] & 15 if text else 0
                    if kind == 9 and int.from_bytes(data[place : place + 4], "little") > n_bytes:
                        raise ValueError(f"{name.decode()} claims to be longer than the file")
            position = data.find(name + b"\0", position + 1)


def _check_heaps(data: bytes, whole: bool) -> None:
    """Refuse damaged collections of texts, in which HDF5 would go round in circles for ever.

    Format: HDF5 File Format Specification 3.0, III.E, "Disk Format: ImageStatistics 1E - Global Heap".

    Args:
        data: A part of a file.
        whole: Whether the file ends with it.
    """
    position = data.find(HEAP)
    while position >= 0:
        _check_heap(data, position, whole)
        position = data.find(HEAP, position + 1)


def _check_heap(data: bytes, start: int, whole: bool) -> None:
    if start + 16 > len(data):
        return
    (size,) = struct.unpack_from("<Q", data, start + 8)
    end, position = start + size, start + 16
    if end > len(data) and not whole:
        return
    if end > len(data) or size < 16:
        raise ValueError("a collection of texts ends outside the file")
    while end - position >= 16:
        index, _, length = struct.unpack_from("<H6sQ", data, position)
        position += 16 + (length + 7) // 8 * 8 if index else length  # number 0 is what is free, its header included
        if position > end or (not index and length < 16):
            raise ValueError("a collection of texts has a wrong size")


def _check_links(group: h5py.Group) -> None:
    """Refuse links to other files, which could be any file of this machine; opening some of them would never end."""
    name, _ = group.id.links.iterate(_leads_out, info=True)
    if name is not None:
        raise ValueError(f"{name.decode(errors='replace')} lies in another file")


def _leads_out(name: bytes, info: Any) -> bytes | None:
    """The name, at which h5py stops, of a link to something else; raising in here would confuse h5py."""
    return name if info.type != h5py.h5l.TYPE_HARD else None


def _check_extent(dataset: h5py.Dataset, n_bytes: int) -> None:
    """Refuse an array that cannot be in a file of so many bytes, before memory is taken for it."""
    if dataset.dtype.kind not in "biuf" or dataset.dtype.subdtype:
        raise ValueError(f"{dataset.name} holds no numbers")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{dataset.name} takes its values from another file")
    if dataset.chunks is None:
        fits = dataset.nbytes <= n_bytes + SPARE
    else:
        count = math.prod(-(-side // part) for side, part in zip(dataset.shape, dataset.chunks, strict=True))
        fits = count * LEAST_CHUNK <= n_bytes and math.prod(dataset.chunks) * dataset.dtype.itemsize <= LARGEST_CHUNK
    if not fits:
        raise ValueError(f"{dataset.name} of {dataset.shape} is larger than the file")


class SplitReader:
    """Reads one split. Opening is lazy and once per process; a pickled reader carries no handle.

    Attributes:
        path: The file.
        ids, groups: One text per sample.
        labels: (N,) int64 class numbers, (N, K) int64 zeros and ones, or None.
        values: (N, K) float64 numbers to be predicted, or None.
        folds: (N,) int64 number of each sample's fold, or None.
        mask_counts: (N, K) int64 pixels of each mask class in each sample, without those that are not annotated; None
            where the file has none.
        image_statistics: "image" or "target" -> (N, C, 8) float64, see `Head`.
        signatures: (N, S) uint8 for `duplicates.similar_pairs`, or None.
        image_digests: (N, 16) uint8, `digest` of each image, or None.
        attributes: The file's attributes, decoded.
        shapes: Array name -> shape of each sample.
        dtypes: Array name -> dtype, for the arrays that the file has.

    Raises:
        UserError: The file is missing, not HDF5, or of another format version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._open_in: int | None = None
        self._files: dict[Path, h5py.File] = {}
        self._items: dict[tuple[str, int], Any] = {}
        self._maps: dict[Path, np.ndarray] = {}
        if not self.path.is_file():
            dataset = shlex.quote(self.path.parent.name)
            raise UserError(f'"{self.path}" does not exist; prepare it with `make data DATASET={dataset}`')
        try:
            with h5py.File(self.path, "r") as file:
                self._read_head(file)
                self._identity, self._stamp = self._identify(file), _stamp(self.path)
        except DAMAGED as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: BaseException, path: Path | None = None) -> UserError:
        """What to do about a file that cannot be read: it is damaged only if the system itself gave no reason."""
        reason, path = " ".join(str(error).split())[:200] or type(error).__name__, path or self.path
        if isinstance(error, OSError) and (error.errno in LOCKED or "already open for write" in reason):
            return UserError(
                f'"{path}" cannot be opened: another program has it open for writing; close it there. If none has, the '
                "file system may lack locks: set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
            )
        if isinstance(error, OSError) and error.errno:
            return UserError(f'"{path}" cannot be read: {os.strerror(error.errno)}')
        return UserError(f'"{path}" is damaged or not a split file ({reason}); prepare it again')

    @staticmethod
    def _identify(file: h5py.File) -> tuple[str, str]:
        """What two preparations have in common only if each sample of one is the same sample of the other."""
        ids = xxhash.xxh3_128(b"\0".join(file["id"][...].tolist()))
        return str(file.attrs.get("content_hash")), ids.hexdigest()

    def _check_unchanged(self) -> None:
        """Refuse pixels of another preparation than the ids and labels that were read first.

        Raises:
            UserError: The data was prepared again in the meantime.
        """
        if _stamp(self.path) == self._stamp:
            return
        with h5py.File(self.path, "r") as file:
            if self._identify(file) != self._identity:
                raise UserError(f'"{self.path}" was prepared again while this process used it; start the command again')
        self._stamp = _stamp(self.path)

    def _read_head(self, file: h5py.File) -> None:
        _check_links(file)
        if file.attrs.get_id("format_version").dtype.kind not in "iu":
            raise ValueError("it has no format version")
        version = int(file.attrs["format_version"])
        if version != FORMAT:
            raise UserError(
                f'"{self.path}" has format version {version}, this code reads {FORMAT}; prepare it again with '
                f"`make data DATASET={shlex.quote(self.path.parent.name)}`"
            )
        self.attributes: dict[str, Any] = _attributes(file, self.path)
        self.ids, self.groups = self._texts(file, "id"), self._texts(file, "group")
        n = len(self.ids)
        if len(self.groups) != n:
            raise UserError(f'"{self.path}": {len(self.groups)} groups for {n} ids; prepare it again')
        names = ("label", "value", "fold", "mask_counts", "signature", "image_digest")
        rows = {name: self._numbers(file, name) for name in names if name in file}
        rows |= {role: self._numbers(file, f"{role}_statistics") for role in ARRAYS if f"{role}_statistics" in file}
        for name, each in rows.items():
            if len(each) != n:
                raise UserError(f'"{self.path}": {len(each)} rows of {name} for {n} ids; prepare it again')
        self.labels: np.ndarray | None = rows.get("label")
        self.values: np.ndarray | None = rows.get("value")
        self.folds: np.ndarray | None = rows.get("fold")
        self.mask_counts: np.ndarray | None = rows.get("mask_counts")
        self.image_statistics: dict[str, np.ndarray] = {role: rows[role] for role in ARRAYS if role in rows}
        self.signatures: np.ndarray | None = rows.get("signature")
        self.image_digests: np.ndarray | None = rows.get("image_digest")
        self._find_parts(n)
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        # The samples of shards are read from these themselves: HDF5 crashes when it opens a damaged virtual array.
        self.ragged = {name for name in ARRAYS if name in file and file.get(name, getclass=True) is h5py.Group}
        if "shards" not in self.attributes:
            for name in self.ragged:
                _check_links(file[name])
        for name in (name for name in ARRAYS if name in file):
            self.shapes[name], self.dtypes[name] = self._layout(file, name)
            if len(self.shapes[name]) != n:
                found = len(self.shapes[name])
                raise UserError(f'"{self.path}": {found} {name} arrays for {n} ids; prepare it again')
            for shape in set(self.shapes[name]):
                self._check_shape(name, shape)
        if "image" not in self.shapes:
            raise UserError(f'"{self.path}" has no image array; prepare it again')
        for role, levels in self.image_statistics.items():
            if role in self.shapes and levels.shape[1:] != (self.shapes[role][0][0], len(ImageStatistics._fields)):
                raise UserError(f'"{self.path}": {role}_statistics has the shape {levels.shape}; prepare it again')
        self._starts: np.ndarray | None = None
        if self.mask_counts is not None and "mask" in self.shapes and "mask_positions" in file:
            self._starts = position_starts(self.mask_counts, self.shapes["mask"])
            if self._rows(file, "mask_positions").shape != (self._starts[-1, -1], 2):
                raise ValueError("the positions of the classes do not fit their counts")

    def _rows(self, file: h5py.File, name: str) -> h5py.Dataset:
        """A dataset that is read as a whole: in this file, and no larger than it."""
        item = file[name]
        if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external or not item.shape:
            raise ValueError(f"{name} is no array")
        if item.nbytes > self.path.stat().st_size:
            raise ValueError(f"{name} of {item.shape} is larger than the file")
        return item

    def _texts(self, file: h5py.File, name: str) -> list[str]:
        item = self._rows(file, name)
        offset = item.id.get_offset()
        if offset is not None and h5py.check_string_dtype(item.dtype).length is None:
            # Each is its length (32 bits) and its place: HDF5 takes the memory before it looks whether there is a text.
            lengths = np.memmap(self.path, "<u4", "r", offset, (len(item), 4))[:, 0]
            if lengths.sum(dtype=np.int64) > self.path.stat().st_size:
                raise ValueError(f"{name} claims to be longer than the file")
        return list(item.asstr()[...])

    def _numbers(self, file: h5py.File, name: str) -> np.ndarray:
        item = self._rows(file, name)
        if item.dtype.kind not in "biuf":
            raise ValueError(f"{name} holds no numbers")
        array: np.ndarray = item[...]
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if len(shape) != (3 if name in ("image", "target") else 2) or min(shape) < 1:
            raise ValueError(f"{name} has the shape {shape}")
        size = math.prod(shape) * self.dtypes[name].itemsize
        most = sum(part.stat().st_size for part in {*self._parts}) * LARGEST_CHUNK // LEAST_CHUNK
        if size > min(most, 2**40):
            raise ValueError(f"{name} of {shape} is larger than the file")

    def _find_parts(self, n: int) -> None:
        """Where the arrays lie: the file, position in that file, and name there of each sample."""
        shards = self.attributes.get("shards") or [[self.path.name, n]]
        if not all(_is_inside(name) and count >= 0 for name, count in shards):
            raise ValueError("shards lie elsewhere")
        parts = [self.path.parent / name for name, _ in shards]
        if missing := [str(part) for part in parts if not part.is_file()]:
            # HDF5 itself would give zeros for them, without a word.
            raise UserError(
                f'"{self.path}" takes its pixels from {len(parts)} files beside it, and {len(missing)} of them '
                f'are missing, the first "{missing[0]}"; copy the whole folder, or prepare it again'
            )
        counts = [count for _, count in shards]
        if sum(counts) != n:
            raise UserError(f'"{self.path}": its parts hold {sum(counts)} samples, not {n}; prepare it again')
        self._parts = parts
        self._places = [(part, row) for part, count in enumerate(counts) for row in range(count)]
        self._names = [dataset_name(id_) for id_ in self.ids]

    def _layout(self, file: h5py.File, name: str) -> tuple[list[tuple[int, ...]], np.dtype]:
        with nullcontext(file) if "shards" not in self.attributes else self._opened(self._parts[0]) as part:
            if name in self.ragged:
                shapes = (
                    self._numbers(file, f"{name}_shape").tolist()
                    if f"{name}_shape" in file
                    else [part[name][each].shape for each in self._names]
                )
                return [tuple(shape) for shape in shapes], part[name][self._names[0]].dtype
            item = part[name]
            if part is file:
                _check_extent(item, self.path.stat().st_size)
                if len(item) != len(self.ids):
                    n = len(item)
                    raise UserError(f'"{self.path}": {n} {name} arrays for {len(self.ids)} ids; prepare it again')
            return [item.shape[1:]] * len(self.ids), item.dtype

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def content_hash(self) -> str:
        """XXH3 over ids, groups, labels and all pixels."""
        return str(self.attributes["content_hash"])

    def channel_names(self, role: str) -> list[str]:
        """One name for each channel of "image" or "target"; "rgb[0]", "rgb[1]", ... where one name is for several."""
        names = list((self.attributes.get("channels") or {}).get(role, [role]))
        count = self.shapes[role][0][0]
        if len(names) == count:
            return names
        return [f"{names[0] if len(names) == 1 else role}[{i}]" for i in range(count)]

    @property
    def foreground(self) -> list[int]:
        """Class numbers of the mask but the background; all where there is none."""
        names = (self.attributes.get("classes") or {}).get("mask", [])
        n = len(names) or (0 if self.mask_counts is None else self.mask_counts.shape[1])
        background = self.attributes.get("background")
        return [k for k in range(n) if background is None or names[k] != background]

    def fold_subset(self, fold: int, training: bool) -> "SplitReader":
        """The samples of one fold, or all others, with the statistics of these others.

        Args:
            fold: Which one, from 0.
            training: Whether to take the other folds.
        """
        assert self.folds is not None
        chosen = np.flatnonzero((self.folds != fold) if training else (self.folds == fold)).tolist()
        own = {
            "statistics": self.attributes["fold_statistics"][fold],
            "content_hash": f"{self.content_hash}-{'all-but-' if training else ''}fold-{fold}",
        }
        return self.subset(chosen, own)

    def subset(self, chosen: list[int], own: dict[str, Any]) -> "SplitReader":
        """Some of the samples.

        Args:
            chosen: Their positions, in the order that they shall have.
            own: Attributes in which the part differs, its content hash among them.
        """
        part = object.__new__(SplitReader)
        part.__dict__ |= self.__getstate__()
        part.ids, part.groups = [self.ids[i] for i in chosen], [self.groups[i] for i in chosen]
        part._places, part._names = [self._places[i] for i in chosen], [self._names[i] for i in chosen]
        part.shapes = {name: [each[i] for i in chosen] for name, each in self.shapes.items()}
        part.image_statistics = {role: each[chosen] for role, each in self.image_statistics.items()}
        for name in ("labels", "values", "folds", "mask_counts", "signatures", "image_digests", "_starts"):
            if (array := getattr(self, name)) is not None:
                setattr(part, name, array[chosen])
        part.attributes = _Attributes(self.path, self.attributes | own)
        return part

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
        if out is None:
            shape = self.shapes[name][index]
            y0, y1, x0, x1 = window or (0, shape[-2], 0, shape[-1])
            out = np.empty((*shape[:-2], max(y1 - y0, 0), max(x1 - x0, 0)), self.dtypes[name])
        self.fill(name, [index], window and [window], out[None])
        return out

    def fill(self, name: str, indices: Sequence[int], windows: Sequence[Window] | None, out: np.ndarray) -> None:
        """Copy several samples, or a region of each: `read` without its cost per call.

        Args:
            name: See `read`.
            indices: Which samples.
            windows: One for each sample; None reads the whole.
            out: Array to fill, (len(indices), C, h, w) or (len(indices), h, w).

        Raises:
            IndexError: A window does not lie inside its image.
            ValueError: A region is not of the shape of `out[0]`.
        """
        shapes, places, ragged = self.shapes[name], self._places, name in self.ragged
        self._forget_parent()
        item: Any = None
        last: int | None = None
        for position, index in enumerate(indices):
            shape, (part, row) = shapes[index], places[index]
            height, width = shape[-2], shape[-1]
            y0, y1, x0, x1 = window = windows[position] if windows else (0, height, 0, width)
            if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
                raise IndexError(f"window {window} lies outside {self.ids[index]} of {height} x {width} pixels")
            if ragged or part != last:
                item, last = self._items.get((name, index if ragged else ~part)), part
                if item is None:
                    item = self._item(name, index)[0]
            try:
                region = item[..., y0:y1, x0:x1] if ragged else item[row, ..., y0:y1, x0:x1]
            except DAMAGED as error:  # such as a chunk that cannot be decompressed
                raise self._unreadable(error, self._parts[part]) from error
            if region.shape != out.shape[1:]:  # NumPy would repeat a smaller one
                raise ValueError(f"{self.ids[index]}: {name} of shape {region.shape} for {out.shape[1:]}")
            out[position] = region

    def class_positions(self, index: int, value: int) -> np.ndarray:
        """(n, 2) y and x of pixels of one mask class, all or a uniform sample of them; see `project.data.positions`."""
        if self._starts is None or self._starts[index, 0] == self._starts[index, -1]:
            return np.argwhere(self.read("mask", index) == value)
        self._forget_parent()
        key = ("mask_positions", 0)
        if key not in self._items:
            try:
                self._items[key] = self._mapped(self._file(self.path)["mask_positions"], self.path)
            except DAMAGED as error:
                raise self._unreadable(error) from error
        start, end = self._starts[index, value : value + 2].tolist()
        return np.asarray(self._items[key][start:end])

    def _forget_parent(self) -> None:
        """After a fork the parent's handles must neither be used nor closed: closing would touch the parent's files."""
        if self._open_in != os.getpid():
            self._files, self._items, self._maps, self._open_in = {}, {}, {}, os.getpid()

    def _item(self, name: str, index: int) -> tuple[Any, tuple[int, ...]]:
        """The mapped array or HDF5 dataset that holds a sample, and the index of the sample in it."""
        self._forget_parent()
        part, row = self._places[index]
        ragged = name in self.ragged
        key = (name, index if ragged else ~part)
        if key not in self._items:
            path = self._parts[part]
            try:
                dataset = self._file(path)[name]
                dataset = dataset[self._names[index]] if ragged else dataset
                expected = self.shapes[name][index], self.dtypes[name]
                shape = dataset.shape if ragged else dataset.shape[1:]
                if (shape, dataset.dtype) != expected or (not ragged and row >= len(dataset)):
                    raise ValueError(f"{name} of {dataset.shape} {dataset.dtype} where {expected} was announced")
                _check_extent(dataset, path.stat().st_size)
                self._items[key] = self._mapped(dataset, path)
            except DAMAGED as error:
                raise self._unreadable(error, path) from error
        return self._items[key], () if ragged else (row,)

    def _file(self, path: Path) -> h5py.File:
        """The file, opened once in this process."""
        if path not in self._files:
            file = self._opened(path)
            try:
                self._check_unchanged()  # after opening: what was replaced before would be noticed here
            except BaseException:
                file.close()
                raise
            self._files[path] = file
        return self._files[path]

    @staticmethod
    def _opened(path: Path) -> h5py.File:
        """A file that holds samples, and no links that lead out of it."""
        file = h5py.File(path, "r")
        try:
            _check_links(file)
            for name in ARRAYS:
                if isinstance(group := file.get(name), h5py.Group):
                    _check_links(group)
        except BaseException:
            file.close()
            raise
        return file

    def _mapped(self, dataset: h5py.Dataset, path: Path) -> Any:
        """A view of the mapped file where HDF5 stores the dataset in one piece, else the dataset: both can be sliced.

        A file is mapped once, however many datasets it holds: every map takes a file descriptor.
        """
        offset = dataset.id.get_offset()
        if offset is None:
            return dataset
        if path not in self._maps:
            self._maps[path] = np.memmap(path, np.uint8, "r")
        return np.ndarray(dataset.shape, dataset.dtype, self._maps[path].data, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_items": {}, "_maps": {}, "_open_in": None}

    def close(self) -> None:
        """Close the files in this process; the next read opens them again."""
        if self._open_in == os.getpid():
            self._items, self._maps = {}, {}
            for file in self._files.values():
                file.close()
        self._files, self._open_in = {}, None
