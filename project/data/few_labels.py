"""A share of the training labels: what an experiment is worth where few images are annotated."""

import hashlib
import math

import numpy as np

from project.data.statistics import SplitStatistics
from project.data.store import SplitReader
from project.errors import UserError


def labelled_part(reader: SplitReader, fraction: float, seed: int) -> SplitReader:
    """The training images whose labels may be used, if only a share of them had been annotated.

    Whole groups are taken, and of every class the same share of its groups, at least one; a group counts to the rarest
    class in it (of its labels, else of its masks). Which ones follows from seed and names alone: every experiment with
    this seed has the same, and those of a smaller share are among those of a larger one.

    Counts of classes and statistics of targets are those of the part, as if the other labels did not exist. Those of
    the images are of all: they can be seen without labels.

    Args:
        reader: All training images (but for the fold to validate on).
        fraction: The share, above 0, at most 1.
        seed: Of the choice.

    Raises:
        UserError: The share is none.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"data.labelled_fraction is {fraction:g}; it is a share above 0 and at most 1, such as 0.05")
    if fraction == 1:
        return reader
    kinds = _kinds(reader)
    strata: dict[int, list[str]] = {}
    for group in sorted(kinds, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        strata.setdefault(kinds[group], []).append(group)
    taken = {name for names in strata.values() for name in names[: max(1, math.floor(fraction * len(names) + 0.5))]}
    chosen = [index for index, group in enumerate(reader.groups) if group in taken]
    part = reader.subset(chosen, {"content_hash": f"{reader.content_hash}-labelled-{fraction:g}-seed-{seed}"})
    part.attributes["statistics"] = _statistics(part)
    return part


def other_part(reader: SplitReader, part: SplitReader) -> SplitReader:
    """The training images that are not in `labelled_part`; their labels are there, and not to be looked at."""
    groups = set(part.groups)
    chosen = [index for index, group in enumerate(reader.groups) if group not in groups]
    return reader.subset(chosen, {"content_hash": f"{reader.content_hash}-without-{part.content_hash}"})


def _kinds(reader: SplitReader) -> dict[str, int]:
    """Group -> the rarest class in it; -1 where nothing tells of classes, or there is none."""
    if reader.labels is not None and reader.labels.ndim == 1:
        there = reader.labels[:, None] == np.unique(reader.labels)
    elif reader.labels is not None:
        there = reader.labels > 0
    elif reader.mask_counts is not None:
        there = reader.mask_counts[:, reader.foreground] > 0
    else:
        there = np.zeros((len(reader), 0), bool)
    order = np.argsort(there.sum(0), kind="stable")  # rarest first
    ranks = there[:, order]
    first = np.where(ranks.any(1), ranks.argmax(1) if ranks.shape[1] else 0, len(order))
    kinds: dict[str, int] = {}
    for group, rank in zip(reader.groups, first.tolist(), strict=True):
        kinds[group] = min(rank, kinds.get(group, rank))
    return {group: int(order[rank]) if rank < len(order) else -1 for group, rank in kinds.items()}


def _statistics(part: SplitReader) -> dict[str, object]:
    """Of the images as in the file; of targets, masks and labels those of the part."""
    counted = SplitStatistics()
    for index in range(len(part)):
        if "target" in part.dtypes:
            counted.add("target", part.read("target", index))
        if "mask" in part.dtypes:
            values, counts = np.unique(part.read("mask", index), return_counts=True)
            counted.add_mask(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    names = part.attributes["classes"].get("label") if part.labels is not None else None
    whole = part.attributes["statistics"]
    return {**whole, **counted.summary(part.labels, names, part.values), "n_samples": len(part)}
