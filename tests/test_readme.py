"""The README's commands exist, and the notebooks run."""

import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from project.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def make_commands() -> list[str]:
    found = re.findall(r"^make [^#\n]*|`(make [^`]+)`", README, re.MULTILINE)
    lines = re.findall(r"^(make [^#\n]*)", README, re.MULTILINE)
    return sorted({text.strip() for text in [*found, *lines] if text})


def test_readme_has_its_two_commands():
    assert {"make train EXP=unet_mse", "make test"} <= set(make_commands())


@pytest.mark.parametrize("command", make_commands())
def test_every_make_command_of_the_readme_is_one(command):
    for part in command.split("&&"):
        done = subprocess.run(f"{part} --dry-run", shell=True, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", re.findall(r"`((?:project|configs|tests|notebooks)/[\w./]+)`", README))
def test_every_path_of_the_readme_exists(path):
    assert (ROOT / path).exists() or "/mine" in path  # the reader's own


def test_readme_experiments_exist():
    for name in re.findall(r"EXP=(\w+)", README):
        assert (ROOT / f"configs/experiments/{name}.yaml").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb")))
def test_notebook_runs(tmp_path, monkeypatch, write_tiny, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    write_tiny(tmp_path / "data/processed/yeast", shape=(64, 72))
    assert main(["train", "baseline_pixel", "--logger", "none"]) == 0
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)
