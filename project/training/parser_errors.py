"""Errors of jsonargparse in one line: the key, what is wrong with it, the nearest valid name."""

import importlib
import re
import sys

from project.errors import did_you_mean, format_own_traceback
from project.training.network_arguments import constructor_parameters

# Lines that only say where the cause is, or name types that nobody would write.
CONTEXT = (
    *("Parser key", "Does not validate", "Subtypes:", "Errors:", "Problem with given class", "Given value"),
    *("Expected a path but", "Expected a dot import path", "Not a valid subclass", "Subclass types expect"),
    *("a class path (str)", "a dict with", "a dict without"),
)

# Keys of earlier versions, in experiment files and in config.yaml of runs.
RENAMED = {
    "pad_to": "size_divisor",
    "intensity": "intensity_augmentation",
    "geometry": "device_augmentation",
    "tolerance": "the argument of project.metrics.segmentation.BoundaryF1 in `metrics`",
}


def explain_parser_error(message: str, keys: list[str]) -> str:
    """Location, cause and suggestion of an error.

    Args:
        message: Of jsonargparse: nested, with a branch for each type that a value could have had.
        keys: The valid keys of the parser, dotted.
    """
    # What may not be imported is not imported to explain it either.
    if denied := re.search(r"Importing '([\w.]+)' is not allowed", message):
        return f"{denied[1]} is code from outside this project and its libraries, which would be run; see --trust"
    # Optional sections have a second branch, "Expected None", which explains nothing.
    branch = message.split("- Expected a <class 'NoneType'>")[0]
    key = ".".join(re.findall(r'Parser key "([\w.]+)"', branch))
    where = f"{key}: " if key else ""
    if failure := _import_failure(message):
        return where + failure
    classes = re.findall(r"given class_path '([\w.]+)'", branch)
    group = re.search(r"Group '([\w.]+)' does not accept", branch)
    option = re.search(r"(?:unrecognized arguments: --|[Oo]ption ')([\w.]+)", branch)
    if option and not classes:
        return where + _unknown_key(f"{group[1]}.{option[1]}" if group else option[1], keys)
    if option:
        known = _arguments(classes[-1])
        is_renamed = option[1] in RENAMED and classes[-1].startswith("project.tasks.")
        hint = f" It is now {RENAMED[option[1]]}" if is_renamed else did_you_mean(option[1], known or [])
        if known is None and not hint:
            hint = " What a function takes as **options is written under dict_kwargs, beside init_args"
        return f'{where}unknown key "{option[1]}" of {classes[-1]}.{hint}'
    if classes and (missing := _missing_class(classes[-1])):
        return where + missing
    if required := re.search(r"arguments are required: (.*)", branch):
        return (
            f"{where}{classes[-1]} needs {required[1]}, in init_args" if classes else f"{where}{required[1]} is missing"
        )
    if other := re.search(r"Import path ([\w.]+) does not correspond to a subclass of (\w+)", branch):
        return (
            f"{where}{other[1]} is not a {other[2]}. Name a class, or a function that declares what it returns: "
            "def build(...) -> torch.nn.Module"
        )
    return where + _wrong_value(message, branch)


def _unknown_key(key: str, keys: list[str]) -> str:
    """The message for a key of the parser itself, cut after its first wrong part."""
    before: list[str] = []
    for part in key.split("."):
        level = len(before)
        known = {parts[level] for k in keys if (parts := k.split("."))[:level] == before and len(parts) > level}
        if part not in known:
            return f'unknown key "{".".join([*before, part])}".{did_you_mean(part, sorted(known))}'
        before.append(part)
    return f'unknown key "{key}".'


def _import_failure(message: str) -> str:
    """The fault of the first module of the user that a message names and that cannot be imported; "" without one."""
    for path in re.findall(r"(?:class_path': '|Given value: \[?'?|val=\[?'?)([\w.]+)", message):
        module = path.rpartition(".")[0]
        try:
            if module and module not in sys.modules:
                importlib.import_module(module)
        except Exception as error:  # a module of the user may raise anything
            if traceback := format_own_traceback(error):
                return f"{path} cannot be imported\n{traceback}"
    return ""


def _missing_class(path: str) -> str | None:
    """The message for a class that cannot be imported, with the nearest one of its module."""
    module, _, name = path.rpartition(".")
    try:
        imported = importlib.import_module(module)
        if not hasattr(imported, name):
            classes = [n for n, item in vars(imported).items() if isinstance(item, type)]
            return f'there is no class "{path}".{did_you_mean(name, classes)}'
    except ImportError as error:
        return f'there is no class "{path}" ({error})'
    except ValueError:  # without a dot
        return f'there is no class "{path}": write package.module.Class'
    return None


def _arguments(class_path: str) -> list[str] | None:
    """Arguments of a class, and of its base classes where it passes `**options` on; None for a function with those."""
    module, _, name = class_path.rpartition(".")
    parameters, takes_others = constructor_parameters(getattr(importlib.import_module(module), name))
    return None if takes_others else list(parameters)


def _wrong_value(message: str, branch: str) -> str:
    """The message for a value of a wrong type: the types, the value, and how to write it."""
    lines = [line.strip(" -") for line in branch.splitlines()]
    causes = list(dict.fromkeys(line for line in lines if line and not line.startswith(CONTEXT)))
    if not causes:
        causes = ["Expected a class, as package.module.Class" if "dot import path" in branch else lines[-1]]
    text = re.sub(r"<class '(?:builtins\.)?([\w.]+)'>|typing\.(\w+)", lambda m: m[1] or m[2], " ".join(causes[:3]))
    given = re.search(r"Got value: (.*)", text) or re.search(r"Given value: (.*)", message)
    if given is None:
        return text
    nested = re.fullmatch(r"NestedArg\(key='.*?', val='(.*)'\)|\{'class_path': '([^']*)'\}", given[1])
    value = (nested[1] or nested[2]) if nested else given[1]
    text = text.replace(f". Got value: {value}", "")
    if literal := re.fullmatch(r"Expected a Literal\[([^]]*)\]", text):
        options = [option.strip(" '") for option in literal[1].split(",")]
        return f'"{value}" is none of {", ".join(options)}.{did_you_mean(value, options)}'
    # One line for each type that the value could have had.
    text = re.sub(r"(?<=[\w\]]) Expected an? ", " or ", text)
    text = re.sub(r"^Expected an? ", "expected ", text)
    return f'{text}, got "{value}"{_hint(text, value)}'


def _hint(text: str, value: str) -> str:
    if value == "None":
        return "; no value is written null"
    if re.fullmatch(r"[-+]?\.?(inf|nan)", value, re.IGNORECASE):
        return "; write a finite number"
    return f"; write a list: [{value}]" if text.startswith("expected list") else ""
