"""Layout of a split file: names and format version, and everything that it holds beside its arrays."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import xxhash

FORMAT = 5
ARRAYS = ("image", "target", "mask", "instances")
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


def mask_counts(pixels: Sequence[dict[int, int]], n_classes: int, ignore_index: int | None) -> np.ndarray:
    """(N, n_classes) int64 of N dictionaries {mask value: pixels}."""
    counts = np.zeros((len(pixels), n_classes), np.int64)
    for row, numbers in zip(counts, pixels, strict=True):
        for value, number in numbers.items():
            if value < n_classes and value != ignore_index:
                row[value] = number
    return counts


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
            "label": self.labels,
            "value": self.values,
            "fold": self.folds,
            "mask_counts": self.mask_counts,
            "signature": self.signatures,
            **{f"{role}_statistics": array for role, array in self.image_statistics.items()},
        }
        if self.raw_files:
            columns["raw_file"] = np.array([*self.raw_files], text)
            columns["raw_file_stamp"] = np.array([*self.raw_files.values()], np.int64)
        if self.digests and "image" in self.digests[0]:
            joined = bytes.fromhex("".join(digests["image"] for digests in self.digests))
            columns["image_digest"] = np.frombuffer(joined, np.uint8).reshape(len(self.digests), -1)
        for name, column in columns.items():
            if column is not None:
                file.create_dataset(name, data=column)
        file.attrs["format_version"] = FORMAT
        file.attrs["content_hash"] = self.content_hash()
        for name, value in (SCORED | self.attributes).items():
            file.attrs[name] = json.dumps(value, allow_nan=False)
