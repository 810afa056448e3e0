import albumentations as A
import numpy as np
import pytest
import torch

from project.data.augment import GeometricAugmentation
from project.data.dataset import SplitDataset
from project.data.samplers import EvaluationBatches, ShuffledSampler, random_bits, random_stream
from project.data.store import SplitReader
from project.errors import UserError

ROLES = ("image", "target", "mask", "instances")
SIZES = {"train": [(20, 24), (24, 20), (20, 24), (31, 17)], "val": [(20, 24), (24, 20), (20, 24)]}
RAGGED = {"n": {"train": 4, "val": 3}, "sizes": SIZES}


@pytest.mark.parametrize(
    "tiny_dataset",
    [
        {"roles": ROLES, "dtype": np.uint8, "low": 0, "high": 200, "target_offset": 20},
        {"roles": ROLES, "target_dtype": np.float32, "low": -1, "high": 3, "dtype": np.float32, "channels": 3},
        {"roles": ROLES, "compression": "blosc2"},
        {"roles": ROLES, **RAGGED},
    ],
    indirect=True,
)
def test_a_crop_is_a_slice_of_the_file_in_its_dtype(tiny_dataset):
    reader = SplitReader(tiny_dataset / "train.h5")
    dataset = SplitDataset(reader, ROLES, crop=16)
    batch = dataset.__getitems__([(2, i) for i in range(4)])
    assert set(batch) == {*ROLES, "index", "image_statistics"}
    for role in ROLES:
        assert batch[role].numpy().dtype == reader.dtypes[role]
        assert batch[role].shape[-2:] == (16, 16)
    for position, index in enumerate(batch["index"].tolist()):
        whole = {role: reader.read(role, index) for role in ROLES}
        crop = {role: batch[role][position].numpy() for role in ROLES}
        height, width = whole["image"].shape[-2:]
        positions = [
            (y, x)
            for y in range(height - 15)
            for x in range(width - 15)
            if all(np.array_equal(whole[role][..., y : y + 16, x : x + 16], crop[role]) for role in ROLES)
        ]
        assert len(positions) == 1, "all arrays must come from one position of this image"


def test_crops_reach_every_position_and_differ_between_samples_and_epochs(tmp_path, make_dataset):
    folder = make_dataset(shape=(20, 18), n={"train": 2})
    reader = SplitReader(folder / "train.h5")
    dataset = SplitDataset(reader, ("image",), crop=16, crops_per_image=10)
    place = {}
    for y in range(5):
        for x in range(3):
            for i in range(2):
                place[reader.read("image", i)[:, y : y + 16, x : x + 16].tobytes()] = (i, y, x)
    found = [
        [place[dataset[epoch, index]["image"].numpy().tobytes()] for index in range(len(dataset))]
        for epoch in range(15)
    ]
    assert {p for epoch in found for p in epoch} == set(place.values())
    assert len({tuple(epoch) for epoch in found}) == 15
    assert len(set(found[0])) > 10


def test_the_same_key_gives_the_same_sample_whatever_came_before(tiny_dataset):
    reader = SplitReader(tiny_dataset / "train.h5")
    first = SplitDataset(reader, ("image",), crop=16)[4, 7]["image"]
    np.random.seed(5)  # noqa: NPY002 - the global stream must not matter
    torch.manual_seed(5)
    other = SplitDataset(reader, ("image",), crop=16)
    batch = other.__getitems__([(0, 1), (4, 7)])["image"]
    assert torch.equal(batch[1:], first)
    assert not torch.equal(SplitDataset(reader, ("image",), crop=16, seed=1)[4, 7]["image"], first)


@pytest.mark.parametrize("tiny_dataset", [RAGGED], indirect=True)
def test_a_crop_too_large_names_the_images(tiny_dataset):
    with pytest.raises(UserError, match=r"data.crop is 18(?s:.*)train03") as error:
        SplitDataset(SplitReader(tiny_dataset / "train.h5"), ("image",), crop=18)
    assert "train00" not in str(error.value)
    with pytest.raises(UserError, match=r"data\.crop is 0"):
        SplitDataset(SplitReader(tiny_dataset / "train.h5"), ("image",), crop=0)


@pytest.mark.parametrize("tiny_dataset", [{"labels": True}], indirect=True)
def test_crops_per_image_keep_index_and_label(tiny_dataset):
    reader = SplitReader(tiny_dataset / "train.h5")
    dataset = SplitDataset(reader, ("image",), crop=16, crops_per_image=3)
    assert len(dataset) == 36
    batch = dataset.__getitems__([(0, i) for i in (0, 2, 3, 35)])
    assert batch["index"].tolist() == [0, 0, 1, 11]
    assert batch["label"].tolist() == [0, 0, 1, 1]
    assert batch["label"].dtype == torch.int64
    for crop, index in zip(batch["image"].numpy(), batch["index"].tolist(), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(reader.read("image", index)[0], (16, 16))
        assert (windows == crop[0]).all((2, 3)).any()


def order(length, epoch, **options):
    sampler = ShuffledSampler(length, **options)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert {e for e, _ in keys} <= {epoch}
    assert len(keys) == len(sampler)
    return [index for _, index in keys]


def test_each_sample_comes_once_in_each_epoch_in_another_order():
    orders = [order(30, epoch) for epoch in range(5)]
    assert all(sorted(o) == list(range(30)) for o in orders)
    assert len({tuple(o) for o in orders}) == 5
    assert order(30, 3) == orders[3]
    assert order(30, 3, seed=1) != orders[3]


def test_ranks_share_the_samples_in_equal_numbers():
    left_out = []
    for epoch in range(20):
        ranks = [order(11, epoch, rank=rank, world_size=3) for rank in range(3)]
        assert [len(rank) for rank in ranks] == [3, 3, 3]
        seen = [index for rank in ranks for index in rank]
        assert len(set(seen)) == 9
        left_out.append(frozenset(range(11)) - set(seen))
    assert len(set(left_out)) > 10, "other samples are left over in each epoch"


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (1, 4), (2, 4), (3, 2)])
def test_evaluation_sees_every_sample_once_in_batches_of_one_shape(world_size, batch_size):
    shapes = [(1, 20 + 4 * (i % 3 == 0), 24 + 2 * (i % 2)) for i in range(17)]
    seen = []
    for rank in range(world_size):
        batches = EvaluationBatches(shapes, batch_size, rank, world_size)
        assert len(list(batches)) == len(batches)
        for batch in batches:
            assert len(batch) <= batch_size
            assert len({shapes[index] for _, index in batch}) == 1
            assert {epoch for epoch, _ in batch} == {0}
            seen += [index for _, index in batch]
    assert sorted(seen) == list(range(17))


def test_random_bits_are_those_of_splitmix64():
    """The first numbers for the seed 1234567, as the reference implementation gives them."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [random_bits(1234567, step) for step in (1, 2, 3, 4)] == expected
    assert len({random_stream(seed, epoch) for seed in (0, 1, 2, 2**32 - 1) for epoch in range(100)}) == 400


def test_a_transform_that_resizes_images_by_chance_is_refused(tiny_dataset):
    scaled = GeometricAugmentation([A.RandomScale(p=1)])
    dataset = SplitDataset(SplitReader(tiny_dataset / "train.h5"), ("image",), augmentation=scaled)
    with pytest.raises(UserError, match="cannot share a batch"):
        dataset.__getitems__([(0, index) for index in range(4)])
