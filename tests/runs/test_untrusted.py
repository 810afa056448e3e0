"""Run folders from elsewhere: no code that they name is run, and names stay in their folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from project import load
from project.cli import main
from project.errors import UserError
from project.files import safe_file_name
from project.runs.prediction_files import prediction_path, write_files
from project.runs.run_folder import Run
from project.runs.untrusted import evaluation_config, read_config, require_trusted_location
from project.training.evaluate import rebuilt

NET = ["--model.init_args.net.init_args.width", "2", "--model.init_args.net.init_args.depth", "1"]
# Importing it leaves a folder; as a network it is the one that was trained.
EVIL = """
import os
os.makedirs({trap!r}, exist_ok=True)
from project.models.unet import UNet
class Net(UNet):
    pass
"""


@pytest.fixture(scope="module")
def trained(workplace):
    """A working folder with a run of one epoch."""
    words = ["--logger=none", "--data.crop=32", "--data.batch_size=4", "--trainer.max_epochs=1"]
    assert main(["train", "unet_mse", *words, "--trainer.accelerator=cpu", *NET]) == 0
    return workplace


@pytest.fixture
def work(trained, tmp_path, monkeypatch):
    """The same, to be changed; modules in it can be imported, as with `python -m project`; `evil` is installed."""
    folder = tmp_path / "work"
    shutil.copytree(trained, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    evil_module(tmp_path / "installed/evil.py")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("evil", "own", "shared", "downloads", "runs", "data"):
            del sys.modules[name]


def test_options_that_are_gone_are_left_out_of_older_runs_unless_they_were_in_use(tmp_path):
    net = {"class_path": "project.models.classifier.EncoderClassifier"}
    options = {"net": net | {"init_args": {"hidden": None, "depth": 3}}, "other": net | {"init_args": {"hidden": 64}}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {"init_args": options}}))
    read = read_config(path)["model"]["init_args"]
    assert read["net"]["init_args"] == {"depth": 3}
    assert read["other"]["init_args"] == {"hidden": 64}


def latest():
    return Run(next(path for path in Path("runs/unet_mse").iterdir() if not path.is_symlink()))


def from_elsewhere():
    return Run(Path(shutil.copytree(latest().folder, "elsewhere/unet_mse/x")))


def change_config(run, **arguments):
    """Set arguments of the task in the configuration of a run."""
    config = yaml.safe_load(run.config.read_text())
    config["model"]["init_args"] |= arguments
    run.config.write_text(yaml.safe_dump(config))


def name_net(run, class_path):
    net = yaml.safe_load(run.config.read_text())["model"]["init_args"]["net"]
    change_config(run, net=net | {"class_path": class_path})


def evil_module(path, trap="trap"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(EVIL.format(trap=str(Path(trap).absolute())))


def is_built(run):
    with rebuilt(run):
        return True


def test_other_packages_need_trust(work, capsys):
    run = latest()
    name_net(run, "evil.Net")
    assert main(["eval", str(run.folder)]) == 2
    message = capsys.readouterr().err
    assert "evil.Net is code from outside" in message
    assert "add --trust" in message
    with pytest.raises(UserError, match=r"evil\.Net"):
        load(run.folder)
    assert not Path("trap").exists()
    assert main(["eval", str(run.folder), "--trust"]) == 0
    assert Path("trap").exists()


def test_resuming_and_reproducing_a_run_from_elsewhere_need_trust(work, capsys):
    run = from_elsewhere()
    name_net(run, "evil.Net")
    for words in (["train", "--resume"], ["reproduce"]):
        assert main([*words, str(run.folder)]) == 2
        assert "does not lie below runs/" in capsys.readouterr().err
    assert not Path("trap").exists()
    require_trusted_location(run, trusted=True)
    require_trusted_location(latest(), trusted=False)


@pytest.mark.parametrize("how", ["git", "experiment"])
def test_modules_that_git_tracks_or_an_experiment_here_names_are_trusted(work, how):
    evil_module(Path("own/nets.py"))
    run = from_elsewhere()
    name_net(run, "own.nets.Net")
    Path("configs/experiments/mine.yaml").write_text("model: {}  # not own.nets.Net\n")
    with pytest.raises(UserError, match=r"own\.nets\.Net"):
        is_built(run)
    if how == "git":
        subprocess.run(["git", "init", "-q"], check=True)
        subprocess.run(["git", "add", "own"], check=True)
    else:
        Path("configs/experiments/mine.yaml").write_text("model: {init_args: {net: {class_path: own.nets.Other}}}\n")
    assert is_built(run)
    assert Path("trap").exists()


def test_git_tracks_all_files_that_an_import_runs(work):
    evil_module(Path("own/nets.py"))
    Path("own/__init__.py").touch()
    run = from_elsewhere()
    name_net(run, "own.nets.Net")
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "own/nets.py"], check=True)
    with pytest.raises(UserError, match=r"own\.nets\.Net"):
        is_built(run)


def test_a_link_below_runs_is_from_elsewhere(work):
    run = from_elsewhere()
    Path("runs/unet_mse/linked").symlink_to(run.folder.absolute())
    with pytest.raises(UserError, match="does not lie below"):
        require_trusted_location(Run(Path("runs/unet_mse/linked")), trusted=False)


@pytest.mark.parametrize("folder", ["shared/unet_mse/run1", "runs/unet_mse/x"])
def test_code_in_or_beside_a_run_folder_is_not_trusted(work, folder):
    """As in an archive that was unpacked here."""
    run = Run(Path(shutil.copytree(latest().folder, folder)))
    evil_module(Path("shared/code/evil.py"))
    evil_module(Path(folder, "evil.py"))
    subprocess.run(["git", "init", "-q"], check=True)
    Path("shared/__init__.py").touch()
    subprocess.run(["git", "add", "shared/__init__.py"], check=True)
    for name in ("shared.code.evil.Net", f"{folder.replace('/', '.')}.evil.Net"):
        name_net(run, name)
        with pytest.raises(UserError, match=name):
            is_built(run)
    assert not Path("trap").exists()


# Of torch, and declares that it returns a module: it runs the text that it gets.
TEXT = {"body": {"_code": "forward = lambda *a:a[1]"}, "import_block": "from os import mkdir; mkdir('trap')\n"}
OF_TEXT = {"class_path": "torch.fx.graph_module.reduce_graph_module", "init_args": TEXT}
HUB = {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": "hub", "model": "net", "source": "local"}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss", json.dumps(OF_TEXT).replace("torch.fx", "torch.f\\u0078")),
        ("net", HUB),
        ("net", {"class_path": "torch.serialization.os.system", "init_args": {"command": "mkdir trap"}}),
        ("net", {"class_path": "project.provenance.subprocess.Popen", "init_args": {"args": ["mkdir", "trap"]}}),
        ("net", '{"class_path": "e\\u0076il.Net"}'),
        ("net", "hidden.yaml"),
        ("loss", {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "trap"]}}),
        ("intensity_augmentation", "os.getcwd"),
        # A wrong value is not imported to explain what is wrong.
        ("net", {"class_path": "torch.nn.Linear", "init_args": {"in_features": {"class_path": "evil.Net"}}}),
    ],
)
def test_no_spelling_runs_other_code(work, key, value):
    Path("hidden.yaml").write_text("class_path: evil.Net\n")
    evil_module(Path("hub/hubconf.py"))
    run = latest()
    change_config(run, **{key: value})
    with pytest.raises(UserError):
        is_built(run)
    assert not Path("trap").exists()


def test_of_the_trainer_only_what_decides_numbers_is_used(work):
    from jsonargparse import _common

    before = dict(_common.parsing_settings)
    run = latest()
    config = yaml.safe_load(run.config.read_text())
    config["trainer"] |= {"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}], "limit_val_batches": 1}
    run.config.write_text(yaml.safe_dump(config))
    with evaluation_config(run, []) as used:
        assert used["trainer"].keys().isdisjoint(("callbacks", "limit_val_batches"))
        assert _common.parsing_settings != before
    assert _common.parsing_settings == before


def test_a_changed_configuration_is_reported(work, monkeypatch):
    run, calls = latest(), list[tuple]()
    monkeypatch.setattr("project.runs.untrusted.log.warning", lambda *words: calls.append(words))
    text = run.config.read_text()
    for n_calls, changed in enumerate([text.replace("\n", "\r\n"), text + "# changed\n"]):
        run.config.write_text(changed, newline="")
        with evaluation_config(run, []):
            assert len(calls) == n_calls


@pytest.mark.parametrize("text", ["[1, 2]", "!!python/object/apply:os.mkdir [trap]", "[" * 5000])
def test_damaged_configurations_are_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="no configuration of a run, or damaged"):
        read_config(path)


def test_checkpoints_that_do_not_fit_are_refused(work):
    path = latest().checkpoints / "best.ckpt"
    content, data = torch.load(path, weights_only=True), path.read_bytes()

    def refused(message):
        with pytest.raises(UserError, match=message):
            load(latest().folder)

    path.write_bytes(data[:-100])
    refused("damaged, incomplete")
    torch.save(content | {"state_dict": {"net.other": torch.zeros(3)}}, path)
    refused("does not fit the network")
    torch.save({"a": 1}, path)
    refused("is no checkpoint of a training")


TRICKS = ["../../x", "/etc/x", "..", "a/../../x", "..\\..\\x", "x\ny", "x" * 5000, "é" * 300, "~/x", " "]


@pytest.mark.parametrize("id_", TRICKS)
def test_predictions_stay_in_their_folder(tmp_path, id_):
    written = write_files(prediction_path(tmp_path / "out", id_), {"": np.zeros((4, 4), "u1"), "_b": np.zeros((4, 4))})
    assert len(written) == 2
    assert all(path.resolve().is_relative_to(tmp_path / "out") and path.is_file() for path in written)


def test_file_names_differ_where_the_texts_do():
    assert safe_file_name("a/b") == "a_b"
    assert safe_file_name("plain name-1.tif") == "plain name-1.tif"
    assert len({safe_file_name(text) for text in [*TRICKS, "x" * 5001]}) == len(TRICKS) + 1


@pytest.mark.parametrize("name", ["log.txt", "pictures", "samples/val.csv"])
def test_links_in_a_run_from_elsewhere_are_refused(work, capsys, name):
    run = from_elsewhere()
    outside, link = work / "outside", run.folder / name
    outside.write_text("kept")
    shutil.rmtree(link) if link.is_dir() else link.unlink()
    link.symlink_to(outside)
    assert main(["eval", str(run.folder)]) == 2
    assert name in capsys.readouterr().err
    assert outside.read_text() == "kept"
