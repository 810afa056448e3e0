"""Time budgets, with a clock that advances by the step; lengths in steps, and how often is validated."""

import csv
from types import SimpleNamespace

import pytest
import torch
import yaml

from project.cli import main
from project.errors import UserError
from project.optimizers import WarmupCosine, follow_clock
from project.training import clock as clock_module
from project.training.length import Length, validation_interval

# Three steps per epoch.
WORDS = ["--data.batch_size", "4", "--unchecked"]


class Seconds:
    """Stands for the module `time`: a step takes 1 second, a batch of validation `validation` seconds."""

    def __init__(self, step=1.0, validation=1.0):
        self.now, self.step, self.validation = 0.0, step, validation

    def monotonic(self):
        return self.now


@pytest.fixture
def seconds(monkeypatch):
    fake = Seconds()
    monkeypatch.setattr(clock_module, "time", fake)
    monkeypatch.setattr("project.launch.time", fake)
    monkeypatch.setattr("project.cli.time", fake)
    start, end = clock_module.TrainingClock.on_train_batch_end, clock_module.TrainingClock.on_validation_batch_end

    def step(self, *arguments):
        fake.now += fake.step
        start(self, *arguments)

    def validation(self, *arguments):
        fake.now += fake.validation
        end(self, *arguments)

    monkeypatch.setattr(clock_module.TrainingClock, "on_train_batch_end", step)
    monkeypatch.setattr(clock_module.TrainingClock, "on_validation_batch_end", validation)
    return fake


def rows(run):
    return list(csv.DictReader((run.folder / "history.csv").read_text().splitlines()))


def test_a_budget_ends_training_and_schedule_in_time_with_a_validation(train, seconds):
    run = train("--minutes", "1")
    facts, last = run.read("provenance.json"), rows(run)[-1]
    # A pass of a second is reserved; the best checkpoint is not evaluated again.
    assert 57 <= seconds.now <= 62
    assert facts["status"] == "finished"
    assert facts["trained"]["steps"] == int(last["step"])
    assert last["val/r2"]
    assert float(last["lr"]) < 1e-4 < 0.002 < max(float(row["lr"]) for row in rows(run))
    validated = [row for row in rows(run) if row["val/r2"]]
    assert 2 <= len(validated) <= 4, "a second of twenty"
    config = yaml.safe_load(run.config.read_text())
    assert config["length"]["minutes"] == 1
    metrics = run.read("metrics.json")["metrics"]
    assert (run.folder / "pictures/val.png").is_file()
    assert main(["eval", str(run.folder)]) == 0
    assert run.read("metrics.json")["metrics"] == metrics  # measured in the best validation, to the last digit
    assert config["trainer"]["max_epochs"] == -1


def test_a_budget_holds_where_steps_become_slow(train, seconds, monkeypatch):
    original = clock_module.TrainingClock._decide

    def slower(self, trainer, batch_idx):
        seconds.step = 5.0 if self.n_batches > 20 else 1.0
        original(self, trainer, batch_idx)

    monkeypatch.setattr(clock_module.TrainingClock, "_decide", slower)
    run = train("--minutes", "1")
    assert 52 <= seconds.now <= 65
    assert float(rows(run)[-1]["lr"]) < 2e-4


def test_a_budget_shorter_than_an_epoch_validates_at_its_end(train, seconds):
    seconds.step = 10.0
    run = train("--minutes", "0.5", "--data.crops_per_image", "20")
    assert len(rows(run)) == 1
    assert rows(run)[0]["val/r2"]
    assert run.read("provenance.json")["trained"]["epochs"] == 1
    assert 1 <= run.read("provenance.json")["trained"]["steps"] <= 3


def test_what_is_typed_ends_a_budget_earlier(train, seconds):
    run = train("--minutes", "10", "--trainer.max_epochs", "2")
    assert [row["step"] for row in rows(run)] == ["3", "6"]
    assert float(rows(run)[-1]["lr"]) < 1e-3, "the schedule ends with the training"
    assert run.metrics_file("val").is_file()


def test_a_schedule_that_waits_for_epochs_has_each_validated(train, seconds, schedule):
    words = schedule("lightning.pytorch.cli.ReduceLROnPlateau", monitor="val/loss")
    run = train("--minutes", "0.3", *words)
    assert len(rows(run)) > 2
    assert all(row["val/r2"] for row in rows(run))


def test_a_finished_budget_resumes_with_more_minutes(train, seconds):
    run = train("--minutes", "0.5")
    before, now = len(rows(run)), seconds.now
    assert main(["train", "--resume", str(run.folder), "--minutes", "1"]) == 0
    assert len(rows(run)) > before
    assert float(rows(run)[before - 1]["lr"]) < 1e-4 < float(rows(run)[before]["lr"])
    assert seconds.now - now < 62


def test_steps_are_rounded_to_epochs_and_stored(train):
    run = train("--length.steps", "8", "--length.share", "1")
    config = yaml.safe_load(run.config.read_text())
    assert config["trainer"]["max_epochs"] == 3
    assert len(rows(run)) == 3
    assert run.read("provenance.json")["trained"] == {"epochs": 3, "steps": 9}


def test_an_epoch_of_large_data_is_cut(train):
    run = train("--length.steps", "60", "--length.share", "1", "--data.crops_per_image", "50")
    assert [row["step"] for row in rows(run)] == ["12", "24", "36", "48", "60"]


def test_steps_that_end_within_an_epoch_end_with_a_validation(train):
    run = train("--trainer.max_steps", "4")
    assert [(row["step"], bool(row["val/r2"])) for row in rows(run)] == [("3", True), ("4", True)]


def data(n_val, side=100, crop=100):
    shapes = {"train": [(1, side, side)] * 50, "val": [(1, side, side)] * n_val}
    reader = lambda split: SimpleNamespace(shapes={"image": shapes[split]})  # noqa: E731
    return SimpleNamespace(reader=reader, crop=crop, batch_size=10)


@pytest.mark.parametrize(
    ("n_val", "n_batches", "epochs", "every"),
    [
        (10, 10, 100, 2),  # 10 images against 100 in training, which cost three times as much: a fiftieth each
        (100, 10, 100, 3),
        (1000, 10, 100, 30),
        (1000, 10, 12, 4),  # three validations at least
        (10, 2, 600, 12),  # small data: fifty at most
        (10, 1000, 4, 1),
    ],
)
def test_validation_takes_at_most_a_share_of_the_time(n_val, n_batches, epochs, every):
    assert validation_interval(n_batches, epochs, data(n_val), 0.1) == every


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"minutes": -1.0}, {"share": float("inf")}, {"validation_share": 0.0}]
)
def test_wrong_lengths_are_refused(options):
    with pytest.raises(UserError, match=f"length.{next(iter(options))}"):
        Length(**options)


def test_a_schedule_follows_the_clock_to_its_floor():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = WarmupCosine(optimizer, total_steps=1000)
    optimizer.step()
    rates = []
    for progress in (0.05, 0.05, 1.0, 0.525, 1.0):
        follow_clock(schedule, progress)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1, 1, 0, 0.5, 0], abs=2e-2)


def test_the_start_of_the_loader_is_not_taken_for_slow_batches(monkeypatch):
    now = Seconds()
    monkeypatch.setattr(clock_module, "time", now)
    reader = SimpleNamespace(shapes={"image": [(1, 8, 8)] * 100})
    data = SimpleNamespace(reader=lambda split: reader)
    trainer = SimpleNamespace(sanity_checking=True, num_val_batches=[50], world_size=1, datamodule=data)
    clock = clock_module.TrainingClock(0.0)
    clock.on_validation_start(trainer, None)
    for seconds in (30, 1):  # the first batch waits for the processes of the loader
        now.now += seconds
        clock.on_validation_batch_end(trainer, None, None, {"image": torch.zeros(2, 1, 8, 8)})
    clock.on_sanity_check_end(trainer, None)
    assert clock.validation_seconds == pytest.approx(30 + clock_module.UNMEASURED * 50)
