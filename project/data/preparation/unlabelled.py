"""Images without targets: `unlabelled:` of a data config -> unlabeled.h5, beside the splits."""

import dataclasses
from pathlib import Path
from typing import Any

from project.data.config import AUTO, DatasetConfig, SplitConfig
from project.data.leakage import UNLABELED
from project.data.preparation.executors import Reporter, Workers
from project.data.preparation.plan import Found, find, make_shards
from project.data.preparation.shards import Shard
from project.errors import UserError

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


def unlabelled_shards(
    labelled: Found, config: DatasetConfig, crew: Workers, reporter: Reporter, folder: Path
) -> tuple[list[Shard], list[str]]:
    """Find the unlabelled images, and plan their shards.

    Args:
        labelled: The images with targets. Gets the warnings, and the images that are skipped.
        config: Of the dataset.
        crew: Who reads the headers.
        reporter: Is told how far it is.
        folder: Where the splits are written.

    Returns:
        The shards, and notes on the files.

    Raises:
        UserError: A file cannot be used, or the images are of another kind than those of the splits.
    """
    own = images_only(config)
    try:
        found = find(own, crew, reporter)
    except UserError as error:
        raise UserError(f"unlabelled: {error}") from error
    told = []
    for each in (found, labelled):
        (n, *_), dtype = each.headers[each.samples[0].id]["image"]
        told.append(f"{n} channel(s) ({', '.join(each.channels['image'])}) of {dtype}")
    if told[0] != told[1]:
        raise UserError(
            f"unlabelled: the images have {told[0]}, those with targets {told[1]}; they must be of one kind"
        )
    shards = make_shards(found, own, folder / "unlabeled")["train"]
    labelled.problems.skipped += [(f"{id_} ({UNLABELED})", reason) for id_, reason in found.problems.skipped]
    labelled.problems.warnings += found.problems.warnings
    return shards, found.notes  # files that fit no pattern are counted with those of the splits
