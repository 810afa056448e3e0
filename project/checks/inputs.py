"""Checks of what the network sees: range of normalized values, strength of augmentation, empty crops."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Verdict, error, warning
from project.data.normalization import INFORMS, determination
from project.formatting import format_number, format_percent

SIDE = 64  # pixels of the made-up image on which geometric augmentation is tried
Arrays = dict[str, np.ndarray]
Move = Callable[[Arrays, int], Arrays]


def normalization(ctx: Context) -> Iterator[Verdict]:
    """Whether input and target are of the order of 1, as networks are made for."""
    batch = ctx.batch(32)
    with torch.no_grad():
        normalized = {"image": ctx.task.network_input(batch), "target": ctx.task.make_target(batch)}
    for array in ctx.intensity_arrays:
        values = normalized[array].double()
        mean, std = float(values.mean()), float(values.std(correction=0))
        measured = f"mean {format_number(mean)}, std {format_number(std)}"
        if std == 0 or values.shape != batch[array].shape:
            continue  # constant values are reported elsewhere
        if not np.isfinite(mean) or not limits.STD_TINY < std < 10 * limits.STD_LARGE or abs(mean) > limits.MEAN_FAR:
            advice = "values far from the order of 1; see how the task normalizes"
            yield error(f"{array} normalization", measured, advice)
        elif not limits.STD_SMALL < std < limits.STD_LARGE:
            option = "input" if array == "image" else "target"
            advice = f"few pixels set the scale; set `model.init_args.{option}_normalization: mean_std`"
            yield warning(f"{array} normalization", measured, advice)
        else:
            yield Verdict(f"{array} normalization", measured)


def levels(ctx: Context) -> Iterator[Verdict]:
    """Whether the brightness of an input, which a normalization of each image removes, tells that of the target."""
    method = getattr(ctx.task.normalize_input, "method", "")
    few = len(ctx.train.reader) < limits.FEWEST_SAMPLES
    if few or "target" not in ctx.train.roles or not method.startswith("image_"):
        return
    inputs, targets = (ctx.image_statistics("train", array, "mean") for array in ("image", "target"))
    share = max(determination(x, y) for x in inputs.T for y in targets.T)
    measured = f"the mean of an input explains {format_percent(share)} of that of its target"
    if share > INFORMS:
        advice = f"{method} removes it: set `model.init_args.input_normalization: mean_std`"
        yield warning("levels", measured, advice)
    else:
        yield Verdict("levels", measured)


def geometry(ctx: Context) -> Iterator[Verdict]:
    """Whether geometric augmentation, in the loader and on the device, moves all arrays alike and not too far."""
    for key, move in augmentations(ctx):
        yield _strength(key, move)


def augmentations(ctx: Context) -> Iterator[tuple[str, Move]]:
    """Key in the configuration and function (arrays without a batch axis, number of a draw) of each augmentation."""
    augment = ctx.train.augmentation
    if augment is not None:
        seeds = [np.random.SeedSequence([ctx.train.seed, 0, i], spawn_key=(1,)) for i in range(limits.DRAWS)]
        yield "data.transforms", lambda arrays, index: augment(arrays, seeds[index])
    if not isinstance(ctx.task.device_augmentation, nn.Identity):

        def on_device(arrays: Arrays, index: int) -> Arrays:
            torch.manual_seed(index)
            batch = {name: torch.from_numpy(array)[None].to(ctx.device) for name, array in arrays.items()}
            with torch.no_grad():
                return {name: array[0].cpu().numpy() for name, array in ctx.task.device_augmentation(batch).items()}

        yield "model.init_args.device_augmentation", on_device


def _strength(key: str, move: Move) -> Verdict:
    """Measured on a smooth texture: the target holds it and the coordinates of each pixel, the mask its classes."""
    texture = gaussian_filter(np.random.default_rng(0).random((SIDE, SIDE)), 3, mode="wrap").astype(np.float32)
    texture = (texture - texture.min()) / np.ptp(texture)
    mask = np.digitize(texture, [0.4, 0.6]).astype(np.uint8)
    target = np.stack([texture, *np.mgrid[:SIDE, :SIDE].astype(np.float32)])
    arrays = {"image": texture[None], "target": target, "mask": mask, "instances": mask.astype(np.uint16)}
    folded, zooms, n_moved = [], [], 0
    for index in range(limits.DRAWS):
        moved = {name: np.array(array) for name, array in move(arrays, index).items()}
        image, (first, y, x) = moved["image"][0], moved["target"]
        if image.shape != first.shape or np.abs(image - first).max() > 0.01:
            return error("geometry", "input and target are moved differently", f"move both alike; see {key}")
        wrong = np.digitize(image, [0.4, 0.6]) != moved["mask"]
        if wrong.mean() > 0.3:
            return error("geometry", "input and mask are moved differently", f"move both alike; see {key}")
        n_moved += not np.array_equal(moved["target"], target)
        (yy, yx), (xy, xx) = np.gradient(y), np.gradient(x)
        area = (yy * xx - yx * xy) * np.sign(np.median(yy * xx - yx * xy) or 1)
        folded.append((area <= 0).mean())
        zooms.append(1 / max(float(np.median(area)), 1e-3))
    if not n_moved:
        return warning("geometry", "no image is moved", f"see {key}")
    (low, high), share = np.quantile(zooms, [0.05, 0.95]), float(np.mean(folded))
    measured = f"zoom {low:.2g} to {high:.2g}, {format_percent(share)} mirrored border"
    if share > limits.FOLDED:
        advice = "much of the input is mirrored border or folded: weaken shifts, scaling or elastic deformation"
        return warning("geometry", measured, f"{advice} in {key}")
    if high > limits.ZOOMED or low < 1 / limits.ZOOMED:
        return warning("geometry", measured, f"objects get another size than in validation: weaken scaling in {key}")
    return Verdict("geometry", measured)


def intensity(ctx: Context) -> Iterator[Verdict]:
    """Whether intensity augmentation leaves the images recognizable."""
    if isinstance(ctx.task.intensity_augmentation, nn.Identity):
        return
    torch.manual_seed(0)
    with torch.no_grad():
        before = ctx.task.network_input(ctx.batch(16)).repeat(4, 1, 1, 1)
        after = ctx.task.intensity_augmentation(before)
    x, y = (values.flatten(2).flatten(0, 1) for values in (before, after))
    x, y = x[x.std(1) > 1e-6].double(), y[x.std(1) > 1e-6].double()
    if not bool(y.isfinite().all()):
        yield error("intensity", "NaN or infinite values", "see model.init_args.intensity_augmentation")
        return
    if not len(x):
        return
    stds = x.std(1), y.std(1).clamp(min=1e-9)
    covariance = ((x - x.mean(1, keepdim=True)) * (y - y.mean(1, keepdim=True))).mean(1)
    r2 = (covariance / (stds[0] * stds[1])).square().where(stds[1] > 1e-9, torch.zeros(()))
    moved, contrast = (y.mean(1) - x.mean(1)).abs().median(), (stds[1] / stds[0]).log().abs().median()
    clipped = float((_share_at_ends(y) - _share_at_ends(x)).mean())
    measured = f"r² {float(r2.median()):.2f} with the input, level ± {float(moved):.2g}"
    cure = "weaken model.init_args.intensity_augmentation, or leave it out"
    if float(r2.quantile(0.25)) == 0:
        yield error("intensity", measured, f"many images become constant; {cure}")
    elif clipped > limits.CLIPPED:
        yield warning("intensity", measured, f"{format_percent(clipped)} of the pixels are clipped; {cure}")
    elif r2.median() < limits.NOISE_EXCEEDS:
        advice = f"more noise than image: noise is in units of the normalized input; {cure}"
        yield warning("intensity", measured, advice)
    elif moved > limits.LEVEL_MOVED or contrast > np.log(limits.CONTRAST_CHANGED):
        yield warning("intensity", measured, f"images look unlike any in validation; {cure}")
    else:
        yield Verdict("intensity", measured)


def _share_at_ends(values: Tensor) -> Tensor:
    """(N, P) -> (N,): share of the pixels with the smallest or largest value."""
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    return ((values == low) | (values == high)).double().mean(1)


def crops(ctx: Context) -> Iterator[Verdict]:
    """How many training samples hold nothing."""
    batch = ctx.batch(limits.DRAWS, side=None if ctx.train.crop else 256)
    n, shape = len(batch["image"]), " x ".join(map(str, batch["image"].shape[1:]))
    arrays = [batch[array].float().flatten(1) for array in ctx.intensity_arrays]
    n_constant = int(torch.stack([values.amin(1) == values.amax(1) for values in arrays]).any(0).sum())
    n_empty = 0
    if "mask" in batch:
        mask = batch["mask"].long().flatten(1)
        n_empty = int(((mask == 0) | (mask == ctx.data.ignore_index)).all(1).sum())
    if n_constant > limits.EMPTY * n:
        yield warning("samples", f"{n_constant} of {n} are constant", "leave out empty images, or take larger crops")
    elif n_empty > limits.NO_FOREGROUND * n:
        measured = f"{n_empty} of {n} without any class but the first"
        yield warning("samples", measured, "set `data.foreground_crops: 0.5`")
    else:
        yield Verdict("samples", f"{len(ctx.train)} of {shape} per epoch")
