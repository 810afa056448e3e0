"""Layout of a split file: names and format version, and everything that it holds beside its arrays."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import xxhash

from project.data.statistics import ImageStatistics, SplitStatistics, count_values

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
        levels = {role: of for role, array in arrays.items() if (of := statistics.add(role, array))}
        pixels = count_values(arrays["mask"]) if "mask" in arrays else {}
        statistics.mask.update(pixels)
        n_objects = len(count_values(arrays["instances"]).keys() - {0}) if "instances" in arrays else None
        return cls(id_, {name: digest(array) for name, array in arrays.items()}, levels, pixels, n_objects)


@dataclass
class SplitMetadata:
    """What a split file holds beside its arrays; the first axis is the sample."""

    ids: Sequence[str]
    groups: Sequence[str]
    labels: np.ndarray | None = None  # (N,) int64 class numbers, or (N, K) zeros and ones
    values: np.ndarray | None = None  # (N, K) float64 numbers per image, named in the attribute `channels`, as "value"
    folds: np.ndarray | None = None  # (N,) int64 number of each sample's fold
    mask_counts: np.ndarray | None = None  # (N, K) int64 pixels of each mask class without those not annotated
    # "image" or "target" -> (N, C, 8) float64, the `ImageStatistics` of each image and channel.
    image_statistics: dict[str, np.ndarray] = field(default_factory=dict)
    signatures: np.ndarray | None = None  # (N, S) uint8, fingerprints of near-duplicates
    digests: list[dict[str, str]] = field(default_factory=list)  # array name -> `digest`, per sample
    raw_files: dict[str, tuple[int, int]] = field(default_factory=dict)  # raw file -> its bytes and time stamp (ns)
    attributes: dict[str, Any] = field(default_factory=dict)  # what JSON can hold; `SCORED` is added where missing

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
            ids=[record.id for record in records],
            groups=groups,
            mask_counts=counts if n_classes and first.pixels else None,
            image_statistics={
                role: np.array([record.statistics[role] for record in records], np.float64) for role in first.statistics
            },
            signatures=None if first.signature is None else np.array([record.signature for record in records]),
            digests=[record.digests for record in records],
        )

    @property
    def image_digests(self) -> np.ndarray | None:
        """(N, 16) uint8, the digest of each image."""
        joined = bytes.fromhex("".join(digests["image"] for digests in self.digests))
        return np.frombuffer(joined, np.uint8).reshape(len(self.digests), -1) if joined else None

    def content_hash(self) -> str:
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
        columns: dict[str, Any] = {
            "id": np.array([*self.ids], text),
            "group": np.array([*self.groups], text),
            **{name: getattr(self, attribute) for attribute, name in ROWS.items()},
            **{f"{role}_statistics": array for role, array in self.image_statistics.items()},
        }
        if self.raw_files:
            columns["raw_file"] = np.array([*self.raw_files], text)
            columns["raw_file_stamp"] = np.array([*self.raw_files.values()], np.int64)
        for name, column in columns.items():
            if column is not None:
                file.create_dataset(name, data=column)
        file.attrs["format_version"] = FORMAT
        file.attrs["content_hash"] = self.content_hash()
        for name, value in (SCORED | self.attributes).items():
            file.attrs[name] = json.dumps(value, allow_nan=False)
