"""Checkpoints that are written in the background: complete or absent, of the right moment, and never silently lost."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from project.errors import UserError
from project.training import checkpoints
from project.training.checkpoints import BackgroundCheckpoints, KeepLast


def content(value=1.0, step=1):
    weight = torch.full((4, 3), value)
    return {"epoch": 0, "global_step": step, "state_dict": {"a": weight, "tied": weight}, "loops": {"done": [step]}}


def load(path):
    return torch.load(path, weights_only=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until this is set."""
    event, save = threading.Event(), torch.save

    def slow(*arguments):
        assert event.wait(20)
        save(*arguments)

    monkeypatch.setattr(checkpoints.torch, "save", slow)
    return event


def test_what_is_written_is_the_moment_of_the_call(tmp_path, gate):
    writer, state = BackgroundCheckpoints(), content()
    writer.save_checkpoint(state, tmp_path / "best.ckpt")
    state["state_dict"]["a"].add_(5)
    state["loops"]["done"].append(2)
    assert not (tmp_path / "best.ckpt").exists(), "training goes on before the file is there"
    gate.set()
    writer.wait()
    found = load(tmp_path / "best.ckpt")
    assert (found["state_dict"]["a"] == 1).all()
    assert found["loops"] == {"done": [1]}
    assert found["state_dict"]["a"].data_ptr() == found["state_dict"]["tied"].data_ptr()


def test_attributes_of_state_dictionaries_are_kept(tmp_path):
    writer, net = BackgroundCheckpoints(), nn.BatchNorm2d(2)
    writer.save_checkpoint({"state_dict": net.state_dict()}, tmp_path / "a.ckpt")
    writer.teardown()
    assert load(tmp_path / "a.ckpt")["state_dict"]._metadata == net.state_dict()._metadata


def test_loading_waits_for_the_writer(tmp_path, gate):
    writer = BackgroundCheckpoints()
    writer.save_checkpoint(content(), tmp_path / "best.ckpt")
    threading.Timer(0.2, gate.set).start()
    assert writer.load_checkpoint(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 1


def test_one_state_is_written_once(tmp_path, monkeypatch):
    written, write = [], checkpoints._write
    monkeypatch.setattr(checkpoints, "_write", lambda value, path: (written.append(path.name), write(value, path)))
    writer, state, best, last = BackgroundCheckpoints(), content(), tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    writer.save_checkpoint({**state, "callbacks": {"last": ""}}, best)
    writer.save_checkpoint({**state, "callbacks": {"last": "b"}}, last)
    writer.wait()
    assert written == ["best.ckpt"]
    assert load(last)["state_dict"]["a"].tolist() == load(best)["state_dict"]["a"].tolist()
    # A step further only the last is written, and the best stays what it was.
    state["state_dict"]["a"].add_(1)
    writer.save_checkpoint(state, last)
    writer.wait()
    assert (load(best)["state_dict"]["a"] == 1).all()
    assert (load(last)["state_dict"]["a"] == 2).all()
    # Nothing is learned, but the epoch goes on.
    writer.save_checkpoint({**state, "loops": {"done": [2]}}, best)
    writer.wait()
    assert load(best)["loops"] == {"done": [2]}


def test_without_links_the_file_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    writer, state = BackgroundCheckpoints(), content()
    for name in ("best.ckpt", "last.ckpt"):
        writer.save_checkpoint(state, tmp_path / name)
    writer.teardown()
    assert load(tmp_path / "last.ckpt")["global_step"] == 1
    assert names(tmp_path) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("then", ["wait", "teardown", "save", "load"])
def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path, monkeypatch, then):
    writer, path = BackgroundCheckpoints(), tmp_path / "best.ckpt"
    writer.save_checkpoint(content(), path)
    writer.wait()

    def full(value, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    state = content(2.0, step=2)
    writer.save_checkpoint(state, path)
    writer.save_checkpoint(state, tmp_path / "last.ckpt")  # would be another name of the old file
    told = {
        "wait": writer.wait,
        "teardown": writer.teardown,
        "save": lambda: writer.save_checkpoint(content(3.0, step=3), path),
        "load": lambda: writer.load_checkpoint(path),
    }
    with pytest.raises(UserError, match=r"best.ckpt.*No space left on device"):
        told[then]()
    writer.teardown()  # told once
    assert load(path)["global_step"] == 1
    assert names(tmp_path) == ["best.ckpt"]


KILLED = """
import sys, time, torch
from project.training import checkpoints
writer, path = checkpoints.BackgroundCheckpoints(), sys.argv[1]
writer.save_checkpoint({"global_step": 1, "a": torch.zeros(10)}, path)
writer.wait()
def half(value, file):
    file.write(b"half of it")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
checkpoints.torch.save = half
writer.save_checkpoint({"global_step": 2, "a": torch.ones(10)}, path)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "best.ckpt"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    process.stdout.close()
    assert load(path)["global_step"] == 1
    # What is left is in nobody's way.
    writer = BackgroundCheckpoints()
    writer.save_checkpoint(content(step=3), path)
    writer.teardown()
    assert load(path)["global_step"] == 3
    assert names(tmp_path) == ["best.ckpt"]


class Line(LightningModule):
    """Its validation loss is best in the first epoch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return (self.weight - 100) ** 2

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fitted(make_trainer, tmp_path, n_epochs=3, **options):
    rule = ModelCheckpoint(tmp_path, filename="best", monitor="val/loss", enable_version_counter=False)
    trainer = make_trainer(max_epochs=n_epochs, enable_checkpointing=True, callbacks=[rule], num_sanity_val_steps=0)
    trainer.callbacks.append(KeepLast(**options))
    trainer.strategy.checkpoint_io = BackgroundCheckpoints()
    model = Line()
    trainer.fit(model, *([torch.utils.data.DataLoader([0, 1])] * 2))
    return model


def test_last_is_that_of_the_last_epoch_and_best_that_of_the_best(make_trainer, tmp_path):
    model = fitted(make_trainer, tmp_path)
    best, last = (load(tmp_path / f"{name}.ckpt") for name in ("best", "last"))
    assert (best["epoch"], last["epoch"]) == (0, 2)
    assert (best["global_step"], last["global_step"]) == (2, 6)
    assert last["state_dict"]["weight"] == model.weight
    assert last["state_dict"]["weight"] != best["state_dict"]["weight"]


@pytest.mark.parametrize(("options", "epochs"), [({"wanted": False}, None), ({"every_n_epochs": 2}, 1)])
def test_last_is_written_as_often_as_the_configuration_says(make_trainer, tmp_path, options, epochs):
    fitted(make_trainer, tmp_path, **options)
    path = tmp_path / "last.ckpt"
    assert (load(path)["epoch"] if path.exists() else None) == epochs
