"""The benchmarks run, and the tables that stand in the READMEs are those of the kept figures."""

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
    before = {path: path.read_bytes() for path in BENCHMARKS.glob("results/*")}
    command = [sys.executable, BENCHMARKS, name, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(aim " in done.stdout
    assert {path: path.read_bytes() for path in before} == before


def test_the_page_is_that_of_the_kept_figures(harness):
    assert (BENCHMARKS / "README.md").read_text() == harness.details(harness.NAMES)
    assert set(NAMES) == set(harness.NAMES)


def test_variants_take_turns(harness):
    calls = []
    seconds = harness.alternate({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert [len(each) for each in seconds.values()] == [2, 2]


def test_a_variant_may_time_itself(harness):
    seconds = harness.alternate({"a": lambda: 3.0, "b": lambda: 1.5}, rounds=3)
    assert harness.ratio(seconds, "a", "b") == 2


@pytest.mark.parametrize(
    ("value", "aim", "reached"), [(1.0, "≥ 0.95", True), (0.9, "≥ 0.95", False), (3.0, "≤ 2 %", False)]
)
def test_a_goal_is_reached(harness, value, aim, reached):
    assert harness.Goal("x", value, aim).reached is reached


def test_reports_are_kept(harness, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    report = harness.Report([harness.Goal("x", 0.123456, "≥ 0.1")], [harness.Table("t", ["a", "b"], [["c", 12345.6]])])
    harness.keep("reader", report, 1.2)
    found, rest = harness.load("reader")
    assert found.goals == [harness.Goal("x", 0.123, "≥ 0.1")]
    assert found.tables[0].rows == [["c", 12300.0]]
    assert rest["machine"]["cores"] > 0
    page = harness.details(["reader", "loader"])
    assert "| x | 0.123 | ≥ 0.1 | yes |" in page
    assert "| c | 12,300 |" in page
