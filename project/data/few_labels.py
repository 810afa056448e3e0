"""Label fractions: the training images whose labels are used, as if only a share of them had been annotated."""

import hashlib
import math

import numpy as np

from project.data.statistics import SplitStatistics
from project.data.store import SplitReader
from project.errors import UserError


def labeled_subset(reader: SplitReader, fraction: float, seed: int) -> SplitReader:
    """The images of a training split, without the fold to validate on, whose labels are used.

    Whole groups are chosen, and of every class the same share of its groups, at least one; a group counts to the
    rarest class in it (of its labels, else of its masks). The choice is a function of seed and names: all experiments
    with one seed share it, and the images of a smaller share are among those of a larger one. Class counts and
    statistics of targets are those of the subset; statistics of the images are of all, which need no labels.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"data.labelled_fraction is {fraction:g}; it is a share above 0 and at most 1, such as 0.05")
    if fraction == 1:
        return reader
    strata: dict[int, list[str]] = {}
    rarest = _rarest_classes(reader)
    for group in sorted(rarest, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        strata.setdefault(rarest[group], []).append(group)
    chosen = {name for names in strata.values() for name in names[: max(1, math.floor(fraction * len(names) + 0.5))]}
    indices = [index for index, group in enumerate(reader.groups) if group in chosen]
    subset = reader.subset(indices, {"content_hash": f"{reader.content_hash}-labelled-{fraction:g}-seed-{seed}"})
    counted = SplitStatistics()
    for role in subset.dtypes.keys() - {"image"}:
        for index in range(len(subset)):
            counted.add(role, subset.read(role, index))
    names = subset.attributes["classes"].get("label") if subset.labels is not None else None
    summary = counted.summary(subset.labels, names, subset.values) | {"n_samples": len(subset)}
    subset.attributes["statistics"] = {**reader.attributes["statistics"], **summary}
    return subset


def _rarest_classes(reader: SplitReader) -> dict[str, int]:
    """Group -> its rarest class; -1 where the data has no classes, or the group none of them."""
    counts = reader.label_counts
    if counts is None and reader.mask_counts is not None:
        counts = reader.mask_counts[:, reader.foreground]
    present = np.zeros((len(reader), 0), bool) if counts is None else counts > 0
    order = np.argsort(present.sum(0), kind="stable").tolist()  # rarest first
    rarest: dict[str, int] = {}
    for group, row in zip(reader.groups, present, strict=True):
        rank = next((rank for rank, number in enumerate(order) if row[number]), len(order))
        rarest[group] = min(rank, rarest.get(group, rank))
    return {group: [*order, -1][rank] for group, rank in rarest.items()}
