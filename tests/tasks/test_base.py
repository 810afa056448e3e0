"""The mean loss of an epoch."""

import pytest
import torch

from project.data.datamodule import ImageDataModule
from project.metrics import base
from project.metrics.base import StepMean
from project.tasks.translation import TranslationTask


def test_mean_over_steps(monkeypatch):
    mean = StepMean()
    assert mean.compute() != mean.compute(), "NaN before the first step"
    for value in (1.0, 2.0, 6.0):
        mean.add(torch.tensor(value, requires_grad=True))
    assert mean.compute() == 3
    assert not mean.total.requires_grad
    mean.add(torch.tensor(torch.nan))
    assert mean.compute() != mean.compute(), "a loss that has diverged is not hidden"


def test_mean_over_devices(monkeypatch):
    """Another device took three steps with a loss of 5."""
    calls = []

    def all_reduce(sums):
        calls.append(1)
        sums += torch.tensor([15.0, 3.0])

    monkeypatch.setattr(base, "distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    mean = StepMean()
    mean.add(torch.tensor(1.0))
    assert mean.compute() == mean.compute() == 4
    assert len(calls) == 1


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps(tiny_dataset, make_trainer):
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent), batch_size=4, crop=16)
    data.roles = TranslationTask.inputs
    epochs = []

    class Task(TranslationTask):
        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            epochs.append([])

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            epochs[-1].append(loss.item())
            return loss

        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            epochs[-1] = sum(epochs[-1]) / 3
            logged.append(self.trainer.callback_metrics["train/loss"].item())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    logged = []
    task = Task(torch.nn.Conv2d(1, 1, 1), statistics=data.statistics)
    make_trainer(max_epochs=2).fit(task, datamodule=data)
    assert len(logged) == 2
    assert logged == pytest.approx(epochs, rel=1e-6)
    assert logged[0] != logged[1]
