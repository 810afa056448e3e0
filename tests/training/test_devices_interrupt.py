"""After Ctrl-C no worker process and no thread is left."""

import threading
import time

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel

from project.data.datamodule import ImageDataModule


class Interrupt(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt


class Model(BoringModel):
    def training_step(self, batch, batch_idx):
        return self.layer(batch["image"].float().flatten()[:32]).sum()

    validation_step = training_step


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_leaves_no_thread_and_no_process(tiny_dataset, make_trainer, num_workers):
    def running() -> set:
        threads = {thread for thread in threading.enumerate() if "tqdm" not in thread.name}
        return threads | {*torch.multiprocessing.active_children()}

    before = running()
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent), batch_size=2, num_workers=num_workers)
    trainer = make_trainer(max_epochs=3, callbacks=[Interrupt()], num_sanity_val_steps=0)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer.fit(Model(), datamodule=data)
    del trainer, data
    deadline = time.monotonic() + 10
    while running() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running() <= before
