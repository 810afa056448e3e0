"""Reading YAML files, and the classes that they name; errors name the line."""

import importlib
import re
from pathlib import Path
from typing import Any

import yaml

from project.errors import UserError

DEFAULT_CONFIG = Path("configs/default.yaml")  # what all experiments share
BOOLEANS = "YAML reads no, off, yes and on as true or false"


class Loader(yaml.SafeLoader):
    """Takes 1e-3 as a number, as YAML 1.2 does, and dates as text; each key is a text or number, and there once."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse an alias inside of its anchor, a structure without end."""
        mark = self.peek_event().start_mark
        node = super().compose_node(parent, index)
        if node is not None and node.end_mark is None:
            raise yaml.MarkedYAMLError(problem="this alias is inside of its own anchor", problem_mark=mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse keys that are there twice, of which YAML takes the last, and that are true, false or empty."""
        node, names = super().compose_mapping_node(anchor), set[str]()
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in (key for key in keys if not key.tag.endswith(":merge")):
            problem = f'the key "{key.value}" is there twice' if key.value in names else ""
            if key.tag.endswith((":bool", ":null")):
                problem = f'the key "{key.value}" is no text: quote it ({BOOLEANS})'
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            names.add(key.value)
        return node


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path, example: str = "data: ...") -> dict[str, Any]:
    """A YAML file with a mapping in it; `UserError` with the line, or with the `example`, if it is none."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader)
    except OSError as error:
        raise UserError(f'"{path}" cannot be read: {error.strerror}') from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # other bytes, numbers without end, deep brackets
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = text.splitlines()[mark.line : mark.line + 1] if mark else []  # none at the end of the file
        is_pattern = re.search(r"\{\w+\}", re.sub("\"[^\"]*\"|'[^']*'", "", "".join(line)))
        hint = '; put patterns in quotes, as "{id}.tif"' if is_pattern else ""
        raise UserError(f"{path}{where}: this is not valid YAML: {problem}{hint}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys with values, such as `{example}`")
    return content


def named_object(path: str) -> Any:
    """The class or function at a path, such as "torch.nn.MSELoss"; the errors are those of the import."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
