"""Sampled positions of mask classes: foreground crops find their centres without reading whole masks."""

from collections.abc import Sequence

import numpy as np
import xxhash

MAX_POSITIONS = 256  # per class and image: 1 KiB for each class
MIN_PIXELS = 256 * 256  # smaller masks are read as a whole, in a few microseconds

Positions = dict[int, np.ndarray]  # mask value -> (n, 2) uint16 or uint32, y and x


def sample_positions(mask: np.ndarray, values: Sequence[int], id_: str) -> Positions:
    """Pixels of each class, drawn uniformly without replacement; all of them where there are few.

    Args:
        mask: (H, W).
        values: Mask values that occur.
        id_: Name of the sample, the seed.

    Returns:
        Mask value -> (n, 2), n at most `MAX_POSITIONS`; empty for small masks.
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


def stack_positions(positions: Sequence[Positions], counts: np.ndarray) -> np.ndarray | None:
    """All positions of a split, by sample and class; None where no mask is large.

    Args:
        positions: Of each sample.
        counts: (N, K) pixels of each class in each mask; what is not counted (`ignore_index`) is left out.
    """
    rows = [
        each[value]
        for each, row in zip(positions, counts, strict=True)
        for value in np.flatnonzero(row).tolist()
        if value in each
    ]
    return np.concatenate(rows) if rows else None


def position_starts(counts: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """(N, K + 1) first row of each class of each sample in `stack_positions`, and one behind the last.

    Args:
        counts: See `stack_positions`.
        shapes: (H, W) of each mask.
    """
    large = np.array([height * width >= MIN_PIXELS for height, width in shapes], bool)
    numbers = np.minimum(counts, MAX_POSITIONS) * large[:, None]
    ends = np.cumsum(numbers.ravel()).reshape(numbers.shape)
    return np.concatenate([ends[:, :1] - numbers[:, :1], ends], axis=1)
