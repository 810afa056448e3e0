"""Copies of images in two places: refused before anything is decoded, or left out of training."""

import csv

import numpy as np
import pytest
from rich.console import Console
from scipy.ndimage import gaussian_filter

from project.data.config import SplitConfig, TableConfig
from project.data.preparation import plan
from project.data.preparation import shards as module
from project.data.preparation.prepare import prepare
from project.data.store import SplitReader

SPLITS = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
MORE = {"a": "more/{id}.tif"}
OPTIONS = {"target": {}, "table": TableConfig("t.csv", split="split")}


def scene(seed: int) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).random((64, 64)), 4)
    return (1000 + 50000 * (field - field.min())).astype(np.uint16)


@pytest.fixture
def scenes(folder):
    for i in range(12):
        folder.put(f"in/{i:02d}.tif", scene(i))
    folder.put("more/new.tif", scene(50))
    (folder.raw / "t.csv").write_text("id,split\n" + "".join(f"{i:02d},{s}\n" for i, s in enumerate(SPLITS)))
    return folder


def pairs(folder) -> list[list[str]]:
    with folder.pairs_file.open(newline="") as file:
        return list(csv.reader(file))[1:]


def prepared(folder, **options) -> dict[str, SplitReader]:
    """As `folder.prepare`, for data in several shards."""
    final = prepare("d", folder.config(**options), folder.processed, Console(quiet=True))
    return {path.stem: SplitReader(path) for path in final.glob("*.h5")}


def nothing_is_read(*_):
    raise AssertionError("an image is read")


@pytest.mark.parametrize("near", ["refuse", "warn", "ignore"])
def test_copies_of_files_are_refused_before_any_is_prepared(scenes, monkeypatch, near):
    scenes.put("in/07.tif", scenes.images["in/02.tif"])
    monkeypatch.setattr(module, "read_sample", nothing_is_read)
    message = scenes.problem(near_duplicates=near, **OPTIONS)
    assert "02 (train), 07 (val)" in message
    assert pairs(scenes) == [["copy", "02", "train", "07", "val"]]


@pytest.mark.parametrize("near", ["refuse", "warn", "ignore"])
@pytest.mark.parametrize("same_file", [True, False])
@pytest.mark.parametrize("split", ["val", "test", "fold"])
def test_unlabelled_copies_are_refused_whatever_near_duplicates_says(scenes, near, same_file, split):
    folds = {"target": {}, "split": SplitConfig(folds=3, fractions={"test": 0.25})}
    options = (folds if split == "fold" else OPTIONS) | {"unlabelled": MORE, "near_duplicates": near}
    readers = scenes.prepare(**options)
    id_ = readers["train" if split == "fold" else split].ids[0]
    pixels = scenes.images[f"in/{id_}.tif"]
    if same_file:
        scenes.put("more/seen.tif", pixels)
    else:
        np.save(scenes.raw / "more/seen.npy", pixels)
        options["unlabelled"] = {"a": "more/{id}.*"}
    message = scenes.problem(**options)
    assert "seen (unlabelled)" in message
    assert f"{id_} (" in message


def test_training_copies_are_left_out(scenes, monkeypatch):
    monkeypatch.setattr(plan, "SHARD_BYTES", 3 * 64 * 64 * 2)
    before = prepared(scenes, unlabelled=MORE, **OPTIONS)
    assert not scenes.pairs_file.exists()
    scenes.put("in/01.tif", scenes.images["in/07.tif"])  # equal files
    np.save(scenes.raw / "in/02.npy", scenes.images["in/08.tif"])  # equal pixels
    (scenes.raw / "in/02.tif").unlink()
    scenes.put("in/03.tif", scenes.images["in/09.tif"][:, ::-1].copy())  # alike
    scenes.put("more/seen.tif", scenes.images["in/10.tif"][::-1].copy())
    options = OPTIONS | {"image": {"a": "in/{id}.*"}, "unlabelled": MORE, "near_duplicates": "drop"}
    readers = prepared(scenes, **options)
    assert readers["train"].ids == ["00", "04", "05"]
    assert readers["unlabeled"].ids == ["new"]
    for split in ("val", "test"):
        assert readers[split].content_hash == before[split].content_hash
    for index, id_ in enumerate(readers["train"].ids):
        np.testing.assert_array_equal(readers["train"].read("image", index)[0], scenes.images[f"in/{id_}.tif"])
    skipped = dict(readers["train"].attributes["skipped"])
    assert {id_: text.split()[-2:] for id_, text in skipped.items()} == {
        "01": ["07", "(val)"], "02": ["08", "(val)"], "03": ["09", "(test)"],
        "seen (unlabelled)": ["10", "(test)"],
    }  # fmt: skip
    assert readers["train"].attributes["statistics"]["n_samples"] == 3
    assert {tuple(row[1::2]) for row in pairs(scenes)} == {("01", "07"), ("02", "08"), ("03", "09"), ("seen", "10")}
    again = prepared(scenes, **options)
    assert again["train"].content_hash == readers["train"].content_hash
    scenes.put("in/11.tif", scenes.images["in/06.tif"])
    assert "06 (val), 11 (test)" in scenes.problem(**options)


def test_nothing_is_left_to_train_on(scenes):
    for i in range(6):
        scenes.put(f"in/{i:02d}.tif", scenes.images["in/07.tif"])
    assert "no sample is left for train" in scenes.problem(near_duplicates="drop", **OPTIONS)


def test_equal_files_that_are_read_in_different_ways_are_no_copies(scenes):
    for name in ("in/02.tif", "in/07.tif"):
        scenes.put(name, np.stack([scene(60), scene(61)]))
    rest = [i for i in range(12) if i not in (2, 7)]
    for i in rest:
        scenes.put(f"in/{i:02d}.tif", np.stack([scene(i), scene(70 + i)]))
    pages = {**OPTIONS, "pages": "samples", "table": None, "group": "{id}", "split": SplitConfig(seed=0)}
    message = scenes.problem(**pages)
    assert "02/page0000" in message
    assert "02/page0001" in message
    assert message.count("\n  - ") == 2
