"""Whether input and target lie on each other, told without a network.

Structures of both are compared by correlation, as maps of edges and of local brightness, since brightness itself may
stand in any relation. What is asked is never whether the correlation is high: targets may have nothing to do with the
pixels of the input. It is whether *another* hypothesis, a shift, a flip, the target of another sample, explains the
targets clearly and consistently better. It is chosen on every second sample and judged on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from project.checks import thresholds as limits

MAP = 48  # side of the maps that samples are compared with others by
FINE = 96  # the same, for turns: structures must be told from each other
BACKGROUND = 12.0  # pixels; what is smoother is illumination, or where in a field there is anything at all
TILES = 16  # of images, at least: a few large images are compared piece by piece
PAIRS = ((0, 0), (0, 1), (1, 1), (1, 0))  # which map of the input with which of the target: edges, brightness
Turn = tuple[bool, bool, bool]  # transpose, then reverse the rows, then reverse the columns
AS_IS: Turn = (False, False, False)
TURNS: dict[Turn, str] = {
    (False, True, False): "flipped upside down",
    (False, False, True): "flipped left to right",
    (False, True, True): "rotated by 180 degrees",
    (True, False, False): "transposed",
    (True, True, False): "rotated by 90 degrees",
    (True, False, True): "rotated by 90 degrees",
    (True, True, True): "transposed along the other diagonal",
}


@dataclass(frozen=True)
class Finding:
    """A hypothesis that is better than that input and target lie on each other.

    Attributes:
        what: In words, such as "flipped left to right".
        correlation: Of the maps under it.
        own: Of the maps as they are.
    """

    what: str
    correlation: float
    own: float


def maps(array: np.ndarray, classes: bool = False) -> np.ndarray:
    """Edges and local brightness.

    Args:
        array: (C, H, W) intensities, or (H, W) numbers of classes or objects.
        classes: Whether values are numbers, of which only borders and "not 0" mean something.

    Returns:
        (2, H, W) float32.
    """
    if classes:
        border = np.zeros(array.shape, np.float32)
        border[1:] += array[1:] != array[:-1]
        border[:, 1:] += array[:, 1:] != array[:, :-1]
        bright = (array > 0).astype(np.float32)
        return _without_background(np.stack([gaussian_filter(border, 1.5), gaussian_filter(bright, 1.0)]))
    edges, bright = (np.zeros(array.shape[-2:], np.float32) for _ in range(2))
    for plane in array:
        values = np.nan_to_num(plane.astype(np.float32), posinf=0, neginf=0)
        spread = values.std()
        if spread > 0:
            values = gaussian_filter((values - values.mean()) / spread, 1.0)
            y, x = np.gradient(values)
            edges += np.sqrt(np.hypot(y, x))  # the root, or a few bright cells would decide
            bright += np.sign(values) * np.sqrt(np.abs(values))
    return _without_background(np.stack([gaussian_filter(edges, 1.0), bright]))


def _without_background(both: np.ndarray) -> np.ndarray:
    smooth = [gaussian_filter(each, BACKGROUND, truncate=2) for each in both]
    return np.asarray(both - np.stack(smooth), np.float32)


def shrunk(both: np.ndarray, side: int = MAP) -> np.ndarray:
    """(2, H, W) -> (2, side, side): means of equal parts, whatever the proportions."""
    for axis in (1, 2):
        size = both.shape[axis]
        if size < side:
            both = np.repeat(both, -(-side // size), axis=axis)
            size = both.shape[axis]
        edges = (np.arange(side) * size) // side
        sums = np.add.reduceat(both, edges, axis=axis, dtype=np.float64)
        counts = np.diff([*edges, size]).reshape(-1, *[1] * (2 - axis))
        both = sums / counts
    return both.astype(np.float32)


def standard(values: np.ndarray) -> np.ndarray:
    """The last two axes with mean 0 and mean square 1; zero where they are constant."""
    values = values - values.mean(axis=(-2, -1), keepdims=True)
    spread = np.sqrt((values**2).mean(axis=(-2, -1), keepdims=True))
    return np.where(spread > 1e-6, values / np.maximum(spread, 1e-6), 0).astype(np.float32)


def turned(both: np.ndarray, turn: Turn) -> np.ndarray:
    """The last two axes turned."""
    transposed, rows, columns = turn
    both = both.swapaxes(-2, -1) if transposed else both
    return both[..., :: -1 if rows else 1, :: -1 if columns else 1]


def relation(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """(4, N) correlations of each pair of maps, of N samples of any shapes (2, H, W)."""
    found = np.empty((len(PAIRS), len(first)))
    for i, (x, t) in enumerate(zip(first, second, strict=True)):
        x, t = standard(x), standard(t)
        found[:, i] = [(x[a] * t[b]).mean() for a, b in PAIRS]
    return found


def find_turn(first: Sequence[np.ndarray], second: Sequence[np.ndarray], square: bool) -> Finding | None:
    """Whether all targets are flipped or rotated alike.

    Args:
        first: Maps of the inputs, shrunk to squares.
        second: Of the targets.
        square: Whether the images are; else only those turns are tried that keep the shape.
    """
    grid = int(np.ceil(np.sqrt(TILES / len(first)))) if len(first) < TILES else 1
    x = np.concatenate([_tiles(m, grid) for m in first])
    whole = {turn: np.concatenate([_tiles(turned(m, turn), grid) for m in second]) for turn in (AS_IS, *TURNS)}
    tried = {turn: _correlations(x, t) for turn, t in whole.items() if square or not turn[0]}
    own, half = tried.pop(AS_IS), np.arange(len(x)) % 2 == 0
    turn = max(tried, key=lambda each: np.abs(tried[each][:, half].mean(1)).max())
    better = _judge(tried[turn], own, half)
    return better and Finding(TURNS[turn], *better)


def find_shift(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Finding | None:
    """Whether all targets are shifted alike, by more than optics do.

    Args:
        first: Maps of the inputs, of one shape (2, h, w), in pixels of the file.
        second: Of the targets.
    """
    height, width = first[0].shape[-2:]
    reach_y, reach_x = height // 4, width // 4
    if len(first) < 4 or min(reach_y, reach_x) <= limits.OPTICS:
        return None
    surfaces = np.stack(
        [_surface(standard(x), standard(t), reach_y, reach_x) for x, t in zip(first, second, strict=True)]
    )
    half = np.arange(len(first)) % 2 == 0
    mean = np.abs(surfaces[half].mean(0))
    ys, xs = np.mgrid[-reach_y : reach_y + 1, -reach_x : reach_x + 1]
    near = (np.abs(ys) <= limits.OPTICS) & (np.abs(xs) <= limits.OPTICS)
    far = np.where(near, -1, mean.max(0))
    y, x = np.unravel_index(far.argmax(), far.shape)
    # What lies near is the best of all small shifts, which favours it.
    own = surfaces[:, :, near]
    signs = np.sign(own[half].mean((0, 2)))[None, :, None]
    better = _judge(surfaces[:, :, y, x].T, (signs * own).max(2).T, half)
    return better and Finding(f"shifted by {ys[y, x]:+d} rows and {xs[y, x]:+d} columns", *better)


def find_other(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Finding | None:
    """Whether samples have the target of others.

    Args:
        first: Maps of the inputs, shrunk to squares, in the order of the file.
        second: Of the targets.
    """
    n = len(first)
    if n < limits.FEWEST_TO_JUDGE:
        return None
    x, t = (standard(np.stack(each)).reshape(n, 2, -1) for each in (first, second))
    found: list[Finding] = []
    for a, b in PAIRS:
        table = x[:, a] @ t[:, b].T / x.shape[2]
        for sign in (1, -1):
            found += [f for f in (_swapped(sign * table), _moved_on(sign * table)) if f]
    return max(found, key=lambda f: f.correlation, default=None)


def _swapped(table: np.ndarray) -> Finding | None:
    """Strong matches in the table, inputs by targets, that are not on its diagonal."""
    n = len(table)
    best = table.argmax(1)
    mutual = table.argmax(0)[best] == np.arange(n)
    second = np.sort(table, axis=1)[:, -2]
    top, own = table.max(1), np.diag(table)
    # Of few and smooth structures there are strong matches by chance: they are as common as the table says.
    chance = limits.SIGMA * 1.4826 * np.median(np.abs(table - np.median(table)))
    strong = mutual & (top > max(limits.STRONG, chance)) & (top - second > limits.MARGIN)
    # The sign is that of the table, and a sample's own target may be the opposite of it.
    other = strong & (best != np.arange(n)) & (top - np.abs(own) > limits.MARGIN)
    if other.sum() < max(limits.SWAPPED * n, 4):
        return None
    return Finding(f"{other.sum()} of {n} belong to another sample", float(top[other].mean()), float(own[other].mean()))


def _moved_on(table: np.ndarray) -> Finding | None:
    """Each sample with the target of the one before or after it."""
    for step in (1, -1, 2, -2):
        rows = np.arange(max(0, -step), len(table) - max(0, step))
        theirs, own = table[rows, rows + step], table[rows, rows]
        own = own * (np.sign(own.mean()) or 1)
        if theirs.mean() > limits.RELATED and _is_better(theirs - own):
            where = "after" if step > 0 else "before"
            told = f"each belongs to the sample {where} it" if abs(step) == 1 else f"each belongs to one 2 {where} it"
            return Finding(told, float(theirs.mean()), float(own.mean()))
    return None


def _judge(other: np.ndarray, own: np.ndarray, half: np.ndarray) -> tuple[float, float] | None:
    """Both (4, N): the pair of maps and its sign are chosen on one half, each for its own hypothesis."""
    signed = []
    for values in (other, own):
        means = values[:, half].mean(1)
        best = np.abs(means).argmax()
        signed.append(np.sign(means[best]) * values[best, ~half])
    theirs, ours = signed
    return (float(theirs.mean()), float(ours.mean())) if _is_better(theirs - ours) else None


def _is_better(difference: np.ndarray) -> bool:
    if len(difference) < 4:
        return False
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    clearly = difference.mean() > max(limits.MARGIN, limits.SIGMA * error)
    return bool(clearly and (difference > 0).mean() >= limits.CONSISTENT)


def _tiles(both: np.ndarray, grid: int) -> np.ndarray:
    """(2, S, S) -> (grid**2, 2, s, s)."""
    side = both.shape[-1] // grid
    cut = both[:, : grid * side, : grid * side].reshape(2, grid, side, grid, side)
    return cut.transpose(1, 3, 0, 2, 4).reshape(-1, 2, side, side)


def _correlations(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """(N, 2, s, s) twice -> (4, N)."""
    x, t = standard(x), standard(t)
    return np.stack([(x[:, a] * t[:, b]).mean((1, 2)) for a, b in PAIRS])


def _surface(x: np.ndarray, t: np.ndarray, reach_y: int, reach_x: int) -> np.ndarray:
    """(4, 2 reach_y + 1, 2 reach_x + 1): at (dy, dx) input (y, x) is compared with target (y + dy, x + dx)."""
    shape = x.shape[-2:]
    fx, ft = (np.fft.rfft2(values) for values in (x, t))
    surface = np.stack([np.fft.irfft2(np.conj(fx[a]) * ft[b], shape) for a, b in PAIRS]) / (shape[0] * shape[1])
    rolled = np.roll(surface, (reach_y, reach_x), axis=(1, 2))
    return rolled[:, : 2 * reach_y + 1, : 2 * reach_x + 1]
