"""Draft of a data config: keys, values and reasons; and its text."""

import textwrap
from dataclasses import dataclass, field
from typing import Any

import yaml

from project.errors import UserError

THREE_SPLITS = {"fractions": {"train": 0.7, "val": 0.15, "test": 0.15}, "seed": 0}


@dataclass
class Draft:
    """Keys of a data config in order, with the reason for each."""

    content: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # about what is not in the config
    unused: list[str] = field(default_factory=list)  # patterns of files that are left out

    def add(self, key: str, value: Any, reason: str) -> None:
        """Add a key."""
        self.content[key], self.reasons[key] = value, reason

    def text(self, heading: str) -> str:
        """The YAML text, a comment with the reason before each key."""
        blocks = [_comment(self.reasons[key]) + _key(key, value) for key, value in self.content.items()]
        return "".join([_comment(heading), *blocks, *(_comment(f"note: {note}") for note in self.notes)])


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, 116, break_long_words=False))


def _key(key: str, value: Any) -> str:
    flow = None if isinstance(value, dict | list) and key not in ("image", "target", "unlabelled") else False
    text: str = yaml.safe_dump({key: value}, sort_keys=False, default_flow_style=flow, allow_unicode=True, width=1000)
    return text


def unclear(question: str, lines: dict[str, Any]) -> UserError:
    """The error for a folder that can be read in several ways, with lines from which the user writes the config."""
    listed = "".join(f"  {line}\n" for key, value in lines.items() for line in _key(key, value).splitlines())
    return UserError(
        f"{question}\nNothing was written. Write the data config yourself, see configs/data/README.md; such lines fit "
        f"the files:\n\n{listed}"
    )
