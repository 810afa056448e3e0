"""Pages of runs and of comparisons: complete, in one file, and with the numbers of the run."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from project.cli import main
from project.data.store import SplitReader
from project.results.figures import draw_curves, draw_matrix, draw_reliability, mask_uri, read_history, uri
from project.results.page import _chosen, write_run
from project.results.prediction_pass import calibration, look
from project.results.run_results import read_results
from project.runs.run_folder import Run

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
    """The page of each; names in the first are such as could be taken for markup."""
    run = trained["baseline_pixel"]
    files = {path: path.read_text() for path in (run.metrics_file("val"), run.folder / "samples/val.csv")}
    for path, text in files.items():
        path.write_text(text.replace('"yeast"', '"<img src=x onerror=alert(1)>"').replace("val0", "<b>val0"))
    made = {NAMES[0]: write_run(run).read_text()}
    for path, text in files.items():
        path.write_text(text)
    return made | {name: write_run(trained[name]).read_text() for name in NAMES[1:]}


def sections(text):
    return re.findall(r'<section id="(\w+)">', text)


@pytest.mark.parametrize(
    ("name", "more"), [("baseline_pixel", []), ("baseline_otsu", ["labels"]), ("baseline_colour", ["labels"])]
)
def test_a_page_has_everything_and_needs_nothing(pages, name, more):
    text = pages[name]
    expected = ["metrics", "comparison", "curves", "samples", "calibration", *more, "source"]
    assert sections(text) == expected
    assert "<script" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "Content-Security-Policy" in text
    assert text.count("<h3>worst</h3>") == text.count("<h3>best</h3>") == 1


def test_samples_are_the_worst_and_the_best(trained, pages):
    with (trained["baseline_pixel"].folder / "samples/val.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: -float(row["mse"]))
    part = pages["baseline_pixel"].partition("<h3>worst</h3>")[2]
    assert re.findall(r"val\d\d", part.partition("</p>")[0]) == [row["id"] for row in rows[:2]]
    best = part.partition("<h3>best</h3>")[2]
    assert re.findall(r"val\d\d", best.partition("</p>")[0]) == [row["id"] for row in rows[-2:]]


@pytest.mark.parametrize("n", range(1, 14))
def test_no_sample_is_worst_and_best(n):
    own = SimpleNamespace(main_metrics={}, metrics={}, rows={"loss": torch.arange(n).double()})
    places = [place for _, chosen in _chosen(own) for place in chosen]
    assert len(places) == len(set(places)) > 0
    assert places[0] == n - 1
    assert len(places) == min(3 * max(n // 3, 1), 9, n)


def test_all_pixels_are_counted(trained):
    seen = look(trained["baseline_pixel"], "val", [2])
    assert seen.joint.shape == (1, 80, 80)
    assert seen.joint.sum() == 7 * 32 * 32
    reader = SplitReader("data/processed/yeast/val.h5")
    targets = np.stack([reader.read("target", i)[0] for i in range(7)]).astype(float)
    low, high = float(seen.task.low), float(seen.task.high)
    bins = np.clip(((targets - low) * (80 / (high - low))).astype(int), 0, 79)
    assert np.abs(seen.joint[0].sum(1) - np.bincount(bins.ravel(), minlength=80)).sum() <= 8  # rounding at edges
    assert seen.samples.keys() == {2}
    sample = seen.samples[2]
    row = read_results(trained["baseline_pixel"], "val").rows
    assert np.mean((sample["prediction"] - sample["target"].astype(float)) ** 2) == pytest.approx(
        row["mse"][2].item(), rel=1e-6
    )


def test_masks_are_counted_and_believed_or_not(trained):
    seen = look(trained["baseline_otsu"], "val")
    own = read_results(trained["baseline_otsu"], "val")
    tp = own.rows["tp/bright"].sum().item()
    assert seen.confusion[1, 1] == tp
    assert seen.confusion.sum() == 7 * 32 * 32
    confidence, right, count = calibration(seen)
    assert count.sum() == 7 * 32 * 32
    used = count > 0
    total = (right[used] * count[used]).sum()
    assert total == pytest.approx(seen.confusion.trace())
    assert ((confidence[used] > 0) & (confidence[used] <= 1)).all()
    assert all(0 <= value <= 1 for value in seen.agreement.values())
    assert len(seen.agreement) == 7


def test_a_report_on_test_is_a_look(trained, capsys):
    run = trained["baseline_pixel"]
    assert main(["report", str(run.folder), "--split", "test"]) == 2
    assert "not been evaluated on test" in capsys.readouterr().err
    assert "test_evaluations" not in run.read("provenance.json")
    assert look(run, "test").joint.sum() == 3 * 32 * 32
    assert len(run.read("provenance.json")["test_evaluations"]) == 1


def test_after_a_test_evaluation_the_page_shows_the_test_split_too(trained):
    run = trained["baseline_otsu"]
    assert main(["eval", str(run.folder), "--split", "test"]) == 0
    n = len(run.read("provenance.json")["test_evaluations"])
    text = write_run(run).read_text()
    assert sections(text)[:4] == ["metrics", "comparison", "test", "curves"]
    part = text.partition('<section id="test">')[2].partition("</section>")[0]
    assert "segmentation, test split, 3 images" in part
    assert f"{run.read('metrics.test.json')['metrics']['dice']:.4g}" in part
    assert len(run.read("provenance.json")["test_evaluations"]) == n  # no further one
    assert main(["report", "--dataset", "yeast"]) == 0
    page = Path("runs/tables/yeast_val.html").read_text()
    assert "segmentation, val split, 7 images" in page
    assert "segmentation, test split, 3 images" in page
    run.metrics_file("test").unlink()


def test_page_of_all_runs_on_a_dataset(trained, capsys):
    assert main(["report", "--dataset", "yeast"]) == 0
    path = Path(capsys.readouterr().out.split()[-1])
    text = path.read_text()
    assert path == Path("runs/tables/yeast_val.html")
    assert sections(text)[0] == "table0"
    assert all(name in text for name in NAMES)
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)


def test_names_are_no_markup(pages):
    """What stands in a run folder is text, whoever wrote it."""
    text = pages["baseline_pixel"]
    assert "<b>val" not in text
    assert "<img src=x" not in text
    assert "&lt;b&gt;val" in text
    assert "&lt;img src=x" in text


def test_curves(tmp_path):
    path = tmp_path / "history.csv"
    assert read_history(path) == {}
    assert draw_curves({}, ["mse"], None) is None
    path.write_text("epoch,step,lr,train/loss,val/loss,val/mse\n0,2,0.1,1.0,2.0,\n1,4,0.05,0.5,,3.0\n")
    history = read_history(path)
    assert np.isnan(history["val/mse"][0])
    figure = draw_curves(history, ["mse", "r2"], 1)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "val/mse", "learning rate at the end of the epoch"]
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines[:2]}
    assert lines["train/loss"] == [1.0, 0.5]
    assert uri(figure).startswith("data:image/webp;base64,")


def test_calibration_error_of_a_figure():
    figure = draw_reliability(np.array([0.6, 0.9]), np.array([0.5, 0.9]), np.array([1, 3]), "pixels")
    assert "ece 0.025" in figure.axes[0].get_title()
    matrix = draw_matrix(np.array([[3, 1], [0, 0]]), ["a", "b"], "pixels")
    assert [text.get_text() for text in matrix.axes[0].texts] == ["0.75", "0.25", "0", "0"]
    assert mask_uri(np.array([[0, 1], [2, 255]]), 3).startswith("data:image/webp")
