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
from project.data.preparation import workers as module
from project.data.preparation.prepare import prepare
from project.data.preparation.workers import ProgressReporter, Workers, format_duration, start_workers
from project.errors import UserError


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
def test_tasks_run_in_processes_and_few_of_them_wait():
    submitted, done, most, pids = 0, 0, 0, set()

    def tasks():
        nonlocal submitted
        for i in range(40):
            submitted += 1
            yield f"(__import__('time').sleep(0.01), __import__('os').getpid(), {i})"

    with start_workers(2) as workers:
        for task, (_, pid, number) in workers.run(eval, tasks(), is_small=True):
            assert task.endswith(f", {number})")
            most, done = max(most, submitted - done), done + 1
            pids.add(pid)
        assert (done, len(pids)) == (40, 2)
        assert os.getpid() not in pids
        assert most <= 10
        with pytest.raises(ZeroDivisionError):
            list(workers.run(eval, ["1 / 0"] * 3))
        next(workers.run(eval, ["1"] * 50))  # the others are not needed
    with pytest.raises(UserError, match=r"was killed, .* memory ran out; finished parts are kept.*--processes 1"):  # noqa: SIM117
        with start_workers(2) as workers:
            list(workers.run(eval, ["__import__('os')._exit(1)", "1"]))


def test_small_jobs_are_done_in_this_process():
    assert list(Workers(4, for_small_jobs=False).run(abs, [-1, -2], is_small=True)) == [(-1, 1), (-2, 2)]
    with pytest.raises(ZeroDivisionError):
        list(Workers(1, for_small_jobs=True).run(lambda n: 1 // n, [1, 0]))
    with start_workers() as workers:
        assert not workers.for_small_jobs
    with pytest.raises(UserError, match="0 processes cannot work; take 1 or more"), start_workers(0):
        pass


# --- progress ---


def test_lines_without_a_terminal(monkeypatch):
    clock, console = SimpleNamespace(now=100.0), Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with ProgressReporter(console) as reporter:
        reporter.start("Reading", 1000)
        reporter.advance(100, earlier=True)
        clock.now += 10
        reporter.advance(50)
        assert console.file.getvalue() == ""
        clock.now += 30
        reporter.advance(50)
        assert console.file.getvalue() == "Reading: 200 of 1000 images, 5 min 20 s left\n"
        reporter.advance(50)
        assert console.file.getvalue().count("\n") == 1


def test_duration():
    assert [format_duration(s) for s in (0.04, 200, 3599.6)] == ["0.04 s", "3 min 20 s", "1 h 0 min"]
