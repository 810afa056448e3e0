"""Report pages of runs: complete, in one file, and with the numbers of the run."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from project.cli import main
from project.data.store import SplitReader
from project.metrics.base import Metric
from project.pages.render import figure_uri
from project.results.figures import draw_curves
from project.results.page import choose_samples, write_run_page
from project.results.prediction_pass import run_prediction_pass
from project.results.run_results import read_results
from project.runs.run_folder import Run
from project.tasks.base import Task
from project.tasks.figures import draw_confusion, draw_titled
from project.training.history import read_history

DATASET = {
    "shape": (32, 32),
    "n": {"train": 4, "val": 7, "test": 3},
    "roles": ("image", "target", "mask", "instances"),
    "n_labels": 2,
}
NAMES = ("baseline_pixel", "baseline_otsu", "baseline_colour")


@pytest.fixture(scope="module")
def trained(workplace):
    """A baseline of each task."""
    for name in NAMES:
        assert main(["train", name, "--logger", "none"]) == 0
    return {name: Run(Path("runs", name, "latest").resolve().relative_to(Path.cwd())) for name in NAMES}


@pytest.fixture(scope="module")
def pages(trained):
    """The page of each; in the first, names could be taken for markup."""
    run = trained["baseline_pixel"]
    files = {path: path.read_text() for path in (run.metrics_file("val"), run.folder / "samples/val.csv")}
    for path, text in files.items():
        path.write_text(text.replace('"yeast"', '"<img src=x onerror=alert(1)>"').replace("val0", "<b>val0"))
    made = {NAMES[0]: write_run_page(run).read_text()}
    for path, text in files.items():
        path.write_text(text)
    return made | {name: write_run_page(trained[name]).read_text() for name in NAMES[1:]}


class GradeError(Metric):
    """Distance of classes that have an order."""

    name, higher_is_better = "grade_error", False

    def __call__(self, prediction, batch):
        """(B,), in classes."""
        return (prediction.argmax(1) - batch["label"]).abs().double()


class OrdinalTask(Task):
    """As the map describes a task of one's own: output k says whether the class is above k."""

    kind, target_kind, inputs, default_metrics = "ordinal", "label", ("image", "label"), (GradeError,)

    def __init__(self, net: nn.Module, loss: nn.Module, **options: Any) -> None:
        super().__init__(net, loss, **options)
        self.parts = self.classes["label"]

    @classmethod
    def network_channels(cls, data, options):
        """One output less than classes."""
        return data.n_channels["image"], len(data.classes["label"]) - 1

    def make_target(self, batch):
        """(B, K - 1) zeros and ones."""
        return (batch["label"][:, None] > torch.arange(len(self.parts) - 1, device=batch["label"].device)).float()

    def decode_output(self, output):
        """(B, K) probabilities."""
        above = output.sigmoid()
        return torch.cat([torch.ones_like(above[:, :1]), above], 1) - functional.pad(above, (0, 1))

    def draw(self, samples):
        """The images."""
        return draw_titled(samples, [sample["id"] for sample in samples])


@pytest.mark.slow
def test_a_task_of_ones_own_is_trained_tabulated_and_reported(trained, capsys):
    net = "{class_path: project.models.classifier.TimmClassifier, init_args: {name: test_resnet}}"
    words = ["--model.class_path", f"{__name__}.OrdinalTask", "--model.init_args.net", net, "--trainer.max_steps", "1"]
    words += ["--model.init_args.loss", "torch.nn.BCEWithLogitsLoss"]
    assert main(["train", "resnet_ce", "--logger", "none", "--unchecked", "--data.batch_size", "4", *words]) == 0
    assert main(["eval", "resnet_ce", "--trust"]) == 0
    assert "grade_error" in capsys.readouterr().out
    run = Run(Path("runs/resnet_ce/latest").resolve().relative_to(Path.cwd()))
    assert sections(write_run_page(run, trusted=True).read_text())


def sections(text):
    return re.findall(r'<section id="(\w+)">', text)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_all_sections_and_loads_nothing(pages, name):
    text, labels = pages[name], ["labels"] if name != "baseline_pixel" else []
    coverage = ["coverage"] if name != "baseline_otsu" else []
    parts = ["metrics", "comparison", "curves", "samples", *coverage, "calibration", *labels, "source"]
    assert sections(text) == parts
    assert not re.search(r"<script|(src|href)=\"(?!data:|#)", text)
    assert "Content-Security-Policy" in text


def test_names_are_no_markup(pages):
    text = pages["baseline_pixel"]
    assert not re.search("<b>val|<img src=x", text)
    assert "&lt;b&gt;val" in text
    assert "&lt;img src=x" in text


def test_samples_are_the_worst_and_the_best(trained, pages):
    with (trained["baseline_pixel"].folder / "samples/val.csv").open() as file:
        ids = [row["id"] for row in sorted(csv.DictReader(file), key=lambda row: -float(row["mse"]))]
    for name, expected in (("worst", ids[:2]), ("best", ids[-2:])):
        part = pages["baseline_pixel"].partition(f"<h3>{name}</h3>")[2].partition("</p>")[0]
        assert re.findall(r"val\d\d", part) == expected


@pytest.mark.parametrize("n", [1, 2, 4, 9, 13])
def test_no_sample_is_worst_and_best(n):
    results = SimpleNamespace(main_metrics={}, metrics={}, rows={"loss": torch.arange(n).double()})
    indices = [i for chosen in choose_samples(results).values() for i in chosen]
    assert indices[0] == n - 1
    assert len(indices) == len(set(indices)) == min(3 * max(n // 3, 1), 9, n)


def test_all_pixels_of_target_images_are_counted(trained):
    run = trained["baseline_pixel"]
    result = run_prediction_pass(run, "val", [2])
    reader = SplitReader("data/processed/yeast/val.h5")
    targets = np.stack([reader.read("target", i)[0] for i in range(7)]).astype(float)
    low, high = float(result.task.low), float(result.task.high)
    bins = np.clip(((targets - low) * (80 / (high - low))).astype(int), 0, 79)
    assert result.sums["joint"].shape == (1, 80, 80)
    assert (
        np.abs(result.sums["joint"][0].sum(1) - np.bincount(bins.ravel(), minlength=80)).sum() <= 8
    )  # rounding at edges
    assert list(result.samples) == [2]
    error = result.samples[2]["prediction"] - result.samples[2]["target"].astype(float)
    assert np.mean(error**2) == pytest.approx(read_results(run, "val").rows["mse"][2].item(), rel=1e-6)


def test_all_pixels_of_masks_are_counted(trained):
    result = run_prediction_pass(trained["baseline_otsu"], "val")
    rows = read_results(trained["baseline_otsu"], "val").rows
    assert result.sums["confusion"][1, 1] == rows["tp/bright"].sum().item()
    confidence, right, count = result.calibration()
    assert count.sum() == result.sums["confusion"].sum() == 7 * 32 * 32
    used = count > 0
    assert (right[used] * count[used]).sum() == pytest.approx(result.sums["confusion"].trace())
    assert ((confidence[used] > 0) & (confidence[used] <= 1)).all()
    assert sorted(result.agreement) == list(range(7))


def test_a_pass_over_the_test_split_is_recorded(trained, capsys):
    run = trained["baseline_pixel"]
    assert main(["report", str(run.folder), "--split", "test"]) == 2
    assert "not been evaluated on test" in capsys.readouterr().err
    assert not run.read_provenance().test_evaluations
    assert run_prediction_pass(run, "test").sums["joint"].sum() == 3 * 32 * 32
    assert len(run.read_provenance().test_evaluations) == 1


def test_curves(tmp_path):
    path = tmp_path / "history.csv"
    assert draw_curves(read_history(path), ["mse"], None) is None
    path.write_text("epoch,step,lr,train/loss,val/loss,val/mse\n0,2,0.1,1.0,2.0,\n1,4,0.05,0.5,,3.0\n")
    figure = draw_curves(read_history(path), ["mse", "r2"], 1)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "val/mse", "learning rate at the end of the epoch"]
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines[:2]}
    assert lines["train/loss"] == [1.0, 0.5]
    assert figure_uri(figure).startswith("data:image/webp;base64,")


@pytest.mark.parametrize(
    "rows", ["epoch;train/loss\n0;0,1\n", "epoch,train/loss\n0,much\n1\n", "epoch,train/loss\n0,0,1\n"]
)
def test_a_history_that_was_changed_elsewhere_does_not_stop_the_report(tmp_path, rows):
    (tmp_path / "history.csv").write_text(rows)
    draw_curves(read_history(tmp_path / "history.csv"), ["mse"], None)


def test_numbers_in_figures():
    curve = np.array([0.6, 0.9]), np.array([0.5, 0.9]), np.array([1, 3])
    matrix, reliability = draw_confusion(np.array([[3, 1], [0, 0]]), ["a", "b"], curve, "pixels").axes
    assert "ece 0.025" in reliability.get_title()
    assert [text.get_text() for text in matrix.texts] == ["0.75", "0.25", "0", "0"]
    assert len(draw_confusion(None, ["a", "b"], curve).axes) == 1
