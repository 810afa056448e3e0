"""What is exported gives the run's own numbers, for any size, without this project."""

import json
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from project import load
from project.cli import main
from project.errors import UserError
from project.inference import export as exporting
from project.inference.export import export
from project.models.unet import UNet

pytestmark = pytest.mark.slow  # trains runs
WORDS = ["--data.batch_size=4", "--trainer.max_epochs=1", "--logger=none", "--unchecked", "--trainer.accelerator=cpu"]
WORDS += ["--model.init_args.target_normalization=asinh"]
WORDS += ["--model.init_args.net.init_args.width=2", "--model.init_args.net.init_args.depth=2", "--data.crop=32"]


DATASET = {"shape": (40, 40), "roles": ("image", "target", "mask", "instances"), "n_labels": 3, "n_values": 1}


@pytest.fixture(scope="module")
def every_task(workplace):
    """Experiment -> its run folder; trained until the statistics of batch normalization are those of the data."""

    def train(name):
        folder = Path("runs", name, "latest")
        if not folder.exists():
            assert main(["train", name, "--data.crop=32", *WORDS[:5], "--trainer.max_epochs=6"]) == 0
        return folder.resolve()

    return train


@pytest.fixture(scope="module")
def place(workplace):
    """A working folder with a run."""
    assert main(["train", "unet_mse", *WORDS]) == 0
    return workplace


def raw(*shape):
    return np.random.default_rng(0).integers(9000, 12000, shape).astype(np.uint16)


def test_pt2_gives_the_runs_numbers_for_any_size(place, tmp_path, capsys):
    assert main(["export", "unet_mse", "--formats", "pt2", "--output", str(tmp_path)]) == 0
    assert "differs from the run by" in capsys.readouterr().out
    files = {"about.json": ""}
    program = torch.export.load(tmp_path / "unet_mse.pt2", extra_files=files).module()
    model = load("unet_mse")
    for shape in ((1, 1, 40, 40), (5, 1, 64, 33), (1, 1, 97, 200)):
        found = program(torch.from_numpy(raw(*shape))).numpy()
        expected = np.stack([model.estimate(image).values for image in raw(*shape)])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    about = json.loads(files["about.json"])
    assert about["input"] == {"name": "raw", "dtype": "uint16", "channels": ["in0"], "least_size": 33}
    assert json.loads((tmp_path / "export.json").read_text())["difference"]["pt2"] < 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "unet_mse.pt2"]


def test_onnx_gives_the_runs_numbers_for_any_size(place, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    assert "differs from the run by" in export("unet_mse", tmp_path, ["onnx"], floats=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "unet_mse.onnx"), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type) for i in session.get_inputs()] == [("raw", "tensor(float)")]
    model = load("unet_mse")
    for shape in ((1, 1, 40, 40), (5, 1, 64, 33)):
        found = session.run(None, {"raw": raw(*shape).astype(np.float32)})[0]
        expected = np.stack([model.estimate(image).values for image in raw(*shape)])
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_missing_packages_are_named(place, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx, onnxscript, onnxruntime: .* -m pip install -e '\.\[export\]'"):
        export("unet_mse", tmp_path, ["onnx", "pt2"])
    with pytest.raises(UserError, match="take one of onnx, pt2"):
        export("unet_mse", tmp_path, ["onx"])
    assert not list(tmp_path.iterdir())


class Other(UNet):
    """A network that has changed by the time it is looked at again."""

    def forward(self, x):
        return super().forward(x) * (1 if torch.compiler.is_exporting() else 1.01)


def test_a_file_that_gives_other_numbers_is_not_written(place, tmp_path, monkeypatch):
    model = load("unet_mse")
    model.task.net.__class__ = Other
    monkeypatch.setattr(exporting, "load", lambda *arguments: model)
    with pytest.raises(UserError, match="differs from unet_mse"):
        export("unet_mse", tmp_path, ["pt2"])
    monkeypatch.setattr(model.task.net, "forward", lambda x: x * float(x.numpy().max()))
    with pytest.raises(UserError, match="cannot be exported"):
        export("unet_mse", tmp_path, ["pt2"])
    assert not list(tmp_path.iterdir())


class Offline:
    """A socket that cannot be opened."""

    def __init__(self, *arguments, **options):
        raise AssertionError("a network connection was tried")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # theirs
@pytest.mark.parametrize(
    "name",
    ["unet_mse", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("unet_dice", "resnet_ce", "resnet_count"))],
)
def test_a_bioimageio_package_is_valid_offline_and_reproduces_its_test_output(every_task, tmp_path, monkeypatch, name):
    spec = pytest.importorskip("bioimageio.spec")
    onnxruntime = pytest.importorskip("onnxruntime")
    run = every_task(name)
    monkeypatch.setattr(socket, "socket", Offline)
    assert f"{name}.bioimageio.zip: valid" in export(str(run), tmp_path, ["bioimageio"])
    with zipfile.ZipFile(tmp_path / f"{name}.bioimageio.zip") as package:
        package.extractall(tmp_path / "package")
    description = spec.load_description(tmp_path / "package", perform_io_checks=True)
    assert description.validation_summary.status == "valid-format"  # "passed" is for who has run it, too
    assert (tmp_path / "package/card.md").read_text() == (run / "card.md").read_text()
    assert description.covers
    assert "raw values of in0 as uint16 to " in description.description
    assert "filled in" in (tmp_path / "package/LICENSE.txt").read_text()
    session = onnxruntime.InferenceSession(tmp_path / "package" / f"{name}.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"raw": np.load(tmp_path / "package/test_input.npy")})[0]
    expected = np.load(tmp_path / "package/test_output.npy")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * load(str(run)).prediction_range)
    assert len(description.outputs[0].axes[1].channel_names) == expected.shape[1]
