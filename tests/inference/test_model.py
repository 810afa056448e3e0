"""Predicting from raw images: the numbers of the evaluation, whatever the size, and files that can be trusted."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter

from project import load
from project.cli import main
from project.data.store import SplitReader
from project.errors import UserError
from project.inference import inputs
from project.inference.folder import Settings, predict_folder
from project.runs.run_folder import Run

pytestmark = pytest.mark.slow  # trains runs
ROOT = Path(__file__).parents[2]
N, SHAPE = 14, (40, 45)
WORDS = ["--data.dataset=mine", "--data.batch_size=4", "--trainer.max_epochs=1", "--logger=none", "--unchecked"]
WORDS += ["--trainer.accelerator=cpu", "--data.num_workers=0", "--trainer.num_sanity_val_steps=0"]
NET = ["--model.init_args.net.init_args.width=4", "--model.init_args.net.init_args.depth=1", "--data.crop=32"]
TIMM = (
    "{class_path: project.models.classifier.TimmClassifier, init_args: {name: test_resnet, in_channels: 1, classes: 2}}"
)


def write_raw(folder):
    """Images of two days, with a target twice as bright, objects and labels."""
    rng, rows = np.random.default_rng(0), ["id,state"]
    for i in range(N):
        blobs = gaussian_filter(rng.random(SHAPE), 2)
        blobs = (blobs - blobs.min()) / np.ptp(blobs)
        image = (9000 + 3000 * blobs).astype(np.uint16)
        day = folder / ("monday" if i % 2 else "tuesday")
        arrays = {"phase": image, "gfp": image * 2 + 500, "cells": (blobs > 0.6).astype(np.uint8)}
        for name, array in arrays.items():
            (day / name).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(day / name / f"{i:02d}.tif", array)
        rows.append(f"{day.name}/{i:02d},{'dark' if i % 3 else 'bright'}")
    (folder / "table.csv").write_text("\n".join(rows))


def write_second_run(first, second):
    """The same run with slightly other weights, as from another seed."""
    shutil.copytree(first, second)
    path = second / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["net.head.weight"] *= 1.1
    torch.save(checkpoint, path)


@pytest.fixture(scope="module")
def place(workplace):
    """A working folder with raw images, their prepared data, and a run of each task."""
    write_raw(workplace / "raw")
    config = {
        "raw": "raw",
        "image": {"phase": "{day}/phase/{id}.tif"},
        "target": {"gfp": "{day}/gfp/{id}.tif"},
        "instances": "{day}/cells/{id}.tif",
        "table": {"path": "table.csv", "label": "state"},
        "split": {"fractions": {"train": 0.6, "val": 0.4}},
        "near_duplicates": "ignore",
    }
    Path("configs/data/mine.yaml").write_text(yaml.safe_dump(config))
    assert main(["data", "mine"]) == 0
    fast = ["--trainer.max_epochs=3", "--optimizer.init_args.lr=0.03", "--data.crops_per_image=6"]
    assert main(["train", "unet_mse", *WORDS, *NET, *fast]) == 0
    write_second_run(Path("runs/unet_mse/latest").resolve(), Path("runs/unet_mse/2000-01-01_00-00-00"))
    assert main(["train", "unet_depth", *WORDS, *NET, *fast]) == 0
    assert main(["train", "resnet_ce", *WORDS, "--data.crop=32", "--model.init_args.net", TIMM]) == 0
    return workplace


@pytest.fixture(scope="module")
def translation(place):
    return load("unet_mse")


@pytest.fixture(scope="module")
def segmentation(place):
    return load("unet_depth")


def raw_of(id_):
    day, name = id_.split("/")
    return tifffile.imread(f"raw/{day}/phase/{name}.tif")


def large(shape=(211, 150), seed=1):
    """A raw image larger than those of the training."""
    blobs = gaussian_filter(np.random.default_rng(seed).random(shape), 3)
    return (9000 + 3000 * (blobs - blobs.min()) / np.ptp(blobs)).astype(np.uint16)


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def predicted(model, source, output, **settings):
    """The outcomes of a folder."""
    return predict_folder(model, Path(source), output, Settings(**settings))


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", ["unet_mse", "unet_depth", "resnet_ce"])
def test_predictions_from_raw_images_give_the_metrics_of_the_run(place, experiment):
    model, reader = load(experiment), SplitReader("data/processed/mine/val.h5")
    task, rows = model.task, []
    for i, id_ in enumerate(reader.ids):
        values = model.estimate(raw_of(id_)).values
        batch = {role: torch.from_numpy(reader.read(role, i)[None]) for role in ("target", "mask", "instances")}
        batch["label"] = torch.from_numpy(reader.labels[i : i + 1])
        rows.append({"loss": torch.zeros(1), **task.metrics.columns(torch.from_numpy(values)[None], batch)})
    metrics, _ = task.metrics.aggregate({name: torch.cat([row[name].double() for row in rows]) for name in rows[0]})
    expected = Run(Path("runs", experiment, "latest")).read("metrics.json")["metrics"]
    del metrics["loss"]
    assert len(metrics) > 4
    assert metrics == pytest.approx({name: expected[name] for name in metrics}, rel=1e-6)


def test_a_prediction_looks_like_the_target(place, translation):
    image = raw_of("monday/01")
    values, predicted = translation.estimate(image).values, translation.predict(image)
    assert values.shape == (1, *SHAPE)
    assert predicted.dtype == np.uint16
    assert predicted.shape == SHAPE
    np.testing.assert_array_equal(predicted, np.rint(values[0]).astype(np.uint16))
    assert translation.predict(image[None]).shape == (1, *SHAPE)
    np.testing.assert_array_equal(translation.predict(image.astype(">u2")), predicted)
    rounded = translation.task.prediction_files(np.array([-3.2, 254.6, 70_000.0]), rounded=True)[""]
    np.testing.assert_array_equal(rounded, np.array([0, 255, 65_535], np.uint16))


def test_loading_leaves_random_numbers_alone_and_needs_no_data(place):
    hidden = Path("data/hidden")
    Path("data/processed").rename(hidden)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    try:
        assert load(Path("runs/unet_mse/latest")).predict(large()).shape == (211, 150)
    finally:
        hidden.rename("data/processed")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), "uint8.*uint16"),
        (np.zeros((2, 8, 8), np.uint16), "2 channel.*phase"),
        (np.zeros((1, 1, 8, 8), np.uint16), r"\(C, H, W\)"),
    ],
)
def test_images_of_another_kind_are_refused(translation, image, message):
    with pytest.raises(UserError, match=message):
        translation.predict(image)


# Tiles, symmetries, several runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (64, 65), (211, 150)])
def test_tiles_give_what_the_whole_image_gives(translation, monkeypatch, shape):
    image = large(shape) if min(shape) > 1 else np.full(shape, 10000, np.uint16)
    whole, tiles = translation.estimate(image).values, translation.estimate(image, tile=64).values
    # The network sees less than three eighths of the overlap of 32 pixels.
    assert np.abs(tiles - whole).max() < 1e-4 * 3000
    monkeypatch.setattr("project.inference.model.LARGE", 200)
    monkeypatch.setattr("project.inference.model.TILE", 64)
    np.testing.assert_array_equal(translation.estimate(image).values, tiles if max(shape) > 200 else whole)
    monkeypatch.setattr("project.inference.model.instance_norms", lambda net: [net])  # tiles would be slow
    np.testing.assert_array_equal(translation.estimate(image).values, whole)


@pytest.mark.parametrize("method", ["image_mean_std", "image_percentile"])
def test_normalization_by_image_takes_the_whole_image_and_not_the_tile(translation, monkeypatch, method):
    model, image = translation, large()
    image[:, :70] //= 2  # half of the image is darker
    monkeypatch.setattr(model.task.normalize_input, "method", method)
    whole, tiles = model.estimate(image).values, model.estimate(image, tile=64).values
    assert np.abs(tiles - whole).max() < 1e-4 * np.ptp(whole)


def test_too_little_memory_is_reported_with_a_smaller_tile(translation, monkeypatch):
    def fail(x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(translation.task, "apply_net", fail)
    with pytest.raises(UserError, match="for 128 x 128 pixels; take a smaller --tile, such as 64"):
        translation.estimate(large((280, 270)), tile=128)


def test_the_mean_over_symmetries_turns_with_the_image(translation):
    image = large((37, 52))
    plain, mean = (translation.estimate(image, tta=on).values for on in (False, True))
    assert np.abs(mean - plain).max() > 1
    for turned in (lambda x: np.rot90(x, 1, (-2, -1)), lambda x: x[..., ::-1]):  # which generate all symmetries
        other = translation.estimate(turned(image), tta=True).values
        np.testing.assert_allclose(other, turned(mean), rtol=1e-5)


def test_several_runs_give_their_mean_and_how_far_they_differ(place):
    runs = [str(path.parent) for path in sorted(Path("runs/unet_mse").glob("2*/config.yaml"))]
    assert len(runs) == 2
    image = large((40, 50))
    each = np.stack([load(run).estimate(image).values for run in runs])
    both = load(runs).estimate(image)
    np.testing.assert_allclose(both.values, each.mean(0), rtol=1e-6)
    np.testing.assert_allclose(both.spread, each.std(0, ddof=1), rtol=1e-3, atol=1e-3)
    assert both.spread.max() > 1
    with pytest.raises(UserError, match="cannot be averaged"):
        load([runs[0], "unet_depth"])


# Intervals and sets ---------------------------------------------------------------------------------------------------


def test_intervals_are_returned_and_written(place, translation, tmp_path, capsys):
    image = raw_of("monday/01")
    low, high = translation.interval(image)
    values = translation.estimate(image).values
    half = translation.calibration.half_width(values)
    np.testing.assert_array_equal(low, np.floor((values - half).astype(np.float32))[0].astype(np.uint16))
    np.testing.assert_array_equal(high, np.ceil((values + half).astype(np.float32))[0].astype(np.uint16))
    command = ["predict", "unet_mse", "raw/monday/phase/01.tif"]
    assert main([*command, str(tmp_path / "out"), "--intervals"]) == 0
    for name, expected in (("low", low), ("high", high)):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"out/01_{name}.tif").squeeze(), expected)
    with pytest.warns(UserWarning, match="unlike the training images"):
        translation.interval(large() + np.uint16(20_000))
    assert main([*command, str(tmp_path / "other"), "--intervals", "--tta"]) == 2
    assert "without test-time augmentation" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    runs = [str(path.parent) for path in sorted(Path("runs/unet_mse").glob("2*/config.yaml"))]
    with pytest.raises(UserError, match="calibrated for one run"):
        load(runs).interval(image)


def test_sets_of_classes_are_returned_and_written(place, segmentation, tmp_path, capsys):
    model, run = load("resnet_ce"), Run(Path("runs/resnet_ce/latest").resolve())
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/bright.tif", raw_of("monday/01") + np.uint16(20_000))
    shutil.copy("raw/monday/phase/01.tif", tmp_path / "in/usual.tif")
    assert main(["predict", "resnet_ce", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    bright, usual = table(tmp_path / "out/predictions.csv")
    assert usual["set"].split(";") == model.prediction_set(raw_of("monday/01"))
    assert usual["predicted"] in usual["set"].split(";")
    assert (usual["remark"], bright["remark"].partition(":")[0]) == ("", "unlike the training images")
    for other in (model.interval, segmentation.interval, segmentation.prediction_set):
        with pytest.raises(UserError, match="sets for images of one class"):
            other(raw_of("monday/01"))
    before = run.metrics_file("val").read_text()
    try:
        for name, text in {
            "old": json.dumps(json.loads(before) | {"calibration": None}),
            "damaged": before[:99],
        }.items():
            run.metrics_file("val").write_text(text)
            assert main(["predict", "resnet_ce", str(tmp_path / "in"), str(tmp_path / name)]) == 0
            assert "run `project eval" in capsys.readouterr().out
            assert "set" not in table(tmp_path / name / "predictions.csv")[0]
    finally:
        run.metrics_file("val").write_text(before)


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_folder_is_predicted_by_the_patterns_of_the_dataset(place, translation, tmp_path, capsys):
    assert main(["predict", "unet_mse", "raw", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert f"{N} images predicted, 0 were there already" in text
    assert "files fit no pattern and are not read" in text
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.tif"))
    assert written == sorted(f"{'monday' if i % 2 else 'tuesday'}/{i:02d}.tif" for i in range(N))
    path = tmp_path / "out/monday/03.tif"
    np.testing.assert_array_equal(tifffile.imread(path).squeeze(), translation.predict(raw_of("monday/03")))
    with tifffile.TiffFile(path) as file:
        about = file.shaped_metadata[0]
    assert about["channels"] == ["gfp"]
    assert about["runs"] == [translation.members[0].origin]


def test_a_folder_is_continued_and_finished_images_are_left(translation, tmp_path):
    shutil.copytree("raw/monday/phase", tmp_path / "in")

    def continue_folder():
        outcomes = predicted(translation, tmp_path / "in", tmp_path / "out")
        assert not outcomes.failed
        return outcomes.predicted, outcomes.before

    assert continue_folder() == (N // 2, 0)
    files = sorted((tmp_path / "out").glob("*.tif"))
    times = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    tifffile.imwrite(tmp_path / "in" / files[1].name, large(SHAPE))
    with (tmp_path / "out/images.jsonl").open("a") as file:
        file.write('{"id": "cut o')  # the process was killed here
    assert continue_folder() == (2, N // 2 - 2)
    assert files[0].is_file()
    assert [path for path in files[1:] if path.stat().st_mtime_ns != times[path]] == [files[1]]
    assert continue_folder() == (0, N // 2)


def test_results_of_other_settings_or_runs_do_not_share_a_folder(translation, segmentation, tmp_path):
    source, out = "raw/monday/phase/01.tif", tmp_path / "out"
    predicted(translation, source, out)
    for model, settings in ((translation, {"tta": True}), (translation, {"tile": 64}), (segmentation, {})):
        with pytest.raises(UserError, match="holds other predictions"):
            predicted(model, "raw/monday/phase", out, **settings)
    assert [path.name for path in out.glob("*.tif")] == ["01.tif"]


def test_a_broken_or_unlike_image_is_reported_and_stops_nothing_else(place, tmp_path, capsys):
    folder = tmp_path / "in"
    shutil.copytree("raw/monday/phase", folder)
    tifffile.imwrite(folder / "bright.tif", large() + np.uint16(20_000))
    (folder / "cut.tif").write_bytes((folder / "01.tif").read_bytes()[:-400])
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "color.png")
    (folder / "notes.txt").write_text("not an image")
    assert main(["predict", "unet_mse", str(folder), str(tmp_path / "out")]) == 1
    text = capsys.readouterr().out
    assert "2 could not be predicted" in text
    assert '1 file fits no pattern and is not read (1 .txt), such as "notes.txt"' in text
    assert "cut.tif: the file is cut off" in text
    assert "3 channel(s) of uint8" in text
    assert "bright: phase from 29000 to 32000, in training 9" in text
    assert len(list((tmp_path / "out").glob("*.tif"))) == N // 2 + 1
    assert main(["predict", "unet_mse", str(folder), str(tmp_path / "out")]) == 1  # nothing is left to predict
    again = capsys.readouterr().out
    assert text.partition("2 could not")[2] == again.partition("2 could not")[2]


def test_files_are_read_as_by_the_preparation_with_its_notes(translation, tmp_path):
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/white.tif", 65535 - large((20, 30)), photometric="miniswhite")
    tifffile.imwrite(tmp_path / "in/black.tif", large((20, 30)), extratags=[(274, "H", 1, 6, True)])
    report = predicted(translation, tmp_path / "in", tmp_path / "out")
    assert [id_ for id_, _ in report.notes] == ["black", "white"]
    assert "note: black: the image is kept as stored" in report.describe(tmp_path / "out")
    np.testing.assert_array_equal(*[tifffile.imread(tmp_path / f"out/{name}.tif") for name in ("black", "white")])


def test_output_folders_that_hold_something_else_are_refused(translation, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    for source, output, message in (
        ("raw", tmp_path / "mine", "not empty"),
        (tmp_path, tmp_path / "out", "is in"),
        (tmp_path / "mine", tmp_path / "out", "no image"),
    ):
        with pytest.raises(UserError, match=message):
            predicted(translation, source, output)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_classes_and_objects_of_pixels_are_written_with_a_table(place, segmentation, tmp_path):
    assert main(["predict", "unet_depth", "raw/monday/phase", str(tmp_path / "out")]) == 0
    rows = table(tmp_path / "out/predictions.csv")
    assert len(rows) == N // 2
    assert any(int(row["objects"]) for row in rows)
    for row in rows:
        image = tifffile.imread(f"raw/monday/phase/{row['id']}.tif")
        classes = tifffile.imread(tmp_path / f"out/{row['id']}.tif")
        np.testing.assert_array_equal(classes, segmentation.predict(image))
        objects = tifffile.imread(tmp_path / f"out/{row['id']}_objects.tif")
        np.testing.assert_array_equal(objects, segmentation.objects(image))
        assert int(row["objects"]) == objects.max()
        assert int(row["pixels/object"]) == (classes == 1).sum()


def test_classes_of_images_are_a_table(place, tmp_path):
    assert main(["predict", "resnet_ce", "raw", str(tmp_path / "out")]) == 0
    found = {row["id"]: row for row in table(tmp_path / "out/predictions.csv")}
    assert len(found) == N
    for row in table(Path("runs/resnet_ce/latest/samples/val.csv")):
        own = found[row["id"]]
        assert float(own["p/dark"]) == pytest.approx(float(row["p/dark"]), abs=1e-6)
        assert own["predicted"] == max(("bright", "dark"), key=lambda name: float(own[f"p/{name}"]))


def test_several_runs_write_a_map_of_their_spread(place, tmp_path):
    runs = [str(path.parent) for path in sorted(Path("runs/unet_mse").glob("2*/config.yaml"))]
    assert main(["predict", *runs, "raw/monday/phase/01.tif", str(tmp_path / "out"), "--tta", "--tile", "32"]) == 0
    spread = tifffile.imread(tmp_path / "out/01_spread.tif")
    expected = load(runs).estimate(raw_of("monday/01"), tile=32, tta=True)
    np.testing.assert_allclose(spread.squeeze(), expected.spread[0], rtol=1e-6)
    assert spread.dtype == np.float32


def test_patterns_of_several_files_must_fit(translation, tmp_path, monkeypatch):
    model = translation
    config = yaml.safe_load(Path("configs/data/mine.yaml").read_text())
    config["image"] = {"phase": "{id}_p.tif", "dna": "{id}_d.tif"}
    monkeypatch.setattr(inputs, "SplitReader", lambda path: (_ for _ in ()).throw(UserError("of another version")))
    monkeypatch.setattr(inputs, "CONFIGS", tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"_p\.tif"):
        inputs.find_inputs(Path("raw/monday/phase"), model)
    (tmp_path / "in").mkdir()
    for name in ("a_p", "a_d", "b_p"):
        tifffile.imwrite(tmp_path / f"in/{name}.tif", large((20, 20)))
    found = inputs.find_inputs(tmp_path / "in", model)
    assert [sample.id for sample in found.samples] == ["a"]
    assert [which for which, _ in found.problems] == ["b"]
    with pytest.raises(UserError, match="2 channel"):
        found.read(found.samples[0])


# A task of one's own --------------------------------------------------------------------------------------------------

PLAIN = """
from typing import Any

from torch import nn

from project.tasks.translation import TranslationTask


class Plain(TranslationTask):
    def __init__(self, net: nn.Module, statistics: dict[str, Any], optimizer: Any = None, lr_scheduler: Any = None):
        super().__init__(net, nn.MSELoss(), statistics=statistics, optimizer=optimizer, lr_scheduler=lr_scheduler)
"""


@pytest.mark.slow
def test_a_task_that_takes_few_facts_of_the_data_is_loaded(place, monkeypatch):
    monkeypatch.syspath_prepend(place)
    Path("plain.py").write_text(PLAIN)
    content = {"model": {"class_path": "plain.Plain", "init_args": {"net": {"class_path": "project.models.unet.UNet"}}}}
    Path("configs/experiments/plain.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", "plain", *WORDS, *NET]) == 0
    assert load("plain", trust=True).predict(large()).shape == (211, 150)
