"""Checks of what the network sees: normalized values, levels, empty crops, augmentation that goes too far."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Finding, error, note, ok, warning
from project.data.normalization import INFORMS, determination
from project.formatting import format_number, format_percent

SIDE = 64  # pixels of the made-up image on which geometric augmentation is tried
CLASSES = (0.4, 0.6)  # of the texture
Arrays = dict[str, np.ndarray]
# Words that one movement of the image exchanges.
EXCHANGED = {
    "left and right mirrored": "left/right l/r west/east b/d p/q os/od links/rechts gauche/droite leftward/rightward",
    "turned upside down": "up/down top/bottom north/south upper/lower above/below rising/falling n/u m/w b/p d/q",
    "rotated by 180 degrees": "6/9 six/nine b/q d/p n/u m/w",
    "mirrored": "clockwise/counterclockwise clockwise/anticlockwise cw/ccw dextral/sinistral",
    "rotated by 90 degrees": "horizontal/vertical portrait/landscape north/east up/right up/left row/column n/z",
}
ARROWS = str.maketrans({"←": " left ", "→": " right ", "↑": " up ", "↓": " down ", "<": " left ", ">": " right "})


def normalization(ctx: Context) -> Iterator[Finding]:
    """Whether input and target are of the order of 1, as networks are made for."""
    batch = ctx.batch(32)
    with torch.no_grad():
        normalized = {"image": ctx.task.network_input(batch), "target": ctx.task.make_target(batch)}
    for array in ctx.intensity_arrays:
        values = normalized[array].double()
        mean, std = float(values.mean()), float(values.std(correction=0))
        measured = f"{array}: mean {format_number(mean)}, std {format_number(std)}"
        if std == 0 or values.shape != batch[array].shape:
            continue  # constant values are reported elsewhere
        if not np.isfinite(mean) or not limits.STD_TINY < std < limits.STD_HUGE or abs(mean) > limits.MEAN_FAR:
            yield error(measured, "values far from the order of 1; see how the task normalizes")
        elif not limits.STD_SMALL < std < limits.STD_LARGE:
            option = "input" if array == "image" else "target"
            yield warning(measured, f"few pixels set the scale; set `model.init_args.{option}_normalization: mean_std`")
        else:
            yield ok(measured)


def level(ctx: Context) -> Iterator[Finding]:
    """Whether the brightness of an input, which a normalization of each image removes, tells that of the target."""
    method = getattr(ctx.task.normalize_input, "method", "")
    if "target" not in ctx.train.roles or not method.startswith("image_"):
        return
    if (n := len(ctx.train.reader)) < limits.FEWEST_SAMPLES:
        yield note(f"not judged: {n} images", f"{method} removes the brightness: does the target depend on it?")
        return
    inputs, targets = (ctx.train.reader.statistic(array, "mean") for array in ("image", "target"))
    share = max(determination(x, y) for x in inputs.T for y in targets.T)
    measured = f"the mean of an input explains {format_percent(share)} of that of its target"
    if share > INFORMS:
        yield warning(measured, f"{method} removes it: set `model.init_args.input_normalization: mean_std`")
    else:
        yield ok(measured)


def crops(ctx: Context) -> Iterator[Finding]:
    """How many training samples hold nothing."""
    batch = ctx.batch(limits.DRAWS, side=None if ctx.train.crop else 256)
    n, shape = len(batch["image"]), " x ".join(map(str, batch["image"].shape[1:]))
    arrays = [batch[array].float().flatten(1) for array in ctx.intensity_arrays]
    n_constant = int(torch.stack([values.amin(1) == values.amax(1) for values in arrays]).any(0).sum())
    mask = batch.get("mask", torch.ones(n, 1)).long().flatten(1)
    n_empty = int(((mask == 0) | (mask == ctx.data.ignore_index)).all(1).sum())
    objects = (
        [np.bincount(a.ravel())[1:] for a in ctx.read("instances", 1024)]
        if "instances" in ctx.train.reader.dtypes
        else []
    )
    areas = np.concatenate([[0], *objects])
    across = float(np.sqrt(np.median(areas[areas > 0]))) if areas.any() else 0.0
    if n_constant > limits.EMPTY * n:
        yield warning(f"{n_constant} of {n} are constant", "leave out empty images, or take larger crops")
    elif ctx.train.crop and across > ctx.train.crop:
        yield warning(f"{shape}, objects are {across:.0f} pixels across", "no object is seen whole: larger `data.crop`")
    elif n_empty > limits.NO_FOREGROUND * n:
        yield warning(f"{n_empty} of {n} without any class but the first", "set `data.foreground_crops: 0.5`")
    else:
        yield ok(f"{len(ctx.train)} of {shape} per epoch")


class Movement(NamedTuple):
    """One random movement of an image."""

    jacobian: np.ndarray  # (2, 2) of the typical pixel: rows and columns of the original by those of the result
    folded: float  # share of the pixels that are mirrored border, or folded
    differs: str  # the array that was not moved as the image was; "" where all were
    is_identity: bool


def movements(ctx: Context) -> Iterator[tuple[str, list[Movement]]]:
    """Key in the configuration of each geometric augmentation, in the loader and on the device, and what it does."""
    augment = ctx.train.augmentation
    if augment is not None:
        seeds = [np.random.SeedSequence([ctx.train.seed, 0, i], spawn_key=(1,)) for i in range(limits.DRAWS)]
        yield "data.transforms", _try(lambda arrays, index: augment(arrays, seeds[index]))
    if not isinstance(ctx.task.device_augmentation, nn.Identity):

        def on_device(arrays: Arrays, index: int) -> Arrays:
            torch.manual_seed(index)
            batch = {name: torch.from_numpy(array)[None].to(ctx.device) for name, array in arrays.items()}
            with torch.no_grad():
                return {name: array[0].cpu().numpy() for name, array in ctx.task.device_augmentation(batch).items()}

        yield "model.init_args.device_augmentation", _try(on_device)


def _try(move: Callable[[Arrays, int], Arrays]) -> list[Movement]:
    """Movements of a smooth texture: the target holds it and the coordinates of each pixel, the mask its classes."""
    texture = gaussian_filter(np.random.default_rng(0).random((SIDE, SIDE)), 3, mode="wrap").astype(np.float32)
    texture = (texture - texture.min()) / np.ptp(texture)
    mask = np.digitize(texture, CLASSES).astype(np.uint8)
    target = np.stack([texture, *np.mgrid[:SIDE, :SIDE].astype(np.float32)])
    arrays = {"image": texture[None], "target": target, "mask": mask, "instances": mask.astype(np.uint16)}
    result = []
    for index in range(limits.DRAWS):
        moved = {name: np.array(array) for name, array in move(arrays, index).items()}
        image, (first, *coordinates) = moved["image"][0], moved["target"]
        differs = ""
        if image.shape != first.shape or np.abs(image - first).max() > 0.01:
            differs = "target"
        elif (np.digitize(image, CLASSES) != moved["mask"]).mean() > 0.3:
            differs = "mask"
        gradients = np.array([np.gradient(plane) for plane in coordinates])
        jacobian = np.median(gradients, axis=(2, 3))
        areas = np.linalg.det(gradients.transpose(2, 3, 0, 1)) * (np.sign(np.linalg.det(jacobian)) or 1)
        is_identity = np.array_equal(moved["target"], target)
        result.append(Movement(jacobian, float((areas <= 0).mean()), differs, is_identity))
    return result


def geometry(ctx: Context) -> Iterator[Finding]:
    """Whether geometric augmentation moves all arrays alike and not too far."""
    for key, tried in movements(ctx):
        zooms = [1 / max(abs(np.linalg.det(movement.jacobian)), 1e-3) for movement in tried]
        (low, high), folded = np.quantile(zooms, [0.05, 0.95]), float(np.mean([movement.folded for movement in tried]))
        measured = f"zoom {low:.2g} to {high:.2g}, {format_percent(folded)} mirrored border"
        if differs := next((movement.differs for movement in tried if movement.differs), ""):
            yield error(f"input and {differs} are moved differently", f"move both alike; see {key}")
        elif all(movement.is_identity for movement in tried):
            yield warning("no image is moved", f"see {key}")
        elif folded > limits.FOLDED:
            yield warning(measured, f"mirrored or folded: weaken shifts, scaling or elastic deformation in {key}")
        elif high > limits.ZOOMED or low < 1 / limits.ZOOMED:
            yield warning(measured, f"objects get another size than in validation: weaken scaling in {key}")
        else:
            yield ok(measured)


def meaning(ctx: Context) -> Iterator[Finding]:
    """Whether flips and rotations turn an image of one class into one of another, by the names of the classes."""
    kind = ctx.task.target_kind
    names = ctx.data.classes.get(kind, []) if kind in ("label", "mask") else []
    config = (ctx.train.reader.attributes.get("source") or {}).get("config") or {}
    if kind == "mask" or config.get("arrays"):  # numbers of classes without a name, not drawings of digits
        names = [name for name in names if not name.isdigit()]
    pairs = {what: confused for what, words in EXCHANGED.items() if (confused := _confused(names, words))}
    for key, tried in movements(ctx) if pairs else ():
        made = {what for movement in tried for what in _describe(movement.jacobian)}
        if what := next((what for what in pairs if what in made), ""):
            yield warning(f"{pairs[what]} are exchanged in images {what}", f"the label stays: leave that out of {key}")
            return
    if pairs:
        yield ok(f"no augmentation exchanges {next(iter(pairs.values()))}")


def _describe(jacobian: np.ndarray) -> set[str]:
    """Those of `EXCHANGED` that a movement is."""
    (yy, yx), (xy, xx) = jacobian
    half = 0.5 * np.sqrt(abs(yy * xx - yx * xy))
    is_made = {
        "left and right mirrored": xx < -half,
        "turned upside down": yy < -half,
        "rotated by 180 degrees": xx < -half and yy < -half,
        "mirrored": yy * xx - yx * xy < 0,
        "rotated by 90 degrees": abs(xy) > half,
    }
    return {what for what, value in is_made.items() if value}


def _confused(names: list[str], words: str) -> str:
    """Two class names that differ by such words only, as "left eye and right eye"; "" if there are none."""
    split = {tuple(_words(name)): name for name in names}
    for first, second in (pair.split("/") for pair in words.split()):
        for parts, name in split.items():
            other = tuple(second if part == first else part for part in parts)
            if other != parts and other in split:
                return f"{name} and {split[other]}"
    return ""


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.translate(ARROWS))
    spaced = re.sub(r"(?i)\b(counter|anti)[-_ ]clock", r"\1clock", spaced)
    return [str(word).casefold() for word in re.findall(r"[^\W\d_]+|\d+", spaced)]


def intensity(ctx: Context) -> Iterator[Finding]:
    """Whether intensity augmentation leaves the images recognizable."""
    if isinstance(ctx.task.intensity_augmentation, nn.Identity):
        return
    torch.manual_seed(0)
    with torch.no_grad():
        before = ctx.task.network_input(ctx.batch(16)).repeat(4, 1, 1, 1)
        after = ctx.task.intensity_augmentation(before)
    x, y = (values.flatten(2).flatten(0, 1).double().cpu().numpy() for values in (before, after))  # (N * C, H * W)
    x, y = x[x.std(1) > 1e-6], y[x.std(1) > 1e-6]
    cure = "weaken model.init_args.intensity_augmentation, or leave it out"
    if not len(x) or not np.isfinite(y).all() or np.quantile(y.std(1), 0.25) < 1e-9:
        yield error("NaN, infinite or constant images", cure)
        return
    stds = x.std(1), np.maximum(y.std(1), 1e-9)
    correlation = ((x - x.mean(1, keepdims=True)) * (y - y.mean(1, keepdims=True))).mean(1) / (stds[0] * stds[1])
    r2 = np.mean(correlation * np.abs(correlation))  # inverted contrast counts against it
    moved, contrast = np.median(np.abs(y.mean(1) - x.mean(1))), np.median(np.abs(np.log(stds[1] / stds[0])))
    measured = f"r² {r2:.2f} with the input, level ± {moved:.2g}"
    if r2 < limits.NOISE_EXCEEDS:
        yield warning(
            measured, f"more noise than image, or inverted: noise is in units of the normalized input; {cure}"
        )
    elif moved > limits.LEVEL_MOVED or contrast > np.log(limits.CONTRAST_CHANGED):
        yield warning(measured, f"images look unlike any in validation; {cure}")
    else:
        yield ok(measured)
