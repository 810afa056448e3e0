"""Verdicts of checks, and the report that prints and stores them."""

import textwrap
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "error")
WIDTH = 110  # characters of a printed line


@dataclass(frozen=True)
class Verdict:
    """Result of one check: what was checked and measured; unless "ok", what is wrong and what to do."""

    name: str
    measured: str
    level: Level = "ok"
    advice: str = ""


def warning(name: str, measured: str, advice: str) -> Verdict:
    """A verdict that does not stop a training."""
    return Verdict(name, measured, "warning", advice)


def error(name: str, measured: str, advice: str) -> Verdict:
    """A verdict that stops a training."""
    return Verdict(name, measured, "error", advice)


@dataclass
class Report:
    """Verdicts on one experiment in the order of the checks, which took some seconds."""

    verdicts: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def safe(self) -> bool:
        """Whether no check found an error."""
        return not any(verdict.level == "error" for verdict in self.verdicts)

    def text(self, *levels: Level) -> str:
        """Lines "level  check  measured  advice" of the verdicts of some levels, by default of all."""
        lines = []
        for verdict in self.verdicts:
            if verdict.level not in (levels or LEVELS):
                continue
            lines.append(f"{verdict.level:10}{verdict.name:22}{verdict.measured}")
            for line in verdict.advice.splitlines():
                is_code = line.startswith((" ", "Traceback"))  # of a traceback, which keeps its lines
                lines += [" " * 10 + part for part in ([line] if is_code else textwrap.wrap(line, WIDTH - 10))]
        return "\n".join(lines)

    def summary(self) -> str:
        """Number of verdicts of each level, in one line."""
        count = Counter(verdict.level for verdict in self.verdicts)
        numbers = ", ".join(f"{count[level]} {level}{'s' * (level != 'ok' and count[level] != 1)}" for level in LEVELS)
        return f"{numbers}: {'safe to train' if self.safe else 'not safe to train'} ({self.seconds:.0f} s)"
