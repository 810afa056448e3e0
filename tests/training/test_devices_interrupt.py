"""After Ctrl-C nothing is left: no worker process, no thread."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from shipped_configs import CONFIGS

from project.data.datamodule import ImageDataModule

ROOT = Path(__file__).parents[2]


def descendants(pid):
    """Processes that a process started, and that these started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found += [int(folder.name), *descendants(int(folder.name))]
    return found


def running(pids):
    """Those that are neither gone nor only waiting to be counted."""
    left = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            left.append(pid)
    return left


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("to_all", [True, False], ids=["to the terminal", "to the training"])
@pytest.mark.parametrize("devices", [1, 2])
def test_ctrl_c_leaves_no_process(tmp_path, write_tiny, environment, to_all, devices):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    write_tiny(tmp_path / "data/processed/yeast")
    words = ["--logger=none", "--data.num_workers=2", "--data.crop=32", "--data.batch_size=2"]
    words += ["--trainer.accelerator=cpu", f"--trainer.devices={devices}", "--trainer.max_epochs=100000"]
    words += [f"--trainer.strategy={'ddp' if devices > 1 else 'auto'}", "--model.init_args.net.init_args.width=2"]
    command = [sys.executable, "-m", "project", "train", "unet_mse", *words]
    with (tmp_path / "log").open("w") as log:
        # In a session of its own, as in a terminal: Ctrl-C reaches all processes of it.
        training = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(4000):
            if any(tmp_path.glob("runs/*/*/history.csv")):
                break
            assert training.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        started = descendants(training.pid)
        assert len(started) >= 2 * devices, "there are workers"
        (os.killpg if to_all else os.kill)(training.pid, signal.SIGINT)
        training.wait(100)
        for _ in range(400):
            if not running(started):
                break
            time.sleep(0.05)
        assert running(started) == []
        assert training.returncode != 0 or "interrupted" in next(tmp_path.glob("runs/*/2*/provenance.json")).read_text()
    finally:
        for pid in running([training.pid, *descendants(training.pid)]):
            os.kill(pid, signal.SIGKILL)


class Interrupt(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt


class Model(BoringModel):
    def training_step(self, batch, batch_idx):
        return self.layer(batch["image"].float().flatten()[:32]).sum()

    validation_step = training_step


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_leaves_no_thread(tiny_dataset, make_trainer, num_workers):
    before, children = set(threading.enumerate()), set(descendants(os.getpid()))
    workers = torch.multiprocessing.active_children()  # of other tests
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent), batch_size=2, num_workers=num_workers)
    trainer = make_trainer(max_epochs=3, callbacks=[Interrupt()], num_sanity_val_steps=0)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer.fit(Model(), datamodule=data)
    del trainer, data
    for _ in range(200):
        left = [thread for thread in set(threading.enumerate()) - before if "tqdm" not in thread.name]
        processes = [pid for pid in running(descendants(os.getpid())) if pid not in children]
        if not left and not processes:
            break
        time.sleep(0.05)
    assert left == []
    # What Python itself starts to keep account of shared memory lasts as long as the process.
    named = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes}
    assert [pid for pid, words in named.items() if b"resource_tracker" not in words] == []
    assert set(torch.multiprocessing.active_children()) <= set(workers)
