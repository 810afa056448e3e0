"""Only what was measured on the same samples stands in one table; folds have a table of their own."""

import csv
import io
import math

import pytest
from rich.console import Console

from project.errors import UserError
from project.experiment.run import Run, write_json
from project.experiment.table import comparable, over_folds, print_table, print_tables


@pytest.fixture
def ran(tmp_path):
    """Makes a run folder with metrics; each is newer than the one before."""
    made = []

    def make(experiment, split="val", fold=None, data="d", metrics=None, task="translation", **facts):
        folder = tmp_path / "runs" / experiment / f"2026-01-01_00-00-{len(made):02d}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("{}")
        part = data if fold is None or split == "test" else f"{data}-fold-{fold}"
        run = {"experiment": experiment, "dataset": "cells", "task": task, "leading": {"mse": "min", "r": "max"}}
        run |= {"fold": fold, "all_folds_hash": data, "data_hash": part, "parameters": 7, **facts}
        content = {"metrics": metrics or {}, "n_samples": 4, "undefined": {}, "epoch": 0, "split": split, "run": run}
        made.append(Run(folder))
        write_json(made[-1].metrics_file(split), content)
        return made[-1]

    return make


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def rows(root, name):
    return list(csv.DictReader((root / "tables" / f"{name}.csv").read_text().splitlines()))


def printed(run, split, root):
    console = Console(file=io.StringIO(), width=120)
    print_table(run, split, root, console)
    return " ".join(console.file.getvalue().split())  # titles are wrapped


def test_one_row_for_the_newest_run_of_each_experiment_best_first(ran, root):
    ran("a", metrics={"mse": 1.0})
    newest = ran("a", metrics={"mse": 3.0})
    ran("b", metrics={"mse": 2.0})
    ran("other", metrics={"mse": 0.0}, data="e")
    ran("other", metrics={"mse": 0.0}, task="segmentation")
    found = comparable(newest, "val", root)
    assert [(c["run"]["experiment"], c["metrics"]["mse"]) for c in found] == [("b", 2.0), ("a", 3.0)]


def test_a_run_that_was_not_evaluated(ran, root):
    with pytest.raises(UserError, match="SPLIT=test"):
        comparable(ran("a"), "test", root)
    with pytest.raises(UserError, match="evaluated on test yet"):
        print_tables("test", root)


@pytest.mark.parametrize("split", ["val", "test"])
def test_folds_do_not_share_a_table(ran, root, split):
    """On test neither, where the images are the same: the training data are not."""
    ran("c", split, 0, metrics={"mse": 0.1})
    for fold, mse in ((0, 1.0), (1, 2.0)):
        run = ran("a", split, fold, metrics={"mse": mse})
        ran("b", split, fold, metrics={"mse": 5 * mse})
    found = comparable(run, split, root)
    assert [(c["run"]["experiment"], c["metrics"]["mse"]) for c in found] == [("a", 2.0), ("b", 10.0)]
    text = printed(run, split, root)
    assert f"cells, translation, {split} split, fold 1, 4 images" in text
    assert "make baselines DATASET=cells FOLD=1" in text
    assert [row["mse"] for row in rows(root, f"cells_translation_{split}_fold1")] == ["2", "10"]
    assert not (root / f"tables/cells_translation_{split}.csv").exists()


def test_mean_and_deviation_over_folds(ran, root):
    for fold, mse, r in ((2, 6.0, 0.6), (0, 1.0, 0.5), (1, 2.0, 0.7)):
        ran("a", fold=fold, metrics={"mse": mse, "r": r})
        # The correlation is not defined on each of the folds.
        ran("b", fold=fold, metrics={"mse": 1.0} | ({"r": 0.9} if fold else {}))
    last = ran("a", fold=1, metrics={"mse": 5.0, "r": 0.7})  # the newest of its fold
    ran("a", fold=0, data="another preparation", metrics={"mse": 99.0, "r": 0.0})
    ran("a", fold=2, task="segmentation", metrics={"mse": 99.0, "r": 0.0})
    text = printed(last, "val", root)
    assert "mean ± standard deviation over folds" in text
    assert "Not all stand for the same folds" not in text
    first, second = rows(root, "cells_translation_val_folds")
    assert first == {"experiment": "b", "folds": "0, 1, 2", "mse": "1 ± 0", "r": "-"}
    deviation = math.sqrt((3**2 + 1**2 + 2**2) / 2)  # of 1, 5 and 6, around 4
    assert second == {"experiment": "a", "folds": "0, 1, 2", "mse": f"4 ± {deviation:.2g}", "r": "0.6 ± 0.1"}


def test_folds_that_are_missing_are_told(ran, root):
    run = ran("a", fold=0, metrics={"mse": 1.0})
    assert over_folds(run, "val", root) == []
    assert "over folds" not in printed(run, "val", root)
    ran("a", fold=3, metrics={"mse": 3.0})
    ran("b", fold=3, metrics={"mse": 7.0}, oracle=True)
    assert "Not all stand for the same folds" in printed(run, "val", root)
    assert [(row["experiment"], row["folds"], row["mse"]) for row in rows(root, "cells_translation_val_folds")] == [
        ("a", "0, 3", "2 ± 1.4"),
        ("b (oracle)", "3", "7"),
    ]


def test_data_without_folds_has_no_table_over_them(ran, root):
    run = ran("a", metrics={"mse": 1.0})
    ran("a", metrics={"mse": 2.0})
    assert "fold" not in printed(run, "val", root).replace(str(root), "")
    assert [path.name for path in sorted((root / "tables").iterdir())] == [
        "cells_translation_val.csv",
        "cells_translation_val.md",
    ]


def test_all_tables_have_each_fold_and_one_over_them(ran, root, capsys):
    for fold in range(3):
        ran("a", fold=fold, metrics={"mse": float(fold)})
    ran("a", metrics={"mse": 9.0}, data="undivided")
    print_tables("val", root)
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("val split, fold") == 3
    assert text.count("val split, 4 images") == 1
    assert text.count("standard deviation over folds") == 1
