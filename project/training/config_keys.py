"""Misspelt keys and classes of a configuration, found in source files: importing what they name takes seconds.

Only what is certainly wrong is told. Whatever is not understood here is left to the parser, which checks everything.
"""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from project.errors import UserError, did_you_mean

LOGGERS = ("tensorboard", "wandb", "none")
SECTIONS = (
    *("seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler", "checkpoint"),
    *("config", "print_config", "help"),
)
# Sections that are always of one class; the others name theirs.
CLASSES = {
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "data": "project.data.datamodule.ImageDataModule",
    "checkpoint": "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
}


def check(contents: dict[Path, dict[str, Any]], typed: list[str]) -> None:
    """Refuse unknown sections, keys and classes.

    Args:
        contents: Configuration files, as they were read; the last one wins.
        typed: `--key value` and `--key=value`.

    Raises:
        UserError: The first mistake, with the nearest valid name.
    """
    for path, content in contents.items():
        for section, value in content.items():
            if section not in SECTIONS:
                raise UserError(f'{path}: unknown key "{section}".{did_you_mean(section, SECTIONS)}')
            for key in value if section in CLASSES and isinstance(value, dict) else ():
                _check_key(key, CLASSES[section], f'{path}: unknown key "{section}.{key}"')
            for where, node in _classes(value, section):
                _check_class(f"{path}: {where}", node["class_path"], node.get("init_args"))
    values = dict(_pairs(typed))
    if "config" in values:  # another file, which may name other classes
        contents = {}
    for key, value in values.items():
        parts = key.split(".")
        if parts[-1] == "help":
            continue
        if parts[0] not in SECTIONS:
            raise UserError(f'unknown key "{parts[0]}".{did_you_mean(parts[0], SECTIONS)}')
        if parts[0] in CLASSES and len(parts) > 1:
            _check_key(parts[1], CLASSES[parts[0]], f'unknown key "{parts[0]}.{parts[1]}"')
        if parts[-1] == "class_path" and value:
            _check_class(".".join(parts[:-1]), value)
        for position in [i for i, part in enumerate(parts[:-1]) if part == "init_args"]:
            place = parts[:position]
            if class_path := _class_at(place, values, contents):
                name = parts[position + 1]
                _check_key(name, class_path, f'{".".join(place)}: unknown key "{name}" of {class_path}')


def check_logger(names: str) -> None:
    """Refuse unknown loggers in a comma-separated list.

    Raises:
        UserError: There is no such logger.
    """
    for name in (part.strip() for part in names.split(",")):
        if name not in LOGGERS:
            raise UserError(f'there is no logger "{name}".{did_you_mean(name, LOGGERS)} Known: {", ".join(LOGGERS)}')


def _pairs(typed: list[str]) -> Iterator[tuple[str, str]]:
    """Keys with their values as text; what is appended to a list (`--key+`) counts as the list."""
    for word, following in zip(typed, [*typed, ""][1:], strict=True):
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            yield key.rstrip("+"), value if equals else following


def _classes(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All mappings with a class path, at any depth, with their place."""
    if isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            yield where, value
        for key, inner in value.items():
            yield from _classes(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _classes(inner, where)


def _class_at(where: list[str], values: dict[str, str], contents: dict[Path, dict[str, Any]]) -> str | None:
    """The class path at a place, or None where something typed as a whole makes that uncertain."""
    if found := values.get(".".join([*where, "class_path"])):
        return found
    if any(".".join(where[: depth + 1]) in values for depth in range(len(where))):
        return None
    paths = []
    for content in contents.values():
        node: Any = content
        for part in where:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get("class_path"), str):
            paths.append(node["class_path"])
    return paths[-1] if paths else None


def _check_class(where: str, class_path: str, init_args: Any = None) -> None:
    if _is_missing(class_path):
        raise UserError(f'{where}: there is no class "{class_path}".{_nearest_class(class_path)}')
    for key in init_args if isinstance(init_args, dict) else ():
        _check_key(key, class_path, f'{where}: unknown key "{key}" of {class_path}')


def _check_key(key: str, class_path: str, message: str) -> None:
    known = arguments(class_path)
    if known is not None and key not in known:
        raise UserError(f"{message}.{did_you_mean(key, sorted(known))}")


# Reading source files -------------------------------------------------------------------------------------------------


@lru_cache
def arguments(class_path: str) -> frozenset[str] | None:
    """Names of the arguments of a class, those behind `**options` included; None where they cannot be read."""
    found = _definition(class_path)
    if found is None:
        return None
    module, node = found
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        listed = (*init.args.posonlyargs, *init.args.args, *init.args.kwonlyargs)
        names = frozenset(argument.arg for argument in listed[1:])
        if init.args.kwarg is None:
            return names
        if not _only_inherits(init, init.args.kwarg.arg):
            return None
    elif node.decorator_list or not node.bases:  # such as a dataclass
        return None
    else:
        names = frozenset()
    for base in node.bases:
        inherited = None
        if isinstance(base, ast.Name) and base.id != node.name:
            inherited = arguments(f"{module}.{base.id}")
        if inherited is None:
            return None
        names |= inherited
    return names


def _only_inherits(init: ast.FunctionDef, options: str) -> bool:
    """Whether `**options` go to `super().__init__` and nowhere else."""
    passed = {
        id(keyword.value)
        for call in ast.walk(init)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__"
        for keyword in call.keywords
        if keyword.arg is None
    }
    used = [node for node in ast.walk(init) if isinstance(node, ast.Name) and node.id == options]
    return bool(used) and all(id(node) in passed for node in used)


def _definition(class_path: str, depth: int = 0) -> tuple[str, ast.ClassDef] | None:
    """The module that defines a class, and its source; re-exports are followed."""
    module, _, name = class_path.rpartition(".")
    text = _text(module)
    if text is None or depth > 5:
        return None
    # Up to the next line that is not indented: parsing whole modules would take as long as some imports.
    if match := re.search(rf"^(?:@[^\n]+\n)*class {name}\b.*?(?=^[^\s#)]|\Z)", text, re.MULTILINE | re.DOTALL):
        try:
            node = ast.parse(match[0]).body[0]
        except SyntaxError:  # a text in quotes that is not indented
            return None
        return (module, node) if isinstance(node, ast.ClassDef) else None
    for imported, source, original in _imported(text):
        if imported == name:
            return _definition(f"{_absolute(source, module)}.{original}", depth + 1)
    return None


def _absolute(source: str, module: str) -> str:
    """The module that `from source import` means inside a module."""
    level = len(source) - len(source.lstrip("."))
    if not level:
        return source
    path = _file(module)
    parents = module.split(".")
    up = level - 1 if path is not None and path.name == "__init__.py" else level
    return ".".join([*parents[: len(parents) - up], *([source[level:]] if source[level:] else [])])


@lru_cache
def _file(module: str) -> Path | None:
    """The source file of a module; only the uppermost package is asked for, which imports nothing."""
    folder, *rest = module.split(".")
    try:
        spec = find_spec(folder) if folder else None
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    for part in rest:
        if path.name != "__init__.py":
            return None
        inner = path.with_name(part)
        path = inner / "__init__.py" if inner.is_dir() else inner.with_suffix(".py")
    return path if path.is_file() and path.suffix == ".py" else None


@lru_cache
def _text(module: str) -> str | None:
    path = _file(module)
    return path.read_text(encoding="utf-8", errors="replace") if path else None


def _is_missing(class_path: str) -> bool:
    """Whether there is certainly no such class: no such package, or a module that never mentions its name."""
    module, _, name = class_path.rpartition(".")
    if not module:  # a short name, which the parser knows
        return False
    try:
        if find_spec(module.split(".")[0]) is None:
            return True
    except (ImportError, ValueError):
        return False
    text = _text(module)
    if text is None or re.search(r"import +\*|__getattr__|globals\(\)|setattr\(", text):
        return False
    word = rf"\b{re.escape(name)}\b"
    return name not in _names(module) and not re.search(
        rf"""(?:class|def|import) +{word}|{word} *[:=,]|["']{word}["']""", text
    )


def _nearest_class(class_path: str) -> str:
    module = class_path.rpartition(".")[0]
    return did_you_mean(class_path, [f"{module}.{name}" for name in sorted(_names(module))])


def _names(module: str) -> set[str]:
    """What a module defines at its top level, or takes from others."""
    text = _text(module) or ""
    return {*re.findall(r"^(?:class|def) (\w+)", text, re.MULTILINE), *(name for name, *_ in _imported(text))}


def _imported(text: str) -> Iterator[tuple[str, str, str]]:
    """Of each `from source import original as name`: name, source, original."""
    for source, names in re.findall(r"^ *from +(\S+) +import +(\([^)]*\)|[^\n(]+)", text, re.MULTILINE):
        for original, alias in re.findall(r"(\w+)(?: +as +(\w+))?", re.sub(r"#[^\n]*", "", names)):
            yield alias or original, source, original
