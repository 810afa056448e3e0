"""Readers of the splits of one dataset."""

from pathlib import Path

from project.data.dataset_facts import DatasetFacts
from project.data.few_labels import labeled_subset
from project.data.store import SplitReader
from project.errors import UserError


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


class DatasetSplits(DatasetFacts):
    """Splits of a prepared dataset, opened when they are needed; the arguments are those of the datamodule.

    Attributes:
        whole: All of train.h5.
        all_images: The training images, without those of the validation fold.
        readers: Split -> its reader; "train" has the labeled images only.
    """

    def __init__(self, folder: Path, fold: int | None, labelled_fraction: float, seed: int) -> None:
        self.folder, self.fold = folder, fold
        self.whole = SplitReader(folder / "train.h5")
        check_fold(self.whole, fold)
        self.readers: dict[str, SplitReader] = {"train": self.whole}
        if fold is not None:
            self.readers = {name: self.whole.fold_subset(fold, training=name == "train") for name in ("train", "val")}
        self.all_images = self.readers["train"]
        self.readers["train"] = labeled_subset(self.all_images, labelled_fraction, seed)

    @property
    def needs_labels(self) -> bool:
        """Whether the task needs labels; without them, training uses all images."""
        return True

    def reader(self, split: str) -> SplitReader:
        """The reader of a split, opened when first asked for: training never touches the test file."""
        if split == "train" and not self.needs_labels:
            return self._without_labels()
        if split not in self.readers:
            self.readers[split] = SplitReader(self.folder / f"{split}.h5")
            attributes, train = self.readers[split].attributes, self.whole.attributes
            if any(attributes[name] != train[name] for name in ("split", "statistics")):  # they may share samples
                raise UserError(f'"{self.folder}": {split}.h5 and train.h5 come from different preparations')
        return self.readers[split]

    def _without_labels(self) -> SplitReader:
        """The images for tasks that need no labels: unlabeled.h5 where there is one, else all of the training split."""
        if not (path := self.folder / "unlabeled.h5").is_file():
            return self.all_images
        if "unlabeled" not in self.readers:
            self.readers["unlabeled"] = SplitReader(path)
        return self.readers["unlabeled"]
