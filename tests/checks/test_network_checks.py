"""Faults of networks, losses and learning rates that a user can cause, and networks that give no alarm."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from project.checks import learning, loss, network
from project.checks import thresholds as limits
from project.checks.figures import DRAWS, SAMPLES, draw_inputs
from project.checks.report import LEVELS
from project.checks.run import check_quickly, run_checks
from project.models.unet import UNet
from project.transforms.intensity import IntensityAugmentation

CHECKS = {
    "network": network.network,
    "activation": loss.activation,
    "first loss": loss.first_loss,
    "gradients": network.gradients,
    "dependence": network.dependence,
    "regularization": network.regularization,
    "learning rate": learning.learning_rate,
    "one batch": learning.one_batch,
}


@pytest.fixture(autouse=True)
def _little_time(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", {"rate": 2.0, "fit": 4.0})


class Do(nn.Module):
    """A function of one or two arguments as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class WithLayer(nn.Module):
    """A U-Net whose output is combined with another layer."""

    def __init__(self, combine):
        super().__init__()
        self.net, self.layer, self.combine = UNet(1, 1, 8, 1), nn.Conv2d(1, 1, 65, padding=32), combine

    def forward(self, x):
        return self.combine(self.net(x), self.layer)


def unet(last, out_channels=1):
    """A U-Net and another module or function after it."""
    torch.manual_seed(0)
    return nn.Sequential(UNet(1, out_channels, 8, 1), last if isinstance(last, nn.Module) else Do(last))


def frozen_unet(part):
    net = UNet(1, 1, 8, 1)
    net.get_submodule(part).requires_grad_(False)
    return net


def root_of_negative(output, target):
    return (output - target).sqrt().mean()


def root_of_zero(output, target):
    return (output - output.detach()).abs().sqrt().mean() + 1


def random_half(x):
    return nn.functional.dropout(x, 0.5, training=True)


class Zeros(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 1, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


UNET = UNet(1, 1, 8, 1)
BLIND = nn.Sequential(Do(torch.zeros_like), nn.Conv2d(1, 1, 1))  # does not look at its input
FACTORS = [(1.0, "ok"), (30.0, "warning"), (3000.0, "error")]


def report_of(experiment, name, kind, options):
    """Level of the worst finding of this name, and its words."""
    worst = max(CHECKS[name](experiment(kind, **options)), key=lambda finding: LEVELS.index(finding.level))
    return worst.level, f"{worst.measured}; {worst.advice}"


@pytest.mark.parametrize(
    ("name", "options", "level", "words"),
    [
        ("network", {"net": UNet(3, 1, 8, 1), "channels": 2}, "error", "2 channels"),
        ("network", {"net": unet(random_half)}, "warning", "random in validation"),
        ("network", {"loss": nn.MSELoss(reduction="none")}, "error", "take its mean"),
        ("activation", {"net": unet(nn.ReLU())}, "error", "lie outside"),
        ("activation", {"net": unet(nn.Sigmoid()), "task": {"target_normalization": "min_max"}}, "ok", ""),
        ("first loss", {"loss": Do(root_of_negative)}, "error", "not finite"),
        ("gradients", {"loss": Do(root_of_zero)}, "error", "norm"),
        ("gradients", {"net": unet(lambda x: x * 1e6)}, "warning", "exploding"),
        ("gradients", {"net": WithLayer(lambda x, layer: x)}, "warning", "have no gradient"),
        ("gradients", {"net": WithLayer(lambda x, layer: x + 0 * layer(x))}, "warning", "gradients of 0"),
        ("gradients", {"net": unet(lambda x: 0 * x)}, "error", "everywhere"),
        ("gradients", {"net": frozen_unet("down")}, "warning", "are frozen"),
        ("gradients", {"net": frozen_unet("")}, "error", "no trainable weights"),
        (
            "learning rate",
            {"net": nn.Conv2d(1, 1, 1), "rate": 500, "optimizer": "torch.optim.SGD"},
            "error",
            "diverges",
        ),
        (
            "gradients",
            {"loss": Do(lambda x, y: torch.tensor((x - y).abs().mean().item(), requires_grad=True))},
            "error",
            "none",
        ),
        ("dependence", {"net": UNET}, "ok", ""),
        ("dependence", {"net": nn.Sequential(UNET, Zeros())}, "ok", ""),  # as last layers may begin
        ("dependence", {"net": BLIND}, "error", "does not depend on its input"),
        ("dependence", {"net": unet(lambda x: x.transpose(2, 3))}, "error", "the lower left changes"),
        ("dependence", {"net": unet(lambda x: x - x.mean(0, keepdim=True))}, "error", "other images of the batch"),
        ("regularization", {"net": UNET, "data": {"batch_size": 1}}, "warning", "batch_size 1 with batch norm"),
        ("regularization", {"net": UNET, "rate": 0.5}, "warning", "a step of AdamW changes weights by 0.5"),
        ("regularization", {"net": UNET, "rate": 0.5, "optimizer": "torch.optim.SGD"}, "ok", ""),
    ],
)
def test_faults_of_a_network_for_images(experiment, name, options, level, words):
    result = report_of(experiment, name, "translation", options)
    assert (result[0], words in result[1]) == (level, True), result


@pytest.mark.parametrize(
    ("name", "options", "level", "words"),
    [
        ("activation", {"net": unet(nn.Softmax(1), 2)}, "error", "logits"),
        ("activation", {"loss": nn.NLLLoss()}, "error", "expects probabilities"),
        *(("first loss", {"net": unet(lambda x, f=f: x * f, 2)}, level, "") for f, level in FACTORS),
    ],
)
def test_faults_of_a_network_for_masks(experiment, name, options, level, words):
    result = report_of(experiment, name, "segmentation", options)
    assert (result[0], words in result[1]) == (level, True), result


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["translation", "segmentation", "classification"])
def test_a_working_experiment_gives_no_alarm(experiment, kind):
    report = run_checks(experiment(kind))
    alarms = {v.name for v in report.findings if v.level in ("warning", "error")}
    assert alarms == ({"leaked target"} if kind == "segmentation" else set())  # the mask of the fixture is a threshold
    assert {"splits", "network", "gradients", "learning rate", "one batch"} <= {v.name for v in report.findings}


def test_the_quick_checks_change_neither_weights_nor_random_state(experiment):
    ctx = experiment(kind="segmentation", task={"intensity_augmentation": IntensityAugmentation()})
    task = ctx.task.train()
    weights = {name: value.clone() for name, value in task.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    findings = check_quickly("mine", task, ctx.data, ctx.trainer)
    assert {"network", "gradients", "intensity"} <= {v["name"] for v in findings}
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert task.training
    assert all(torch.equal(value, weights[name]) for name, value in task.state_dict().items())
    assert all(p.grad is None for p in task.parameters())


def test_a_network_that_fails_is_reported_once(experiment):
    findings = run_checks(experiment(net=UNet(3, 1, 8, 1), channels=2)).findings
    assert {v.name for v in findings if v.level != "ok"} == {"network", "others"}


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "words"), [(30, "too high"), (1e-9, "too low")])
def test_a_learning_rate_that_is_too_high_or_too_low(experiment, rate, words):
    level, text = report_of(experiment, "learning rate", "translation", {"rate": rate})
    assert level in ("warning", "error")
    assert words in text
    assert 1e-5 < float(text.rpartition("about ")[2]) < 1


def test_a_range_test_is_read_as_a_person_would():
    rates = [10.0**k for k in range(-6, 2)]
    curve = [1.0, 1.0, 0.95, 0.6, 0.3, 0.25, 0.9, math.inf]
    assert learning.read_range(rates, curve) == pytest.approx((1e-3, 1e-1, 10.0))
    assert learning.read_range(rates, [1.0] * 8) is None


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_the_figure_shows_file_inputs_and_targets(experiment, kind):
    axes = draw_inputs(experiment(kind)).axes
    titles = [axis.get_title().splitlines()[0] for axis in axes[: len(axes) // SAMPLES]]
    assert titles[0] == "file"
    if kind == "segmentation":
        assert titles[1:] == [f"{word} {epoch}" for epoch in range(1, DRAWS + 1) for word in ("input", "target")]
        assert np.unique(axes[2].images[0].get_array()).tolist() == [0, 1]
    else:
        assert titles[1].split(": ")[1] in ("dark", "bright", "class 2")


@pytest.mark.parametrize("factor", [1e4, 1e-5])
def test_prediction_and_target_in_different_ranges(experiment, factor):
    ctx = experiment(net=nn.Sequential(UNet(1, 1, 8, 1), Do(lambda x: x * factor)), rate=1e-6)
    (finding,) = learning.one_batch(ctx)
    assert finding.level in ("warning", "error")
    assert "their ranges differ" in finding.advice
