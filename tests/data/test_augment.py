import os
import random
import subprocess
import sys

import albumentations as A
import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from project.data.augment import GeometricAugmentation
from project.data.dataset import ShuffledSampler, SplitDataset
from project.data.store import SplitReader
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


@pytest.mark.parametrize("draw", range(8))
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
    assert sorted(new.shape[1:]) == sorted((H, W))
    np.testing.assert_array_equal(moved["target"][0], new[0] * np.float32(2.5) - 7)
    np.testing.assert_array_equal(moved["target"][1], 30_000 - new[0].astype(np.float32))
    np.testing.assert_array_equal(moved["mask"], new[0] % 251)
    np.testing.assert_array_equal(moved["instances"], 50_000 + new[0])
    assert {name: array.dtype for name, array in moved.items()} == {n: a.dtype for n, a in arrays.items()}


@pytest.mark.parametrize("draw", range(4))
def test_interpolated_arrays_are_moved_alike(draw):
    image = places(np.float32)
    arrays = {"image": image, "target": 3 * image - 7, "mask": (image[0] > 200).astype(np.uint8)}
    moved = GeometricAugmentation([A.Affine(**AFFINE)])(arrays, seed(draw))
    assert not np.array_equal(moved["image"], image)
    np.testing.assert_allclose(moved["target"], 3 * moved["image"] - 7, atol=0.01)
    # The mask takes the nearest pixel, which may lie on the other side of the border between two rows.
    agree = moved["mask"] == (moved["image"][0] > 200)
    assert agree.mean() > 0.9


def test_d4_only_moves_pixels_and_reaches_all_eight_places():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 65536, (1, 16, 16)).astype(np.uint16)
    augment = GeometricAugmentation([A.D4(p=1)])
    moved = [augment({"image": image}, seed(draw))["image"] for draw in range(64)]
    for array in moved:
        assert array.dtype == np.uint16
        np.testing.assert_array_equal(np.sort(array.ravel()), np.sort(image.ravel()))
    assert len({array.tobytes() for array in moved}) == 8


@pytest.mark.parametrize(
    "transform",
    [
        A.RandomBrightnessContrast(),
        A.GaussNoise(),
        A.OneOf([A.D4(), A.Blur()]),
        A.Sequential([A.OneOf([A.RandomGamma(), A.D4()])]),
    ],
)
def test_photometric_transforms_are_refused(transform):
    with pytest.raises(UserError, match="changes intensities"):
        GeometricAugmentation([transform])


@pytest.mark.parametrize(
    "transform", [A.CoarseDropout(), A.GridDropout(), A.PixelDropout(), A.MaskDropout(), A.Erasing(), A.Morphological()]
)
def test_transforms_that_paint_are_refused(transform):
    """To albumentations they are geometric, but they write zeros into input and target."""
    with pytest.raises(UserError, match="paints"):
        GeometricAugmentation([transform])


@pytest.mark.parametrize(
    "make", [lambda **o: A.Affine(**o), lambda **o: A.Rotate(**o), lambda **o: A.OneOf([A.D4(), A.Affine(**o)])]
)
def test_a_constant_border_is_refused_and_a_mirrored_one_accepted(make):
    with pytest.raises(UserError, match=f"border_mode: {REFLECT}"):
        GeometricAugmentation([make()])
    image = np.full((1, H, W), 60_000, np.uint16)
    augment = GeometricAugmentation([make(border_mode=REFLECT)])
    for draw in range(10):
        assert augment({"image": image}, seed(draw))["image"].min() == 60_000


def test_masks_get_no_new_values():
    rng = np.random.default_rng(0)
    values = np.array([0, 3, 200, 255], np.uint8)
    mask, instances = rng.choice(values, (H, W)), rng.choice(np.array([0, 7, 65535], np.uint16), (H, W))
    augment = GeometricAugmentation([A.Affine(**AFFINE)])
    arrays = {"image": places(), "mask": mask, "instances": instances}
    for draw in range(5):
        moved = augment(arrays, seed(draw))
        assert set(np.unique(moved["mask"])) <= set(values)
        assert set(np.unique(moved["instances"])) <= {0, 7, 65535}
        assert not np.array_equal(moved["mask"], mask)


@pytest.mark.parametrize("transform", [A.D4(p=1), A.Affine(**AFFINE)])
def test_floats_beyond_0_and_1_are_not_clipped(transform):
    target = places(np.float32) * 10 - 2000
    for draw in range(5):
        moved = GeometricAugmentation([transform])({"image": places(), "target": target}, seed(draw))["target"]
        assert moved.dtype == np.float32
        assert moved.min() < -1000
        assert moved.max() > 1500


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("transform", [A.D4(p=1), A.Affine(**AFFINE)])
def test_channels_keep_number_and_order(channels, dtype, transform):
    image = np.stack([np.full((H, W), 20 * c + 3, dtype) for c in range(channels)])
    target = image[:1].astype(np.float32)
    moved = GeometricAugmentation([transform])({"image": image, "target": target}, seed(5))
    assert moved["image"].shape[0] == channels
    assert moved["image"].dtype == dtype
    assert moved["target"].shape == (1, *moved["image"].shape[1:])
    for c, channel in enumerate(moved["image"]):
        np.testing.assert_allclose(channel, 20 * c + 3, rtol=1e-5)


def test_what_is_drawn_depends_on_the_seed_alone():
    one, other = GeometricAugmentation(nested()), GeometricAugmentation(nested())
    image = {"image": places()}
    expected = [one(image, seed(1, draw))["image"] for draw in range(30)]
    for draw in reversed(range(30)):
        np.testing.assert_array_equal(other(image, seed(1, draw))["image"], expected[draw])
    assert len({array.tobytes() for array in expected}) > 15


# Symmetries are applied without albumentations ------------------------------------------------------------------------


def by_albumentations(transforms, arrays, seed):
    """The plain way, with the same generators."""
    words = seed.generate_state(2, np.uint64)
    compose = A.Compose(transforms, additional_targets={"target": "image", "instances": "mask"})
    compose.set_random_state(np.random.default_rng(words[0]), random.Random(int(words[1])))
    last = {name: array if array.ndim == 2 else array.transpose(1, 2, 0) for name, array in arrays.items()}
    moved = compose(**{name: np.ascontiguousarray(array) for name, array in last.items()})
    return {name: a.transpose(2, 0, 1) if a.ndim == 3 else a for name, a in moved.items()}


SYMMETRIES = {
    "D4": lambda: [A.D4(p=1)],
    "D4, seldom": lambda: [A.D4(p=0.4)],
    "square": lambda: [A.SquareSymmetry(p=0.8)],
    "left-right": lambda: [A.HorizontalFlip(p=0.5)],
    "up-down": lambda: [A.VerticalFlip(p=0.5)],
    "transpose": lambda: [A.Transpose(p=0.5)],
    "quarter turns": lambda: [A.RandomRotate90(p=0.7)],
    "never": lambda: [A.HorizontalFlip(p=0), A.NoOp()],
    "several": lambda: [A.RandomRotate90(), A.HorizontalFlip(), A.NoOp(p=0.5), A.Transpose(), A.VerticalFlip(), A.D4()],
    "one of": lambda: [A.OneOf([A.HorizontalFlip(p=0.2), A.D4(), A.Sequential([A.Transpose(), A.D4(p=0.3)])], p=0.8)],
    "some of": lambda: [A.SomeOf([A.HorizontalFlip(), A.Transpose(p=1), A.RandomRotate90(p=0.9)], n=2, p=0.9), A.D4()],
    "in any order": lambda: [A.RandomOrder([A.HorizontalFlip(p=1), A.Transpose(p=1)], n=2), A.VerticalFlip(p=0.3)],
    "one or other": lambda: [A.OneOrOther(A.HorizontalFlip(), A.Transpose(), p=0.3)],
    "then others": lambda: [A.D4(p=0.9), A.HorizontalFlip(), A.Affine(**AFFINE), A.Transpose(), A.RandomScale(p=0.5)],
    "mixed choice": lambda: [A.VerticalFlip(), A.OneOf([A.D4(), A.Affine(**AFFINE)], p=0.9), A.RandomRotate90()],
    "others first": lambda: [A.Affine(**{**AFFINE, "p": 0.5}), A.D4()],
}


@pytest.mark.parametrize("name", SYMMETRIES)
def test_symmetries_are_to_the_bit_what_albumentations_makes(name):
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 65536, (2, 9, 7)).astype(np.uint16),
        "target": rng.normal(0, 1000, (1, 9, 7)).astype(np.float32),
        "mask": rng.integers(0, 256, (9, 7)).astype(np.uint8),
        "instances": rng.integers(0, 65536, (9, 7)).astype(np.uint16),
    }
    before = {role: array.copy() for role, array in arrays.items()}
    augment, seen = GeometricAugmentation(SYMMETRIES[name]()), set()
    for draw in range(300):
        moved = augment(arrays, seed(7, draw))
        expected = by_albumentations(SYMMETRIES[name](), arrays, seed(7, draw))
        for role, array in moved.items():
            np.testing.assert_array_equal(array, expected[role].reshape(array.shape), strict=True)
            assert array.shape[:-2] == arrays[role].shape[:-2]
        seen.add((moved["image"].shape, moved["image"].tobytes()))
    assert len(seen) > (0 if name == "never" else 1)
    for role, array in arrays.items():
        np.testing.assert_array_equal(array, before[role], err_msg="what was given has changed")


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint32, np.int64, np.float64, ">u2"])
def test_symmetries_move_pixels_of_any_dtype(dtype):
    image = np.random.default_rng(0).integers(0, 2**31, (3, 5, 6)).astype(dtype)
    found = {
        GeometricAugmentation([A.D4()])({"image": image[:, 1:, ::2]}, seed(draw))["image"].tobytes()
        for draw in range(60)
    }
    part = image[:, 1:, ::2]
    expected = set()
    for turned in (part, part.swapaxes(1, 2)):
        expected |= {turned[:, ::rows, ::columns].tobytes() for rows in (1, -1) for columns in (1, -1)}
    assert found == expected


def test_a_transform_made_of_a_symmetry_is_not_taken_for_one():
    class Shifted(A.HorizontalFlip):
        def apply(self, img, **params):
            return np.roll(img, 1, 0)

    moved = GeometricAugmentation([Shifted(p=1)])({"image": places()}, seed(0))["image"]
    np.testing.assert_array_equal(moved, np.roll(places(), 1, 1))


# albumentations 2.0.8 alone draws the same in every worker, and again in every epoch ----------------------------------


def epochs(folder, transforms, epochs=2, **loader):
    """Epoch -> index -> bytes of input and target, through a real DataLoader."""
    dataset = SplitDataset(
        SplitReader(folder / "train.h5"), ("image", "target"), 16, 2, GeometricAugmentation(transforms), seed=3
    )
    sampler = ShuffledSampler(len(dataset), seed=3)
    batches = DataLoader(dataset, batch_size=3, sampler=sampler, collate_fn=_as_it_is, **loader)
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        found.append([{role: array.numpy().tobytes() for role, array in batch.items()} for batch in batches])
    return found


def _as_it_is(batch):
    return batch


@pytest.mark.parametrize("transforms", [nested, lambda: [A.D4(p=1)]], ids=["nested", "D4"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_samples_do_not_depend_on_forked_workers(tiny_dataset, transforms, workers, persistent):
    expected = epochs(tiny_dataset, transforms())
    options = {"num_workers": workers, "persistent_workers": persistent, "multiprocessing_context": "fork"}
    assert epochs(tiny_dataset, transforms(), **options) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "persistent"), [(1, False), (2, True)])
def test_samples_do_not_depend_on_spawned_workers(tiny_dataset, workers, persistent):
    expected = epochs(tiny_dataset, nested())
    options = {"num_workers": workers, "persistent_workers": persistent, "multiprocessing_context": "spawn"}
    assert epochs(tiny_dataset, nested(), **options) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_differs_between_samples_epochs_and_workers(tiny_dataset, workers):
    """Twelve samples of one image in each of four epochs."""
    reader = SplitReader(tiny_dataset / "train.h5")
    dataset = SplitDataset(reader, ("image",), None, 12, GeometricAugmentation([A.Affine(**AFFINE)]))
    sampler = ShuffledSampler(12)
    batches = DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=_as_it_is, num_workers=workers)
    seen = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        seen += [image.numpy().tobytes() for batch in batches for image in batch["image"]]
    assert len(seen) == 48
    assert len(set(seen)) == 48


def test_albumentations_is_kept_from_asking_the_network():
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    code = "import project, os, sys; print(os.environ['NO_ALBUMENTATIONS_UPDATE'], 'albumentations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]
