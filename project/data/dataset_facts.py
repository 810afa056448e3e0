"""Facts about a dataset, from the metadata of its training images: what tasks, networks and plans need to know."""

from pathlib import Path
from typing import Any

from project.data.store import SplitReader
from project.errors import UserError


class DatasetFacts:
    """Facts about the training images of a dataset; no pixels are read.

    Attributes:
        readers: "train" -> the training images.
        available_roles: What each sample has, of image, target, mask, instances, label and value.
        n_channels: Role ("image", "target" or "value") -> number of channels, or of numbers per image.
        sizes: Height and width of each image, in pixels.
        statistics: Of the training split (all folds but the chosen one): role -> one dictionary per channel.
        channels: Role -> channel names; "value" -> names of the numbers per image.
        classes: Role ("mask" or "label") -> class names.
        background: Class of the mask that is left out of mean scores, or None where all count.
        positive: The positive one of two labels.
        ignore_index: Value of the mask that stands for "not annotated".
        has_instances: Whether single objects are annotated.
        multi_label: Whether an image can have any number of labels.
    """

    def __init__(self, train: SplitReader) -> None:
        head, per_image = train.attributes, {"label": train.labels, "value": train.values}
        self.readers = {"train": train}
        self.available_roles = (*train.dtypes, *(role for role, rows in per_image.items() if rows is not None))
        shapes = train.shapes
        self.n_channels: dict[str, int] = {r: shapes[r][0][0] for r in ("image", "target") if r in shapes}
        if train.values is not None:
            self.n_channels["value"] = train.values.shape[1]
        self.sizes: list[tuple[int, int]] = [(height, width) for *_, height, width in train.shapes["image"]]
        self.statistics: dict[str, Any] = head["statistics"]
        self.channels: dict[str, list[str]] = head.get("channels") or {}
        self.classes: dict[str, list[str]] = head.get("classes") or {}
        self.background: str | None = head.get("background") if "mask" in self.classes else None
        self.positive: str | None = head.get("positive") if "label" in self.classes else None
        self.ignore_index: int | None = head.get("ignore_index")
        self.has_instances = "instances" in train.dtypes
        self.multi_label = train.labels is not None and train.labels.ndim == 2


def dataset_facts(folder: Path, fold: int | None = None, labels: bool = True) -> DatasetFacts:
    """Facts about the training images of a folder, without those of the fold to validate on.

    Numbers of no fold take all of train.h5. Without `labels`, unlabeled.h5 is taken where there is one.

    Raises:
        UserError: The dataset is not prepared, or damaged.
    """
    unlabeled = folder / "unlabeled.h5"
    if not labels and unlabeled.is_file():
        return DatasetFacts(SplitReader(unlabeled))
    train = SplitReader(folder / "train.h5")
    if fold is not None and train.folds is not None and (train.folds == fold).any():
        train = train.fold_subset(fold, training=True)
    return DatasetFacts(train)


def check_fold(train: SplitReader, fold: int | None) -> None:
    """Refuse a choice of fold that the data (the whole train.h5) does not offer."""
    if train.folds is None and fold is not None:
        raise UserError(
            f'data.fold is {fold}, but "{train.path.parent}" is not divided into folds; leave it out, or set '
            "`split: {folds: 5}` in the data config and prepare the data again"
        )
    if train.folds is None:
        return
    n = int(train.folds.max()) + 1
    if fold is None:
        raise UserError(f"the data is divided into {n} folds; choose one with `make train FOLD=0` (`--data.fold 0`)")
    if not 0 <= fold < n:
        raise UserError(f"there is no fold {fold}: the data is divided into {n} folds, 0 to {n - 1}")
