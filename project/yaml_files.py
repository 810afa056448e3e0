"""Reading YAML files, and the classes that they name; errors name the line."""

import importlib
import re
from pathlib import Path
from typing import Any

import yaml

from project.errors import UserError

DEFAULT_CONFIG = Path("configs/default.yaml")  # what all experiments share


class _Loader(yaml.SafeLoader):
    """Takes 1e-3 as a number, as YAML 1.2 does; without it, only 1.0e-3 is one."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path, example: str = "data: ...") -> dict[str, Any]:
    """A YAML file with a mapping in it; `UserError` with the line, or with the `example`, if it is none."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{where}: this is not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys with values, such as `{example}`")
    return content


def named_object(path: str) -> Any:
    """The class or function at a path, such as "torch.nn.MSELoss"; the errors are those of the import."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
