"""Balanced sampling of classes, and crops on the foreground."""

from collections import Counter

import numpy as np
import pytest

from project.data.datamodule import ImageDataModule
from project.data.dataset import SplitDataset
from project.data.samplers import ShuffledSampler
from project.data.split_writer import write_split
from project.data.store import SplitReader
from project.errors import UserError

LABELS = np.array([0] * 70 + [1] * 25 + [2] * 5)


def indices_of(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return [index for _, index in sampler]


def test_balanced_sampling_gives_every_class_equally_often():
    sampler = ShuffledSampler(100, seed=3, labels=LABELS)
    orders = [indices_of(sampler, epoch) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    for order in orders:
        assert len(order) == len(sampler) == 100
        assert sorted(Counter(LABELS[order].tolist()).values()) == [33, 33, 34]
        times = [Counter(i for i in order if LABELS[i] == label) for label in range(3)]
        assert max(times[0].values()) == 1
        assert set(times[2]) == set(range(95, 100))
        assert max(times[2].values()) - min(times[2].values()) <= 1
        assert len(set(LABELS[order[:20]].tolist())) == 3
    ranks = [indices_of(ShuffledSampler(100, rank=rank, world_size=3, labels=LABELS)) for rank in range(3)]
    assert [len(rank) for rank in ranks] == [33, 33, 33]
    assert min(Counter(LABELS[np.concatenate(ranks)].tolist()).values()) >= 32


@pytest.fixture
def sparse(tmp_path):
    """Four images of 100 x 120: the first without foreground, the others with an object of 2 classes."""
    masks = np.zeros((4, 100, 120), np.uint8)
    for mask, (y, x) in zip(masks[1:], [(30, 40), (0, 0), (97, 116)], strict=True):
        mask[y : y + 3, x : x + 3] = 1
        mask[y + 2, x + 3] = 2
    arrays = {"image": np.zeros((4, 1, 100, 120), np.uint16), "mask": masks}
    attributes = {"classes": {"mask": ["soil", "root", "stone"]}, "background": "soil"}
    write_split(tmp_path / "train.h5", arrays, "0123", "0123", **attributes)
    return SplitReader(tmp_path / "train.h5")


def crops(reader, share, n=400):
    dataset = SplitDataset(reader, ("image", "mask"), crop=16, crops_per_image=n, seed=1, foreground=share)
    batch = dataset.__getitems__([(0, index) for index in range(len(dataset))])
    return batch["mask"].numpy(), batch["index"].numpy()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_share_of_crops_with_foreground(sparse, share):
    masks, index = crops(sparse, share)
    inner = index == 1  # its object lies far from the border
    by_chance = 20 * 19 / (85 * 105)  # windows of 16 that touch the object of 4 x 3, among all
    expected = share + (1 - share) * by_chance
    found = (masks[inner] > 0).any((1, 2)).mean()
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / inner.sum()) + 0.012)


def test_foreground_crops_stay_inside_at_the_border_and_do_without_foreground(sparse):
    masks, index = crops(sparse, 1.0)
    for image in (2, 3):
        assert (masks[index == image] > 0).any((1, 2)).all()
    assert not masks[index == 0].any()


@pytest.mark.parametrize(
    ("background", "shares"), [("soil", [0, 0.5, 0.5]), ("stone", [0.5, 0.5, 0]), (None, [1 / 3] * 3)]
)
def test_foreground_crops_are_centered_on_each_class_alike(sparse, background, shares):
    """Class 2 has a tenth of the pixels of class 1."""
    sparse.attributes["background"] = background
    masks, index = crops(sparse, 1.0)
    centers = masks[index == 1][:, 8, 8]
    assert [(centers == value).mean() for value in range(3)] == pytest.approx(shares, abs=0.1)


@pytest.mark.parametrize(("crop", "share"), [(None, 0.5), (16, 1.5), (16, -0.1)])
def test_impossible_foreground_crops_are_refused(sparse, crop, share):
    with pytest.raises(UserError, match="foreground_crops"):
        SplitDataset(sparse, ("image",), crop=crop, foreground=share)


def test_balancing_needs_labels(tiny_dataset):
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent), batch_size=6, balanced=True, crop=16)
    data.setup("fit")
    with pytest.raises(UserError, match="one label per image"):
        data.check_training()
