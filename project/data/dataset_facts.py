"""Facts about a dataset, from the metadata of its training images: what tasks, networks and plans need to know."""

from pathlib import Path
from typing import Any

from project.data.store import SplitReader


class DatasetFacts:
    """Facts about the training images of a dataset; no pixels are read.

    Args:
        train: The training images.

    Attributes:
        readers: "train" -> their reader.
    """

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
    """Facts about a prepared dataset.

    Args:
        folder: With train.h5.
        fold: The fold to validate on, which is left out; None and numbers of no fold take all of train.h5.
        labels: False takes unlabeled.h5, where there is one, as tasks without labels do.

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
