"""Verdicts of checks, and the report that prints and stores them."""

import textwrap
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["ok", "note", "not judged", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "not judged", "warning", "error")
INDENT = 12  # characters of the first column
WIDTH = 110  # characters of a printed line


@dataclass(frozen=True)
class Verdict:
    """Result of one check: what was checked and measured; unless "ok", what is wrong and what to do.

    "not judged" is a check that could not decide: nothing is known then, which is not the same as "ok".
    """

    name: str
    measured: str
    level: Level = "ok"
    advice: str = ""


def note(name: str, measured: str, advice: str) -> Verdict:
    """A verdict on what is real, but harmless for training."""
    return Verdict(name, measured, "note", advice)


def warning(name: str, measured: str, advice: str) -> Verdict:
    """A verdict that does not stop a training."""
    return Verdict(name, measured, "warning", advice)


def error(name: str, measured: str, advice: str) -> Verdict:
    """A verdict that stops a training."""
    return Verdict(name, measured, "error", advice)


def not_judged(name: str, measured: str, advice: str = "") -> Verdict:
    """A verdict that leaves open whether something is wrong."""
    return Verdict(name, measured, "not judged", advice)


@dataclass
class Report:
    """Verdicts on one experiment in the order of the checks, which took some seconds."""

    verdicts: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def safe(self) -> bool:
        """Whether no check found an error."""
        return not any(verdict.level == "error" for verdict in self.verdicts)

    @property
    def complete(self) -> bool:
        """Whether each check came to a decision."""
        return not any(verdict.level == "not judged" for verdict in self.verdicts)

    def text(self, *levels: Level) -> str:
        """Lines "level  check  measured  advice" of the verdicts of some levels, by default of all."""
        lines = []
        for verdict in self.verdicts:
            if verdict.level not in (levels or LEVELS):
                continue
            lines.append(f"{verdict.level:{INDENT}}{verdict.name:22}{verdict.measured}")
            for line in verdict.advice.splitlines():
                is_code = line.startswith((" ", "Traceback"))  # of a traceback, which keeps its lines
                lines += [" " * INDENT + part for part in ([line] if is_code else textwrap.wrap(line, WIDTH - INDENT))]
        return "\n".join(lines)

    def summary(self) -> str:
        """Number of verdicts of each level, in one line."""
        count = Counter(verdict.level for verdict in self.verdicts)
        plural = {level: level + "s" * (level in ("warning", "error") and count[level] != 1) for level in LEVELS}
        numbers = ", ".join(
            f"{count[level]} {plural[level]}" for level in LEVELS if count[level] or level != "not judged"
        )
        result = (
            ("safe to train" if self.complete else "no error, but not all was judged")
            if self.safe
            else ("not safe to train")
        )
        return f"{numbers}: {result} ({self.seconds:.0f} s)"
