"""The segmentation task: from raw images to scores per class and numbers of objects."""

from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from skimage.draw import disk
from sklearn.metrics import f1_score, jaccard_score
from torch import nn

from project.data.datamodule import ImageDataModule
from project.data.store import SplitReader, SplitWriter
from project.errors import UserError
from project.models.baselines import OtsuThreshold
from project.tasks.objects import boundary_class
from project.tasks.segmentation import SegmentationTask, most_probable

IGNORED = 255
SHAPE = (56, 60)


class Painted(nn.Module):
    """Predicts the class that is written in the image: the tests' images are what shall be predicted."""

    def __init__(self, n_classes: int, rim: bool = False, top: int = 9) -> None:
        super().__init__()
        self.n_classes, self.rim, self.top = n_classes, rim, top

    def forward(self, x):
        values = (x[:, 0] * self.top).round().long()
        classes = values.clamp(max=self.n_classes - 1)
        if self.rim:
            classes = classes.masked_fill(boundary_class(values), self.n_classes)
        return 10 * nn.functional.one_hot(classes, self.n_classes + self.rim).movedim(-1, 1).float()


def discs(rng, n, radius=5):
    """Object numbers (H, W): touching pairs of discs."""
    image = np.zeros(SHAPE, np.uint16)
    for number, (y, x) in enumerate(((y, x) for y in (8, 28, 47) for x in (8, 19, 40, 51)), 1):
        if number <= n:
            image[disk((y, x), radius + 0.5, shape=SHAPE)] = number
    return image


def write(folder: Path, samples: dict[str, list[dict[str, np.ndarray]]], ignore_index=None, names=("empty", "cell")):
    folder.mkdir(parents=True)
    counts = np.zeros(len(names), int)
    for sample in samples["train"]:
        counts += np.bincount(sample["mask"].ravel(), minlength=256)[: len(names)]
    statistic = {"n": 1, "min": 0, "max": 9, "mean": 0, "std": 1, "dtype": "uint16", "percentiles": {"1": 0, "99": 9}}
    attributes = {
        "channels": {"image": ["in"]},
        "classes": {"mask": list(names)},
        "ignore_index": ignore_index,
        "split": {},
        "statistics": {"image": [statistic], "mask": {str(k): int(n) for k, n in enumerate(counts)}},
    }
    for split, members in samples.items():
        roles = list(members[0])
        shapes = {role: [m[role].shape for m in members] for role in roles}
        dtypes = {role: members[0][role].dtype for role in roles}
        ids = [f"{split}{i}" for i in range(len(members))]
        with SplitWriter(folder / f"{split}.h5", shapes, dtypes, ids, ids, n_classes=len(names)) as writer:
            for index, member in enumerate(members):
                for role in roles:
                    writer.write(index, role, member[role])
            writer.finish(attributes)
    return folder


def module(folder, **options):
    return ImageDataModule(folder.name, str(folder.parent), batch_size=2, **options)


def task_for(data, net, **options):
    facts = {name: getattr(data, name) for name in ("statistics", "channels", "classes", "ignore_index")}
    return SegmentationTask(net, input_normalization="min_max", pad_to=1, **facts, **options)


def validate(make_trainer, data, task):
    data.roles, data.optional_roles = task.roles, task.optional_roles
    make_trainer().validate(task, datamodule=data, verbose=False)
    return task.results


@pytest.fixture
def noisy(tmp_path):
    """Three classes, predicted wrongly in a fifth of the pixels, a tenth not annotated; class 2 not in every image."""
    rng = np.random.default_rng(0)
    members = []
    for i in range(5):
        mask = rng.integers(0, 2 if i < 2 else 3, SHAPE).astype(np.uint8)
        image = np.where(rng.random(SHAPE) < 0.2, rng.integers(0, 2 if i == 0 else 3, SHAPE), mask).astype(np.uint16)
        mask[rng.random(SHAPE) < 0.1] = IGNORED
        members.append({"image": image[None], "mask": mask})
    return write(tmp_path / "noisy", {"train": members, "val": members}, IGNORED, ("empty", "leaf", "stem"))


def test_scores_are_those_of_scikit_learn_on_the_annotated_pixels(noisy, make_trainer):
    data = module(noisy)
    results = validate(make_trainer, data, task_for(data, Painted(3)))
    reader = SplitReader(noisy / "val.h5")
    dice, iou, pixels = [], [], []
    for i in range(len(reader)):
        mask, image = reader.read("mask", i), reader.read("image", i)[0]
        known = mask != IGNORED
        pixels.append((mask[known], image[known]))
        options = {"labels": [1, 2], "average": None, "zero_division": np.nan}
        dice.append(f1_score(mask[known], image[known], **options))
        iou.append(jaccard_score(mask[known], image[known], labels=[1, 2], average=None, zero_division=0))
    dice, iou = np.array(dice), np.array(iou)
    assert np.isnan(dice[0, 1])  # neither in the mask nor predicted
    assert dice[1, 1] == 0  # predicted where there is none
    iou[np.isnan(dice)] = np.nan
    metrics = results.metrics
    assert metrics["dice/leaf"] == pytest.approx(np.nanmean(dice[:, 0]))
    assert metrics["dice/stem"] == pytest.approx(np.nanmean(dice[:, 1]))
    assert metrics["dice"] == pytest.approx(np.nanmean(dice, 0).mean())
    assert metrics["iou"] == pytest.approx(np.nanmean(iou, 0).mean())
    truth, predicted = (np.concatenate(x) for x in zip(*pixels, strict=True))
    assert metrics["dice_pooled"] == pytest.approx(f1_score(truth, predicted, labels=[1, 2], average="macro"))
    assert metrics["iou_pooled"] == pytest.approx(jaccard_score(truth, predicted, labels=[1, 2], average="macro"))
    assert results.undefined["dice"] == results.undefined["iou"] == 1
    assert results.rows["dice/empty"].isfinite().all()  # has its own column, and is in no mean
    assert "count_error" not in metrics  # nothing says which objects there are


def test_metrics_do_not_depend_on_batches(noisy, make_trainer):
    found = []
    for size in (1, 2, 5):
        data = module(noisy, eval_batch_size=size)
        found.append(validate(make_trainer, data, task_for(data, Painted(3))).metrics)
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert found[0] == pytest.approx(found[2], rel=1e-12)


def test_ignored_pixels_change_neither_scores_nor_loss(noisy, make_trainer, tmp_path):
    reader = SplitReader(noisy / "val.h5")
    members = [{"image": reader.read("image", i), "mask": reader.read("mask", i)} for i in range(len(reader))]
    spoilt = [{**m, "image": np.where(m["mask"] == IGNORED, 2, m["image"]).astype(np.uint16)} for m in members]
    for m, s in zip(members, spoilt, strict=True):
        assert (m["image"] != s["image"]).any()
    folder = write(tmp_path / "spoilt", {"train": spoilt, "val": spoilt}, IGNORED, ("empty", "leaf", "stem"))
    results = [
        validate(make_trainer, data, task_for(data, Painted(3))).metrics for data in (module(noisy), module(folder))
    ]
    assert {k: v for k, v in results[0].items() if "boundary" not in k} == pytest.approx(
        {k: v for k, v in results[1].items() if "boundary" not in k}
    )


@pytest.fixture
def cells(tmp_path):
    """Touching discs; the image shows the object numbers, in one image all objects but one, in one there are none."""
    rng, members = np.random.default_rng(0), []
    for n in (4, 9, 0, 6):
        instances = discs(rng, n)
        image = instances.copy()
        if n == 9:
            image[image == 9] = 0
        members.append({"image": image[None], "mask": (instances > 0).astype(np.uint8), "instances": instances})
    return write(tmp_path / "cells", {"train": members, "val": members})


def test_rims_separate_touching_objects_where_components_do_not(cells, make_trainer):
    data = module(cells)
    merged = validate(make_trainer, data, task_for(data, Painted(2))).metrics
    split = validate(make_trainer, data, task_for(data, Painted(2, rim=True), objects="boundary"))
    distance = validate(make_trainer, data, task_for(data, Painted(2), objects="distance")).metrics
    assert split.rows["n_true"].tolist() == [4, 9, 0, 6]
    assert split.rows["n_predicted"].tolist() == split.rows["n_matched"].tolist() == [4, 8, 0, 6]
    assert split.metrics["count_error"] == 0.25
    assert split.metrics["count_bias"] == -0.25
    assert split.metrics["object_f1"] == pytest.approx((1 + 16 / 17 + 1) / 3)
    assert split.metrics["object_f1_pooled"] == pytest.approx(2 * 18 / (18 + 19))
    assert split.undefined["object_f1"] == 1  # the image without objects
    assert merged["count_bias"] == -2.5  # pairs of discs become one
    assert distance["count_error"] < 1
    # A rim is part of its object: pixel scores do not depend on how objects are found.
    for name in ("dice", "iou", "dice_pooled", "boundary_f1"):
        assert split.metrics[name] == pytest.approx(merged[name])
    # One disc of nine is missing, of 97 pixels as every other; the image without cells does not count.
    assert merged["dice"] == pytest.approx((1 + 2 * 8 / (8 + 9) + 1) / 3, abs=0.01)


def test_the_rim_is_learned_from_the_instances(cells):
    data = module(cells, crop=None)
    task = task_for(data, Painted(2, rim=True), objects="boundary")
    assert "instances" in task.roles
    data.roles = task.roles
    data.setup("fit")
    batch = data.datasets["train"].__getitems__([(0, 0), (0, 1)])
    target = task.encode_target(batch)
    assert set(target.unique().tolist()) == {0, 1, 2}
    rim = boundary_class(batch["instances"])
    assert torch.equal(target == 2, rim)
    assert torch.equal(target > 0, batch["mask"] > 0)


def test_loss_ignores_what_the_data_says():
    data = {
        "statistics": {"image": [{"n": 1, "mean": 0, "std": 1}], "mask": {"0": 3, "1": 1}},
        "classes": {"mask": ["a", "b"]},
    }
    task = SegmentationTask(nn.Identity(), ignore_index=7, **data)
    mask = torch.tensor([[[0, 1, 7]]], dtype=torch.uint8)
    assert task.encode_target({"mask": mask}).tolist() == [[[0, 1, task.loss.ignore_index]]]
    with pytest.raises(UserError, match="cannot ignore"):
        SegmentationTask(nn.Identity(), nn.MSELoss(), ignore_index=7, **data)


def test_rims_are_learned_even_where_their_number_means_not_annotated():
    data = {
        "statistics": {"image": [{"n": 1, "mean": 0, "std": 1}], "mask": {"0": 3, "1": 1}},
        "classes": {"mask": ["a", "b"]},
    }
    task = SegmentationTask(nn.Identity(), ignore_index=2, objects="boundary", **data)
    mask = torch.tensor([[[0, 1, 1, 2]]], dtype=torch.uint8)
    target = task.encode_target({"mask": mask, "instances": torch.tensor([[[0, 1, 1, 1]]])})
    assert target.tolist() == [[[0, 2, 1, -100]]]


def test_images_without_annotation_are_counted_and_a_diverged_loss_is_not_hidden(noisy, make_trainer, tmp_path):
    reader = SplitReader(noisy / "val.h5")
    members = [{"image": reader.read("image", i), "mask": reader.read("mask", i)} for i in range(3)]
    members[1]["mask"][:] = IGNORED
    folder = write(tmp_path / "empty", {"train": members, "val": members}, IGNORED, ("empty", "leaf", "stem"))
    data = module(folder)
    results = validate(make_trainer, data, task_for(data, Painted(3)))
    assert results.undefined["loss"] == 1
    assert np.isfinite(results.metrics["loss"])

    class Diverged(Painted):
        def forward(self, x):
            first = torch.arange(len(x)).view(-1, 1, 1, 1) == 0  # the others are as they were
            return super().forward(x).masked_fill(first, torch.nan)

    results = validate(make_trainer, data, task_for(data, Diverged(3)))
    assert np.isnan(results.metrics["loss"])


def test_what_is_too_small_to_be_found_is_not_missed(make_trainer, tmp_path):
    instances = discs(None, 3)
    instances[0, 0] = 9
    member = {"image": instances[None].copy(), "mask": (instances > 0).astype(np.uint8), "instances": instances}
    data = module(write(tmp_path / "speck", {"train": [member], "val": [member]}))
    results = validate(make_trainer, data, task_for(data, Painted(2, rim=True), objects="boundary"))
    assert results.rows["n_true"].tolist() == results.rows["n_matched"].tolist() == [3]


def test_a_baseline_for_two_classes_is_refused_for_more(noisy):
    with pytest.raises(UserError, match="OtsuThreshold is for 2 classes, and there are 3"):
        task_for(module(noisy), OtsuThreshold())


def test_too_few_channels_are_told_with_the_classes(cells, make_trainer):
    data = module(cells)
    with pytest.raises(UserError, match=r"gives 2 channels, but there are 3 classes \(empty, cell, rim\)"):
        validate(make_trainer, data, task_for(data, Painted(2), objects="boundary"))


def test_a_dataset_without_masks_is_refused(tiny_dataset):
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent))
    with pytest.raises(UserError, match="no mask"):
        SegmentationTask(nn.Identity(), statistics=data.statistics, classes={})


def test_prediction_is_probabilities_and_files_hold_classes_and_objects(cells):
    data = module(cells)
    task = task_for(data, Painted(2, rim=True), objects="boundary").eval()
    reader = SplitReader(cells / "val.h5")
    prediction = task(torch.from_numpy(reader.read("image", 0))[None])
    assert prediction.shape == (1, 3, *SHAPE)
    assert torch.allclose(prediction.sum(1), torch.ones(1, *SHAPE))
    files = task.to_files(prediction[0].numpy())
    assert files[""].dtype == np.uint8
    assert np.array_equal(files[""], reader.read("mask", 0))
    assert np.array_equal(files["_objects"] > 0, reader.read("mask", 0) > 0)
    assert files["_objects"].max() == 4


def test_pictures_show_objects_and_counts(cells, make_trainer):
    data = module(cells)
    task = task_for(data, Painted(2))
    results = validate(make_trainer, data, task)
    reader = SplitReader(cells / "val.h5")
    sample = {role: reader.read(role, 1) for role in ("image", "mask", "instances")}
    prediction = task(torch.from_numpy(sample["image"])[None])[0].numpy()
    figure = task.draw([{**sample, "id": "one", "prediction": prediction}])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[1] == "truth: 9 objects"
    assert "prediction: 4 objects" in titles[2]
    # Where a disc is missed the last panel is blue.
    panel = figure.axes[3].images[0].get_array()
    missed = (sample["mask"] == 1) & (sample["image"][0] == 0)
    assert np.allclose(panel[missed], (0.1, 0.3, 1.0))
    assert "4 images" in task.draw_summary(results).axes[0].get_title()


@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_the_most_probable_class_is_the_first_of_equals(n_classes):
    probabilities = torch.randint(0, 3, (2, n_classes, 9, 8), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(most_probable(probabilities), probabilities.argmax(1))


@pytest.mark.parametrize("loss", [smp.losses.FocalLoss("multiclass"), smp.losses.LovaszLoss("multiclass"), None])
def test_a_step_without_annotation_costs_and_teaches_nothing(loss):
    data = {
        "statistics": {"image": [{"n": 1, "mean": 0, "std": 1}], "mask": {"0": 3, "1": 1}},
        "classes": {"mask": ["a", "b"]},
    }
    net = nn.Conv2d(1, 2, 3, padding=1)
    task = SegmentationTask(net, loss, ignore_index=7, **data)
    batch = {"image": torch.randn(2, 1, 8, 8), "mask": torch.full((2, 8, 8), 7, dtype=torch.uint8)}
    found = task.train().training_step(batch, 0)
    found.backward()
    assert found.item() == 0
    assert all((p.grad == 0).all() for p in net.parameters())
    batch["mask"][0, 0, 0] = 1
    task.training_step(batch, 0).backward()
    assert any((p.grad != 0).any() for p in net.parameters())
