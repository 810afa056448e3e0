"""UserError, an error that the user can fix and that is printed without a traceback; and texts of messages."""

import difflib
import errno
import importlib
import inspect
import io
import os
import re
import subprocess
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Errors of writing that are nobody's mistake, and what to do.
NATIVE = ("PytorchStreamWriter", "inline_container.cc", "iostream error")  # torch's own writer, which gives no reason
NO_TEMPORARY = "No usable temporary directory"  # says the standard library, whatever the reason is
FULL = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in the quota",
    errno.EFBIG: "raise the limit of the file size (`ulimit -f`), or take another file system",
}


class UserError(Exception):
    """Printed as one short block, without a traceback: what is wrong, where, what to do."""


def write_failure(error: BaseException | None) -> str:
    """What to say of a full disk, an exceeded quota or file size; "" if the error is none.

    Libraries raise errors of their own over it, and most errors of writing do not name the file: it is then the one
    that the innermost function of the traceback has open.
    """
    native = None
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            path = error.filename or _open_file(error) or Path.cwd()
            return f'"{path}" could not be written: {os.strerror(error.errno)}; {FULL[error.errno]}'
        if isinstance(error, FileNotFoundError) and NO_TEMPORARY in str(error):
            return "no folder for temporary files can be written; make room on the disk, or set TMPDIR to another"
        if isinstance(error, RuntimeError) and any(word in str(error) for word in NATIVE):
            native = error
        error = error.__cause__ or error.__context__
    return f'"{_open_file(native) or Path.cwd()}" could not be written; is the disk full?' if native else ""


def _open_file(error: BaseException) -> str | None:
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        values = list(frame.f_locals.values())
        names = [value.name for value in values if isinstance(value, io.IOBase) and hasattr(value, "name")]
        names += [value for value in values if isinstance(value, Path)]
        if names := [str(name) for name in names if isinstance(name, str | Path)]:
            return names[0]
    return None


def format_own_traceback(error: BaseException) -> str:
    """The traceback of an error from the first line of the user's own code on; empty if it never was there.

    Own code is what no package manager installed: files outside this package, and its networks and tasks that git does
    not track or that were changed since the last commit.
    """
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if _is_own(frame.filename)), None)
    if first is None:
        return ""
    lines = [*traceback.format_list(frames[first:]), *traceback.format_exception_only(error)]
    return f"Traceback from your code on:\n{''.join(lines).rstrip()}"


def _is_own(file: str) -> bool:
    path, package = Path(file), Path(__file__).parent
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if not path.is_file() or any(path.is_relative_to(folder) for folder in installed):
        return False
    if not path.is_relative_to(package):
        return True
    if path.relative_to(package).parts[0] not in ("models", "tasks") or path.name == "base.py":
        return False
    try:
        command = ["git", "status", "--porcelain", "--", str(path)]
        done = subprocess.run(command, cwd=package, capture_output=True, check=False)
    except OSError:
        return False
    return bool(done.stdout)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A ` Did you mean "x"?` for the option most like `word`, or an empty string."""
    folded = {option.casefold(): option for option in options}
    found = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.5)
    return f' Did you mean "{folded[found[0]]}"?' if found else ""


def bullet_list(lines: Iterable[str], most: int = 12) -> str:
    """The lines as an indented list, cut after `most` with a count of the rest."""
    lines = list(lines)
    shown = [f"  - {line}" for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"  ... and {len(lines) - most} more")
    return "\n".join(shown)


UNKNOWN = re.compile(r"Option '([\w.]+)' is not accepted|unrecognized arguments: --([\w.]+)|accept option '([\w.]+)'")
MISSING = re.compile(r"No module named|[Ii]mport|has no attribute")
# Lines of jsonargparse that only say where the cause stands, or name kinds of values that nobody would write.
FRAME = (
    *("Parser key", "Does not validate", "Subtypes:", "Errors:", "Problem with given class", "Given value"),
    *("Expected a path but", "Expected a dot import path", "Not a valid subclass", "Subclass types expect"),
    *("a class path (str)", "a dict with", "a dict without"),
)


def explain_parser_error(message: str, keys: list[str]) -> str:
    """The cause in a message of jsonargparse, in the order: where, what, and what may have been meant.

    Args:
        message: As jsonargparse gives it: nested, with one branch for each type that a value could have had.
        keys: The valid keys of the parser, dotted.
    """
    # Optional sections have a second branch, "expected None", which explains nothing.
    branch = message.split("- Expected a <class 'NoneType'>")[0]
    where = _place(".".join(re.findall(r'Parser key "([\w.]+)"', branch)))
    classes = re.findall(r"given class_path '([\w.]+)'", branch)
    lines = [line.strip(" -") for line in branch.splitlines()]
    cause = list(dict.fromkeys(line for line in lines if line and not line.startswith(FRAME))) or [
        "Expected a class, as package.module.Class" if "dot import path" in branch else lines[-1]
    ]
    if found := UNKNOWN.search(branch):
        key = next(group for group in found.groups() if group)
        key, wrong, options = _first_wrong(key, keys) if not classes else (key, key, _arguments(classes[-1]))
        hint = did_you_mean(wrong, options)
        if classes and not hint and _takes_more(classes[-1]):
            hint = " What a function takes as **options stands in dict_kwargs, beside init_args"
        return f'{where}unknown key "{key}"{f" of {classes[-1]}" if classes else ""}.{hint}'
    if other := re.search(r"Import path ([\w.]+) does not correspond to a subclass of (\w+)", branch):
        return (
            f"{where}{other[1]} is no {other[2]}. Name a class, or a function that declares what it returns: "
            "def build(...) -> torch.nn.Module"
        )
    if classes and (missing := next((line for line in cause if MISSING.search(line)), None)):
        return f'{where}there is no class "{classes[-1]}" ({missing})'
    if classes and (required := next((line for line in cause if "arguments are required" in line), None)):
        return f"{where}{classes[-1]} needs {required.partition(': ')[2]}, in init_args"
    text = re.sub(r"<class '(?:builtins\.)?([\w.]+)'>|typing\.(\w+)", lambda m: m[1] or m[2], " ".join(cause[:3]))
    value = _value(message, text)
    text = text.replace(f". Got value: {value}", "")
    if literal := re.fullmatch(r"Expected a Literal\[([^]]*)\]", text):
        options = [option.strip(" '") for option in literal[1].split(",")]
        return f'{where}"{value}" is none of {", ".join(options)}.{did_you_mean(value or "", options)}'
    # One line for each type that the value could have had.
    text = re.sub(r"(?<=[\w\]]) Expected an? ", " or ", text)
    text = re.sub(r"Literal\[(.*?)\]", lambda m: m[1].replace("'", '"').replace('", "', '" or "'), text)
    text = re.sub(r"^Expected an? ", "expected ", text)
    return f'{where}{text}, got "{value}"{_hint(text, value)}' if value is not None else where + text


def _value(message: str, text: str) -> str | None:
    """The value that was given, as far as the message tells."""
    found = re.search(r"Got value: (.*)", text) or re.search(r"Given value: (.*)", message)
    if found is None:
        return None
    nested = re.fullmatch(r"NestedArg\(key='.*?', val='(.*)'\)|\{'class_path': '([^']*)'\}", found[1])
    return nested[nested.lastindex or 0] if nested else found[1]


def _hint(text: str, value: str) -> str:
    if value == "None":
        return "; no value is written null"
    if re.fullmatch(r"[-+]?\.?(inf|nan)", value, re.IGNORECASE):
        return "; write a finite number"
    return f"; write a list: [{value}]" if text.startswith("expected list") else ""


def _first_wrong(key: str, keys: list[str]) -> tuple[str, str, set[str]]:
    """The part of a dotted key up to the first wrong word, that word, and the words that could stand there."""
    before: list[str] = []
    for word in key.split("."):
        level = len(before)
        options = {parts[level] for k in keys if (parts := k.split("."))[:level] == before and len(parts) > level}
        if word not in options:
            break
        before.append(word)
    return ".".join([*before, word]), word, options


def _place(where: str) -> str:
    return f"{where}: " if where else ""


def _takes_more(class_path: str) -> bool:
    """Whether this is a function with `**options`, whose names are not known."""
    found = _imported(class_path)
    return inspect.isfunction(found) and inspect.getfullargspec(found).varkw is not None


def _imported(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _arguments(class_path: str) -> list[str]:
    """Names of the arguments of a class, and of its base classes where it passes `**options` on to them."""
    found = _imported(class_path)
    names: list[str] = []
    for level in inspect.getmro(found) if inspect.isclass(found) else (found,):
        parameters = inspect.signature(level).parameters.values()
        names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return names
