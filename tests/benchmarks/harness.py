"""What the benchmarks share: programs timed in turn, their figures kept as JSON, tables made of them.

Machines are shared and noisy, so a figure is a ratio of two things timed one after the other in one run, and of several
rounds the median counts. Nothing here is asserted.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

NAMES = ("preparation", "reader", "loader", "loop", "validation", "startup", "gpu", "minutes")
RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "lightning", "torchmetrics", "albumentations", "h5py", "numpy")


@dataclass
class Goal:
    """One figure with what it should be.

    Attributes:
        what: What is compared with what.
        value: The figure; a ratio where there is no unit.
        aim: As "≥ 0.95" or "≤ 2 %".
        unit: As "ms".
    """

    what: str
    value: float
    aim: str
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether the value is what it should be."""
        sign, number = self.aim.split()[:2]
        return self.value >= float(number) if sign == "≥" else self.value <= float(number)


@dataclass
class Table:
    """Figures without an aim, or behind one."""

    title: str
    columns: list[str]
    rows: list[list[str | int | float]]
    note: str = ""


@dataclass
class Report:
    """What one benchmark found."""

    goals: list[Goal] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def alternate(variants: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, list[float]]:
    """Seconds that each variant takes in each round; all run once before, and who begins changes from round to round.

    A variant that returns a float has timed itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            own = variants[name]()
            taken = own if isinstance(own, float) else time.perf_counter() - start
            if turn:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times as fast `fast` is as `slow`: the median over the rounds."""
    return statistics.median(s / f for s, f in zip(seconds[slow], seconds[fast], strict=True))


def keep(name: str, report: Report, seconds: float) -> None:
    """Write results/<name>.json."""
    content = {
        "date": date.today().isoformat(),
        "seconds": round(seconds),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "machine": machine(),
        **asdict(report),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(_rounded(content), indent=1, ensure_ascii=False) + "\n")


def load(name: str) -> tuple[Report, dict[str, Any]] | None:
    """A kept report, with the rest of its file."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    goals, tables = ([kind(**each) for each in content.pop(key)] for kind, key in ((Goal, "goals"), (Table, "tables")))
    return Report(goals, tables), content


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions."""
    found: dict[str, Any] = {"system": platform.system(), "cores": os.cpu_count(), "processor": platform.processor()}
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line)
        found["processor"] = next(lines, found["processor"])
    try:
        import torch

        found["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    except ImportError:
        pass
    found["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _rounded(content: Any) -> Any:
    """Three significant digits: more would be noise."""
    if isinstance(content, float):
        return float(f"{content:.3g}")
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    return [_rounded(value) for value in content] if isinstance(content, list) else content


# Tables ---------------------------------------------------------------------------------------------------------------


def markdown(title: str, columns: list[str], rows: list[list[Any]], note: str = "") -> str:
    """A table in Markdown; numbers to the right."""
    numbers = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---:" if number else "---" for number in numbers) + "|",
        *("| " + " | ".join(map(format_value, row)) + " |" for row in rows),
    ]
    parts = [f"**{title}**" if title else "", note, "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_value(value: Any) -> str:
    """A number without digits that mean nothing."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def details(names: Sequence[str]) -> str:
    """Everything that is kept, as a page."""
    parts = [
        "# Measurements\n\nMade by `python tests/benchmarks`; every figure is a median of ratios of programs that ran in turn. The "  # noqa: E501
        "files in `results/` hold the same, with the versions.\n"
    ]
    for name in names:
        if not (found := load(name)):
            continue
        report, rest = found
        where = rest["machine"].get("gpu") or f"{rest['machine']['processor']}, {rest['machine']['cores']} cores"
        parts.append(f"## {name}\n\n{rest['date']}, {where}, commit {rest['commit']}, {rest['seconds']} s\n")
        if report.goals:
            rows: list[list[Any]] = [
                [g.what, f"{format_value(g.value)}{g.unit and ' ' + g.unit}", g.aim, "yes" if g.reached else "no"]
                for g in report.goals
            ]
            parts.append(markdown("", ["what", "measured", "aim", "reached"], rows))
        parts += [markdown(table.title, table.columns, table.rows, table.note) for table in report.tables]
    return "\n".join(parts)
