"""Geometric augmentation of batches, against albumentations where both do the same."""

import itertools

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from torch import nn

from project.errors import UserError
from project.tasks.translation import TranslationTask
from project.transforms.device import DeviceGeometry, turned

H, W = 70, 90
REFLECT = {"border_mode": cv2.BORDER_REFLECT_101, "p": 1}
TURNS = torch.tensor(list(itertools.product((0, 1), repeat=3)))


def smooth(height=H, width=W):
    """(H, W) float32 that interpolates well, without any symmetry."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return 1000 + 300 * np.sin(x / 9) + 200 * np.cos(y / 7) + 3 * x


def coordinates(n, height, width):
    """(N, 2, H, W) float32: every pixel holds its own x and y."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).float().expand(n, -1, -1, -1).contiguous()


def board(height=H, width=W):
    """(H, W) uint8 of the classes 0, 3 and 255 in squares."""
    y, x = np.mgrid[:height, :width]
    return np.array([0, 3, 255], np.uint8)[(x // 10 + y // 10) % 3]


def in_numpy(array, turn):
    transpose, rows, columns = turn
    array = array.swapaxes(-1, -2) if transpose else array
    return array[..., :: -1 if rows else 1, :: -1 if columns else 1]


# Symmetries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("shape", [(8, 2, 12, 12), (8, 12, 12)])
def test_turns_are_those_of_numpy(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2**16, shape).astype(dtype)
    expected = np.stack([in_numpy(sample, turn) for sample, turn in zip(array, TURNS.tolist(), strict=True)])
    moved = turned(torch.from_numpy(array), TURNS)
    assert moved.numpy().dtype == dtype
    np.testing.assert_array_equal(moved.numpy(), expected)


def test_symmetries_move_everything_alike_and_change_nothing():
    torch.manual_seed(0)
    n = 400
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
    moved = DeviceGeometry()(batch)
    new = moved["image"].int()
    assert {role: array.dtype for role, array in moved.items()} == {role: a.dtype for role, a in before.items()}
    assert torch.equal(moved["target"], torch.cat([new.float() * 2, new.float() - 7], 1))
    assert torch.equal(moved["mask"], (new[:, 0] % 251).to(torch.uint8))
    assert torch.equal(moved["instances"], new[:, 0] + 2**24)
    assert torch.equal(moved["label"], before["label"])
    assert torch.equal(moved["index"], before["index"])
    assert all(torch.equal(batch[role], before[role]) for role in batch), "what was given is not changed"
    # Each of the eight symmetries comes as often as any other: 50 +- 6.6 times.
    counts = [
        sum(np.array_equal(a, in_numpy(b, turn)) for a, b in zip(new[:, 0].numpy(), image[:, 0].numpy(), strict=True))
        for turn in TURNS.tolist()
    ]
    assert sum(counts) == n
    assert min(counts) > 25
    assert max(counts) < 80


def test_quarter_turns_of_images_that_are_not_square_are_refused():
    with pytest.raises(UserError, match=r"5 x 8 pixels have no quarter turns.*flips"):
        DeviceGeometry()({"image": torch.rand(2, 1, 5, 8)})


# Against albumentations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fixed",
    [
        {"rotate": (25, 25)},
        {"scale": (0.8, 0.8)},
        {"translate": (0.1, 0.1)},
        {"translate": (-0.6, -0.6)},
        {"rotate": (-33, -33), "scale": (1.2, 1.2), "translate": (0.2, 0.2)},
    ],
)
def test_an_affine_map_is_that_of_albumentations(fixed):
    image, mask = smooth(), board()
    theirs = {"translate_percent" if name == "translate" else name: value for name, value in fixed.items()}
    expected = A.Affine(**theirs, **REFLECT)(image=image, mask=mask)
    moved = DeviceGeometry("none", **fixed)(
        {"image": torch.tensor(image)[None, None], "mask": torch.tensor(mask)[None]}
    )
    # Versions of OpenCV interpolate between 32 places from pixel to pixel; the gradient is 60 per pixel at most.
    np.testing.assert_allclose(moved["image"][0, 0].numpy(), expected["image"], atol=2)
    assert (moved["mask"][0].numpy() == expected["mask"]).mean() > 0.98  # where two pixels are as near, either will do


def test_a_symmetry_comes_before_the_affine_map():
    image = torch.tensor(smooth(64, 64)).expand(16, 1, -1, -1)
    fixed = {"rotate": (20, 20), "translate": (0.1, 0.1)}
    torch.manual_seed(0)
    moved = DeviceGeometry("d4", **fixed)({"image": image})["image"]
    torch.manual_seed(0)
    expected = DeviceGeometry("none", **fixed)(DeviceGeometry("d4")({"image": image}))["image"]
    torch.testing.assert_close(moved, expected, atol=0.01, rtol=0)
    assert len({sample.numpy().round().tobytes() for sample in moved}) > 4


# Everything together --------------------------------------------------------------------------------------------------

ALL = {"rotate": (-40, 40), "scale": (0.8, 1.2), "translate": (-0.1, 0.1)}


def test_the_border_is_mirrored_without_repeating_the_edge():
    image = torch.arange(48.0).view(1, 1, 6, 8)
    moved = DeviceGeometry("none", translate=(0.5, 0.5))({"image": image})["image"][0, 0].numpy()
    expected = np.pad(image[0, 0].numpy(), ((3, 0), (4, 0)), mode="reflect")[:6, :8]
    np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_image_target_and_mask_stay_aligned():
    torch.manual_seed(0)
    n, size = 8, 64
    image = coordinates(n, size, size)
    mask = torch.from_numpy(board(size, size)).expand(n, -1, -1)
    moved = DeviceGeometry(**ALL)({"image": image, "target": 3 * image[:, :1] - 7, "mask": mask})
    torch.testing.assert_close(moved["target"], 3 * moved["image"][:, :1] - 7, atol=1e-2, rtol=0)
    x, y = moved["image"].unbind(1)
    # Where a pixel comes from can be read from it; at the border between two pixels either may be the nearest, and in
    # the mirrored outermost pixel coordinates do not show.
    away = ((x % 1 - 0.5).abs() > 0.01) & ((y % 1 - 0.5).abs() > 0.01)
    away &= (x > 1) & (y > 1) & (x < size - 2) & (y < size - 2)
    assert away.float().mean() > 0.7
    expected = mask[0][y.round().long(), x.round().long()]
    assert torch.equal(moved["mask"][away], expected[away])
    assert not torch.equal(moved["mask"], mask)


def test_masks_get_no_new_values_and_keep_their_dtype():
    torch.manual_seed(0)
    numbers = torch.tensor([0, 2**24 + 1, 2**31 - 1])
    instances = numbers[torch.randint(3, (4, 32, 32))].int()
    small = torch.tensor([0, 7, 65535])[torch.randint(3, (4, 32, 32))].to(torch.uint16)
    mask = torch.tensor([0, 3, 255])[torch.randint(3, (4, 32, 32))].to(torch.uint8)
    batch = {"image": torch.rand(4, 1, 32, 32), "mask": mask, "instances": instances}
    moved = DeviceGeometry(**ALL)(batch)
    assert moved["mask"].dtype == torch.uint8
    assert moved["instances"].dtype == torch.int32
    assert moved["mask"].unique().tolist() == [0, 3, 255]
    assert moved["instances"].unique().tolist() == numbers.tolist()
    moved = DeviceGeometry(**ALL)({**batch, "instances": small})["instances"]
    assert moved.dtype == torch.uint16
    assert moved.int().unique().tolist() == [0, 7, 65535]


def test_draws_follow_the_seed_and_differ_between_samples():
    geometry, batch = DeviceGeometry(**ALL), {"image": coordinates(6, 32, 32)}
    torch.manual_seed(1)
    first, second = geometry(batch)["image"], geometry(batch)["image"]
    assert len({sample.numpy().tobytes() for sample in (*first, *second)}) == 12
    torch.manual_seed(1)
    assert torch.equal(geometry(batch)["image"], first)


@pytest.mark.parametrize(("options", "message"), [({"rotate": (10, -10)}, "lower end"), ({"scale": (0, 1)}, "above 0")])
def test_what_has_no_meaning_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        DeviceGeometry(**options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"rotate": (-40, 40), "scale": (0.8, 1.2)}])
def test_a_gpu_does_the_same(options):
    raw = torch.from_numpy(smooth(64, 64)).expand(8, 2, -1, -1).to(torch.uint16)
    batch = {"image": raw, "mask": torch.from_numpy(board(64, 64)).expand(8, -1, -1)}
    torch.manual_seed(1)
    expected = DeviceGeometry(**options)(batch)
    torch.manual_seed(1)
    moved = DeviceGeometry(**options)({role: array.cuda() for role, array in batch.items()})
    torch.testing.assert_close(
        moved["image"].cpu().float(), expected["image"].float(), atol=0.01 * bool(options), rtol=0
    )
    assert (moved["mask"].cpu() == expected["mask"]).float().mean() > (0.999 if options else 0.9999)


# In a task ------------------------------------------------------------------------------------------------------------


def test_training_is_augmented_and_validation_is_not():
    channel = {"n": 1, "min": 0, "max": 1, "mean": 0, "std": 1, "percentiles": {"0.1": 0, "1": 0, "99": 1, "99.9": 1}}
    statistics = dict.fromkeys(("image", "target"), [channel] * 2)
    task = TranslationTask(nn.Identity(), statistics=statistics, device_augmentation=DeviceGeometry(**ALL))
    image = coordinates(4, 32, 32)
    batch = {"image": image, "target": image, "index": torch.arange(4)}
    first, second = (task.train().forward_batch(batch) for _ in range(2))
    assert torch.equal(first[0], first[1])  # the target is moved alike
    assert not torch.equal(first[0], image)
    assert not torch.equal(first[0], second[0])
    assert torch.equal(task.eval().forward_batch(batch)[0], image)
