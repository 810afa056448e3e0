"""Which runs can be averaged."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import nn

from project.errors import UserError
from project.inference.member import Member
from project.inference.model import Model
from project.tasks.regression import RegressionTask
from project.tasks.segmentation import SegmentationTask

CHANNEL = {"n": 9, "mean": 10.0, "std": 5.0, "min": 0.0, "max": 20.0, "dtype": "uint16"}
STATISTICS = {"image": [CHANNEL], "mask": {"0": 3, "1": 1}, "value": [CHANNEL]}


def numbers(name):
    return RegressionTask(nn.Identity(), statistics=STATISTICS, channels={"value": [name]})


def masks(objects):
    return SegmentationTask(nn.Identity(), statistics=STATISTICS, classes={"mask": ["a", "b"]}, objects=objects)


class Own(RegressionTask):
    """A task with a setting of its own that changes the meaning of a prediction."""

    prediction_settings: ClassVar = {"scale": 2}


class Other(Own):
    prediction_settings: ClassVar = {"scale": 3}


Other.__name__ = "Own"


@pytest.mark.parametrize(
    ("first", "second", "differing"),
    [
        (numbers("cells"), numbers("cells"), ""),
        (numbers("cells"), numbers("dose"), "value"),
        (masks("components"), masks("distance"), ""),
        (masks("components"), masks("depth"), "depth of objects"),
        (masks("components"), numbers("cells"), "task"),
        (Own(nn.Identity(), statistics=STATISTICS), Other(nn.Identity(), statistics=STATISTICS), "scale"),
    ],
)
def test_runs_that_predict_the_same_are_averaged(tmp_path, first, second, differing):
    (tmp_path / "best.ckpt").touch()
    run = SimpleNamespace(name="a", read_provenance=lambda: SimpleNamespace(commit="1"))
    members = [Member(run, t, torch.device("cpu"), Precision(), tmp_path / "best.ckpt") for t in (first, second)]
    if not differing:
        assert Model(members).task is first
        return
    with pytest.raises(UserError, match=f"cannot be averaged, their {differing} differ"):
        Model(members)
