"""Training practice: each a line in an experiment file, through the real entry point."""

import csv
import json
from pathlib import Path

import pytest
import torch

from project.cli import main
from project.runs.run_folder import Run

ROOT = Path(__file__).parents[2]
EPOCHS, STEPS = 4, 3  # 12 images in batches of 4


@pytest.fixture(scope="module")
def train(workplace):
    """Trains `unet_mse` with a tiny net and further words; returns the run and its history."""

    def run(*words: str, expect: int = 0):
        tiny = ["--model.init_args.net.init_args", "{in_channels: 1, out_channels: 1, width: 4, depth: 1}"]
        fixed = ["--data.crop", "32", "--data.batch_size", "4", "--trainer.accelerator", "cpu"]
        length = ["--trainer.max_epochs", str(EPOCHS), "--trainer.precision", "32-true", "--logger", "none"]
        assert main(["train", "unet_mse", *tiny, *fixed, *length, *words]) == expect
        found = Run(Path("runs/unet_mse/latest").resolve())
        return found, list(csv.DictReader((found.folder / "history.csv").read_text().splitlines()))

    return run


def callback(name: str, **arguments) -> list[str]:
    path = name if "." in name else f"lightning.pytorch.callbacks.{name}"
    return ["--trainer.callbacks", json.dumps([{"class_path": path, "init_args": arguments}])]


def schedule(path: str, **arguments) -> list[str]:
    return ["--lr_scheduler", json.dumps({"class_path": path, "init_args": arguments})]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoints / "best.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def plain(train):
    return train()


def best_of(history: list[dict[str, str]]) -> float:
    return min(float(row["val/loss"]) for row in history)


def test_rate_rises_and_falls_over_the_whole_training(plain):
    _, history = plain
    rates = [float(row["lr"]) for row in history]
    assert len(history) == EPOCHS
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.05 * rates[0]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("EMAWeightAveraging", {"decay": 0.6}), ("WeightAveraging", {})],
)
def test_averaged_weights_are_those_that_are_kept_and_measured(train, plain, name, arguments):
    run, history = train(*callback(name, **arguments))
    metrics = run.read("metrics.json")["metrics"]
    assert metrics["loss"] == pytest.approx(best_of(history), rel=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(weights(run).values(), weights(plain[0]).values(), strict=True))
    assert main(["eval", str(run.folder)]) == 0
    assert run.read("metrics.json")["metrics"] == pytest.approx(metrics, rel=1e-6)


def test_a_single_callback_needs_no_list(train):
    """A timer: one of its defaults is a constant of its own class."""
    option, listed = callback("Timer", duration="00:01:00:00")
    run, _ = train(option, json.dumps(json.loads(listed)[0]), "--trainer.max_epochs", "1")
    assert "interval: step" in run.config.read_text()


def test_gradient_accumulation_and_clipping(train):
    _, history = train("--trainer.accumulate_grad_batches", str(STEPS), "--trainer.gradient_clip_val", "0.5")
    assert [int(row["step"]) for row in history] == [1, 2, 3, 4]


def test_one_cycle_steps_with_the_optimizer(train):
    _, history = train(*schedule("torch.optim.lr_scheduler.OneCycleLR", max_lr=0.01, pct_start=0.25))
    rates = [float(row["lr"]) for row in history]
    assert max(rates) <= 0.01
    assert rates[0] > 0.009  # a quarter of the training is over
    assert rates[-1] < 1e-6


def test_cosine_of_torch_steps_with_the_epoch(train):
    _, history = train(*schedule("torch.optim.lr_scheduler.CosineAnnealingLR", T_max=EPOCHS))
    rates = [float(row["lr"]) for row in history]
    assert rates[0] == pytest.approx(3e-3)
    assert rates[2] == pytest.approx(1.5e-3)


def test_plateau_waits_for_the_validation_loss(train):
    words = schedule(
        "lightning.pytorch.cli.ReduceLROnPlateau", monitor="val/loss", patience=0, factor=0.1, threshold=1e6
    )
    _, history = train(*words)
    rates = [float(row["lr"]) for row in history]
    assert rates[-1] < 0.2 * rates[0]


def test_a_rate_is_found_and_used(train):
    finder = callback("project.optimizers.FindLearningRate", num_training_steps=20)
    run, history = train(*finder, *schedule("project.optimizers.WarmupCosine", warmup=0.0, final=1.0))
    found = float(history[0]["lr"])
    assert found != pytest.approx(3e-3)
    assert [float(row["lr"]) for row in history] == pytest.approx([found] * EPOCHS)
    assert [int(row["step"]) for row in history] == [STEPS * (epoch + 1) for epoch in range(EPOCHS)]
    assert f"learning rate {found:.2g}" in (run.folder / "log.txt").read_text()


def test_a_rate_is_found_without_a_schedule(train):
    finder = callback("project.optimizers.FindLearningRate", num_training_steps=20)
    _, history = train(*finder, "--lr_scheduler", "null")
    assert len({row["lr"] for row in history}) == 1
    assert float(history[0]["lr"]) != pytest.approx(3e-3)


def test_parameter_groups_keep_their_proportions_in_a_schedule(workplace):
    net = {
        "class_path": "segmentation_models_pytorch.Unet",
        "init_args": {"encoder_name": "resnet18", "encoder_weights": None, "in_channels": 1, "classes": 1},
    }
    words = ["--model.init_args.net", json.dumps(net), "--model.init_args.finetuning.rate", "0.1"]
    words += ["--model.init_args.finetuning.freeze_epochs", "1", "--trainer.max_epochs", "1"]
    fixed = ["--data.crop", "32", "--data.batch_size", "4", "--trainer.precision", "32-true", "--logger", "none"]
    assert (
        main(["train", "unet_mse", *fixed, *words, *schedule("torch.optim.lr_scheduler.OneCycleLR", max_lr=0.1)]) == 0
    )
    state = torch.load("runs/unet_mse/latest/checkpoints/best.ckpt", weights_only=True)["optimizer_states"][0]
    groups = {group["name"]: group["max_lr"] for group in state["param_groups"]}
    assert groups["head"] == pytest.approx(0.1)
    assert groups["backbone.0"] == pytest.approx(0.01)


@pytest.mark.nightly
def test_compiled_networks_train_and_their_checkpoints_fit_plain_ones(train):
    run, _ = train("--model.init_args.compile", "true", "--trainer.max_epochs", "1")
    metrics = run.read("metrics.json")["metrics"]
    assert not [name for name in weights(run) if "_orig_mod" in name]
    assert main(["eval", str(run.folder), "--model.init_args.compile", "false"]) == 0
    assert run.read("metrics.json")["metrics"] == pytest.approx(metrics, rel=1e-4)
