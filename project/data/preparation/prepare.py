"""`make data`: raw images -> data/processed/<dataset>/{train,val,test}.h5, complete or not at all."""

import dataclasses
import importlib
import inspect
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console

from project import provenance
from project.data.config import PROCESSED, SPLITS, DatasetConfig
from project.data.drift import measure_drift
from project.data.leakage import UNLABELED
from project.data.mask_summary import mask_counts, stack_positions
from project.data.preparation.classes import check_objects, mask_classes, special_classes
from project.data.preparation.executors import Reporter, workers
from project.data.preparation.outdated import RawFiles, list_raw_files
from project.data.preparation.plan import Found, find, make_shards
from project.data.preparation.series import describe_order, describe_series, without_groups
from project.data.preparation.unlabelled import KEPT, unlabelled_shards
from project.data.preparation.writing import Gathered, Shards, write_without_leaks
from project.data.raw.labels import LabelEncoder
from project.data.raw.samples import Sample, listed_problems
from project.data.split_metadata import SplitMetadata
from project.data.split_writer import join
from project.data.statistics import SplitStatistics
from project.data.store import SplitReader
from project.errors import UserError

MOST_NOTES = 12  # that are printed


def prepare(
    name: str,
    config: DatasetConfig,
    processed: Path = PROCESSED,
    console: Console | None = None,
    processes: int | None = None,
    cluster: str | None = None,
) -> Path:
    """Prepare one dataset.

    When it is interrupted or killed, the shards that are complete are kept in a hidden folder, and the next call goes
    on from there; the result is the same, byte for byte, whoever does the work.

    Args:
        name: Name of the dataset: the folder below `processed`.
        config: Where the images lie and how they are split.
        processed: Parent of all prepared datasets.
        console: Where progress and warnings are shown.
        processes: See `executors.workers`.
        cluster: The same.

    Returns:
        The folder with the splits. An earlier version is replaced only when the new one is complete.

    Raises:
        UserError: Anything about the raw files that does not fit; an earlier version is then untouched.
    """
    console, final = console or Console(), _resolved(processed / name)
    partial = final.with_name(f".{final.name}.partial")
    _check_replaceable(final, Path(config.raw))
    with working_folder(final, partial):
        generate_raw(config, console)
        with Reporter(console) as reporter, workers(processes, cluster) as crew:
            found = find(config, crew, reporter)
            shards = make_shards(found, config, partial)
            notes: list[str] = []  # on unlabelled images
            if config.unlabelled:
                shards[UNLABELED], notes = unlabelled_shards(found, config, crew, reporter, partial)
            paths = (path for each in shards.values() for s in each for sample in s.samples for path in sample.paths)
            raw_files = list_raw_files(config, paths)
            _check_space(shards, final.parent)
            pairs = processed / f"{name}.near_duplicates.csv"
            gathered, warnings = write_without_leaks(shards, config, crew, reporter, found.problems, pairs)
        _join(partial, gathered, found, config, raw_files, notes)
        labelled = {split: each for split, each in gathered.items() if split in SPLITS}
        warnings += measure_drift({split: SplitReader(partial / f"{split}.h5") for split in labelled}).describe()
        warnings += _order(labelled)
        _swap(partial, final)
    found.notes += [f"unlabelled: {note}" for note in notes]
    _tell(found, found.problems.warnings + warnings, config.near_duplicates == "drop", console)
    return processed / name


def _resolved(folder: Path) -> Path:
    """Where the data goes: a link, such as one to a larger disk, stays a link."""
    try:
        return folder.resolve() if folder.is_symlink() else folder
    except (OSError, RuntimeError) as error:
        raise UserError(f'the link "{folder}" leads nowhere: {error}') from error


def _check_replaceable(final: Path, raw: Path) -> None:
    """Refuse to replace a folder that `make data` did not make, or that holds the raw files.

    Raises:
        UserError: It holds other files.
    """
    if raw.exists() and raw.resolve().is_relative_to(final.resolve()):
        raise UserError(f'the raw files in "{raw}" are inside "{final}", which is replaced; move them')
    if not final.is_dir() or any((final / f"{split}.h5").is_file() for split in SPLITS):
        return
    others = [path.name for path in sorted(final.iterdir()) if not path.name.startswith(".")]
    if foreign := [name for name in others if name not in ("inspect", "shards") and not name.endswith(".h5")]:
        raise UserError(
            f'"{final}" holds files that are no prepared data, such as "{foreign[0]}"; move them, or give the dataset '
            "another name"
        )


@contextmanager
def working_folder(final: Path, partial: Path) -> Iterator[None]:
    """Work on a dataset alone; what is complete in `partial` stays for the next time.

    Raises:
        UserError: Somebody else works on it, or something cannot be written.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f".{final.name}.lock"), timeout=0):
            _recover(final)
            for leftover in partial.rglob(".*.partial"):
                leftover.unlink()
            try:
                yield
            finally:
                if not any(partial.rglob("*.result")):
                    shutil.rmtree(partial, ignore_errors=True)
    except Timeout:
        raise UserError(f"another process is preparing {final}; wait for it, or stop it") from None
    except OSError as error:
        kept = sum(1 for _ in partial.rglob("*.result"))
        what = f"\n{kept} finished parts are kept in {partial}; run the same command again to go on." if kept else ""
        if error.filename and not Path(error.filename).absolute().is_relative_to(final.parent.absolute()):
            raise UserError(f'"{error.filename}" could not be read: {error.strerror}{what}') from error
        raise UserError(f"the prepared data could not be written below {final.parent}: {error}{what}") from error


def generate_raw(config: DatasetConfig, console: Console) -> None:
    """Make the raw files of a demo dataset if they are not there."""
    raw = Path(config.raw)
    if config.generate is None or raw.exists():
        return
    module, _, function = config.generate.rpartition(".")
    partial = raw.with_name(f".{raw.name}.partial")
    try:
        make = getattr(importlib.import_module(module), function)
        inspect.signature(make).bind(partial, **config.generate_arguments)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f'generate: "{config.generate}" could not be called: {error}') from error
    console.print(f"Making the demo images in {raw} ...")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial, **config.generate_arguments)
        partial.rename(raw)
    except OSError as error:
        raise UserError(f"the demo images could not be written to {raw}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_space(shards: Shards, processed: Path) -> None:
    """Refuse data that would fill the disk hours later: shards, and their copies in the split files.

    Compressed files may take less, by an unknown amount.
    """
    needed = sum(shard.n_bytes * (2 - shard.record.is_file()) for each in shards.values() for shard in each)
    free = shutil.disk_usage(processed).free
    settings = next(iter(shards.values()))[0].settings
    if needed > free and settings.compression == "none":
        raise UserError(
            f"{needed / 1e9:.3g} GB are to be written below {processed}, and {free / 1e9:.3g} GB are free; make room, "
            "or set `compression: blosc2`"
        )


def _order(gathered: dict[str, Gathered]) -> list[str]:
    """A warning where neighbours in the order of their numbers are alike, and no group keeps them together."""
    ungrouped = {sample.id for sample in without_groups({split: each.samples for split, each in gathered.items()})}
    images = [
        (sample, levels[0].mean)
        for each in gathered.values()
        for sample, levels in zip(each.samples, each.levels["image"], strict=True)
        if sample.id in ungrouped
    ]
    samples, means = [sample for sample, _ in images], [mean for _, mean in images]
    message = "" if describe_series(samples) else describe_order(samples, means)
    return [message] if message else []


def _join(
    folder: Path,
    gathered: dict[str, Gathered],
    found: Found,
    config: DatasetConfig,
    raw_files: RawFiles,
    unlabelled_notes: list[str],
) -> None:
    """Make a file of the shards of each split, with what is known now that all have been read."""
    labelled = {split: each for split, each in gathered.items() if split in SPLITS}
    names = mask_classes([counts for each in labelled.values() for counts in each.pixels], found, config)
    n_objects = [n for each in labelled.values() for n in each.n_objects]
    check_objects(n_objects, [id_ for each in labelled.values() for id_ in each.renumbered], found.problems)
    attributes = _attributes(labelled, names, found, config)
    for split, each in gathered.items():
        samples, has_targets = each.samples, split in SPLITS
        counts = mask_counts(each.pixels, len(names), config.ignore_index) if names and has_targets else None
        head = SplitMetadata(
            [sample.id for sample in samples],
            [sample.group for sample in samples],
            found.labels.encode(samples) if found.labels and has_targets else None,
            _values(samples),
            np.array([s.fold for s in samples], np.int64) if samples[0].fold is not None else None,
            counts,
            {role: np.array(levels, np.float64) for role, levels in each.levels.items()},
            np.concatenate(each.signatures) if each.signatures else None,
            each.digests,
            None if counts is None else stack_positions(each.positions, counts),
            raw_files if split == "train" else {},
            dict(attributes) if has_targets else {n: attributes[n] for n in KEPT} | {"notes": unlabelled_notes},
        )
        join(folder / f"{split}.h5", each.shards, head)
    for record in folder.rglob("*.result"):
        record.unlink()
    for shard in set(folder.rglob("*.h5")) - {folder / f"{split}.h5" for split in gathered}:
        shard.unlink()
    for emptied in (folder / "shards", folder / UNLABELED):
        shutil.rmtree(emptied, ignore_errors=True)


def _attributes(
    gathered: dict[str, Gathered], mask_names: list[str], found: Found, config: DatasetConfig
) -> dict[str, Any]:
    samples = [sample for each in gathered.values() for sample in each.samples]
    labels = found.labels
    folds = sorted({sample.fold for sample in samples if sample.fold is not None})
    parts = {fold: [s for s in gathered["train"].samples if s.fold is None or s.fold != fold] for fold in folds}
    given = Counter(sample.split for sample in samples if sample.split)
    background, positive = special_classes(mask_names, found, config)
    attributes: dict[str, Any] = {
        "channels": found.channels | ({"value": config.table.values} if config.table and config.table.values else {}),
        "classes": ({"mask": mask_names} if mask_names else {}) | ({"label": labels.names} if labels else {}),
        "background": background,
        "positive": positive,
        "ignore_index": config.ignore_index,
        "statistics": _summary(gathered["train"], gathered["train"].samples, labels),
        "split": dataclasses.asdict(config.split)
        | {"n": {split: len(each.samples) for split, each in gathered.items()}, "given": dict(given)},
        "skipped": [list(each) for each in found.problems.skipped],
        "notes": found.notes + found.problems.notes + found.problems.warnings,
        "source": {
            "command": provenance.command(),
            **provenance.git_state(),
            "versions": provenance.versions(),
            "config": json.loads(json.dumps(dataclasses.asdict(config))),
        },
    }
    if folds:
        attributes["fold_statistics"] = [_summary(gathered["train"], parts[fold], labels, fold) for fold in folds]
    return attributes


def _summary(
    train: Gathered, samples: list[Sample], labels: LabelEncoder | None, but: int | None = None
) -> dict[str, Any]:
    """Statistics of the training samples, without those of one fold."""
    statistics = SplitStatistics()
    for fold, each in sorted(train.statistics.items(), key=lambda item: item[0] or 0):
        if fold is None or fold != but:
            statistics.merge(each)
    encoded, names = (labels.encode(samples), labels.names) if labels else (None, None)
    return statistics.summary(encoded, names, _values(samples))


def _values(samples: list[Sample]) -> np.ndarray | None:
    """(N, K) numbers of the table, or None."""
    values = np.array([sample.values for sample in samples], np.float64)
    return values if values.size else None


def _swap(partial: Path, final: Path) -> None:
    """Put the complete folder where it belongs; the old one goes last."""
    old = _old(final)
    if old.is_symlink():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _recover(final: Path) -> None:
    """Undo a swap that was interrupted between its two renames."""
    if _old(final).exists() and not final.exists():
        _old(final).rename(final)


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _tell(found: Found, warnings: list[str], drops: bool, console: Console) -> None:
    notes = found.notes + found.problems.notes
    for note in notes[:MOST_NOTES]:
        console.print(f"note: {note}", markup=False)
    if (n := len(notes) - MOST_NOTES) > 0:
        console.print(f"note: ... and {n} more; all are in the attribute `notes` of the files", markup=False)
    if skipped := found.problems.skipped:
        keys = ["`on_error: skip`"] * found.problems.skip + ["`near_duplicates: drop`"] * drops
        told = f"{len(skipped)} left out ({', '.join(keys)}; all stand in the files):\n{listed_problems(skipped)}"
        console.print(told, markup=False)
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False)
