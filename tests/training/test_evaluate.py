"""An evaluation writes the results of a run only where they are those of its own configuration on the whole split."""

import csv
import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import yaml

from project.cli import main
from project.data.store import SplitReader
from project.files import write_json
from project.runs.run_folder import Run
from project.training.evaluate import RecordTestEvaluation, changing_overrides

DATASET = {"shape": (32, 32), "n": {"train": 4, "val": 5, "test": 3}}


@pytest.fixture(scope="module")
def fitted(workplace):
    """A baseline that is fitted on a tiny dataset."""
    assert main(["train", "baseline_pixel", "--logger", "none"]) == 0
    return Run(Path("runs/baseline_pixel/latest").resolve().relative_to(Path.cwd()))


@pytest.fixture
def foreign(fitted, tmp_path):
    """A copy of the run that lies elsewhere."""
    return Run(shutil.copytree(fitted.folder, tmp_path / "elsewhere/baseline_pixel/x"))


def change_trainer(run, **keys):
    config = yaml.safe_load(run.config.read_text())
    config["trainer"] |= keys
    run.config.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(("command", "file"), [("eval", "metrics.json"), ("report", "report.html")])
def test_a_full_disk_gives_one_line_and_leaves_the_files_of_before(fitted, monkeypatch, capsys, command, file):
    assert main([command, str(fitted.folder)]) == 0
    path = fitted.folder / file
    before = path.read_bytes()
    write = Path.write_text

    def cut_off(path, text, *arguments, **options):
        if file not in path.name:
            return write(path, text, *arguments, **options)
        write(path, text[:10], *arguments, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", cut_off)
    capsys.readouterr()
    assert main([command, str(fitted.folder)]) == 2
    line, *_ = capsys.readouterr().err.strip().splitlines()  # below it is this test, as code of the user
    assert path.name in line
    assert os.strerror(errno.ENOSPC) in line
    assert path.read_bytes() == before
    assert not list(Path("runs").rglob("*.partial*"))


def n_test_evaluations(run):
    return len(run.read("provenance.json").get("test_evaluations", []))


@pytest.mark.parametrize("override", ["--trainer.limit_val_batches=1", "--model.init_args.size_divisor=64"])
def test_results_with_overrides_are_kept_separately(fitted, override, capsys):
    files = [fitted.metrics_file("val"), fitted.folder / "samples/val.csv", fitted.folder / "pictures/val.png"]
    before = [path.read_bytes() for path in files]
    shutil.rmtree(fitted.folder / "evaluations", ignore_errors=True)
    assert main(["eval", str(fitted.folder), override, "--data.eval_batch_size", "2"]) == 0
    assert [path.read_bytes() for path in files] == before
    (results,) = map(Run, (fitted.folder / "evaluations").iterdir())
    content = results.read("metrics.json")
    assert content["n_samples"] == (2 if "limit" in override else 5)
    assert content["run"]["overrides"] == [override[2:]]
    assert len((results.folder / "samples/val.csv").read_text().splitlines()) == content["n_samples"] + 1
    assert str(results.metrics_file("val")) in "".join(capsys.readouterr().out.split("\n"))


def test_overrides_that_change_nothing_measured():
    words = ["--data.num_workers", "0", "--data.eval_batch_size=3", "--trainer.devices", "2"]
    assert changing_overrides(words) == []
    assert changing_overrides([*words, "--a.b", "1", "--c=3", "--d"]) == ["a.b=1", "c=3", "d"]


def test_limits_of_the_training_do_not_shorten_an_evaluation(fitted):
    before = fitted.config.read_text()
    content = fitted.read("metrics.json")
    try:
        change_trainer(fitted, limit_val_batches=1, fast_dev_run=1)
        assert main(["eval", str(fitted.folder)]) == 0
    finally:
        fitted.config.write_text(before)
    assert fitted.read("metrics.json")["n_samples"] == content["n_samples"] == 5


def test_intervals_are_calibrated_on_validation_and_measured_on_test(fitted, capsys, caplog):
    assert main(["eval", str(fitted.folder)]) == 0
    content = fitted.read("metrics.json")
    calibration = content["calibration"]
    assert (calibration["n_images"], calibration["n_groups"]) == (5, 5)
    assert main(["eval", str(fitted.folder), "--split", "test", "--predictions"]) == 0
    assert "calibrated on 5 validation images" in " ".join(capsys.readouterr().out.split())
    with (fitted.folder / "samples/test.csv").open() as file:
        rows = list(csv.DictReader(file))
    targets = SplitReader("data/processed/yeast/test.h5")
    for i, row in enumerate(rows):
        predicted = tifffile.imread(fitted.folder / f"predictions/test/{row['id']}.tif").squeeze()
        half = np.interp(predicted, calibration["values"][0], calibration["half_widths"][0])
        covered = np.abs(predicted - targets.read("target", i)[0].astype(float)) <= half
        assert float(row["interval_coverage"]) == pytest.approx(covered.mean(), abs=0.05)  # of sampled pixels
        assert float(row["interval_width"]) == pytest.approx(2 * half.mean(), rel=0.05)
    mean = np.mean([float(row["interval_coverage"]) for row in rows])
    assert fitted.read("metrics.test.json")["metrics"]["interval_coverage"] == pytest.approx(mean)
    # A run of before has no calibration.
    write_json(fitted.metrics_file("val"), content | {"calibration": None})
    assert main(["eval", str(fitted.folder), "--split", "test"]) == 0
    assert f"project eval {fitted.folder}" in caplog.text
    assert "interval_coverage" not in fitted.read("metrics.test.json")["metrics"]
    assert main(["eval", str(fitted.folder)]) == 0
    assert fitted.read("metrics.json") == content


def test_a_test_evaluation_that_fails_counts(fitted, monkeypatch):
    before = n_test_evaluations(fitted)
    assert main(["eval", str(fitted.folder), "--split", "test"]) == 0
    assert n_test_evaluations(fitted) == before + 1

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("project.training.results_writer.ResultsWriter.on_test_end", fail)
    with pytest.raises(OSError, match="disk is full"):
        main(["eval", str(fitted.folder), "--split", "test"])
    assert n_test_evaluations(fitted) == before + 2
    assert main(["eval", str(fitted.folder), "--split", "test", "--data.root", "nowhere"]) == 2  # nothing was read
    assert n_test_evaluations(fitted) == before + 2


def test_devices_and_processes_count_each_test_evaluation_once(tmp_path):
    run = Run(tmp_path)
    record = RecordTestEvaluation(run)

    def evaluate(_):
        for first in (True, False):  # of two devices
            for batch in range(2):
                record.on_test_batch_start(SimpleNamespace(is_global_zero=first), None, None, batch)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(evaluate, range(8)))
    assert n_test_evaluations(run) == 8


def test_the_trainer_of_a_run_from_elsewhere_writes_and_deletes_nothing(foreign, tmp_path):
    target = tmp_path / "logs/lightning_logs/version_0"
    target.mkdir(parents=True)
    (target / "metrics.csv").write_text("mine")
    logger = {"save_dir": str(tmp_path / "logs"), "name": "lightning_logs", "version": 0}
    profiler = {"dirpath": str(tmp_path / "logs"), "filename": "profile"}
    change_trainer(
        foreign,
        logger=[{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger}],
        profiler={"class_path": "lightning.pytorch.profilers.SimpleProfiler", "init_args": profiler},
    )
    assert main(["eval", str(foreign.folder)]) == 0
    assert [path.name for path in (tmp_path / "logs").rglob("*") if path.is_file()] == ["metrics.csv"]
    assert (target / "metrics.csv").read_text() == "mine"


def test_other_data_under_the_same_name_is_refused(fitted, write_tiny, capsys):
    write_tiny(Path("other/yeast"), shape=(32, 32), seed=1)
    assert main(["eval", str(fitted.folder), "--data.root", "other"]) == 2
    assert "prepared again with other content" in capsys.readouterr().err


def test_no_baseline_at_all_is_no_success(fitted, monkeypatch, capsys):
    monkeypatch.setattr("project.prerequisites.config_names", lambda folder: ["baseline_pixel"])
    assert main(["baselines", "yeast"]) == 0
    path = Path("configs/experiments/baseline_pixel.yaml")
    text = path.read_text()
    try:
        path.write_text(text + "nonsense: 1\n")
        assert main(["baselines", "yeast"]) == 1
    finally:
        path.write_text(text)
    assert json.dumps(Path("data/processed/yeast").name) in capsys.readouterr().err
