"""cuDNN in training and validation."""

from types import SimpleNamespace

import pytest
import torch

from project.data.datamodule import ImageDataModule
from project.training.callbacks import CudnnBenchmark


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
