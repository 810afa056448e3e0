"""Faults of the data that a user can cause, and data that gives no alarm."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.transform import resize_local_mean
from torch import nn

from project.checks import alignment, data, groups, inputs, labels
from project.checks.report import LEVELS
from project.data.statistics import ImageStatistics
from project.losses import CrossEntropy
from project.transforms.intensity import IntensityAugmentation


def worst(check, ctx):
    """The finding of the highest level."""
    return max(check(ctx), key=lambda finding: LEVELS.index(finding.level))


def stored(reader, array, name):
    """(N, C): a statistic of each image, to be changed."""
    return reader.image_statistics[array][..., ImageStatistics._fields.index(name)]


# Values and channels --------------------------------------------------------------------------------------------------


def test_values_that_are_not_finite(experiment):
    ctx = experiment()
    for array in ("image", "target"):
        stored(ctx.val.reader, array, "n_not_finite")[3] = 1
        finding = worst(data.values, ctx)
        assert (finding.level, "1 of 32" in finding.measured) == ("error", True)


@pytest.mark.parametrize(
    ("array", "n", "level"),
    [("target", 24, "error"), ("target", 12, "warning"), ("image", 24, "warning"), ("image", 12, "warning")],
)
def test_constant_channels(experiment, array, n, level):
    ctx = experiment(channels=2)
    stored(ctx.train.reader, array, "max")[:n, -1] = stored(ctx.train.reader, array, "min")[:n, -1]
    finding = worst(data.values, ctx)
    assert (finding.level, "in1" in finding.measured) == (level, array == "image")


def test_one_channel_twice(experiment):
    ctx = experiment(channels=2, change=(("train", "image", lambda a: a),))
    statistics = ctx.train.reader.image_statistics
    assert worst(data.values, ctx).level == "ok"
    statistics["image"] = statistics["image"][:, [0, 0]]
    finding = worst(data.values, ctx)
    assert (finding.level, "in0 = in1" in finding.measured) == ("warning", True)


def test_channels_that_are_swapped_in_validation(experiment):
    ctx = experiment(channels=2)
    for reader in ctx.readers.values():
        stored(reader, "image", "mean")[:, 1] += 4000
    assert worst(groups.channels, ctx).level == "ok"
    ctx.val.reader.image_statistics["image"] = ctx.val.reader.image_statistics["image"][:, ::-1]
    assert worst(groups.channels, ctx).level == "error"


@pytest.mark.parametrize(("n", "level"), [(0, "ok"), (2, "note"), (8, "error")])
@pytest.mark.parametrize("array", ["image", "target"])
def test_validation_images_that_are_unlike_every_training_image(experiment, n, level, array):
    ctx = experiment()
    stored(ctx.val.reader, array, "mean")[:n] *= 5
    assert worst(groups.brightness, ctx).level == level


# Splits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["ids", "groups"])
def test_one_sample_or_group_in_two_splits(experiment, names):
    ctx = experiment()
    getattr(ctx.val.reader, names)[3] = getattr(ctx.train.reader, names)[5]
    finding = worst(data.splits, ctx)
    assert (finding.level, "in train and val" in finding.measured) == ("error", True)


@pytest.mark.parametrize(("noise", "level"), [(0, "error"), (60, "warning")])
def test_copies_of_training_images_in_validation(experiment, noise, level):
    ctx = experiment(shape=(96, 96))
    assert worst(data.copies, ctx).level == "ok"
    images = np.stack([ctx.train.reader.read("image", index) for index in range(8)])
    copies = images + noise * np.random.default_rng(0).standard_normal(images.shape)
    ctx = experiment(change=(("val", "image", lambda a: copies.astype(a.dtype)),), shape=(96, 96))
    assert worst(data.copies, ctx).level == level


@pytest.mark.parametrize(
    ("limit", "size", "level"), [(1, 2, "warning"), (1, 8, "ok"), (1.0, 2, "ok"), (0.5, 1, "warning")]
)
def test_few_validation_images(experiment, limit, size, level):
    ctx = experiment(data={"eval_batch_size": size}, trainer={"limit_val_batches": limit})
    assert worst(data.splits, ctx).level == level


def test_more_validation_than_training_images(experiment):
    ctx = experiment(n={"train": 6, "val": 20, "test": 2})
    finding = worst(data.splits, ctx)
    assert (finding.level, "train has 6" in finding.measured) == ("warning", True)


# Classes --------------------------------------------------------------------------------------------------------------


def test_a_class_that_cannot_be_learned(experiment):
    ctx = experiment("segmentation")
    ctx.train.reader.mask_counts[:, 1] = 0
    assert worst(labels.classes, ctx).level == "error"


@pytest.mark.parametrize(
    ("n_left", "stratify", "remedy"), [(1, False, "too few"), (4, False, "stratify: true"), (4, True, "split.seed")]
)
def test_the_remedy_for_a_missing_class_can_work(experiment, n_left, stratify, remedy):
    ctx = experiment("classification")
    for split, reader in ctx.readers.items():
        reader.attributes["split"]["stratify"] = stratify
        reader.labels[reader.labels == 2] = 0
        reader.labels[: n_left * (split == "train")] = 2
    (finding,) = [finding for finding in labels.classes(ctx) if finding.measured.startswith("val")]
    assert (finding.level, remedy in finding.advice) == ("warning", True)


@pytest.mark.parametrize(("cure", "level"), [("none", "warning"), ("balanced", "ok")])
def test_imbalance_without_a_cure(experiment, cure, level):
    ctx = experiment("classification", loss=CrossEntropy(cure))
    ctx.train.reader.labels[:] = [1, 2, 1, 2, *[0] * 20]
    ctx.train.reader.labels[1:4] = [2, 0, 0]
    ctx.task.loss.features = nn.Conv2d(1, 2, 3)  # as of a perceptual loss: its `weight` is no class weight
    finding = worst(labels.classes, ctx)
    assert finding.level == level
    assert "balanced" not in finding.advice  # no sampling makes one image represent its class


def test_labels_that_are_row_numbers(experiment):
    ctx = experiment("classification")
    ctx.data.classes["label"][:] = [str(i) for i in range(24)]
    (finding,) = labels.classes(ctx)
    assert (finding.level, "row number" in finding.advice) == ("error", True)


@pytest.mark.parametrize(("weights", "level"), [([0.9, 0.1], "warning"), ([0.1, 0.9], "ok")])
def test_class_weights(experiment, weights, level):
    ctx = experiment("segmentation", loss=nn.CrossEntropyLoss(torch.tensor(weights)))
    ctx.train.reader.mask_counts[:] = [900, 100]
    finding = worst(labels.classes, ctx)
    assert (finding.level, "inverted" in finding.advice) == (level, level == "warning")


def test_a_rare_class_of_pixels(experiment):
    ctx = experiment("segmentation")
    ctx.train.reader.mask_counts[:] = [999, 1]
    assert worst(labels.classes, ctx).level == "warning"
    ctx.data.foreground_crops = 0.5
    assert worst(labels.classes, ctx).level == "ok"


def test_an_ignore_index_that_is_a_class(experiment):
    ctx = experiment("segmentation")
    ctx.data.ignore_index = 0
    finding = worst(labels.classes, ctx)
    assert (finding.level, "ignore_index 0 is class dark" in finding.measured) == ("warning", True)


def test_nearly_all_pixels_are_ignored(experiment):
    ctx = experiment("segmentation")
    for reader in ctx.readers.values():
        reader.mask_counts[:] = reader.mask_counts // 20
    finding = worst(labels.classes, ctx)
    assert (finding.level, "95 % of the pixels are ignored" in finding.measured) == ("warning", True)


# Alignment ------------------------------------------------------------------------------------------------------------


def some(targets, others):
    """Every third target is another one."""
    return np.where(np.arange(len(targets)).reshape(-1, *[1] * (targets.ndim - 1)) % 3 == 0, others, targets)


@pytest.mark.parametrize(
    ("kind", "function", "words"),
    [
        ("translation", lambda a: a[..., ::-1], "left to right"),
        ("segmentation", lambda a: np.rot90(a, 1, (-2, -1)), "rotated by 90"),
        ("translation", lambda a: np.roll(a, (9, -6), (-2, -1)), "shifted by +9 rows and -6 columns"),
        ("translation", lambda a: a[np.random.default_rng(1).permutation(24)], "belong to another sample"),
        ("translation", lambda a: np.roll(a, -1, 0), "sample"),
        ("translation", lambda a: some(a, a[..., ::-1]), "8 of 24 flipped left to right"),
        ("segmentation", lambda a: some(a, np.rot90(a, 1, (-2, -1))), "8 of 24 rotated by 90"),
        ("translation", lambda a: some(a, np.roll(a, (9, -6), (-2, -1))), "8 of 24 shifted by +9 rows and -6 columns"),
    ],
)
def test_targets_that_do_not_fit_their_input(experiment, kind, function, words):
    ctx = experiment(kind, change=(("train", "target" if kind == "translation" else "mask", function),))
    finding = worst(alignment.alignment, ctx)
    assert (finding.level, words in finding.measured) == ("error", True), finding


def blocks(target):
    """Structures that have nothing to do with the input."""
    values = np.random.default_rng(3).integers(9500, 12500, (len(target), 1, 8, 8))
    return np.kron(values, np.ones((8, 8))).astype(target.dtype)


@pytest.mark.parametrize(
    ("function", "level"),
    [
        (lambda a: a, "ok"),
        (lambda a: np.roll(a, (-2, 1), (-2, -1)), "ok"),  # as optics shift
        (blocks, "warning"),
    ],
    ids=["as they are", "small shift", "unrelated"],
)
def test_targets_that_have_something_in_common_with_the_input(experiment, function, level):
    ctx = experiment(change=(("train", "target", function),))
    assert worst(alignment.alignment, ctx).level == level


def random_images(seed, size, smooth):
    rng = np.random.default_rng(seed)
    return [
        3000 * gaussian_filter(rng.random((size, size)), smooth) + rng.normal(0, 9, (size, size)) for _ in range(26)
    ]


def other_sample(inputs, targets):
    shape = (2, alignment.COARSE, alignment.COARSE)
    maps = [[resize_local_mean(alignment.feature_maps(i[None]), shape) for i in part] for part in (inputs, targets)]
    return alignment.find_other(*map(np.stack, maps))


@pytest.mark.parametrize(("size", "smooth"), [(32, 1.5), (32, 6), (64, 3)])
def test_few_smooth_structures_that_fit_by_chance_give_no_alarm(size, smooth):
    inputs = random_images(1, size, smooth)
    own = [gaussian_filter(image, 2) for image in inputs]
    assert other_sample(inputs, own) is None
    assert other_sample(inputs, [-target for target in own]) is None
    assert other_sample(inputs, random_images(2, size, smooth)) is None


def test_structure_that_all_targets_share_does_not_accuse_the_neighbors():
    inputs, others = random_images(1, 64, 1.5), random_images(2, 64, 1.5)
    # The same illumination in every input and target, and nothing else in common; the own targets are dimmer.
    shared = 6000 * gaussian_filter(np.random.default_rng(3).random((64, 64)), 2)
    lit = [0.3 * image + shared for image in inputs]
    targets = [other + (shared if i % 5 else 0) for i, other in enumerate(others)]
    assert other_sample(lit, targets) is None


# What the network sees ------------------------------------------------------------------------------------------------


def test_values_that_few_pixels_scale(experiment):
    changed = ("train", "image", lambda a: 9000 + a % 7)
    ctx = experiment(task={"input_normalization": "min_max"}, change=(changed,))
    ctx.task.normalize_input.scale[...] = 1000
    assert worst(inputs.normalization, ctx).level != "ok"
    assert worst(inputs.normalization, experiment()).level == "ok"


class InvertedAtRandom(nn.Module):
    def forward(self, x):
        return x * (2 * torch.randint(0, 2, (len(x), 1, 1, 1)) - 1)


@pytest.mark.parametrize(
    ("module", "level"),
    [
        (IntensityAugmentation(), "ok"),
        (IntensityAugmentation(gain=0.0, offset=0.0, noise=8.0), "warning"),
        (IntensityAugmentation(gain=3.0, offset=0.0, noise=0.0), "warning"),
        (InvertedAtRandom(), "warning"),
        (nn.Threshold(1e9, 0), "error"),
    ],
)
def test_strength_of_intensity_augmentation(experiment, module, level):
    ctx = experiment(task={"intensity_augmentation": module})
    assert worst(inputs.intensity, ctx).level == level


@pytest.mark.parametrize(
    ("name", "arguments", "level"),
    [
        ("Affine", {"rotate": [-180, 180], "scale": [0.8, 1.25], "border_mode": 4, "p": 0.8}, "ok"),
        ("Affine", {"translate_percent": [-0.9, 0.9], "border_mode": 4, "p": 1}, "warning"),
        ("Affine", {"scale": [6, 8], "border_mode": 4, "p": 1}, "warning"),
        ("HorizontalFlip", {"p": 0.0}, "warning"),
    ],
)
def test_strength_of_geometric_augmentation(experiment, name, arguments, level):
    albumentations = pytest.importorskip("albumentations")
    ctx = experiment("segmentation", data={"transforms": [getattr(albumentations, name)(**arguments)]})
    assert worst(inputs.geometry, ctx).level == level


@pytest.mark.parametrize("forgotten", ["target", "mask"])
def test_augmentation_that_forgets_an_array(experiment, forgotten):
    class Flip(nn.Module):
        def forward(self, batch):
            return {k: v.flip(-1) if v.ndim > 2 and k != forgotten else v for k, v in batch.items()}

    ctx = experiment(task={"device_augmentation": Flip()})
    finding = worst(inputs.geometry, ctx)
    assert (finding.level, "moved differently" in finding.measured) == ("error", True)


def test_empty_crops(experiment):
    ctx = experiment("segmentation", change=(("train", "mask", np.zeros_like),))
    finding = worst(inputs.crops, ctx)
    assert (finding.level, "foreground_crops" in finding.advice) == ("warning", True)
    ctx = experiment(change=(("train", "image", np.zeros_like),))
    assert "constant" in worst(inputs.crops, ctx).measured
