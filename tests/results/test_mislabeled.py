"""Wrong labels are found by runs over folds that were not trained on them."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from project.cli import main
from project.results.compare import compare, out_of_sample
from project.results.mislabeled import find_suspects
from project.results.prediction_pass import agreement
from project.runs.find_runs import runs_of

# Of the 24 images, alternately dark and bright, these lie in the other folder.
WRONG = ("p03", "p10")


@pytest.fixture(scope="module")
def folds(module_workplace):
    """A dataset with three folds, and a run on each."""
    rng = np.random.default_rng(0)
    for i in range(24):
        bright, name = i % 2 == 1, f"p{i:02d}"
        path = Path("raw", "bright" if bright != (name in WRONG) else "dark", f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 100, (16, 16, 3), np.uint8) + np.uint8(100 * bright)).save(path)
    split = {"folds": 3, "stratify": True, "fractions": {"test": 0.0}}
    content = {"raw": "raw", "image": {"rgb": "{label}/{id}.png"}, "split": split, "near_duplicates": "warn"}
    Path("configs/data/cells.yaml").write_text(yaml.safe_dump(content))
    assert main(["data", "cells"]) == 0
    for name in ("baseline_colour", "baseline_majority"):
        for fold in range(3):
            words = ["--data.dataset", "cells", f"--data.fold={fold}", "--logger", "none"]
            assert main(["train", name, *words]) == 0


def test_wrong_labels_are_at_the_top(folds):
    run = runs_of("baseline_colour")[-1]
    suspects, n_runs = find_suspects(run)
    assert n_runs == 3
    assert len({suspect.id for suspect in suspects}) == 24
    assert {suspect.id.rpartition("/")[2] for suspect in suspects[:2]} == set(WRONG)
    first = suspects[0]
    assert (first.given, first.suggested) in (("dark", "bright"), ("bright", "dark"))
    assert first.confidence < first.confidence_suggested
    assert [s.confidence for s in suspects] == sorted(s.confidence for s in suspects)
    assert [len(fold) for fold in out_of_sample(run)] == [1, 1, 1]


def test_one_run_alone_has_its_fold_only(folds):
    run, *others = runs_of("baseline_colour")
    hidden = [other.folder.rename(f"hidden-{other.folder.name}") for other in others]
    try:
        suspects, n_runs = find_suspects(run)
    finally:
        for path, other in zip(hidden, others, strict=True):
            path.rename(other.folder)
    assert (n_runs, len(suspects), {suspect.fold for suspect in suspects}) == (1, 8, {0})


def test_the_page_shows_the_first_and_the_table_has_all(folds, capsys):
    assert main(["report", "baseline_colour"]) == 0
    run = runs_of("baseline_colour")[-1]
    text = (run.folder / "report.html").read_text()
    part = text.partition('<section id="labels">')[2].partition("</section>")[0]
    assert "least likely according to 3 runs over 3 folds trained without them" in part
    assert part.count("<img") == 6
    with (run.folder / "samples/val.suspects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, 25)]
    assert {row["id"].rpartition("/")[2] for row in rows[:2]} == set(WRONG)


def test_runs_are_compared_over_all_folds(folds):
    own, over = compare(runs_of("baseline_colour")[-1])
    assert over.over_folds
    assert "3 folds" in over.title
    entry = over.entries[0]
    accuracies = [run.read("metrics.json")["metrics"]["accuracy"] for run in runs_of("baseline_colour")]
    assert entry.values["accuracy"] == pytest.approx(np.mean(accuracies))
    assert entry.spread("accuracy") == pytest.approx(np.std(accuracies, ddof=1))
    assert entry.interval("accuracy") is None
    assert len(own.entries) == len(over.entries) == 2


def test_a_missing_fold_is_noted(folds):
    last = runs_of("baseline_majority")[-1].folder
    kept = last.rename("hidden")
    try:
        own, over = compare(runs_of("baseline_colour")[0])
    finally:
        kept.rename(last)
    assert [entry.name for entry in over.entries] == ["baseline_colour"]
    assert any("not run on the same folds: baseline_majority" in note for note in over.notes)
    assert len(own.entries) == 2


def test_agreement_with_a_mask():
    label = torch.tensor([0] * 90 + [1] * 10)
    sure = torch.nn.functional.one_hot(label, 2).double() * 0.9 + 0.05
    assert agreement(sure, label, 0) == pytest.approx(0.95)
    assert agreement(sure, torch.zeros(100, dtype=torch.int64), 0) == pytest.approx(0.05)  # the object is missing
    assert agreement(sure[:90], label[:90], 0) == 1.0  # nothing there, and nothing seen
    half = label.clone()
    half[95:] = 0
    assert agreement(sure, half, 0) == pytest.approx(0.5)
    assert agreement(sure, half, 1) == pytest.approx((90 * 0.95 + 5 * 0.05) / 95)  # class 1 is background
    assert agreement(sure, half, None) == pytest.approx((95 * 0.95 + 5 * 0.05) / 100)
