"""A share of the labels: by group, of every class, the same for every experiment."""

import numpy as np
import pytest

from project.data.datamodule import ImageDataModule
from project.data.few_labels import labeled_subset
from project.data.split_writer import write_split
from project.data.store import SplitReader
from project.errors import UserError

ROLES = ("image", "mask")
LABELS = np.array([0] * 24 + [1] * 12 + [2] * 4)
GROUPS = [f"plate {i // 2}" for i in range(40)]


@pytest.fixture
def plates(tmp_path):
    """40 images of three classes, two on each plate, every value telling which image it is."""
    images = np.tile(np.arange(40, dtype=np.uint16)[:, None, None, None], (1, 8, 8))
    attributes = {"channels": {"image": ["a"], "target": ["b"]}, "classes": {"label": ["x", "y", "z"]}, "split": {}}
    arrays, ids = {"image": images, "target": images + 1}, [f"image {i}" for i in range(40)]
    write_split(tmp_path / "train.h5", arrays, ids, GROUPS, LABELS, **attributes)
    return SplitReader(tmp_path / "train.h5")


def test_whole_groups_of_every_class_are_taken(plates):
    part = labeled_subset(plates, 0.25, seed=3)
    assert np.bincount(part.labels).tolist() == [6, 4, 2]  # 3 of 12 plates, 2 of 6 (a half is rounded up), 1 of 2
    assert sorted(part.groups) == sorted([*set(part.groups)] * 2)
    for index in range(len(part)):
        assert f"image {part.read('image', index)[0, 0, 0]}" == part.ids[index]
    assert np.bincount(labeled_subset(plates, 0.001, seed=0).labels).tolist() == [2, 2, 2]
    assert labeled_subset(plates, 1.0, seed=0) is plates
    for fraction in (0.0, 1.5):
        with pytest.raises(UserError, match="share above 0"):
            labeled_subset(plates, fraction, 0)


def test_the_choice_follows_from_the_seed_and_shares_are_nested(plates):
    chosen = {(f, seed): labeled_subset(plates, f, seed).ids for f in (0.1, 0.25, 0.5) for seed in range(6)}
    assert chosen[0.25, 0] == labeled_subset(SplitReader(plates.path), 0.25, 0).ids
    for seed in range(6):
        assert set(chosen[0.1, seed]) < set(chosen[0.25, seed]) < set(chosen[0.5, seed])
    assert len({tuple(chosen[0.25, seed]) for seed in range(6)}) > 3


def test_statistics_of_labels_and_targets_are_those_of_the_part(plates):
    part = labeled_subset(plates, 0.25, seed=3)
    whole, own = plates.attributes["statistics"], part.attributes["statistics"]
    assert own["image"] == whole["image"]
    assert own["label"] == {"x": 6, "y": 4, "z": 2}
    assert own["n_samples"] == len(part)
    targets = np.stack([part.read("target", i) for i in range(len(part))])
    assert own["target"][0]["mean"] == targets.mean() != whole["target"][0]["mean"]
    assert part.content_hash != plates.content_hash


def data(folder, roles=ROLES, **options):
    module = ImageDataModule(folder.name, str(folder.parent), batch_size=4, num_workers=0, **options)
    module.roles = roles
    module.setup("fit")
    return module


def test_an_epoch_is_as_long_as_with_all_labels(make_dataset):
    folder = make_dataset(roles=ROLES)
    few, every = data(folder, labelled_fraction=0.25, crops_per_image=2), data(folder, crops_per_image=2)
    assert (len(few.datasets["train"].reader), len(every.datasets["train"].reader)) == (3, 12)
    assert len(few.datasets["train"]) == len(every.datasets["train"]) == 24
    assert len(few.datasets["val"]) == 5
    assert {int(i) for batch in few.train_dataloader() for i in batch["index"]} == {0, 1, 2}


def test_balanced_sampling_counts_the_crops_that_there_are(make_dataset):
    folder = make_dataset(roles=("image",), n_labels=2)
    batches = list(data(folder, ("image", "label"), labelled_fraction=0.5, balanced=True).train_dataloader())
    assert np.bincount(np.concatenate([batch["label"] for batch in batches])).tolist() == [6, 6]


def test_tasks_without_labels_take_all_images(make_dataset):
    module = data(make_dataset(roles=ROLES), ("image",), labelled_fraction=0.25)
    assert len(module.datasets["train"]) == len(module.reader("train")) == 12


def unlabelled(folder, write, **options):
    write(folder.parent / "more", roles=("image",), n={"train": 7}, seed=9, **options)
    (folder.parent / "more/train.h5").rename(folder / "unlabeled.h5")


def test_images_without_labels_are_read_by_tasks_without_labels_only(make_dataset, write_tiny):
    folder = make_dataset(roles=ROLES)
    unlabelled(folder, write_tiny)
    assert len(data(folder, ("image",)).datasets["train"]) == 7
    assert data(folder, ("image",)).statistics == data(folder).statistics
    supervised = data(folder)
    assert len(supervised.datasets["train"]) == 12
    assert "unlabeled" not in supervised.readers
