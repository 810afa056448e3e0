"""Raw images in a folder, and what is prepared of them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from rich.console import Console

from project import provenance
from project.data.config import DatasetConfig, SplitConfig
from project.data.preparation.prepare import prepare
from project.data.store import SplitReader
from project.errors import UserError

HALVES = SplitConfig(fractions={"train": 0.5, "val": 0.25, "test": 0.25})


class Folder:
    """Raw images of one test, and what is prepared of them.

    Every second sample goes to train, a quarter each to val and test.
    """

    def __init__(self, path: Path) -> None:
        self.raw, self.processed, self.final = path / "raw", path / "processed", path / "processed" / "d"
        self.partial, self.lock = self.processed / ".d.partial", self.processed / ".d.lock"
        self.pairs_file = self.processed / "d.near_duplicates.csv"
        self.rng = np.random.default_rng(0)
        self.images: dict[str, np.ndarray] = {}
        self.output = ""  # on the console, by the last call of `prepare`

    def put(self, name: str, image: np.ndarray | None = None, shape=(12, 10), dtype=np.uint16, low=100, high=4000):
        """Save an image, by default of noise; no two are alike."""
        image = self.rng.integers(low, high, shape).astype(dtype) if image is None else image
        self.images[name] = image
        (self.raw / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(self.raw / name, image, photometric="minisblack")
        return image

    def pairs(self, n: int = 8, **options: Any) -> None:
        for i in range(n):
            self.put(f"in/{i:02d}.tif", **options)
            self.put(f"out/{i:02d}.tif", **options)

    def masks(self, *values: int, n: int = 8, dtype=np.uint8) -> None:
        """Save n images in `in`, and masks with these values in `m`."""
        for i in range(n):
            self.put(f"in/{i}.tif")
            self.put(f"m/{i}.tif", self.rng.choice(np.array(values), (12, 10)).astype(dtype))

    def table(self, columns: str, *rows: str, name: str = "t.csv") -> None:
        self.raw.mkdir(parents=True, exist_ok=True)
        (self.raw / name).write_text("\n".join([columns, *rows]))

    def check(self, readers: dict[str, SplitReader], change: Any = lambda array, role: array, **folders: str) -> None:
        """Each array in the files is that of the raw file below the folder of its role, with the change."""
        for reader in readers.values():
            for index, id_ in enumerate(reader.ids):
                for role, place in folders.items():
                    raw, array = self.images[f"{place}/{id_}.tif"], reader.read(role, index)
                    expected = change(raw if raw.ndim == array.ndim else raw[None], role)
                    np.testing.assert_array_equal(array, expected)

    def config(self, **options: Any) -> DatasetConfig:
        options = {"image": {"a": "in/{id}.tif"}, "target": {"t": "out/{id}.tif"}, "split": HALVES} | options
        return DatasetConfig(str(self.raw), **options)

    def prepare(self, **options: Any) -> dict[str, SplitReader]:
        console = io.StringIO()
        folder = prepare("d", self.config(**options), self.processed, Console(file=console, width=1000))
        self.output = console.getvalue()
        assert folder == self.final
        assert set(self.processed.iterdir()) - {self.pairs_file} == {folder, self.lock}
        return {path.stem: SplitReader(path) for path in sorted(folder.glob("*.h5"))}

    def problem(self, **options: Any) -> str:
        """The message of the error; what was there before must be there still, and nothing that looks finished."""
        before = self.finished()
        with pytest.raises(UserError) as caught:
            prepare("d", self.config(**options), self.processed, Console(file=io.StringIO()))
        assert self.finished() == before
        if self.processed.is_dir():
            assert set(self.processed.iterdir()) <= {self.final, self.lock, self.partial, self.pairs_file}
        assert self.partial.exists() == any(self.partial.rglob("*.result"))
        assert not list(self.partial.rglob(".*"))
        return str(caught.value)

    def finished(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.final.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(provenance, "git", lambda *_: None)  # two processes for each preparation
    return Folder(tmp_path)
