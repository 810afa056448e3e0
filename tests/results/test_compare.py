"""Runs of one split side by side: intervals, seeds, reference, and what may not be compared."""

import csv
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml

from project.cli import main
from project.errors import UserError
from project.results.compare import compare, compare_two
from project.results.run_results import metrics_from_rows, read_results
from project.results.statistics import seed_interval
from project.results.tables import format_table
from project.runs.find_runs import runs_of
from project.runs.run_folder import Run
from project.training.evaluate import rebuilt

pytestmark = pytest.mark.slow  # trains runs
ROOT = Path(__file__).parents[2]
DATASET = {"shape": (32, 32), "n": {"train": 4, "val": 6, "test": 3}}
SHORT = (
    *("--logger", "none", "--unchecked", "--data.crop", "32", "--data.batch_size", "4", "--trainer.max_steps", "1"),
    *("--model.init_args.net.init_args.width", "2", "--trainer.accelerator", "cpu"),
)


@pytest.fixture(scope="module")
def trained(workplace):
    """Three baselines, and a network with the seeds 0 and 1."""
    for name in ("baseline_mean", "baseline_pixel", "baseline_image_mean"):
        assert main(["train", name, "--logger", "none"]) == 0
    for seed in ("0", "1"):
        assert main(["train", "unet_mse", "--seed_everything", seed, *SHORT]) == 0
    return {
        name.parent.name: Run(Path("runs", name.parent.name, "latest").resolve().relative_to(Path.cwd()))
        for name in Path("runs").glob("*/latest")
    }


@pytest.fixture
def restored(trained):
    """The runs as they were, whatever a test does to them."""
    kept = shutil.copytree("runs", "kept", symlinks=True)
    yield trained
    shutil.rmtree("runs")
    Path(kept).rename("runs")


def entries(comparison):
    return {entry.name: entry for entry in comparison.entries}


def test_the_reference_is_the_best_baseline_that_is_no_oracle(trained):
    (found,) = compare(trained["unet_mse"])
    assert found.entries[-1].name == "baseline_image_mean"  # the oracle, last
    scores = {
        name: trained[name].read("metrics.json")["metrics"]["mse"] for name in ("baseline_mean", "baseline_pixel")
    }
    assert found.reference.name == min(scores, key=scores.get)
    (found,) = compare(trained["unet_mse"], reference="unet_mse")
    difference = entries(found)["baseline_mean"].differences["mse"]
    assert difference.value == pytest.approx(scores["baseline_mean"] - found.reference.values["mse"])
    assert difference.ends[0] <= difference.value <= difference.ends[1]
    assert 2**-5 <= difference.p <= difference.p_holm <= 1  # six images
    assert found.reference.differences == {}
    with pytest.raises(UserError, match='Did you mean "baseline_mean"'):
        compare(trained["unet_mse"], reference="baseline_men")


def test_the_command_prints_and_writes_the_table(trained, capsys):
    assert main(["compare", "--dataset", "yeast"]) == 0
    text = capsys.readouterr().out
    assert "95 % intervals by bootstrap over 6 images" in text
    path = Path("runs/tables/yeast_translation_val.csv")
    rows = {row["experiment"]: row for row in csv.DictReader(path.read_text().splitlines())}
    assert rows["unet_mse"]["seeds"] == "0 1"
    assert float(rows["unet_mse"]["mse_low"]) < float(rows["unet_mse"]["mse"]) < float(rows["unet_mse"]["mse_high"])
    markdown = path.with_suffix(".md").read_text()
    assert markdown.count("\n|") == len(rows) + 2
    assert "reference" in markdown
    assert main(["compare", "--dataset", "yaest"]) == 2
    assert "unet_mse on yeast" in capsys.readouterr().err


def test_two_runs_side_by_side(trained, capsys):
    assert main(["compare", "unet_mse", "--other", "baseline_pixel"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "model.init_args.net.class_path: project.models.unet.UNet in unet_mse" in text
    assert "PixelRegression" in text
    runs = runs_of("unet_mse")
    found = compare_two(runs[0], runs[1])
    values = [run.read("metrics.json")["metrics"]["r2"] for run in runs]
    assert found.entries[0].differences["r2"].value == pytest.approx(values[0] - values[1])


def change(run, **what):
    path = run.metrics_file("val")
    content = json.loads(path.read_text())
    content["run"] |= what
    path.write_text(json.dumps(content))


def test_runs_on_other_data_are_refused(restored, capsys):
    change(restored["baseline_mean"], data_hash="another", all_folds_hash="another")
    assert main(["compare", "unet_mse", "--other", "baseline_mean"]) == 2
    text = capsys.readouterr().err
    assert "cannot be compared on val" in text
    assert "the images: " in text
    assert "another in baseline_mean" in text
    with pytest.raises(UserError, match="the images"):
        compare(restored["unet_mse"], reference="baseline_mean")
    (found,) = compare(restored["unet_mse"])
    assert "baseline_mean" not in entries(found)
    assert any("prepared again" in note and "baseline_mean" in note for note in found.notes)
    assert main(["compare", "unet_mse", "--other", "baseline_pixel", "--split", "test"]) == 2
    assert "not been evaluated on test" in capsys.readouterr().err


def test_rows_of_another_evaluation_are_refused(restored):
    path = restored["baseline_pixel"].folder / "samples/val.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    with pytest.raises(UserError, match="does not belong"):
        compare(restored["baseline_pixel"])
    path.write_text("\n".join([*lines[:-1], lines[1]]) + "\n")
    with pytest.raises(UserError, match=r"is not that of val\.csv"):
        compare(restored["baseline_pixel"])
    path.unlink()
    (found,) = compare(restored["unet_mse"])
    assert "baseline_pixel" not in entries(found)
    assert any(note.startswith("Left out") and "val.csv" in note for note in found.notes)
    with pytest.raises(UserError, match="is missing"):
        compare(restored["unet_mse"], reference="baseline_pixel")


def test_trials_and_unfinished_runs_are_left_out(restored):
    restored["baseline_mean"].update_provenance(study="s")
    restored["baseline_pixel"].update_provenance(status="started")
    (found,) = compare(restored["unet_mse"])
    assert entries(found).keys() == {"unet_mse", "baseline_image_mean"}
    assert found.reference is None
    assert any("No baselines yet" in note for note in found.notes)
    (found,) = compare(restored["baseline_mean"])  # unless it is asked for
    assert "baseline_mean" in entries(found)


def test_baselines_that_are_not_in_the_table_are_evaluated_or_fitted(restored, capsys):
    run = restored["unet_mse"]
    assert main(["eval", str(run.folder), "--split", "test"]) == 0
    (found,) = compare(run, "test")
    (note,) = [note for note in found.notes if "No baseline" in note]
    for name in ("baseline_mean", "baseline_pixel"):
        assert f"`make eval RUN={restored[name].folder} SPLIT=test`" in note
    assert "image_mean" not in note
    change(run, task="pretraining")  # which has no baselines
    (found,) = compare(run)
    assert not any("No baseline" in note for note in found.notes)


def test_the_metric_that_all_trainings_monitor_decides(restored):
    runs = runs_of("unet_mse")
    (found,) = compare(runs[-1])
    assert found.metrics[0] == found.monitored == "mse"
    for run in runs:
        run.config.write_text(
            run.config.read_text().replace("monitor: val/mse", "monitor: val/ssim").replace("mode: min", "mode: max")
        )
    (found,) = compare(runs[-1])
    scores = [entry.values["ssim"] for entry in found.entries[:-1]]
    assert scores == sorted(scores, reverse=True)
    assert format_table(found).columns[1:3] == ["ssim ↑ (monitored)", "ssim: difference"]
    config = yaml.safe_load(runs[0].config.read_text())
    config["optimizer"]["init_args"]["lr"], config["checkpoint"]["monitor"] = 0.5, "val/psnr"
    runs[0].config.write_text(yaml.safe_dump(config))
    (found,) = compare(runs[-1])
    assert format_table(found).columns[1] == "mse ↓"


def test_an_older_configuration_is_a_separate_line(restored):
    run = runs_of("unet_mse")[0]
    config = yaml.safe_load(run.config.read_text())
    config["optimizer"]["init_args"]["lr"] = 0.5
    run.config.write_text(yaml.safe_dump(config))
    (found,) = compare(restored["unet_mse"])
    assert {"unet_mse", "unet_mse (lr 0.5)"} <= entries(found).keys()
    (found,) = compare(restored["unet_mse"], every=False)
    assert "unet_mse (lr 0.5)" not in entries(found)
    (note,) = [note for note in found.notes if "older configurations" in note]
    assert run.name in note


def test_test_evaluations_are_counted(restored):
    restored["baseline_mean"].update_provenance(test_evaluations=[{"time": "a"}, {"time": "b"}])
    (found,) = compare(restored["unet_mse"])
    assert "Test evaluations on this data and task: 2." in found.notes


def rewrite_rows(run, function):
    """Change the table of samples, as a list of rows with the header first."""
    path = run.folder / "samples/val.csv"
    rows = function(list(csv.reader(path.read_text().splitlines())))
    path.write_text("".join(",".join(row) + "\n" for row in rows))


def test_only_equal_images_are_compared(restored):
    partial = restored["baseline_mean"]
    rewrite_rows(partial, lambda rows: rows[:3])
    content = partial.read("metrics.json")
    partial.metrics_file("val").write_text(json.dumps(content | {"n_samples": 2}))
    with rebuilt(partial) as built:
        metrics = metrics_from_rows(built.model)(read_results(partial, "val").rows)
    partial.metrics_file("val").write_text(json.dumps(content | {"n_samples": 2, "metrics": metrics}))
    (found,) = compare(restored["unet_mse"])
    assert "baseline_mean" not in entries(found)
    assert f"Left out, measured on other images of the split: {partial.name}." in found.notes
    with pytest.raises(UserError, match=r"the images: 6 in unet_mse.*, 2 in baseline_mean.*, 2 in both"):
        compare_two(restored["unet_mse"], partial)
    # As many, but others.
    rewrite_rows(restored["baseline_pixel"], lambda rows: [*rows[:-1], ["another", *rows[-1][1:]]])
    (found,) = compare(restored["unet_mse"])
    assert entries(found).keys() == {"unet_mse", "baseline_image_mean"}


@pytest.mark.parametrize("content", [b'{"run": 3, "metrics": 4}', b"\xff\x00\xfe"])
def test_a_damaged_file_is_named_and_hides_no_other_run(restored, content, capsys):
    files = ("baseline_mean", "metrics.json"), ("unet_mse", "metrics.json"), ("baseline_image_mean", "provenance.json")
    paths = [restored[experiment].folder / name for experiment, name in files]
    for path in paths:
        path.write_bytes(content)
    for words in (["compare", "--dataset", "yeast"], ["compare"]):
        assert main(words) == 0, words
        text = "".join(capsys.readouterr().out.split())
        assert "baseline_pixel" in text
        assert all(f'{path}"isdamaged' in text for path in paths)


@pytest.mark.parametrize("state", ["no results yet", "between two files", "complete"])
def test_a_running_training_hides_no_other_run(restored, state, capsys):
    running = Run(Path(shutil.copytree(restored["unet_mse"].folder, "runs/unet_mse/zzz")))
    running.update_provenance(status="started", started="2100-01-01T00:00:00+00:00", seed=9)
    if state == "no results yet":
        running.metrics_file("val").unlink()
    elif state == "between two files":
        rewrite_rows(running, lambda rows: [rows[0], *([*row[:2], *["9"] * len(row[2:])] for row in rows[1:])])
    for words in (["compare"], ["compare", "unet_mse"]):
        assert main(words) == 0, words
        assert "baseline_mean" in capsys.readouterr().out
    rows = csv.DictReader(Path("runs/tables/yeast_translation_val.csv").read_text().splitlines())
    assert "unet_mse/zzz" not in " ".join(row["runs"] for row in rows)
    if state == "complete":  # it was asked for
        assert main(["compare", "runs/unet_mse/zzz"]) == 0
        assert "baseline_mean" in capsys.readouterr().out


def test_a_resumed_training_with_other_settings_is_no_further_seed(restored):
    first, second = runs_of("unet_mse")
    config = yaml.safe_load(first.config.read_text())
    config["optimizer"]["init_args"]["lr"] = 0.5
    (first.folder / "config.resume-1.yaml").write_text(yaml.safe_dump(config))
    (found,) = compare(second)
    assert entries(found)["unet_mse"].runs[0].run == second
    assert [run.run for run in entries(found)["unet_mse (lr 0.5)"].runs] == [first]
    # Nor is it one that was begun with these settings.
    second.config.write_text(yaml.safe_dump(config | {"seed_everything": 1}))
    (found,) = compare(second)
    assert [len(entry.runs) for entry in found.entries if entry.name.startswith("unet_mse")] == [1, 1]


def test_one_group_of_images_has_no_interval(restored):
    for run in [*restored.values(), *runs_of("unet_mse")]:
        rewrite_rows(run, lambda rows: [row if i == 0 else [row[0], "one", *row[2:]] for i, row in enumerate(rows)])
    (found,) = compare(restored["unet_mse"])
    assert len(found.entries) == 4
    assert "6 images in 1 group" in found.title
    for entry in found.entries:
        assert entry.interval("mse") is None
        assert all(d.ends is None and d.p is None for d in entry.differences.values())
    assert any("no intervals and no p" in note for note in found.notes)


def test_seeds_are_one_line_with_their_mean_and_spread(restored):
    (found,) = compare(restored["unet_mse"])
    two, runs = entries(found)["unet_mse"], runs_of("unet_mse")
    values = [run.read("metrics.json")["metrics"]["mse"] for run in runs]
    assert two.values["mse"] == pytest.approx(statistics.fmean(values))
    assert two.spread("mse") == pytest.approx(statistics.stdev(values))
    with rebuilt(runs[0]) as built:
        aggregate = metrics_from_rows(built.model)
    resampled = [read_results(run, "val").replicates(aggregate)["mse"] for run in runs]
    assert two.replicates["mse"] == pytest.approx(np.mean(resampled, axis=0))
    effect = two.seeds["mse"]
    assert (effect.dof, effect.variance) == (1, pytest.approx(np.var(values, ddof=1) / 2))
    assert two.interval("mse") == seed_interval(two.values["mse"], two.replicates["mse"], 6, [effect])[0]
    assert any("which intervals and p include" in note and "unet_mse (2 seeds)" in note for note in found.notes)
    pixel = entries(found)["baseline_pixel"]
    assert pixel.spread("mse") is None
    for name in ("mse", "r2_pooled", "pearson_pooled", "ssim"):
        low, high = pixel.interval(name)
        assert low <= pixel.values[name] <= high
        assert low < high
    shutil.rmtree(runs[0].folder)
    (found,) = compare(restored["unet_mse"])
    assert "One seed: about these trained weights, not about the method: unet_mse." in found.notes
