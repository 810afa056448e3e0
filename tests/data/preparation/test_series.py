"""Ids in series without a group give a warning."""

from dataclasses import replace

import pytest

from project.data.config import SplitConfig
from project.data.preparation.plan import describe_series
from project.data.raw.samples import Sample


def samples(*ids: str) -> list[Sample]:
    return [Sample(id_, {}) for id_ in ids]


def describe(samples: list[Sample]) -> str:
    """The warning where these samples are divided."""
    return describe_series({"train": samples[1:], "val": samples[:1]})


@pytest.mark.parametrize(
    "ids",
    [
        ["frame-1", "frame-2", "frame-3"],
        [f"r{row}c{column}" for row in range(2) for column in range(3)],
        [f"{y:04d}_{x:04d}" for y in (0, 512, 1024) for x in (0, 512, 1024)],
        [f"scan1_pos{i}_phase" for i in range(3)],
        [f"movie{movie}/{i:03d}" for movie in range(2) for i in range(3)],
    ],
)
def test_series(ids):
    assert f'"{sorted(ids)[0]}"' in describe(samples(*ids))


@pytest.mark.parametrize(
    "ids", [["001", "002", "003", "004"], ["img_1", "img_2", "img_3"], ["s1", "p2", "t3"], ["t1", "t2"]]
)
def test_no_series(ids):
    assert not describe(samples(*ids))


def test_folders_of_classes_are_no_series():
    assert not describe([Sample(f"{kind}/{i}", {}, label=kind) for kind in ("cat", "dog") for i in range(4)])


def test_groups_and_given_splits_say_which_samples_belong_together():
    frames = samples("t1", "t2", "t3")
    assert describe(frames)
    assert describe_series({"train": [replace(s, fold=i) for i, s in enumerate(frames)]})
    assert not describe_series({"train": frames})
    assert not describe([replace(s, group="movie") for s in frames])
    assert not describe([replace(s, split="val") for s in frames])


def test_make_data_warns(folder):
    for i in range(12):
        folder.put(f"t{i:02d}.tif")
    options = {"image": {"a": "{id}.tif"}, "target": {}}
    folder.prepare(**options)
    assert 'warning: ids run in series without a group, such as "t00", "t01", "t02"' in folder.output
    folder.prepare(**options | {"image": {"a": "{movie}{id}.tif"}}, group="{movie}-{id}")
    assert "series" not in folder.output
    folder.prepare(**options, split=SplitConfig(by="place", fractions={"train": 0.5, "val": 0.5}))
    assert "series" not in folder.output
    assert "note: the 12 images without a group are frames of one field" in folder.output
