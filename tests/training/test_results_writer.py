"""What is written while a training runs."""

import csv

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.data.datamodule import ImageDataModule
from project.runs.run_folder import Run
from project.tasks.translation import TranslationTask
from project.training.results_writer import ResultsWriter


class Task(TranslationTask):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def recorded(tiny_dataset, make_trainer, tmp_path):
    """A training of seven epochs: the run, the task, and what TensorBoard got."""
    data = ImageDataModule(tiny_dataset.name, str(tiny_dataset.parent), batch_size=4, crop=16)
    data.roles = Task.inputs
    task = Task(torch.nn.Conv2d(1, 1, 1), statistics=data.statistics, channels=data.channels)
    run = Run(tmp_path / "runs" / "one")
    trainer = make_trainer(
        max_epochs=7,
        enable_checkpointing=True,
        logger=TensorBoardLogger(tmp_path, name="tb", version=""),
        callbacks=[ResultsWriter(run, {"experiment": "e"})],
    )
    trainer.fit(task, datamodule=data)
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0}).Reload()
    return run, task, events


def test_pictures_are_those_of_tensorboard(recorded):
    run, _, events = recorded
    assert sorted(p.name for p in (run.folder / "pictures").iterdir()) == ["val_epoch0000.png", "val_epoch0005.png"]
    shown = events.Images("val")
    assert [event.step for event in shown] == [3, 18]
    pixels = image.imread(run.folder / "pictures" / "val_epoch0005.png")[..., :3]
    (run.folder / "shown.png").write_bytes(shown[1].encoded_image_string)
    np.testing.assert_array_equal(image.imread(run.folder / "shown.png")[..., :3], pixels)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 300


def test_history_and_tensorboard_hold_the_mean_loss_of_each_epoch(recorded):
    run, _, events = recorded
    rows = list(csv.DictReader((run.folder / "history.csv").read_text().splitlines()))
    logged = events.Scalars("train/loss")
    assert [float(row["train/loss"]) for row in rows] == pytest.approx([event.value for event in logged], rel=1e-6)
    assert [int(row["step"]) for row in rows] == [3, 6, 9, 12, 15, 18, 21]
    assert len(events.Scalars("val/loss")) == 7
