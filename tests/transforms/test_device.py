"""Symmetries of batches, against NumPy."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from project.errors import UserError
from project.tasks.translation import TranslationTask
from project.transforms.device import DeviceGeometry, turned

TURNS = torch.tensor(list(itertools.product((0, 1), repeat=3)))


def in_numpy(array, turn):
    transpose, rows, columns = turn
    array = array.swapaxes(-1, -2) if transpose else array
    return array[..., :: -1 if rows else 1, :: -1 if columns else 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("shape", [(8, 2, 12, 12), (8, 12, 12)])
def test_turns_are_those_of_numpy(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2**16, shape).astype(dtype)
    expected = np.stack([in_numpy(sample, turn) for sample, turn in zip(array, TURNS.tolist(), strict=True)])
    moved = turned(torch.from_numpy(array), TURNS)
    assert moved.numpy().dtype == dtype
    np.testing.assert_array_equal(moved.numpy(), expected)


@pytest.mark.parametrize(("symmetry", "n_turns"), [("d4", 8), ("flips", 4)])
def test_symmetries_move_everything_alike_and_change_nothing(symmetry, n_turns):
    torch.manual_seed(0)
    n = 50 * n_turns
    image = torch.arange(n * 36).view(n, 1, 6, 6).to(torch.uint16)
    batch = {
        "image": image,
        "target": torch.cat([image.float() * 2, image.float() - 7], 1),
        "mask": (image[:, 0].int() % 251).to(torch.uint8),
        "instances": image[:, 0].int() + 2**24,
        "label": torch.arange(n),
        "index": torch.arange(n),
    }
    before = {role: array.clone() for role, array in batch.items()}
    moved = DeviceGeometry(symmetry)(batch)
    new = moved["image"].int()
    assert {role: array.dtype for role, array in moved.items()} == {role: a.dtype for role, a in before.items()}
    assert torch.equal(moved["target"], torch.cat([new.float() * 2, new.float() - 7], 1))
    assert torch.equal(moved["mask"], (new[:, 0] % 251).to(torch.uint8))
    assert torch.equal(moved["instances"], new[:, 0] + 2**24)
    assert torch.equal(moved["label"], before["label"])
    assert torch.equal(moved["index"], before["index"])
    assert all(torch.equal(batch[role], before[role]) for role in batch), "what was given is not changed"
    # Each of the symmetries comes as often as any other: 50 +- 6.6 times.
    counts = [
        sum(np.array_equal(a, in_numpy(b, turn)) for a, b in zip(new[:, 0].numpy(), image[:, 0].numpy(), strict=True))
        for turn in TURNS.tolist()[:n_turns]
    ]
    assert sum(counts) == n
    assert min(counts) > 25
    assert max(counts) < 80


def test_quarter_turns_of_images_that_are_not_square_are_refused():
    with pytest.raises(UserError, match=r"5 x 8 pixels have no quarter turns.*flips"):
        DeviceGeometry()({"image": torch.rand(2, 1, 5, 8)})
    assert DeviceGeometry("flips")({"image": torch.rand(2, 1, 5, 8)})["image"].shape == (2, 1, 5, 8)


def test_draws_follow_the_seed_and_differ_from_step_to_step():
    batch = {"image": torch.rand(16, 1, 8, 8)}
    torch.manual_seed(1)
    first, second = (DeviceGeometry()(batch)["image"] for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(DeviceGeometry()(batch)["image"], first)
    assert not torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_does_the_same():
    batch = {
        "image": (1000 * torch.rand(8, 2, 64, 64)).to(torch.uint16),
        "mask": torch.arange(8 * 64**2).view(8, 64, 64),
    }
    torch.manual_seed(1)
    expected = DeviceGeometry()(batch)
    torch.manual_seed(1)
    moved = DeviceGeometry()({role: array.cuda() for role, array in batch.items()})
    assert all(torch.equal(moved[role].cpu(), array) for role, array in expected.items())


def test_training_is_augmented_and_validation_is_not():
    channel = {"n": 1, "min": 0, "max": 1, "mean": 0, "std": 1, "percentiles": {"0.1": 0, "1": 0, "99": 1, "99.9": 1}}
    statistics = {"image": [channel], "target": [channel]}
    task = TranslationTask(nn.Identity(), statistics=statistics, device_augmentation=DeviceGeometry())
    image = torch.rand(16, 1, 32, 32)
    batch = {"image": image, "target": image, "index": torch.arange(16)}
    first, second = (task.train().forward_batch(batch) for _ in range(2))
    assert torch.equal(first[0], first[1])  # the target is moved alike
    assert not torch.equal(first[0], image)
    assert not torch.equal(first[0], second[0])
    assert torch.equal(task.eval().forward_batch(batch)[0], image)
