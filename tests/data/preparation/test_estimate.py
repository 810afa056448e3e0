"""What a preparation will take, told before."""

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
from project.data.preparation.shards import Settings, Shard
from project.data.raw.samples import Sample
from project.errors import UserError


class Clock:
    """Time that passes only while images are read, a second each."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.reads = 0.0, 0
        original = shards.read_sample

        def read(*arguments):
            self.now += 1
            self.reads += 1
            return original(*arguments)

        monkeypatch.setattr(shards, "read_sample", read)
        for each in (module, shards):
            monkeypatch.setattr(each, "time", SimpleNamespace(perf_counter=lambda: self.now))


class Folder:
    def __init__(self, path: Path) -> None:
        self.raw, self.processed = path / "raw", path / "processed"
        self.raw.mkdir()
        rng = np.random.default_rng(0)
        for i in range(40):
            Image.fromarray(rng.integers(0, 256, (128, 128), np.uint8)).save(self.raw / f"{i:02d}.png")

    def config(self, **options) -> DatasetConfig:
        return DatasetConfig(str(self.raw), {"a": "{id}.png"}, **options)

    def estimate(self, processes: int | None = 1, **options) -> Estimate:
        return estimate("d", self.config(**options), self.processed, Console(file=io.StringIO()), processes)

    def written(self, **options) -> int:
        final = prepare("d", self.config(**options), self.processed, Console(file=io.StringIO()))
        return sum(path.stat().st_size for path in final.rglob("*.h5"))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_nothing_stays(folder):
    folder.estimate()
    assert list(folder.processed.iterdir()) == []
    folder.written()
    before = {path: path.stat().st_mtime_ns for path in folder.processed.rglob("*")}
    folder.estimate()
    assert {path: path.stat().st_mtime_ns for path in folder.processed.rglob("*")} == before


def test_nothing_stays_of_an_interrupted_one(folder, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "read_sample", interrupt)
    with pytest.raises(KeyboardInterrupt):
        folder.estimate()
    assert list(folder.processed.iterdir()) == []


def test_bytes(folder):
    found = folder.estimate()
    assert found.images == 40
    assert found.bytes_in == sum(path.stat().st_size for path in folder.raw.iterdir())
    assert found.bytes_out == pytest.approx(folder.written(), rel=0.05)


def test_bytes_of_tiny_images(folder):
    """What is known of each takes more than its pixels."""
    for i in range(1000):
        noise = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(noise).save(folder.raw / f"{i:02d}.png")
    found = folder.estimate(near_duplicates="warn")
    assert found.bytes_out > 2 * 1000 * 64
    assert found.bytes_out == pytest.approx(folder.written(near_duplicates="warn"), rel=0.15)


def test_tiles_count_one_by_one(folder):
    options = {"sizes": SizesConfig("tile", 64), "near_duplicates": "ignore"}
    found = folder.estimate(**options)
    assert found.images == 160
    assert found.bytes_out == pytest.approx(folder.written(**options), rel=0.1)


def test_compression(folder):
    for path in folder.raw.iterdir():
        pixels = np.asarray(Image.open(path)) % 4
        Image.fromarray(pixels).save(path)
    found = folder.estimate(compression="blosc2")
    assert found.bytes_out < 0.8 * 40 * 128 * 128
    assert found.bytes_out == pytest.approx(folder.written(compression="blosc2"), rel=0.2)


def test_time_is_that_of_the_images(folder, monkeypatch):
    clock = Clock(monkeypatch)
    found = folder.estimate()
    assert found.seconds == pytest.approx(40)
    assert found.seconds_off == pytest.approx(4)  # all take the same, but another day is another day
    assert clock.reads < 40 * (module.LEAST_BATCHES + 2)


def test_trying_takes_no_longer_than_it_must(folder, monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(module, "BATCH_IMAGES", 2)
    monkeypatch.setattr(module, "SECONDS", 5.0)
    assert folder.estimate().seconds == pytest.approx(40)
    assert clock.reads == 2 + 2 * module.LEAST_BATCHES


def test_images_that_take_longer_widen_the_uncertainty(folder, monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(module, "BATCH_IMAGES", 1)
    original = shards.read_sample

    def read(sample, *rest):
        clock.now += 20 * (int(sample.id) % 4 == 0)
        return original(sample, *rest)

    monkeypatch.setattr(shards, "read_sample", read)
    found = folder.estimate()
    assert found.seconds_off > 0.3 * found.seconds
    assert abs(found.seconds - 40 * (1 + 20 / 4)) < 2 * found.seconds_off


def test_processes_share_the_shards():
    settings = Settings({"image": "uint8"}, False, 0, True, None, None, None, None, "none", False)

    def shard(n: int) -> Shard:
        return Shard(Path("x"), [Sample("a", {})], {"image": [(1, 1, n)]}, settings, False)

    all_shards = [shard(n) for n in (5, 4, 3, 2)]
    assert [module._longest(all_shards, n) for n in (1, 2, 3, 4, 99)] == [14, 7, 5, 5, 5]


def test_all_pairs_are_compared(monkeypatch):
    clock = Clock(monkeypatch)

    def compare(signatures, *_: object):
        blocks = -(-len(signatures) // 1024)
        clock.now += blocks * (blocks + 1) / 2

    monkeypatch.setattr(module, "similar_pairs", compare)
    assert module._comparing(100_000) == pytest.approx(98 * 99 / 2)
    assert module._comparing(1) == 1


def test_ratio():
    sizes = np.array([1.0, 2.0, 3.0])
    assert module._ratio(3 * sizes, sizes) == (pytest.approx(3), pytest.approx(0))
    assert module._ratio(np.array([5.0]), np.array([2.0])) == (2.5, 0)
    rng = np.random.default_rng(0)
    sizes, values = rng.uniform(1, 5, (2000, 30)), rng.uniform(0, 2, (2000, 30))
    found, off = np.array([module._ratio(s * v, s) for s, v in zip(sizes, values, strict=True)]).T
    assert 0.92 < (np.abs(found - 1) < off).mean() < 0.97  # two standard errors


def test_what_is_wrong_with_an_image_is_said(folder):
    for path in folder.raw.iterdir():
        path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"one of the images tried cannot be used: .*\.png"):
        folder.estimate()
    assert list(folder.processed.iterdir()) == []


def test_images_that_are_left_out_take_no_space(folder):
    damaged = sorted(folder.raw.iterdir())[::2]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-3000])
    found = folder.estimate(on_error="skip")
    assert found.bytes_out == pytest.approx(folder.written(on_error="skip"), rel=0.3)


def test_how_it_is_told():
    assert str(Estimate(1200, 200.0, 30.0, 2_500_000, 3.1e9, 0.31e9, 5e8, 1e8, 4)) == (
        "1200 images, with 4 processes:\n"
        "  time    3 min 20 s ± 15%\n"
        "  reads   2.5 MB\n"
        "  writes  3.1 GB ± 10%\n"
        "  memory  500 MB ± 20%"
    )


@pytest.mark.slow
def test_with_processes(folder):
    found = folder.estimate(processes=2)
    assert found.processes == 2
    assert found.seconds > 0
    assert found.memory > 100e6
    assert list(folder.processed.iterdir()) == []


def test_little_work_is_not_given_to_processes(folder):
    assert folder.estimate(processes=None).processes == 1
