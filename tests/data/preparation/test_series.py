"""Ids in series without a group give a warning."""

from dataclasses import replace

import pytest

from project.data.preparation.series import describe_series, ungrouped_samples
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


def test_make_data_warns(folder):
    for i in range(12):
        folder.put(f"t{i:02d}.tif")
    options = {"image": {"a": "{id}.tif"}, "target": {}}
    folder.prepare(**options)
    assert 'warning: ids run in series without a group, such as "t00", "t01", "t02"' in folder.output
    folder.prepare(**options | {"image": {"a": "{movie}{id}.tif"}}, group="{movie}-{id}")
    assert "series" not in folder.output
