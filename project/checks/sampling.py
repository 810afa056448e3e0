"""Checks of what is drawn: augmentation, crops, order, batches, and that validation draws nothing."""

import copy
import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from project.checks import thresholds as limits
from project.checks.verdicts import Context, Verdict, spread
from project.data.dataset import SplitDataset
from project.formatting import format_percent

Verdicts = Iterator[Verdict]
PATTERN = 64  # side of the made-up images that augmentation is tried on


# Augmentation ---------------------------------------------------------------------------------------------------------


def geometry(ctx: Context) -> Verdicts:
    """Whether augmentation moves all arrays alike, anew for each sample and epoch, and not too far."""
    movers = []
    if ctx.train.augmentation is not None:
        movers.append(("data.transforms", _on_cpu(ctx)))
    if not isinstance(ctx.task.device_augmentation, nn.Identity):
        movers.append(("model.init_args.device_augmentation", _on_device(ctx)))
    for name, move in movers:
        short_name = name.rpartition(".")[2]
        if fault := _moves_apart(move):
            yield Verdict(short_name, fault[0], "error", fault[1])
            continue
        draws = [[move(_grid(), epoch, i)["target"] for i in range(limits.SHUFFLE_DRAWS)] for epoch in (0, 1)]
        first, second = ([d.tobytes() for d in each] for each in draws)
        if len({*first, *second}) == 1:
            same = np.array_equal(draws[0][0], _grid()["target"])
            yield Verdict(
                short_name,
                "no image is moved" if same else "every sample is moved alike",
                "warning" if same else "error",
                f"see {name}" if same else f"draw from the seed of each sample; see {name}",
            )
            continue
        if first == second:
            yield Verdict(
                short_name, "the same in every epoch", "error", "the epoch must be part of what is drawn from"
            )
            continue
        if any(move(_grid(), 0, i)["target"].tobytes() != first[i] for i in range(8)):
            yield Verdict(
                short_name,
                "differs when drawn again",
                "error",
                "it must follow from (seed, epoch, sample) alone, or workers and resumed runs differ",
            )
            continue
        folded, zoom = _strength([d for each in draws for d in each])
        told = f"zoom {zoom[0]:.2g} to {zoom[1]:.2g}, {format_percent(folded)} mirrored border"
        if folded > limits.FOLDED:
            yield Verdict(
                short_name,
                told,
                "warning",
                "much of what is seen is mirrored border or folded: weaken shifts, scaling or elastic deformation",
            )
        elif zoom[1] > limits.ZOOMED or zoom[0] < 1 / limits.ZOOMED:
            yield Verdict(short_name, told, "warning", "objects get another size than in validation: weaken scaling")
        else:
            yield Verdict(short_name, told)


def _grid() -> dict[str, np.ndarray]:
    """A made-up sample: smooth texture as image, coordinates as target, classes of the texture as mask."""
    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.random((PATTERN, PATTERN)), 3, mode="wrap").astype(np.float32)
    texture = (texture - texture.min()) / np.ptp(texture)
    y, x = np.mgrid[:PATTERN, :PATTERN].astype(np.float32)
    mask = np.select([texture < 0.4, texture < 0.6], [0, 100], 200).astype(np.uint8)
    return {
        "image": texture[None],
        "target": np.stack([texture, y, x]),
        "mask": mask,
        "instances": mask.astype(np.uint16),
    }


def _on_cpu(ctx: Context) -> Any:
    def move(arrays: dict[str, np.ndarray], epoch: int, index: int) -> dict[str, np.ndarray]:
        seed = np.random.SeedSequence([ctx.train.seed, epoch, index], spawn_key=(1,))
        assert ctx.train.augmentation is not None
        return {name: np.array(a) for name, a in ctx.train.augmentation(arrays, seed).items()}

    return move


def _on_device(ctx: Context) -> Any:
    def move(arrays: dict[str, np.ndarray], epoch: int, index: int) -> dict[str, np.ndarray]:
        torch.manual_seed(1000 * epoch + index)
        batch = ctx.to_device({name: torch.from_numpy(a)[None] for name, a in arrays.items()})
        with torch.no_grad():
            return {name: a[0].cpu().numpy() for name, a in ctx.task.device_augmentation(batch).items()}

    return move


def _moves_apart(move: Any) -> tuple[str, str] | None:
    """What does not move as the image does."""
    given = _grid()
    agree = {"mask": [], "instances": []}  # type: dict[str, list[float]]
    for index in range(16):
        moved = move(given, 0, index)
        image, target = moved["image"][0], moved["target"][0]
        if image.shape != target.shape or np.abs(image - target).max() > limits.SAME * 10:
            return "not the same for input and target", "apply it to both, with one draw"
        for role in agree:
            if not set(np.unique(moved[role]).tolist()) <= {0, 100, 200}:
                return f"{role} interpolated into values that are no class", "take the nearest pixel for masks"
            agree[role].append(float(np.corrcoef(moved[role].ravel(), image.ravel())[0, 1]))
    whole = float(np.corrcoef(given["mask"].ravel(), given["image"].ravel())[0, 1])
    for role, found in agree.items():
        if np.mean(found) < 0.8 * whole:
            return f"not the same for input and {role}", "apply it to both, with one draw"
    return None


def _strength(draws: list[np.ndarray]) -> tuple[float, tuple[float, float]]:
    """Share of pixels that are folded or mirrored border, and the range of the factor of area, from coordinates."""
    folded, areas = [], []
    for _, y, x in draws:
        (yy, yx), (xy, xx) = np.gradient(y), np.gradient(x)
        area = yy * xx - yx * xy
        kept = area * np.sign(np.median(area) or 1)
        folded.append(float((kept <= 0).mean()))
        areas.append(1 / max(float(np.median(kept)), 1e-3))
    return float(np.mean(folded)), (float(np.quantile(areas, 0.05)), float(np.quantile(areas, 0.95)))


def intensity(ctx: Context) -> Verdicts:
    """Whether intensity augmentation leaves the images recognisable."""
    if isinstance(ctx.task.intensity_augmentation, nn.Identity):
        return
    torch.manual_seed(0)
    with torch.no_grad():
        before = [ctx.task.network_input(ctx.to_device(b)) for b in ctx.raw["train"][:16]]
        after = [ctx.task.intensity_augmentation(x.repeat(4, 1, 1, 1)) for x in before]
    if not all(bool(y.isfinite().all()) for y in after):
        yield Verdict("intensity", "NaN or infinite values", "error", "see model.init_args.intensity_augmentation")
        return
    kept, moved, contrast, clipped = [], [], [], []
    for x, ys in zip(before, after, strict=True):
        for y in ys:
            for plane, new in zip(x[0].flatten(1), y.flatten(1), strict=True):
                if (old := float(plane.std())) < 1e-6:
                    continue
                spread_ = float(new.std())
                both = torch.stack([plane, new])
                kept.append(float(torch.corrcoef(both)[0, 1]) ** 2 if spread_ > 1e-9 else 0.0)
                moved.append(abs(float(new.mean() - plane.mean())))
                contrast.append(abs(np.log(max(spread_, 1e-9) / old)))
                clipped.append(_at_ends(new) - _at_ends(plane))
    if not kept:
        return
    told = f"r² {np.median(kept):.2f} with the input, level ± {np.median(moved):.2g}"
    cure = "weaken model.init_args.intensity_augmentation, or leave it out"
    if np.quantile(kept, 0.25) == 0:
        yield Verdict("intensity", told, "error", f"many images become constant; {cure}")
    elif np.mean(clipped) > limits.CLIPPED:
        yield Verdict(
            "intensity", told, "warning", f"{format_percent(float(np.mean(clipped)))} of the pixels are clipped; {cure}"
        )
    elif np.median(kept) < limits.NOISE_EXCEEDS:
        yield Verdict(
            "intensity", told, "warning", f"more noise than image: noise is in units of the normalised input; {cure}"
        )
    elif np.median(moved) > limits.LEVEL_MOVED or np.median(contrast) > np.log(limits.CONTRAST_CHANGED):
        yield Verdict("intensity", told, "warning", f"images look unlike any in validation; {cure}")
    else:
        yield Verdict("intensity", told)


def _at_ends(values: Tensor) -> float:
    return float(((values == values.min()) | (values == values.max())).float().mean())


def crops(ctx: Context) -> Verdicts:
    """Whether what is drawn differs between epochs, and how much of it is empty."""
    n = min(limits.SHUFFLE_DRAWS, len(ctx.train))
    keys = [int(i) for i in np.random.default_rng(0).permutation(len(ctx.train))[:n]]
    whole = ctx.train.reader.shapes["image"]
    if ctx.train.crop is None and max(h * w for *_, h, w in whole) > 1024**2:
        keys = keys[:4]
    constant, empty, same = 0, 0, True
    for key in keys:
        sample = {name: v.clone() for name, v in ctx.train[0, key].items()}
        constant += any(bool((sample[r].float() == sample[r].float().flatten()[0]).all()) for r in ctx.pixel_roles)
        if "mask" in sample:
            mask = sample["mask"].long()
            empty += bool(
                ((mask == 0) | (mask == (-1 if ctx.data.ignore_index is None else ctx.data.ignore_index))).all()
            )
        if same:
            other = ctx.train[1, key]
            same = all(torch.equal(_signed(sample[r]), _signed(other[r])) for r in ctx.train.roles)
    varies = ctx.train.augmentation is not None or any(min(s[-2:]) > (ctx.train.crop or np.inf) for s in whole)
    if same and varies and len(keys) >= limits.FEWEST_TO_JUDGE:
        yield Verdict(
            "training samples",
            "the same in every epoch",
            "error",
            "crops and augmentation must be drawn from the epoch too",
        )
    elif constant > limits.EMPTY * len(keys):
        yield Verdict(
            "training samples",
            f"{constant} of {len(keys)} are constant",
            "warning",
            "leave out empty images, or take larger crops",
        )
    elif empty > limits.NO_FOREGROUND * len(keys):
        yield Verdict(
            "training samples",
            f"{empty} of {len(keys)} without any class but the first",
            "warning",
            "set `data.foreground_crops: 0.5`",
        )
    else:
        yield Verdict(
            "training samples", f"{len(ctx.train)} per epoch of {' x '.join(map(str, sample['image'].shape[1:]))}"
        )


def _signed(values: Tensor) -> Tensor:
    """A dtype that torch can compare."""
    return values.float() if values.dtype in (torch.uint16, torch.uint32) else values


def validation(ctx: Context) -> Verdicts:
    """Whether validation sees every image once, whole, and as it is."""
    reader, dataset = ctx.val.reader, ctx.val
    plain = dataset.augmentation is None and dataset.crop is None
    if plain:
        for i in spread(len(reader), 4):
            raw = torch.from_numpy(reader.read("image", i))[None]
            seen = [dataset[epoch, i]["image"].clone() for epoch in (0, 1)]
            plain &= all(
                s.shape == raw.shape and torch.equal(_signed(s).nan_to_num(), _signed(raw).nan_to_num()) for s in seen
            )
    if not plain:
        yield Verdict(
            "validation",
            "images are cropped or augmented",
            "error",
            "scores then depend on chance: validate on whole images",
        )
    loader = copy.copy(ctx.data).val_dataloader()
    batches: Any = loader.batch_sampler
    order = [key[1] if isinstance(key, tuple) else key for batch in batches for key in batch]
    stated = (reader.attributes.get("split") or {}).get("n", {}).get("val")
    limit = ctx.cli.config_init["trainer"].get("limit_val_batches")
    if sorted(order) != list(range(len(reader))) and ctx.cli.trainer.world_size == 1:
        twice = len(order) - len(set(order))
        yield Verdict(
            "validation",
            f"{len(set(order))} of {len(reader)} images, {twice} more than once",
            "error",
            "the sampler must give each image once",
        )
    elif ctx.data.fold is None and stated is not None and stated != len(reader):
        yield Verdict(
            "validation",
            f"{len(reader)} images, {stated} stated",
            "error",
            "the file is incomplete; prepare the dataset again",
        )
    elif limit not in (None, 1.0):
        yield Verdict(
            "validation",
            f"limit_val_batches {limit}",
            "warning",
            "scores are those of a part of the images; leave trainer.limit_val_batches out",
        )
    elif plain:
        yield Verdict("validation", f"{len(reader)} images, each once")


# Order and batches ----------------------------------------------------------------------------------------------------


def shuffling(ctx: Context) -> Verdicts:
    """Whether the order of training samples is drawn anew in each epoch, and not sorted."""
    orders = []
    for epoch in (0, 1):
        loader = copy.copy(ctx.data).train_dataloader()
        sampler: Any = loader.sampler
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        orders.append([key[1] if isinstance(key, tuple) else int(key) for key in sampler])
    first = np.array(orders[0])
    if len(first) < limits.FEWEST_TO_JUDGE:
        return
    in_order = float((np.diff(first) == 1).mean()), float((np.diff(first) == -1).mean())
    sorted_by = _sorted_by(ctx, first // ctx.train.crops_per_image)
    if max(in_order) > limits.IN_ORDER:
        yield Verdict("shuffling", "in the order of the file", "error", "shuffle the training samples")
    elif sorted_by:
        yield Verdict(
            "shuffling", f"sorted by {sorted_by}", "error", "batches then hold one kind of sample: shuffle them"
        )
    elif orders[0] == orders[1]:
        yield Verdict("shuffling", "the same order in every epoch", "warning", "let the order depend on the epoch")
    else:
        yield Verdict("shuffling", "another order in every epoch")


def _sorted_by(ctx: Context, order: np.ndarray) -> str | None:
    """What neighbours have in common far more often than by chance."""
    reader = ctx.train.reader
    keys: dict[str, Any] = {"group": np.unique(reader.groups, return_inverse=True)[1]}
    if reader.labels is not None and reader.labels.ndim == 1:
        keys["class"] = reader.labels
    for name, values_ in keys.items():
        drawn = values_[order]
        counts = np.array(list(Counter(drawn.tolist()).values()))
        if len(counts) < 2:
            continue
        n = len(drawn)
        expected = float((counts * (counts - 1)).sum() / (n * (n - 1)))
        error = np.sqrt(max(expected * (1 - expected), 1e-9) / (n - 1))
        found = float((drawn[1:] == drawn[:-1]).mean())
        if found > 0.5 + expected / 2 and found - expected > limits.SORTED_SIGMA * error:
            return name
    return None


def batches(ctx: Context) -> Verdicts:
    """Size of the batches, and what is left over."""
    loader = copy.copy(ctx.data).train_dataloader()
    n, size = len(ctx.train) // max(ctx.cli.trainer.world_size, 1), ctx.batch_size
    left = n % size
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in ctx.task.net.modules())
    told = f"{n // size} of {size} samples per epoch"
    if normed and size == 1:
        yield Verdict(
            "batches",
            told,
            "warning",
            "batch normalisation of one sample is noise: raise data.batch_size, or take a network with group norm",
        )
    elif not loader.drop_last and left:
        single = normed and left == 1
        yield Verdict(
            "batches",
            f"{told}, the last has {left}",
            "error" if single else "warning",
            "batch normalisation cannot be computed on one sample: drop the last batch"
            if single
            else "its gradient is noisier than the others': drop the last batch",
        )
    elif left > limits.LEFT_OUT * n:
        yield Verdict(
            "batches", f"{told}, {left} are left out", "warning", "lower data.batch_size, or raise data.crops_per_image"
        )
    else:
        yield Verdict("batches", told + (f", {left} others left out each time" if left else ""))


def workers(ctx: Context) -> Verdicts:
    """Whether another process would draw the same, and another sample something else."""
    if ctx.train.augmentation is None and ctx.train.crop is None:
        return
    try:
        other: SplitDataset = pickle.loads(pickle.dumps(ctx.train))
    except (pickle.PicklingError, AttributeError, TypeError):
        yield Verdict(
            "workers",
            "the dataset cannot be sent to processes",
            "warning",
            "set data.num_workers: 0, or define transforms at the top of a module",
        )
        return
    indices = spread(len(ctx.train), 4)
    same = all(
        torch.equal(_signed(ctx.train[1, i][r].clone()), _signed(other[1, i][r]))
        for i in indices
        for r in ctx.train.roles
    )
    if not same:
        yield Verdict("workers", "samples depend on the process", "error", "draw from (seed, epoch, sample) alone")
    else:
        yield Verdict("workers", "a sample is the same, whichever process draws it")
