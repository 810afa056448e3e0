"""Findings of checks, and the report that prints and stores them."""

import textwrap
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

Level = Literal["ok", "note", "not judged", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "not judged", "warning", "error")
INDENT = 12  # characters of the first column
WIDTH = 110  # characters of a printed line


@dataclass(frozen=True)
class Finding:
    """What was measured and, unless "ok", what is wrong and what to do; `name` is that of the check."""

    level: Level
    measured: str
    advice: str = ""
    name: str = ""


ok = partial(Finding, "ok")
note = partial(Finding, "note")  # real, but harmless for training; or too few images for the check
not_judged = partial(Finding, "not judged")  # nothing is known: too little time, or the check itself failed
warning = partial(Finding, "warning")  # likely a mistake; does not stop a training
error = partial(Finding, "error")  # training or validation would be meaningless; stops a training


@dataclass
class Report:
    """Findings on one experiment in the order of the checks, which took some seconds."""

    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def safe(self) -> bool:
        """Whether there is no error."""
        return not any(finding.level == "error" for finding in self.findings)

    @property
    def complete(self) -> bool:
        """Whether each check came to a decision."""
        return not any(finding.level == "not judged" for finding in self.findings)

    def text(self, *levels: Level) -> str:
        """Lines "level  check  measured  advice" of the findings of some levels, by default of all."""
        lines = []
        for finding in self.findings:
            if finding.level in (levels or LEVELS):
                lines.append(f"{finding.level:{INDENT}}{finding.name:16}{finding.measured}")
                for line in finding.advice.splitlines():
                    is_code = line.startswith((" ", "Traceback"))  # of a traceback, which keeps its lines
                    parts = [line] if is_code else textwrap.wrap(line, WIDTH - INDENT)
                    lines += [" " * INDENT + part for part in parts]
        return "\n".join(lines)

    def summary(self) -> str:
        """Number of findings of each level and what follows, in one line."""
        count = Counter(finding.level for finding in self.findings)
        numbers = ", ".join(f"{count[level]} {level}" for level in LEVELS if count[level])
        result = "safe to train" if self.complete else "no error, but not all was judged"
        return f"{numbers}: {result if self.safe else 'not safe to train'} ({self.seconds:.0f} s)"
