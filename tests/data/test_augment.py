import os
import subprocess
import sys

import albumentations as A
import cv2
import numpy as np
import pytest

from project.data.augment import GeometricAugmentation
from project.errors import UserError

H, W = 24, 18
REFLECT = cv2.BORDER_REFLECT_101
AFFINE = {"rotate": (-40, 40), "scale": (0.8, 1.2), "border_mode": REFLECT, "p": 1}


def seed(*numbers):
    return np.random.SeedSequence(numbers)


def places(dtype=np.uint16):
    """(1, H, W): every pixel holds its own number."""
    return np.arange(H * W, dtype=dtype).reshape(1, H, W)


def nested():
    """A composition of compositions, most of it drawn."""
    return [
        A.OneOf([A.D4(p=1), A.Sequential([A.HorizontalFlip(p=0.5), A.Affine(**AFFINE)])], p=1),
        A.SomeOf([A.VerticalFlip(p=1), A.HorizontalFlip(p=1), A.RandomRotate90(p=1)], n=2, p=0.7),
    ]


@pytest.mark.parametrize("draw", range(2))
def test_all_arrays_of_a_sample_are_moved_alike(draw):
    image = places()
    arrays = {
        "image": image,
        "target": np.concatenate([image * np.float32(2.5) - 7, 30_000 - image.astype(np.float32)]),
        "mask": (image[0] % 251).astype(np.uint8),
        "instances": 50_000 + image[0],
    }
    moved = GeometricAugmentation([A.D4(p=1)])(arrays, seed(draw))
    new = moved["image"]
    assert new.shape[1:] == (H, W)
    np.testing.assert_array_equal(moved["target"][0], new[0] * np.float32(2.5) - 7)
    np.testing.assert_array_equal(moved["target"][1], 30_000 - new[0].astype(np.float32))
    np.testing.assert_array_equal(moved["mask"], new[0] % 251)
    np.testing.assert_array_equal(moved["instances"], 50_000 + new[0])
    assert {name: array.dtype for name, array in moved.items()} == {n: a.dtype for n, a in arrays.items()}


@pytest.mark.parametrize("draw", range(2))
def test_interpolated_arrays_are_moved_alike(draw):
    image = places(np.float32)
    arrays = {"image": image, "target": 3 * image - 7, "mask": (image[0] > 200).astype(np.uint8)}
    moved = GeometricAugmentation([A.Affine(**AFFINE)])(arrays, seed(draw))
    assert not np.array_equal(moved["image"], image)
    np.testing.assert_allclose(moved["target"], 3 * moved["image"] - 7, atol=0.01)
    # The mask takes the nearest pixel, which may lie on the other side of the border between two rows.
    agree = moved["mask"] == (moved["image"][0] > 200)
    assert agree.mean() > 0.9


def test_d4_leaves_the_shape_of_a_rectangle_and_reaches_its_four_symmetries():
    augment, image = GeometricAugmentation([A.D4(p=1)]), places()
    moved = [augment({"image": image, "mask": image[0]}, seed(draw)) for draw in range(32)]
    assert all(np.array_equal(sample["image"][0], sample["mask"]) for sample in moved)
    corners = {int(sample["mask"][0, 0]) for sample in moved}
    assert corners == {int(image[0][y, x]) for y in (0, -1) for x in (0, -1)}
    assert {sample["image"].shape for sample in moved} == {image.shape}


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (A.RandomBrightnessContrast(), "changes intensities"),
        (A.Sequential([A.OneOf([A.RandomGamma(), A.D4()])]), "changes intensities"),
        # To albumentations these are geometric, but they write zeros into input and target.
        *((transform(), "paints") for transform in (A.CoarseDropout, A.PixelDropout, A.MaskDropout, A.Morphological)),
    ],
)
def test_transforms_that_change_values_are_refused(transform, message):
    with pytest.raises(UserError, match=message):
        GeometricAugmentation([transform])


@pytest.mark.parametrize("make", [lambda **o: A.Affine(**o), lambda **o: A.OneOf([A.D4(), A.Affine(**o)])])
def test_a_constant_border_is_refused_and_a_mirrored_one_accepted(make):
    with pytest.raises(UserError, match=f"border_mode: {REFLECT}"):
        GeometricAugmentation([make()])
    image = np.full((1, H, W), 60_000, np.uint16)
    augment = GeometricAugmentation([make(border_mode=REFLECT)])
    for draw in range(10):
        assert augment({"image": image}, seed(draw))["image"].min() == 60_000


@pytest.mark.parametrize(
    ("channels", "dtype", "transform"),
    [
        (1, np.uint8, A.Affine(**AFFINE)),
        (4, np.float32, A.Affine(**AFFINE)),
        (5, np.uint16, A.D4(p=1)),
    ],
)
def test_channels_keep_number_and_order(channels, dtype, transform):
    image = np.stack([np.full((H, W), 20 * c + 3, dtype) for c in range(channels)])
    target = image[:1].astype(np.float32)
    moved = GeometricAugmentation([transform])({"image": image, "target": target}, seed(5))
    assert moved["image"].shape[0] == channels
    assert moved["image"].dtype == dtype
    assert moved["target"].shape == (1, *moved["image"].shape[1:])
    for c, channel in enumerate(moved["image"]):
        np.testing.assert_allclose(channel, 20 * c + 3, rtol=1e-5)


def test_augmentation_depends_on_the_seed_alone():
    one, other = GeometricAugmentation(nested()), GeometricAugmentation(nested())
    image = {"image": places()}
    expected = [one(image, seed(1, draw))["image"] for draw in range(30)]
    for draw in reversed(range(30)):
        np.testing.assert_array_equal(other(image, seed(1, draw))["image"], expected[draw])
    assert len({array.tobytes() for array in expected}) > 10


def test_albumentations_is_kept_from_asking_the_network():
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    code = "import project, os, sys; print(os.environ['NO_ALBUMENTATIONS_UPDATE'], 'albumentations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]
