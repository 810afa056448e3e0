"""Summary of masks: pixels of each class, and sampled positions for foreground crops without reading whole masks."""

from collections.abc import Sequence

import numpy as np
import xxhash

MAX_POSITIONS = 256  # per class and image: 1 KiB for each class
MIN_PIXELS = 256 * 256  # smaller masks are read as a whole, in a few microseconds

Positions = dict[int, np.ndarray]  # mask value -> (n, 2) uint16 or uint32, y and x


def mask_counts(pixels: Sequence[dict[int, int]], n_classes: int, ignore_index: int | None) -> np.ndarray:
    """(N, n_classes) int64 of N dictionaries {mask value: pixels}."""
    counts = np.zeros((len(pixels), n_classes), np.int64)
    for row, numbers in zip(counts, pixels, strict=True):
        for value, number in numbers.items():
            if value < n_classes and value != ignore_index:
                row[value] = number
    return counts


def sample_positions(mask: np.ndarray, values: Sequence[int], id_: str) -> Positions:
    """Pixels of each class, sampled uniformly without replacement: centers of foreground crops.

    Mask (H, W) and the values that occur in it -> value: (n, 2) y and x, n at most `MAX_POSITIONS`; empty for masks
    below `MIN_PIXELS`. The name of the sample is the seed.
    """
    if mask.size < MIN_PIXELS:
        return {}
    seed, dtype = xxhash.xxh3_64_intdigest(id_.encode()), np.uint16 if max(mask.shape) <= 2**16 else np.uint32
    positions = {}
    for value in values:
        pixels = np.flatnonzero(mask == value)
        if len(pixels) > MAX_POSITIONS:
            pixels = np.random.default_rng([seed, value]).choice(pixels, MAX_POSITIONS, replace=False)
        positions[value] = np.stack(np.unravel_index(np.sort(pixels), mask.shape), 1).astype(dtype)
    return positions


def stack_positions(positions: Sequence[Positions], counts: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """All positions of a split of the classes in `counts` (N, K); None where no mask is large.

    Returns:
        (P, 2) y and x by sample and class, and (N, K + 1) int64: first row of each class, and the end of the last.
    """
    rows, starts = [], np.zeros((len(counts), counts.shape[1] + 1), np.int64)
    n = 0
    for sample, (by_value, row) in enumerate(zip(positions, counts, strict=True)):
        starts[sample, 0] = n
        for value, count in enumerate(row.tolist()):
            if count and value in by_value:
                rows.append(by_value[value])
                n += len(by_value[value])
            starts[sample, value + 1] = n
    return (np.concatenate(rows), starts) if rows else None
