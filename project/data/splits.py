"""Divide samples into train, val and test, so that nothing leaks and the same seed always gives the same answer."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise

from project.data.config import SPLITS, SplitConfig
from project.data.sources import Sample
from project.errors import UserError, listed


def split_samples(
    samples: list[Sample], config: SplitConfig, size: Callable[[Sample], tuple[int, int]]
) -> dict[str, list[Sample]]:
    """Divide the samples as `config` says.

    Args:
        samples: All samples of the dataset.
        config: By group or by place; `SplitConfig` says what happens to samples whose split is given.
        size: Gives (height, width) of a sample; asked for "place" only.

    Returns:
        Split name -> samples, in the order of their ids. No group stands in two splits.

    Raises:
        UserError: Too few groups, a group in two given splits, no training samples, or regions that do not fit into the
            images.
    """
    samples = sorted(samples, key=lambda sample: sample.id)
    if config.by == "place":
        return _by_place(samples, config, size)
    return _by_group(samples, config)


def _by_group(samples: list[Sample], config: SplitConfig) -> dict[str, list[Sample]]:
    wanted = {name: config.fractions[name] for name in SPLITS if config.fractions.get(name, 0) > 0}
    total = sum(wanted.values())
    if abs(total - 1) > 1e-6:
        raise UserError(f"split.fractions must add up to 1, not {total:g}")
    where = _given(samples)
    free = [sample for sample in samples if sample.group not in where]
    if not free and "val" not in where.values() and wanted.get("val"):
        free = [sample for sample in samples if where[sample.group] == "train"]
        share = wanted["train"] + wanted["val"]
        wanted = {name: wanted[name] / share for name in ("train", "val")}
    where |= _divide(free, wanted, config.seed)
    if "train" not in where.values():
        raise UserError("no sample is left for training: all have a given split, none of them train")
    parts = {name: [s for s in samples if where[s.group] == name] for name in SPLITS}
    return {name: part for name, part in parts.items() if part}


def _given(samples: list[Sample]) -> dict[str, str]:
    """Group -> given split; samples without one go where their group goes."""
    splits: dict[str, set[str]] = {}
    for sample in samples:
        if sample.split:
            splits.setdefault(sample.group, set()).add(sample.split)
    leaks = [f"{group}: {', '.join(sorted(each))}" for group, each in sorted(splits.items()) if len(each) > 1]
    if leaks:
        raise UserError(
            f"these groups stand in more than one given split, so that their samples would leak:\n{listed(leaks)}\n"
            "Choose another group, or divide by `fractions` in place of the given splits."
        )
    return {group: split for group, (split,) in splits.items()}


def _divide(samples: list[Sample], wanted: dict[str, float], seed: int) -> dict[str, str]:
    """Group -> split, so that the numbers of samples come close to the wanted shares."""
    if not samples:
        return {}
    counts = Counter(sample.group for sample in samples)
    if len(counts) < len(wanted):
        raise UserError(
            f"{len(wanted)} splits need at least {len(wanted)} groups, there "
            f"{'is' if len(counts) == 1 else 'are'} {len(counts)}:\n{listed(sorted(counts))}\n"
            "Choose a finer group, or `split: {by: place}` to cut one field into regions."
        )
    # A hash of seed and name, unlike a random generator, gives the same order on every machine and version.
    groups = sorted(counts, key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).hexdigest())
    have = dict.fromkeys(wanted, 0)
    where: dict[str, str] = {}
    for position, group in enumerate(groups):
        empty = [name for name in wanted if not have[name]]
        # The last groups are kept for splits that would stay empty.
        open_ = empty if len(groups) - position <= len(empty) else list(wanted)
        name = max(open_, key=lambda n: wanted[n] - have[n] / len(samples))
        where[group] = name
        have[name] += counts[group]
    return where


def _by_place(
    samples: list[Sample], config: SplitConfig, size: Callable[[Sample], tuple[int, int]]
) -> dict[str, list[Sample]]:
    if given := [f"{sample.id}: {sample.split}" for sample in samples if sample.split]:
        raise UserError(f"`split: {{by: place}}` divides every image, but these have a given split:\n{listed(given)}")
    parts: dict[str, list[Sample]] = {}
    for sample in samples:
        height, width = size(sample)
        length = width if config.axis == "x" else height
        for name, (start, stop) in _regions(config, length).items():
            rows, columns = ((0, height), (start, stop)) if config.axis == "x" else ((start, stop), (0, width))
            place = f"{config.axis}{start}-{stop}"
            window = (*rows, *columns)
            parts.setdefault(name, []).append(
                replace(sample, id=f"{sample.id}@{place}", group=f"{sample.group}@{place}", window=window)
            )
    return parts


def _regions(config: SplitConfig, length: int) -> dict[str, tuple[int, int]]:
    if config.regions:
        regions = {name: (r[0], r[1]) for name, r in config.regions.items() if len(r) == 2}
        ranges = sorted(regions.values())
        overlap = any(a[1] > b[0] for a, b in pairwise(ranges))
        if len(regions) != len(config.regions) or overlap or ranges[0][0] < 0 or any(a >= b for a, b in ranges):
            raise UserError(f"split.regions must be [start, stop] pixel ranges that do not overlap: {config.regions}")
        if ranges[-1][1] > length:
            raise UserError(f"split.regions ends at {ranges[-1][1]}, an image is only {length} pixels long")
        return regions
    fractions = {name: config.fractions[name] for name in SPLITS if config.fractions.get(name, 0) > 0}
    free = length - config.gap * (len(fractions) - 1)
    shares = list(accumulate(fractions.values(), initial=0.0))
    cuts = [round(share * free) for share in shares]
    if abs(shares[-1] - 1) > 1e-6 or config.gap < 0 or any(a >= b for a, b in pairwise(cuts)):
        raise UserError(f"split: fractions must add up to 1 and leave room beside the gaps in {length} pixels")
    # Whole pixels are cut first and the gaps put between them, so that no rounding makes a gap narrower.
    return {
        name: (start + i * config.gap, stop + i * config.gap)
        for i, (name, (start, stop)) in enumerate(zip(fractions, pairwise(cuts), strict=True))
    }
