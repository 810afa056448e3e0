"""The best trial as an experiment file: the file that was searched, but for the values that differ."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from project.errors import UserError

MARK = "# Found by the study "


class Edit(NamedTuple):
    """A piece of a text, what takes its place, and why."""

    start: int
    end: int
    text: str
    note: str


def write_winner(path: Path, base: str, changes: dict[str, Any], heading: list[str], study: str) -> None:
    """Write an experiment file in which only some values differ from another, each with a comment above its line.

    Args:
        path: Of the new file.
        base: Text of the experiment file that was searched; its comments stay.
        changes: Dotted key -> new value.
        heading: Lines of a comment at the top.
        study: Name of the study; a file that it wrote before is written anew.

    Raises:
        UserError: There is another file of that name.
    """
    mark = f'{MARK}"{study}"'
    if path.is_file() and not path.read_text(encoding="utf-8").startswith(mark):
        raise UserError(f'"{path}" is there already, and not from the study "{study}"; rename it, then run this again')
    wanted = changed(yaml.safe_load(base), changes)
    body = edited(base, changes, study)
    if not _says(body, wanted):  # written in a way that is not understood here: without its comments
        body = yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
    top = "\n".join([f"{mark}: {heading[0]}", *(f"# {line}" for line in heading[1:])])
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(f"{top}\n{body.lstrip()}", encoding="utf-8")
    beside.replace(path)


def changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration with other values; a class given by its path alone gets `init_args` where they are needed."""
    content = copy.deepcopy(content)
    for key, value in changes.items():
        *places, last = key.split(".")
        node = content
        for place in places:
            inner = node.get(place)
            if isinstance(inner, str) and place != "init_args":
                inner = {"class_path": inner}
            node[place] = inner if isinstance(inner, dict) else {}
            node = node[place]
        node[last] = value
    return content


def edited(text: str, changes: dict[str, Any], study: str) -> str:
    """A YAML text with other values, its comments and layout kept, and a comment above each line that differs."""
    if not text.endswith("\n"):
        text += "\n"
    root = yaml.compose(text)
    edits = sorted(_edit(text, root, key.split("."), value, key) for key, value in changes.items())
    notes: dict[int, list[str]] = {}
    for edit in edits:
        notes.setdefault(text.rfind("\n", 0, edit.start) + 1, []).append(edit.note)
    pieces, done = [], 0
    for start, end, piece in sorted([*((e.start, e.end, e.text) for e in edits), *_comments(text, notes, study)]):
        pieces += [text[done:start], piece]
        done = end
    return "".join([*pieces, text[done:]])


def _comments(text: str, notes: dict[int, list[str]], study: str) -> Iterator[tuple[int, int, str]]:
    """A comment above each line: where it begins, twice, and the comment."""
    for line, told in notes.items():
        indent = len(text[line:]) - len(text[line:].lstrip(" "))
        yield line, line, f"{' ' * indent}# study {study}: {'; '.join(told)}\n"


def _edit(text: str, node: yaml.Node | None, parts: list[str], value: Any, key: str) -> Edit:
    """How one key gets its value, in the deepest mapping on its way that is there."""
    while isinstance(node, yaml.MappingNode):
        inner = next((child for name, child in node.value if name.value == parts[0]), None)
        if inner is not None and len(parts) > 1 and isinstance(inner, yaml.MappingNode):
            node, parts = inner, parts[1:]
            continue
        if inner is not None:
            start, end = inner.start_mark.index, inner.end_mark.index
            if len(parts) > 1:  # a class by its path alone
                value = changed({parts[0]: inner.value}, {".".join(parts): value})[parts[0]]
            old = text[start:end].rstrip()
            return Edit(start, start + len(old), _flow(value), f"{parts[-1]} was {' '.join(old.split())}")
        nested = value
        for part in reversed(parts[1:]):
            nested = {part: nested}
        piece, note = f"{parts[0]}: {_flow(nested)}", f"{parts[-1]} was not set"
        if node.flow_style:
            at = node.end_mark.index - 1
            return Edit(at, at, f", {piece}" if node.value else piece, note)
        at = node.start_mark.index
        return Edit(at, at, f"{piece}\n{' ' * node.start_mark.column}", note)
    raise ValueError(f"{key}: there is no mapping to write it into")


def _says(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return bool(yaml.safe_load(text) == wanted)
    except yaml.YAMLError:
        return False


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
