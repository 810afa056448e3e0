"""Views of images: their loss, and whether validation is the same for any batch."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from project.data.dataset import SplitDataset
from project.data.store import SplitReader
from project.errors import UserError
from project.metrics import pretraining
from project.tasks.contrastive import ContrastiveTask
from project.transforms.device import DeviceGeometry
from project.transforms.intensity import IntensityAugmentation


@pytest.fixture
def reader(make_dataset):
    return SplitReader(make_dataset(shape=(24, 24), roles=("image",)) / "val.h5")


def task(reader, net=None, **options):
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Flatten(), nn.Linear(24 * 24, 6))
    options = {
        "device_augmentation": DeviceGeometry(rotate=(-180, 180)),
        "intensity_augmentation": IntensityAugmentation(),
        **options,
    }
    return ContrastiveTask(net, statistics=reader.attributes["statistics"], channels={"image": ["a"]}, **options)


def batch(reader, indices):
    return SplitDataset(reader, ("image",)).__getitems__([(0, i) for i in indices])


def test_the_loss_is_that_of_the_paper(reader):
    model = task(reader, temperature=0.5).train()
    first, second = torch.randn(3, 6), torch.randn(3, 6)
    z = torch.cat([first, second]).double().numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    terms = []
    for i in range(6):
        pair = (i + 3) % 6
        others = [math.exp(z[i] @ z[k] / 0.5) for k in range(6) if k != i]
        terms.append(-math.log(math.exp(z[i] @ z[pair] / 0.5) / sum(others)))
    assert model.compute_loss(first, second).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_in_validation_an_image_always_has_the_same_view(reader):
    model = task(reader).eval()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    together, alone = model.make_target(batch(reader, [0, 1, 2])), model.make_target(batch(reader, [2]))
    assert torch.equal(torch.get_rng_state(), state)  # whatever training draws goes on as without validation
    assert torch.equal(together[2], alone[0])
    assert not torch.equal(alone[0], model.normalize_input(batch(reader, [2])["image"])[0])
    assert not torch.equal(task(reader, seed=1).eval().make_target(batch(reader, [2])), alone)
    same = batch(reader, [0, 1])
    same["image"] = same["image"][:1].expand(2, -1, -1, -1).clone()
    views = model.make_target(same)
    assert not torch.equal(views[0], views[1])


def test_in_training_both_views_are_drawn(reader):
    model = task(reader).train()
    seen = []
    model.net.register_forward_hook(lambda _, given, __: seen.append(given[0].clone()))
    model.training_step(batch(reader, [0, 1]), 0).backward()
    assert [len(x) for x in seen] == [4]  # in one batch, which batch normalisation sees as a whole
    assert not torch.equal(seen[0][:2], seen[0][2:])
    assert all(p.grad.abs().sum() > 0 for p in model.net.parameters())


def test_scores_count_the_images_that_are_nearer(reader, monkeypatch):
    images, views = (
        torch.stack([x.cos(), x.sin()], 1)
        for x in (torch.tensor(degrees).double().deg2rad() for degrees in ([0.0, 20.0, 90.0], [12.0, 70.0, 85.0]))
    )
    # The view at 12 degrees is nearer to the image at 20 than its own at 70; the others find theirs.
    model = task(reader, temperature=0.1)
    similar = images @ views.T / 0.1
    for chunk in (1024, 2):
        monkeypatch.setattr(pretraining, "CHUNK", chunk)
        rows = {"loss": torch.zeros(3), "image": images, "view": views}
        rows = model.metrics.metrics[0].join(rows)
        metrics, undefined = model.metrics.metrics[0].aggregate(rows)
        assert rows["rank"].tolist() == [0, 1, 0]
        assert rows["top1"].tolist() == [1, 0, 1]
        assert torch.allclose(rows["loss"], -similar.log_softmax(1).diagonal())
        assert rows.keys() == {"loss", "rank", "top1"}  # one number for each sample
        assert (metrics, undefined) == ({"top1": pytest.approx(2 / 3), "rank": pytest.approx(1 / 3)}, {})


def test_views_that_would_be_the_same_are_refused(reader):
    with pytest.raises(UserError, match="two views of an image would be the same"):
        task(reader, device_augmentation=None, intensity_augmentation=None)
    with pytest.raises(UserError, match="above 0"):
        task(reader, temperature=0.0)
    with pytest.raises(UserError, match="should give some numbers"):
        task(reader, nn.Conv2d(1, 2, 3))(batch(reader, [0])["image"])
