"""Every experiment through the real entry point, on tiny data."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import torchvision
import yaml
from scipy.stats import pearsonr
from shipped_configs import CONFIGS

from project.cli import main, run_command
from project.data.store import SplitReader
from project.errors import UserError
from project.formatting import format_number
from project.runs.find_runs import all_runs
from project.runs.run_folder import Run
from project.training.lightning_cli import ExperimentCLI, temporary_experiment

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(
    p.stem for p in (CONFIGS / "experiments").glob("*.yaml") if "probe" not in p.stem
)  # see test_probe.py
ROLES = ("image", "target", "mask", "instances")
BASELINES = [name for name in EXPERIMENTS if name.startswith("baseline_")]
# One of each task in `make test`; all of them in `make test-all`.
CHOSEN = (
    "unet_mse",
    "unet_dice",
    "resnet_finetune",
    "unet_masked",
    "baseline_mean",
    "baseline_otsu",
    "baseline_colour",
)
ALL = [name if name in CHOSEN else pytest.param(name, marks=pytest.mark.nightly) for name in EXPERIMENTS]
DATASET = {"shape": (64, 72), "roles": ROLES, "n_labels": 3, "n_values": 1}


def short(name: str) -> list[str]:
    """Arguments that make an experiment tiny: two steps on crops of 32 pixels."""
    if name.startswith("baseline_"):
        return ["--model.init_args.net.init_args.n_trees", "3"] if "trees" in name else []
    return [
        *("--data.crop", "32", "--data.batch_size", "4", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"),
        *("--trainer.limit_train_batches", "2", "--trainer.precision", "32-true"),
    ]


@pytest.fixture(scope="module")
def trained(workplace):
    """Experiment -> its run; each is trained once for all tests."""
    done: dict[str, Run] = {}

    def train(name: str) -> Run:
        if name not in done:
            if name in (starts := {"resnet_finetune": "unet_dice", "unet_dice_from_masked": "unet_masked"}):
                train(starts[name])  # whose weights it starts from
            assert main(["train", name, "--logger", "none", "--data.dataset", "yeast", *short(name)]) == 0
            done[name] = Run(Path("runs", name, "latest").resolve())
        return done[name]

    return train


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_experiment_trains_and_writes_its_run_folder(trained, name):
    run = trained(name)
    content = json.loads(run.metrics_file("val").read_text(), parse_constant=pytest.fail)
    facts = run.read("provenance.json")
    assert content["n_samples"] == 5
    leading = facts["leading"]
    assert content["metrics"].keys() & leading.keys(), "nothing for the table"
    assert all(np.isfinite(value) for value in content["metrics"].values())
    assert content["split"] == "val"
    assert facts["status"] == "finished"
    assert facts["data_hash"]["val"] == content["run"]["data_hash"]
    assert (run.folder / "pictures/val.png").stat().st_size > 10_000
    assert len(list(csv.DictReader((run.folder / "samples/val.csv").read_text().splitlines()))) == 5
    assert yaml.safe_load(run.config.read_text())["data"]["dataset"] == "yeast"
    assert "run folder" in (run.folder / "log.txt").read_text()
    card = (run.folder / "card.md").read_text()
    assert all(
        f"| {name} | {format_number(content['metrics'][name])} |" in card
        for name in leading
        if name in content["metrics"]
    )
    checkpoint = torch.load(run.checkpoints / "best.ckpt", weights_only=True)
    assert checkpoint["data"]["statistics"]["target"][0]["n"] > 0
    assert "hyper_parameters" not in checkpoint  # they would override the command line
    if name not in BASELINES:
        assert facts["parameters"] > 1000
        assert [row["step"] for row in csv.DictReader((run.folder / "history.csv").read_text().splitlines())] == ["2"]


def test_a_function_that_declares_what_it_returns_can_be_named_as_a_class(workplace):
    content = yaml.safe_load((CONFIGS / "experiments/resnet_ce.yaml").read_text())
    net = ["--model.init_args.net.class_path", "torchvision.models.resnet18"]
    with temporary_experiment("resnet_ce", content, [*short("resnet_ce"), *net]) as built:
        assert isinstance(built.model.net, torchvision.models.ResNet)
    options = {"init_args": {"model_name": "resnet18"}, "dict_kwargs": {"in_chans": 1, "num_classes": 3}}
    net = ["--model.init_args.net", json.dumps({"class_path": "timm.create_model", **options})]
    with temporary_experiment("resnet_ce", content, [*short("resnet_ce"), *net]) as built:
        assert tuple(built.model.net(torch.zeros(1, 1, 64, 64)).shape) == (1, 3)


def test_metrics_follow_from_saved_predictions(trained):
    run = trained("unet_mse")
    before = run.read("metrics.json")["metrics"]
    assert main(["eval", str(run.folder), "--predictions"]) == 0
    after = run.read("metrics.json")["metrics"]
    assert after == pytest.approx(before, rel=1e-6)
    reader = SplitReader("data/processed/yeast/val.h5")
    predictions = [
        np.atleast_3d(tifffile.imread(run.folder / "predictions/val" / f"{i.replace('/', '_')}.tif")).squeeze()
        for i in reader.ids
    ]
    targets = [reader.read("target", i)[0].astype(float) for i in range(len(reader))]
    errors = [p.astype(float) - t for p, t in zip(predictions, targets, strict=True)]
    assert after["mse"] == pytest.approx(np.mean([np.mean(e**2) for e in errors]), rel=1e-9)
    assert after["mae"] == pytest.approx(np.mean([np.mean(np.abs(e)) for e in errors]), rel=1e-9)
    pearson = [
        pearsonr(p.ravel().astype(float), t.ravel()).statistic for p, t in zip(predictions, targets, strict=True)
    ]
    assert after["pearson"] == pytest.approx(np.mean(pearson), rel=1e-6)
    rows = list(csv.DictReader((run.folder / "samples/val.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == reader.ids
    assert [float(row["pearson"]) for row in rows] == pytest.approx(pearson, rel=1e-6)


def test_training_never_opens_the_test_split(workplace, trained):
    file = workplace / "data/processed/yeast/test.h5"
    hidden = file.with_suffix(".hidden")
    file.rename(hidden)
    try:
        assert main(["train", "unet_mse", "--logger", "none", *short("unet_mse")]) == 0
        assert main(["eval", "unet_mse", "--split", "test"]) == 2
    finally:
        hidden.rename(file)


def test_each_test_evaluation_is_recorded(trained):
    run = trained("baseline_mean")
    for n in (1, 2):
        assert main(["eval", str(run.folder), "--split", "test"]) == 0
        assert len(run.read("provenance.json")["test_evaluations"]) == n
    assert "Test evaluations so far: 2" in (run.folder / "card.md").read_text()
    assert run.read("metrics.test.json")["n_samples"] == 4
    assert run.read("metrics.json")["n_samples"] == 5  # validation stays what it was


def test_overrides_win_over_the_run(trained):
    run = trained("unet_mse")
    words = ["--data.eval_batch_size=3", "--model.init_args.size_divisor=64"]
    words += ["--data.transforms", "[{class_path: albumentations.HorizontalFlip}]"]
    cli = ExperimentCLI([f"--config={run.config}", *words], run)
    assert (cli.datamodule.eval_batch_size, cli.model.size_divisor) == (3, 64)
    # Not the `p: 1` that was written for D4: every training image would be mirrored, and no other.
    assert [settings.init_args.p for settings in cli.config.data.transforms] == [0.5]
    state = torch.load(run.checkpoints / "best.ckpt", weights_only=True)
    cli.model.load_state_dict(state["state_dict"])
    assert cli.model.size_divisor == 64


def test_baselines_are_those_that_the_data_has_targets_for(workplace, write_tiny, capsys):
    write_tiny(workplace / "data/processed/ihc", shape=(32, 32), roles=("image",), n_labels=2)
    assert main(["baselines", "ihc"]) == 0
    fitted = {run.experiment for run in all_runs() if run.read("provenance.json").get("dataset") == "ihc"}
    assert fitted == {"baseline_majority", "baseline_colour"}
    assert main(["baselines", "ihc", "--task", "translation"]) == 1
    assert "No baseline for translation predicts anything that ihc has: image, label" in capsys.readouterr().out


def test_a_baseline_that_does_not_fit_is_left_out_and_the_others_run(workplace, monkeypatch, capsys):
    monkeypatch.setattr("project.baselines.threshold.OtsuThreshold.classes", 3)
    monkeypatch.setattr("project.prerequisites.config_names", lambda folder: ["baseline_mean", "baseline_otsu"])
    assert main(["baselines", "yeast"]) == 0
    text = capsys.readouterr().out
    assert "baseline_otsu is left out: OtsuThreshold is for 3 classes, and there are 2" in text
    assert "baseline_mean on" in text
    assert main(["baselines", "yeast", "--task", "segmentation"]) == 1


def test_pretrained_weights_are_those_of_the_run(trained):
    tuned, source = trained("resnet_finetune"), trained("unet_dice")
    assert "loaded" in (tuned.folder / "log.txt").read_text()
    # Two steps with a frozen encoder leave it as it was, batch statistics and all.
    ours, theirs = (torch.load(r.checkpoints / "best.ckpt", weights_only=True)["state_dict"] for r in (tuned, source))
    encoder = [name for name in ours if name.startswith("net.encoder.")]
    assert len(encoder) > 50
    assert all(torch.equal(ours[name], theirs[name]) for name in encoder)
    # Its evaluation does not need them.
    source.folder.rename(source.folder.with_name("hidden"))
    try:
        assert main(["eval", str(tuned.folder)]) == 0
    finally:
        source.folder.with_name("hidden").rename(source.folder)


def test_what_an_experiment_starts_from_is_trained_first(workplace, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("project.launch.train_in_subprocess", asked.append)
    monkeypatch.setattr("project.runs.find_runs.runs_of", lambda experiment: [])
    words = ["resnet_finetune", "--data.batch_size", "1000", "--logger", "none"]
    with pytest.raises(SystemExit):
        main(["train", *words, "--print_config"])
    assert main(["train", *words, "--model.init_args.pretrained", "null"]) == 2
    assert asked == []
    with pytest.raises(UserError, match=r"batch_size|no file"):  # enough has been seen
        run_command(["train", *words])
    assert asked == [["unet_dice", "--logger", "none", "--data.dataset=yeast"]]
    assert "training that first" in capsys.readouterr().out


SMP = {"encoder_name": "resnet18", "encoder_weights": None, "in_channels": 1, "classes": 2}
TIMM = {"class_path": "project.models.classifier.TimmClassifier", "init_args": {"name": "test_resnet", "classes": 3}}
LIBRARIES = {
    "smp": ("unet_dice", {"class_path": "segmentation_models_pytorch.Unet", "init_args": SMP}),
    "timm": ("resnet_ce", TIMM),
}
every_library = pytest.mark.parametrize(("experiment", "net"), LIBRARIES.values(), ids=LIBRARIES)


@every_library
def test_own_experiment_with_a_network_of_a_library(workplace, experiment, net):
    content = yaml.safe_load((CONFIGS / f"experiments/{experiment}.yaml").read_text())
    content["model"]["init_args"]["net"] = net
    (workplace / "configs/experiments/library.yaml").write_text(yaml.safe_dump(content))
    words = ["library", "--logger", "tensorboard", *short("library"), "--trainer.precision", "bf16-mixed"]
    assert main(["train", *words]) == 0
    run = Run(Path("runs/library/latest"))
    assert run.read("metrics.json")["n_samples"] == 5
    assert net["class_path"] in run.config.read_text()
    assert list((run.folder / "tensorboard").glob("events*"))


@every_library
def test_weights_that_cannot_be_downloaded_are_reported(workplace, monkeypatch, capsys, experiment, net):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    wanted = {"encoder_weights": "imagenet"} if experiment == "unet_dice" else {"name": "resnet18", "pretrained": True}
    net = {**net, "init_args": {**net["init_args"], **wanted}}
    words = ["--model.init_args.net", json.dumps(net)]
    assert main(["train", experiment, "--logger", "none", *short(experiment), *words]) == 2
    text = capsys.readouterr().err
    assert "could not be downloaded" in text
    assert "pretrained: {file: FILE.pth" in text
    assert "Traceback" not in text


def test_a_baseline_cannot_be_resumed(trained, capsys):
    run = trained("baseline_mean")
    assert main(["train", "--resume", str(run.folder)]) == 2
    assert "is a baseline" in capsys.readouterr().err
