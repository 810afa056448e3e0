"""Workers give the same result in one process or several; progress shows the time that remains."""

import hashlib
import io
import os
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from project.data.config import SizesConfig, SplitConfig
from project.data.preparation import plan
from project.data.preparation.prepare import prepare
from project.data.preparation.workers import ProgressReporter, format_duration, start_workers
from project.errors import UserError

CONSOLE = Console(file=io.StringIO())


@pytest.fixture
def prepared(folder, monkeypatch):
    """Prepares 20 float images, of which 5 are a shard: name of the result -> hashes of the files."""
    monkeypatch.setattr(plan, "SHARD_BYTES", 5 * 32 * 32 * 4)
    for i in range(20):
        scale = 10.0 ** folder.rng.integers(-9, 9)
        folder.put(f"in/{i:02d}.tif", (folder.rng.normal(size=(32, 32)) * scale).astype(np.float32))
    split = SplitConfig(fractions={"train": 0.7, "test": 0.3}, folds=2)
    config = folder.config(target={}, sizes=SizesConfig("crop", 32), near_duplicates="warn", split=split)

    def hashes(name: str, **options) -> list[str]:
        final = prepare("d", config, folder.processed / name, Console(file=io.StringIO()), **options)
        return [hashlib.sha256((final / file).read_bytes()).hexdigest() for file in ("train.h5", "test.h5")]

    return hashes


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(prepared):
    assert prepared("two", processes=2) == prepared("one", processes=1)


@pytest.mark.slow
def test_tasks_run_in_processes():
    tasks, pids = [f"(__import__('time').sleep(0.01), __import__('os').getpid(), {i})" for i in range(40)], set()
    with start_workers(CONSOLE, 2) as workers:
        for i, (task, (_, pid, number)) in enumerate(workers.run(eval, tasks, is_small=True)):
            assert (task, number) == (tasks[i], i)
            pids.add(pid)
        assert len(pids - {os.getpid()}) == 2
        with pytest.raises(ZeroDivisionError):
            list(workers.run(eval, ["1 / 0"] * 3))
        next(workers.run(eval, ["1"] * 50))  # the others are not needed
    with pytest.raises(UserError, match=r"was killed, .* memory ran out; finished parts are kept.*--processes 1"):  # noqa: SIM117
        with start_workers(CONSOLE, 2) as workers:
            list(workers.run(eval, ["__import__('os')._exit(1)", "1"]))


def test_small_jobs_are_done_in_this_process():
    with start_workers(CONSOLE) as workers:
        assert list(workers.run(lambda n: -n, [-1, -2], is_small=True)) == [(-1, 1), (-2, 2)]
    with pytest.raises(UserError, match="0 processes cannot work; take 1 or more"), start_workers(CONSOLE, 0):
        pass


# --- progress ---


def test_lines_without_a_terminal(monkeypatch):
    clock, console = SimpleNamespace(now=100.0), Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(console, "get_time", lambda: clock.now)
    with ProgressReporter(console) as reporter:
        reporter.begin("Reading", 1000, 100)
        reporter.count(50)
        clock.now += 20
        reporter.count(50)
        assert console.file.getvalue() == ""
        clock.now += 20
        reporter.count(50)
        assert console.file.getvalue() == "Reading: 250 of 1000 images, 5 min 0 s left\n"
        reporter.count(50)
        assert console.file.getvalue().count("\n") == 1


def test_duration():
    assert [format_duration(s) for s in (0.04, 200, 3599.6)] == ["0.04 s", "3 min 20 s", "1 h 0 min"]
