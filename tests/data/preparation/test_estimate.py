"""Estimates of time, disk space and memory, and that they leave nothing behind."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from project.data.config import SizesConfig
from project.data.preparation import estimate as module
from project.data.preparation import shards
from project.data.preparation.estimate import Estimate, estimate
from project.errors import UserError


@pytest.fixture
def images(folder):
    """40 images of 128 x 128 pixels."""
    folder.raw.mkdir()
    for i in range(40):
        Image.fromarray(folder.rng.integers(0, 256, (128, 128), np.uint8)).save(folder.raw / f"{i:02d}.png")
    (folder.raw / "more").mkdir()
    for i in range(20):
        Image.fromarray(folder.rng.integers(0, 256, (128, 128), np.uint8)).save(folder.raw / f"more/{i:02d}.png")
    return folder


def run(folder, processes: int | None = 1, **options) -> Estimate:
    config = folder.config(image={"a": "{id}.png"}, target={}, **options)
    return estimate("d", config, folder.processed, processes)


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({"sizes": SizesConfig("tile", 64), "near_duplicates": "ignore"}, 160),
        ({"compression": "blosc2", "unlabelled": {"a": "more/{id}.png"}}, 60),
    ],
)
def test_images_and_bytes(images, options, n):
    folder, result = images, run(images, None, **options)
    assert (result.images, result.processes) == (n, 1)
    files = folder.raw.rglob("*.png") if n == 60 else folder.raw.glob("*.png")
    assert result.bytes_in == sum(path.stat().st_size for path in files)
    assert list(folder.processed.iterdir()) == []
    folder.prepare(image={"a": "{id}.png"}, target={}, **options)
    written = sum(path.stat().st_size for path in folder.final.rglob("*.h5"))
    assert result.bytes_out == pytest.approx(written, rel=0.1)
    before = {path: path.stat().st_mtime_ns for path in folder.processed.rglob("*")}
    run(folder, **options)
    assert {path: path.stat().st_mtime_ns for path in folder.processed.rglob("*")} == before


def test_time_is_that_of_the_tried_images(images, monkeypatch):
    """Time that passes only while images are read, a second each."""
    clock, original = SimpleNamespace(now=0.0), shards.read_sample

    def read(*arguments):
        clock.now += 1
        return original(*arguments)

    monkeypatch.setattr(shards, "read_sample", read)
    for each in (module, shards):
        monkeypatch.setattr(each, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(module, "BATCH_BYTES", 4 * 128 * 128)
    assert run(images).seconds == pytest.approx(40, rel=0.01)
    assert clock.now < 40
    monkeypatch.setattr(module, "peak_memory", lambda: 10**8)
    clock.now, two = 0.0, run(images, 2)
    assert (two.processes, two.seconds) == (2, pytest.approx(20, rel=0.01))
    assert 2e8 < two.memory < 2.1e8


def test_interrupted_or_unusable_images_leave_nothing(images, monkeypatch):
    for path in images.raw.glob("*.png"):
        path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(UserError, match="one of the images tried cannot be used"):
        run(images)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "read_sample", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(images)
    assert list(images.processed.iterdir()) == []
