"""Imports point downwards only, and libraries stay behind the module that wraps them."""

import ast
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "project"
# From the top to the bottom. A package imports itself and what is in the lines below its own.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("launch",),
    ("prerequisites", "own_project", "schemas"),
    ("__init__",),
    ("search", "planning"),
    ("results",),
    ("inference",),
    ("training",),
    ("checks",),
    ("runs",),
    ("tasks", "baselines"),
    ("metrics", "transforms", "losses", "models", "optimizers"),
    ("demo",),
    ("data.inspection", "data.preparation", "data.proposal"),
    ("data.raw",),
    ("data",),
    ("pages",),
    ("provenance", "yaml_files", "files", "command_line", "formatting", "colors", "sliding_mean"),
    ("errors",),
)
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}


def package_of(module: str) -> str:
    """ "data.raw.tiff" -> "data.raw", "tasks.base" -> "tasks"."""
    parts = module.split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in LEVEL else parts[0]


def imported_modules(path: Path) -> set[str]:
    """Modules of the project that a file imports, at any depth of the code, without "project."."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "project":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("project."):
            names |= {f"{node.module}.{alias.name}".removeprefix("project.") for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("project.") for alias in node.names if alias.name.startswith("project.")}
    return names


def test_imports_point_downwards():
    upwards = []
    for path in sorted(PROJECT.rglob("*.py")):
        module = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
        own = package_of(module.removesuffix(".__init__"))
        for name in sorted(imported_modules(path)):
            other = package_of(name)
            if other != own and other in LEVEL and LEVEL[other] <= LEVEL[own]:
                upwards.append(f"{module} -> {name}")
    assert upwards == []


def test_every_package_has_a_level():
    names = {path.stem for path in PROJECT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert names <= set(LEVEL)


def test_few_modules_know_h5py_and_albumentations():
    def users(package: str) -> set[str]:
        return {
            path.name
            for path in PROJECT.rglob("*.py")
            if any(
                package in ([a.name for a in n.names] if isinstance(n, ast.Import) else [n.module or ""])
                for n in ast.walk(ast.parse(path.read_text()))
                if isinstance(n, ast.Import | ast.ImportFrom)
            )
        }

    assert users("h5py") == {"hdf5.py", "split_metadata.py", "split_writer.py", "store.py"}
    # The datamodule names its base class, so that a configuration is checked against it.
    assert users("albumentations") == {"augment.py", "datamodule.py"}
