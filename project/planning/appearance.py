"""Appearance of the training images: size of structures, noise, and which symmetries leave them alike."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from project.data.crops import middle, spread
from project.data.store import SplitReader

MOST_IMAGES, MOST_PIXELS = 256, 48 * 2**20  # that are read
SIDE = 512  # pixels of the part of an image that is looked at in full resolution
SMOOTH = 32  # pixels, standard deviation
CELLS = 16  # an image is summarized by so many by so many values
FEWEST = 8  # independent images needed to know whether they have a preferred direction
ALIKE = 0.95  # correlation from which on two images count as one: frames of a series
SYSTEMATIC, CERTAIN = 0.2, 3.0  # see `_systematic_share`


@dataclass(frozen=True)
class Appearance:
    """Appearance of the typical training image."""

    structure: float = 20.0  # typical diameter in pixels, in the target, or in the input where there is none
    noise: float = 0.0  # standard deviation of white noise relative to that of the pixels, in the input; 0 to 1
    n_independent: int = 0  # number of groups of images that do not look like another one
    # Left-right, up-down, quarter turn: systematic share of the difference between images and their mirror images, 0 to
    # 1; 0 where it could be chance.
    asymmetry: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def symmetric(self) -> tuple[bool, bool, bool]:
        """Whether mirroring left-right, up-down and quarter turns leave images alike; assumed for few images."""
        left_right, up_down, turn = (share < SYSTEMATIC for share in self.asymmetry)
        return left_right, up_down, turn and left_right and up_down


def measure_appearance(train: SplitReader) -> Appearance:
    """Appearance of some training images, the same ones each time."""
    pixels = np.mean([np.prod(shape) for shape in train.shapes["image"]])
    chosen = spread(len(train), min(MOST_IMAGES, max(3, int(MOST_PIXELS / pixels))))
    textured = "target" if "target" in train.dtypes else "image"
    structures, noises, maps = [], [], []
    for index in chosen:
        image, target = (
            np.nan_to_num(train.read(role, index).astype(np.float32), posinf=0, neginf=0)
            for role in ("image", textured)
        )
        y0, y1, x0, x1 = middle(image.shape, SIDE)
        noises.append(noise_share(image[:, y0:y1, x0:x1]))
        structures.append(structure_size(target[:, y0:y1, x0:x1]))
        maps.append(gradient_map(image))
    labels = train.labels
    classes = np.zeros(len(train), int) if labels is None or labels.ndim > 1 else labels
    by_group: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for index, cells in zip(chosen, maps, strict=True):
        by_group[train.groups[index], int(classes[index])].append(cells)
    means = np.array([np.mean(members, axis=0) for members in by_group.values()])
    independent = distinct_maps(means)
    maps_, classes = means[independent], np.array([label for _, label in by_group])[independent]
    return Appearance(
        structure=float(np.median(structures)),
        noise=float(np.median(noises)),
        n_independent=len(maps_),
        asymmetry=measure_asymmetry(maps_, classes),
    )


def noise_share(image: np.ndarray) -> float:
    """Standard deviation of the white noise of (C, H, W) relative to that of all pixels, mean over the channels.

    Immerkaer (1996), Comput. Vis. Image Underst. 64, 300-302: a Laplacian difference removes what is smooth.
    """
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    shares = []
    for channel in image:
        difference = np.abs(ndimage.convolve(channel, kernel)).mean() * np.sqrt(np.pi / 2) / 6
        shares.append(min(difference / channel.std(), 1.0) if channel.std() else 0.0)
    return float(np.mean(shares))


def structure_size(image: np.ndarray) -> float:
    """Diameter of the typical structure of (C, H, W) in pixels, by the autocorrelation of the first channel.

    Structures much larger than `SMOOTH` are taken for background. A disk's autocorrelation falls to a half at 0.4 of
    its diameter.
    """
    values = image[0] - ndimage.gaussian_filter(image[0], SMOOTH)
    values -= values.mean()
    if not values.std():
        return float(min(values.shape))
    spectrum = np.abs(np.fft.rfft2(values)) ** 2
    correlation = np.fft.irfft2(spectrum, values.shape)
    lengths = []
    for line in (correlation[0, : values.shape[1] // 2], correlation[: values.shape[0] // 2, 0]):
        # The first value is raised by the noise of pixels, which is independent.
        scaled = line[1:] / line[1] if len(line) > 1 and line[1] > 0 else np.zeros(1)
        lengths.append(1 + int(np.argmax(scaled < 0.5)) if (scaled < 0.5).any() else len(line))
    return float(np.mean(lengths)) / 0.4


def gradient_map(image: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (CELLS, CELLS): logarithm of the gradients' strength in each part, relative to the whole image.

    Gradients do not see the illumination, which may differ from left to right where the sample does not.
    """
    step = max(1, min(image.shape[-2:]) // SIDE)
    values = image[:, ::step, ::step].mean(0)
    y, x = np.gradient(values) if min(values.shape) > 1 else (values, values)
    strength = np.log(np.hypot(y, x) + 1e-3 * values.std() + 1e-12)
    smooth = ndimage.uniform_filter(strength, [max(1, round(n / CELLS)) for n in strength.shape])
    rows, columns = (((np.arange(CELLS) + 0.5) * n / CELLS).astype(int) for n in smooth.shape)
    cells: np.ndarray = smooth[np.ix_(rows, columns)]
    return cells - cells.mean()


def distinct_maps(maps: np.ndarray) -> list[int]:
    """Positions of maps that do not look like an earlier one."""
    flat = maps.reshape(len(maps), -1)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    kept: list[int] = []
    for position, values in enumerate(flat):
        if not kept or (flat[kept] @ values).max() < ALIKE:
            kept.append(position)
    return kept


def measure_asymmetry(maps: np.ndarray, classes: np.ndarray) -> tuple[float, float, float]:
    """See `Appearance`; of `gradient_map` (N, h, w) of images and their classes (N,)."""
    left_right, up_down, turned = maps - maps[:, :, ::-1], maps - maps[:, ::-1], maps - maps.swapaxes(1, 2)
    return tuple(_systematic_share(part, classes) for part in (left_right, up_down, turned))  # type: ignore[return-value]


def _systematic_share(differences: np.ndarray, classes: np.ndarray) -> float:
    """Systematic share of the differences (N, h, w) between images and their mirror images, the largest of a class.

    If both orientations are alike, the mean difference of n images is as small as chance makes it, variance / n; it
    counts from `CERTAIN` times that.
    """
    shares = [0.0]
    for label in np.unique(classes):
        part = differences[classes == label].reshape((classes == label).sum(), -1)
        n = len(part)
        if n < FEWEST:
            continue
        systematic, chance = float((part.mean(0) ** 2).sum()), float(part.var(0, ddof=1).sum()) / n
        if systematic > CERTAIN * chance:
            shares.append((systematic - chance) / (systematic + (n - 1) * chance))
    return max(shares)
