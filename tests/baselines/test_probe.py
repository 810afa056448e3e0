"""Probes: an encoder with random weights, saved to a file, stands for a pretrained one."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from project.baselines import probe
from project.baselines.base import fit_to_batches
from project.baselines.colors import ColorClassifier
from project.baselines.probe import FrozenEncoder, ProbeClassifier, ProbeRegression, fit_regularized
from project.cli import main
from project.data.datamodule import ImageDataModule
from project.errors import UserError
from project.models.encoder_files import find_encoder
from project.models.pretrained import Pretrained, load_pretrained
from project.runs.run_folder import Run
from project.tasks.classification import ClassificationTask

ENCODER = "tu-test_resnet"


def images(n=6, size=(40, 50), channels=1, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, channels, *size))).float()


def upsampled(net, x):
    """All feature maps at each pixel, (B, F, H, W)."""
    maps = net.features.maps(x)
    full = [functional.interpolate(features, maps[0].shape[2:], mode="bilinear") for features in maps]
    return torch.cat(full, 1)[..., : x.shape[2], : x.shape[3]]


def test_a_pixel_is_predicted_from_the_feature_maps_at_its_place(monkeypatch):
    """The target is a linear function of them, so that sampled features and predictions have to be the same ones."""
    monkeypatch.setattr(probe, "STRENGTHS", (1e-4,))
    torch.manual_seed(0)
    net, x = ProbeRegression(ENCODER, n_pixels=4000), images()
    with torch.no_grad():
        features = upsampled(net, x)
        y = torch.einsum("bfhw,kf->bkhw", features, torch.randn(2, features.shape[1]) / (features.std((0, 2, 3)) + 0.1))
        net.fit((x[i : i + 2], y[i : i + 2], torch.arange(i, i + 2)) for i in (0, 2, 4))
        error = (net(x) - y).square().mean() / y.var()
    assert net(x).shape == y.shape
    assert error < 0.01


def test_labels_of_textures_that_colors_do_not_show():
    """Stripes, upright or not, in images smaller than the encoder would like."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, 80))
    waves = np.sin(np.arange(20) * 1.5 + rng.uniform(0, 6, (80, 1)))
    x = torch.from_numpy(np.repeat(waves[:, None, None], 20, 2)).float() + 0.1 * images(80, (20, 20))
    x[labels == 1] = x[labels == 1].transpose(2, 3)
    torch.manual_seed(0)
    net, colors = ProbeClassifier(ENCODER, classes=2), ColorClassifier(2)
    with torch.no_grad():
        net.fit(iter([(x[:60], labels[:60], torch.arange(60))]))
        colors.fit([(x[:60], labels[:60])])
        right, by_color = ((model(x[60:]).argmax(1) == labels[60:]).float().mean() for model in (net, colors))
    assert right > 0.9 > by_color


def test_masks_are_fitted_where_they_are_annotated():
    torch.manual_seed(0)
    net, x = ProbeClassifier(ENCODER, classes=3, n_pixels=3000), images()
    y = (x[:, 0] > 0).long()
    y[:, :20] = -100
    with torch.no_grad():
        net.fit(iter([(x, y, torch.arange(6))]))
        prediction = net(x)
    assert prediction.shape == (6, 3, 40, 50)
    assert (prediction.argmax(1) == y)[:, 20:].float().mean() > 0.8


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_regularization_is_what_other_groups_ask_for(kind):
    """Features show the group, and targets belong to it: to another group that says nothing."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    table = np.eye(30)[groups] + 0.1 * rng.normal(size=(300, 30))
    targets = rng.integers(0, 2, 30)[groups] if kind == "classes" else rng.normal(size=(30, 1))[groups]
    linear, name = (
        (LogisticRegression(max_iter=10_000), "logisticregression__C")
        if kind == "classes"
        else (Ridge(), "ridge__alpha")
    )
    sizes = []
    for known in (groups, np.arange(300)):
        model = make_pipeline(StandardScaler(), linear)
        fit_regularized(model, name, table, targets, known)
        sizes.append(np.abs(model[-1].coef_).sum())
    assert sizes[0] < sizes[1] / 3


def test_a_class_of_one_group_is_fitted_without_cross_validation():
    model = make_pipeline(StandardScaler(), LogisticRegression())
    fit_regularized(model, "logisticregression__C", np.eye(4), np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2]))
    assert model.predict(np.eye(4)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("train", [True, False])
def test_the_encoder_stays_as_it_is(train):
    net = FrozenEncoder(ENCODER, 1, 10)
    net = net.train() if train else net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        net.read_table(iter([(images(), torch.zeros(6, dtype=torch.int64), torch.arange(6))]))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("tiny_dataset", [{"n_labels": 3}], indirect=True)
def test_only_a_sample_of_many_images_is_read(tiny_dataset, monkeypatch):
    monkeypatch.setattr(probe, "MOST_PIXELS", 5 * 96**2)
    data = ImageDataModule(dataset=tiny_dataset.name, root=str(tiny_dataset.parent), eval_batch_size=4)
    data.roles = ClassificationTask.inputs
    task = ClassificationTask(ProbeClassifier(ENCODER, classes=3), statistics=data.statistics, classes=data.classes)
    seen = []
    monkeypatch.setattr(task.net, "fit", lambda triples: seen.extend(triples))
    fit_to_batches(task, data.eval_dataloader("train"))
    assert sum(len(x) for x, _, _ in seen) == 5
    assert all(len(x) == len(y) == len(group) for x, y, group in seen)


# Files of weights -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data/pretrained").mkdir(parents=True)
    return tmp_path / "data/pretrained"


def save(path: Path, model="test_resnet"):
    torch.manual_seed(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(timm.create_model(model).state_dict(), path)


def test_the_smallest_file_fits_its_encoder(folder):
    assert find_encoder() is None
    save(folder / "resnet18.pth", "resnet18")
    save(folder / "test_resnet.r160_in1k.pth")
    found = find_encoder()
    assert found.name == ENCODER
    net = ProbeClassifier(found.name, in_channels=3)
    load_pretrained(net, Pretrained(**found.pretrained("features.encoder")))
    stored = torch.load(found.path, weights_only=True)
    ours = net.features.encoder.model.state_dict()
    assert len(ours) > 20
    assert all(torch.equal(value, stored[name]) for name, value in ours.items())


def test_a_file_with_another_name_is_refused(folder):
    save(folder / "test_resnt.pth")
    with pytest.raises(UserError, match=r'"test_resnt".*Did you mean "test_resnet"'):
        find_encoder()
    (folder / "test_resnt.pth").rename(folder / "resnet34.pth")
    with pytest.raises(UserError, match=r'resnet34\.pth does not fit an encoder "resnet34"'):
        find_encoder()


def test_weights_in_the_cache_are_taken(folder, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "cache/models--timm--test_resnet.r160_in1k/snapshots/1/model.safetensors"
    path.parent.mkdir(parents=True)
    save_file(timm.create_model("test_resnet").state_dict(), path)
    assert find_encoder().pretrained()["file"] == str(path)
    assert find_encoder().pretrained()["part"] == "encoder.model"


@pytest.mark.slow
def test_baselines_have_a_probe_where_there_are_weights(workplace, write_tiny, monkeypatch, capsys):
    write_tiny(
        workplace / "data/processed/kinds", shape=(64, 72), roles=("image", "target", "mask"), n_labels=3, n_values=1
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "cache")
    names = ["baseline_probe", "baseline_probe_mask", "baseline_probe_target", "baseline_value_probe"]
    monkeypatch.setattr("project.prerequisites.config_names", lambda folder: names)
    assert main(["baselines", "kinds"]) == 1
    assert f"{', '.join(names)} are left out: there are no pretrained weights" in capsys.readouterr().out
    weights = workplace / "data/pretrained/test_resnet.pth"
    save(weights)
    assert main(["baselines", "kinds"]) == 0
    weights.unlink()
    for name in names:
        run = Run(Path("runs", name, "latest").resolve())
        assert "test_resnet.pth" in " ".join(run.read("provenance.json")["pretrained"])
        before = run.read("metrics.json")["metrics"]
        assert main(["eval", name]) == 0  # from its checkpoint
        assert run.read("metrics.json")["metrics"] == before
        assert main(["export", name, "--formats", "pt2", "--size", "64", "72"]) == 0
