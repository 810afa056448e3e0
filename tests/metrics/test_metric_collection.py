"""Metrics of one's own: rows, means, undefined values and tables follow from eight lines."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from project.cli import main
from project.errors import UserError
from project.metrics.base import Metric
from project.metrics.segmentation import BoundaryF1
from project.tasks.segmentation import SegmentationTask
from project.tasks.translation import TranslationTask

CHANNEL = {"n": 9, "mean": 10.0, "std": 5.0, "min": 0.0, "max": 20.0, "dtype": "uint16"}
CHANNEL["percentiles"] = {"0.1": 0.0, "1": 1.0, "99": 19.0, "99.9": 20.0}
OWN = """
from project.metrics.base import Metric

class NRMSE(Metric):
    name, higher_is_better = "nrmse", False

    def __call__(self, prediction, batch):
        target = batch["target"].double()
        error = (prediction - target).square().mean((1, 2, 3)).sqrt()
        return error / (target.amax((1, 2, 3)) - target.amin((1, 2, 3)))
"""


class Largest(Metric):
    name, higher_is_better = "largest", True

    def __call__(self, prediction, batch):
        largest = prediction.double().amax((2, 3))
        return torch.where(largest > 0, largest, torch.nan)


def translation(channels=("a",), **options):
    statistics = {"image": [CHANNEL], "target": [CHANNEL] * len(channels)}
    return TranslationTask(nn.Identity(), statistics=statistics, channels={"target": list(channels)}, **options)


def test_a_value_per_part_has_a_column_a_mean_and_a_count_of_undefined_values():
    task = translation(("a", "b"), metrics=[Largest()])
    prediction = torch.tensor([[[[3.0]], [[-1.0]]], [[[5.0]], [[2.0]]]])
    batch = {"target": torch.rand(2, 2, 1, 1)}
    rows = {"loss": torch.zeros(2), **task.metrics.columns(prediction, batch)}
    metrics, undefined = task.metrics.aggregate(rows)
    assert rows["largest/a"].tolist() == [3, 5]
    assert (metrics["largest/a"], metrics["largest/b"], metrics["largest"]) == (4, 2, 3)
    assert undefined["largest"] == 1
    assert list(task.main_metrics)[:2] == ["mse", "largest"]  # where a table has room for it
    assert task.main_metrics["largest"] == "max"


def test_results_do_not_depend_on_the_batches():
    task, rng = translation(metrics=[Largest()]), torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(5, 1, 12, 12, generator=rng) for _ in range(2))
    results = []
    for order in ([[0, 1, 2, 3, 4]], [[3, 1], [0], [4, 2]]):
        for indices in order:
            batch = {"index": torch.tensor(indices), "target": target[indices]}
            task.metrics.update(prediction[indices], batch, torch.tensor(indices).double())
        results.append(task.metrics.compute("val"))
    first, second = results
    assert first.metrics == second.metrics
    assert first.index.tolist() == second.index.tolist() == [0, 1, 2, 3, 4]
    assert all(torch.equal(first.rows[name], second.rows[name]) for name in first.rows)


def test_rows_of_a_run_without_the_metric_can_still_be_aggregated():
    task, plain = translation(metrics=[Largest()]), translation()
    rows = {"loss": torch.zeros(2), **plain.metrics.columns(torch.rand(2, 1, 4, 4), {"target": torch.rand(2, 1, 4, 4)})}
    metrics, _ = task.metrics.aggregate(rows, skip_missing=True)
    assert "mse" in metrics
    assert "largest" not in metrics
    with pytest.raises(KeyError):
        task.metrics.aggregate(rows)


def test_a_metric_of_the_same_class_replaces_that_of_the_task():
    statistics = {"image": [CHANNEL], "mask": {"0": 3, "1": 1}}
    options = {"statistics": statistics, "classes": {"mask": ["a", "b"]}}
    task = SegmentationTask(nn.Identity(), metrics=[BoundaryF1(tolerance=5)], **options)
    assert task.metrics.settings == {"tolerance": 5}
    assert task.main_metrics == SegmentationTask(nn.Identity(), **options).main_metrics


def test_two_metrics_of_one_name_are_refused():
    class Other(Largest):
        name = "mse"

    with pytest.raises(UserError, match="'mse'"):
        translation(metrics=[Other()]).metrics  # noqa: B018


@pytest.mark.slow
def test_a_metric_of_ones_own_is_in_one_table_with_the_baselines(workplace, monkeypatch, capsys):
    Path("mymetrics.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(workplace))
    tiny = ["--logger", "none", "--data.crop", "32", "--data.batch_size", "4", "--trainer.limit_train_batches", "2"]
    tiny += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    assert main(["train", "unet_mse", *tiny, "--model.init_args.metrics", '["mymetrics.NRMSE"]']) == 0
    assert main(["train", "baseline_mean", "--logger", "none"]) == 0
    folder = Path("runs/unet_mse/latest")
    rows = list(csv.DictReader((folder / "samples/val.csv").read_text().splitlines()))
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert metrics["nrmse"] == pytest.approx(sum(float(row["nrmse"]) for row in rows) / len(rows))
    capsys.readouterr()
    assert main(["compare", "unet_mse", "--trust"]) == 0
    text = capsys.readouterr().out
    assert "baseline_mean" in text
    assert "nrmse" in text
