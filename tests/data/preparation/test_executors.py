"""Whoever does the work, the result is the same; and what can go wrong with them is said."""

import builtins
import gc
import hashlib
import io
import os
import random
import subprocess
import sys
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import project
from project import provenance
from project.data.config import DatasetConfig, SizesConfig, SplitConfig
from project.data.preparation import executors, plan
from project.data.preparation.executors import InProcess, Reporter, Workers, available_cores, duration, workers
from project.data.preparation.prepare import prepare
from project.errors import UserError


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Folder:
    """20 float images, of which 5 are a shard."""

    def __init__(self, path: Path) -> None:
        self.path, self.raw = path, path / "raw"
        self.raw.mkdir()
        rng = np.random.default_rng(0)
        for i in range(20):
            pixels = rng.normal(size=(32, 32)) * 10.0 ** rng.integers(-9, 9)
            Image.fromarray(pixels.astype(np.float32)).save(self.raw / f"{i:02d}.tif")

    def prepare(self, name: str, **options) -> dict[str, str]:
        sizes, split = SizesConfig("crop", 32), SplitConfig(fractions={"train": 0.7, "test": 0.3}, folds=2)
        config = DatasetConfig(str(self.raw), {"a": "{id}.tif"}, sizes=sizes, near_duplicates="warn", split=split)
        folder = prepare("d", config, self.path / name, Console(file=io.StringIO()), **options)
        found = hashes(folder)
        assert len(found) == 2 + 3 + 2
        return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "git", lambda *_: None)
    monkeypatch.setattr(plan, "SHARD_BYTES", 5 * 32 * 32 * 4)
    return Folder(tmp_path)


@pytest.mark.slow
def test_one_or_two_processes_give_the_same_bytes(folder):
    assert folder.prepare("two", processes=2) == folder.prepare("one", processes=1)


def test_the_order_in_which_shards_finish_does_not_matter(folder, monkeypatch):
    """Sums of floats depend on their order."""
    expected = folder.prepare("in order", processes=1)
    order = []

    def run(crew, function, tasks, little=False, original=Workers.run):
        done = list(original(crew, function, tasks, little))
        random.Random(1).shuffle(done)
        order.append([task for task, _ in done])
        return iter(done)

    monkeypatch.setattr(Workers, "run", run)
    assert folder.prepare("in any order", processes=1) == expected
    assert [shard.path.name for shard in order[-1]] != sorted(shard.path.name for shard in order[-1])


# --- tasks ---


def test_few_tasks_wait_at_a_time():
    submitted, done = 0, 0

    def tasks():
        nonlocal submitted
        for i in range(100):
            submitted += 1
            yield i

    with ThreadPoolExecutor(3) as pool:
        most = 0
        for task, result in Workers(pool, 3, True).run(lambda n: n * n, tasks()):
            most = max(most, submitted - done)
            done += 1
            assert result == task * task
    assert done == 100
    assert most <= 2 * 3 + 1


def test_little_work_is_done_here():
    class Nobody(Executor):
        def submit(self, fn, /, *args, **kwargs):
            raise AssertionError("not asked for")

    assert list(Workers(Nobody(), 4, always=False).run(abs, [-1, -2], little=True)) == [(-1, 1), (-2, 2)]
    with pytest.raises(AssertionError):
        list(Workers(Nobody(), 4, always=True).run(abs, [-1], little=True))


def test_errors_come_out():
    with pytest.raises(ZeroDivisionError):
        list(Workers(InProcess(), 1, True).run(lambda n: 1 // n, [1, 0]))


def test_processes_are_those_asked_for():
    with workers(1) as crew:
        assert isinstance(crew.pool, InProcess)
        assert (crew.at_a_time, crew.always) == (1, True)
    with workers(3) as crew:
        assert (crew.at_a_time, crew.always) == (3, True)
    with workers() as crew:
        assert (crew.at_a_time, crew.always) == (available_cores(), available_cores() == 1)
    with pytest.raises(UserError, match="0 processes cannot work; take 1 or more"), workers(0):
        pass


# --- Dask ---


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as found:
        yield found


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_bytes(folder, cluster):
    assert folder.prepare("dask", cluster=cluster.scheduler_address) == folder.prepare("here", processes=1)


@pytest.mark.slow
def test_work_goes_to_all_workers_of_the_cluster(cluster):
    with workers(cluster=cluster.scheduler_address) as crew:
        assert (crew.at_a_time, crew.always) == (2, True)
        tasks = [f"(__import__('time').sleep(0.3), __import__('os').getpid(), {i})[1]" for i in range(6)]
        pids = {pid for _, pid in crew.run(eval, tasks, little=True)}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.slow
def test_workers_of_the_cluster_are_killed(cluster):
    with pytest.raises(UserError, match=r"(?s)gave up: .*killed because memory ran out.* same command"):  # noqa: SIM117
        with workers(cluster=cluster.scheduler_address) as crew:
            list(crew.run(eval, ["__import__('os')._exit(1)"]))


def close_after_three(cluster) -> None:
    with workers(cluster=cluster.scheduler_address) as crew:
        for number, _ in enumerate(crew.run(time.sleep, [0.01 + i / 1000 for i in range(50)])):
            if number == 3:
                cluster.close()


@pytest.mark.slow
def test_the_scheduler_ends():
    distributed = pytest.importorskip("distributed")
    found = distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0", silence_logs=50)
    with pytest.raises(UserError, match=r"gave up: its scheduler ended\n.* same command again"):
        close_after_three(found)


@pytest.fixture
def collected():
    """A client that found no scheduler closes itself when it is collected, which must not be while another starts."""
    yield
    gc.collect()


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense"])
def test_no_scheduler(monkeypatch, address):
    distributed = pytest.importorskip("distributed")
    original = distributed.Client
    monkeypatch.setattr(
        distributed, "Client", lambda *arguments, **rest: original(*arguments, **rest | {"timeout": 0.2})
    )
    with pytest.raises(UserError, match=f"no Dask scheduler answers at {address}"), workers(cluster=address):
        pass


@pytest.mark.slow
def test_a_scheduler_without_workers():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0", silence_logs=50) as empty,
        pytest.raises(UserError, match="has no workers"),
        workers(cluster=empty.scheduler_address),
    ):
        pass


def test_dask_is_not_installed(monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name == "distributed":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    told = r"CLUSTER needs Dask; install the extra: `pip install -e .\[cluster\]`"
    with pytest.raises(UserError, match=told), workers(cluster="tcp://127.0.0.1:1"):
        pass


# --- how far it is ---


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_lines_without_a_terminal(monkeypatch):
    clock, console = Clock(), Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(executors, "time", clock)
    with Reporter(console) as reporter:
        reporter.start("Reading", 1000)
        reporter.advance(100, earlier=True, n_bytes=10**9)
        clock.now += 10
        reporter.advance(50, n_bytes=10**6)
        assert console.file.getvalue() == ""
        clock.now += 30
        reporter.advance(50, n_bytes=10**6)
        assert console.file.getvalue() == "Reading: 200 of 1000 images, 2.5 images/s, 0.05 MB/s, 5 min 20 s left\n"
        reporter.advance(50)
        assert console.file.getvalue().count("\n") == 1
        reporter.start("Reading headers", 4)
        clock.now += 60
        reporter.advance(1)
        assert console.file.getvalue().endswith("Reading headers: 1 of 4 images, 0.0167 images/s, 3 min 0 s left\n")


def test_a_bar_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Reporter(console) as reporter:
        reporter.start("Reading", 10)
        reporter.advance(4, 10**6)
        reporter.progress.refresh()
    text = console.file.getvalue()
    assert "4/10" in text
    assert "images/s" in text


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.04, "0.04 s"),
        (0.8, "0.8 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (59.9, "60 s"),
        (60, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_duration(seconds, told):
    assert duration(seconds) == told


WITHOUT = """
import signal, sys
from pathlib import Path
sys.modules["resource"] = None  # as on Windows
del signal.pthread_sigmask
import project.inference.folder
from project.data.config import DatasetConfig
from project.data.preparation.prepare import prepare
from project.data.preparation.shards import peak_memory
from rich.console import Console
if __name__ == "__main__":
    prepare("d", DatasetConfig("raw", {"a": "{id}.png"}, near_duplicates="ignore"), Path("out"), Console(), 2)
    Path.is_file = lambda path: False  # no /proc
    assert peak_memory() == 0
"""


@pytest.mark.slow
def test_preparing_and_predicting_need_no_module_of_unix(tmp_path):
    (tmp_path / "raw").mkdir()
    for i in range(8):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / f"raw/{i}.png")
    environment = os.environ | {"PYTHONPATH": str(Path(project.__file__).parents[1])}
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out/d").iterdir()} == {"train.h5", "val.h5", "test.h5"}
