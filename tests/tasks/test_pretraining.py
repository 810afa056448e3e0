"""Masked images: what is hidden, what is scored, and the way to a fine-tuned network."""

import numpy as np
import pytest
import torch
from torch import nn

from project.data.dataset import SplitDataset
from project.data.store import SplitReader
from project.errors import UserError
from project.inference.export import Exported
from project.models.unet import UNet
from project.tasks.masked import MaskedImageTask, hide, random_patches
from project.transforms.intensity import IntensityAugmentation

PATCH = 8


class Echo(nn.Module):
    """Gives what it gets, and keeps it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return x + self.weight


@pytest.fixture
def reader(make_dataset):
    return SplitReader(make_dataset(shape=(40, 32), channels=2, roles=("image",)) / "val.h5")


def task(reader, net=None, **options):
    channels = {"image": ["a", "b"]}
    options = {"patch": PATCH, "size_divisor": 1, **options}
    return MaskedImageTask(net or Echo(), statistics=reader.attributes["statistics"], channels=channels, **options)


def batch(reader, indices):
    return SplitDataset(reader, ("image",)).__getitems__([(0, i) for i in indices])


def test_in_validation_an_image_always_has_the_same_patches_hidden(reader):
    model = task(reader).eval()
    together, alone = model.make_target(batch(reader, [0, 1, 2])), model.make_target(batch(reader, [2]))
    assert torch.equal(together[2], alone[0])
    assert not torch.equal(together[0, -1], together[1, -1])
    assert not torch.equal(task(reader, seed=1).eval().make_target(batch(reader, [2])), alone)
    share = together[:, -1].mean((1, 2))
    assert torch.allclose(share, torch.full((3,), 0.6))  # 12 of 20 patches


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss()])
def test_the_loss_is_the_mean_over_the_hidden_pixels(reader, loss):
    model = task(reader, loss=loss).eval()
    target = model.make_target(batch(reader, [0, 1]))
    x, hidden = target[:, :-1], target[:, -1:].expand(-1, 2, -1, -1) > 0
    output = torch.randn_like(x)
    assert model.compute_loss(output, target).item() == pytest.approx(loss(output[hidden], x[hidden]).item(), rel=1e-5)
    elsewhere = torch.where(hidden, output, output + 100)
    assert model.compute_loss(elsewhere, target) == model.compute_loss(output, target)


def test_the_network_never_sees_what_it_has_to_give(reader):
    model = task(reader, intensity_augmentation=IntensityAugmentation(), ratio=0.5)
    one = batch(reader, [0, 1])
    for training in (True, False):
        model.train(training)
        targets = []
        original = model.compute_loss
        model.compute_loss = lambda output, target: targets.append(target) or original(output, target)  # noqa: B023
        torch.manual_seed(0)
        (model.training_step if training else model.validation_step)(one, 0)
        target, seen = targets[0][:1], model.net.seen[-1][:1]
        hidden = target[:, -1:] > 0
        assert torch.equal(seen, hide(target[:, :-1], hidden))
        assert seen[:, 0][hidden[:, 0]].unique().numel() == 1  # the mean of what is seen
        del model.compute_loss


def test_scores_are_those_of_the_hidden_pixels_whatever_the_batch(reader):
    model = task(reader).eval()
    images = batch(reader, [0, 1, 2])
    prediction = torch.randn(3, 2, 40, 32, generator=torch.Generator().manual_seed(0))
    target = model.make_target(images)
    rows = model.metrics.columns(prediction, {"network_target": target})
    for i in range(3):
        hidden = target[i, -1].numpy() > 0
        p, t = (array[:, hidden].astype(np.float64) for array in (prediction[i].numpy(), target[i, :-1].numpy()))
        assert rows["mse"][i].item() == pytest.approx(np.mean((p - t) ** 2), rel=1e-9)
        assert rows["deviation"][i].item() == pytest.approx(((t - t.mean(1, keepdims=True)) ** 2).sum(), rel=1e-9)
        alone = model.metrics.columns(prediction[i : i + 1], {"network_target": model.make_target(batch(reader, [i]))})
        assert {name: column[i].item() for name, column in rows.items()} == {k: v.item() for k, v in alone.items()}
    metrics, undefined = model.metrics.aggregate({"loss": torch.zeros(len(rows["mse"])), **rows})
    assert metrics["mse"] == rows["mse"].mean().item()
    assert metrics["r2_pooled"] == pytest.approx(1 - (rows["sum_squared_error"].sum() / rows["deviation"].sum()).item())
    assert undefined == {}


def test_a_prediction_is_an_image_also_where_it_is_turned_or_exported(reader):
    model = task(reader, UNet(2, 2, 4, 2), size_divisor=32).eval()
    raw = batch(reader, [0, 1])["image"]
    assert model.is_dense
    torch.testing.assert_close(Exported(model)(raw), model(raw))  # 40 pixels are padded to 64


def test_wrong_sizes_are_reported(reader):
    with pytest.raises(UserError, match="share from 0 to 1"):
        task(reader, ratio=1.0)
    with pytest.raises(UserError, match="smaller patches"):
        task(reader, patch=64).eval().make_target(batch(reader, [0]))
    with pytest.raises(UserError, match=r"gives \(1, 40, 32\) per image, but 2 are needed"):
        task(reader, nn.Conv2d(2, 1, 1)).eval()(batch(reader, [0])["image"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_image_has_as_many_hidden_patches_elsewhere():
    hidden = random_patches(6, 32, 48, 8, 0.5, generator())
    assert torch.equal(random_patches(6, 30, 41, 8, 0.5, generator()), hidden[..., :30, :41])  # cut at the border
    assert hidden.shape == (6, 1, 32, 48)
    cells = hidden.view(6, 4, 8, 6, 8)
    assert torch.equal(cells.all(4).all(2), cells.any(4).any(2))  # whole patches
    assert cells.all(4).all(2).sum((1, 2)).tolist() == [12] * 6
    assert len({tuple(each.flatten().tolist()) for each in hidden}) == 6
    assert torch.equal(hidden, random_patches(6, 32, 48, 8, 0.5, generator()))


def test_nothing_of_what_is_hidden_can_be_seen():
    hidden = random_patches(4, 16, 16, 4, 0.5, generator())
    x = torch.randn(4, 2, 16, 16)
    other = torch.where(hidden, torch.randn(4, 2, 16, 16), x)
    assert torch.equal(hide(x, hidden), hide(other, hidden))
    seen = hide(x, hidden)
    assert torch.equal(torch.where(hidden, 0, seen), torch.where(hidden, 0, x))
    for i in range(4):
        for c in range(2):
            expected = x[i, c][~hidden[i, 0]].mean()
            assert torch.allclose(seen[i, c][hidden[i, 0]], expected, atol=1e-6)
