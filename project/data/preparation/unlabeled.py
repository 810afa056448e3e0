"""Images without targets: `unlabelled:` of a data config -> unlabeled.h5, beside the splits."""

from pathlib import Path

from project.data.config import DatasetConfig, SplitConfig
from project.data.leakage import UNLABELED
from project.data.preparation.find import RawDataset, find_raw_dataset
from project.data.preparation.plan import Shards, plan_shards
from project.data.preparation.progress import ProgressReporter
from project.data.preparation.workers import Workers
from project.errors import UserError

IMAGE_KEYS = ("raw", "convert", "pages", "axes", "sizes", "not_finite", "on_error", "near_duplicates", "compression")
# Attributes of train.h5 that unlabeled.h5 has too.
SHARED_ATTRIBUTES = "channels", "classes", "background", "positive", "ignore_index", "statistics", "split", "source"


def plan_unlabeled(
    labeled: RawDataset, config: DatasetConfig, workers: Workers, progress: ProgressReporter, folder: Path
) -> tuple[Shards, list[str]]:
    """Find the unlabeled images: their shards, and notes on the files.

    The raw dataset `labeled` gets the warnings, and the images that are skipped. A file that cannot be used, or of
    another kind than those of the splits, is a `UserError`.
    """
    same = {key: getattr(config, key) for key in IMAGE_KEYS}
    config = DatasetConfig(image=config.unlabelled, split=SplitConfig(fractions={"train": 1.0}), **same)
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


def _describe_kind(raw: RawDataset) -> str:
    header = raw.headers[raw.samples[0].id]["image"]
    return f"{header.shape[0]} channel(s) ({', '.join(raw.channels['image'])}) of {header.dtype}"
