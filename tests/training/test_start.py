"""How a training starts, ends, says which checkpoint is the best, and takes schedules and callbacks."""

import csv
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from project.cli import main
from project.errors import UserError
from project.models.checkpoint_files import best_checkpoint
from project.models.pretrained import Pretrained, load_pretrained
from project.runs.run_folder import Run
from project.training.graceful_stop import GracefulStop

STEPS, EPOCHS = 3, 4  # 12 images in batches of 4
WORDS = ["--data.batch_size", "4", "--trainer.max_epochs", str(EPOCHS), "--lr_scheduler", "null"]


def callback(name, **arguments):
    path = name if "." in name else f"lightning.pytorch.callbacks.{name}"
    return ["--trainer.callbacks", json.dumps([{"class_path": path, "init_args": arguments}])]


@pytest.fixture(scope="module")
def plain(train):
    return train()


@pytest.fixture
def copied(plain, workplace, request):
    """A copy of the run, to damage."""
    copy = Run(workplace / "copies" / request.node.name / "unet_mse" / "copy")
    shutil.copytree(plain.folder, copy.folder)
    return copy


@pytest.fixture(scope="module")
def losses(history):
    return lambda run: [float(row["val/loss"]) for row in history(run) if row["val/loss"]]


def content(path):
    return torch.load(path, weights_only=True)


def state(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


# The best checkpoint ------------------------------------------------------------------------------------------------


def test_a_run_records_its_best_checkpoint(plain, losses):
    best = min(range(EPOCHS), key=losses(plain).__getitem__)
    facts = plain.read("provenance.json")
    assert facts["best"] == {"checkpoint": "best.ckpt", "epoch": best, "step": STEPS * (best + 1)}
    assert content(best_checkpoint(plain.folder))["epoch"] == best
    assert plain.read("metrics.json")["epoch"] == best
    assert plain.read("metrics.json")["metrics"]["loss"] == pytest.approx(min(losses(plain)), rel=1e-5)
    checkpoint = yaml.safe_load(plain.config.read_text())["checkpoint"]  # by the main metric of the task
    assert (checkpoint["monitor"], checkpoint["mode"]) == ("val/mse", "min")


def test_another_model_checkpoint_takes_nothing_from_the_best(train, plain):
    keeps = callback("ModelCheckpoint", filename="{epoch}", save_top_k=-1, monitor="train/loss")
    run = train(*keeps)
    assert run.read("provenance.json")["best"] == plain.read("provenance.json")["best"]
    assert run.read("metrics.json")["metrics"] == plain.read("metrics.json")["metrics"]
    assert len(list(run.checkpoints.glob("epoch=*.ckpt"))) == EPOCHS


def test_a_best_checkpoint_with_its_own_name_is_evaluated(train, plain, losses):
    run = train("--checkpoint.filename", "{epoch}-{val/loss:.3f}")
    best = plain.read("provenance.json")["best"]["epoch"]
    assert best_checkpoint(run.folder).name == f"{best}-{losses(plain)[best]:.3f}.ckpt"
    before = run.read("metrics.json")
    assert main(["eval", str(run.folder)]) == 0
    assert run.read("metrics.json")["epoch"] == before["epoch"] == best
    assert run.read("metrics.json")["metrics"] == pytest.approx(before["metrics"], rel=1e-6)


def test_a_best_checkpoint_that_is_missing_is_an_error_everywhere(copied, workplace, capsys):
    (copied.checkpoints / "best.ckpt").unlink()
    before = state(copied.folder)
    for words in (
        ["eval", str(copied.folder), "--trust"],
        ["predict", str(copied.folder), "data", "out", "--trust"],
        ["train", "unet_mse", "--model.init_args.pretrained", f"{{file: {copied.folder}}}", *WORDS],
    ):
        assert main(words) == 2
        assert "has no checkpoint best.ckpt, the best" in capsys.readouterr().err
    assert {k: v for k, v in state(copied.folder).items() if k.name != "log.txt"} == {
        k: v for k, v in before.items() if k.name != "log.txt"
    }


@pytest.mark.parametrize("name", ["../../elsewhere.ckpt", "/elsewhere.ckpt", None])
def test_a_foreign_run_names_no_checkpoint_elsewhere(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "provenance.json").write_text(json.dumps({"best": {"checkpoint": name}}))
    with pytest.raises(UserError, match=r"provenance\.json"):
        load_pretrained(torch.nn.Linear(1, 1), Pretrained(str(tmp_path)))


@pytest.mark.slow
def test_an_average_that_has_not_begun_is_not_validated(train, plain, losses):
    run = train(*callback("EMAWeightAveraging", update_starting_at_step=10**6))
    assert losses(run) == losses(plain)
    weights = content(run.checkpoints / "best.ckpt")["state_dict"]
    for name, value in content(plain.checkpoints / "best.ckpt")["state_dict"].items():
        assert torch.equal(weights[name], value), name


def test_an_average_that_begins_late_is_validated_from_then_on(train, plain, losses):
    run = train(*callback("EMAWeightAveraging", update_starting_at_step=2 * STEPS, decay=0.5))
    assert losses(run)[:2] == losses(plain)[:2]
    assert all(a != b for a, b in zip(losses(run)[2:], losses(plain)[2:], strict=True))


# What is written ----------------------------------------------------------------------------------------------------


def test_metrics_of_a_training_that_was_stopped_are_those_of_its_best_checkpoint(train, monkeypatch, losses):
    real = GracefulStop.on_train_epoch_start

    def hook(self, trainer, pl_module):
        if trainer.current_epoch == 3:
            self.note(signal.SIGTERM)
        real(self, trainer, pl_module)

    monkeypatch.setattr(GracefulStop, "on_train_epoch_start", hook)
    run = train("--model.init_args.loss", "torch.nn.L1Loss", "--optimizer.init_args.lr", "3", expect=143)
    best = min(range(3), key=losses(run).__getitem__)
    assert run.read("metrics.json")["epoch"] == best == run.read("provenance.json")["best"]["epoch"]
    assert run.read("metrics.json")["metrics"]["loss"] == pytest.approx(losses(run)[best], rel=1e-6)
    assert content(best_checkpoint(run.folder))["epoch"] == best
    rows = list(csv.DictReader((run.folder / "samples/val.csv").read_text().splitlines()))
    assert sum(float(row["loss"]) for row in rows) / len(rows) == pytest.approx(losses(run)[best], rel=1e-5)


def test_a_training_that_validates_on_a_part_is_measured_on_the_whole(train, plain, losses):
    run = train("--trainer.limit_val_batches", "1", "--data.eval_batch_size", "2")
    metrics = run.read("metrics.json")
    assert metrics["n_samples"] == plain.read("metrics.json")["n_samples"] == 5
    assert metrics["metrics"]["loss"] != pytest.approx(min(losses(run)), rel=1e-3)


def test_an_early_stop_is_reported_with_its_reason(train, history):
    run = train(*callback("EarlyStopping", monitor="val/loss", min_delta=1e6, patience=1))
    assert len(history(run)) == 2
    assert "stopped early, after 2 epochs: " in (run.folder / "log.txt").read_text()
    assert "val/loss" in run.read("provenance.json")["stopped_early"]


# Starts that are refused --------------------------------------------------------------------------------------------

LOSS = {"class_path": "torch.nn.MSELoss", "init_args": {"reduction": "none"}}


WRONG = {
    "logger": (["--logger", "tensorbord"], 'Did you mean "tensorboard"?'),
    "dataset": (["--data.dataset", "nothing"], 'there is no dataset "nothing"'),
    "crop": (["--data.crop", "1000"], "write 32"),
    "batch": (["--data.batch_size", "1000"], "an epoch has 12 samples"),
    "channels": (["--model.init_args.net.init_args.in_channels", "3"], "in_channels is 3, but the images have 1"),
    "outputs": (["--model.init_args.net.init_args.out_channels", "2"], "out_channels is 2, but"),
    "a photometric transform": (
        ["--data.transforms", "[{class_path: albumentations.RandomBrightnessContrast}]"],
        "RandomBrightnessContrast",
    ),
    "forgetful target": (["--model.init_args.target_normalization", "image_mean_std"], "cannot be undone"),
    "a loss without a mean": (["--model.init_args.loss", json.dumps(LOSS)], "take its mean"),
    "monitor of the checkpoint": (["--checkpoint.monitor", "val/pearsn"], 'Did you mean "val/pearson"?'),
    "mode of early stopping": (
        callback("EarlyStopping", monitor="val/r2"),
        "EarlyStopping: val/r2, min",
    ),
    "monitor of a schedule": (
        ["--lr_scheduler", "{class_path: lightning.pytorch.cli.ReduceLROnPlateau, init_args: {monitor: val/lose}}"],
        "lr_scheduler: there is no metric",
    ),
    "a schedule without an end": (
        ["--trainer.max_epochs", "-1", "--length.steps", "null", "--lr_scheduler", "project.optimizers.WarmupCosine"],
        "set `length.steps` or `trainer.max_epochs`",
    ),
    "no GPU": pytest.param(
        *(["--trainer.accelerator", "gpu"], "gpu"),
        marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one"),
    ),
    "negative rate": (["--optimizer.init_args.lr", "-1e-4"], "optimizer: Invalid learning rate: -0.0001"),
    "no validation": (["--trainer.check_val_every_n_epoch", "9"], "before its first validation"),
    "several": (["--trainer.overfit_batches", "2", "--checkpoint.save_top_k", "3"], "checkpoint.save_top_k 3"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=list(WRONG))
@pytest.mark.filterwarnings("ignore:.*GPU available.*")
def test_a_refused_start_leaves_nothing(train, plain, workplace, capsys, words, message):
    before = sorted(Path("runs").rglob("*"))
    train(*words, expect=2)
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) <= 16
    assert sorted(Path("runs").rglob("*")) == before


def test_a_trial_of_one_batch_leaves_no_run(train, plain):
    before = sorted(Path("runs").rglob("*"))
    train("--trainer.fast_dev_run", "1")
    assert sorted(Path("runs").rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ("--trainer.max_epochs", str(EPOCHS), "--optimizer.init_args.lr", "0.5"),
        ("--trainer.max_epochs", "9", *callback("EarlyStopping", monitor="val/lose")),
    ],
)
def test_a_resume_that_is_refused_writes_nothing(plain, words):
    before = {path: text for path, text in state(plain.folder).items() if path.name != "log.txt"}
    assert main(["train", "--resume", str(plain.folder), "--logger", "none", *words]) == 2
    assert {path: text for path, text in state(plain.folder).items() if path.name != "log.txt"} == before


def test_a_run_whose_last_checkpoint_was_deleted_does_not_begin_anew(copied, capsys):
    (copied.checkpoints / "last.ckpt").unlink()
    words = ["--trainer.max_epochs", "9", "--trust", "--logger", "none"]
    assert main(["train", "--resume", str(copied.folder), *words]) == 2
    assert f"is missing, though {EPOCHS} epochs were trained" in capsys.readouterr().err


# A user's own code --------------------------------------------------------------------------------------------------

OWN = """
import torch
import yaml
from lightning.pytorch import Callback
from torch import nn

from project.tasks.translation import TranslationTask


class Forward(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.layer(x) @ torch.ones(7)  # the mistake


class Init(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.zeros(2) @ torch.ones(7)  # the mistake


class Task(TranslationTask):
    def make_target(self, batch):
        return batch["nothing"]  # the mistake


class Start(Callback):
    def __init__(self):
        [].pop()  # the mistake
"""


@pytest.fixture(scope="module")
def own(workplace):
    (workplace / "mine.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(workplace))
        yield


@pytest.mark.parametrize(
    "words",
    [
        ["--model.init_args.net", "mine.Forward"],
        ["--model.init_args.net", "mine.Init"],
        ["--model.class_path", "mine.Task"],
        callback("mine.Start"),
    ],
)
def test_a_mistake_in_own_code_is_shown_with_its_line(own, train, plain, capsys, words):
    before = sorted(Path("runs").rglob("*"))
    own_net = {"net": ()} if "net" in words[0] else {}
    train(*words, **own_net, expect=2)
    text = capsys.readouterr().err
    assert 'mine.py", line ' in text
    assert "# the mistake" in text
    assert sorted(Path("runs").rglob("*")) == before


# Schedules and callbacks ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_averaged_weights_are_those_that_are_kept_and_measured(train, plain, losses):
    run = train(*callback("EMAWeightAveraging", decay=0.6))
    metrics = run.read("metrics.json")["metrics"]
    assert metrics["loss"] == pytest.approx(min(losses(run)), rel=1e-5)
    a, b = (content(r.checkpoints / "best.ckpt")["state_dict"].values() for r in (run, plain))
    assert any(not torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert main(["eval", str(run.folder)]) == 0
    assert run.read("metrics.json")["metrics"] == pytest.approx(metrics, rel=1e-6)


def test_a_single_callback_needs_no_list(train):
    """A timer: one of its defaults is a constant of its own class."""
    option, listed = callback("Timer", duration="00:01:00:00")
    run = train(option, json.dumps(json.loads(listed)[0]), "--trainer.max_epochs", "1")
    assert "interval: step" in run.config.read_text()


@pytest.mark.slow
def test_schedules_step_with_the_optimizer_the_epoch_or_the_metric(train, rates, schedule):
    found = rates(train(*schedule("project.optimizers.WarmupCosine")))
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.05 * found[0]
    found = rates(train(*schedule("OneCycleLR", max_lr=0.01, pct_start=0.25)))
    assert 0.009 < found[0] <= max(found) <= 0.01  # a quarter of the training is over
    assert found[-1] < 1e-6
    found = rates(train(*schedule("CosineAnnealingLR", T_max=EPOCHS)))
    assert (found[0], found[2]) == (pytest.approx(3e-3), pytest.approx(1.5e-3))
    plateau = {"monitor": "val/loss", "patience": 0, "factor": 0.1, "threshold": 1e6}
    found = rates(train(*schedule("lightning.pytorch.cli.ReduceLROnPlateau", **plateau)))
    assert found[-1] < 0.2 * found[0]


@pytest.mark.nightly
def test_compiled_networks_train_and_their_checkpoints_fit_plain_ones(train):
    run = train("--model.init_args.compile", "true", "--trainer.max_epochs", "1")
    metrics = run.read("metrics.json")["metrics"]
    assert not [name for name in content(run.checkpoints / "best.ckpt")["state_dict"] if "_orig_mod" in name]
    assert main(["eval", str(run.folder), "--model.init_args.compile", "false"]) == 0
    assert run.read("metrics.json")["metrics"] == pytest.approx(metrics, rel=1e-4)
