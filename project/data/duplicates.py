"""Near-duplicates: the same picture saved again as JPEG, rescaled, resized, trimmed, mirrored or rotated by 90 degrees.

As in the DCT hash of Zauner (2010, "Implementation and benchmarking of perceptual image hash functions"), a picture
becomes the lowest cosine frequencies of a small thumbnail, here with one byte for each instead of one bit. The 8
symmetries of the square only swap coefficients and change signs.
"""

from functools import lru_cache

import cv2
import numpy as np
from scipy import fft

CELLS = 24  # the thumbnail is CELLS x CELLS means
FREQUENCIES = 12  # kept along each axis; more sees finer detail, but loses copies trimmed by 2 %
SAMPLES = 256  # pixels looked at along an axis: about ten per cell, at a cost that does not grow with the image
SIGNATURE = FREQUENCIES**2

# Two images are a pair if their signatures correlate by MIN_CORRELATION in one of the 8 orientations, and if chance
# explains that less often than once in 10 ** EVIDENCE comparisons: it asks more of pictures that few frequencies
# describe, such as plain shirts, which agree easily (0.995 for 17 frequencies, 0.95 for 33, 0.92 for 41).
# Measured: 664 images of nuclei correlate with different fields by 0.6 at most; with copies as JPEG 75, gamma 0.7 or
# 1.4, 5 % noise or half the size by 0.96 or more; trimmed by 2 %, four of five are found. (0.9, 12) would find more,
# but also call 6,121 pairs of 60,000 images of Fashion-MNIST near-duplicates, mostly different ankle boots; not 562.
# No picture is asked for more than MAX_CORRELATION: copies as JPEG of images of Fashion-MNIST reach 0.997.
MIN_CORRELATION = 0.92
MAX_CORRELATION = 0.995
EVIDENCE = 16.0
# An image has no structure if the variance of its cells is below NOISE times what the noise of their pixels predicts
# (twice is 17 standard deviations above it), or if all of its contrast comes from fewer than MIN_CELLS cells: a hot
# pixel, or a single nucleus in the dark, is no evidence that two pictures show the same field. Nor is uneven light, the
# structure of empty bright fields: dark corners need four frequencies, images of nuclei 20 and more.
NOISE = 2.0
MIN_CELLS = 3.0
MIN_FREQUENCIES = 5.0

MOST_PAIRS = 10_000  # nobody looks at more: a series of images that are all alike would have millions

BLOCK = 1024  # images compared at once: two blocks and their products fit into a processor's cache
_CANDIDATES = 16384  # pairs compared closely at once: bounds the memory, were all images alike


def signature(image: np.ndarray) -> np.ndarray:
    """(SIGNATURE,) uint8 of an image (C, H, W): int8 coefficients of cosines, all 0 for an image without structure.

    The same for all values of `scale * image + offset` with a positive scale, up to rounding and clipping. Channels are
    added up first: a constant one, such as alpha, changes nothing. NaN and infinities count as their channel's mean.
    """
    rows, columns = (_samples(size) for size in image.shape[1:])
    channels = image[:, rows, columns].astype(np.float64)
    if image.dtype.kind == "f":
        for channel in channels:
            finite = np.isfinite(channel)
            if not finite.all():
                channel[~finite] = channel[finite].mean() if finite.any() else 0
    # Starting from 0 makes a constant image exactly 0.
    channels -= channels[:, :1, :1].copy()
    pixels = channels.sum(axis=0)
    enlarged = pixels  # OpenCV would interpolate where there are fewer pixels than cells
    for axis, size in enumerate(pixels.shape):
        enlarged = enlarged.repeat(-(-CELLS // size), axis) if size < CELLS else enlarged
    cells = cv2.resize(enlarged, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    if not _has_structure(cells, pixels):
        return np.zeros(SIGNATURE, np.uint8)
    # Pictures have amplitudes of about 1 / frequency (Field 1987, J. Opt. Soc. Am. A 4:2379): multiplied by the
    # frequency, all count alike, and uneven illumination, which is common to all images of a microscope, counts little.
    frequency = np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES])
    coefficients = fft.dctn(cells / np.abs(cells).max(), norm="ortho")[:FREQUENCIES, :FREQUENCIES] * frequency
    peak = np.abs(coefficients).max()
    if peak < 1e-6:  # only finer detail than is kept: what is left are rounding errors
        return np.zeros(SIGNATURE, np.uint8)
    coefficients *= 127 / peak
    # Rounding twice: a value that is half a unit exactly must not depend on the last bit, which machines disagree on.
    rounded = np.rint(coefficients.round(6)).astype(np.int8).ravel()
    return (rounded * (_participation(rounded[None]) >= MIN_FREQUENCIES)).view(np.uint8)


def similar_pairs(signatures: np.ndarray, places: np.ndarray | None = None) -> list[tuple[int, int]]:
    """All pairs of near-duplicates, up to `MOST_PAIRS`.

    No pair above the thresholds is missed before that. Two images that resemble a third need not be a pair.

    Args:
        signatures: (N, SIGNATURE) uint8, one of `signature` per row; may be a memory map.
        places: (N,) integers; only images in different places make a pair. The frames of one field all look alike.

    Returns:
        Sorted pairs (i, j) of row numbers with i < j. Images without structure are in none.
    """
    values = np.ascontiguousarray(signatures).view(np.int8)
    rows = np.flatnonzero(values.any(axis=1))
    needed = _needed_correlation(values[rows])
    # In this order the stricter image of a pair, whose demand counts, is always the later one.
    order = np.argsort(needed, kind="stable")
    rows, needed = rows[order], needed[order]
    values, where = values[rows], np.arange(len(rows)) if places is None else places[rows]
    invariants = _invariants(values)
    # Float32 rounds the sums, by far less than this; the final decision is made in whole numbers.
    bound = (needed - 1e-4).astype(np.float32)
    pairs: list[tuple[int, int]] = []
    for i in range(0, len(rows), BLOCK):
        for j in range(i, len(rows), BLOCK):
            above = invariants[i : i + BLOCK] @ invariants[j : j + BLOCK].T >= bound[j : j + BLOCK]
            first, second = np.divmod(np.flatnonzero(above), above.shape[1])
            first, second = first + i, second + j
            other = (first < second) & (where[first] != where[second])
            first, second = first[other], second[other]
            for k in range(0, len(first), _CANDIDATES):
                a, b = first[k : k + _CANDIDATES], second[k : k + _CANDIDATES]
                similar = _correlation(values[a], values[b]) >= needed[b]
                pairs += zip(rows[a[similar]].tolist(), rows[b[similar]].tolist(), strict=True)
                if len(pairs) >= MOST_PAIRS:
                    return sorted((min(pair), max(pair)) for pair in pairs[:MOST_PAIRS])
    return sorted((min(pair), max(pair)) for pair in pairs)


def _samples(size: int) -> slice:
    """At least SAMPLES positions, if there are so many, in the middle: a mirrored image has the same ones."""
    step = max(1, size // SAMPLES)
    return slice((size - 1) % step // 2, None, step)


def _has_structure(cells: np.ndarray, pixels: np.ndarray) -> bool:
    deviation = cells - cells.mean()
    variance = (deviation**2).mean()
    if variance == 0 or (deviation**2).sum() ** 2 < MIN_CELLS * (deviation**4).sum():
        return False
    per_cell = pixels.size / cells.size
    # With fewer pixels, neighbouring cells share them, and the noise of cells is not that of means any more.
    return bool(per_cell < 8 or variance * per_cell > NOISE * pixels.var())


def _participation(values: np.ndarray) -> np.ndarray:
    """How many coefficients of each row carry its energy: from 1 to the length of the row."""
    energy = values.astype(np.float64) ** 2
    return energy.sum(axis=1) ** 2 / (energy**2).sum(axis=1)


def _needed_correlation(values: np.ndarray) -> np.ndarray:
    """(N,) correlation that each image asks of its near-duplicates.

    The squared correlation of random directions in n dimensions has the distribution Beta(1 / 2, (n - 1) / 2); it
    exceeds r^2 with a probability below (1 - r^2)^((n - 1) / 2). n is the number of coefficients that matter.
    """
    dimensions = np.maximum(_participation(values) - 1, 1e-3)
    return np.sqrt(1 - 10 ** (-2 * EVIDENCE / dimensions)).clip(MIN_CORRELATION, MAX_CORRELATION)


def _invariants(values: np.ndarray) -> np.ndarray:
    """(N, SIGNATURE) float32 of length 1, the same for all 8 orientations of an image.

    Mirroring changes the sign of odd frequencies along an axis, transposing swaps the axes. Sums and differences of two
    coefficients are a rotation, and absolute values bring no two vectors further apart. So the product of two rows is
    never below the correlation of the images in their best orientation, and a search may look here first.
    """
    square = values.reshape(-1, FREQUENCIES, FREQUENCIES).astype(np.float32)
    square /= np.linalg.norm(square, axis=(1, 2), keepdims=True)
    u, v = np.mgrid[:FREQUENCIES, :FREQUENCIES]
    # (u, v) and (v, u) change their signs together if both are odd, never if both are even, otherwise one by one.
    square = np.where((u + v) % 2 == 1, np.abs(square), square)
    other = square.swapaxes(1, 2)
    both = (square + other) * np.float32(0.5**0.5)
    result = np.select([u < v, u == v], [both, square], np.abs(square - other) * np.float32(0.5**0.5))
    return np.where((u % 2 == 1) & (v % 2 == 1), np.abs(result), result).reshape(-1, SIGNATURE)


@lru_cache(maxsize=1)
def _signs() -> np.ndarray:
    """(SIGNATURE, 4): the signs of the coefficients unmirrored, mirrored along either axis, and along both."""
    odd = 1 - 2 * (np.arange(FREQUENCIES) % 2)
    return np.stack([np.outer(a, b).ravel() for a in (odd**2, odd) for b in (odd**2, odd)], axis=1).astype(np.float32)


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) float64 correlations of N rows of int8 with N others, in the best of the 8 orientations.

    Sums are whole numbers below 2^24, which float32 holds exactly: every machine decides alike, and equal rows give 1.
    """
    a, b = first.astype(np.float32), second.astype(np.float32)
    turned = b.reshape(-1, FREQUENCIES, FREQUENCIES).swapaxes(1, 2).reshape(b.shape)
    best = np.maximum((a * b) @ _signs(), (a * turned) @ _signs()).max(axis=1)
    return best / np.sqrt((a**2).sum(axis=1, dtype=np.float64) * (b**2).sum(axis=1, dtype=np.float64))
