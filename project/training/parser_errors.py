"""Errors of jsonargparse in one line: the key, what is wrong with it, the nearest valid name."""

import importlib
import re
import sys

from project.errors import did_you_mean, format_own_traceback
from project.runs.untrusted import imports_are_restricted
from project.training.data_arguments import constructor_arguments, imported_callable
from project.yaml_files import BOOLEANS

# Lines that only say where the cause is, or name types that nobody would write.
CONTEXT = (
    *("Parser key", "Does not validate", "Subtypes:", "Errors:", "Problem with given class", "Given value"),
    *("Expected a path but", "Expected a dot import path", "Expected a <class 'NoneType'>", "Subclass types expect"),
    *("a class path (str)", "a dict with"),
)


def explain_parser_error(message: str, keys: list[str]) -> str:
    """Key, cause and suggestion of an error.

    Args:
        message: Of jsonargparse: nested, with a branch for each type that a value could have had.
        keys: The valid keys of the parser, dotted.
    """
    if denied := re.search(r"Importing '([\w.]+)' is not allowed", message):
        return (
            f"{denied[1]} is code from outside this project and its libraries, which would be run.\n"
            "If it is yours, let git track it (git add) or name it in an experiment; if you know where the run comes "
            "from, add --trust (make: ARGS=--trust)"
        )
    # What may not be imported is not imported to explain it either.
    is_restricted = imports_are_restricted()
    if not is_restricted and (failure := _import_failure(message)):
        return failure
    branch = message.split("- Expected a <class 'NoneType'>")[0]  # of optional sections
    lines = [stripped for line in branch.splitlines() if (stripped := line.strip(" -"))]
    causes = list(dict.fromkeys(line for line in lines if not line.startswith(CONTEXT))) or lines[-1:]
    # One line says "Expected ..." for each type that the value could have had.
    causes = [line for line in causes if not line.startswith("Expected")] or causes
    text = re.sub(r"<class '(?:builtins\.)?([\w.]+)'>|typing\.", lambda match: match[1] or "", "; ".join(causes[:3]))
    key = ".".join(re.findall(r'Parser key "([\w.]+)"', branch))
    class_path = (re.findall(r"given class_path '([\w.]+)'", branch) or [""])[-1]
    given = re.search(r"Given value: (.*)", message)
    if given and text.startswith("Expected") and not re.search("Got value|import path", text):
        nested = re.search(r"val='(.*)'\)", given[1])
        text += f', got "{nested[1] if nested else given[1]}"'
    if re.search(r'Expected a (str|Literal).*(got "|value: )(True|False)\b', text):
        text += f" ({BOOLEANS})"
    where = f"{key}: " if key else ""
    suggestion = "" if is_restricted else _suggestion(text, class_path, [k for k in keys if not k.endswith("help")])
    return f"{where}{class_path}{': ' if class_path else ''}{text}{'.' if suggestion else ''}{suggestion}"


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


def _suggestion(text: str, class_path: str, keys: list[str]) -> str:
    """The nearest valid name for the unknown word of an error."""
    if choice := re.search(r"Literal\[(.*)\]\. Got value: (\S+)", text):
        return did_you_mean(choice[2], re.findall(r"'(.*?)'", choice[1]))
    if attribute := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        return did_you_mean(
            attribute[2], [name for name, item in vars(sys.modules[attribute[1]]).items() if isinstance(item, type)]
        )
    option = re.search(r"(?:unrecognized arguments: --|[Oo]ption ')([\w.]+)", text)
    if option is None:
        return ""
    if class_path:
        return did_you_mean(option[1], constructor_arguments(imported_callable(class_path)))
    group = re.search(r"Group '([\w.]+)' does not accept", text)
    return did_you_mean(
        f"{group[1]}.{option[1]}" if group else option[1], [*keys, *(key.split(".")[0] for key in keys)]
    )
