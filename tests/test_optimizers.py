"""Schedules, parameter groups, and finding a rate, in a real training."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from project.errors import UserError
from project.models.classifier import EncoderClassifier
from project.models.finetuning import Finetuning
from project.optimizers import WarmupCosine, build_optimizers


def rates(scheduler, optimizer, n):
    found = []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def sgd(lr=1.0):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def test_warmup_cosine_rises_then_falls_to_zero():
    optimizer = sgd(2.0)
    found = rates(WarmupCosine(optimizer, warmup=0.2, total_steps=50), optimizer, 51)
    assert found[:10] == pytest.approx([2.0 * (step + 1) / 11 for step in range(10)])
    assert max(found) == found[10] == 2.0
    expected = [2.0 * 0.5 * (1 + math.cos(math.pi * step / 40)) for step in range(41)]
    assert found[10:] == pytest.approx(expected)
    assert found[-1] == pytest.approx(0.0, abs=1e-12)


def test_warmup_cosine_keeps_a_rest_and_goes_on_with_it():
    optimizer = sgd()
    found = rates(WarmupCosine(optimizer, warmup=0.0, final=0.1, total_steps=10), optimizer, 15)
    assert found[0] == 1.0
    assert found[10:] == pytest.approx([0.1] * 5)


@pytest.mark.parametrize("wrong", [{"warmup": 1.0}, {"warmup": -0.1}, {"final": 2.0}])
def test_warmup_cosine_refuses_what_is_no_share(wrong):
    with pytest.raises(UserError, match="shares from 0 to 1"):
        WarmupCosine(sgd(), total_steps=10, **wrong)


class Net(nn.Linear):
    """A task as far as an optimizer needs one."""

    def __init__(self, device="cpu", clip=None, precision="32-true"):
        super().__init__(2, 1)
        strategy = SimpleNamespace(root_device=torch.device(device))
        self.trainer = SimpleNamespace(strategy=strategy, gradient_clip_val=clip, precision=precision)

    def parameter_groups(self, lr):
        return [{"params": list(self.parameters())}]


def built(net, name="AdamW", **arguments):
    return build_optimizers(net, {"class_path": f"torch.optim.{name}", "init_args": {"lr": 0.1, **arguments}}, None)


@pytest.mark.parametrize(
    ("net", "arguments", "fused"),
    [
        ({}, {}, True),
        ({}, {"fused": None, "foreach": None}, True),
        ({"device": "mps"}, {}, None),
        ({}, {"fused": False}, False),
        ({}, {"foreach": True}, None),
        # Lightning refuses to clip for a fused optimizer in mixed precision.
        ({"clip": 1.0, "precision": "bf16-mixed"}, {}, None),
        ({"clip": 1.0}, {}, True),
        ({"precision": "bf16-mixed"}, {}, True),
    ],
)
def test_one_kernel_updates_all_parameters_where_nothing_speaks_against_it(net, arguments, fused):
    assert built(Net(**net), **arguments).defaults["fused"] is fused


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "Adam"])
def test_weight_decay_leaves_biases_and_normalisations_alone(name):
    net = EncoderClassifier("resnet18", depth=3)
    net.trainer = Net().trainer
    net.parameter_groups = lambda lr: Finetuning(decay=0.5).groups(net, lr)
    optimizer = built(net, name, weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {p.ndim: decays[id(p)] for p in net.parameters()} == {4: 0.1, 2: 0.1, 1: 0.0}
    assert len(decays) == len(list(net.parameters()))
    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 0.05, 0.025, 0.0125}
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names) == 8


def test_optimizers_without_such_a_kernel_stay_as_they_are():
    assert "fused" not in built(Net(), "RMSprop").defaults
