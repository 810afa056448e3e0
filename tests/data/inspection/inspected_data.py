"""Prepared splits with known pixels, and the report about them."""

import numpy as np
from rich.console import Console

from project.data.inspection.measure import measure_dataset
from project.data.inspection.report import make_report
from project.data.split_writer import write_split
from project.data.store import SplitReader


def write(folder, split, /, arrays, ids=None, groups=None, labels=None, **attributes):
    """Write a split file with default names."""
    ids = ids or [f"{split}{i}" for i in range(len(arrays["image"]))]
    channels = {role: [f"c{i}" for i in range(len(each[0]))] for role, each in arrays.items() if each[0].ndim == 3}
    folder.mkdir(parents=True, exist_ok=True)
    labels = None if labels is None else np.array(labels)
    attributes = {"channels": channels, "statistics": {}} | attributes
    write_split(folder / f"{split}.h5", arrays, ids, groups or ids, labels, **attributes)


class Prepared:
    """A dataset below a folder."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, split, /, arrays, *args, **attributes):
        """Write a split, and return self."""
        write(self.folder, split, arrays, *args, **attributes)
        return self

    def reader(self, split="train"):
        """One split."""
        return SplitReader(self.folder / f"{split}.h5")

    def measures(self):
        """Measures of all splits."""
        splits = ("train", "val", "test")
        readers = {split: self.reader(split) for split in splits if (self.folder / f"{split}.h5").is_file()}
        return measure_dataset(readers, Console(quiet=True))

    def report(self):
        """The report, without page and files."""
        return make_report("d", self.measures())

    def warnings(self, *words):
        """The warnings that hold all the words."""
        return [w for w in self.report()["warnings"] if all(word in w for word in words)]


def make_noise(rng, n, mean=1000, std=50, shape=(1, 16, 16), dtype=np.uint16):
    """Images of normally distributed pixels."""
    return [rng.normal(mean, std, shape).astype(dtype) for _ in range(n)]
