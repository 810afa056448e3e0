"""Estimates of time, disk space and memory, and that they leave nothing behind."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from project.data.config import DatasetConfig, SizesConfig
from project.data.preparation import estimate as module
from project.data.preparation import shards
from project.data.preparation.estimate import Estimate, estimate
from project.data.preparation.prepare import prepare
from project.errors import UserError


class Folder:
    """40 images of 128 x 128 pixels."""

    def __init__(self, path: Path) -> None:
        self.raw, self.processed = path / "raw", path / "processed"
        self.raw.mkdir()
        rng = np.random.default_rng(0)
        for i in range(40):
            Image.fromarray(rng.integers(0, 256, (128, 128), np.uint8)).save(self.raw / f"{i:02d}.png")

    def config(self, **options) -> DatasetConfig:
        return DatasetConfig(str(self.raw), {"a": "{id}.png"}, **options)

    def estimate(self, processes: int | None = 1, **options) -> Estimate:
        return estimate("d", self.config(**options), self.processed, processes)

    def written(self, **options) -> int:
        final = prepare("d", self.config(**options), self.processed, Console(file=io.StringIO()))
        return sum(path.stat().st_size for path in final.rglob("*.h5"))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ({"sizes": SizesConfig("tile", 64), "near_duplicates": "ignore"}, 160),
        ({"compression": "blosc2"}, 40),
    ],
)
def test_images_and_bytes(folder, options, images):
    result = folder.estimate(processes=None, **options)
    assert (result.images, result.processes) == (images, 1)
    assert result.bytes_in == sum(path.stat().st_size for path in folder.raw.iterdir())
    assert list(folder.processed.iterdir()) == []
    assert result.bytes_out == pytest.approx(folder.written(**options), rel=0.1)
    before = {path: path.stat().st_mtime_ns for path in folder.processed.rglob("*")}
    folder.estimate(**options)
    assert {path: path.stat().st_mtime_ns for path in folder.processed.rglob("*")} == before


def test_time_is_that_of_the_tried_images(folder, monkeypatch):
    """Time that passes only while images are read, a second each."""
    clock, original = SimpleNamespace(now=0.0), shards.read_sample

    def read(*arguments):
        clock.now += 1
        return original(*arguments)

    monkeypatch.setattr(shards, "read_sample", read)
    for each in (module, shards):
        monkeypatch.setattr(each, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(module, "BATCH_BYTES", 4 * 128 * 128)
    assert folder.estimate().seconds == pytest.approx(40, rel=0.01)
    assert clock.now < 40
    monkeypatch.setattr(module, "peak_memory", lambda: 10**8)
    clock.now, two = 0.0, folder.estimate(processes=2)
    assert (two.processes, two.seconds) == (2, pytest.approx(20, rel=0.01))
    assert 2e8 < two.memory < 2.1e8


def test_interrupted_or_unusable_images_leave_nothing(folder, monkeypatch):
    for path in folder.raw.iterdir():
        path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(UserError, match="one of the images tried cannot be used"):
        folder.estimate()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "read_sample", interrupt)
    with pytest.raises(KeyboardInterrupt):
        folder.estimate()
    assert list(folder.processed.iterdir()) == []
