"""The shipped notebooks run, and have no outputs."""

import shutil
from pathlib import Path

import pytest
from digests import shipped
from shipped_configs import CONFIGS

from project.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
@pytest.mark.parametrize("name", shipped("notebooks/*.ipynb"))
def test_a_notebook_runs(tmp_path, monkeypatch, write_tiny, name):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CONFIGS, tmp_path / "configs")
    write_tiny(tmp_path / "data/processed/yeast", shape=(64, 72))
    assert main(["train", "baseline_pixel", "--logger", "none"]) == 0
    notebook = nbformat.read(ROOT / name, as_version=4)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)
    resources = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)
