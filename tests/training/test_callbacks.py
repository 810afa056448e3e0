"""cuDNN, and the statistics of batch norm, in training and validation."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from project.data.datamodule import ImageDataModule
from project.tasks.translation import TranslationTask
from project.training.callbacks import CudnnBenchmark, CurrentBatchNorm


def config(benchmark=None, deterministic=None):
    return SimpleNamespace(benchmark=benchmark, deterministic=deterministic)


def trainer(make_dataset, device="cpu", **options):
    folder = make_dataset(**options)
    data = ImageDataModule(folder.name, str(folder.parent))
    return SimpleNamespace(datamodule=data, testing=False, strategy=SimpleNamespace(root_device=torch.device(device)))


SIZES = {"val": [(48, 40), (32, 40), (48, 40), (48, 40), (48, 40)]}


@pytest.mark.parametrize(("sizes", "in_validation"), [(None, True), (SIZES, False)], ids=["one size", "several"])
def test_cudnn_searches_where_batches_have_one_size(make_dataset, sizes, in_validation):
    now = trainer(make_dataset, sizes=sizes)
    callback, before = CudnnBenchmark(config()), torch.backends.cudnn.benchmark
    callback.setup(now, None, "fit")
    callback.on_train_start(now, None)
    assert torch.backends.cudnn.benchmark
    callback.on_validation_start(now, None)
    assert torch.backends.cudnn.benchmark is in_validation
    callback.on_validation_end(now, None)
    assert torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("configured", [config(benchmark=False), config(deterministic="warn")])
def test_cudnn_stays_as_configured(make_dataset, configured, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    callback = CudnnBenchmark(configured)
    callback.on_train_start(trainer(make_dataset), None)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("device", "precision"), [("cpu", "highest"), ("cuda", "high")])
def test_matrices_are_multiplied_in_tf32_on_gpus_only(make_dataset, device, precision):
    before = torch.get_float32_matmul_precision()
    try:
        CudnnBenchmark(config()).setup(trainer(make_dataset, device), None, "fit")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


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
    assert torch.allclose(mean, torch.stack([x.mean(1) for x in channels]).mean(0), atol=1e-5)
    assert torch.allclose(variance, torch.stack([x.var(1) for x in channels]).mean(0), rtol=1e-4)


def test_frozen_layers_keep_their_statistics(tiny_dataset, make_trainer):
    _, callback = fit(tiny_dataset, make_trainer, freeze=True)
    assert not torch.allclose(callback.kept[0][0], callback.outputs[0].mean((0, 2, 3)), atol=1e-3)
