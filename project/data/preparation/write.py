"""Writes the shards of all splits, checks them for leakage, and joins them to one file per split."""

import dataclasses
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from project import provenance
from project.data.config import SPLITS, DatasetConfig
from project.data.leakage import UNLABELED, Row, check_leaks, copies_to_drop, find_leaks, images_of
from project.data.preparation.classes import background_class, check_objects, mask_classes, positive_class
from project.data.preparation.find import RawDataset, check_remaining, part_names
from project.data.preparation.outdated import RawFiles
from project.data.preparation.plan import SHARD_BYTES, SHARDS, with_key
from project.data.preparation.shards import Shard, ShardResult, finished_result, write_shard
from project.data.preparation.workers import Workers
from project.data.raw.labels import LabelEncoder
from project.data.raw.samples import Problems, Sample
from project.data.split_metadata import SampleRecord, SplitMetadata
from project.data.split_writer import join
from project.data.statistics import SplitStatistics
from project.files import write_table

SMALL_JOB = 2 * SHARD_BYTES  # of output: below, starting processes costs more than they save


@dataclass
class WrittenSplit:
    """What is known of a split when all its shards are written; samples and records belong together."""

    samples: list[Sample] = field(default_factory=list)  # those that were written
    records: list[SampleRecord] = field(default_factory=list)
    # Fold (or None) -> statistics
    statistics: dict[int | None, SplitStatistics] = field(default_factory=lambda: defaultdict(SplitStatistics))
    shards: list[tuple[Path, list[str]]] = field(default_factory=list)  # files, each with the ids of its samples

    def add(self, shard: Shard, result: ShardResult) -> None:
        """Add one shard; in their order, since sums of floats depend on it."""
        if ids := [record.id for record in result.records]:
            self.samples += shard.select({*ids}).samples
            self.records += result.records
            for fold, statistics in result.statistics.items():
                self.statistics[fold].merge(statistics)
            self.shards.append((shard.path, ids))

    def metadata(self, n_classes: int = 0, ignore_index: int | None = None) -> SplitMetadata:
        """The metadata, without labels, values and attributes; see `SplitMetadata.of`."""
        groups, folds = [sample.group for sample in self.samples], [sample.fold for sample in self.samples]
        metadata = SplitMetadata.of(self.records, groups, n_classes, ignore_index)
        metadata.folds = None if folds[0] is None else np.array(folds, np.int64)
        return metadata

    def summary(self, labels: LabelEncoder | None, without: int | None = None) -> dict[str, Any]:
        """Statistics of the samples, without those of one fold."""
        statistics = SplitStatistics()
        for fold, part in sorted(self.statistics.items(), key=lambda item: item[0] or 0):
            if fold is None or fold != without:
                statistics.merge(part)
        samples = [sample for sample in self.samples if sample.fold is None or sample.fold != without]
        encoded, names = (labels.encode(samples), labels.names) if labels else (None, None)
        return statistics.summary(encoded, names, _values(samples))


def write_without_leaks(
    shards: list[Shard], config: DatasetConfig, workers: Workers, problems: Problems, list_path: Path
) -> tuple[dict[str, WrittenSplit], list[str]]:
    """Write the shards, and check for images that are in two splits; with `drop`, write again without copies.

    Returns the splits, and warnings. `problems` gets the samples that are left out; `list_path` is the CSV file of all
    copies and near-duplicates.
    """
    rows = dict[Row, None]()
    while True:
        written = _write_shards(shards, workers, problems)
        leaks = find_leaks(
            [image for s, part in written.items() for image in images_of(part.metadata(), s, folds=True)]
        )
        rows |= dict.fromkeys(leaks.rows)
        list_path.unlink(missing_ok=True)
        if rows:
            columns = ("kind", "id", "split", "other id", "other split")
            write_table(list_path, [dict(zip(columns, row, strict=True)) for row in rows])
        reasons = copies_to_drop(leaks) if config.near_duplicates == "drop" else {}
        if not reasons:
            return written, check_leaks(leaks, config, list_path)
        before, dropped = _part_names(shards), {(image.split, image.id) for image in reasons}
        parts = [(shard, {s.id for s in shard.samples if (shard.split, s.id) not in dropped}) for shard in shards]
        shards = [s if len(ids) == len(s.samples) else with_key(s.select(ids)) for s, ids in parts if ids]
        problems.skipped += [(_name(image.split, image.id), reason) for image, reason in reasons.items()]
        check_remaining(before, _part_names(shards), problems)


def _write_shards(shards: list[Shard], workers: Workers, problems: Problems) -> dict[str, WrittenSplit]:
    written = {shard.split: WrittenSplit() for shard in shards}
    shards[0].path.parent.mkdir(parents=True, exist_ok=True)
    earlier = {shard.path: len(shard.samples) for shard in shards if finished_result(shard)}
    workers.progress.begin("Reading", sum(len(shard.samples) for shard in shards), sum(earlier.values()))
    is_small = sum(shard.n_bytes for shard in shards) < SMALL_JOB
    for shard, result in workers.run(write_shard, shards, is_small):
        workers.progress.count(0 if shard.path in earlier else len(shard.samples))
        written[shard.split].add(shard, result)
        problems.pending += [(_name(shard.split, id_), reason) for id_, reason in result.problems]
    problems.check()
    after = part_names((split, part.samples) for split, part in written.items())
    check_remaining(_part_names(shards), after, problems)
    return written


def _part_names(shards: list[Shard]) -> list[str]:
    return part_names((shard.split, shard.samples) for shard in shards)


def _name(split: str, id_: str) -> str:
    """The id of a sample in a list of problems; an unlabeled one may have the id of a labeled one."""
    return f"{id_} ({UNLABELED})" if split == UNLABELED else id_


def join_splits(
    folder: Path, written: dict[str, WrittenSplit], raw: RawDataset, config: DatasetConfig, raw_files: RawFiles
) -> None:
    """Make one file of the shards of each split in `folder`, and splits.csv; remove the shards.

    `raw` gets notes and warnings about classes; its files, `raw_files`, are listed in train.h5.
    """
    labeled = {split: part for split, part in written.items() if split in SPLITS}
    records = [record for part in labeled.values() for record in part.records]
    class_names = mask_classes([record.pixels for record in records], raw, config)
    check_objects(records, raw.problems)
    attributes = _attributes(labeled, class_names, raw, config)
    for split, part in written.items():
        n_classes, labels = (0, None) if split == UNLABELED else (len(class_names), raw.labels)
        metadata = part.metadata(n_classes, config.ignore_index)
        metadata.labels, metadata.values = labels.encode(part.samples) if labels else None, _values(part.samples)
        metadata.attributes, metadata.raw_files = attributes, raw_files if split == "train" else {}
        join(folder / f"{split}.h5", part.shards, metadata)
    shutil.rmtree(folder / SHARDS)
    for path in set(folder.iterdir()) - {folder / f"{split}.h5" for split in written}:
        path.unlink()  # of an earlier configuration
    rows = [
        {"id": sample.id, "split": split, "group": sample.group, "fold": sample.fold}
        for split, part in labeled.items()
        for sample in part.samples
    ]
    write_table(folder / "splits.csv", rows)


def _attributes(
    labeled: dict[str, WrittenSplit], class_names: list[str], raw: RawDataset, config: DatasetConfig
) -> dict[str, Any]:
    """Attributes of the files of all splits."""
    samples, train, labels = [s for part in labeled.values() for s in part.samples], labeled["train"], raw.labels
    folds = sorted({sample.fold for sample in samples if sample.fold is not None})
    background, note = background_class(class_names, samples[0].roles, config) if class_names else (None, "")
    several = isinstance(samples[0].label, tuple)
    positive, label_note = positive_class(labels.names, several, config) if labels else (None, "")
    raw.notes += filter(None, (note, label_note))
    values = {"value": config.table.values} if config.table and config.table.values else {}
    names = {"mask": class_names, "label": labels.names if labels else []}
    division = {"n": {split: len(part.samples) for split, part in labeled.items()}}
    attributes: dict[str, Any] = {
        "channels": raw.channels | values,
        "classes": {role: of_role for role, of_role in names.items() if of_role},
        "background": background,
        "positive": positive,
        "ignore_index": config.ignore_index,
        "statistics": train.summary(labels),
        "split": dataclasses.asdict(config.split)
        | division
        | {"given": dict(Counter(sample.split for sample in samples if sample.split))},
        "skipped": [list(problem) for problem in raw.problems.skipped],
        "notes": raw.notes + raw.problems.notes + raw.problems.warnings,
        "source": {
            "command": provenance.command(),
            **provenance.git_state(),
            "versions": provenance.versions(),
            "config": config.as_json(),
        },
    }
    return attributes | ({"fold_statistics": [train.summary(labels, fold) for fold in folds]} if folds else {})


def _values(samples: Sequence[Sample]) -> np.ndarray | None:
    """(N, K) numbers per image from the table, or None."""
    values = np.array([sample.values for sample in samples], np.float64)
    return values if values.size else None
