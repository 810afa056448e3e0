"""Schedules, parameter groups, and finding a rate, in a real training."""

import math

import pytest
import torch
from torch import nn

from project.errors import UserError
from project.experiment.optimizers import WarmupCosine


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
