"""A plan as an experiment file: YAML with a reason for each decision, and for which data it was made."""

import json
import textwrap
from pathlib import Path
from typing import Any

import xxhash
import yaml

from project.data.normalization import Choice
from project.errors import UserError
from project.files import atomic_path
from project.planning.planned_data import PLANNED_FOR

WIDTH = 120
CHECKSUM = "# checksum: "


def format_plan(title: str, choices: dict[str, Choice], facts: dict[str, Any]) -> str:
    """The text of an experiment file."""
    tree: dict[str, Any] = {}
    for key, choice in choices.items():
        *parents, name = key.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = choice
    order = ["length", "trainer", "checkpoint", "model", "data", "optimizer"]
    lines = [*_comment(title, 0), PLANNED_FOR + json.dumps(facts)]
    for name in sorted(tree, key=lambda name: order.index(name) if name in order else len(order)):
        lines += _lines(name, tree[name], 0)
    text = "\n".join(lines) + "\n"
    return f"{text}{CHECKSUM}{_checksum(text)}\n"


def _lines(name: str, value: Any, indent: int) -> list[str]:
    start = " " * indent + f"{name}:"
    if isinstance(value, Choice):
        line = f"{start} {_flow(value.value)}"
        beside = f"{line} # {value.reason}" if value.reason else line
        if len(beside) <= WIDTH:
            return [beside]
        block = textwrap.indent(yaml.safe_dump(value.value, sort_keys=False), " " * (indent + 2)).splitlines()
        return [*_comment(value.reason, indent), *([line] if len(line) <= WIDTH else [start, *block])]
    inner = [line for key, part in value.items() for line in _lines(key, part, indent + 2)]
    return [start, *inner]


def _flow(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(text: str, indent: int) -> list[str]:
    start = " " * indent + "# "
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False)


def _checksum(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())


def write_plan(path: Path, text: str) -> None:
    """Write a plan; an earlier one is replaced as long as nobody has changed it.

    Raises:
        UserError: The file was changed, or was not written by `make plan`.
    """
    if path.is_file():
        before, _, checksum = path.read_text(encoding="utf-8").rpartition(CHECKSUM)
        if checksum.strip() != _checksum(before):
            raise UserError(f"{path} was changed by hand, and is not overwritten: rename or delete it, then plan again")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8")
