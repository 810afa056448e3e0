"""Notebooks call the package, and have neither logic nor outputs of their own; `tests/test_readme.py` runs them."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LOGIC = (
    ast.FunctionDef,
    ast.Lambda,
    ast.ClassDef,
    ast.For,
    ast.While,
    ast.If,
    ast.Try,
    ast.BinOp,
    ast.ListComp,
    ast.DictComp,
)


def cells(path, kind="code"):
    content = json.loads(path.read_text())
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def code(cell):
    """The tree of a cell, without what is meant for IPython."""
    return ast.parse("".join(line for line in cell["source"] if not line.startswith("%")))


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["examine_the_results", "look_at_the_data"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_kept(path):
    for cell in cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_only_call_the_package(path):
    first, *others = (code(cell) for cell in cells(path))  # the first goes to the project's folder
    modules = {node.module for tree in others for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in modules} == {"project", "IPython"}
    paths = (ast.Div,)
    for tree in others:
        found = [n for n in ast.walk(tree) if isinstance(n, LOGIC) and not isinstance(getattr(n, "op", None), paths)]
        assert found == []
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
        assert len(tree.body) <= 10
    assert [type(node).__name__ for node in first.body] == ["Import", "ImportFrom", "Expr"]
