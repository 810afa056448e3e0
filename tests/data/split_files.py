"""Small split files with every kind of array, for the tests of reader and writer."""

from pathlib import Path

import numpy as np

from project.data.split_writer import write_split

IDS = ["day 1/é", "day 1/b", "細胞"]
GROUPS = ["day 1", "day 1", "g"]
LABELS = np.array([2, 0, 1])


def arrays_of(ragged: bool) -> dict[str, list[np.ndarray]]:
    """Array name -> three images, of different sizes if `ragged`."""
    rng = np.random.default_rng(0)
    sizes = [(40, 30), (20, 50), (300, 140)] if ragged else [(150, 140)] * 3
    return {
        "image": [rng.integers(0, 65536, (2, *size), np.uint16) for size in sizes],
        "target": [rng.normal(size=(1, *size)).astype(np.float32) for size in sizes],
        "mask": [rng.integers(0, 3, size, np.uint8) for size in sizes],
        "instances": [rng.integers(0, 999, size, np.uint16) for size in sizes],
    }


UNIFORM, RAGGED = arrays_of(False), arrays_of(True)


def write(path: Path, arrays=UNIFORM, ids=IDS, groups=GROUPS, labels=LABELS, **options) -> Path:
    """Write a split file; `options` as for `write_split`."""
    write_split(path, arrays, ids, groups, labels, **options)
    return path
