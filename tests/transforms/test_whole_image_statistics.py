"""One image is normalised in one way: in training, validation, prediction, and of every crop."""

import numpy as np
import pytest
import torch
from torch import nn

from project.data.datamodule import ImageDataModule
from project.inference.export import Exported
from project.models.unet import UNet
from project.tasks.masked import MaskedImageTask
from project.tasks.translation import TranslationTask

METHODS = ("image_mean_std", "image_percentile")


class Recorded(nn.Module):
    """Gives its input back, and keeps it."""

    def forward(self, x):
        self.seen = x
        return x


@pytest.fixture
def data(make_dataset):
    """Images whose crops differ in brightness, larger than the crops."""
    folder = make_dataset(shape=(64, 64))
    data = ImageDataModule(folder.name, str(folder.parent), batch_size=8, crop=16, num_workers=0)
    data.roles = ("image", "target")
    data.setup("fit")
    return data


def expected(whole, crop, method):
    wide = whole.astype(np.float64)
    offset, scale = wide.mean(), wide.std()
    if method == "image_percentile":
        offset, high = np.percentile(wide, [1, 99])
        scale = high - offset
    return (crop.astype(np.float64) - offset) / scale


@pytest.mark.parametrize("method", METHODS)
def test_crops_in_training_are_normalised_as_the_whole_image(data, method):
    task = TranslationTask(Recorded(), statistics=data.statistics, input_normalization=method, size_divisor=1)
    batch = next(iter(data.train_dataloader()))
    task.train()
    task.training_step(batch, 0)
    for index, raw, seen in zip(batch["index"].tolist(), batch["image"].numpy(), task.net.seen, strict=True):
        whole = data.reader("train").read("image", index)
        np.testing.assert_allclose(seen[0], expected(whole, raw[0], method), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_validation_and_prediction_see_the_same_values(data, method):
    task = TranslationTask(Recorded(), statistics=data.statistics, input_normalization=method, size_divisor=1).eval()
    batch = next(iter(data.val_dataloader()))
    task.validation_step(batch, 0)
    seen = task.net.seen
    assert torch.equal(task.network_input(batch), seen)
    torch.testing.assert_close(task.normalize_input(batch["image"]), seen, atol=1e-4, rtol=0)
    for raw, x in zip(batch["image"].numpy(), seen, strict=True):
        np.testing.assert_allclose(x[0], expected(raw[0], raw[0], method), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_an_exported_network_takes_the_statistics_of_its_whole_input(data, method):
    """Of what it is given: a crop that it gets alone is taken for an image."""
    task = TranslationTask(Recorded(), statistics=data.statistics, input_normalization=method, size_divisor=1).eval()
    whole = data.reader("val").read("image", 0)
    for given in (whole, whole[:, :20, :30]):
        Exported(task)(torch.from_numpy(given)[None])
        np.testing.assert_allclose(task.net.seen[0], expected(given, given, method), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_pretraining_does_as_well(data, method):
    options = {"statistics": data.statistics, "input_normalization": method}
    batch = next(iter(data.train_dataloader()))
    masked = MaskedImageTask(UNet(width=4), patch=4, **options).eval()
    wholes = [data.reader("train").read("image", index) for index in batch["index"].tolist()]
    pairs = zip(wholes, batch["image"].numpy(), strict=True)
    values = np.stack([expected(whole, raw, method) for whole, raw in pairs])
    np.testing.assert_allclose(masked.make_target(batch)[:, :-1], values, atol=1e-4)
