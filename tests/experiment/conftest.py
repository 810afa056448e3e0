"""Tests that train through the real entry point."""

import os
import shutil
from pathlib import Path

import pytest

from project.experiment.run import VARIABLE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workplace(request, tmp_path_factory, write_tiny):
    """A working folder with the shipped configurations, and a tiny dataset under the name of the demo's.

    Other data: `DATASET` in the test module, with the options of `write_dataset`.
    """
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(ROOT / "configs", folder / "configs")
    write_tiny(folder / "data/processed/yeast", **getattr(request.module, "DATASET", {"shape": (40, 40)}))
    before, variable = Path.cwd(), os.environ.get(VARIABLE)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    os.environ.pop(VARIABLE, None)
    if variable:
        os.environ[VARIABLE] = variable
