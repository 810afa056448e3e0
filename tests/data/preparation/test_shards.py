"""Shards: what is in them, when they are written again, and the memory that they need."""

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import project
from project.data.config import DatasetConfig, SizesConfig
from project.data.preparation import plan
from project.data.preparation.find import find_raw_dataset
from project.data.preparation.pixels import PixelSettings
from project.data.preparation.plan import plan_shards, with_key
from project.data.preparation.shards import Shard, finished_result, write_shard
from project.data.preparation.workers import start_workers
from project.data.raw.images import FunctionImage
from project.data.raw.samples import Sample


def constant(value: int) -> np.ndarray:
    if value < 0:
        raise ValueError(f"no image {value}")
    return np.full((1, 4, 4), value, np.uint8)


def shard_of(folder: Path, values=(1, 2, 3), key="k", **settings) -> Shard:
    pieces = [
        (Sample(f"s{value}", {"image": [FunctionImage(constant, value)]}), {"image": (1, 4, 4)}) for value in values
    ]
    return Shard(folder / "x.h5", "train", pieces, PixelSettings({"image": "uint8"}, **settings), False, key)


def content(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_shard_and_its_record(tmp_path):
    shard = shard_of(tmp_path)
    assert finished_result(shard) is None
    result = write_shard(shard)
    assert content(tmp_path) == {"x.h5", "x.result"}
    assert [record.id for record in result.records] == ["s1", "s2", "s3"]
    assert [record.statistics["image"][0].max for record in result.records] == [1, 2, 3]
    assert result.n_bytes == shard.path.stat().st_size
    assert shard.n_bytes == 3 * 16
    assert [r.digests for r in finished_result(shard).records] == [r.digests for r in result.records]
    before = shard.path.stat().st_mtime_ns
    write_shard(shard)
    assert shard.path.stat().st_mtime_ns == before
    assert [record.id for record in write_shard(shard_of(tmp_path, values=(4, 5), key="l")).records] == ["s4", "s5"]
    assert finished_result(shard) is None


def test_problems_are_skipped(tmp_path):
    shard = shard_of(tmp_path, (1, -1, 2, -2), skip=True)
    result = write_shard(shard)
    assert [id_ for id_, _ in result.problems] == ["s-1", "s-2"]
    assert finished_result(shard).problems == result.problems
    alone = write_shard(shard_of(tmp_path, (1, 2), key="m"))
    assert [r.digests for r in result.records] == [r.digests for r in alone.records]
    assert [r.statistics for r in result.records] == [r.statistics for r in alone.records]
    assert alone.statistics[None].summary() == result.statistics[None].summary()


# --- keys ---


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SHARD_BYTES", 3 * 64)
    (tmp_path / "raw").mkdir()
    for i in range(10):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "raw" / f"{i}.png")
    return tmp_path / "raw"


def planned(raw: Path, **options) -> list[Shard]:
    config = DatasetConfig(str(raw), {"a": "{id}.png"}, **options)
    with start_workers(Console(quiet=True), 1) as workers:
        return plan_shards(find_raw_dataset(config, workers), config, raw.parent / "out")


def test_shards_take_so_many_bytes(raw):
    shards = planned(raw)
    assert [(s.path.name, len(s.samples)) for s in shards] == [
        ("train-00000.h5", 3),
        ("train-00001.h5", 3),
        ("train-00002.h5", 1),
        ("val-00000.h5", 2),
        ("test-00000.h5", 1),
    ]
    assert sorted(sample.id for shard in shards for sample in shard.samples) == [str(i) for i in range(10)]
    assert all(pickle.loads(pickle.dumps(shard)) == shard for shard in shards)


def keys(shards: list[Shard]) -> set[str]:
    return {shard.key for shard in shards}


def test_keys_change_with_settings_code_and_files(raw, monkeypatch):
    before = planned(raw)
    assert planned(raw) == before
    assert len(keys(before)) == 5
    assert planned(raw, group="{id}") == before
    for options in (
        {"compression": "blosc2"},
        {"sizes": SizesConfig("crop", 8)},
        {"convert": "rgb"},
        {"not_finite": 0.0},
        {"on_error": "skip"},
        {"near_duplicates": "ignore"},
    ):
        assert keys(before).isdisjoint(keys(planned(raw, **options))), options
    os.utime(raw / f"{before[1].samples[0].id}.png", ns=(1, 1))
    assert [a.key == b.key for a, b in zip(before, planned(raw), strict=True)] == [True, False, True, True, True]
    monkeypatch.setattr(plan, "_hash_of_code", lambda module: "other")
    assert keys(before).isdisjoint(keys(planned(raw)))


def test_a_function_of_the_user_is_in_the_key(tmp_path, monkeypatch):
    assert with_key(shard_of(tmp_path)) == with_key(shard_of(tmp_path))
    before = with_key(shard_of(tmp_path))
    monkeypatch.setattr(plan, "_hash_of_code", lambda name: "changed" if name == __name__ else name)
    assert with_key(shard_of(tmp_path)).key != before.key
    local = Sample("a", {"image": [FunctionImage(lambda: np.zeros((4, 4), np.uint8))]})
    shard = dataclasses.replace(shard_of(tmp_path), pieces=[(local, {})])  # cannot be sent to another process
    assert with_key(shard).key != with_key(shard).key


# --- memory ---

PEAK = """
import io, sys
from pathlib import Path
from rich.console import Console
from project.data.preparation import plan
from project.data.config import DatasetConfig
from project.data.preparation.prepare import prepare
from project.data.preparation.estimate import peak_memory

plan.SHARD_BYTES = 2**21
config = DatasetConfig("raw", {"a": "{id}.png"}, near_duplicates="warn")
prepare("x", config, Path(sys.argv[1]), Console(file=io.StringIO()), int(sys.argv[2]))
print(peak_memory())
"""


@pytest.mark.nightly
@pytest.mark.parametrize("processes", ["1", "2"])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, processes):
    def peak(n: int) -> int:
        for i in range(n):
            Image.fromarray(noise + np.uint16(i)).save(tmp_path / "raw" / f"{i}.png", compress_level=0)
        env = os.environ | {"PYTHONPATH": str(Path(project.__file__).parents[1])}
        # By a shell: the peak of a process counts from that of its parent, and this one is large.
        command = ["sh", "-c", '"$0" "$@"; exit', sys.executable, "-c", PEAK, f"out{n}", processes]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        return int(done.stdout)

    (tmp_path / "raw").mkdir()
    noise = np.random.default_rng(0).integers(0, 60000, (256, 256)).astype(np.uint16)
    few = peak(100)
    assert peak(400) < 1.1 * few  # 39 MB more of pixels
    assert few < 400e6
