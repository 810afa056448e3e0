"""Faults of networks, losses and learning rates that a user can cause, and networks that give no alarm."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from project.checks import learning, network
from project.checks import thresholds as limits
from project.checks.report import LEVELS
from project.checks.run import check_quickly, run_checks
from project.models.unet import UNet
from project.transforms.intensity import IntensityAugmentation


@pytest.fixture(autouse=True)
def _little_time(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", {"rate": 2.0, "fit": 4.0})


def verdict(check, ctx, name):
    """The worst verdict of this name."""
    return max((v for v in check(ctx) if v.name == name), key=lambda v: LEVELS.index(v.level))


class Wrapped(nn.Module):
    """A U-Net and another module after it."""

    def __init__(self, last, out_channels=1):
        super().__init__()
        self.net, self.last = UNet(1, out_channels, 8, 1), last

    def forward(self, x):
        return self.last(self.net(x))


class Do(nn.Module):
    """A function of one or two arguments as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["translation", "segmentation", "classification"])
def test_a_working_experiment_gives_no_alarm(experiment, kind):
    report = run_checks(experiment(kind))
    assert report.text("warning", "error") == ""
    assert {"splits", "network", "gradients", "learning rate", "one batch"} <= {v.name for v in report.verdicts}


def test_the_quick_checks_change_neither_weights_nor_random_state(experiment):
    ctx = experiment(kind="segmentation", task={"intensity_augmentation": IntensityAugmentation()})
    task = ctx.task.train()
    weights = {name: value.clone() for name, value in task.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    verdicts = check_quickly("mine", task, ctx.data, ctx.trainer)
    assert {"network", "gradients", "intensity"} <= {v["name"] for v in verdicts}
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert task.training
    assert all(torch.equal(value, weights[name]) for name, value in task.state_dict().items())
    assert all(p.grad is None for p in task.parameters())


# Network --------------------------------------------------------------------------------------------------------------


def test_a_network_for_another_number_of_channels(experiment):
    ctx = experiment(net=UNet(3, 1, 8, 1), channels=2)
    found = verdict(network.network, ctx, "network")
    assert (found.level, "2 channels" in found.advice) == ("error", True)
    # Other checks of the network would repeat it.
    names = {v.name for v in run_checks(ctx).verdicts if v.level != "ok"}
    assert names == {"network"}


def test_dropout_that_stays_on_in_evaluation(experiment):
    ctx = experiment(net=Wrapped(Do(lambda x: nn.functional.dropout(x, 0.5, training=True))))
    assert verdict(network.network, ctx, "network").level == "warning"


def test_batch_normalization_of_one_sample(experiment):
    ctx = experiment(data={"batch_size": 1})
    assert "of one sample" in verdict(network.network, ctx, "network").advice
    ctx = experiment(data={"batch_size": 1}, net=nn.Conv2d(1, 1, 1))
    assert verdict(network.network, ctx, "network").level == "ok"


def test_a_loss_without_reduction(experiment):
    found = verdict(network.network, experiment(loss=nn.MSELoss(reduction="none")), "network")
    assert (found.level, "take its mean" in found.advice) == ("error", True)


# Activation against loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Tanh()])
def test_a_bounded_output_for_an_unbounded_target(experiment, last):
    found = verdict(network.activation, experiment(net=Wrapped(last)), "last activation")
    assert (found.level, "lie outside" in found.advice) == ("error", True)


def test_a_bounded_output_that_fits_the_target(experiment):
    ctx = experiment(net=Wrapped(nn.Sigmoid()), task={"target_normalization": "min_max"})
    assert verdict(network.activation, ctx, "last activation").level == "ok"


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Softplus()])
def test_an_activation_before_cross_entropy(experiment, last):
    found = verdict(network.activation, experiment("segmentation", net=Wrapped(last, 2)), "last activation")
    assert (found.level, "logits" in found.advice) == ("error", True)


def test_a_loss_of_probabilities(experiment):
    ctx = experiment("segmentation", loss=nn.NLLLoss())
    assert verdict(network.activation, ctx, "last activation").level == "error"
    ctx = experiment("segmentation", loss=nn.NLLLoss(), net=Wrapped(nn.LogSoftmax(1), 2))
    assert verdict(network.activation, ctx, "last activation").level == "ok"


# First loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "level"), [(1.0, "ok"), (30.0, "warning"), (3000.0, "error")])
def test_a_first_loss_far_from_that_of_a_constant_answer(experiment, factor, level):
    ctx = experiment("segmentation", net=Wrapped(Do(lambda x: x * factor), 2))
    assert verdict(network.first_loss, ctx, "first loss").level == level


def test_the_first_loss_of_balanced_classes_is_the_logarithm_of_their_number(experiment):
    assert "ln 3 = 1.1" in verdict(network.first_loss, experiment("classification"), "first loss").measured


def test_a_first_loss_that_is_too_good(experiment):
    ctx = experiment("segmentation", net=Do(lambda x: torch.cat([20 - 40.0 * (x > 0), 40.0 * (x > 0) - 20], 1)))
    ctx.task.make_target = lambda batch: (ctx.task.network_input(batch)[:, 0] > 0).long()
    ctx.fresh_task = lambda: ctx.task
    assert verdict(network.first_loss, ctx, "first loss").level == "warning"


# Gradients ------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite(experiment):
    ctx = experiment(loss=Do(lambda output, target: (output - target).sqrt().mean()))
    assert verdict(network.first_loss, ctx, "first loss").level == "error"
    assert verdict(network.gradients, ctx, "gradients").level == "error"


def test_a_gradient_that_is_not_finite(experiment):
    loss = Do(lambda output, target: (output - output.detach()).abs().sqrt().mean() + 1)
    found = verdict(network.gradients, experiment(loss=loss), "gradients")
    assert (found.level, "norm" in found.measured) == ("error", True)


def test_a_gradient_that_explodes(experiment):
    found = verdict(network.gradients, experiment(net=Wrapped(Do(lambda x: x * 1e6))), "gradients")
    assert (found.level, "exploding" in found.advice) == ("warning", True)


class CutOff(nn.Module):
    """A network of which a part is not used, or cut off from the loss."""

    def __init__(self, how):
        super().__init__()
        self.net, self.other, self.how = UNet(1, 1, 8, 1), nn.Conv2d(1, 64, 9), how

    def forward(self, x):
        if self.how == "unused":
            return self.net(x)
        if self.how == "zero":
            return self.net(x) + 0 * self.other(nn.functional.pad(x, (4, 4, 4, 4))).mean(1, keepdim=True)
        return 0 * self.net(x)


@pytest.mark.parametrize(
    ("how", "level", "words"),
    [("unused", "warning", "not used"), ("zero", "warning", "gradients of 0"), ("everything", "error", "everywhere")],
)
def test_gradients_that_are_missing_or_zero(experiment, how, level, words):
    found = verdict(network.gradients, experiment(net=CutOff(how)), "gradients")
    assert (found.level, words in found.measured) == (level, True), found


@pytest.mark.parametrize(("part", "level"), [("down", "warning"), ("", "error")])
def test_weights_that_are_frozen(experiment, part, level):
    net = UNet(1, 1, 8, 1)
    net.get_submodule(part).requires_grad_(False)
    assert verdict(network.gradients, experiment(net=net), "gradients").level == level


# Learning rate and one batch ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "words"), [(30, "rises"), (1e-9, "hardly falls")])
def test_a_learning_rate_that_is_too_high_or_too_low(experiment, rate, words):
    found = verdict(learning.learning_rate, experiment(rate=rate), "learning rate")
    assert found.level in ("warning", "error")
    assert words in found.advice
    assert 1e-5 < float(found.advice.rpartition("about ")[2]) < 1


def test_a_learning_rate_that_diverges(experiment):
    ctx = experiment(net=nn.Conv2d(1, 1, 3, padding=1), optimizer="torch.optim.SGD", rate=500)
    found = verdict(learning.learning_rate, ctx, "learning rate")
    assert (found.level, "diverges" in found.advice) == ("error", True), found


def test_a_range_test_is_read_as_a_person_would():
    rates = [10.0**k for k in range(-6, 2)]
    curve = [1.0, 1.0, 0.95, 0.6, 0.3, 0.25, 0.9, math.inf]
    assert learning.read_range(rates, curve) == pytest.approx((1e-3, 1e-1, 1.0))
    assert learning.read_range(rates, [1.0] * 8) is None


def test_a_network_that_cannot_learn_one_batch(experiment):
    blind = nn.Sequential(Do(torch.zeros_like), nn.Conv2d(1, 1, 1))  # does not look at its input
    found = verdict(learning.one_batch, experiment(net=blind, rate=0.03), "one batch")
    assert (found.level, "cannot learn" in found.advice) == ("error", True), found


# Figure ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_the_figure_shows_file_inputs_and_targets(experiment, kind):
    from project.checks.figures import DRAWS, SAMPLES, draw_inputs

    axes = draw_inputs(experiment(kind)).axes
    titles = [axis.get_title().splitlines()[0] for axis in axes[: len(axes) // SAMPLES]]
    assert titles[0].startswith("file: train")
    if kind == "segmentation":
        assert titles[1:] == [f"{word} {epoch}" for epoch in range(1, DRAWS + 1) for word in ("input", "target")]
        assert np.unique(axes[2].images[0].get_array()).tolist() == [0, 1]
    else:
        assert titles[1].split(": ")[1] in ("dark", "bright", "class 2")
