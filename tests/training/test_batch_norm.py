"""Statistics of batch norm in validation: those of the current weights."""

import torch
from torch import nn

from project.data.datamodule import ImageDataModule
from project.tasks.translation import TranslationTask
from project.training.batch_norm import CurrentBatchNorm


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


class Keep(CurrentBatchNorm):
    """Keeps what validation begins with."""

    def on_validation_epoch_start(self, trainer, pl_module):
        super().on_validation_epoch_start(trainer, pl_module)
        if trainer.sanity_checking:
            return
        norm = pl_module.net.norm
        self.kept = [norm.running_mean.clone(), norm.running_var.clone()], norm.training, norm.momentum
        with torch.no_grad():
            self.outputs = [pl_module.net.first(pl_module.network_input(batch)) for batch in self.batches]


def fit(tiny_dataset, make_trainer, freeze=False):
    data = ImageDataModule(tiny_dataset.name, root=str(tiny_dataset.parent), batch_size=4, crop=32)
    task, callback = TranslationTask(Net(), nn.MSELoss(), statistics=data.statistics, channels=data.channels), Keep(2)
    if freeze:
        task.net.norm.requires_grad_(False)
    make_trainer(max_epochs=1, callbacks=[callback]).fit(task, datamodule=data)
    return task.net.norm, callback


def test_validation_uses_the_statistics_of_the_last_batches(tiny_dataset, make_trainer):
    _, callback = fit(tiny_dataset, make_trainer)
    (mean, variance), trains, momentum = callback.kept
    assert len(callback.outputs) == 2
    assert (trains, momentum) == (False, 0.1)
    channels = [x.transpose(0, 1).flatten(1) for x in callback.outputs]
    expected = [torch.stack([function(x) for x in channels]).mean(0) for function in (_mean, _variance)]
    assert torch.allclose(mean, expected[0], atol=1e-5)
    assert torch.allclose(variance, expected[1], rtol=1e-4)


def _mean(x):
    return x.mean(1)


def _variance(x):
    return x.var(1)


def test_frozen_layers_keep_their_statistics(tiny_dataset, make_trainer):
    _, callback = fit(tiny_dataset, make_trainer, freeze=True)
    assert not torch.allclose(callback.kept[0][0], _mean(callback.outputs[0].transpose(0, 1).flatten(1)), atol=1e-3)
