"""Layout of a split file: names and format version, and everything that it holds beside its arrays."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import xxhash

from project.data.hdf5 import check_size
from project.data.statistics import ImageStatistics, SplitStatistics

FORMAT = 5
ARRAYS = ("image", "target", "mask", "instances")
# Attribute of metadata and reader -> array in the file with one row per sample.
ROWS = {"labels": "label", "values": "value", "folds": "fold", "mask_counts": "mask_counts"}
ROWS |= {"signatures": "signature", "image_digests": "image_digest"}
# Attributes that scores depend on, with their defaults.
SCORED: dict[str, Any] = {"classes": {}, "ignore_index": None, "background": None, "positive": None}


def dataset_name(id_: str) -> str:
    """Name of a sample's dataset in a file of images of different sizes; "/" would open a group in HDF5."""
    return id_.replace("/", ":")


def digest(array: np.ndarray) -> str:
    """XXH3 (128 bits, https://xxhash.com) over dtype, shape and values: an eighth of the time of SHA-256."""
    state = xxhash.xxh3_128(f"{array.dtype.newbyteorder('<').str}{array.shape}".encode())
    state.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return state.hexdigest()


@dataclass
class SampleRecord:
    """What is known of a sample once its arrays are written."""

    id: str
    digests: dict[str, str]  # array name -> digest
    statistics: dict[str, list[ImageStatistics]]  # "image" or "target" -> statistics of each channel
    pixels: dict[int, int]  # mask value -> number of pixels
    n_objects: int | None  # None without instances
    signature: np.ndarray | None = None  # (SIGNATURE,) uint8
    renumbered: bool = False  # whether its object numbers were changed

    @classmethod
    def measure(cls, id_: str, arrays: Mapping[str, np.ndarray], statistics: SplitStatistics) -> "SampleRecord":
        """The record of a sample with these arrays, which are added to the statistics."""
        digests = {name: digest(array) for name, array in arrays.items()}
        counted = {name: statistics.add(name, array) for name, array in arrays.items()}
        pixels, n_objects = counted.pop("mask", {}), counted.pop("instances", None)
        return cls(id_, digests, counted, pixels, n_objects)


@dataclass(eq=False)
class SplitMetadata:
    """What a split file holds beside its arrays; the first axis is the sample."""

    ids: list[str]
    groups: list[str]
    labels: np.ndarray | None = None  # (N,) int64 class numbers, or (N, K) zeros and ones
    values: np.ndarray | None = None  # (N, K) float64 numbers per image, named in the attribute `channels`, as "value"
    folds: np.ndarray | None = None  # (N,) int64 number of each sample's fold
    mask_counts: np.ndarray | None = None  # (N, K) int64 pixels of each mask class without those not annotated
    signatures: np.ndarray | None = None  # (N, S) uint8, fingerprints of near-duplicates
    image_digests: np.ndarray | None = None  # (N, 16) uint8, `digest` of each image
    # "image" or "target" -> (N, C, 8) float64, the `ImageStatistics` of each image and channel.
    image_statistics: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)  # what JSON can hold; `SCORED` is added where missing
    # Only for writing: array name -> `digest`, per sample; raw file -> its bytes and time stamp (ns).
    digests: list[dict[str, str]] = field(default_factory=list)
    raw_files: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, records: list[SampleRecord], groups: Sequence[str], n_classes: int, ignore_index: int | None
    ) -> "SplitMetadata":
        """The metadata of these samples; with `n_classes` of the mask, `mask_counts` leaves out `ignore_index`."""
        counts = np.zeros((len(records), n_classes), np.int64)
        for row, record in zip(counts, records, strict=True):
            for value, number in record.pixels.items():
                if value < n_classes and value != ignore_index:
                    row[value] = number
        first = records[0]
        return cls(
            [record.id for record in records],
            list(groups),
            mask_counts=counts if n_classes and first.pixels else None,
            signatures=None if first.signature is None else np.array([record.signature for record in records]),
            image_digests=np.array([[*bytes.fromhex(record.digests["image"])] for record in records], np.uint8),
            image_statistics={
                role: np.array([record.statistics[role] for record in records], np.float64) for role in first.statistics
            },
            digests=[record.digests for record in records],
        )

    @classmethod
    def from_file(cls, file: h5py.File) -> "SplitMetadata":
        """What an open file holds."""
        ids, groups = (list(check_size(file[name]).asstr()[...]) for name in ("id", "group"))
        columns = {attribute: check_size(file[name])[...] for attribute, name in ROWS.items() if name in file}
        levels = {role: f"{role}_statistics" for role in ARRAYS}
        statistics = {role: check_size(file[name])[...] for role, name in levels.items() if name in file}
        if any(len(rows) != len(ids) for rows in (groups, *columns.values(), *statistics.values())):
            raise ValueError("labels, groups or other rows are not of all samples")
        plain = ("format_version", "content_hash")
        return cls(
            ids,
            groups,
            **columns,
            image_statistics=statistics,
            attributes={name: value if name in plain else json.loads(value) for name, value in file.attrs.items()},
        )

    def statistic(self, role: str, name: str) -> np.ndarray:
        """(N, C): a field of `ImageStatistics` of each "image" or "target"."""
        return np.asarray(self.image_statistics[role][..., ImageStatistics._fields.index(name)])

    def select(self, indices: list[int]) -> dict[str, Any]:
        """The fields of the samples at these positions."""
        fields: dict[str, Any] = {name: [getattr(self, name)[i] for i in indices] for name in ("ids", "groups")}
        fields |= {name: array[indices] for name in ROWS if (array := getattr(self, name)) is not None}
        return fields | {"image_statistics": {role: array[indices] for role, array in self.image_statistics.items()}}

    def compute_hash(self) -> str:
        """XXH3 over everything that scores depend on; independent of the order in which samples were written."""
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
        text = h5py.string_dtype("utf-8")
        columns: dict[str, Any] = {"id": np.array(self.ids, text), "group": np.array(self.groups, text)}
        columns |= {name: getattr(self, attribute) for attribute, name in ROWS.items()}
        columns |= {f"{role}_statistics": array for role, array in self.image_statistics.items()}
        if self.raw_files:
            columns["raw_file"] = np.array([*self.raw_files], text)
            columns["raw_file_stamp"] = np.array([*self.raw_files.values()], np.int64)
        for name, column in columns.items():
            if column is not None:
                file.create_dataset(name, data=column)
        file.attrs["format_version"] = FORMAT
        file.attrs["content_hash"] = self.compute_hash()
        for name, value in (SCORED | self.attributes).items():
            file.attrs[name] = json.dumps(value, allow_nan=False)
