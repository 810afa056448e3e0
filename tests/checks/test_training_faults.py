"""Faults of losses, schedules, monitors and settings, made as a user does: by overrides or an own file."""

import sys

import numpy as np
import pytest
import yaml
from shipped_configs import CONFIGS

from project.checks import labels, learning, loss, network, run, schedule
from project.checks import thresholds as limits
from project.checks.context import Context
from project.training.lightning_cli import temporary_experiment

NET = ["--model.init_args.net.init_args", "{in_channels: 1, out_channels: 1, width: 4, depth: 1}"]
NETS = {
    "unet_mse": NET,
    "unet_dice": [
        "--model.init_args.net",
        "{class_path: project.models.unet.UNet, init_args: {in_channels: 1, out_channels: 2, width: 4, depth: 1}}",
    ],
    "resnet_ce": ["--model.init_args.net.init_args.depth", "3"],
    "resnet_count": ["--model.init_args.net.init_args.depth", "3"],
}
MINE = """
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from project.models.unet import UNet
from project.tasks.translation import TranslationTask


def pearson(x, y):
    x, y = x.flatten(1) - x.mean(), y.flatten(1) - y.mean()
    return ((x * y).mean(1) / (x.std(1) * y.std(1) + 1e-6)).mean()


def dice(output, target):
    p, t = output.softmax(1)[:, 1], (target == 1).float()
    return (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


LOSSES = {
    "Pearson": pearson,
    "MinusPearson": lambda x, y: -pearson(x, y),
    "MinusMSE": lambda x, y: -functional.mse_loss(x, y),
    "OneMinusDice": lambda x, y: 1 - dice(x, y),
    "LogProbability": lambda x, y: x.log_softmax(1).gather(1, y[:, None]).mean(),
    "Blind": lambda x, y: (0 * x).mean() + y.var(),
    "Detached": lambda x, y: functional.mse_loss(x.detach(), y),
    "LogitNLL": functional.nll_loss,
    "Itself": lambda x, y: functional.mse_loss(x, x.detach().roll(1, 0)),
    "Charbonnier": lambda x, y: ((x - y) ** 2 + 1e-6).sqrt().mean(),
}
for name, function in LOSSES.items():
    methods = {"forward": lambda self, x, y, f=function: f(x, y), "__module__": __name__, "ignore_index": -100}
    globals()[name] = type(name, (nn.Module,), methods)


class NoGrad(UNet):
    def __init__(self):
        super().__init__(1, 1, 4, 1)

    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class ToNumpy(NoGrad):
    def forward(self, x):
        return torch.from_numpy(UNet.forward(self, x).numpy())


class DetachedBody(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = UNet(1, 4, 4, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        return self.head(self.body(x).detach())


class HeadOnly(TranslationTask):
    def configure_optimizers(self):
        return torch.optim.Adam(list(self.net.parameters())[-2:], lr=1e-3)


class Manual(TranslationTask):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = self.compute_loss(*self.forward_batch(batch))
        self.manual_backward(loss)
        self.optimizers().step()


class Frozen(TranslationTask):
    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            return super().training_step(batch, batch_idx)


class WarmUp(LambdaLR):
    def __init__(self, optimizer, length: float = 500):
        super().__init__(optimizer, lambda step: min(1.0, (step + 1) / length))


class ZeroAfterAnEpoch(LambdaLR):
    def __init__(self, optimizer):
        super().__init__(optimizer, lambda epoch: float(epoch < 1))
"""
UNET = "project.models.unet.UNet", "in_channels: 1, out_channels: 1, width: 4, depth: 1"
TORCH, SMP = "torch.optim.lr_scheduler.", "segmentation_models_pytorch.losses."
PLATEAU = "lightning.pytorch.cli.ReduceLROnPlateau"
EMA = "lightning.pytorch.callbacks.EMAWeightAveraging"
STOP = "lightning.pytorch.callbacks.EarlyStopping"


def replaced(key, path, arguments=""):
    return [key, f"{{class_path: {path}, init_args: {{{arguments}}}}}"]


def loss_of(*spec):
    return replaced("--model.init_args.loss", *spec)


def task_of(name):
    return ["--model", name, "--model.init_args.loss", "torch.nn.MSELoss", *replaced("--model.init_args.net", *UNET)]


def schedule_of(*spec):
    return replaced("--lr_scheduler", *spec)


@pytest.fixture
def build(dataset, monkeypatch, tmp_path):
    """Builds an experiment of the template with overrides, as `make check` does it, on a few small images."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mine", None)
    monkeypatch.setattr(limits, "SECONDS", {"rate": 4.0, "fit": 8.0})
    folder = dataset("classification", roles=("image", "target", "mask"), n_labels=3, n_values=1)

    def context(experiment, overrides, full=False):
        content = yaml.safe_load((CONFIGS / f"experiments/{experiment}.yaml").read_text())
        always = ["--data.dataset", folder.name, "--data.root", str(folder.parent), "--trainer.accelerator", "cpu"]
        crop = ["--data.crop", "32"] if experiment.startswith("unet") else []
        always += [*crop, "--data.batch_size", "4", "--trainer.max_epochs", "12"]
        net = [] if "--model.init_args.net" in overrides else NETS[experiment]
        with temporary_experiment(experiment, content, [*always, *net, *overrides]) as cli:
            return Context(cli.model, cli.datamodule, cli.trainer, full)

    return context


FAULTS = [
    ("loss", "unet_mse", loss_of("mine.Pearson"), "reversed"),
    ("loss", "resnet_count", loss_of("mine.MinusMSE"), "reversed"),
    ("loss", "resnet_ce", loss_of("mine.LogProbability"), "reversed"),
    ("loss", "unet_mse", loss_of("mine.Blind"), "does not depend on the prediction"),
    ("loss", "resnet_ce", loss_of("torch.nn.CrossEntropyLoss", "label_smoothing: 0.7"), "label_smoothing 0.7"),
    ("loss", "unet_mse", loss_of("torch.nn.MSELoss", "reduction: sum"), "sum over the batch"),
    ("loss", "unet_dice", loss_of("mine.LogitNLL"), "no log_softmax"),
    ("loss", "unet_mse", loss_of("mine.Itself"), "does not depend on the target"),
    ("gradients", "unet_mse", loss_of("mine.Detached"), "in the forward of"),
    ("gradients", "unet_mse", task_of("mine.Frozen"), "training_step of Frozen"),
    ("gradients", "unet_mse", task_of("mine.Manual"), "without zero_grad"),
    ("schedule", "unet_mse", task_of("mine.HeadOnly"), "in no optimizer"),
    ("schedule", "unet_mse", schedule_of("mine.WarmUp", "length: 0.001"), "hardly changes"),
    ("updates", "unet_mse", ["--trainer.accumulate_grad_batches", "64"], "one step per epoch"),
    (
        "updates",
        "unet_mse",
        ["--trainer.callbacks", f"[{{class_path: {EMA}, init_args: {{decay: 0.9999}}}}]"],
        "decay 0.9999",
    ),
    ("gradients", "unet_mse", ["--model.init_args.net", "mine.NoGrad"], "in the forward of NoGrad"),
    ("gradients", "unet_mse", ["--model.init_args.net", "mine.DetachedBody"], "of the weights have no gradient"),
    ("gradients", "unet_mse", ["--trainer.gradient_clip_val", "1.0e-6"], "clipping takes nearly all"),
    (
        "gradients",
        "unet_mse",
        ["--trainer.gradient_clip_val", "1.0e-7", "--trainer.gradient_clip_algorithm", "value"],
        "clipping takes nearly all",
    ),
    ("schedule", "unet_mse", schedule_of("mine.WarmUp"), "counted in epochs"),
    ("schedule", "unet_mse", schedule_of("mine.ZeroAfterAnEpoch"), "from epoch 1 on"),
    ("schedule", "unet_mse", schedule_of(f"{TORCH}StepLR", "step_size: 30"), "step_size is 30"),
    ("schedule", "unet_mse", schedule_of(f"{TORCH}ExponentialLR", "gamma: 0.1"), "falls too fast"),
    ("schedule", "unet_mse", schedule_of(f"{TORCH}CosineAnnealingLR", "T_max: 1000"), "write T_max: 12"),
    ("schedule", "unet_mse", schedule_of(f"{TORCH}OneCycleLR", "max_lr: 0.003, total_steps: 900"), "leave it out"),
    (
        "schedule",
        "unet_mse",
        schedule_of(f"{TORCH}OneCycleLR", "max_lr: 0.003, total_steps: 20"),
        "steps is 20; the training has",
    ),
    ("schedule", "unet_mse", schedule_of(PLATEAU, "monitor: val/loss, patience: 50"), "never reduced"),
    ("monitor", "unet_mse", ["--checkpoint.monitor", "val/pearson"], "mode: max"),
    ("monitor", "unet_mse", schedule_of(PLATEAU, "monitor: val/r2_pooled"), "mode: max"),
    (
        *("monitor", "unet_mse"),
        ["--trainer.callbacks", f"[{{class_path: {STOP}, init_args: {{monitor: val/ssim}}}}]"],
        "EarlyStopping: val/ssim, min",
    ),
    ("regularization", "resnet_ce", ["--model.init_args.net.init_args.dropout", "0.95"], "dropout 0.95"),
    ("regularization", "unet_mse", ["--optimizer.init_args.weight_decay", "10"], "weight_decay 10"),
]
SOUND = [
    *(("loss", "unet_mse", loss_of(f"mine.{name}")) for name in ("MinusPearson", "Charbonnier")),
    ("loss", "unet_dice", loss_of("mine.OneMinusDice")),
    *(("loss", "unet_dice", loss_of(f"{SMP}{x}Loss", "mode: multiclass")) for x in ("Lovasz", "Focal")),
    ("loss", "resnet_ce", loss_of("project.losses.CrossEntropy", "class_weights: balanced, label_smoothing: 0.2")),
    *(
        ("schedule", "unet_mse", schedule_of(*spec))
        for spec in (
            (f"{TORCH}CosineAnnealingLR", "T_max: 12"),
            (f"{TORCH}CosineAnnealingWarmRestarts", "T_0: 5"),
            (f"{TORCH}StepLR", "step_size: 4"),
            (f"{TORCH}OneCycleLR", "max_lr: 0.003"),
            ("mine.WarmUp", "length: 3"),
            (PLATEAU, "monitor: val/r2, mode: max, patience: 3"),
        )
    ),
    ("monitor", "unet_dice", ["--checkpoint.monitor", "val/dice_pooled", "--checkpoint.mode", "max"]),
    ("regularization", "resnet_ce", ["--model.init_args.net.init_args.dropout", "0.5"]),
    ("updates", "unet_mse", ["--trainer.callbacks", f"[{{class_path: {EMA}, init_args: {{decay: 0.9}}}}]"]),
]
CHECKS = {
    "loss": loss.loss,
    "gradients": network.gradients,
    "schedule": schedule.schedule,
    "updates": schedule.updates,
    "monitor": schedule.monitors,
    "regularization": network.regularization,
}


@pytest.mark.parametrize(("name", "experiment", "overrides", "words"), FAULTS)
def test_a_fault_is_named(build, name, experiment, overrides, words):
    (finding,) = [f for f in CHECKS[name](build(experiment, overrides)) if f.level in ("warning", "error")]
    assert words in f"{finding.measured}; {finding.advice}"


@pytest.mark.parametrize(("name", "experiment", "overrides"), SOUND)
def test_a_sound_neighbor_gives_no_alarm(build, name, experiment, overrides):
    assert [v for v in CHECKS[name](build(experiment, overrides)) if v.level != "ok"] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: n % 9, ""),
        (lambda n: n, "row numbers"),
        (lambda n: np.where(n % 5 == 0, -999, n % 9), "-999"),
        (lambda n: np.where(n < 24, 1, 1000) * (1 + n % 9), "times as large in val"),
    ],
    ids=["sound", "row numbers", "missing", "unit"],
)
def test_numbers_to_predict(build, change, words):
    ctx = build("resnet_count", [])
    ctx.train.reader.values[:, 0], ctx.val.reader.values[:, 0] = change(np.arange(24)), change(np.arange(24, 32))
    (finding,) = labels.numbers(ctx)
    assert (finding.level == "warning", words in f"{finding.measured}; {finding.advice}") == (bool(words), True)


def test_one_cause_is_one_line(build):
    report = run.run_checks(build("unet_mse", loss_of("mine.MinusMSE")))
    assert [v.name for v in report.findings if v.level == "error"] == ["loss"]
    (left_out,) = [v for v in report.findings if v.level == "not judged"]
    assert left_out.measured.startswith("first loss")
    report = run.run_checks(build("unet_mse", ["--model.init_args.net", "mine.ToNumpy"]))
    assert [v.name for v in report.findings if v.level in ("error", "not judged")] == ["gradients"]


@pytest.mark.slow
def test_the_setting_that_hinders_learning_is_named(build):
    ctx = build(
        "unet_mse",
        ["--trainer.gradient_clip_val", "1.0e-9", *replaced("--optimizer", "torch.optim.SGD", "lr: 0.01")],
        full=True,
    )
    (finding,) = learning.one_batch(ctx)
    assert finding.level == "error"
    assert "learned without trainer.gradient_clip_val 1e-09" in finding.advice


def test_a_batch_that_takes_too_long_is_not_judged(build, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", {"rate": 0.0, "fit": 0.0})
    report = run.Report(list(learning.one_batch(build("unet_mse", [], full=True))))
    assert [v.level for v in report.findings] == ["not judged"]
    assert report.safe
    assert not report.complete
