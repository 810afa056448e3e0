"""The benchmarks run, and their page is kept."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in ("harness", "__main__"))


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import harness

    return harness


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name):
    before = (BENCHMARKS / "README.md").read_bytes()
    command = [sys.executable, BENCHMARKS, name, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| measured | aim |" in done.stdout
    assert (BENCHMARKS / "README.md").read_bytes() == before


def test_variants_take_turns(harness):
    calls = []
    seconds = harness.alternate({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert [len(values) for values in seconds.values()] == [2, 2]
    timed = harness.alternate({"a": lambda: 3.0, "b": lambda: 1.5}, rounds=3)
    assert harness.ratio(timed, "a", "b") == 2


def test_a_section_replaces_the_old_one(harness, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "PAGE", tmp_path / "README.md")
    harness.PAGE.write_text("# Measurements\n\n## reader\n\nold\n\n## loop\n\nstays\n")
    goals = [harness.Goal("x", 0.123456, "≥ 0.1"), harness.Goal("y", 3.0, "≤ 2 %", "%")]
    harness.write_section("reader", harness.Report(goals, [harness.Table("t", ["a", "b"], [["c", 12345.6]])]), 1.2)
    page = harness.PAGE.read_text()
    assert "| x | 0.123 | ≥ 0.1 | yes |" in page
    assert "| y | 3 % | ≤ 2 % | no |" in page
    assert "| c | 12,346 |" in page
    assert page.endswith("## loop\n\nstays\n")
    assert "old" not in page
    assert set(harness.NAMES) == set(NAMES)
