"""Groups and splits that differ from the others: brightness, channels, inverted masks; classes tied to a group."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Finding, error, note, ok, warning
from project.data.crops import middle, spread
from project.data.drift import MEAN_STD, describe_shift, exposure_groups, measure_drift
from project.formatting import first_few


def parts_of(ctx: Context) -> dict[str, list[int]]:
    """Positions among all images, training first, of validation and of each group with enough images."""
    by_group: dict[str, list[int]] = defaultdict(list)
    for position, group in enumerate(exposure_groups(ctx.readers.values())):
        by_group[group].append(position)
    large = {f"group {name}": part for name, part in by_group.items() if len(part) >= limits.FEWEST_OF_GROUP}
    parts = {"val": list(range(len(ctx.train.reader), len(ctx.column("ids"))))}
    return parts | dict(itertools.islice(large.items(), limits.MOST_PARTS if len(by_group) > 1 else 0))


def brightness(ctx: Context) -> Iterator[Finding]:
    """Brightness drift between splits and groups, by the stored statistics, with the thresholds of `make data`.

    Groups of another brightness are learned where training has images of their kind: a note. Where most validation
    images are unlike every training image, validation judges what was never learned: an error. An input that is
    normalized image by image may differ.
    """
    arrays = [a for a in ctx.intensity_arrays if a == "target" or not ctx.task.normalize_input.by_image]
    for array in arrays:
        n, n_unseen = _count_unseen(ctx, array)
        if n >= limits.FEWEST_OF_GROUP and n_unseen > limits.UNSEEN * n:
            advice = "validation judges what training never shows: split so that every kind of image is in both"
            advice += ", or normalize each image by itself (`input_normalization: image_mean_std`)" * (array == "image")
            measured = f"{array}: {n_unseen} of {n} validation images are brighter or darker than every training image"
            yield error(measured, advice)
            return
    drift, large = measure_drift(ctx.readers), parts_of(ctx)
    differing = {
        (kind, name): f"{kind[:-1]} {name} {part.difference} ({array}/{channel})"
        for kind in ("groups", "splits")
        for array in arrays
        for name, (channel, part) in drift.differing(kind, array).items()
        if kind == "splits" or f"group {name}" in large
    }
    if differing:
        advice = "another exposure, stain or microscope? Harmless if training has each kind, and the input shows it"
        yield note(first_few(list(differing.values()), "make inspect"), advice)
    else:
        yield ok(f"alike in train, val and {len(large) - 1} groups")


def _count_unseen(ctx: Context, array: str) -> tuple[int, int]:
    """Number of validation images compared, and of those that differ even from the training image most like them."""
    levels, n_train = _levels(ctx, array), len(ctx.train.reader)
    train, val = levels[:n_train], levels[n_train:]
    images, n_unseen = spread(len(val), limits.COMPARED_LEVELS), 0
    for own in val[images]:
        others = train[np.abs(train[..., 0] - own[:, 0]).argmin(0), np.arange(len(own))]
        n_unseen += any(describe_shift(*a, *b) for a, b in zip(own, others, strict=True))
    return len(images), n_unseen


def _levels(ctx: Context, array: str) -> np.ndarray:
    """(N, C, 2): mean and standard deviation of each image, of training and validation."""
    return np.concatenate([reader.image_statistics[array][..., MEAN_STD] for reader in ctx.readers.values()])


def channels(ctx: Context) -> Iterator[Finding]:
    """Whether validation and each group have the channels of the others, in the same order and with their contrast."""
    labels = ctx.column("labels") if ctx.task.target_kind == "label" else []
    for array in ctx.intensity_arrays:
        names, levels, differing = ctx.train.reader.channel_names(array), _levels(ctx, array), list[str]()
        swapped: dict[Swap, list[str]] = defaultdict(list)
        for name, part in parts_of(ctx).items():
            if ctx.task.target_kind == "label" and len({str(labels[image]) for image in part}) == 1:
                continue  # what is different may be what the class looks like
            others = np.setdiff1d(np.arange(len(ctx.train.reader)), part)
            if len(others) < limits.FEWEST_OF_GROUP:
                continue
            train, own = (np.nanmedian(levels[images], axis=0) for images in (others, part))  # (C, 2)
            if swap := _swapped(levels[others], own):
                swapped[swap].append(name)
            elif array == "image" and not any(describe_shift(*b, *a) for a, b in zip(train, own, strict=True)):
                known = (train[:, 1] > 0) & (own[:, 1] > 0)  # others are constant, which `values` reports
                ratio = np.exp(np.abs(np.log(own[known, 1] / train[known, 1])).max(initial=0))
                if ratio > limits.CONTRAST_CHANGED:
                    differing.append(f"{name} {ratio:.2g} times")
        for swap, parts in swapped.items():
            advice = f"they look like the others in the order {', '.join(names[i] for i in swap.order)}; "
            finding = error if swap.is_sure else warning
            yield finding(f"{array}: swapped in {first_few(parts)}", f"{advice}check how they were paired")
        if differing:
            yield note(f"contrast of {first_few(differing)}", "another exposure, stain or file?")
        if not swapped and not differing:
            yield ok(f"{array}: {len(names)}, alike in all parts of the data")


class Swap(NamedTuple):
    """An order of the channels in which images look like the others; colors alone are a hint."""

    order: tuple[int, ...]
    is_sure: bool


def _swapped(levels: np.ndarray, own: np.ndarray) -> Swap | None:
    """The order in which channels (C, 2) fit those of N other images, (N, C, 2), far better than in their own."""
    train = np.nanmedian(levels, axis=0)
    if not 1 < len(train) <= 6:
        return None
    means = levels[..., 0] - levels[..., 0].mean(1, keepdims=True)
    typical = np.nanmedian(means, axis=0)
    spread = 1.4826 * np.nanmedian(np.abs(means - typical), axis=0) + 1e-3 * np.abs(typical).max() + 1e-9

    def distance_of_means(order: tuple[int, ...]) -> float:
        """The same of differences between the channels, in standard deviations between images: those of colors."""
        other = own[list(order), 0] - own[:, 0].mean()
        return float((np.abs(other - typical) / spread).max())

    def distance(order: tuple[int, ...]) -> float:
        """Largest over the channels, in standard deviations plus the logarithm of their ratio."""
        other = own[list(order)]
        stds = np.maximum([train[:, 1], other[:, 1]], 1e-9)
        return float((np.abs(other[:, 0] - train[:, 0]) / stds.max(0) + np.abs(np.log(stds[1] / stds[0]))).max())

    same, *orders = itertools.permutations(range(len(train)))
    for measure, least in ((distance, limits.SWAPPED_FROM), (distance_of_means, limits.SWAPPED_COLORS)):
        best = min(orders, key=measure)
        if measure(same) > max(least, limits.SWAPPED_GAIN * measure(best)):
            return Swap(best, measure is distance)
    return None


def annotation(ctx: Context) -> Iterator[Finding]:
    """Whether all masks of a group are empty, which those of the others hardly ever are."""
    counts = [reader.mask_counts for reader in ctx.readers.values() if reader.mask_counts is not None]
    if ctx.target_array not in ("mask", "instances") or not counts:
        return
    has_objects, missing = (np.concatenate(counts) > 0).sum(1) > 1, []
    for name, part in parts_of(ctx).items():
        elsewhere = np.delete(has_objects, part).mean() if len(part) < len(has_objects) else 0.0
        if not has_objects[part].any() and elsewhere > limits.ANNOTATED:
            missing.append(f"{len(part)} of {name}")
    if missing:
        yield warning(f"masks are empty: {first_few(missing, 'make inspect')}", "not annotated? Leave these images out")
    else:
        yield ok("in all groups")


def inverted(ctx: Context) -> Iterator[Finding]:
    """Whether in one group, or in validation, bright pixels are what dark ones are elsewhere."""
    if (array := ctx.target_array) is None:
        return
    parts = dict(itertools.islice(parts_of(ctx).items(), limits.MOST_GROUPS))
    if len(parts) == 3:  # of two groups either may be the usual one: two stains, say
        parts = {"val": parts["val"]}
    relations = {name: _relations(ctx, array, part) for name, part in parts.items()}
    train = _relations(ctx, array, list(range(len(ctx.train.reader))))
    wrong = []
    for name, own in relations.items():
        groups = [v for other, of_part in relations.items() if other not in (name, "val") for v in of_part]
        others = groups if name != "val" and groups else train
        a, b = np.median(own), np.median(others)
        # Nearly all images of both kinds agree among themselves: stains and modalities that mix are another matter.
        agree = min((np.sign(own) == np.sign(a)).mean(), (np.sign(others) == np.sign(b)).mean())
        if a * b < 0 and min(abs(a), abs(b)) > limits.RELATED_SIGN and agree >= limits.CONSISTENT:
            wrong.append(f"{name} (correlation with the input {a:.2f}, elsewhere {b:.2f})")
    if wrong and len(wrong) <= max(1, len(parts) // 3):
        yield warning(f"{array} of {first_few(wrong)}", f"was the {array} or the image inverted there?")
    else:
        yield ok(f"no {array} of {len(parts) - 1} groups or of val")


def _relations(ctx: Context, array: str, part: list[int]) -> list[float]:
    """Correlation of the mean input channel with the target, or with what is not background, in some images."""
    images = [(reader, index) for reader in ctx.readers.values() for index in range(len(reader))]
    result = []
    for reader, index in [images[part[i]] for i in spread(len(part), limits.OF_GROUP)]:
        window = middle(reader.shapes["image"][index], 256)
        x = reader.read("image", index, window)
        if (np.ptp(x, axis=(1, 2)) == 0).any():
            continue  # a channel that is missing is reported as constant
        x = x.mean(0, dtype=np.float64)
        t = reader.read(array, index, window)
        t = t.mean(0, dtype=np.float64) if array == "target" else (t != 0).astype(np.float64)
        if x.std() > 0 and t.std() > 0 and np.isfinite(x).all() and np.isfinite(t).all():
            result.append(float(np.corrcoef(x.ravel(), t.ravel())[0, 1]))
    return result or [0.0]


def tied_classes(ctx: Context) -> Iterator[Finding]:
    """Classes that alone fill one or two groups: the network may learn the day or the microscope instead."""
    if ctx.task.target_kind != "label" or ctx.data.multi_label:
        return
    names = np.array(ctx.data.classes["label"])[ctx.column("labels")]
    tied = []
    for field, values in _group_fields(ctx, names.tolist()).items():
        levels, codes = np.unique(values, return_inverse=True)
        for name in np.unique(names):
            n, n_all = (np.bincount(codes[chosen], minlength=len(levels)) for chosen in (names == name, slice(None)))
            where = np.flatnonzero(n)
            # Probability that all images of a class are in as few groups.
            share = n_all[where].sum() / len(names)
            chance = math.comb(len(levels), len(where)) * share ** n.sum()
            is_alone = n.sum() > limits.TIED * n_all[where].sum()
            if is_alone and len(where) <= limits.GROUPS_OF_CLASS and chance < limits.BY_CHANCE:
                tied.append(f"{name} in {field} {' and '.join(levels[where])}")
    if tied:
        advice = "the network can recognize them by the look of the group: take images of each class from several, and "
        yield warning(f"alone in a group: {first_few(tied, 'make inspect')}", f"{advice}split by them (`group`)")
    else:
        yield ok("no class is alone in one or two groups")


def _group_fields(ctx: Context, names: list[str]) -> dict[str, list[str]]:
    """Field -> its value for each image: the group, and folders in the id that do not just name the class."""
    groups, ids = ctx.column("groups"), ctx.column("ids")
    folders = [id_.split("/")[:-1] for id_ in ids]
    fields = {} if groups == ids else {"group": groups}
    if len({len(parts) for parts in folders}) == 1:
        fields |= {f"folder {i + 1}": [parts[i] for parts in folders] for i in range(len(folders[0]))}

    def names_class(value: str, name: str) -> bool:
        """Whether a folder is called as a class, or by its first letter: "KO_3" for "knockout"."""
        first, second = (re.sub(r"[\W_]", "", text).casefold() for text in (value, name))
        return first[:1] == second[:1] or second in first

    return {k: v for k, v in fields.items() if not all(names_class(*pair) for pair in set(zip(v, names, strict=True)))}
