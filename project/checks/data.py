"""Checks of the prepared data: values, splits, copies and contradictions."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from project.checks import thresholds as limits
from project.checks.context import Context
from project.checks.report import Finding, error, note, ok, warning
from project.data.crops import spread
from project.data.duplicates import signature, similar_pairs
from project.data.leakage import Image, Pair, find_leaks, images_of
from project.data.split_metadata import digest
from project.data.store import SplitReader
from project.formatting import first_few, format_percent, shorten


def values(ctx: Context) -> Iterator[Finding]:
    """NaN, infinities, and channels or targets with one value everywhere."""
    for array in ctx.intensity_arrays:
        bad = np.concatenate([reader.statistic(array, "n_not_finite").any(1) for reader in ctx.readers.values()])
        low, high = (ctx.train.reader.statistic(array, name) for name in ("min", "max"))
        constant = (low == high).mean(0)  # by channel, share of the training images
        names, statistics = ctx.train.reader.channel_names(array), ctx.train.reader.image_statistics[array]
        dead = [name for name, share in zip(names, constant, strict=True) if share == 1]
        twins = [(i, j) for i, j in itertools.combinations(range(len(names)), 2) if (low[:, i] == low[:, j]).all()]
        twins = [(i, j) for i, j in twins if np.array_equal(statistics[:, i], statistics[:, j], equal_nan=True)]
        if bad.any():
            yield error(f"{array}: NaN or infinite in {bad.sum()} of {len(bad)} images", "`make inspect` names them")
        elif dead:
            level = error if array == "target" or len(dead) == len(constant) else warning
            yield level(f"{array}: constant {first_few(dead)}", "leave the channel out, or look for the right files")
        elif constant.max() > limits.CONSTANT_IMAGES:
            measured = f"{array}: {format_percent(constant.max())} are constant in {names[int(constant.argmax())]}"
            yield warning(measured, "are these files meant? Leave these images out, or the channel")
        elif twins:
            level = note if len(names) == 3 and len(twins) == 3 else warning  # gray that is saved as color
            equal = first_few([f"{names[i]} = {names[j]}" for i, j in twins], "the channels")
            yield level(f"{array}: equal channels, {equal}", "the same file or plane twice? Of gray, `convert: grey`")
        else:
            yield ok(f"{array}: finite, {len(bad)} images")


def splits(ctx: Context) -> Iterator[Finding]:
    """Samples and groups in two splits. Of test only names are read."""
    readers = dict(ctx.readers)
    if ctx.full and (ctx.data.folder / "test.h5").is_file():
        readers["test"] = SplitReader(ctx.data.folder / "test.h5")
    by_place = (ctx.train.reader.attributes.get("split") or {}).get("by") == "place"  # of one image, on purpose
    shared = []
    for a, b in itertools.combinations(readers, 2):
        ids = sorted(set(readers[a].ids) & set(readers[b].ids))
        groups = [] if by_place else sorted(set(readers[a].groups) & set(readers[b].groups))
        if names := ids or groups:
            advice = f"{first_few([shorten(name) for name in names], 'the files')}; "
            advice += "prepare the dataset again" if ids else "split by group"
            shared.append(error(f"{len(names)} {'samples' if ids else 'groups'} in {a} and {b}", advice))
    yield from shared or [ok(", ".join(f"{len(reader)} {name}" for name, reader in readers.items()))]
    n_train, n_val, limit = len(readers["train"]), len(readers["val"]), ctx.trainer.limit_val_batches
    n_used = min(n_val, limit * ctx.data.eval_batch_size if isinstance(limit, int) else math.ceil(limit * n_val))
    if n_train < n_val and ctx.data.fold is None:
        yield warning(f"train has {n_train} images, val {n_val}", "are `split.fractions` right?")
    if n_used < limits.FEWEST_VALIDATED:
        level = warning if n_used < n_val else note
        cure = "raise trainer.limit_val_batches" if n_used < n_val else "differences may be chance: use folds"
        yield level(f"the best checkpoint is chosen by {n_used} of {n_val} validation images", cure)


def copies(ctx: Context) -> Iterator[Finding]:
    """Equal and similar images in training and validation; see `project.data.leakage`."""
    most, images = limits.MOST_COMPARED[ctx.full] // 2, list[Image]()
    for split, reader in ctx.readers.items():
        # Signatures that are not stored are computed from the pixels, which takes time.
        indices = spread(len(reader), most if reader.signatures is not None else 256)
        images += images_of(reader, split, indices)
    leaks = find_leaks(images)
    if leaks.copies:
        listed = first_few([" = ".join(shorten(image.id) for image in group) for group in leaks.copies], "make inspect")
        yield error(f"{len(leaks.copies)} images in train and val", f"{listed}; give copies one group, or remove them")
    elif pairs := [pair for pair in leaks.pairs[: limits.MOST_CONFIRMED] if _is_similar_inside(ctx, pair)]:
        listed = first_few([f"{shorten(a.id)} ~ {shorten(b.id)}" for a, b in pairs], "make inspect")
        n_val = len({image.id for pair in pairs for image in pair if image.split == "val"})
        level = warning if n_val > limits.SIMILAR * len(ctx.val.reader) else note
        yield level(f"{n_val} validation images look like one in train", f"{listed}; look at them with `make inspect`")
    else:
        yield ok(f"none in train and val, {len(images)} images compared")


def _is_similar_inside(ctx: Context, pair: Pair) -> bool:
    """Whether two images are similar without their borders too: black borders make any two look alike."""
    signatures = []
    for image in pair:
        reader = ctx.readers[image.split]
        pixels = reader.read("image", reader.ids.index(image.id))
        y, x = (size // 8 for size in pixels.shape[1:])
        signatures.append(signature(pixels[:, y : pixels.shape[1] - y, x : pixels.shape[2] - x]))
    return bool(similar_pairs(np.stack(signatures)))


def contradictions(ctx: Context) -> Iterator[Finding]:
    """Equal images with different labels, numbers, masks or targets."""
    positions: dict[bytes, list[tuple[SplitReader, int]]] = defaultdict(list)
    for reader in ctx.readers.values():
        digests: Any = reader.image_digests
        blank = (reader.statistic("image", "min") == reader.statistic("image", "max")).all(1)
        for index in np.flatnonzero(~blank).tolist():
            positions[digests[index].tobytes()].append((reader, index))
    equal = [images for images in positions.values() if len(images) > 1]
    wrong = [images for images in equal if len({_answer(ctx, *image) for image in images}) > 1]
    measured = f"{sum(map(len, wrong))} images are equal to one with another answer, of {sum(map(len, equal))} copies"
    if wrong:
        is_much = sum(map(len, wrong)) > limits.CONTRADICTED * sum(map(len, ctx.readers.values()))
        listed = [" = ".join(shorten(reader.ids[index]) for reader, index in images) for images in wrong]
        advice = f"{first_few(listed, 'images.csv of make inspect')}; leave out those that are wrong"
        yield (error if is_much else warning)(measured, advice)
    else:
        yield ok(measured)


def _answer(ctx: Context, reader: SplitReader, index: int) -> tuple[object, ...]:
    """What a network learns of one image, as something that can be compared."""
    rows = {"label": reader.labels, "value": reader.values}.get(str(ctx.task.target_kind))
    row = () if rows is None else tuple(np.atleast_1d(rows[index]).tolist())
    return row, digest(reader.read(ctx.target_array, index)) if ctx.target_array else ""
