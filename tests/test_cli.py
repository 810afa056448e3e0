"""The front: quick answers and short errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from project.cli import COMMANDS, main
from project.command_line import parse
from project.errors import python
from project.prerequisites import prepared_dataset

ROOT = Path(__file__).parents[1]


def error_of(capsys, *words: str) -> str:
    """What a command that must fail with status 2 prints."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_quick_answers_do_not_import_torch(empty_workplace):
    lines = [["--help"], ["trian"], ["train", "nothing"], ["data", "nothing"], *([name, "--help"] for name in COMMANDS)]
    code = f"import sys; from project.cli import main; [main(w) for w in {lines!r}]; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=empty_workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unet_mse") > len(COMMANDS)


def test_every_process_tells_its_error(empty_workplace, monkeypatch, capsys):
    """A launcher ends the others, perhaps before the first has come to its own words."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "error (process 1): there is no command" in error_of(capsys, "trian")


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ("trian unet_mse", ['no command "trian". Did you mean "train"?']),
        ("train unet_mes", ['Did you mean "unet_mse"?', "- baseline_trees"]),
        ("train --trainer.max_epochs 3", ["name the experiment first"]),
        ("data yaest", ["- ihc"]),
        ("eval unet_mse --split tset", ["choose from"]),
        ("data yeast --processes 0", ["--processes: 0 is no whole number from 1 on"]),
        ("export unet_mse --size -3 8", ["--size"]),
        ("eval", ["make train EXP=unet_mse"]),
    ],
)
def test_mistakes_name_what_there_is(empty_workplace, capsys, words, messages):
    text = error_of(capsys, *words.split())
    assert all(message in text for message in messages)


def test_printed_commands_quote_names(empty_workplace, capsys, monkeypatch):
    (empty_workplace / "my data.yaml").write_text("raw: none\nimage: {a: '{id}.tif'}\nlabel: none.csv\n")
    monkeypatch.setattr("project.prerequisites.DATASETS", empty_workplace)
    assert "`make data DATASET='my data'`" in error_of(capsys, "inspect", "my data")


def test_broken_yaml_is_reported_with_its_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "configs/experiments/broken.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("trainer:\n  max_epochs: 3\n model: [\n")
    assert "broken.yaml, line 3" in error_of(capsys, "train", "broken")


@pytest.mark.parametrize("words", [["train", "odd"], ["check", "odd"], ["tune", "odd"]])
@pytest.mark.parametrize("section", ["model: [1]", "model: {init_args: [1]}", "data: mine", "trainer: 3"])
def test_sections_without_keys_are_refused(tmp_path, monkeypatch, capsys, words, section):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "configs/experiments/odd.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"seed_everything: 0\n{section}\n")
    assert "odd.yaml: " in (error := error_of(capsys, *words))
    assert "expected keys with values" in error


def test_unknown_key_of_a_dataset_names_the_nearest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "configs/data/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("raw: somewhere\nimage: {a: '{id}.tif'}\ntraget: {b: '{id}.tif'}\n")
    assert 'unknown key "traget". Did you mean "target"?' in error_of(capsys, "data", "mine")


def test_dataset_that_is_not_prepared_says_how(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/data").mkdir(parents=True)
    (tmp_path / "configs/data/mine.yaml").write_text("raw: x\nimage: {a: '{id}.tif'}\n")
    (tmp_path / "configs/experiments").mkdir()
    (tmp_path / "configs/experiments/e.yaml").write_text("data: {dataset: mine}\n")
    assert "make data DATASET=mine" in error_of(capsys, "train", "e")


def test_outdated_data_is_reported_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("configs/data/once.yaml", "data/processed/once/train.h5"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("raw: x\nimage: {a: '{id}.tif'}\n")
    monkeypatch.setattr("project.data.preparation.outdated.describe_changes", lambda *_: "old")
    for _ in range(2):
        prepared_dataset("once")
    assert capsys.readouterr().out.count("warning: old") == 1


def test_make_lists_every_target():
    text = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    makefile = (ROOT / "Makefile").read_text()
    phony = makefile.split(".PHONY:")[1].split("\n")[0].split()
    assert [target for target in phony if f"\n  {target} " not in text] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(empty_workplace, capsys, command):
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: {python()} -m project ")
    assert f"\n\n{COMMANDS[command].help}\n" in printed


def test_values_of_overrides_are_no_positional_arguments():
    options = parse(["eval", "--data.batch_size", "3", "--split", "test", "--model.a=b"])
    assert (options.run, options.split) == (None, "test")
    assert options.overrides == ["--data.batch_size=3", "--model.a=b"]
    assert parse(["eval", "run", "--data.x", "3"]).run == "run"
    short = parse(["baselines", "--dataset", "a", "--root=b", "--fold", "3"]).overrides
    assert short == ["--data.dataset=a", "--data.root=b", "--data.fold=3"]
    assert parse(["train", "--resume", "--logger", "none", "--logger", "wandb"]).logger == "wandb"


@pytest.mark.parametrize("variable", ["MINUTE=1", "exp=unet_mse"])
def test_a_misspelt_variable_of_make_is_refused(variable):
    done = subprocess.run(["make", "--dry-run", "train", variable], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"there is no variable {variable.partition('=')[0]}; there are" in done.stderr
    assert " MINUTES " in done.stderr


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("train RESUME='runs/my exp/x'", "train --resume 'runs/my exp/x'"),
        ("train ARGS='--logger none'", "train 'unet_mse' --logger 'tensorboard' --logger none"),
        ("train EXP='my exp' FOLD=0 SEEDS=0,1", "train 'my exp' --logger 'tensorboard' --data.fold '0' --seeds '0,1'"),
        ("check FOLD=1", "check 'unet_mse' --data.fold '1'"),
        ('eval RUN="it\'s"', "eval 'it'\\''s' --split 'val'"),
        ("eval EXP='my exp' SPLIT=test", "eval 'my exp' --split 'test'"),
        ("predict RUN='a b' INPUT='in put' OUTPUT=out", "predict 'a b' 'in put' 'out'"),
        ("baselines DATASET='my data' FOLD=2", "baselines 'my data' --fold '2'"),
        ("data ESTIMATE=0", "data 'yeast'"),
        ("data ESTIMATE=1 DATASET='my data'", "data 'my data' --estimate"),
    ],
)
def test_variables_of_make_reach_the_command(target, expected):
    # `make test` hands its own flags and variables down.
    environment = {"PATH": os.environ["PATH"], "TIME": "3", "OUTPUT": "elsewhere"}
    command = f"make --dry-run {target}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    words = done.stdout.replace("\\\n", " ").partition("-m project ")[2]
    assert " ".join(words.split()) == expected
