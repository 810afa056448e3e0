"""Nothing in a training step waits for the device: on the device "meta", whatever wants a value fails."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from project.data.datamodule import ImageDataModule
from project.losses import CrossEntropy, SSIMLoss, WeightedSum
from project.tasks.classification import ClassificationTask
from project.tasks.segmentation import SegmentationTask
from project.tasks.translation import TranslationTask
from project.transforms.intensity import IntensityAugmentation

CHANNEL = {"n": 9, "mean": 10.0, "std": 5.0, "min": 0.0, "max": 20.0, "dtype": "uint16"}
CHANNEL["percentiles"] = {"0.1": 0.0, "1": 1.0, "99": 19.0, "99.9": 20.0}
STATISTICS = {"image": [CHANNEL], "target": [CHANNEL], "mask": {"0": 30, "1": 10, "2": 5}}
STATISTICS |= {"label": {"a": 4, "b": 5, "c": 6}, "n_samples": 9}
CLASSES = {"mask": ["empty", "leaf", "stem"], "label": ["a", "b", "c"]}
SIZE = 24


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x):
        return self.layer(x.mean((2, 3)))


def translation(loss, **options):
    return TranslationTask(nn.Conv2d(1, 1, 3, padding=1), loss, statistics=STATISTICS, **options)


def segmentation(loss, **options):
    n = 4 if options.get("objects") else 3
    net = nn.Conv2d(1, n, 3, padding=1)
    return SegmentationTask(net, loss, statistics=STATISTICS, classes=CLASSES, **options)


def classification(loss, **options):
    return ClassificationTask(Pooled(), loss, statistics=STATISTICS, classes=CLASSES, **options)


def dice(**options):
    return smp.losses.DiceLoss("multiclass", **options)


TASKS = {
    "mse": lambda: translation(nn.MSELoss()),
    "image percentiles": lambda: translation(None, input_normalization="image_percentile"),
    "image mean": lambda: translation(None, input_normalization="image_mean_std"),
    "l1 and ssim": lambda: translation(WeightedSum([nn.L1Loss(), SSIMLoss()])),
    "cross entropy of pixels": lambda: segmentation(CrossEntropy("balanced", 0.1)),
    "not annotated": lambda: segmentation(WeightedSum([dice(), CrossEntropy()]), ignore_index=255),
    "focal": lambda: segmentation(smp.losses.FocalLoss("multiclass")),
    "depth": lambda: segmentation(CrossEntropy(), objects="depth"),
    "classes": lambda: classification(CrossEntropy("balanced", 0.1)),
    "several labels": lambda: classification(CrossEntropy("balanced"), multi_label=True),
}


def batch_for(task):
    """Nothing but shapes."""
    shape = 2, SIZE, SIZE
    labels = (2, 3) if getattr(task, "multi_label", False) else (2,)
    return {
        "image": torch.empty(2, 1, SIZE, SIZE, dtype=torch.uint16, device="meta"),
        "image_statistics": torch.empty(2, 1, 4, device="meta"),
        "target": torch.empty(2, 1, SIZE, SIZE, dtype=torch.uint16, device="meta"),
        "mask": torch.empty(shape, dtype=torch.uint8, device="meta"),
        "instances": torch.empty(shape, dtype=torch.uint16, device="meta"),
        "label": torch.empty(labels, dtype=torch.int64, device="meta"),
        "index": torch.empty(2, dtype=torch.int64, device="meta"),
    }


@pytest.mark.parametrize("name", TASKS)
def test_a_training_step_asks_for_no_value(name):
    task = TASKS[name]().to("meta").train()
    task.intensity_augmentation = IntensityAugmentation()
    for step in range(2):
        task.training_step(batch_for(task), step).backward()
    assert all(p.grad is not None for p in task.net.parameters())


@pytest.mark.parametrize(
    "name", [name for name in TASKS if isinstance(TASKS[name](), TranslationTask | ClassificationTask)]
)
def test_a_validation_step_without_outlines_and_objects_does_not_either(name):
    task = TASKS[name]().to("meta").eval()
    with torch.no_grad():
        task.validation_step(batch_for(task), 0)


class Asked(TorchDispatchMode):
    """Counts what a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select") or "unique" in name:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_neither_do_the_trainer_and_its_hooks(tiny_dataset, make_trainer):
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent), batch_size=2, crop=16)
    data.roles = TranslationTask.inputs
    seen = {}

    class Task(TranslationTask):
        def on_train_batch_start(self, batch, batch_idx):
            super().on_train_batch_start(batch, batch_idx)
            seen.setdefault(batch_idx, len(asked.found))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    task = Task(
        nn.Conv2d(1, 1, 3, padding=1), statistics=data.statistics, intensity_augmentation=IntensityAugmentation()
    )
    trainer = make_trainer(max_epochs=1, gradient_clip_val=1.0, num_sanity_val_steps=0)
    with Asked() as asked:
        trainer.fit(task, datamodule=data)
    assert list(seen) == list(range(6))
    assert seen[0] == seen[5], asked.found[seen[0] : seen[5]]
    assert len(asked.found) > seen[5], "the mean loss is asked for at the end of the epoch"
