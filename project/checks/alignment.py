"""Whether input and target show the same place, judged without a network.

Structures of both are compared by correlation, as maps of edges and of local brightness, because the brightness itself
may be related in any way. A high correlation is never required: targets may have nothing to do with the pixels of the
input. An error needs *another* hypothesis (a shift, a flip, the target of another sample) that explains the targets, or
some of them, clearly and consistently better. For all, it is chosen on every second sample and judged on the others.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.transform import resize_local_mean

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Finding, error, note, ok, warning
from project.data.crops import middle, spread
from project.data.drift import exposure_groups
from project.data.store import SplitReader

COARSE = 48  # side of the maps by which samples are compared with each other's targets
FINE = 96  # the same for flips and rotations, which need more detail
PIECE = 160  # side in pixels of the pieces in which a shift is searched
BACKGROUND = 12.0  # pixels; smoother structures are illumination
TILES = 16  # at least; a few large images are compared tile by tile
VALUES = ("image", "target")  # arrays of intensities; others hold classes
PAIRS = ((0, 0), (0, 1), (1, 1), (1, 0))  # (map of the input, map of the target); 0 is edges, 1 is brightness
# What a target was if it fits after so many turns by 90 degrees; from 4 on, flipped before.
TURNS = (
    *("unchanged", "rotated by 270 degrees", "rotated by 180 degrees", "rotated by 90 degrees"),
    *("flipped left to right", "transposed", "flipped upside down", "transposed along the other diagonal"),
)


class Misalignment(NamedTuple):
    """A hypothesis such as "flipped left to right", and the correlations of the maps with it and without it."""

    what: str
    correlation: float
    unchanged: float


def alignment(ctx: Context) -> Iterator[Finding]:
    """Targets that are flipped, rotated, shifted, or of another sample."""
    if (array := ctx.target_array) is None:
        return
    reader = ctx.train.reader
    n, most = len(reader), limits.COMPARED[ctx.full]
    # Neighbours in the file too: a list that slipped by one is found among them.
    chosen = list(range(n)) if n <= most else sorted({*range(most // 2), *spread(n, most // 2)})
    maps = [[_reduced_maps(reader, name, index) for index in chosen] for name in ("image", array)]
    coarse, fine = (
        [np.stack([resize_local_mean(m, (side, side), channel_axis=0) for m in part]) for part in maps]
        for side in (COARSE, FINE)
    )
    is_square = all(shape[-2] == shape[-1] for shape in (reader.shapes["image"][i] for i in chosen))
    pieces = _pieces(reader, array)
    if fault := find_turn(fine[0], fine[1], is_square) or find_other(*coarse) or find_shift(*pieces):
        advice = f"structures correlate by {fault.correlation:.2f} then, and by {fault.unchanged:.2f} as they are; "
        yield error(f"{array} {fault.what}", f"{advice}check how the files are paired")
        return
    groups = exposure_groups([reader])
    if which := find_unrelated(coarse[0], coarse[1], [groups[index] for index in chosen]):
        advice = f"structures of input and {array} agree no more than by chance: are these files of the same images?"
        yield warning(f"{array} of {which} has nothing in common with its input", advice)
        return
    correlation = np.abs(_correlations(*(pieces if len(pieces[0]) else coarse)).mean(1)).max()
    yield ok(f"input and {array} correlate by {correlation:.2f}")
    if n < limits.FEWEST_SAMPLES:
        yield note(f"order not judged: {n} images", f"with {limits.FEWEST_SAMPLES}, targets of others would be noticed")


def _reduced_maps(reader: SplitReader, array: str, index: int) -> np.ndarray:
    """Maps of an image, or of the middle of a very large one, at a size that computes fast."""
    pixels = reader.read(array, index, middle(reader.shapes[array][index], 1024))
    step = -(-max(pixels.shape[-2:]) // 192)
    if array not in VALUES:
        return feature_maps(pixels[..., ::step, ::step], classes=True)
    height, width = (size // step for size in pixels.shape[-2:])
    cells = pixels[..., : height * step, : width * step].reshape(len(pixels), height, step, width, step)
    return feature_maps(cells.mean((2, 4), dtype=np.float32))


def _pieces(reader: SplitReader, array: str, most: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, 2, side, side) of square pieces of input and target in pixels of the file; none of tiny images."""
    shapes = [shape[-2:] for shape in reader.shapes["image"]]
    side = min(PIECE, *map(min, shapes))
    if len(shapes) < 4 and side < PIECE:  # a few small images: smaller pieces, so that there are several
        side //= 2
    if side < 24:
        return np.empty(0), np.empty(0)
    windows = [
        (index, y, x)
        for index in spread(len(shapes), most)
        for y, x in itertools.product(*(range(0, size - side + 1, side) for size in shapes[index]))
    ]
    chosen = [windows[i] for i in spread(len(windows), most)]
    x, t = (
        np.stack(
            [feature_maps(reader.read(name, i, (y, y + side, x, x + side)), name not in VALUES) for i, y, x in chosen]
        )
        for name in ("image", array)
    )
    return x, t


def feature_maps(array: np.ndarray, classes: bool = False) -> np.ndarray:
    """Edges and local brightness (2, H, W) float32, without what is as smooth as illumination.

    The array is (C, H, W) intensities, or with `classes` (H, W) numbers, of which only borders and "not 0" count.
    """
    edges, bright = (np.zeros(array.shape[-2:], np.float32) for _ in range(2))
    if classes:
        edges[1:] += array[1:] != array[:-1]
        edges[:, 1:] += array[:, 1:] != array[:, :-1]
        maps = np.stack([gaussian_filter(edges, 1.5), gaussian_filter((array > 0).astype(np.float32), 1.0)])
    else:
        for plane in array:
            values = np.nan_to_num(plane.astype(np.float32), posinf=0, neginf=0)
            if values.std() > 0:
                values = gaussian_filter((values - values.mean()) / values.std(), 1.0)
                edges += np.sqrt(np.hypot(*np.gradient(values)))  # the root, or a few bright cells would decide
                bright += np.sign(values) * np.sqrt(np.abs(values))
        maps = np.stack([gaussian_filter(edges, 1.0), bright])
    return np.asarray(maps - gaussian_filter(maps, (0, BACKGROUND, BACKGROUND), truncate=2), np.float32)


def find_turn(inputs: np.ndarray, targets: np.ndarray, is_square: bool) -> Misalignment | None:
    """Whether all targets are flipped or rotated alike, by maps (N, 2, FINE, FINE).

    Where images are not square, only turns that keep the shape are tried.
    """
    grid = int(np.ceil(np.sqrt(TILES / len(inputs)))) if len(inputs) < TILES else 1

    def tiles(maps: np.ndarray) -> np.ndarray:
        """(N, 2, S, S) -> (N * grid**2, 2, s, s)."""
        side = FINE // grid
        cut = maps[..., : grid * side, : grid * side].reshape(-1, 2, grid, side, grid, side)
        return cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, 2, side, side)

    tried = {}
    for i, name in enumerate(TURNS):
        if is_square or i % 2 == 0:
            turned = np.rot90(targets[..., ::-1] if i > 3 else targets, i % 4, (-2, -1))
            tried[name] = _correlations(tiles(inputs), tiles(turned))
    unchanged = tried.pop("unchanged")
    half = np.arange(unchanged.shape[1]) % 2 == 0
    best = max(tried, key=lambda name: np.abs(tried[name][:, half].mean(1)).max())
    if better := _compare(tried[best], unchanged, half):
        return Misalignment(best, *better)
    # Some of the samples may be turned, say those of one day.
    chance = _chance(np.concatenate(list(tried.values())))
    own, *other = (np.abs(c.reshape(4, len(inputs), -1).mean(2)).max(0) for c in (unchanged, *tried.values()))
    return _strongest(_of_some(name, turned, own, chance) for name, turned in zip(tried, other, strict=True))


def find_shift(inputs: np.ndarray, targets: np.ndarray) -> Misalignment | None:
    """Whether all targets are shifted alike, by more than optics do; maps (N, 2, side, side) in pixels of the file."""
    if len(inputs) < 4 or (reach := inputs.shape[-1] // 4) <= limits.OPTICS:
        return None
    surfaces = np.stack([_shift_correlations(x, t, reach) for x, t in zip(inputs, targets, strict=True)])
    half = np.arange(len(inputs)) % 2 == 0
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    near = (np.abs(dy) <= limits.OPTICS) & (np.abs(dx) <= limits.OPTICS)
    far = np.where(near, -1, np.abs(surfaces[half].mean(0)).max(0))
    y, x = np.unravel_index(far.argmax(), far.shape)
    # The best of all small shifts stands for "not shifted", which favours that hypothesis.
    unchanged = surfaces[:, :, near]
    signs = np.sign(unchanged[half].mean((0, 2)))[None, :, None]
    if better := _compare(surfaces[:, :, y, x].T, (signs * unchanged).max(2).T, half):
        return Misalignment(f"shifted by {dy[y, x]:+d} rows and {dx[y, x]:+d} columns", *better)
    # Some of the pieces may be shifted, all by the same number of pixels, or one more.
    distant = np.where(near, 0, np.abs(surfaces).max(1)).reshape(len(surfaces), -1)  # (N, positions)
    other, own, chance = distant.max(1), np.abs(unchanged).max((1, 2)), _chance(surfaces)
    shifts = np.stack([dy.ravel(), dx.ravel()], 1)[distant.argmax(1)]
    alike = np.abs(shifts[:, None] - shifts).max(2) <= 1
    names = [f"shifted by {y:+d} rows and {x:+d} columns" for y, x in shifts]
    return _strongest(_of_some(name, other, own, chance, part) for name, part in zip(names, alike, strict=True))


def _shift_correlations(x: np.ndarray, t: np.ndarray, reach: int) -> np.ndarray:
    """(4, 2 reach + 1, 2 reach + 1): at (dy, dx) input (y, x) is compared with target (y + dy, x + dx)."""
    size = x.shape[-1]
    fx, ft = (np.fft.rfft2(_standardized(values)) for values in (x, t))
    surface = np.stack([np.fft.irfft2(np.conj(fx[a]) * ft[b], (size, size)) for a, b in PAIRS]) / size**2
    return np.roll(surface, reach, axis=(1, 2))[:, : 2 * reach + 1, : 2 * reach + 1]


def find_other(inputs: np.ndarray, targets: np.ndarray) -> Misalignment | None:
    """Whether samples have the target of other samples, by maps (N, 2, COARSE, COARSE) in the order of the file."""
    if (n := len(inputs)) < limits.FEWEST_SAMPLES:
        return None
    x, t = (_standardized(maps).reshape(n, 2, -1) for maps in (inputs, targets))
    results = []
    for (a, b), sign in itertools.product(PAIRS, (1, -1)):
        table = sign * (x[:, a] @ t[:, b].T) / x.shape[2]  # inputs by targets
        best, top, own = table.argmax(1), table.max(1), np.diag(table)
        mutual = table.argmax(0)[best] == np.arange(n)
        strong = mutual & (top > _chance(table)) & (top - np.sort(table, axis=1)[:, -2] > limits.MARGIN)
        # The sign is that of the table; the sample's own target may be the opposite of it.
        other = strong & (best != np.arange(n)) & (top - np.abs(own) > limits.MARGIN)
        if other.sum() >= max(limits.PERMUTED * n, 4):
            what = f"{other.sum()} of {n} belong to another sample"
            results.append(Misalignment(what, float(top[other].mean()), float(own[other].mean())))
    return _strongest(results)


def find_unrelated(inputs: np.ndarray, targets: np.ndarray, groups: Sequence[str]) -> str:
    """The targets that fit their inputs no better than those of other samples: "all", a group, or "" for none."""
    x, t = (_standardized(maps) for maps in (inputs, targets))
    known = np.flatnonzero(x.any((1, 2, 3)) & t.any((1, 2, 3)))  # not those without structure
    if (n := len(known)) < limits.FEWEST_SAMPLES:
        return ""
    x, t = (maps[known].reshape(n, 2, -1) for maps in (x, t))
    tables = np.stack([x[:, a] @ t[:, b].T for a, b in PAIRS]) / x.shape[2]  # (4, inputs, targets)
    own = np.diagonal(tables, axis1=1, axis2=2)
    excess = own - (tables.sum(2) - own) / (n - 1)
    is_chance = np.abs(excess.mean(1)) < 3 * excess.std(1, ddof=1) / np.sqrt(n)
    if is_chance.all() and np.abs(own.mean(1)).max() < limits.UNRELATED:
        return "all samples"
    names = np.array(groups)[known]
    for name in np.unique(names):
        part = names == name
        if limits.FEWEST_OF_GROUP <= part.sum() < n:
            inside, outside = (np.abs(own[:, chosen].mean(1)).max() for chosen in (part, ~part))
            if outside > limits.STRONG and inside < min(2 * limits.UNRELATED, outside / 4):
                return f"group {name}"
    return ""


def _chance(correlations: np.ndarray) -> float:
    """What a correlation must exceed: few and smooth structures match by chance, as often as many of them show."""
    spread = 1.4826 * np.median(np.abs(correlations - np.median(correlations)))
    return max(limits.STRONG, limits.SIGMA * float(spread))


def _of_some(
    what: str, other: np.ndarray, own: np.ndarray, chance: float, part: np.ndarray | bool = True
) -> Misalignment | None:
    """A misalignment of some of N samples, or of this part of them: correlations (N,) with it and as they are."""
    chosen = part & (other > chance) & (other - own > 2 * limits.MARGIN)
    if chosen.sum() < max(limits.PERMUTED * len(own), 4):
        return None
    what = f"{chosen.sum()} of {len(own)} {what}"
    return Misalignment(what, float(other[chosen].mean()), float(own[chosen].mean()))


def _strongest(misalignments: Iterable[Misalignment | None]) -> Misalignment | None:
    return max(filter(None, misalignments), key=lambda result: result.correlation, default=None)


def _compare(other: np.ndarray, unchanged: np.ndarray, half: np.ndarray) -> tuple[float, float] | None:
    """Correlations of two hypotheses, (4, N) each, if the first is better; pair and sign are chosen on one half."""
    signed = []
    for values in (other, unchanged):
        means = values[:, half].mean(1)
        best = np.abs(means).argmax()
        signed.append(np.sign(means[best]) * values[best, ~half])
    difference = signed[0] - signed[1]
    if len(difference) < 4:
        return None
    error_of_mean = difference.std(ddof=1) / np.sqrt(len(difference))
    clearly = difference.mean() > max(limits.MARGIN, limits.SIGMA * error_of_mean)
    consistent = (difference > 0).mean() >= limits.CONSISTENT
    return (float(signed[0].mean()), float(signed[1].mean())) if clearly and consistent else None


def _standardized(values: np.ndarray) -> np.ndarray:
    """The last two axes with mean 0 and mean square 1; zero where they are constant."""
    values = values - values.mean(axis=(-2, -1), keepdims=True)
    std = np.sqrt((values**2).mean(axis=(-2, -1), keepdims=True))
    return np.where(std > 1e-6, values / np.maximum(std, 1e-6), 0).astype(np.float32)


def _correlations(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N, 2, s, s) twice -> (4, N), one row for each of PAIRS."""
    x, t = _standardized(inputs), _standardized(targets)
    return np.stack([(x[:, a] * t[:, b]).mean((1, 2)) for a, b in PAIRS])
