"""How a training starts, ends, and says which checkpoint is the best."""

import csv
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from project.cli import main
from project.errors import UserError
from project.models.checkpoint_files import best_checkpoint
from project.models.pretrained import Pretrained, load_pretrained
from project.runs.find_runs import find_run
from project.runs.run_folder import Run
from project.runs.untrusted import require_trusted_location
from project.training.graceful_stop import GracefulStop

STEPS, EPOCHS = 3, 4  # 12 images in batches of 4
TINY = [
    *("--model.init_args.net.init_args", "{in_channels: 1, out_channels: 1, width: 4, depth: 1}"),
    *("--data.crop", "32", "--data.batch_size", "4", "--data.num_workers", "0", "--trainer.accelerator", "cpu"),
    *("--trainer.max_epochs", str(EPOCHS), "--logger", "none", "--lr_scheduler", "null"),
]


def callback(name, **arguments):
    path = name if "." in name else f"lightning.pytorch.callbacks.{name}"
    return ["--trainer.callbacks", json.dumps([{"class_path": path, "init_args": arguments}])]


@pytest.fixture(scope="module")
def train(workplace):
    """Trains `unet_mse` with a tiny net and further words; returns its run."""

    def run(*words, expect=0):
        assert main(["train", "unet_mse", *TINY, *words]) == expect
        return Run(find_run("unet_mse").folder.resolve())

    return run


@pytest.fixture(scope="module")
def plain(train):
    return train()


@pytest.fixture
def copied(plain, workplace, request):
    """A copy of the run, to damage."""
    copy = Run(workplace / "copies" / request.node.name / "unet_mse" / "copy")
    shutil.copytree(plain.folder, copy.folder)
    return copy


def history(run):
    return list(csv.DictReader((run.folder / "history.csv").read_text().splitlines()))


def losses(run):
    return [float(row["val/loss"]) for row in history(run) if row["val/loss"]]


def content(path):
    return torch.load(path, weights_only=True)


def state(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


# The best checkpoint ------------------------------------------------------------------------------------------------


def test_a_run_records_its_best_checkpoint(plain):
    best = min(range(EPOCHS), key=losses(plain).__getitem__)
    facts = plain.read("provenance.json")
    assert facts["best"] == {"checkpoint": "best.ckpt", "epoch": best, "step": STEPS * (best + 1)}
    assert content(best_checkpoint(plain.folder))["epoch"] == best
    assert plain.read("metrics.json")["epoch"] == best
    assert plain.read("metrics.json")["metrics"]["loss"] == pytest.approx(min(losses(plain)), rel=1e-5)


def test_another_model_checkpoint_takes_nothing_from_the_best(train, plain):
    keeps = callback("ModelCheckpoint", filename="{epoch}", save_top_k=-1, monitor="train/loss")
    run = train(*keeps)
    assert run.read("provenance.json")["best"] == plain.read("provenance.json")["best"]
    assert run.read("metrics.json")["metrics"] == plain.read("metrics.json")["metrics"]
    assert len(list(run.checkpoints.glob("epoch=*.ckpt"))) == EPOCHS


def test_a_best_checkpoint_with_its_own_name_is_evaluated(train, plain):
    run = train("--checkpoint.filename", "{epoch}-{val/loss:.3f}")
    best = plain.read("provenance.json")["best"]["epoch"]
    assert best_checkpoint(run.folder).name == f"{best}-{losses(plain)[best]:.3f}.ckpt"
    before = run.read("metrics.json")
    assert main(["eval", str(run.folder)]) == 0
    assert run.read("metrics.json")["epoch"] == before["epoch"] == best
    assert run.read("metrics.json")["metrics"] == pytest.approx(before["metrics"], rel=1e-6)


def test_runs_of_an_experiment_may_lie_on_another_disk(workplace, tmp_path, monkeypatch):
    """The best checkpoint has a name with a folder in it, and is not the last."""
    shutil.copy("configs/experiments/unet_mse.yaml", "configs/experiments/linked.yaml")
    (workplace / "runs").mkdir(exist_ok=True)
    (workplace / "runs/linked").symlink_to(tmp_path)
    name = ["--checkpoint.filename", "{epoch}-{val/loss:.3f}", "--checkpoint.auto_insert_metric_name", "true"]
    worse = ["--optimizer.init_args.maximize", "true"]
    assert main(["train", "linked", *TINY, *name, *worse, "--trainer.max_epochs", "2"]) == 0
    assert main(["train", "--resume", "runs/linked/latest", "--trainer.max_epochs", "3"]) == 0
    run = find_run("linked")
    best = run.read("provenance.json")["best"]
    assert (best["epoch"], run.read("metrics.json")["epoch"], len(history(run))) == (0, 0, 3)
    assert best["checkpoint"] == f"epoch=0-val/loss={losses(run)[0]:.3f}.ckpt"
    assert best_checkpoint(run.folder.resolve()).is_file()
    monkeypatch.setattr("os.getuid", lambda: -1)  # a folder of somebody else
    with pytest.raises(UserError, match="does not lie below"):
        require_trusted_location(run, trusted=False)


def test_a_best_checkpoint_that_is_missing_is_an_error_everywhere(copied, workplace, capsys):
    (copied.checkpoints / "best.ckpt").unlink()
    before = state(copied.folder)
    for words in (
        ["eval", str(copied.folder), "--trust"],
        ["predict", str(copied.folder), "data", "out", "--trust"],
        ["train", "unet_mse", *TINY, "--model.init_args.pretrained", f"{{file: {copied.folder}}}"],
    ):
        assert main(words) == 2
        assert "has no checkpoint best.ckpt, the best" in capsys.readouterr().err
    assert {k: v for k, v in state(copied.folder).items() if k.name != "log.txt"} == {
        k: v for k, v in before.items() if k.name != "log.txt"
    }


@pytest.mark.parametrize("name", ["../../elsewhere.ckpt", "/elsewhere.ckpt", None, 3])
def test_a_foreign_run_names_no_checkpoint_elsewhere(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "provenance.json").write_text(json.dumps({"best": {"checkpoint": name}}))
    with pytest.raises(UserError, match=r"provenance\.json"):
        load_pretrained(torch.nn.Linear(1, 1), Pretrained(str(tmp_path)))


def test_an_average_that_has_not_begun_is_not_validated(train, plain):
    run = train(*callback("EMAWeightAveraging", update_starting_at_step=10**6))
    assert losses(run) == losses(plain)
    weights = content(run.checkpoints / "best.ckpt")["state_dict"]
    for name, value in content(plain.checkpoints / "best.ckpt")["state_dict"].items():
        assert torch.equal(weights[name], value), name


def test_an_average_that_begins_late_is_validated_from_then_on(train, plain):
    run = train(*callback("EMAWeightAveraging", update_starting_at_step=2 * STEPS, decay=0.5))
    assert losses(run)[:2] == losses(plain)[:2]
    assert all(a != b for a, b in zip(losses(run)[2:], losses(plain)[2:], strict=True))


# What is written ----------------------------------------------------------------------------------------------------


def test_history_has_all_columns_though_the_first_epoch_is_not_validated(train, plain):
    rows = history(train("--trainer.check_val_every_n_epoch", "2"))
    assert [bool(row["val/loss"]) for row in rows] == [False, True, False, True]
    assert set(rows[0]) == set(history(plain)[0])


def test_metrics_of_a_training_that_was_stopped_are_those_of_its_best_checkpoint(train, monkeypatch):
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


def test_a_training_that_validates_on_a_part_is_measured_on_the_whole(train, plain):
    run = train("--trainer.limit_val_batches", "1", "--data.eval_batch_size", "2")
    metrics = run.read("metrics.json")
    assert metrics["n_samples"] == plain.read("metrics.json")["n_samples"] == 5
    assert metrics["metrics"]["loss"] != pytest.approx(min(losses(run)), rel=1e-3)


def test_an_early_stop_is_reported_with_its_reason(train):
    run = train(*callback("EarlyStopping", monitor="val/loss", min_delta=1e6, patience=1))
    assert len(history(run)) == 2
    assert "stopped early, after 2 epochs: " in (run.folder / "log.txt").read_text()
    assert "val/loss" in run.read("provenance.json")["stopped_early"]


# Starts that are refused --------------------------------------------------------------------------------------------

LOSS = {"class_path": "torch.nn.MSELoss", "init_args": {"reduction": "none"}}
WRONG = {
    "monitor of the checkpoint": (["--checkpoint.monitor", "val/pearsn"], 'Did you mean "val/pearson"?'),
    "monitor in training": (["--checkpoint.monitor", "train/los"], 'Did you mean "train/loss"?'),
    "monitor of early stopping": (callback("EarlyStopping", monitor="val_loss"), 'there is no metric "val_loss"'),
    "mode of early stopping": (
        callback("EarlyStopping", monitor="val/r2"),
        "EarlyStopping: val/r2 is best at its maximum, but mode is min",
    ),
    "monitor of a schedule": (
        ["--lr_scheduler", "{class_path: lightning.pytorch.cli.ReduceLROnPlateau, init_args: {monitor: val/lose}}"],
        "lr_scheduler: there is no metric",
    ),
    "mode of a schedule": (
        ["--lr_scheduler", "{class_path: lightning.pytorch.cli.ReduceLROnPlateau, init_args: {monitor: val/r2}}"],
        "lr_scheduler: val/r2 is best at its maximum",
    ),
    "a schedule without an end": (
        ["--trainer.max_epochs", "-1", "--lr_scheduler", "project.optimizers.WarmupCosine"],
        "set `trainer.max_epochs`",
    ),
    "a loss without a mean": (["--model.init_args.loss", json.dumps(LOSS)], "take their mean"),
    "no GPU": (["--trainer.accelerator", "gpu"], "gpu"),
    "no library for it": (["--trainer.accelerator", "tpu"], "torch_xla"),
    "negative rate": (["--optimizer.init_args.lr", "-1e-4"], "optimizer: Invalid learning rate: -0.0001"),
    "no validation": (["--trainer.check_val_every_n_epoch", "9"], "before its first validation"),
    "several": (["--trainer.overfit_batches", "2", "--checkpoint.save_top_k", "3"], "checkpoint.save_top_k 3"),
    "channels": (["--model.init_args.net.init_args.in_channels", "3"], "the network fails on an image of (1, 32, 32)"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=list(WRONG))
@pytest.mark.filterwarnings("ignore:.*GPU available.*")
def test_a_refused_start_leaves_nothing(train, plain, workplace, capsys, words, message):
    before = sorted(Path("runs").rglob("*"))
    train(*words, expect=2)
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert sorted(Path("runs").rglob("*")) == before


def test_a_trial_of_one_batch_leaves_no_run(train, plain):
    before = sorted(Path("runs").rglob("*"))
    train("--trainer.fast_dev_run", "1")
    assert sorted(Path("runs").rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ("--trainer.max_epochs", str(EPOCHS), "--optimizer.init_args.lr", "0.5"),
        ("--trainer.max_epochs", "9", "--optimizer.init_args.lr", "0.5", "--data.batch_size", "2"),
        ("--trainer.max_epochs", "9", *callback("EarlyStopping", monitor="val/lose")),
        ("--trainer.max_epochs", "0"),
    ],
)
def test_a_resume_that_is_refused_writes_nothing(plain, words):
    before = {path: text for path, text in state(plain.folder).items() if path.name != "log.txt"}
    assert main(["train", "--resume", str(plain.folder), "--logger", "none", *words]) == 2
    assert {path: text for path, text in state(plain.folder).items() if path.name != "log.txt"} == before


def test_after_a_refused_resume_the_old_settings_hold(copied, capsys):
    words = ["train", "--resume", str(copied.folder), "--trust", "--logger", "none"]
    assert main([*words, "--trainer.max_epochs", str(EPOCHS), "--optimizer.init_args.lr", "0.5"]) == 2
    assert main([*words, "--trainer.max_epochs", str(EPOCHS + 1)]) == 0
    assert [float(row["lr"]) for row in history(copied)] == pytest.approx([0.003] * (EPOCHS + 1))
    assert copied.read("provenance.json")["resumed"][0]["changed"] == [f"trainer.max_epochs: {EPOCHS} -> {EPOCHS + 1}"]


def test_a_run_whose_last_checkpoint_was_deleted_does_not_begin_anew(copied, capsys):
    (copied.checkpoints / "last.ckpt").unlink()
    words = ["--trainer.max_epochs", "9", "--trust", "--logger", "none"]
    assert main(["train", "--resume", str(copied.folder), *words]) == 2
    assert f"is missing, though {EPOCHS} epochs were trained" in capsys.readouterr().err


def test_a_longer_one_cycle_says_its_length_only(train):
    cycle = "{class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {max_lr: 0.01}}"
    run = train("--lr_scheduler", cycle, "--trainer.max_epochs", "1")
    assert main(["train", "--resume", str(run.folder), "--logger", "none", "--trainer.max_epochs", "2"]) == 0
    changed = [line for line in (run.folder / "log.txt").read_text().splitlines() if "with changed" in line]
    assert len(changed) == 1
    assert "trainer.max_epochs: 1 -> 2" in changed[0]


# A user's own code --------------------------------------------------------------------------------------------------

OWN = """
import torch
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


class Loss(nn.Module):
    def forward(self, output, target):
        return (output - target)[:, 5].mean()  # the mistake


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
        ["--model.init_args.loss", "mine.Loss"],
        ["--model.class_path", "mine.Task"],
        callback("mine.Start"),
    ],
)
def test_a_mistake_in_own_code_is_shown_with_its_line(own, train, plain, capsys, words):
    before = sorted(Path("runs").rglob("*"))
    net = TINY[:2] if "net" not in words[0] else []
    assert main(["train", "unet_mse", *net, *TINY[2:], *words]) == 2
    told = capsys.readouterr().err
    assert 'mine.py", line ' in told
    assert "# the mistake" in told
    assert sorted(Path("runs").rglob("*")) == before
