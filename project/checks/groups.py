"""Groups and splits that differ from the others: brightness, channels, inverted masks; classes tied to a group."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from project.checks import thresholds as limits
from project.checks.context import Context, middle, spread
from project.checks.report import Verdict, error, note, warning
from project.data.drift import describe_shift, exposure_groups, measure_drift
from project.formatting import first_few, format_percent

Part = list[tuple[str, int]]  # split and position of the images of a group or split


def parts_of(ctx: Context) -> dict[str, Part]:
    """The validation images, and each group with enough images, by name; a group may be in both splits."""
    images = [(split, index) for split, reader in ctx.readers.items() for index in range(len(reader))]
    ids, groups = ([name for r in ctx.readers.values() for name in getattr(r, key)] for key in ("ids", "groups"))
    by_group: dict[str, Part] = defaultdict(list)
    for image, group in zip(images, exposure_groups(ids, groups), strict=True):
        by_group[group].append(image)
    large = {f"group {name}": part for name, part in by_group.items() if len(part) >= limits.FEWEST_OF_GROUP}
    parts = {"val": [image for image in images if image[0] == "val"]}
    return parts | (large if len(by_group) > 1 else {})


def reference_of(ctx: Context, part: Part) -> Part:
    """The training images that are not in a part."""
    excluded = set(part)
    return [image for index in range(len(ctx.train.reader)) if (image := ("train", index)) not in excluded]


def brightness(ctx: Context) -> Iterator[Verdict]:
    """Brightness drift between splits and groups, by the stored statistics, with the thresholds of `make data`.

    Groups of another brightness are learned where training has images of their kind: a note. Where most validation
    images are unlike every training image, validation judges what was never learned: an error. An input that is
    normalized image by image may differ.
    """
    arrays = [a for a in ctx.intensity_arrays if a == "target" or not ctx.task.normalize_input.by_image]
    for array in arrays:
        n, n_unseen = (
            len(images := spread(len(ctx.val.reader), limits.COMPARED_LEVELS)),
            _count_unseen(ctx, array, images),
        )
        if n >= limits.FEWEST_OF_GROUP and n_unseen > limits.UNSEEN * n:
            advice = "validation judges what training never shows: split so that every kind of image is in both"
            advice += ", or normalize each image by itself (`input_normalization: image_mean_std`)" * (array == "image")
            measured = f"{array}: {n_unseen} of {n} validation images are brighter or darker than every training image"
            yield error("brightness", measured, advice)
            return
    drift, differing, large = measure_drift(ctx.readers), dict[str, str](), parts_of(ctx)
    for kind, channels_of in (("group", drift.groups), ("split", drift.splits)):
        for channel, parts in channels_of.items():
            for name in [name for name, part in parts.items() if part.difference]:
                if channel.partition("/")[0] in arrays and (kind == "split" or f"group {name}" in large):
                    differing.setdefault(f"{kind} {name}", f"{kind} {name} {parts[name].difference} ({channel})")
    if differing:
        advice = "harmless where training has images of each kind; another exposure, stain or microscope?"
        yield note("brightness", first_few(list(differing.values()), "make inspect"), advice)
    else:
        n = max((len(parts) for parts in drift.groups.values()), default=0)
        yield Verdict("brightness", f"alike in train and val{f', and in {n} groups' if n else ''}")


def _count_unseen(ctx: Context, array: str, images: list[int]) -> int:
    """Number of validation images that differ, in one channel or more, from the training image most like them."""
    means, stds = ({s: ctx.image_statistics(s, array, name) for s in ctx.readers} for name in ("mean", "std"))
    n_unseen = 0
    for index in images:
        nearest = np.nanargmin(np.abs(means["train"] - means["val"][index]), axis=0)
        pairs = ((means["train"][i, c], stds["train"][i, c]) for c, i in enumerate(nearest))
        own = zip(means["val"][index], stds["val"][index], strict=True)
        n_unseen += any(describe_shift(*a, *b) for a, b in zip(own, pairs, strict=True))
    return n_unseen


def channels(ctx: Context) -> Iterator[Verdict]:
    """Whether validation and each group have the channels of the others, in the same order and with their contrast."""
    for array in ctx.intensity_arrays:
        names, wrong = ctx.channel_names(array), list[Verdict]()
        for part_name, part in parts_of(ctx).items():
            reference = reference_of(ctx, part)
            if len(reference) < limits.FEWEST_OF_GROUP:
                continue
            train, other = (_typical(ctx, array, images) for images in (reference, part))
            if order := _swapped(train, other):
                advice = f"{part_name} looks like the others in the order {', '.join(names[i] for i in order)}; "
                wrong.append(error(f"{array} channels", f"swapped in {part_name}", f"{advice}check how it was paired"))
                continue
            is_shifted = any(describe_shift(*b[:2], *a[:2]) for a, b in zip(train, other, strict=True))
            if is_shifted or array == "target":
                continue  # reported as another brightness; and what is predicted may differ
            ratio = np.abs(np.log(np.maximum(other[:, 1], 1e-9) / np.maximum(train[:, 1], 1e-9)))
            if ratio.max() > np.log(limits.CONTRAST_CHANGED):
                measured = f"contrast of {part_name} is {np.exp(ratio.max()):.2g} times another"
                advice = "another exposure, stain or file format? Bring all images to one scale before preparing"
                wrong.append(note(f"{array} channels", measured, advice))
        yield from wrong or [Verdict(f"{array} channels", f"{len(names)}, alike in all parts of the data")]


def _typical(ctx: Context, array: str, part: Part) -> np.ndarray:
    """(C, 2): mean and standard deviation of the typical image."""
    rows = {s: np.stack([ctx.image_statistics(s, array, name) for name in ("mean", "std")], -1) for s in ctx.readers}
    return np.asarray(np.nanmedian([rows[split][index] for split, index in part], axis=0))


def _swapped(train: np.ndarray, other: np.ndarray) -> tuple[int, ...] | None:
    """The order in which the channels fit far better than in their own, or None."""
    n = len(train)
    if not 1 < n <= 6:
        return None
    costs = {order: _distance(train, other[list(order)]) for order in itertools.permutations(range(n))}
    same, best = costs[tuple(range(n))], min(costs, key=lambda order: costs[order])
    return best if same > limits.SWAPPED_FROM and costs[best] * limits.SWAPPED_GAIN < same else None


def _distance(train: np.ndarray, other: np.ndarray) -> float:
    """Largest difference over the channels, in standard deviations plus the logarithm of their ratio."""
    stds = np.maximum([train[:, 1], other[:, 1]], 1e-9)
    return float((np.abs(other[:, 0] - train[:, 0]) / stds.max(0) + np.abs(np.log(stds[1] / stds[0]))).max())


def inverted(ctx: Context) -> Iterator[Verdict]:
    """Whether in one group, or in validation, bright pixels are what dark ones are elsewhere."""
    if (array := ctx.target_array) is None:
        return
    parts = {name: part for name, part in parts_of(ctx).items() if len(part) >= 2}
    shown = {name: parts[name] for name in [*parts][: limits.MOST_GROUPS]}
    if len(shown) == 3:  # of two groups either may be the usual one: two stains, say
        shown = {"val": shown["val"]}
    relations = {name: _relations(ctx, array, part) for name, part in shown.items()}
    train = _relations(ctx, array, [("train", i) for i in range(len(ctx.train.reader))])
    wrong = []
    for name, values in relations.items():
        others = [v for other, of_part in relations.items() if other not in (name, "val") for v in of_part]
        reference = others if name != "val" and others else train
        a, b = np.median(values), np.median(reference)
        # Nearly all images of both kinds agree among themselves: stains and modalities that mix are another matter.
        agree = (np.sign(values) == np.sign(a)).mean(), (np.sign(reference) == np.sign(b)).mean()
        if a * b < 0 and min(abs(a), abs(b)) > limits.RELATED_SIGN and min(agree) >= limits.CONSISTENT:
            wrong.append(f"{name} (correlation with the input {a:.2f}, elsewhere {b:.2f})")
    if array == "mask" and not wrong:
        wrong = [f"{name} ({difference})" for name, part in shown.items() if (difference := _exchanged(ctx, part))]
    if wrong and len(wrong) <= max(1, len(shown) // 3):
        advice = (
            f"was the {array} or the image inverted there, or do its numbers mean something else? Correct the files"
        )
        yield warning("inverted", f"{array} of {first_few(wrong)}", advice)
    elif len(shown) > 1:
        yield Verdict("inverted", f"no {array} of {len(shown) - 1} groups or of val")


def _relations(ctx: Context, array: str, part: Part) -> list[float]:
    """Correlation of the mean input channel with the target, or with what is not background, in some images."""
    result = []
    for split, index in [part[i] for i in spread(len(part), limits.OF_GROUP)]:
        reader = ctx.readers[split]
        window = middle(reader.shapes["image"][index], 256)
        x = reader.read("image", index, window).mean(0, dtype=np.float64)
        t = reader.read(array, index, window)
        t = t.mean(0, dtype=np.float64) if array == "target" else (t != 0).astype(np.float64)
        if x.std() > 0 and t.std() > 0 and np.isfinite(x).all() and np.isfinite(t).all():
            result.append(float(np.corrcoef(x.ravel(), t.ravel())[0, 1]))
    return result or [0.0]


def _exchanged(ctx: Context, part: Part) -> str:
    """How the shares of two mask classes of a part are those of the others exchanged; "" if they are not."""
    rows = {split: reader.mask_counts for split, reader in ctx.readers.items() if reader.mask_counts is not None}
    reference = reference_of(ctx, part)
    if len(rows) < 2 or min(len(part), len(reference)) < limits.FEWEST_OF_GROUP:
        return ""
    counts = [np.stack([rows[split][index] for split, index in images]) for images in (part, reference)]
    own, others = (array / np.maximum(array.sum(1, keepdims=True), 1) for array in counts)
    names = ctx.data.classes["mask"]
    for a, b in itertools.permutations(range(len(names)), 2):
        # No image of the part is like those elsewhere, and with the numbers of two classes exchanged it would be.
        is_apart = (own[:, a] - own[:, b]).max() < -limits.EXCHANGED
        if is_apart and np.quantile(others[:, a] - others[:, b], 0.05) > limits.EXCHANGED:
            shares = [format_percent(float(np.median(array[:, a]))) for array in (own, others)]
            return f"{shares[0]} {names[a]}, elsewhere {shares[1]}"
    return ""


def tied_classes(ctx: Context) -> Iterator[Verdict]:
    """Classes that occur in one group only: the network may learn the day or the microscope instead."""
    labels = [r.labels for r in ctx.readers.values() if r.labels is not None]
    if ctx.task.target_kind != "label" or not labels or labels[0].ndim != 1:
        return
    names, label = ctx.data.classes["label"], np.concatenate(labels)
    fields = _group_fields(ctx, names)
    tied = []
    for field, values in fields.items():
        levels, codes = np.unique(values, return_inverse=True)
        table = np.zeros((len(levels), len(names)))
        np.add.at(table, (codes, label), 1)
        kept = np.flatnonzero(table.sum(0) >= limits.FEWEST_OF_GROUP)
        if not 2 <= len(levels) <= len(label) / 2 or len(kept) < 2:
            continue
        table = table[:, kept]
        n_groups, shares = (table > 0).sum(0), table.sum(1) / table.sum()
        # Probability that all images of a class are in one group: its share for each image, times the number of groups.
        chance = np.where(n_groups == 1, len(levels) * shares[table.argmax(0)] ** table.sum(0), 1)
        v, one_group = cramers_v(table), chance < limits.BY_CHANCE
        if one_group.any() or (v > limits.TIED and n_groups.min() <= limits.GROUPS_OF_CLASS):
            shown = one_group if one_group.any() else n_groups == n_groups.min()
            only = [f"{names[kept[k]]} in {' and '.join(levels[table[:, k] > 0])}" for k in np.flatnonzero(shown)]
            tied.append((v, field, only))
    if tied:
        v, field, only = max(tied, key=lambda item: item[0])
        advice = f"{first_few(only, 'make inspect')} only: the network can recognize them by the look of the {field}; "
        advice += "take images of each class from several, and split by them (`group`)"
        yield warning("tied classes", f"class and {field} go together (Cramer's V {v:.2f})", advice)
    elif fields:
        yield Verdict("tied classes", f"no class belongs to one {' or '.join(fields)}")


def _group_fields(ctx: Context, names: list[str]) -> dict[str, list[str]]:
    """Field -> its value for each image: the group, and folders in group and id that do not just name the class."""
    groups, ids = ([name for r in ctx.readers.values() for name in getattr(r, key)] for key in ("groups", "ids"))
    fields = {} if groups == ids else {"group": groups}
    for kind, texts in (
        ("folder", [id_.rpartition("/")[0] for id_ in ids]),
        ("part of the group", groups if fields else []),
    ):
        parts = [text.split("/") for text in texts]
        if len({len(p) for p in parts}) == 1 and (kind == "folder" or len(parts[0]) > 1):
            fields |= {f"{kind} {i + 1}": [p[i] for p in parts] for i in range(len(parts[0]))}
    label = [names[k] for r in ctx.readers.values() if r.labels is not None for k in r.labels]
    return {
        field: values
        for field, values in fields.items()
        if len(set(values)) > 1 and not all(_names_class(v, n) for v, n in set(zip(values, label, strict=True)))
    }


def _names_class(value: str, name: str) -> bool:
    """Whether a folder is called as a class, or by its first letter: "KO_3" for "knockout"."""
    first, second = (re.sub(r"[\W_]", "", text).casefold() for text in (value, name))
    return first[:1] == second[:1] or second in first


def cramers_v(table: np.ndarray) -> float:
    """Association of two categories, 0 to 1, by their (R, K) counts, corrected for bias.

    Bergsma (2013), "A bias-correction for Cramer's V and Tschuprow's T", J. Korean Stat. Soc. 42.
    """
    n, (rows, columns) = table.sum(), table.shape
    expected = table.sum(1, keepdims=True) * table.sum(0) / n
    chi2 = float((np.where(expected > 0, (table - expected) ** 2, 0) / np.maximum(expected, 1e-9)).sum())
    phi2 = max(0.0, chi2 / n - (rows - 1) * (columns - 1) / (n - 1))
    r, c = (size - (size - 1) ** 2 / (n - 1) for size in (rows, columns))
    return float(np.sqrt(phi2 / max(min(r, c) - 1, 1e-9)))
