"""Run folders from elsewhere: what they name is not run, and what they are called leads nowhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml

from project.cli import main
from project.errors import UserError
from project.files import safe_file_name
from project.runs import untrusted as trust
from project.runs.run_folder import Run
from project.runs.untrusted import read_config
from project.training.evaluate import read_checkpoint
from project.training.recorder import Recorder

ROOT = Path(__file__).parents[2]
NET = ["--model.init_args.net.init_args.width", "2", "--model.init_args.net.init_args.depth", "1"]
# Importing it leaves a folder; as a network it does what the one that was trained does.
EVIL = """
import os
os.makedirs({trap!r}, exist_ok=True)
from project.models.unet import UNet
class Net(UNet):
    pass
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_tiny):
    """A working folder with a run of one epoch."""
    place, before = tmp_path_factory.mktemp("work"), Path.cwd()
    os.chdir(place)
    try:
        shutil.copytree(ROOT / "configs", place / "configs")
        write_tiny(place / "data/processed/yeast")
        words = ["--logger=none", "--data.crop=32", "--data.batch_size=4", "--trainer.max_epochs=1"]
        assert main(["train", "unet_mse", *words, "--trainer.accelerator=cpu", *NET]) == 0
    finally:
        os.chdir(before)
        os.environ.pop("PROJECT_RUN_FOLDER", None)
    return place


@pytest.fixture
def work(trained, tmp_path, monkeypatch):
    """The same, to be changed; modules in it can be imported, as with `python -m project`."""
    place = tmp_path / "work"
    shutil.copytree(trained, place, symlinks=True)
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    before = set(sys.modules)
    yield place
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("evil", "own", "shared", "downloads", "runs", "data"):
            del sys.modules[name]


def latest():
    return Run(next(path for path in Path("runs/unet_mse").iterdir() if not path.is_symlink()))


def name_net(run, class_path):
    """Let the configuration name another network."""
    config = yaml.safe_load(run.config.read_text())
    config["model"]["init_args"]["net"]["class_path"] = class_path
    run.config.write_text(yaml.safe_dump(config))


def evil_module(path, trap="trap"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(EVIL.format(trap=str(Path(trap).absolute())))


def refused(capsys, *words):
    assert main(["eval", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said) < 2000
    return said


def test_a_package_that_is_not_of_the_project_needs_trust(work, tmp_path, monkeypatch, capsys):
    evil_module(tmp_path / "installed" / "evil.py")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    run = latest()
    name_net(run, "evil.Net")
    said = refused(capsys, run.folder)
    assert "- evil.Net" in said
    assert "add --trust" in said
    assert not Path("trap").exists()
    assert main(["eval", str(run.folder), "--trust"]) == 0
    assert Path("trap").exists()


def test_modules_that_an_experiment_here_names_are_trusted(work, tmp_path, monkeypatch):
    evil_module(tmp_path / "installed" / "evil.py")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    run = latest()
    name_net(run, "evil.Net")
    Path("configs/experiments/mine.yaml").write_text("model: {init_args: {net: {class_path: evil.Other}}}\n")
    assert main(["eval", str(run.folder)]) == 0


@pytest.mark.parametrize("words", [("train", "--resume"), ("reproduce",)], ids=" ".join)
def test_to_go_on_with_a_run_from_elsewhere_or_to_reproduce_it_needs_trust(work, tmp_path, monkeypatch, capsys, words):
    evil_module(tmp_path / "installed" / "evil.py")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    run = latest()
    name_net(run, "evil.Net")
    shutil.copytree(run.folder, "elsewhere/unet_mse/x")
    assert main([*words, "elsewhere/unet_mse/x"]) == 2
    assert "does not lie below runs/" in capsys.readouterr().err
    assert not Path("trap").exists()
    main([*words, "elsewhere/unet_mse/x", "--trust"])
    assert "does not lie below" not in capsys.readouterr().err


@pytest.mark.parametrize("how", ["git", "experiment"])
@pytest.mark.parametrize("place", ["runs", "elsewhere"])
def test_a_file_that_git_tracks_or_an_experiment_names_is_the_users_own(work, how, place):
    evil_module(Path("own/nets.py"))
    run = latest()
    name_net(run, "own.nets.Net")
    if how == "git":
        subprocess.run(["git", "init", "-q"], check=True)
        subprocess.run(["git", "add", "own"], check=True)
    else:
        Path("configs/experiments/mine.yaml").write_text("model: {init_args: {net: {class_path: own.nets.Net}}}\n")
    if place == "elsewhere":
        run = Run(Path(shutil.copytree(run.folder, "elsewhere/unet_mse/x")))
    assert main(["eval", str(run.folder)]) == 0
    assert Path("trap").exists()


@pytest.mark.parametrize("where", ["shared/unet_mse/run1", "runs/unet_mse/x"])
@pytest.mark.parametrize("own", ["nothing", "its neighbour", "its package"])
def test_code_that_lies_beside_a_run_is_not(work, capsys, where, own):
    """As in an archive that was unpacked here."""
    shutil.copytree(latest().folder, where)
    evil_module(Path("shared/code/evil.py"))
    evil_module(Path("shared/code/mine.py"), trap="mine")
    name_net(Run(Path(where)), "shared.code.evil.Net")
    subprocess.run(["git", "init", "-q"], check=True)
    if own == "its neighbour":
        Path("configs/experiments/mine.yaml").write_text("model: {init_args: {net: shared.code.mine.Net}}\n")
    elif own == "its package":
        Path("shared/__init__.py").touch()
        subprocess.run(["git", "add", "shared/__init__.py", "shared/code/mine.py"], check=True)
    assert "- shared.code.evil.Net" in refused(capsys, where)
    # Nor does it run on the way to a module that is the user's own, or under a name that is spelt in another way.
    evil_module(Path("shared/code/__init__.py"))
    name_net(Run(Path(where)), "shared.code.mine.Net")
    if own != "its neighbour":
        refused(capsys, where)
    else:
        config = yaml.safe_load(Path(where, "config.yaml").read_text())
        config["model"]["init_args"]["net"] = '{"class_path": "shared.code.e\\u0076il.Net"}'
        config["model"]["init_args"]["loss"] = "shared.code.mine.Net"
        Path(where, "config.yaml").write_text(yaml.safe_dump(config))
        refused(capsys, where)
        Path("shared/code/__init__.py").unlink()
        refused(capsys, where)
    assert not Path("trap").exists()


@pytest.mark.parametrize("place", ["downloads/unet_mse/x", "runs/unet_mse/x"])
def test_a_file_in_the_run_folder_is_not(work, capsys, place):
    shutil.copytree(latest().folder, place)
    evil_module(Path(place, "evil.py"))
    name_net(Run(Path(place)), f"{place.replace('/', '.')}.evil.Net")
    assert f"{place.replace('/', '.')}.evil.Net" in refused(capsys, place)
    assert not Path("trap").exists()


# Of torch, and declares that it returns a module: it runs the text that it gets.
TEXT = {"body": {"_code": "forward = lambda *a:a[1]"}, "import_block": "from os import mkdir; mkdir('trap')\n"}
OF_TEXT = {"class_path": "torch.fx.graph_module.reduce_graph_module", "init_args": TEXT}
HUB = {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": "hub", "model": "net", "source": "local"}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("net", OF_TEXT),
        ("loss", json.dumps(OF_TEXT).replace("torch.fx", "torch.f\\u0078")),
        ("net", HUB),
        ("net", "torch.os.system"),
        ("net", {"class_path": "torch.serialization.os.system", "init_args": {"command": "mkdir trap"}}),
        ("net", {"class_path": "torch.hub.subprocess.Popen", "init_args": {"args": ["mkdir", "trap"]}}),
        ("net", '{"class_path": "e\\u0076il.Net"}'),
        ("net", "hidden.yaml"),
        ("loss", {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "trap"]}}),
        ("loss", "evil.Net"),
        ("intensity_augmentation", "os.getcwd"),
    ],
)
def test_no_way_to_write_it_runs_it(work, tmp_path, monkeypatch, capsys, key, value):
    evil_module(tmp_path / "installed" / "evil.py")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    Path("hidden.yaml").write_text("class_path: evil.Net\n")
    evil_module(Path("hub/hubconf.py"))
    run = latest()
    config = yaml.safe_load(run.config.read_text())
    config["model"]["init_args"][key] = value
    run.config.write_text(yaml.safe_dump(config))
    refused(capsys, run.folder)
    assert not Path("trap").exists()


@pytest.mark.parametrize("key", ["callbacks", "strategy", "plugins", "profiler", "logger"])
def test_nor_does_a_section_of_the_trainer(work, tmp_path, monkeypatch, capsys, key):
    evil_module(tmp_path / "installed" / "evil.py")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    run = latest()
    config = yaml.safe_load(run.config.read_text())
    config["trainer"][key] = [{"class_path": "evil.Net"}] if key in ("callbacks", "plugins") else "evil.Net"
    run.config.write_text(yaml.safe_dump(config))
    assert "evil.Net" in refused(capsys, run.folder)
    assert not Path("trap").exists()


def test_settings_of_jsonargparse_are_as_before(work, capsys):
    from jsonargparse import _common

    before = dict(_common.parsing_settings)
    assert main(["eval", "unet_mse"]) == 0
    assert _common.parsing_settings == before


def test_every_run_of_the_shipped_experiments_is_evaluated_without_trust(work, monkeypatch):
    """Their configurations name nothing else; the list of packages is not to be forgotten when one is added."""
    for path in (Path("configs/default.yaml"), *Path("configs/experiments").glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        with trust.restrict_imports(Run(Path("elsewhere/x/y")), content, []):
            pass


# Damaged and strange --------------------------------------------------------------------------------------------------


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)
CONFIGS = {
    "empty": "",
    "a list": "[1, 2]",
    "no YAML": "a: [1, 2",
    "a Python object": "!!python/object/apply:os.mkdir [trap]",
    "a bomb": BOMB,
    "deep": "[" * 5000,
    "large": "a: " + "x" * 2**21,
    "binary": "\x00\x01",
    "only a section": "model: 3",
    "a wrong section": "trainer: [1]\nmodel: {class_path: torch.nn.Linear}\n",
}


@pytest.mark.parametrize("text", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_is_none_is_told(work, capsys, text):
    run = latest()
    run.config.write_text(text)
    refused(capsys, run.folder)
    assert not Path("trap").exists()


def test_configurations_are_read_as_plain_values(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: {class_path: a.B}\n")
    assert read_config(path) == {"model": {"class_path": "a.B"}}


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"data_hash": 3, "fold": []}'])
def test_damaged_facts_are_told(work, capsys, text):
    run = latest()
    (run.folder / "provenance.json").write_text(text)
    refused(capsys, run.folder)


@pytest.mark.parametrize("key", ["dataset", "task", "experiment"])
@pytest.mark.parametrize("value", ["../../../outside", "/outside", "a/b", "..", 7])
def test_names_in_a_run_folder_lead_nowhere(work, capsys, key, value):
    run = latest()
    facts = json.loads((run.folder / "provenance.json").read_text())
    (run.folder / "provenance.json").write_text(json.dumps(facts | {key: value}))
    assert f"{key} is {str(value)!r}" in refused(capsys, run.folder)


def test_names_in_metrics_lead_nowhere_either(work):
    run = latest()
    content = json.loads((run.folder / "metrics.json").read_text())
    content["run"]["dataset"] = "../../../outside"
    (run.folder / "metrics.json").write_text(json.dumps(content))
    before = {path for path in Path("..").rglob("*") if "tables" not in path.parts and path.suffix != ".npz"}
    main(["table"])
    after = {path for path in Path("..").rglob("*") if "tables" not in path.parts and path.suffix != ".npz"}
    assert after == before


@pytest.mark.parametrize("change", ["cut", "other", "not one", "no epoch", "sharded", "none"])
def test_a_checkpoint_that_does_not_fit_is_told(work, capsys, change):
    run = latest()
    path = run.checkpoints / "best.ckpt"
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif change in ("sharded", "none"):
        shutil.rmtree(run.checkpoints)
        if change == "sharded":
            path.mkdir(parents=True)
    else:
        content = torch.load(path, weights_only=True)
        if change == "other":
            content["state_dict"] = {"net.other": torch.zeros(3)}
        content = {"not one": [1, 2], "no epoch": {"state_dict": {}}}.get(change, content)
        path.unlink()
        torch.save(content, path)
    said = refused(capsys, run.folder)
    told = {
        "cut": "damaged, incomplete",
        "other": "does not fit the network",
        "not one": "is no checkpoint of a training",
        "no epoch": "is no checkpoint of a training",
        "sharded": "consolidate_checkpoint",
        "none": "has no checkpoint",
    }
    assert told[change] in said


def test_a_checkpoint_is_read_as_it_was_written(work):
    path = latest().checkpoints / "best.ckpt"
    found, expected = read_checkpoint(path), torch.load(path, weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found["state_dict"][name], value) for name, value in expected["state_dict"].items())


@pytest.mark.parametrize("name", ["mean", "std", "n"])
def test_damaged_statistics_are_told(work, capsys, name):
    import h5py

    with h5py.File("data/processed/yeast/train.h5", "r+") as file:
        text = file.attrs["statistics"].replace(f'"{name}"', '"nothing"')
        file.attrs["statistics"] = text
    with h5py.File("data/processed/yeast/val.h5", "r+") as file:
        file.attrs["statistics"] = text
    refused(capsys, latest().folder)


# Names of files -------------------------------------------------------------------------------------------------------

TRICKS = ["../../x", "/etc/x", "..", ".", "a/../../x", "..\\..\\x", "x\ny", "x" * 5000, "é" * 300, "~/x", "C:\\x", " "]


@pytest.mark.parametrize("id_", TRICKS)
def test_predictions_stay_in_their_folder(tmp_path, id_):
    run = Run(tmp_path / "runs/a/b")
    recorder = Recorder(run, {}, predictions=True)
    recorder._write_predictions("val", id_, {"": np.zeros((1, 4, 4), np.float32), "_classes": np.zeros((4, 4), "u1")})
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in written} == {run.folder / "predictions/val"}
    assert len(written) == 2
    assert sorted(tifffile.imread(path).size for path in written) == [16, 16]


def test_names_of_files_differ_where_the_texts_do():
    assert safe_file_name("a/b") == "a_b"
    assert safe_file_name("plain name-1.tif") == "plain name-1.tif"
    assert safe_file_name("x" * 300 + "1") != safe_file_name("x" * 300 + "2")
    assert len({safe_file_name(text) for text in TRICKS}) == len(TRICKS)


def test_messages_name_the_run(work):
    run = latest()
    with pytest.raises(UserError, match=str(run.folder)), trust.restrict_imports(run, {"a": "subprocess.Popen"}, []):
        pass
