"""A training that was stopped goes on as if it had not been: to the last bit."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from project.cli import main
from project.runs.run_folder import Run
from project.training import resume
from project.training.interruption import Interruption
from project.training.recorder import Recorder, keep_epochs

ROOT = Path(__file__).parents[2]
EPOCHS, STEPS = 4, 6  # 12 images in batches of 2
SMP = {
    "class_path": "segmentation_models_pytorch.Unet",
    "init_args": {"encoder_name": "tu-test_resnet", "encoder_weights": None, "in_channels": 1, "classes": 1},
}


def callback(name: str, **arguments) -> list[str]:
    path = name if "." in name else f"lightning.pytorch.callbacks.{name}"
    return ["--trainer.callbacks", json.dumps([{"class_path": path, "init_args": arguments}])]


def schedule(path: str, **arguments) -> list[str]:
    return ["--lr_scheduler", json.dumps({"class_path": path, "init_args": arguments})]


TORCH = "torch.optim.lr_scheduler"


def plateau(monitor: str) -> list[str]:
    settings = {"monitor": monitor, "patience": 0, "factor": 0.5, "threshold": 1e6}
    return schedule("lightning.pytorch.cli.ReduceLROnPlateau", **settings)


VARIANTS = {
    "plain": [],
    "ema": callback("EMAWeightAveraging", decay=0.6),
    "mean of weights": callback("WeightAveraging"),
    "early stopping": callback("EarlyStopping", monitor="val/loss", min_delta=1e6, patience=3),
    "early stopping, validation every second epoch": [
        *callback("EarlyStopping", monitor="val/loss", patience=9, check_on_train_epoch_end=True, strict=False),
        *("--trainer.check_val_every_n_epoch", "2"),
    ],
    "plateau": plateau("val/loss"),
    "plateau, validation every second epoch": [*plateau("train/loss"), "--trainer.check_val_every_n_epoch", "2"],
    "one cycle": schedule(f"{TORCH}.OneCycleLR", max_lr=0.01),
    "cosine by epoch": schedule(f"{TORCH}.CosineAnnealingLR", T_max=EPOCHS),
    "accumulation": ["--trainer.accumulate_grad_batches", "2"],
    "momentum and clipping": [
        *("--optimizer", "{class_path: torch.optim.SGD, init_args: {lr: 0.01, momentum: 0.9}}"),
        *("--trainer.gradient_clip_val", "0.5"),
    ],
    "limit of steps": ["--trainer.max_epochs", "-1", "--trainer.max_steps", str(EPOCHS * STEPS)],
    "validation twice an epoch": ["--trainer.val_check_interval", "0.5"],
    "processes": ["--data.num_workers", "2"],
    "finetuning": [
        *("--model.init_args.net", json.dumps(SMP)),
        *("--model.init_args.finetuning", "{freeze_epochs: 2, rate: 0.3, decay: 0.8}"),
    ],
    # It has to see the start of each epoch.
    "accumulation by epoch": callback("GradientAccumulationScheduler", scheduling={0: 1, 2: 2}),
}


class Killed(BaseException):
    """In place of a signal that no process survives: nothing is written after it."""


@pytest.fixture(scope="module")
def train(workplace):
    """Trains `unet_mse` with a tiny net and further words; returns its run."""

    def run(*words: str, expect: int = 0) -> Run:
        words = list(words)
        tiny = ["--model.init_args.net.init_args", "{in_channels: 1, out_channels: 1, width: 4, depth: 1}"]
        fixed = ["--data.crop", "32", "--data.batch_size", "2", "--trainer.accelerator", "cpu"]
        length = ["--trainer.max_epochs", str(EPOCHS), "--trainer.log_every_n_steps", "1"]
        arguments = ["unet_mse", *([] if "--model.init_args.net" in words else tiny), *fixed, *length]
        if "--logger" not in words:
            arguments += ["--logger", "none"]
        assert main(["train", *arguments, *words]) == expect
        return Run(Path("runs/unet_mse/latest").resolve())

    return run


@pytest.fixture(scope="module")
def whole(train):
    """Variant -> its run without interruption; each is trained once."""
    done: dict[str, Run] = {}

    def get(name: str) -> Run:
        if name not in done:
            done[name] = train(*VARIANTS[name])
        return done[name]

    return get


@pytest.fixture
def ending(monkeypatch):
    """Lets a training end after a batch (counted from 0) of an epoch: by a signal, or at once."""

    def at(epoch: int, batch: int, number: int | None = None) -> None:
        real = Interruption.on_train_batch_end

        def hook(self, trainer, pl_module, outputs, data, batch_idx):
            if (trainer.current_epoch, batch_idx) == (epoch, batch):
                monkeypatch.setattr(Interruption, "on_train_batch_end", real)
                if number is None:
                    raise Killed
                self._note(number, None)
            real(self, trainer, pl_module, outputs, data, batch_idx)

        monkeypatch.setattr(Interruption, "on_train_batch_end", hook)

    return at


def go_on(run: Run, *words: str, expect: int = 0) -> None:
    assert main(["train", "--resume", str(run.folder), *words]) == expect


def checkpoint(run: Run, name: str = "last"):
    return torch.load(run.checkpoints / f"{name}.ckpt", weights_only=True)


def history(run: Run) -> list[dict[str, str]]:
    rows = list(csv.DictReader((run.folder / "history.csv").read_text().splitlines()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def differ(a, b, path="") -> list[str]:
    """Where two checkpoints differ."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: {a.keys() ^ b.keys()}"]
        return [item for key in a for item in differ(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [path]
        return [item for i, (x, y) in enumerate(zip(a, b, strict=True)) for item in differ(x, y, f"{path}.{i}")]
    return [] if a == b or (a != a and b != b) else [f"{path}: {a} {b}"]


def assert_same(run: Run, other: Run) -> None:
    """Two runs came to the same weights, rates, states of callbacks, history and metrics."""
    for name in ("last", "best"):
        a, b = checkpoint(run, name), checkpoint(other, name)
        for section in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
            assert differ(a[section], b[section], section) == []
        for key, state in a["callbacks"].items():
            if not key.startswith("ModelCheckpoint"):
                assert differ(state, b["callbacks"][key], key) == []
            else:
                assert state["best_model_score"] == b["callbacks"][key]["best_model_score"]
        assert differ(a.get("averaging_state"), b.get("averaging_state")) == []
    assert history(run) == history(other)
    mine, theirs = run.read("metrics.json"), other.read("metrics.json")
    for key in ("metrics", "epoch", "n_samples"):
        assert mine[key] == theirs[key]
    assert (run.folder / "samples/val.csv").read_text() == (other.folder / "samples/val.csv").read_text()
    assert run.read("provenance.json")["status"] == "finished"


PLACES = [
    (1, 2),
    *(pytest.param(*place, marks=pytest.mark.slow) for place in ((0, 1), (1, STEPS - 1), (EPOCHS - 1, 4))),
]


@pytest.mark.parametrize(("epoch", "batch"), PLACES)
def test_a_training_that_was_told_to_stop_goes_on_exactly(train, whole, ending, epoch, batch, capsys):
    ending(epoch, batch, signal.SIGTERM)
    run = train(expect=143)
    told = capsys.readouterr().err
    assert f"make train RESUME=runs/unet_mse/{run.folder.name}" in told
    assert run.read("provenance.json")["status"] == "interrupted"
    assert checkpoint(run)["global_step"] == epoch * STEPS + batch + 1
    go_on(run)
    assert_same(run, whole("plain"))
    assert run.read("provenance.json")["resumed"][0]["epoch"] == (epoch if batch < STEPS - 1 else epoch + 1)


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "batch"), [(0, 3), (2, 3)])
def test_a_training_that_was_killed_goes_on_exactly(train, whole, ending, epoch, batch):
    ending(epoch, batch)
    with pytest.raises(Killed):
        train()
    run = Run(Path("runs/unet_mse/latest").resolve())
    assert (run.checkpoints / "last.ckpt").exists() == (epoch > 0)
    go_on(run)
    assert_same(run, whole("plain"))


@pytest.mark.slow
def test_checkpoints_every_few_steps_are_places_to_go_on(train, whole, ending):
    ending(1, 4)
    words = ["--checkpoint.every_n_train_steps", "2"]
    with pytest.raises(Killed):
        train(*words)
    run = Run(Path("runs/unet_mse/latest").resolve())
    assert checkpoint(run)["global_step"] == STEPS + 4
    go_on(run)
    a, b = checkpoint(run), checkpoint(whole("plain"))
    assert differ(a["state_dict"], b["state_dict"]) == []
    assert history(run) == history(whole("plain"))


@pytest.fixture
def killed_at_the_end(train, monkeypatch):
    """A run that was killed between its history and its checkpoint of an epoch."""

    def run(epoch: int, *words: str) -> Run:
        real = Recorder.on_train_epoch_end

        def hook(self, trainer, pl_module):
            real(self, trainer, pl_module)
            if trainer.current_epoch == epoch:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(Recorder, "on_train_epoch_end", hook)
            with pytest.raises(Killed):
                train(*words)
        return Run(Path("runs/unet_mse/latest").resolve())

    return run


def test_killed_between_the_history_and_the_checkpoint(killed_at_the_end, whole):
    run = killed_at_the_end(1)
    assert [row["epoch"] for row in history(run)] == ["0", "1"]
    assert checkpoint(run)["epoch"] == 0
    with (run.folder / "history.csv").open("a") as file:
        file.write("2,18,3.4")  # half a line
    go_on(run)
    assert_same(run, whole("plain"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*conditioned on metric.*is not available")
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "plain"])
def test_what_has_a_state_goes_on_exactly(train, whole, ending, name):
    # Stopped in the middle of an epoch, killed in another, stopped at the end of a third.
    ending(1, 3, signal.SIGTERM)
    run = train(*VARIANTS[name], expect=143)
    ending(2, 2)
    with pytest.raises(Killed):
        go_on(run)
    ending(2, STEPS - 1, signal.SIGINT)
    go_on(run, expect=130)
    go_on(run)
    assert_same(run, whole(name))
    assert len(run.read("provenance.json")["resumed"]) == 3


@pytest.mark.slow
def test_where_a_callback_must_see_each_epoch_start_the_epoch_begins_anew(train, whole, ending, capsys):
    name = "accumulation by epoch"
    ending(2, 2, signal.SIGINT)
    run = train(*VARIANTS[name], expect=130)
    assert "which will begin anew" in capsys.readouterr().err
    assert checkpoint(run)["global_step"] == 2 * STEPS
    go_on(run)
    assert_same(run, whole(name))


@pytest.mark.slow
def test_random_states_of_python_and_numpy_go_on(train, ending, monkeypatch):
    import random

    def draws(run_it) -> list[float]:
        drawn: dict[tuple[int, int], float] = {}
        real = Recorder.on_train_batch_start

        def hook(self, trainer, pl_module, batch, batch_idx):
            real(self, trainer, pl_module)
            drawn[trainer.current_epoch, batch_idx] = random.random() + np.random.random()  # noqa: NPY002

        with monkeypatch.context() as patched:
            patched.setattr(Recorder, "on_train_batch_start", hook)
            run_it()
        return [drawn[key] for key in sorted(drawn)]

    def interrupted():
        ending(1, 2, signal.SIGTERM)
        go_on(train(expect=143))

    assert draws(interrupted) == draws(train)


@pytest.mark.slow
def test_a_schedule_that_waits_for_a_metric_takes_its_step_in_an_epoch_entered_later(train, whole, ending):
    ending(1, 3, signal.SIGTERM)
    run = train(*VARIANTS["plateau"], expect=143)
    go_on(run)
    assert_same(run, whole("plateau"))


@pytest.mark.slow
def test_a_run_that_was_moved_keeps_its_best(train, ending, workplace):
    ending(2, 2, signal.SIGTERM)
    run = train("--optimizer.init_args.maximize", "true", expect=143)  # best in the first epoch
    moved = Run(workplace / "elsewhere/unet_mse" / run.folder.name)
    moved.folder.parent.mkdir(parents=True)
    run.folder.rename(moved.folder)
    go_on(moved, "--trust")
    state = next(v for k, v in checkpoint(moved)["callbacks"].items() if k.startswith("ModelCheckpoint"))
    assert state["best_model_path"] == str(moved.checkpoints / "best.ckpt")
    assert checkpoint(moved, "best")["epoch"] == 0
    assert moved.read("metrics.json")["epoch"] == 0


# What changes on the way --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_says_so_and_goes_on_with_more_epochs(train, whole, capsys):
    words = schedule(f"{TORCH}.ConstantLR", factor=1.0)
    long = train(*words)
    short = train(*words, "--trainer.max_epochs", "2")
    go_on(short, expect=2)
    assert "is finished, after 2 epochs" in capsys.readouterr().err
    go_on(short, "--trainer.max_epochs", "2", expect=2)
    go_on(short, "--trainer.max_epochs", str(EPOCHS))
    assert_same(short, long)
    assert short.read("provenance.json")["resumed"][0]["changed"] == [f"trainer.max_epochs: 2 -> {EPOCHS}"]
    assert yaml.safe_load((short.folder / "config.resume-1.yaml").read_text())["trainer"]["max_epochs"] == EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WarmupCosine", "OneCycleLR"])
def test_schedules_that_span_the_training_span_the_longer_one(train, name):
    words = {
        "WarmupCosine": schedule("project.optimizers.WarmupCosine"),
        "OneCycleLR": schedule(f"{TORCH}.OneCycleLR", max_lr=0.01),
    }[name]
    long = [float(row["lr"]) for row in history(train(*words))]
    run = train(*words, "--trainer.max_epochs", "2")
    go_on(run, "--trainer.max_epochs", str(EPOCHS))
    assert [float(row["lr"]) for row in history(run)][2:] == pytest.approx(long[2:])


@pytest.mark.slow
def test_a_typed_rate_wins_and_stays(train, ending):
    words = schedule(f"{TORCH}.ConstantLR", factor=1.0)
    ending(1, 2, signal.SIGTERM)
    run = train(*words, expect=143)
    ending(2, 2)
    with pytest.raises(Killed):
        go_on(run, "--optimizer.init_args.lr", "1e-4", "--optimizer.init_args.weight_decay", "0.5")
    assert "resuming with changed: optimizer.init_args.lr: 0.003 -> 0.0001" in (run.folder / "log.txt").read_text()
    go_on(run)  # nothing is typed any more
    rates = [float(row["lr"]) for row in history(run)]
    assert rates == pytest.approx([3e-3, 1e-4, 1e-4, 1e-4])
    assert {group["weight_decay"] for group in checkpoint(run)["optimizer_states"][0]["param_groups"]} == {0.5}
    changes = run.read("provenance.json")["resumed"][0]["changed"]
    assert "optimizer.init_args.lr: 0.003 -> 0.0001" in changes
    assert not run.read("provenance.json")["resumed"][1]["changed"]


@pytest.mark.parametrize(
    "words",
    [
        ("--model.init_args.loss", "torch.nn.L1Loss"),
        ("--data.batch_size", "3"),
        ("--optimizer.class_path", "torch.optim.SGD"),
        ("--seed_everything", "1"),
        ("--checkpoint.monitor", "val/mse"),
    ],
)
def test_what_would_be_another_experiment_is_refused(whole, words, capsys):
    run = whole("plain")
    before = sorted(run.folder.rglob("*"))
    go_on(run, "--trainer.max_epochs", "9", *words, expect=2)
    assert "it would be another experiment" in capsys.readouterr().err
    assert sorted(run.folder.rglob("*")) == before


def test_other_data_is_refused(whole, workplace, write_tiny, capsys):
    write_tiny(workplace / "other/yeast", shape=(40, 40), seed=5)
    go_on(whole("plain"), "--trainer.max_epochs", "9", "--data.root", "other", expect=2)
    assert "has other content" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_refused(train, whole, workplace, damage, capsys):
    copy = Run(workplace / "damaged" / damage / "unet_mse" / "copy")
    shutil.copytree(whole("plain").folder, copy.folder)
    path = copy.checkpoints / "last.ckpt"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 255
    path.unlink()  # best.ckpt may be the same file
    path.write_bytes(content)
    go_on(copy, "--trust", "--trainer.max_epochs", "9", expect=2)
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_training_goes_on_later(train, whole, monkeypatch, capsys):
    real = resume.Continuation.on_save_checkpoint

    def full(self, trainer, pl_module, checkpoint):
        if trainer.current_epoch == 2:
            raise OSError(28, "No space left on device", "last.ckpt")
        real(self, trainer, pl_module, checkpoint)

    with monkeypatch.context() as patched:
        patched.setattr(resume.Continuation, "on_save_checkpoint", full)
        run = train(expect=2)
    assert "make room on the disk, then go on with" in capsys.readouterr().err
    go_on(run)
    assert_same(run, whole("plain"))


def test_history_keeps_whole_lines_of_the_first_epochs(tmp_path):
    path = tmp_path / "history.csv"
    path.write_bytes(b"epoch,loss\r\n0,1.5\r\n1,1.25\r\n2,1.0\r\n3,0.")
    keep_epochs(path, 2)
    assert path.read_bytes() == b"epoch,loss\r\n0,1.5\r\n1,1.25\r\n"
    keep_epochs(path, 0)
    assert not path.exists()
    keep_epochs(path, 3)


# Beside the weights -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tensorboard_shows_each_step_once(killed_at_the_end):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = killed_at_the_end(2, "--logger", "tensorboard")
    go_on(run)
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    for name in ("train/loss", "val/loss"):
        steps = [
            event.step for event in events.Scalars(name) if event.step < STEPS * EPOCHS
        ]  # not the best, at the end
        assert steps == [STEPS * (epoch + 1) - 1 for epoch in range(EPOCHS)]
    assert run.read("provenance.json")["logger"] == "tensorboard"


def test_the_same_run_of_wandb(monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    with resume.same_wandb_run({"wandb": "abc123"}):
        assert os.environ["WANDB_RUN_ID"] == "abc123"
    assert "WANDB_RUN_ID" not in os.environ
    with resume.same_wandb_run({}):
        assert "WANDB_RUN_ID" not in os.environ


@pytest.mark.slow
def test_latest_is_that_of_the_experiment(train, whole, ending, capsys):
    ending(1, 2, signal.SIGTERM)
    run = train(expect=143)
    assert main(["train", "unet_dice", "--resume", str(run.folder)]) == 2
    assert "is a run of unet_mse, not of unet_dice" in capsys.readouterr().err
    assert main(["train", "unet_mse", "--resume", "latest"]) == 0
    assert_same(run, whole("plain"))


@pytest.mark.slow
def test_unfinished_runs_can_be_evaluated_and_are_marked_in_the_table(train, ending, capsys):
    ending(1, 2, signal.SIGTERM)
    run = train(expect=143)
    assert main(["eval", str(run.folder)]) == 0
    assert "unet_mse (unfinished)" in capsys.readouterr().out
    ending(0, 2)
    with pytest.raises(Killed):
        train()
    assert main(["eval", "unet_mse"]) == 2
    assert "has no checkpoint" in capsys.readouterr().err
    assert main(["table"]) == 0


@pytest.mark.slow
def test_a_job_that_was_queued_again_finds_its_run(train, ending, monkeypatch, workplace):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    scontrol = workplace / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {workplace}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    ending(1, 2, signal.SIGUSR1)
    run = train(expect=124)
    assert (workplace / "asked").read_text() == "requeue 77\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert train(expect=0).folder == run.folder
    assert run.read("provenance.json")["status"] == "finished"
    # The script of the job trains several; this one is done.
    n_runs = len(list(Path("runs/unet_mse").iterdir()))
    assert train(expect=0).folder == run.folder
    assert len(list(Path("runs/unet_mse").iterdir())) == n_runs
    assert len(run.read("provenance.json")["resumed"]) == 1


@pytest.mark.slow
def test_the_time_limit_counts_for_each_start(train, whole, monkeypatch):
    from lightning.pytorch.callbacks import Timer

    asked = {"times": 0}

    def remaining(self, stage="train"):
        asked["times"] += 1
        return -1.0 if asked["times"] == STEPS + 1 + 2 else 1.0  # after each step, and after validation

    monkeypatch.setattr(Timer, "time_remaining", remaining)
    run = train("--trainer.max_time", "00:00:10:00", expect=124)
    assert checkpoint(run)["global_step"] == STEPS + 2
    go_on(run)
    assert_same(run, whole("plain"))
