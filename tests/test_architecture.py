"""Imports go downwards only: cli -> experiment -> tasks -> data; models import none of them."""

import ast
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "project"
ALLOWED = {
    "cli": {"errors", "experiment", "data"},
    "experiment": {"errors", "files", "experiment", "tasks", "models", "data"},
    "tasks": {"errors", "tasks", "models", "data", "windows", "colors"},
    "data": {"errors", "files", "data", "colors"},
    "models": {"errors", "models", "windows"},
    "errors": set(),
    "files": set(),
    "windows": set(),
    "colors": set(),
}


def imported(path: Path) -> set[str]:
    """The parts of the project that a file imports, at any depth of the code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("project."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("project.")}
    return names


def test_imports_go_downwards():
    wrong = []
    for path in PROJECT.rglob("*.py"):
        part = path.relative_to(PROJECT).parts[0].removesuffix(".py")
        if part in ALLOWED and not imported(path) <= ALLOWED[part]:
            wrong.append((path.name, imported(path) - ALLOWED[part]))
    assert wrong == []


def test_training_needs_nothing_of_what_prepares_and_inspects():
    """Of the parts of `project.data`, only the preparation looks at raw files, and nothing looks at it."""
    parts = {"raw", "preparation", "inspection"}
    allowed = {"raw": {"raw"}, "preparation": {"raw", "preparation"}, "inspection": {"inspection"}}
    wrong = []
    for path in (PROJECT / "data").rglob("*.py"):
        names = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("project.data")
            for name in [*node.module.split(".")[2:3], *(a.name for a in node.names if node.module == "project.data")]
        }
        if not names & parts <= allowed.get(path.parent.name, set()):
            wrong.append((path.name, names & parts))
    assert wrong == []


def test_only_one_module_knows_h5py_and_one_albumentations():
    def users(package):
        return {
            p.name
            for p in PROJECT.rglob("*.py")
            if any(
                package in ([a.name for a in n.names] if isinstance(n, ast.Import) else [n.module or ""])
                for n in ast.walk(ast.parse(p.read_text()))
                if isinstance(n, ast.Import | ast.ImportFrom)
            )
        }

    assert users("h5py") == {"store.py"}
    # The datamodule names its base class, so that a configuration is checked against it.
    assert users("albumentations") == {"augment.py", "datamodule.py"}


def test_no_folder_is_called_after_nothing():
    assert not [p for p in PROJECT.rglob("*") if p.stem in {"utils", "helpers", "common", "misc"}]
