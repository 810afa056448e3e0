"""Images without targets: `unlabelled:` of a data config -> unlabeled.h5, beside the splits."""

import dataclasses
from pathlib import Path
from typing import Any

from project.data.config import AUTO, DatasetConfig, SplitConfig
from project.data.leakage import UNLABELED
from project.data.preparation.find import RawDataset, find_raw_dataset
from project.data.preparation.plan import Shards, plan_shards
from project.data.preparation.progress import ProgressReporter
from project.data.preparation.workers import Workers
from project.errors import UserError

# Attributes of train.h5 that unlabeled.h5 has too.
SHARED_ATTRIBUTES = "channels", "classes", "background", "positive", "ignore_index", "statistics", "split", "source"


def plan_unlabeled(
    labeled: RawDataset, config: DatasetConfig, workers: Workers, progress: ProgressReporter, folder: Path
) -> tuple[Shards, list[str]]:
    """Find the unlabeled images: their shards, and notes on the files.

    The raw dataset `labeled` gets the warnings, and the images that are skipped. A file that cannot be used, or of
    another kind than those of the splits, is a `UserError`.
    """
    config = _images_only(config)
    try:
        raw = find_raw_dataset(config, workers, progress)
    except UserError as error:
        raise UserError(f"unlabelled: {error}") from error
    if (kind := _describe_kind(raw)) != (expected := _describe_kind(labeled)):
        raise UserError(f"unlabelled: the images have {kind}, those with targets {expected}; they must be of one kind")
    shards = plan_shards(raw, config, folder, unlabeled=True)
    labeled.problems.skipped += [(f"{id_} ({UNLABELED})", reason) for id_, reason in raw.problems.skipped]
    labeled.problems.warnings += raw.problems.warnings
    return shards, raw.notes  # files that fit no pattern are counted with those of the splits


def _images_only(config: DatasetConfig) -> DatasetConfig:
    """The configuration that reads the unlabeled images as it reads the others."""
    nothing: dict[str, Any] = {
        **{"target": {}, "mask": None, "instances": None, "polygons": None, "arrays": [], "source": None},
        **{"table": None, "classes": {}, "group": None, "mask_values": None, "ignore_index": None, "unlabelled": {}},
        **{"background": AUTO, "positive": None},
    }
    split = SplitConfig(fractions={"train": 1.0}, seed=config.split.seed)
    return dataclasses.replace(config, **nothing, image=config.unlabelled, split=split)


def _describe_kind(raw: RawDataset) -> str:
    header = raw.headers[raw.samples[0].id]["image"]
    return f"{header.shape[0]} channel(s) ({', '.join(raw.channels['image'])}) of {header.dtype}"
