"""Ids in series without a group give a warning; plain numbers do so only where neighbours are alike."""

from dataclasses import replace

import numpy as np
import pytest

from project.data.preparation.series import describe_order, describe_series, ungrouped_samples
from project.data.raw.samples import Sample


def samples(*ids: str) -> list[Sample]:
    return [Sample(id_, {}) for id_ in ids]


@pytest.mark.parametrize(
    "ids",
    [
        ["t001", "t002", "t003"],
        ["frame-1", "frame-2", "frame-3"],
        [f"tile_x{x}_y{y}" for x in (0, 256) for y in (0, 256, 512)],
        [f"r{row}c{column}" for row in range(2) for column in range(3)],
        [f"{y:04d}_{x:04d}" for y in (0, 512, 1024) for x in (0, 512, 1024)],
        [f"scan1_pos{i}_phase" for i in range(3)],
        [f"movie{movie}/{i:03d}" for movie in range(2) for i in range(3)],
        ["0001TP_006690", "0001TP_006720", "0001TP_006750", "0016E5_00390", "0016E5_00420", "0016E5_00450"],
    ],
)
def test_series(ids):
    assert f'"{sorted(ids)[0]}"' in describe_series(samples(*ids))


@pytest.mark.parametrize(
    "ids",
    [["001", "002", "003", "004"], ["img_1", "img_2", "img_3"], ["a", "b", "c"], ["s1", "p2", "t3"], ["t1", "t2"]],
)
def test_no_series(ids):
    assert not describe_series(samples(*ids))


def test_folders_of_classes_are_no_series():
    assert not describe_series([Sample(f"{kind}/{i}", {}, label=kind) for kind in ("cat", "dog") for i in range(4)])


def test_who_decides_which_samples_belong_together():
    parts = {"train": samples("t1", "t2"), "val": samples("t3")}
    assert [s.id for s in ungrouped_samples(parts)] == ["t1", "t2", "t3"]
    assert not ungrouped_samples({"train": samples("t1", "t2", "t3")})
    assert len(ungrouped_samples({"train": [replace(s, fold=i) for i, s in enumerate(samples("t1", "t2"))]})) == 2
    assert not ungrouped_samples({name: [replace(s, group="movie") for s in part] for name, part in parts.items()})
    assert not ungrouped_samples({name: [replace(s, split=name) for s in part] for name, part in parts.items()})


def test_numbers_whose_neighbours_are_alike():
    rng = np.random.default_rng(0)
    ids = samples(*(f"{i}" for i in range(24)))
    walk = np.cumsum(rng.normal(size=24))
    assert "alike without a group" in describe_order(ids, walk)
    assert sum(bool(describe_order(ids, rng.normal(size=24))) for _ in range(1000)) < 20
    assert not describe_order(ids, np.ones(24))
    assert not describe_order(ids[:5], walk[:5])


def test_make_data_warns(folder):
    for i in range(12):
        folder.put(f"t{i:02d}.tif")
    options = {"image": {"a": "{id}.tif"}, "target": {}}
    folder.prepare(**options)
    assert 'warning: ids run in series without a group, such as "t00", "t01", "t02"' in folder.output
    folder.prepare(**options | {"image": {"a": "{movie}{id}.tif"}}, group="{movie}-{id}")
    assert "series" not in folder.output
    for i in range(12):
        (folder.raw / f"t{i:02d}.tif").unlink()
        folder.put(f"{i}.tif", low=100 * i + 100, high=100 * i + 300)
    folder.prepare(**options)
    assert "warning: images with successive numbers are alike" in folder.output
