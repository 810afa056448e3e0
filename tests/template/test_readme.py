"""What the README names exists."""

import re
import subprocess
from pathlib import Path

import pytest

from project.cli import COMMANDS

pytestmark = pytest.mark.shipped("README.md")
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MAKE = sorted({text.strip() for text in re.findall(r"(?:^|`)(make [^#\n`]*)", README, re.MULTILINE)})


@pytest.mark.parametrize("command", MAKE)
def test_every_make_command_is_a_target(command):
    done = subprocess.run(f"{command} --dry-run", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_other_command_exists():
    assert set(re.findall(r"python -m project ([a-z]+)", README)) <= set(COMMANDS)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:project|configs|tests|notebooks)/[\w./]+)`", README))))
def test_every_path_exists(path):
    assert (ROOT / path).exists() or "/mine" in path  # the reader's own


def test_every_experiment_exists():
    for name in {*re.findall(r"EXP=(\w+)", README)} - {"mine"}:
        assert (ROOT / f"configs/experiments/{name}.yaml").is_file()
