"""Facts about a dataset, from the metadata of its training images: what tasks, networks and plans need to know."""

from pathlib import Path
from typing import Any

from project.data.store import SplitReader
from project.errors import UserError


class DatasetFacts:
    """Facts about the training images of a dataset, `readers["train"]`; no pixels are read."""

    def __init__(self, train: SplitReader) -> None:
        self.readers = {"train": train}

    @property
    def available_roles(self) -> tuple[str, ...]:
        """What each sample has, of image, target, mask, instances, label and value."""
        train = self.readers["train"]
        per_image = {"label": train.labels, "value": train.values}
        return (*train.dtypes, *(role for role, rows in per_image.items() if rows is not None))

    @property
    def n_channels(self) -> dict[str, int]:
        """Role ("image", "target" or "value") -> number of channels, or of numbers per image."""
        train = self.readers["train"]
        counts: dict[str, int] = {r: train.shapes[r][0][0] for r in ("image", "target") if r in train.dtypes}
        return counts if train.values is None else counts | {"value": train.values.shape[1]}

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each training image, in pixels."""
        return [(height, width) for *_, height, width in self.readers["train"].shapes["image"]]

    @property
    def statistics(self) -> dict[str, Any]:
        """Statistics of the training split (all folds but the chosen one): role -> one dictionary per channel."""
        return dict(self.readers["train"].attributes["statistics"])

    @property
    def channels(self) -> dict[str, list[str]]:
        """Role -> channel names; "value" -> names of the numbers per image."""
        return dict(self.readers["train"].attributes["channels"])

    @property
    def classes(self) -> dict[str, list[str]]:
        """Role ("mask" or "label") -> class names."""
        return dict(self.readers["train"].attributes["classes"])

    @property
    def background(self) -> str | None:
        """Class of the mask that is left out of mean scores, or None where all count."""
        return None if "mask" not in self.classes else self.readers["train"].attributes["background"]

    @property
    def positive(self) -> str | None:
        """The positive one of two labels."""
        return None if "label" not in self.classes else self.readers["train"].attributes["positive"]

    @property
    def has_instances(self) -> bool:
        """Whether single objects are annotated."""
        return "instances" in self.readers["train"].dtypes

    @property
    def ignore_index(self) -> int | None:
        """Value of the mask that stands for "not annotated"."""
        value: int | None = self.readers["train"].attributes["ignore_index"]
        return value

    @property
    def multi_label(self) -> bool:
        """Whether an image can have any number of labels."""
        labels = self.readers["train"].labels
        return labels is not None and labels.ndim == 2


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
