"""Tasks without the command line: plain Lightning fits them, as in a notebook."""

from functools import partial

import pytest
import torch
from torch import nn

from project.data.datamodule import ImageDataModule
from project.metrics.base import Metric
from project.models.classifier import EncoderClassifier
from project.optimizers import WarmupCosine
from project.tasks.regression import RegressionTask
from project.tasks.translation import TranslationTask

SIZE = {"shape": (32, 32), "n_values": 2}


class Range(Metric):
    name, higher_is_better = "range", True

    def __call__(self, prediction, batch):
        return prediction.flatten(1).amax(1) - prediction.flatten(1).amin(1)


def small_regression(data, **options):
    net = EncoderClassifier("resnet18", None, 1, 2, depth=2)
    return RegressionTask(net, statistics=data.statistics, channels=data.channels, **options)


def small_translation(data, **options):
    return TranslationTask(nn.Conv2d(1, 1, 3, padding=1), statistics=data.statistics, **options)


@pytest.mark.parametrize("tiny_dataset", [SIZE], indirect=True)
@pytest.mark.parametrize("make_task", [small_translation, small_regression])
def test_a_trainer_fits_a_task_and_tests_it(tiny_dataset, make_trainer, make_task):
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent), batch_size=4)
    optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    task = make_task(data, metrics=[Range()], optimizer=optimizer, lr_scheduler=partial(WarmupCosine, warmup=0.5))
    before = [p.clone() for p in task.net.parameters()]
    trainer = make_trainer(max_epochs=2)
    trainer.fit(task, data)
    assert trainer.global_step == 6
    assert any(not torch.equal(a, b) for a, b in zip(before, task.net.parameters(), strict=True))
    assert {group["weight_decay"] for group in trainer.optimizers[0].param_groups} == {0.1, 0.0}
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-2  # the schedule took a step per batch
    assert "val/range" in trainer.callback_metrics
    trainer.test(task, data, verbose=False)
    assert task.results.split == "test"
    assert len(task.results.index) == 4
    assert trainer.callback_metrics["test/range"].item() == pytest.approx(task.results.metrics["range"])


@pytest.mark.parametrize("tiny_dataset", [SIZE], indirect=True)
def test_without_an_optimizer_adamw_is_taken(tiny_dataset, make_trainer):
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent), batch_size=4)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(small_translation(data), data)
    assert isinstance(trainer.optimizers[0], torch.optim.AdamW)
