"""When cuDNN tries its algorithms, and what is set for GPUs only."""

from types import SimpleNamespace

import pytest
import torch

from project.data.datamodule import ImageDataModule
from project.training.kernels import FastKernels


def config(benchmark=None, deterministic=None):
    return SimpleNamespace(benchmark=benchmark, deterministic=deterministic)


def trainer(make_dataset, device="cpu", **options):
    folder = make_dataset(**options)
    data = ImageDataModule(folder.name, str(folder.parent))
    return SimpleNamespace(datamodule=data, strategy=SimpleNamespace(root_device=torch.device(device)))


SIZES = {"val": [(48, 40), (32, 40), (48, 40), (48, 40), (48, 40)]}


@pytest.mark.parametrize(("sizes", "in_validation"), [(None, True), (SIZES, False)], ids=["one size", "several"])
def test_search_is_on_where_batches_have_one_size(make_dataset, sizes, in_validation):
    now = trainer(make_dataset, sizes=sizes)
    kernels, before = FastKernels(config()), torch.backends.cudnn.benchmark
    kernels.setup(now, None, "fit")
    kernels.on_train_start(now, None)
    assert torch.backends.cudnn.benchmark
    kernels.on_validation_start(now, None)
    assert torch.backends.cudnn.benchmark is in_validation
    kernels.on_validation_end(now, None)
    assert torch.backends.cudnn.benchmark
    kernels.teardown(now, None, "fit")
    assert torch.backends.cudnn.benchmark is before


@pytest.mark.parametrize("said", [config(benchmark=False), config(deterministic=True), config(deterministic="warn")])
def test_what_is_configured_stays(make_dataset, said):
    now = trainer(make_dataset)
    kernels = FastKernels(said)
    kernels.setup(now, None, "fit")
    kernels.on_train_start(now, None)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("device", "precision"), [("cpu", "highest"), ("cuda", "high")])
def test_matrices_are_multiplied_in_tf32_on_gpus_only(make_dataset, device, precision):
    before = torch.get_float32_matmul_precision()
    try:
        FastKernels(config()).setup(trainer(make_dataset, device), None, "fit")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
