"""Regression of numbers per image: its metrics, its baselines, and every command on tiny data."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import nn

from project.baselines.colors import ColorRegression
from project.baselines.means import TrainingMean
from project.cli import main
from project.data.store import SplitReader
from project.errors import UserError
from project.runs.run_folder import Run
from project.tasks.regression import RegressionTask

DATASET = {"shape": (48, 48), "n_values": 1}
CHANNEL = {"n": 9, "mean": 10.0, "std": 5.0, "min": 0.0, "max": 20.0, "dtype": "uint16"}
VALUES = [{"mean": 7.0, "std": 2.0, "min": 1.0, "max": 11.0}, {"mean": 0.5, "std": 0.0, "min": 0.5, "max": 0.5}]
TINY = [
    *("--logger", "none", "--data.batch_size", "4", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
    *("--model.init_args.net.init_args.depth", "2", "--trainer.limit_train_batches", "2"),
]


def small_task(names=("cells", "dose"), net=None):
    statistics = {"image": [CHANNEL], "value": VALUES[: len(names)]}
    return RegressionTask(net or nn.Identity(), statistics=statistics, channels={"value": list(names)})


def test_metrics_are_those_of_scikit_learn():
    task, rng = small_task(), torch.Generator().manual_seed(0)
    true, predicted = (torch.randn(9, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    rows = task.metrics.columns(predicted, {"value": true})
    metrics, undefined = task.metrics.aggregate({"loss": torch.zeros(9), **rows})
    for k, name in enumerate(("cells", "dose")):
        t, p = true[:, k].numpy(), predicted[:, k].numpy()
        expected = {"mae": mean_absolute_error(t, p), "rmse": root_mean_squared_error(t, p), "r2": r2_score(t, p)}
        for metric, value in {**expected, "pearson": pearsonr(t, p)[0]}.items():
            assert metrics[f"{metric}/{name}"] == pytest.approx(value, rel=1e-12)
    assert metrics["mae"] == pytest.approx((metrics["mae/cells"] + metrics["mae/dose"]) / 2)
    assert undefined == {}


def test_a_perfect_output_is_decoded_to_the_values():
    task, values = small_task(), torch.tensor([[3.0, 0.5], [9.0, 0.5]])
    target = task.make_target({"value": values})
    assert torch.equal(target, torch.tensor([[-2.0, 0.0], [1.0, 0.0]]))
    assert torch.equal(task.decode_output(target), values)
    assert task.describe_target(target[0]) == "cells 3, dose 0.5"
    assert task.prediction_row(values[0].numpy(), {}, np.array([0.1, 0.2])) == {
        **{"cells": 3.0, "dose": 0.5},
        **{"spread/cells": pytest.approx(0.1), "spread/dose": pytest.approx(0.2)},
    }


def test_mistakes_of_a_user_are_named():
    with pytest.raises(UserError, match="2 are needed: cells, dose"):
        small_task().decode_output(torch.zeros(3, 1))
    with pytest.raises(UserError, match="no numbers per image"):
        RegressionTask(nn.Identity(), statistics={"image": [CHANNEL]})


def test_baselines():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, 8, 8, generator=rng)
    y = 3 * x.mean((2, 3))[:, :1] - 1
    mean, colors = TrainingMean(), ColorRegression()
    for baseline in (mean, colors):
        baseline.fit([(x[:5], y[:5]), (x[5:], y[5:])])
    torch.testing.assert_close(mean(x[:2]), y.mean(0).expand(2, 1))
    torch.testing.assert_close(colors(x), y, atol=1e-5, rtol=1e-5)
    fresh = ColorRegression()
    fresh.load_state_dict(colors.state_dict())
    assert torch.equal(fresh(x), colors(x))


@pytest.mark.slow
def test_every_command_works_for_numbers_per_image(workplace, capsys):
    assert main(["train", "resnet_count", *TINY]) == 0
    assert main(["baselines", "yeast"]) == 0
    run = Run(Path("runs/resnet_count/latest").resolve())
    metrics = run.read("metrics.json")
    assert {"mae", "rmse", "loss"} <= metrics["metrics"].keys()
    rows = list(csv.DictReader((run.folder / "samples/val.csv").read_text().splitlines()))
    errors = [abs(float(row["predicted"]) - float(row["true"])) for row in rows]
    assert metrics["metrics"]["mae"] == pytest.approx(np.mean(errors))
    assert (run.folder / "pictures/val_summary.png").is_file()
    assert main(["eval", "resnet_count", "--split", "test"]) == 0
    assert main(["report", "resnet_count"]) == 0
    assert main(["compare", "resnet_count"]) == 0
    table = csv.DictReader(Path("runs/tables/yeast_regression_val.csv").read_text().splitlines())
    names = {"resnet_count", "baseline_value_mean", "baseline_value_colour"}
    assert {row["experiment"] for row in table} == names
    assert main(["check", "resnet_count", *TINY[2:]]) in (0, 1)
    assert "numbers" not in capsys.readouterr().err
    reader = SplitReader("data/processed/yeast/val.h5")
    Path("images").mkdir()
    tifffile.imwrite("images/one.tif", reader.read("image", 0)[0])
    assert main(["predict", "resnet_count", "images", "predicted"]) == 0
    (row,) = csv.DictReader(Path("predicted/predictions.csv").read_text().splitlines())
    assert float(row["value0"]) == pytest.approx(float(rows[0]["predicted"]), rel=1e-4)
    ((half,),) = metrics["calibration"]["half_widths"]
    assert [float(row[f"{end}/value0"]) for end in ("low", "high")] == pytest.approx(
        [float(row["value0"]) + sign * half for sign in (-1, 1)]
    )
    assert half == pytest.approx(max(errors))  # five images are too few for 90 %
