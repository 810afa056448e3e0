"""Copies of images in two splits are refused, or left out of training."""

import csv

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from test_leakage import images

from project.data.config import SplitConfig, TableConfig
from project.data.leakage import Leaks, copies_to_drop, find_leaks
from project.data.preparation import plan

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
    folder.table("id,split", *(f"{i:02d},{s}" for i, s in enumerate(SPLITS)))
    return folder


def pairs(folder) -> list[list[str]]:
    with folder.pairs_file.open(newline="") as file:
        return list(csv.reader(file))[1:]


@pytest.mark.parametrize("near", ["refuse", "warn", "ignore"])
def test_copies_are_refused_always(scenes, near):
    scenes.put("in/07.tif", scenes.images["in/02.tif"])
    assert "02 (train), 07 (val)" in scenes.problem(near_duplicates=near, **OPTIONS)
    assert pairs(scenes) == [["copy", "02", "train", "07", "val"]]


@pytest.mark.parametrize(("split", "near"), [("test", "ignore"), ("fold", "warn")])
def test_unlabeled_copies_are_refused_always(scenes, near, split):
    folds = {"target": {}, "split": SplitConfig(folds=3, fractions={"test": 0.25})}
    options = (folds if split == "fold" else OPTIONS) | {"unlabelled": MORE, "near_duplicates": near}
    readers = scenes.prepare(**options)
    id_ = readers["train" if split == "fold" else split].ids[0]
    np.save(scenes.raw / "more/seen.npy", scenes.images[f"in/{id_}.tif"])
    message = scenes.problem(**options | {"unlabelled": {"a": "more/{id}.*"}})
    assert "seen (unlabeled)" in message
    assert f"{id_} (" in message


def test_near_duplicates_are_refused_or_reported(scenes):
    scenes.put("in/07.tif", scenes.images["in/02.tif"][::-1].copy())
    assert "02 (train) and 07 (val)" in scenes.problem(**OPTIONS)
    scenes.prepare(near_duplicates="warn", **OPTIONS)
    assert "02 (train) and 07 (val)" in scenes.output
    assert pairs(scenes) == [["near-duplicate", "02", "train", "07", "val"]]


def test_a_split_without_images_that_are_not_alike(scenes):
    for i in range(6, 9):
        scenes.put(f"in/{i:02d}.tif", scenes.images[f"in/{i + 3:02d}.tif"][::-1].copy())
    message = scenes.problem(near_duplicates="drop", **OPTIONS)
    assert "no sample is left for val" in message
    assert "For frames of one field set `split: {by: place}`" in message


def test_copies_are_left_out_of_all_splits_but_one(scenes, monkeypatch):
    monkeypatch.setattr(plan, "SHARD_BYTES", 3 * 64 * 64 * 2)
    before = scenes.prepare(unlabelled=MORE, **OPTIONS)
    assert not scenes.pairs_file.exists()
    np.save(scenes.raw / "in/02.npy", scenes.images["in/08.tif"])  # equal pixels
    (scenes.raw / "in/02.tif").unlink()
    scenes.put("in/03.tif", scenes.images["in/09.tif"][:, ::-1].copy())  # alike
    scenes.put("more/seen.tif", scenes.images["in/10.tif"][::-1].copy())
    options = OPTIONS | {"image": {"a": "in/{id}.*"}, "unlabelled": MORE, "near_duplicates": "drop"}
    readers = scenes.prepare(**options)
    assert readers["train"].ids == ["00", "01", "04", "05"]
    assert readers["unlabeled"].ids == ["new"]
    for split in ("val", "test"):
        assert readers[split].content_hash == before[split].content_hash
    for index, id_ in enumerate(readers["train"].ids):
        np.testing.assert_array_equal(readers["train"].read("image", index)[0], scenes.images[f"in/{id_}.tif"])
    skipped = dict(readers["train"].attributes["skipped"])
    assert {id_: text.split()[-2:] for id_, text in skipped.items()} == {
        "02": ["08", "(val)"], "03": ["09", "(test)"], "seen (unlabeled)": ["10", "(test)"]
    }  # fmt: skip
    assert readers["train"].attributes["statistics"]["n_samples"] == 4
    assert {tuple(row[1::2]) for row in pairs(scenes)} == {("02", "08"), ("03", "09"), ("seen", "10")}
    scenes.put("in/11.tif", scenes.images["in/06.tif"])
    assert "06" not in scenes.prepare(**options)["val"].ids


def test_which_copies_are_left_out():
    compared = images(
        ("train", 1, 1), ("train", 1, 1), ("val", 1, 1),  # a group of copies
        ("unlabeled", 2, 2), ("test", 2, 3),
        ("val", 3, 4), ("test", 3, 4), ("train", 3, 5),
        ("train", 4, 6),
    )  # fmt: skip
    reasons = {image.id: reason for image, reason in copies_to_drop(find_leaks(compared)).items()}
    assert set(reasons) == {"i0", "i1", "i3", "i5", "i7"}
    assert reasons["i0"] == "the same image as i2 (val)"
    assert reasons["i3"] == "looks like i4 (test)"


def test_one_of_two_folds_keeps_the_image():
    compared = images(("unlabeled", 1, 1), ("fold 0", 1, 1), ("fold 1", 1, 1), ("fold 0", 1, 1), ("fold 2", 1, 2))
    reasons = copies_to_drop(find_leaks(compared))
    assert {image.id for image in reasons} == {"i0", "i2", "i4"}
    assert find_leaks([image for image in compared if image not in reasons]) == Leaks([], [])
