"""An interrupted preparation resumes with the same command, and gives the same bytes."""

import contextlib
import errno
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import project
from project.data.config import SplitConfig
from project.data.preparation import plan, shards
from project.data.preparation import prepare as module
from project.data.preparation.workers import ProgressReporter
from project.data.split_writer import ArrayWriter
from project.data.store import SplitReader
from project.errors import UserError


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def finished_ids(folder: Path) -> set[str]:
    """Samples that need not be read again."""
    results = (pickle.loads(path.read_bytes()) for path in folder.rglob("*.result"))
    return {record.id for result in results for record in result.records}


# --- in this process ---


@pytest.fixture
def images(folder, monkeypatch):
    """18 images of 2 kB; five are a shard unless the test says something else."""
    monkeypatch.setattr(plan, "SHARD_BYTES", 10_240)
    for i in range(18):
        folder.put(f"{i:02d}.tif", shape=(32, 32))
    return folder


def run(folder, **options) -> dict[str, str]:
    """Prepare, and return the hashes of the files."""
    split = SplitConfig(fractions={"train": 0.7, "val": 0.3})
    folder.prepare(image={"a": "{id}.tif"}, target={}, **{"split": split, "near_duplicates": "warn"} | options)
    return hashes(folder.final)


def stop(folder, monkeypatch, after: int, **options) -> set[str]:
    """Prepare until some images were read; return those that need not be read again."""
    original, remaining = shards.read_sample, iter(range(after))

    def read(*arguments):
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "read_sample", read)
        with pytest.raises(KeyboardInterrupt):
            run(folder, **options)
    return finished_ids(folder.partial)


def reads(folder, monkeypatch, **options) -> Counter:
    """How often each image is read to finish."""
    original, read = shards.read_sample, Counter()
    with monkeypatch.context() as patch:
        patch.setattr(shards, "read_sample", lambda s, *rest: read.update([s.id]) or original(s, *rest))
        run(folder, **options)
    return read


def test_finished_shards_are_not_read_again(images, monkeypatch):
    expected = run(images)
    time.sleep(1.1)  # HDF5 would store seconds
    module.shutil.rmtree(images.final)
    finished = stop(images, monkeypatch, 12)
    assert len(finished) == 10
    assert reads(images, monkeypatch) == Counter({f"{i:02d}": 1 for i in range(18) if f"{i:02d}" not in finished})
    assert hashes(images.final) == expected


def test_only_what_changed_is_read_again(images, monkeypatch):
    finished = sorted(stop(images, monkeypatch, 16))
    assert len(finished) == 13
    images.put(f"{finished[0]}.tif", shape=(32, 32))
    begin, begun = ProgressReporter.begin, list[tuple]()
    monkeypatch.setattr(ProgressReporter, "begin", lambda self, *work: begun.append(work) or begin(self, *work))
    read = reads(images, monkeypatch)
    assert begun[-1] == ("Reading", 18, 18 - len(read))
    assert finished[0] in read
    assert len(read) == 5 + 5  # the shard with that image, and those that were not finished
    reader = SplitReader(images.final / "train.h5")
    pixels = reader.read("image", reader.ids.index(finished[0]))[0]
    np.testing.assert_array_equal(pixels, images.images[f"{finished[0]}.tif"])


def test_damaged_records_and_lost_shards_are_read_again(images, monkeypatch):
    expected = run(images)
    module.shutil.rmtree(images.final)
    for content in (b"", b"no pickle", pickle.dumps("no result"), b"\x80\x04cno_module\nname\n."):
        stop(images, monkeypatch, 16)
        first, second, third = sorted(images.partial.rglob("*.result"))
        first.write_bytes(content)
        second.with_suffix(".h5").unlink()
        kept = pickle.loads(third.read_bytes()).records
        assert len(reads(images, monkeypatch)) == 18 - len(kept)
        assert hashes(images.final) == expected
        module.shutil.rmtree(images.final)


def test_nothing_is_left_of_another_configuration(images, monkeypatch):
    stop(images, monkeypatch, 16)
    (images.partial / "test.h5").write_bytes(b"of an interrupted join")
    monkeypatch.setattr(plan, "SHARD_BYTES", 10**6)
    assert set(run(images)) == {"train.h5", "val.h5", "croissant.json", "splits.csv"}


@pytest.mark.parametrize("renames", [1, 2])
def test_stopped_between_the_renames(images, monkeypatch, renames):
    old = run(images, compression="blosc2")
    original, remaining = Path.rename, iter(range(renames - 1))

    def rename(path: Path, to: Path) -> Path:
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return original(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            run(images)
    assert images.final.exists() == (renames == 1)
    stop(images, monkeypatch, 0)
    assert hashes(images.final) == old
    run(images)
    assert set(images.processed.glob(".d.*")) <= {images.lock}


def test_a_second_preparation_is_refused(images, monkeypatch):
    original = shards.read_sample

    def read(*arguments):
        with pytest.raises(UserError, match=r"another process is preparing .*d; wait for it, or stop it"):
            run(images)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "read_sample", read)
        run(images)
    assert run(images)


def test_full_disk(images, monkeypatch):
    old = run(images, compression="blosc2")
    original, remaining = ArrayWriter.write, iter(range(12))

    def write(*arguments):
        if next(remaining, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ArrayWriter, "write", write)
        message = r"could not be written below .*No space left on device\n2 finished parts are kept .*; run the same"
        with pytest.raises(UserError, match=message):
            run(images)
    assert hashes(images.final) == old
    assert len(reads(images, monkeypatch)) == 8


# --- as a command, in processes that are interrupted ---

SLOW = """
import time
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from project.data.preparation import plan
from project.data.raw.lazy_image import LazyImage
from project.data.raw.samples import Sample
from project.data.raw.sources import Source

plan.SHARD_BYTES = 5 * 32 * 32 * 4


@dataclass(frozen=True)
class Slow:
    path: Path

    @property
    def paths(self):
        return (self.path,)

    def open(self):
        return LazyImage((1, 32, 32), np.dtype(np.float32), "CYX", self.read)

    def read(self, index):
        with open("reads.log", "a") as log:
            log.write(self.path.name + chr(10))
        time.sleep(0.01)
        return np.random.default_rng(int(self.path.name)).random((1, 32, 32), np.float32)[index]


class Images(Source):
    def samples(self, problems):
        return [Sample(path.name, {"image": [Slow(path)]}) for path in Path("raw").iterdir()]
"""
RUN = """
import sys
from project import cli

if __name__ == "__main__":
    words, sys.argv[1:] = sys.argv[1:], []  # the files say what was typed
    sys.exit(cli.main(["data", "x", *words]))
"""


class Lab:
    """A working directory with 40 slow images, five in a shard, and a run of the command."""

    def __init__(self, path: Path) -> None:
        self.path, self.final = path, path / "data/processed/x"
        (path / "raw").mkdir()
        (path / "configs/data").mkdir(parents=True)
        (path / "configs/data/x.yaml").write_text(
            "{raw: raw, source: {class_path: slow.Images}, near_duplicates: warn}"
        )
        for i in range(40):
            (path / "raw" / str(i)).touch()
        (path / "slow.py").write_text(SLOW)
        (path / "run.py").write_text(RUN)

    def start(self, *words: str) -> subprocess.Popen:
        env = os.environ | {"PYTHONPATH": str(Path(project.__file__).parents[1])}
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [sys.executable, "run.py", *words],
            cwd=self.path,
            env=env,
            text=True,
            start_new_session=True,
            **pipes,
            # What is started in the background inherits that SIGINT is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *words: str) -> dict[str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        return hashes(self.final)

    def reads(self) -> list[str]:
        log = self.path / "reads.log"
        return log.read_text().split() if log.exists() else []

    def wait_for(self, reads: int, process: subprocess.Popen) -> bool:
        """Until so many images were read; False if the process ended before."""
        while len(self.reads()) < reads:
            if process.poll() is not None:
                return False
            time.sleep(0.002)
        return True


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def wait_for_end_of_group(pid: int) -> None:
    """Until the workers of a process that was killed have ended too."""
    deadline = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(pid, 0)
            time.sleep(0.02)
        pytest.fail("workers go on without their parent")


@pytest.mark.nightly
@pytest.mark.parametrize("processes", ["1", "2"])
def test_killed_again_and_again(lab, processes):
    expected = lab.run("--processes", processes)
    module.shutil.rmtree(lab.final)
    rng, kills, finished = np.random.default_rng(), 0, set[str]()
    while True:
        (lab.path / "reads.log").unlink()
        process = lab.start("--processes", processes)
        if lab.wait_for(int(rng.integers(5, 15)), process):
            time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        wait_for_end_of_group(process.pid)
        assert not finished.intersection(lab.reads())
        if process.returncode == 0:
            break
        kills += 1
        finished |= finished_ids(lab.path / "data/processed/.x.partial")
    assert hashes(lab.final) == expected
    assert kills > 2
    assert len(finished) > 10


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_and_keeps_what_is_finished(lab):
    process = lab.start("--processes", "2")
    assert lab.wait_for(22, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "\nstopped\n")
    finished = finished_ids(lab.path / "data/processed/.x.partial")
    assert len(finished) >= 10
    (lab.path / "reads.log").unlink()
    lab.run()
    assert sorted(lab.reads()) == sorted(str(i) for i in range(40) if str(i) not in finished)
