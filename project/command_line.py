"""The command line: commands are registered functions, parsed by argparse without importing anything heavy."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from project.errors import UserError, did_you_mean, python

Options = argparse.Namespace
Argument = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """A command, and the options of `ArgumentParser.add_argument` of its arguments."""

    run: Callable[[Options], int | None]  # returns the exit status, None for 0
    help: str
    arguments: tuple[Argument, ...]
    overrides: bool  # whether all other `--key value` pairs are keys of the configuration, in `options.overrides`


COMMANDS: dict[str, Command] = {}


def argument(name: str, help: str, **options: Any) -> Argument:
    """One argument of a command, as `ArgumentParser.add_argument` takes it."""
    return name, {"help": help, **options}


def switch(name: str, help: str) -> Argument:
    """An option without a value."""
    return argument(name, help, action="store_true")


def positive(text: str) -> int:
    """The type of an argument that is a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")
    return int(text)


def command(*arguments: Argument, overrides: bool = False, name: str = "") -> Callable:
    """Register a function as the command of its name; the first line of its docstring is the help."""

    def register(function: Callable[[Options], int | None]) -> Callable[[Options], int | None]:
        help = (function.__doc__ or "").partition("\n")[0]
        COMMANDS[name or function.__name__] = Command(function, help, arguments, overrides)
        return function

    return register


class _Parser(argparse.ArgumentParser):
    """Raises `UserError` instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n{self.format_usage().strip()}; see --help")


def _parser(name: str, epilog: str) -> argparse.ArgumentParser:
    entry = COMMANDS[name]
    positional = [(n.upper(), o.get("nargs")) for n, o in entry.arguments if not n.startswith("-")]
    usage = " ".join(f"[{n}]" if nargs == "?" else f"{n} ..." if nargs == "+" else n for n, nargs in positional)
    if entry.overrides:
        epilog = (
            "Further options are keys of the configuration: --data.batch_size 8; --dataset, --root and --fold are "
            f"short for --data.dataset, --data.root and --data.fold\n\n{epilog}"
        )
    parser = _Parser(
        f"{python()} -m project {name}",
        usage=f"%(prog)s {usage} [OPTIONS]",
        description=entry.help,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=not entry.overrides,  # `parse` decides what it is about
    )
    for argument_name, options in entry.arguments:
        parser.add_argument(argument_name, **options)
    return parser


def overview() -> str:
    """All commands with their help."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {entry.help}" for name, entry in COMMANDS.items()]
    usage = f"Usage: {python()} -m project COMMAND ...    (COMMAND --help: its options)"
    return "\n".join([usage, "", *lines])


def parse(words: Sequence[str], epilog: str = "") -> Options | str:
    """Options of one command line, `options.command` among them; or the help that it asks for.

    Raises:
        UserError: There is no such command, or its arguments are wrong.
    """
    name, rest = words[0], list(words[1:])
    if name not in COMMANDS:
        raise UserError(f'there is no command "{name}".{did_you_mean(name, COMMANDS)} Known: {", ".join(COMMANDS)}')
    entry, parser = COMMANDS[name], _parser(name, epilog)
    # Behind the name of an experiment it is the help of the configuration.
    if {"-h", "--help"} & {*rest} and not (name == "train" and not rest[0].startswith("-")):
        return parser.format_help()
    if not entry.overrides:
        return parser.parse_args(rest, Options(command=name))
    known, joined = {flag for flag, _ in entry.arguments}, list[str]()
    for word in rest:  # --key value -> --key=value: the value would be taken for a positional argument
        is_value = joined and re.match("--[^=]+$", joined[-1]) and joined[-1] not in known
        joined[-1:] = [f"{joined[-1]}={word}"] if is_value and not word.startswith("--") else [*joined[-1:], word]
    options, overrides = parser.parse_known_args(joined, Options(command=name))
    options.overrides = [re.sub("^--(dataset|root|fold)=", r"--data.\1=", word) for word in overrides]
    return options
