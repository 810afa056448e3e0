"""The shards of all splits: written, gathered, and without copies of images of validation or test in training."""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from project.data.config import DatasetConfig
from project.data.leakage import UNLABELED, Image, find_leaks
from project.data.mask_summary import Positions
from project.data.preparation.copies import Row, check_leaks, leak_rows, training_copies, write_list
from project.data.preparation.executors import Reporter, Workers
from project.data.preparation.plan import SHARD_BYTES, check_left, shard_key
from project.data.preparation.shards import Result, Shard, without, write_shard
from project.data.raw.samples import Problems, Sample
from project.data.statistics import SplitStatistics

Shards = dict[str, list[Shard]]
LITTLE = 2 * SHARD_BYTES  # of output: below, starting processes costs more than they save


@dataclass
class Gathered:
    """What is known of a split when all its shards are written; the lists have one entry per sample."""

    samples: list[Sample] = field(default_factory=list)
    digests: list[dict[str, str]] = field(default_factory=list)
    pixels: list[dict[int, int]] = field(default_factory=list)
    positions: list[Positions] = field(default_factory=list)
    n_objects: list[int] = field(default_factory=list)
    renumbered: list[str] = field(default_factory=list)
    levels: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    signatures: list[np.ndarray] = field(default_factory=list)
    statistics: dict[int | None, SplitStatistics] = field(default_factory=lambda: defaultdict(SplitStatistics))
    shards: list[tuple[Path, list[str]]] = field(default_factory=list)

    def add(self, shard: Shard, result: Result) -> None:
        """Take up one shard; in their order, since sums of floats depend on it."""
        if not result.ids:
            return
        written = set(result.ids)
        self.samples += [sample for sample in shard.samples if sample.id in written]
        self.digests += result.digests
        self.pixels += result.pixels
        self.positions += result.positions
        self.n_objects += result.n_objects
        self.renumbered += result.renumbered
        for role, levels in result.levels.items():
            self.levels[role] += levels
        if result.signatures is not None:
            self.signatures.append(result.signatures)
        for fold, statistics in result.statistics.items():
            self.statistics[fold].merge(statistics)
        self.shards.append((shard.path, result.ids))


def write_without_leaks(
    shards: Shards, config: DatasetConfig, crew: Workers, reporter: Reporter, problems: Problems, path: Path
) -> tuple[dict[str, Gathered], list[str]]:
    """Write the shards, and check for images that are in two splits; with `drop`, write again without copies.

    Returns:
        The splits, and warnings.
    """
    rows = dict[Row, None]()
    while True:
        gathered = _write_shards(shards, crew, reporter, problems)
        leaks = find_leaks(_images(gathered, config.near_duplicates != "ignore"))
        rows |= dict.fromkeys(leak_rows(leaks))
        write_list(path, rows)
        reasons = training_copies(leaks) if config.near_duplicates == "drop" else {}
        if not reasons:
            return gathered, check_leaks(leaks, config, path)
        before = _samples(shards)
        shards = _without(shards, {(image.split, image.id) for image in reasons})
        problems.skipped += [_named(image.split, image.id, reason) for image, reason in reasons.items()]
        check_left(before, _samples(shards), problems)


def _without(shards: Shards, gone: set[tuple[str, str]]) -> Shards:
    """The shards without some samples, given as (split, id)."""
    remaining: Shards = {}
    for split, shards_of_split in shards.items():
        remaining[split] = []
        for shard in shards_of_split:
            ids = {sample.id for sample in shard.samples if (split, sample.id) in gone}
            if not ids:
                remaining[split].append(shard)
            elif len(ids) < len(shard.samples):
                smaller = without(shard, ids)
                remaining[split].append(dataclasses.replace(smaller, key=shard_key(smaller)))
    return remaining


def _named(split: str, id_: str, reason: str) -> tuple[str, str]:
    """A problem of a sample; an unlabeled one may have the id of a labeled one."""
    return f"{id_} ({UNLABELED})" if split == UNLABELED else id_, reason


def _write_shards(shards: Shards, crew: Workers, reporter: Reporter, problems: Problems) -> dict[str, Gathered]:
    gathered = {split: Gathered() for split in shards}
    order = [(split, shard) for split, each in shards.items() for shard in each]
    for _, shard in order:
        shard.path.parent.mkdir(parents=True, exist_ok=True)
    before = {shard.path for _, shard in order if shard.record.is_file()}
    reporter.start("Reading", sum(len(shard.samples) for _, shard in order))
    waiting, position = dict[Path, Result](), 0
    little = sum(shard.n_bytes for _, shard in order) < LITTLE
    for shard, result in crew.run(write_shard, (shard for _, shard in order), little):
        waiting[shard.path] = result
        reporter.advance(len(shard.samples), result.n_bytes, earlier=shard.path in before)
        while position < len(order) and (ready := waiting.pop(order[position][1].path, None)):
            split, first = order[position]
            gathered[split].add(first, ready)
            for which, what in ready.problems:
                problems.add(*_named(split, which, what))
            position += 1
    problems.raise_or_skip("Some files cannot be used:")
    check_left(_samples(shards), {split: each.samples for split, each in gathered.items()}, problems)
    return gathered


def _samples(shards: Shards) -> dict[str, list[Sample]]:
    return {split: [sample for shard in each for sample in shard.samples] for split, each in shards.items()}


def _images(gathered: dict[str, Gathered], compare: bool) -> list[Image]:
    """What is compared of all images; with `compare`, near-duplicates too."""
    images = []
    for split, each in gathered.items():
        signatures = np.concatenate(each.signatures) if compare else [None] * len(each.samples)
        rows = zip(each.samples, each.digests, each.levels["image"], signatures, strict=True)
        for sample, digests, levels, signature in rows:
            is_blank = all(level.min == level.max for level in levels)
            digest = b"" if is_blank else bytes.fromhex(digests["image"])
            images.append(Image(sample.id, split, sample.group, sample.fold, digest, signature))
    return images
