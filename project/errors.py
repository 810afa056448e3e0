"""The one exception for mistakes that the person at the keyboard can mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Printed as one short block, without a traceback: what is wrong, where, what to do."""


def nearest(word: str, options: Iterable[str]) -> str:
    """A ` Did you mean "x"?` for the option most like `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f' Did you mean "{found[0]}"?' if found else ""


def listed(lines: Iterable[str], most: int = 12) -> str:
    """The lines as an indented list, cut after `most` with a count of the rest."""
    lines = list(lines)
    shown = [f"  - {line}" for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"  ... and {len(lines) - most} more")
    return "\n".join(shown)
