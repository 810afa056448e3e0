"""The segmentation task: from raw images to scores per class and numbers of objects."""

from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from skimage.draw import disk
from sklearn.metrics import f1_score, jaccard_score
from torch import nn

from project.baselines.threshold import OtsuThreshold
from project.data.datamodule import ImageDataModule
from project.data.split_writer import write_split
from project.data.store import SplitReader
from project.errors import UserError
from project.tasks.objects import relative_depth
from project.tasks.segmentation import SegmentationTask, most_probable

IGNORED = 255
SHAPE = (56, 60)
TWO_CLASSES = {
    "statistics": {"image": [{"n": 1, "mean": 0, "std": 1}], "mask": {"0": 3, "1": 1}},
    "classes": {"mask": ["a", "b"]},
}


class Painted(nn.Module):
    """Predicts the class that is written in the image: the tests' images are the targets."""

    def __init__(self, n_classes: int, top: int = 9, depth: bool = False) -> None:
        super().__init__()
        self.n_classes, self.top, self.depth = n_classes, top, depth

    def forward(self, x):
        values = (x[:, 0] * self.top).round().long()
        classes = values.clamp(max=self.n_classes - 1)
        logits = 10 * nn.functional.one_hot(classes, self.n_classes).movedim(-1, 1).float()
        return torch.cat([logits, relative_depth(values).logit(0.01)[:, None]], 1) if self.depth else logits


def discs(rng, n, radius=5):
    """Object numbers (H, W): touching pairs of discs."""
    image = np.zeros(SHAPE, np.uint16)
    for number, (y, x) in enumerate(((y, x) for y in (8, 28, 47) for x in (8, 19, 40, 51)), 1):
        if number <= n:
            image[disk((y, x), radius + 0.5, shape=SHAPE)] = number
    return image


def write(folder: Path, samples, ignore_index=None, names=("empty", "cell"), background="empty"):
    folder.mkdir(parents=True)
    counts = np.zeros(len(names), int)
    for sample in samples["train"]:
        counts += np.bincount(sample["mask"].ravel(), minlength=256)[: len(names)]
    statistic = {"n": 1, "min": 0, "max": 9, "mean": 0, "std": 1, "dtype": "uint16"}
    statistic["percentiles"] = {"0.1": 0, "1": 0, "99": 9, "99.9": 9}
    attributes = {
        "channels": {"image": ["in"]},
        "classes": {"mask": list(names)},
        "background": background,
        "ignore_index": ignore_index,
        "split": {},
        "statistics": {"image": [statistic], "mask": {str(k): int(n) for k, n in enumerate(counts)}},
    }
    for split, members in samples.items():
        arrays = {role: [member[role] for member in members] for role in members[0]}
        ids = [f"{split}{i}" for i in range(len(members))]
        write_split(folder / f"{split}.h5", arrays, ids, ids, **attributes)
    return folder


def module(folder, **options):
    return ImageDataModule(folder.name, str(folder.parent), batch_size=2, **options)


def task_for(data, net, **options):
    names = ("statistics", "channels", "classes", "ignore_index", "background", "has_instances")
    facts = {name: getattr(data, name) for name in names}
    return SegmentationTask(net, input_normalization="min_max", size_divisor=1, **facts, **options)


def validate(make_trainer, data, task):
    data.roles, data.optional_roles = task.inputs, task.optional_inputs
    make_trainer().validate(task, datamodule=data, verbose=False)
    return task.results


NAMES = ("empty", "leaf", "stem")


def noisy_members(ignored=IGNORED):
    """Three classes, predicted wrongly in a fifth of the pixels, a tenth not annotated; class 2 not in every image."""
    rng, members = np.random.default_rng(0), []
    for i in range(5):
        mask = rng.integers(0, 2 if i < 2 else 3, SHAPE).astype(np.uint8)
        image = np.where(rng.random(SHAPE) < 0.2, rng.integers(0, 2 if i == 0 else 3, SHAPE), mask).astype(np.uint16)
        mask[rng.random(SHAPE) < 0.1] = ignored
        members.append({"image": image[None], "mask": mask})
    return members


@pytest.fixture
def noisy(tmp_path):
    members = noisy_members()
    return write(tmp_path / "noisy", {"train": members, "val": members}, IGNORED, NAMES)


@pytest.mark.parametrize(
    ("ignored", "background", "scored", "foreground"),
    [(IGNORED, "empty", [0, 1, 2], [1, 2]), (IGNORED, None, [0, 1, 2], [0, 1, 2]), (0, None, [1, 2], [1, 2])],
    ids=["background", "no background", "a class number that means not annotated"],
)
def test_scores_are_those_of_scikit_learn(make_trainer, tmp_path, ignored, background, scored, foreground):
    members = noisy_members(ignored)
    data = module(write(tmp_path / "set", {"train": members, "val": members}, ignored, NAMES, background))
    results = validate(make_trainer, data, task_for(data, Painted(3)))
    metrics = results.metrics
    known = [(m["mask"][m["mask"] != ignored], m["image"][0][m["mask"] != ignored]) for m in members]
    dice = np.array([f1_score(*pair, labels=range(3), average=None, zero_division=np.nan) for pair in known])
    assert np.isnan(dice[0, 2])  # neither in the mask nor predicted
    assert dice[1, 2] == 0  # predicted where there is none
    assert results.undefined == dict.fromkeys(("dice", "iou", "precision", "boundary_f1"), 1) | {"recall": 2}
    truth, predicted = (np.concatenate(x) for x in zip(*known, strict=True))
    iou = jaccard_score(truth, predicted, labels=range(3), average=None)
    for k in scored:
        assert metrics[f"dice/{NAMES[k]}"] == pytest.approx(np.nanmean(dice[:, k]))
        assert metrics[f"iou_pooled/{NAMES[k]}"] == pytest.approx(iou[k])
    assert metrics["dice"] == pytest.approx(np.nanmean(dice[:, foreground], 0).mean())
    assert metrics["iou_pooled"] == pytest.approx(iou[foreground].mean())
    assert metrics["dice_pooled"] == pytest.approx(f1_score(truth, predicted, labels=foreground, average="macro"))
    assert metrics["iou_micro"] == pytest.approx(jaccard_score(truth, predicted, labels=scored, average="micro"))
    assert metrics["dice_micro"] == pytest.approx(f1_score(truth, predicted, labels=scored, average="micro"))
    assert metrics["pixel_accuracy"] == pytest.approx((truth == predicted).mean())
    assert ("iou_pooled/empty" in metrics) is (ignored != 0)
    assert "count_error" not in metrics  # nothing says which objects there are


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


def test_the_depth_separates_touching_objects_where_components_do_not(cells, make_trainer):
    data = module(cells)
    merged = validate(make_trainer, data, task_for(data, Painted(2))).metrics
    split = validate(make_trainer, data, task_for(data, Painted(2, depth=True), objects="depth"))
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
    # Pixel scores do not depend on how objects are found.
    for name in ("dice", "iou", "dice_pooled", "boundary_f1"):
        assert split.metrics[name] == pytest.approx(merged[name])
    # One disc of nine is missing, of 97 pixels as every other; the image without cells does not count.
    assert merged["dice"] == pytest.approx((1 + 2 * 8 / (8 + 9) + 1) / 3, abs=0.01)


def test_the_depth_is_learned_from_the_instances_where_they_are_annotated(cells):
    data = module(cells)
    task = task_for(data, Painted(2, depth=True), objects="depth")
    data.roles = task.inputs
    data.setup("fit")
    batch = data.datasets["train"].__getitems__([(0, 0), (0, 3)])
    output, target = task.forward_batch(batch)
    assert torch.equal(target[:, 0] > 0, batch["mask"] > 0)
    assert torch.equal(target[:, 1], relative_depth(batch["instances"]))
    perfect = torch.cat([output[:, :2], target[:, 1:].logit(1e-6)], 1)
    assert task.compute_loss(perfect, target) < 1e-3  # 0 is the least, whatever the depth
    assert task.compute_loss(perfect.roll(3, 3), target) > 0.1
    target[:, 0, :, 20:] = -100
    wrong = perfect.clone()
    wrong[..., 20:] = -wrong[..., 20:]
    assert torch.equal(task.compute_loss(wrong, target), task.compute_loss(perfect, target))


def test_sizes_follow_from_the_training_objects(cells):
    data = module(cells)
    statistics = data.statistics | {"instances": {"area_percentiles": {"1": 21.0, "50": 100 * np.pi}}}
    facts = {"statistics": statistics, "classes": data.classes}
    task = SegmentationTask(nn.Identity(), **facts)
    assert (task.min_size, task.spacing) == (10, pytest.approx(20 / 3))
    task = SegmentationTask(nn.Identity(), min_size=0, spacing=4.0, **facts)
    assert (task.min_size, task.spacing) == (0, 4)
    task = task_for(data, nn.Identity())  # of a file that does not hold them
    assert (task.min_size, task.spacing) == (0, 6)


def test_images_without_annotation_are_counted_and_a_diverged_loss_is_not_hidden(make_trainer, tmp_path):
    members = noisy_members()[:3]
    members[1]["mask"][:] = IGNORED
    data = module(write(tmp_path / "empty", {"train": members, "val": members}, IGNORED, NAMES))
    results = validate(make_trainer, data, task_for(data, Painted(3)))
    assert results.undefined["loss"] == 1
    assert np.isfinite(results.metrics["loss"])

    class Diverged(Painted):
        def forward(self, x):
            first = torch.arange(len(x)).view(-1, 1, 1, 1) == 0  # the others are as they were
            return super().forward(x).masked_fill(first, torch.nan)

    results = validate(make_trainer, data, task_for(data, Diverged(3)))
    assert np.isnan(results.metrics["loss"])


@pytest.mark.parametrize("objects", ["components", "distance", "depth"])
def test_touching_objects_of_two_classes_stay_two(objects, make_trainer, tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:30, 5:25], mask[10:30, 25:45], mask[40:52, 5:25] = 1, 2, 2
    instances = np.zeros(SHAPE, np.uint16)
    for number, (y, x) in enumerate(((10, 5), (10, 25), (40, 5)), 1):
        instances[y : y + 20, x : x + 20] = np.where(mask[y : y + 20, x : x + 20] > 0, number, 0)
    wrong = np.where(instances == 3, 1, mask)  # the third object is found, but taken for the other class
    members = [{"image": m[None].astype(np.uint16), "mask": mask, "instances": instances} for m in (mask, wrong)]
    data = module(write(tmp_path / "cells", {"train": members, "val": members}, names=("empty", "a", "b")))
    net = Painted(3)
    if objects == "depth":
        depth = relative_depth(torch.from_numpy(instances)[None]).logit(0.01)
        net.forward = lambda x: torch.cat([Painted(3).forward(x), depth.expand(len(x), 1, -1, -1)], 1)
    results = validate(make_trainer, data, task_for(data, net, objects=objects, spacing=20.0))
    rows, metrics = results.rows, results.metrics
    assert [rows[name].tolist() for name in ("n_true", "n_predicted", "n_matched")] == [[3, 3], [3, 3], [3, 2]]
    assert rows["n_true/a"].tolist() == [1, 1]
    assert rows["n_predicted/a"].tolist() == [1, 2]
    assert rows["n_matched/b"].tolist() == [2, 1]
    assert metrics["object_f1"] == pytest.approx((1 + 2 * 2 / 6) / 2)
    assert metrics["object_f1/a"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["count_error"] == 0
    assert metrics["count_error/b"] == 0.5


def test_there_are_objects_only_where_they_are_annotated_or_asked_for(noisy):
    data = module(noisy)
    prediction = np.eye(3, dtype=np.float32)[np.zeros(SHAPE, int)].transpose(2, 0, 1)
    assert set(task_for(data, Painted(3)).prediction_files(prediction)) == {""}
    assert set(task_for(data, Painted(3), objects="components").prediction_files(prediction)) == {"", "_objects"}


def test_a_baseline_for_two_classes_is_refused_for_more(noisy):
    with pytest.raises(UserError, match="OtsuThreshold is for 2 classes, and there are 3"):
        task_for(module(noisy), OtsuThreshold())


def test_too_few_channels_are_reported_with_the_classes(cells, make_trainer):
    data = module(cells)
    with pytest.raises(UserError, match=r"gives \(2, 56, 60\) per image, but 3 are needed: empty, cell, depth"):
        validate(make_trainer, data, task_for(data, Painted(2), objects="depth"))


def test_prediction_is_probabilities_and_files_hold_classes_and_objects(cells):
    data = module(cells)
    task = task_for(data, Painted(2, depth=True), objects="depth").eval()
    reader = SplitReader(cells / "val.h5")
    prediction = task(torch.from_numpy(reader.read("image", 0))[None])
    assert prediction.shape == (1, 3, *SHAPE)
    assert torch.allclose(prediction[:, :2].sum(1), torch.ones(1, *SHAPE))
    files = task.prediction_files(prediction[0].numpy())
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
    net = nn.Conv2d(1, 2, 3, padding=1)
    task = SegmentationTask(net, loss, ignore_index=7, **TWO_CLASSES)
    batch = {"image": torch.randn(2, 1, 8, 8), "mask": torch.full((2, 8, 8), 7, dtype=torch.uint8)}
    found = task.train().training_step(batch, 0)
    found.backward()
    assert found.item() == 0
    assert all((p.grad == 0).all() for p in net.parameters())
    batch["mask"][0, 0, 0] = 1
    task.training_step(batch, 0).backward()
    assert any((p.grad != 0).any() for p in net.parameters())
