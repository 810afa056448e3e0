"""A resumed training equals one that was never stopped, to the last bit, from its last complete epoch."""

import json
import shutil
import signal

import pytest
import torch
import yaml

from project.cli import main
from project.runs.find_runs import find_run
from project.runs.run_folder import Run
from project.training import resume
from project.training.checkpoints import LastCheckpoint
from project.training.graceful_stop import GracefulStop

EPOCHS, STEPS = 3, 3  # 12 images in batches of 4
WORDS = ["--data.batch_size", "4", "--trainer.max_epochs", str(EPOCHS)]
CONSTANT = ["--lr_scheduler", "{class_path: torch.optim.lr_scheduler.ConstantLR, init_args: {factor: 1.0}}"]
EMA = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.6}}
PLATEAU = {"monitor": "val/loss", "patience": 0, "factor": 0.5, "threshold": 1e6}
VARIANTS = {
    "plain": [],
    "ema": ["--trainer.callbacks", json.dumps([EMA])],
    "plateau": [
        "--lr_scheduler",
        json.dumps({"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": PLATEAU}),
    ],
    "limit of steps": ["--trainer.max_epochs", "-1", "--trainer.max_steps", str(EPOCHS * STEPS)],
}


class Killed(BaseException):
    """Stands for a signal that no process survives: nothing is written after it."""


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
    """Lets a training end after a batch (from 0) of an epoch: by a signal, or killed without one."""

    def at(epoch: int, batch: int, number: int | None = None) -> None:
        real = GracefulStop.on_train_batch_end

        def hook(self, trainer, pl_module, outputs, data, batch_idx):
            if (trainer.current_epoch, batch_idx) == (epoch, batch):
                monkeypatch.setattr(GracefulStop, "on_train_batch_end", real)
                if number is None:
                    raise Killed
                self.note(number)
            real(self, trainer, pl_module, outputs, data, batch_idx)

        monkeypatch.setattr(GracefulStop, "on_train_batch_end", hook)

    return at


def killed(train, *words: str) -> Run:
    with pytest.raises(Killed):
        train(*words)
    return Run(find_run("unet_mse").folder.resolve())


def resumed(run: Run, *words: str, expect: int = 0) -> None:
    assert main(["train", "--resume", str(run.folder), *words]) == expect


def checkpoint(run: Run, name: str = "last"):
    return torch.load(run.checkpoints / f"{name}.ckpt", weights_only=True)


def differences(a, b, path="") -> list[str]:
    """Where two checkpoints differ."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: {a.keys() ^ b.keys()}"]
        return [item for key in a for item in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple):
        pairs = enumerate(zip(a, b, strict=True))
        return [item for i, (x, y) in pairs for item in differences(x, y, f"{path}.{i}")]
    return [] if a == b or (a != a and b != b) else [f"{path}: {a} {b}"]


@pytest.fixture(scope="module")
def assert_same(history):
    """Asserts that two runs have the same weights, learning rates, states of callbacks, history and metrics."""

    def check(run: Run, other: Run) -> None:
        for name in ("last", "best"):
            a, b = checkpoint(run, name), checkpoint(other, name)
            for section in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
                assert differences(a[section], b[section], section) == []
            for key, state in a["callbacks"].items():
                if key.startswith("ModelCheckpoint"):
                    assert state["best_model_score"] == b["callbacks"][key]["best_model_score"]
                elif "Checkpoint" not in key:
                    assert differences(state, b["callbacks"][key], key) == []
            assert differences(a.get("averaging_state"), b.get("averaging_state")) == []
        assert history(run) == history(other)
        for key in ("metrics", "epoch", "n_samples"):
            assert run.read("metrics.json")[key] == other.read("metrics.json")[key]
        assert (run.folder / "samples/val.csv").read_text() == (other.folder / "samples/val.csv").read_text()
        assert run.read("provenance.json")["status"] == "finished"

    return check


# Stopped and killed -------------------------------------------------------------------------------------------------


def test_a_stopped_training_resumes_at_its_last_complete_epoch(train, whole, ending, capsys, assert_same):
    ending(1, 1, signal.SIGTERM)
    run = train(expect=143)
    message = capsys.readouterr().err
    assert "stopped by SIGTERM in epoch 2, after batch 2 of 3" in message
    assert f"make train RESUME=runs/unet_mse/{run.folder.name}" in message
    assert run.read("provenance.json")["status"] == "interrupted"
    assert checkpoint(run)["global_step"] == STEPS
    resumed(run)
    assert_same(run, whole("plain"))
    assert run.read("provenance.json")["resumed"][0]["epoch"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "plain"])
def test_what_has_a_state_resumes_exactly(train, whole, ending, name, assert_same):
    """A signal in the last step of an epoch lets it end; a kill loses what was trained of its epoch."""
    ending(0, STEPS - 1, signal.SIGINT)
    run = train(*VARIANTS[name], expect=130)
    assert checkpoint(run)["global_step"] == STEPS
    ending(2, 1)
    with pytest.raises(Killed):
        resumed(run)
    resumed(run)
    assert_same(run, whole(name))
    assert len(run.read("provenance.json")["resumed"]) == 2


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_and_before_that_of_an_epoch(
    train, whole, ending, monkeypatch, assert_same, history
):
    ending(0, 1)
    run = killed(train)
    assert not (run.checkpoints / "last.ckpt").exists()
    real = LastCheckpoint.on_train_epoch_end

    def hook(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise Killed
        real(self, trainer, pl_module)

    monkeypatch.setattr(LastCheckpoint, "on_train_epoch_end", hook)
    with pytest.raises(Killed):
        resumed(run)
    monkeypatch.setattr(LastCheckpoint, "on_train_epoch_end", real)
    assert [row["epoch"] for row in history(run)] == ["0", "1"]
    assert checkpoint(run)["epoch"] == 0
    resumed(run)
    assert_same(run, whole("plain"))


@pytest.mark.slow
def test_a_run_that_was_moved_keeps_its_best(train, ending, workplace):
    ending(2, 1, signal.SIGTERM)
    run = train("--optimizer.init_args.maximize", "true", expect=143)  # best in the first epoch
    moved = Run(workplace / "elsewhere/unet_mse" / run.folder.name)
    moved.folder.parent.mkdir(parents=True)
    run.folder.rename(moved.folder)
    resumed(moved, "--trust")
    state = next(v for k, v in checkpoint(moved)["callbacks"].items() if k.startswith("ModelCheckpoint"))
    assert state["best_model_path"] == str(moved.checkpoints / "best.ckpt")
    assert checkpoint(moved, "best")["epoch"] == 0
    assert moved.read("metrics.json")["epoch"] == 0


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_training_resumes_later(train, whole, monkeypatch, capsys, assert_same):
    real = resume.ResumeState.on_save_checkpoint

    def full(self, trainer, pl_module, content):
        if trainer.current_epoch == 1:
            raise OSError(28, "No space left on device", "last.ckpt")
        real(self, trainer, pl_module, content)

    with monkeypatch.context() as patched:
        patched.setattr(resume.ResumeState, "on_save_checkpoint", full)
        run = train(expect=2)
    message = capsys.readouterr().err
    assert "make room on the disk, then resume with" in message
    assert 'raise OSError(28, "No space left on device", "last.ckpt")' in message  # here, the user's own code
    resumed(run)
    assert_same(run, whole("plain"))


# What changes on the way --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_says_so_and_resumes_with_more_epochs(train, capsys, assert_same):
    long, short = train(*CONSTANT), train(*CONSTANT, "--trainer.max_epochs", "2")
    resumed(short, expect=2)
    assert "is finished, after 2 epochs" in capsys.readouterr().err
    resumed(short, "--trainer.max_epochs", "2", expect=2)
    resumed(short, "--trainer.max_epochs", str(EPOCHS))
    assert_same(short, long)
    assert short.read("provenance.json")["resumed"][0]["changed"] == [f"trainer.max_epochs: 2 -> {EPOCHS}"]
    assert yaml.safe_load((short.folder / "config.resume-1.yaml").read_text())["trainer"]["max_epochs"] == EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "arguments"), [("project.optimizers.WarmupCosine", {}), ("OneCycleLR", {"max_lr": 0.01})]
)
def test_schedules_that_span_the_training_span_the_longer_one(train, schedule, rates, path, arguments):
    words = schedule(path, **arguments)
    long = rates(train(*words))
    run = train(*words, "--trainer.max_epochs", "2")
    resumed(run, "--trainer.max_epochs", str(EPOCHS))
    assert rates(run)[2:] == pytest.approx(long[2:])
    changed = [line for line in (run.folder / "log.txt").read_text().splitlines() if "with changed" in line]
    assert len(changed) == 1  # of the schedule only its length follows


@pytest.mark.slow
def test_new_settings_of_the_optimizer_win_and_stay(train, ending, rates):
    ending(1, 1, signal.SIGTERM)
    run = train(*CONSTANT, expect=143)
    ending(2, 1)
    with pytest.raises(Killed):
        resumed(run, "--optimizer.init_args.lr", "1e-4", "--optimizer.init_args.weight_decay", "0.5")
    assert "resuming with changed: optimizer.init_args.lr: 0.003 -> 0.0001" in (run.folder / "log.txt").read_text()
    resumed(run)  # without overrides
    assert rates(run) == pytest.approx([3e-3, 1e-4, 1e-4])
    # Weights and biases: decay never applies to these.
    decays = {group["weight_decay"] for group in checkpoint(run)["optimizer_states"][0]["param_groups"]}
    assert 0.5 in decays
    changes = [start["changed"] for start in run.read("provenance.json")["resumed"]]
    assert "optimizer.init_args.lr: 0.003 -> 0.0001" in changes[0]
    assert not changes[1]


@pytest.mark.parametrize("words", [("--model.init_args.loss", "torch.nn.L1Loss"), ("--data.batch_size", "3")])
def test_what_would_be_another_experiment_is_refused(whole, words, capsys):
    run = whole("plain")
    before = sorted(run.folder.rglob("*"))
    resumed(run, "--trainer.max_epochs", "9", *words, expect=2)
    assert "it would be another experiment" in capsys.readouterr().err
    assert sorted(run.folder.rglob("*")) == before


def test_other_data_is_refused(whole, workplace, write_tiny, capsys):
    write_tiny(workplace / "other/yeast", shape=(40, 40), seed=5)
    resumed(whole("plain"), "--trainer.max_epochs", "9", "--data.root", "other", expect=2)
    assert "has other content" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "cannot be read"),
        ("weights only", "holds weights only"),
        ("old", "another version"),
        ("history", "history.csv"),
        ("origin", 'provenance.json" is missing'),
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_is_refused(whole, workplace, damage, message, capsys):
    copy = Run(workplace / "damaged" / damage / "unet_mse" / "copy")
    shutil.copytree(whole("plain").folder, copy.folder)
    path = copy.checkpoints / "last.ckpt"
    content = torch.load(path, weights_only=True)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "history":
        (copy.folder / "history.csv").write_text((copy.folder / "history.csv").read_text()[:-20])
    elif damage == "origin":
        (copy.folder / "provenance.json").unlink()
    else:
        del content["optimizer_states" if damage == "weights only" else "resume_state"]
        torch.save(content, path)
    resumed(copy, "--trust", "--trainer.max_epochs", "9", expect=2)
    assert message in capsys.readouterr().err


# Loggers, the latest run, the table ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_tensorboard_shows_each_step_once(train, ending):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ending(2, 1)
    run = killed(train, "--logger", "tensorboard")
    resumed(run)
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    for name in ("train/loss", "val/loss"):
        steps = [event.step for event in events.Scalars(name)]
        assert steps[:EPOCHS] == [STEPS * (epoch + 1) - 1 for epoch in range(EPOCHS)]
        assert len(steps) <= EPOCHS + 1  # the best, at the end
    assert run.read("provenance.json")["logger"] == "tensorboard"


@pytest.mark.slow
def test_an_unfinished_run_is_the_latest_can_be_evaluated_and_is_marked_in_the_table(
    train, whole, ending, capsys, assert_same
):
    ending(1, 1, signal.SIGTERM)
    run = train(expect=143)
    assert main(["train", "unet_dice", "--resume", str(run.folder)]) == 2
    assert "is a run of unet_mse, not of unet_dice" in capsys.readouterr().err
    assert main(["eval", str(run.folder)]) == 0
    assert "unet_mse (unfinished)" in capsys.readouterr().out
    assert main(["train", "unet_mse", "--resume", "latest"]) == 0
    assert_same(run, whole("plain"))
    ending(0, 1)
    killed(train)
    assert main(["eval", "unet_mse"]) == 2
    assert "has no checkpoint" in capsys.readouterr().err
    assert main(["compare"]) == 0
