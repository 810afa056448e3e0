"""Images without targets: `unlabelled:` of a data config -> unlabeled.h5, beside the splits."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from project.data.config import AUTO, DatasetConfig, SplitConfig
from project.data.duplicates import similar_pairs
from project.data.preparation.executors import Reporter, Workers
from project.data.preparation.plan import SHARD_BYTES, find, make_shards
from project.data.preparation.shards import Result, Shard, write_shard
from project.data.store import Head, SplitReader, join
from project.errors import UserError, listed

KEPT = (
    "channels",
    "classes",
    "background",
    "positive",
    "ignore_index",
    "statistics",
    "split",
    "source",
)  # attributes of train.h5


def images_only(config: DatasetConfig) -> DatasetConfig:
    """The configuration that reads the unlabelled images, in the way of the others."""
    nothing: dict[str, Any] = {
        **{"target": {}, "mask": None, "instances": None, "polygons": None, "arrays": [], "source": None},
        **{"table": None, "classes": {}, "group": None, "mask_values": None, "ignore_index": None, "unlabelled": {}},
        **{"background": AUTO, "positive": None},
    }
    return dataclasses.replace(
        config, **nothing, image=config.unlabelled, split=SplitConfig(fractions={"train": 1.0}, seed=config.split.seed)
    )


def add_unlabelled(
    folder: Path, config: DatasetConfig, crew: Workers, reporter: Reporter
) -> tuple[list[str], list[str]]:
    """Write unlabeled.h5 into a folder that holds the finished splits.

    Args:
        folder: With train.h5, whose statistics and channel names it takes over.
        config: Of the dataset.
        crew: Who writes.
        reporter: Is told how far it is.

    Returns:
        Notes on the files, and warnings.

    Raises:
        UserError: A file cannot be used, the images are of another kind than those of the splits, or one of them looks
            like an image of validation or test, which nothing may learn from.
    """
    own, train = images_only(config), SplitReader(folder / "train.h5")
    found = find(own, crew, reporter)
    shape, dtype = next(iter(found.headers.values()))["image"]
    ours, theirs = found.channels["image"], train.attributes["channels"]["image"]
    kinds = [(ours, np.dtype(dtype), shape[0]), (theirs, train.dtypes["image"], train.shapes["image"][0][0])]
    if kinds[0] != kinds[1]:
        told = [f"{n} channel(s) ({', '.join(names)}) of {dtype.name}" for names, dtype, n in kinds]
        raise UserError(
            f"unlabelled: the images have {told[0]}, those with targets {told[1]}; they must be of one kind"
        )
    place = folder / "unlabeled"
    shards = make_shards(found, own, place)["train"]
    reporter.start("Reading images without targets", sum(len(shard.samples) for shard in shards))
    results: dict[Path, Result] = {}
    for shard in shards:
        shard.path.parent.mkdir(parents=True, exist_ok=True)
    little = sum(shard.n_bytes for shard in shards) < 2 * SHARD_BYTES  # starting processes would cost more
    for shard, result in crew.run(write_shard, iter(shards), little):
        results[shard.path] = result
        reporter.advance(len(shard.samples), result.n_bytes)
        for which, what in result.problems:
            found.problems.add(which, what)
    found.problems.stop_if_any("Some files cannot be used:")
    written = [(shard, results[shard.path]) for shard in shards if results[shard.path].ids]
    if not written:
        raise UserError("unlabelled: no image is left that can be used")
    head = _head(written, train, found.notes)
    warnings = _check_apart(folder, head, config)
    join(folder / "unlabeled.h5", [(shard.path, result.ids) for shard, result in written], head)
    for record in place.rglob("*.result"):
        record.unlink()
    if not any(place.rglob("*.h5")):
        shutil.rmtree(place)
    return [f"unlabelled: {note}" for note in found.notes], warnings


def _head(written: list[tuple[Shard, Result]], train: SplitReader, notes: list[str]) -> Head:
    samples = [sample for shard, result in written for sample in shard.samples if sample.id in set(result.ids)]
    signatures = [result.signatures for _, result in written if result.signatures is not None]
    return Head(
        [sample.id for sample in samples],
        [sample.group for sample in samples],
        levels={"image": np.array([level for _, r in written for level in r.levels["image"]], np.float64)},
        signatures=np.concatenate(signatures) if signatures else None,
        digests=[each for _, result in written for each in result.digests],
        attributes={name: train.attributes[name] for name in KEPT} | {"notes": notes},
    )


def _check_apart(folder: Path, head: Head, config: DatasetConfig) -> list[str]:
    """Refuse, or tell of, images that look like those of validation or test."""
    if config.near_duplicates == "ignore" or head.signatures is None:
        return []
    others = {split: SplitReader(path) for split in ("val", "test") if (path := folder / f"{split}.h5").is_file()}
    names = [f"{id_} (unlabelled)" for id_ in head.ids]
    names += [f"{id_} ({split})" for split, reader in others.items() for id_ in reader.ids]
    signatures = [head.signatures, *(reader.signatures for reader in others.values() if reader.signatures is not None)]
    # Validation and test were compared with each other before.
    places = np.array([0] * len(head.ids) + [1] * (len(names) - len(head.ids)))
    if sum(map(len, signatures)) != len(names):
        return []
    pairs = [f"{names[i]} and {names[j]}" for i, j in similar_pairs(np.concatenate(signatures), places)]
    if not pairs:
        return []
    told = f"unlabelled images look like images of validation or test:\n{listed(pairs)}\n"
    if config.near_duplicates == "warn":
        return [f"{told}Scores of what learns from them are no test of anything new."]
    raise UserError(
        f"{told}Leave them out, or set `near_duplicates: warn` if they do not show the same. Nothing was written."
    )
