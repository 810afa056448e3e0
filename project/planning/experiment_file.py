"""A plan as an experiment file: YAML with a reason for each decision, and the facts about the data it was made for."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import xxhash
import yaml

from project.data.dataset_facts import DatasetFacts, dataset_facts
from project.data.normalization import Choice
from project.errors import UserError
from project.files import atomic_path

WIDTH = 120
PLANNED_FOR = "# planned for: "  # a line of the file, with `describe_data` as JSON
CHECKSUM = "# checksum: "
MAY_CHANGE = {"training images", "objects", "content"}  # a plan still fits, though another might be better


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
    """A key with its reason beside it, or above it where the line would be too long."""
    start = " " * indent + f"{name}:"
    if not isinstance(value, Choice):
        return [start, *(line for key, part in value.items() for line in _lines(key, part, indent + 2))]
    line = f"{start} {format_value(value.value)}"
    beside = f"{line} # {value.reason}" if value.reason else line
    if len(beside) <= WIDTH:
        return [beside]
    block = textwrap.indent(yaml.safe_dump(value.value, sort_keys=False), " " * (indent + 2)).splitlines()
    return [*_comment(value.reason, indent), *([line] if len(line) <= WIDTH else [start, *block])]


def format_value(value: Any) -> str:
    """A value on one line of YAML."""
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
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


# Data that has changed since ------------------------------------------------------------------------------------------


def describe_data(data: DatasetFacts) -> dict[str, str]:
    """What a plan has to fit to, in words."""
    sides = sorted({side for size in data.sizes for side in size})
    size = "{} x {}".format(*data.sizes[0]) if len(set(data.sizes)) == 1 else f"{sides[0]} to {sides[-1]} pixels"
    facts = {"training images": str(len(data.sizes)), "size": size}
    for name, n in data.n_channels.items():
        facts[name] = f"{n} {'number' if name == 'value' else 'channel'}{'s' * (n > 1)}"
    facts |= {name: f"{len(names)} classes" for name, names in data.classes.items() if names}
    if objects := data.statistics.get("instances"):
        facts["objects"] = str(objects["n"])
    return facts | {"content": data.readers["train"].content_hash[:12]}


def check_planned(path: Path, folder: Path) -> str | None:
    """Compare the data that an experiment was planned for with the prepared data.

    Args:
        path: The experiment file.
        folder: `data/processed/<dataset>`.

    Returns:
        A sentence on what has changed, if the plan still fits.

    Raises:
        UserError: It does not fit.
    """
    match = re.search(f"^{PLANNED_FOR}({{.*}})$", path.read_text(encoding="utf-8"), re.MULTILINE)
    if not match:  # it was not planned
        return None
    planned, actual = json.loads(match[1]), describe_data(dataset_facts(folder))
    names = [name for name in dict.fromkeys([*planned, *actual]) if planned.get(name) != actual.get(name)]
    if not names:
        return None
    changes = ", ".join(f"{name} {planned.get(name, 'none')}, now {actual.get(name, 'none')}" for name in names[:-1])
    message = f"{path} was planned for other data: {changes or 'other values'}. `make plan DATASET={folder.name}`"
    if set(names) <= MAY_CHANGE:
        return f"{message} plans again"
    raise UserError(f"{message} plans again; --unchecked trains in spite of it")
