"""What a shard is, when it is done anew, and that a shard says nothing of how it came about."""

import dataclasses
import io
import json
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
from project.data.config import DatasetConfig, PolygonConfig, SizesConfig
from project.data.preparation import plan
from project.data.preparation import shards as module
from project.data.preparation.executors import Reporter, workers
from project.data.preparation.plan import find, make_shards
from project.data.preparation.shards import Settings, Shard, finished, write_shard
from project.data.raw.images import FunctionImage
from project.data.raw.lazy_image import LazyImage
from project.data.raw.samples import Sample

SETTINGS = Settings({"image": "uint8"}, False, 0, True, None, None, None, None, "none", False)


def constant(value: int, path: Path | None = None) -> np.ndarray:
    if value < 0:
        raise ValueError(f"no image {value}")
    return np.full((1, 4, 4), value, np.uint8)


def shard_of(folder: Path, values=(1, 2, 3), key="k", **settings) -> Shard:
    samples = [Sample(f"s{value}", {"image": [FunctionImage(constant, value)]}) for value in values]
    shapes = {"image": [(1, 4, 4)] * len(samples)}
    return Shard(folder / "x.h5", samples, shapes, dataclasses.replace(SETTINGS, **settings), False, key)


def content(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_shard_and_its_record(tmp_path):
    shard = shard_of(tmp_path)
    assert finished(shard) is None
    result = write_shard(shard)
    assert content(tmp_path) == {"x.h5", "x.result"}
    assert result.ids == ["s1", "s2", "s3"]
    assert [level[0].max for level in result.levels["image"]] == [1, 2, 3]
    assert result.n_bytes == shard.path.stat().st_size
    assert shard.n_bytes == 3 * 16
    assert finished(shard).digests == result.digests
    before = shard.path.stat().st_mtime_ns
    write_shard(shard)
    assert shard.path.stat().st_mtime_ns == before


def test_another_key_writes_it_anew(tmp_path):
    write_shard(shard_of(tmp_path))
    assert write_shard(shard_of(tmp_path, values=(4, 5), key="l")).ids == ["s4", "s5"]
    assert finished(shard_of(tmp_path)) is None


def test_problems_leave_nothing_behind(tmp_path):
    result = write_shard(shard_of(tmp_path, (1, -1, 2, -2)))
    assert [id_ for id_, _ in result.problems] == ["s-1", "s-2"]
    assert "constant(-1): cannot be read: no image -1" in result.problems[0][1]
    assert not result.ids
    assert content(tmp_path) == set()


def test_problems_are_skipped(tmp_path):
    shard = shard_of(tmp_path, (1, -1, 2, -2), skip=True)
    result = write_shard(shard)
    assert result.ids == ["s1", "s2"]
    assert [id_ for id_, _ in result.problems] == ["s-1", "s-2"]
    assert finished(shard).problems == result.problems
    alone = write_shard(shard_of(tmp_path, (1, 2), key="m"))
    assert (alone.digests, alone.levels) == (result.digests, result.levels)
    assert alone.statistics[None].summary() == result.statistics[None].summary()


def test_a_shard_of_nothing_but_problems(tmp_path):
    shard = shard_of(tmp_path, (-1, -2), skip=True)
    assert write_shard(shard).ids == []
    assert finished(shard).problems
    assert content(tmp_path) == {"x.result"}


def test_other_errors_leave_nothing_half_written(tmp_path, monkeypatch):
    monkeypatch.setattr("project.data.preparation.shards.read_sample", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_shard(shard_of(tmp_path))
    assert content(tmp_path) == set()


def test_two_workers_at_the_same_shard_do_no_harm(tmp_path, monkeypatch):
    """As on a cluster where one of them was taken for dead."""
    shard, original = shard_of(tmp_path), module.read_sample
    inner = iter([True])

    def read(*arguments):
        if next(inner, False):
            write_shard(shard)
        return original(*arguments)

    monkeypatch.setattr(module, "read_sample", read)
    result = write_shard(shard)
    assert content(tmp_path) == {"x.h5", "x.result"}
    assert finished(shard).digests == result.digests


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
    with workers(1) as crew:
        found = find(config, crew, Reporter(Console(file=io.StringIO())))
    return [shard for each in make_shards(found, config, raw.parent / "out").values() for shard in each]


def test_shards_take_so_many_bytes(raw):
    shards = planned(raw)
    assert [(s.path.name, len(s.samples)) for s in shards] == [
        ("train-00000.h5", 3),
        ("train-00001.h5", 3),
        ("train-00002.h5", 1),
        ("val.h5", 2),
        ("test.h5", 1),
    ]
    ids = [sample.id for shard in shards for sample in shard.samples]
    assert sorted(ids) == [str(i) for i in range(10)]


def test_no_more_than_so_many_shards(raw, monkeypatch):
    monkeypatch.setattr(plan, "SHARD_BYTES", 1)
    monkeypatch.setattr(plan, "MOST_SHARDS", 4)
    assert sum(shard.path.name.startswith("train") for shard in planned(raw)) == 4


def test_the_key_is_the_same_again(raw):
    assert planned(raw) == planned(raw)
    assert len({shard.key for shard in planned(raw)}) == 5


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "blosc2"},
        {"sizes": SizesConfig("crop", 8)},
        {"convert": "rgb"},
        {"not_finite": 0.0},
        {"on_error": "skip"},
        {"near_duplicates": "ignore"},
    ],
)
def test_settings_change_all_keys(raw, options):
    before = {shard.key for shard in planned(raw)}
    assert before.isdisjoint(shard.key for shard in planned(raw, **options))


def test_a_file_changes_the_key_of_its_shard(raw):
    before = planned(raw)
    changed = before[1].samples[0].id
    os.utime(raw / f"{changed}.png", ns=(1, 1))
    after = planned(raw)
    assert [a.key == b.key for a, b in zip(before, after, strict=True)] == [True, False, True, True, True]


def test_the_code_changes_the_key(raw, monkeypatch):
    before = {shard.key for shard in planned(raw)}
    monkeypatch.setattr(plan, "_code", lambda: "other")
    assert before.isdisjoint(shard.key for shard in planned(raw))


def test_order_of_classes_and_label_of_outlines_are_in_the_key(tmp_path):
    square = [[[1, 1], [7, 1], [7, 7], [1, 7], [1, 1]]]
    for i in range(4):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
        properties = {"kind": "a", "other": "b"}
        feature = {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": square}}
        (tmp_path / f"{i}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))

    def keys(label: str, names: list[str]) -> set[str]:
        outlines = PolygonConfig("{id}.geojson", label=label)
        config = DatasetConfig(str(tmp_path), {"a": "{id}.png"}, polygons=outlines, classes={"mask": names})
        with workers(1) as crew:
            found = find(config, crew, Reporter(Console(file=io.StringIO())))
        return {shard.key for each in make_shards(found, config, tmp_path / "out").values() for shard in each}

    before = keys("kind", ["none", "a", "b"])
    assert keys("kind", ["none", "a", "b"]) == before
    assert before.isdisjoint(keys("kind", ["none", "b", "a"]))
    assert before.isdisjoint(keys("other", ["none", "a", "b"]))


def test_a_reference_that_cannot_be_sent_has_a_key_of_its_own(tmp_path):
    shard = dataclasses.replace(
        shard_of(tmp_path), samples=[Sample("a", {"image": [FunctionImage(lambda: np.zeros((4, 4), np.uint8))]})]
    )
    assert plan.shard_key(shard) != plan.shard_key(shard)


OWN = """
import sys
import numpy as np
from pathlib import Path
from project.data.preparation.plan import shard_key
from project.data.raw.images import FunctionImage
from project.data.raw.samples import Sample
from project.data.preparation.shards import Settings, Shard
from mine import constant

settings = Settings({"image": "uint8"}, False, 0, True, None, None, None, None, "none", False)
samples = [Sample("a", {"image": [FunctionImage(constant, 1, Path("mine.py"), "x")]})]
print(shard_key(Shard(Path("x.h5"), samples, {"image": [(1, 4, 4)]}, settings, False)))
"""


def test_a_function_of_ones_own_has_the_same_key_in_every_process_until_it_changes(tmp_path):
    def key() -> str:
        env = os.environ | {"PYTHONPATH": str(Path(project.__file__).parents[1])}
        command = [sys.executable, "-c", OWN]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout

    (tmp_path / "mine.py").write_text("def constant(value, path, text): ...\n")
    stamp = (tmp_path / "mine.py").stat().st_mtime_ns
    before = key()
    assert len(before) > 32
    assert key() == before
    (tmp_path / "mine.py").write_text("def constant(value, path, text): ...\n")
    os.utime(tmp_path / "mine.py", ns=(stamp, stamp))
    assert key() == before
    (tmp_path / "mine.py").write_text("def constant(value, path, tekst):...\n")
    os.utime(tmp_path / "mine.py", ns=(stamp, stamp))
    assert key() != before


def test_shards_are_small_and_pickle(raw):
    for shard in planned(raw):
        assert pickle.loads(pickle.dumps(shard)) == shard


def test_loaded_images_tell_what_they_are():
    assert repr(FunctionImage(constant, 1, Path("a"))) == f"{__name__}.constant(1, {Path('a')!r})"
    assert isinstance(FunctionImage(constant, 1).open(), LazyImage)
    with pytest.raises(ValueError, match="no image -1"):
        FunctionImage(constant, -1).open()


# --- memory ---

PEAK = """
import io, sys
from pathlib import Path
from rich.console import Console
from project.data.preparation import plan
from project.data.config import DatasetConfig
from project.data.preparation.prepare import prepare
from project.data.preparation.shards import peak_memory

plan.SHARD_BYTES = 2**21
config = DatasetConfig("raw", {"a": "{id}.png"}, near_duplicates="warn")
prepare("x", config, Path(sys.argv[1]), Console(file=io.StringIO()), int(sys.argv[2]))
print(peak_memory())
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, processes):
    def peak(n: int) -> int:
        for i in range(n):
            Image.fromarray(noise + np.uint16(i)).save(tmp_path / "raw" / f"{i}.png", compress_level=0)
        env = os.environ | {"PYTHONPATH": str(Path(project.__file__).parents[1])}
        command = [sys.executable, "-c", PEAK, f"out{n}", processes]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        return int(done.stdout)

    (tmp_path / "raw").mkdir()
    noise = np.random.default_rng(0).integers(0, 60000, (256, 256)).astype(np.uint16)
    few = peak(100)
    assert peak(400) < 1.1 * few  # 39 MB more of pixels
    assert few < 400e6
