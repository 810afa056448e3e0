"""Demonstration data that needs no download: simulated budding yeast, and one stained tissue section.

The yeast sits between two PDMS pillars. Bright field is the defocused image of a refracting object; fluorescence is the
cytoplasm, darker in the vacuole and brighter in the nucleus, scaled by the expression of each cell, of which a part
follows what bright field shows (size, vacuole, granules). On the 300 images of seed 0 a perfect predictor reaches
Pearson 0.951 and R2 0.886 per image (R2 0.886 over all pixels), in traps never seen 0.950 and 0.875 (0.872):
`predictable_share` in tests/test_demo.py.
"""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage import color, data
from skimage.filters import gaussian

Image = NDArray[Any]
Numbers = dict[str, float]

# Field of view. Lengths are in µm, so another `size` samples the same field more finely (0.25 µm/px at size=128).
FIELD_UM = 32.0
MARGIN_UM = 6.0  # simulated beyond the border and cut off: cells may cross it, and Fourier optics cannot wrap around
DAYS, TRAPS = 4, 5
GROUP_RANGES = {  # shared by all images of one trap on one day, sampled evenly from these ranges
    "lamp": (3650.0, 4950.0),  # counts above the black level
    "lamp_down": (-0.12, 0.12),  # relative change of the lamp across the field
    "lamp_right": (-0.12, 0.12),
    "vignette": (0.05, 0.15),  # relative loss in the corners
    "focus": (-1.5, 3.0),  # µm
    "trap_down": (-1.0, 1.0),  # µm, where the trap lies
    "trap_right": (-1.0, 1.0),
    "trap_gap": (21.0, 24.0),  # µm between the pillars
    "gain": (0.85, 1.15),  # of the fluorescence
    "offset": (180.0, 260.0),  # counts of the fluorescence camera in the dark
    "medium": (130.0, 190.0),  # counts of autofluorescence
    "medium_right": (-0.3, 0.3),  # relative change of the autofluorescence across the field
}

# Cells. A class is a mean look; single cells scatter so widely that the classes overlap.
LOOKS = {  # probability of a bud, radius in µm, long/short axis, vacuole radius / short semi-axis, granules 0..1
    "budding": (0.70, 2.2, 1.12, 0.36, 0.25),  # growing
    "arrested": (0.08, 2.4, 1.45, 0.38, 0.35),  # stretched by mating pheromone
    "starved": (0.10, 2.1, 1.08, 0.58, 0.75),  # stationary phase
}
LABELS = tuple(LOOKS)
STRAY = 0.15  # share of cells that look like a random class
RADIUS_UM = (1.5, 3.25)  # bounds of both semi-axes: 12 to 26 px across at size=128
NUCLEUS_UM = 0.75  # radius
N_CELLS = (5, 16)
TRIES, TOUCHING = 60, 0.8  # positions tried for a cell (left out if none is free), share of them next to another
SPREAD_UM = 7.0  # standard deviation round the trap of the other places

# Bright field.
WAVELENGTH_UM = 0.55
INDEX = {"cytoplasm": 0.030, "vacuole": 0.010, "nucleus": 0.024}  # refractive index above the medium's
PILLAR_RAD = 0.9  # phase
GRANULES_RAD = 0.35  # root mean square of the phase for the most granular cell
SCATTER = 0.025  # amplitude lost per rad of phase: light thrown out of the aperture, all that shows in focus
FOCUS_SD_UM = 0.6  # from image to image within a group
SOURCE_RAD = 0.16  # angular radius of the lamp: blurs objects out of focus
APERTURE = 1.3  # cycles/µm at which the objective passes 1/e of the amplitude
BLACK_LEVEL = 7000.0  # counts
BRIGHT_NOISE = (0.6, 18.0)  # counts per electron, read noise in counts

# Fluorescence.
EXPRESSION = 330.0  # counts per µm of cytoplasm of a typical cell
RESIDUAL_SD = 0.32  # of the natural logarithm of expression: the part that bright field does not show
NUCLEUS_GAIN = (1.6, 0.35)  # mean and SD of the nucleus's extra signal relative to cytoplasm
PSF_UM, HAZE_UM, HAZE = 0.28, 2.5, 0.22  # sigma in focus, sigma of the out-of-focus light, share of the latter
VACUOLE_LOSS, PILLAR_LOSS = 0.85, 0.4  # of cytoplasm signal, of autofluorescence
GLOW_NOISE = (1.5, 9.0)  # counts per electron, read noise in counts


class Cell(NamedTuple):
    """A rendered cell: thickness in µm of the whole and of its parts, on the window of the canvas that holds it."""

    shape: Numbers
    window: tuple[slice, slice]
    body: Image
    vacuole: Image
    nucleus: Image


class Scene(NamedTuple):
    """Scene in front of the camera, before optics and noise; arrays cover the field and its margin."""

    label: str
    cells: list[Cell]
    pillars: Image  # 0 to 1
    phase: Image  # rad
    defocus: float  # µm
    pitch: float  # µm/px

    def crop(self, canvas: Image) -> Image:
        """Cut the margin off."""
        margin = round(MARGIN_UM / self.pitch)
        return canvas[margin:-margin, margin:-margin]


def _group(seed: int, index: int) -> Numbers:
    rng = np.random.default_rng([seed, 0, index % (DAYS * TRAPS)])
    return {name: rng.uniform(*bounds) for name, bounds in GROUP_RANGES.items()}


def _shape(rng: np.random.Generator, label: str) -> Numbers:
    """Draw a cell of a class, not yet placed; a bud is part of its mother. Lengths in µm, angles in rad."""
    bud, radius, aspect, vacuole, granular = LOOKS[LABELS[rng.integers(3)] if rng.random() < STRAY else label]
    radius, stretch = rng.normal(radius, 0.28), np.sqrt(max(1.0, rng.normal(aspect, 0.09)))
    long, short = np.clip((radius * stretch, radius / stretch), *RADIUS_UM)
    vacuole, granular = np.clip(rng.normal((vacuole, granular), (0.1, 0.2)), (0.15, 0.0), (0.72, 1.0))
    vacuole_angle = rng.uniform(0, 2 * np.pi)
    return {
        **{"long": long, "short": short, "angle": rng.uniform(0, np.pi)},
        **{"vacuole": short * vacuole, "vacuole_angle": vacuole_angle},
        "nucleus_angle": vacuole_angle + np.pi + rng.normal(0, 0.5),  # the vacuole pushes the nucleus away
        "granular": granular,
        "bud": short * rng.uniform(0.4, 0.8) if rng.random() < bud else 0.0,
        "bud_angle": rng.normal(0, 0.5) + np.pi * rng.integers(2),  # buds leave near the poles
        "expression": 0.45 * (np.sqrt(long * short) - 2.2) - 1.3 * (vacuole - 0.42) + 0.5 * (granular - 0.45),
    }


def _sphere(u: Image, v: Image, radius: float, out: float, angle: float) -> Image:
    return 2 * np.sqrt(np.maximum(radius**2 - (u - out * np.cos(angle)) ** 2 - (v - out * np.sin(angle)) ** 2, 0))


def _draw(shape: Numbers, canvas: int, pitch: float) -> Cell:
    """Thickness of a cell and its parts, on a window only: a whole canvas for every try would be slow."""
    reach, window, grid = shape["long"] + 2 * shape["bud"], [], []
    for center in (shape["y"], shape["x"]):
        first = max(0, int((center + MARGIN_UM - reach) / pitch))
        last = min(canvas, int((center + MARGIN_UM + reach) / pitch) + 2)
        window.append(slice(first, last))
        grid.append((np.arange(first, last) + 0.5) * pitch - MARGIN_UM - center)
    dy, dx, c, s = grid[0][:, None], grid[1][None, :], np.cos(shape["angle"]), np.sin(shape["angle"])
    u, v = c * dx + s * dy, c * dy - s * dx  # along the long and the short axis
    long, short = shape["long"], shape["short"]
    body = 2 * short * np.sqrt(np.maximum(1 - (u / long) ** 2 - (v / short) ** 2, 0))
    edge = 1 / np.hypot(np.cos(shape["bud_angle"]) / long, np.sin(shape["bud_angle"]) / short)
    # The bud sinks 0.3 of its radius into the mother: that is the neck. Radius 0 adds nothing.
    body = np.maximum(body, _sphere(u, v, shape["bud"], edge + 0.7 * shape["bud"], shape["bud_angle"]))
    out = [0.75 * max(short - radius - 0.2, 0) for radius in (shape["vacuole"], NUCLEUS_UM)]
    vacuole = np.minimum(_sphere(u, v, shape["vacuole"], out[0], shape["vacuole_angle"]), body)
    nucleus = np.minimum(_sphere(u, v, NUCLEUS_UM, out[1], shape["nucleus_angle"]), body - vacuole)
    return Cell(shape, (window[0], window[1]), body, vacuole, nucleus)


def _place_cells(rng: np.random.Generator, label: str, taken: Image, pitch: float) -> list[Cell]:
    """Draw cells and put them down one by one where `taken` is free, often touching, never overlapping."""
    cells: list[Cell] = []
    for _ in range(rng.integers(N_CELLS[0], N_CELLS[1] + 1)):
        shape = _shape(rng, label)
        for _ in range(TRIES):
            y, x = rng.normal(FIELD_UM / 2, SPREAD_UM, 2)
            if cells and rng.random() < TOUCHING:
                near, turn = cells[rng.integers(len(cells))].shape, rng.uniform(0, 2 * np.pi)
                gap = near["short"] + shape["short"] + rng.uniform(0, 1.2)
                y, x = near["y"] + gap * np.sin(turn), near["x"] + gap * np.cos(turn)
            if not (1 < y < FIELD_UM - 1 and 1 < x < FIELD_UM - 1):
                continue
            cell = _draw(dict(shape, y=y, x=x), len(taken), pitch)
            if not taken[cell.window][cell.body > 0].any():
                taken[cell.window] |= cell.body > 0
                cells.append(cell)
                break
    return cells


def _scene(seed: int, index: int, size: int) -> Scene:
    group, rng, pitch = _group(seed, index), np.random.default_rng([seed, 2, index]), FIELD_UM / size
    frame, trap = divmod(index, DAYS * TRAPS)
    block, position = divmod(frame, len(LABELS))  # every three frames of a trap hold each class once, in random order
    label = LABELS[np.random.default_rng([seed, 1, trap, block]).permutation(len(LABELS))[position]]
    axis = (np.arange(size + 2 * round(MARGIN_UM / pitch)) + 0.5) * pitch - MARGIN_UM - FIELD_UM / 2
    y, x = np.abs(axis - group["trap_down"])[:, None], np.abs(axis - group["trap_right"])[None, :]
    away = np.hypot(np.maximum(y - 6.5, 0), np.maximum(np.abs(x - group["trap_gap"] / 2 - 1.5) - 0.5, 0))
    pillars = 1 / (1 + np.exp((away - 1.0) / 0.12))  # two bars with round ends, soft over the optical resolution
    cells = _place_cells(rng, label, pillars > 0.5, pitch)
    granules = gaussian(rng.standard_normal(pillars.shape), 0.25 / pitch)
    granules *= GRANULES_RAD / granules.std()
    phase, per_um = PILLAR_RAD * pillars, {part: 2 * np.pi / WAVELENGTH_UM * step for part, step in INDEX.items()}
    for cell in cells:
        plasma = cell.body - cell.vacuole - cell.nucleus
        grain = cell.shape["granular"] * granules[cell.window] / (2 * cell.shape["short"])
        phase[cell.window] += (per_um["cytoplasm"] + grain) * plasma
        phase[cell.window] += per_um["vacuole"] * cell.vacuole + per_um["nucleus"] * cell.nucleus
    return Scene(label, cells, pillars, phase, group["focus"] + rng.normal(0, FOCUS_SD_UM), pitch)


def _brightfield(scene: Scene, group: Numbers) -> Image:
    """Noise-free bright field in counts: Fresnel propagation of the refracted light makes the rings."""
    k = np.fft.fftfreq(len(scene.phase), scene.pitch)
    k2 = k[:, None] ** 2 + k[None, :] ** 2
    lens = np.exp(-1j * np.pi * WAVELENGTH_UM * scene.defocus * k2 - k2 / APERTURE**2)
    light = np.abs(np.fft.ifft2(np.fft.fft2(np.exp((1j - SCATTER) * scene.phase)) * lens)) ** 2
    light = scene.crop(gaussian(light, np.hypot(0.12, SOURCE_RAD * scene.defocus) / scene.pitch))
    across = np.linspace(-0.5, 0.5, len(light))
    lamp = 1 + group["lamp_down"] * across[:, None] + group["lamp_right"] * across[None, :]
    axis = np.linspace(-1, 1, len(light)) ** 2
    return BLACK_LEVEL + group["lamp"] * light * (lamp - group["vignette"] * (axis[:, None] + axis[None, :]) / 2)


def _fluorescence(scene: Scene, group: Numbers, rng: np.random.Generator | None) -> Image:
    """Noise-free fluorescence in counts; without `rng` its mean over the hidden part (it is linear in it)."""
    visible = np.array([cell.shape["expression"] for cell in scene.cells])
    luck, shift = np.zeros((2, len(visible))), RESIDUAL_SD**2 / 2  # the mean of a log-normal lies above its median
    if rng is not None:
        luck, shift = rng.standard_normal((2, len(visible))), 0.0
    expression = EXPRESSION * np.exp(visible + RESIDUAL_SD * luck[0] + shift)
    nucleus = NUCLEUS_GAIN[0] + NUCLEUS_GAIN[1] * luck[1]
    signal = np.zeros_like(scene.phase)
    for cell, amount, gain in zip(scene.cells, expression, nucleus, strict=True):
        signal[cell.window] += amount * (cell.body - VACUOLE_LOSS * cell.vacuole + gain * cell.nucleus)
    sharp = gaussian(signal, np.hypot(PSF_UM, 0.06 * scene.defocus) / scene.pitch)
    glow = scene.crop((1 - HAZE) * sharp + HAZE * gaussian(signal, HAZE_UM / scene.pitch))
    medium = scene.crop(1 - PILLAR_LOSS * gaussian(scene.pillars, PSF_UM / scene.pitch))
    across = np.linspace(-0.5, 0.5, len(glow))
    medium = group["medium"] * medium * (1 + group["medium_right"] * across[None, :])
    return group["offset"] + group["gain"] * glow + medium


def _camera(rng: np.random.Generator, counts: Image, dark: float, noise: tuple[float, float]) -> Image:
    """Add shot noise (normal: as many random numbers for any brightness) and read noise; uint16 counts."""
    sd = np.sqrt(noise[0] * np.maximum(counts - dark, 0) + noise[1] ** 2)
    return np.clip(np.rint(counts + sd * rng.standard_normal(counts.shape)), 0, 65535).astype(np.uint16)


def _record(seed: int, index: int, scene: Scene) -> dict[str, Image]:
    group, rng = _group(seed, index), np.random.default_rng([seed, 3, index])
    glow = _fluorescence(scene, group, rng)
    masks = np.zeros(scene.phase.shape, np.uint16)
    for number, cell in enumerate(scene.cells, 1):
        masks[cell.window][cell.body > 0] = number
    return {
        "brightfield": _camera(rng, _brightfield(scene, group), BLACK_LEVEL, BRIGHT_NOISE),
        "fluorescence": _camera(rng, glow, group["offset"], GLOW_NOISE),
        "masks": scene.crop(masks),
    }


def simulate_yeast(folder: Path, n_images: int = 300, size: int = 128, seed: int = 0) -> None:
    """Write simulated yeast the way a microscope leaves it; the seed decides everything.

    Image "day1_trap02/0007" is `day1_trap02/{brightfield,fluorescence,masks}/0007.tif`, each (size, size) uint16, of a
    32 µm field: counts, counts, instance numbers (0: background; a bud has its mother's). `samples.csv` has the columns
    id, day, trap, label (budding, arrested, starved), n_cells and budding_fraction. Frames of a trap are separate
    fields. Images are dealt out to the 20 traps in turn: more images leave the first ones as they are.
    """
    rows = []
    for index in range(n_images):
        scene, (frame, group) = _scene(seed, index, size), divmod(index, DAYS * TRAPS)
        day, trap = group // TRAPS + 1, group % TRAPS + 1
        name = f"day{day}_trap{trap:02d}"
        for kind, image in _record(seed, index, scene).items():
            path = folder / name / kind / f"{frame:04d}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, image)
        budding = np.mean([cell.shape["bud"] > 0 for cell in scene.cells])
        rows.append((f"{name}/{frame:04d}", day, trap, scene.label, len(scene.cells), f"{budding:.4f}"))
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("id", "day", "trap", "label", "n_cells", "budding_fraction"), *sorted(rows)])


def export_ihc(folder: Path) -> None:
    """Write a photograph of stained colon tissue, from scikit-image, and a target computed from it: no science.

    `grey/ihc.tif` is (512, 512) uint8, rounded mean of red, green and blue; `haematoxylin/ihc.tif` (512, 512) float32,
    stain density in arbitrary units.
    """
    rgb = data.immunohistochemistry()
    images = {"grey": np.rint(rgb.mean(axis=2)).astype(np.uint8), "haematoxylin": color.rgb2hed(rgb)[..., 0]}
    for kind, image in images.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / kind / "ihc.tif", image if kind == "grey" else image.astype(np.float32))
