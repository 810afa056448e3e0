"""What the README and the pages that it leads to name exists."""

import re
import subprocess
from pathlib import Path

import pytest

from project.cli import COMMANDS

pytestmark = pytest.mark.shipped("README.md")
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MAKE = sorted({text.strip() for text in re.findall(r"(?:^|`)(make [^#\n`]*)", README, re.MULTILINE)})
MAPS = [
    page.relative_to(ROOT).as_posix()
    for name in ("project", "configs", "data", "tests")
    for page in (ROOT / name).rglob("README.md")
]
MODULES = [file.relative_to(ROOT).as_posix() for name in ("project", "tests") for file in (ROOT / name).rglob("*.py")]
EXAMPLES = {"mymetrics.py", "my_data.py"}  # the reader's own


@pytest.mark.parametrize("command", MAKE)
def test_every_make_command_is_a_target(command):
    done = subprocess.run(f"{command} --dry-run", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_other_command_exists():
    assert set(re.findall(r"python -m project ([a-z]+)", README)) <= set(COMMANDS)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:project|configs|tests|notebooks)/[\w./]+)`", README))))
def test_every_path_exists(path):
    assert (ROOT / path).exists() or "/mine" in path  # the reader's own


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "AGENTS.md", *MAPS])
def test_links_modules_and_variables_of_pages_exist(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
    for module in {*re.findall(r"\b[\w/]+\.py\b", text)} - EXAMPLES:
        assert any(f"/{name}".endswith(f"/{module}") for name in MODULES), module
    for variable in re.findall(r"\b([A-Z]{3,})=", text):
        assert variable in (ROOT / "Makefile").read_text(), variable


def test_every_experiment_exists():
    for name in {*re.findall(r"EXP=(\w+)", README)} - {"mine"}:
        assert (ROOT / f"configs/experiments/{name}.yaml").is_file()
