"""Several devices, as processes on the CPU: one run folder, the same samples, the same numbers."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from shipped_configs import CONFIGS

from project.runs.run_folder import Run

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--standalone"]
# Batch normalisation in each, since every device has its own.
TIMM = (
    "{class_path: project.models.classifier.TimmClassifier, init_args: {name: test_resnet, in_channels: 1, classes: 3}}"
)
TASKS = {
    "unet_mse": ["--model.init_args.net.init_args.width", "4"],
    "unet_depth": ["--model.init_args.net.init_args.width", "4"],
    "resnet_ce": [f"--model.init_args.net={TIMM}", "--model.init_args.size_divisor", "32"],
}
nightly = [pytest.param(name, marks=pytest.mark.nightly) for name in TASKS if name != "unet_mse"]
# Writes down what each process is given: a file of the user's own, in the working folder.
WATCH = """
import hashlib, json
from lightning.pytorch import Callback

class Watch(Callback):
    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        with open(f"seen{trainer.global_rank}.txt", "a") as file:
            for index, image in zip(batch["index"].tolist(), batch["image"]):
                digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
                print((trainer.current_epoch, index, digest), file=file)
"""


def processes(n):
    return ["--trainer.accelerator=cpu", f"--trainer.devices={n}", f"--trainer.strategy={'ddp' if n > 1 else 'auto'}"]


def words(experiment, n):
    """13 training images and 5 for validation; whatever n is, neither divides by 2 and 3."""
    options = ["--data.crop=32", "--data.crops_per_image=1", "--data.batch_size=2", "--data.eval_batch_size=1"]
    options.append("--data.num_workers=0")
    length = ["--trainer.max_epochs=2", "--logger=none"]
    return ["train", experiment, *options, *length, *processes(n), *TASKS[experiment]]


def run_of(place, experiment):
    return Run((place / "runs" / experiment / "latest").resolve())


@pytest.fixture(scope="module")
def make_place(tmp_path_factory, write_tiny):
    def make():
        place = tmp_path_factory.mktemp("place")
        shutil.copytree(CONFIGS, place / "configs")
        (place / "watch.py").write_text(WATCH)
        write_tiny(
            place / "data/processed/yeast",
            n={"train": 13, "val": 5, "test": 4},
            roles=("image", "target", "mask", "instances"),
            n_labels=3,
            n_values=1,
        )
        return place

    return make


@pytest.fixture(scope="module")
def trained(make_place, in_process):
    """Experiment -> a folder in which it was trained by two processes, and what that said; each once."""
    done = {}

    def get(experiment):
        if experiment not in done:
            place = make_place()
            done[experiment] = place, in_process(place, *words(experiment, 2), "--trainer.callbacks", "watch.Watch")
        return done[experiment]

    return get


def scores(run, split="val"):
    content = run.read("metrics.json" if split == "val" else f"metrics.{split}.json")
    return content["metrics"] | content["undefined"] | {"n": content["n_samples"]}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["unet_mse", *nightly])
def test_two_processes_leave_one_run_folder_and_nothing_else(trained, experiment, history):
    place, _ = trained(experiment)
    assert {path.name for path in place.iterdir() if not path.name.startswith(("seen", "__"))} == {
        *("configs", "data", "runs", "watch.py")
    }
    runs = place / "runs"
    folders = [path for path in (runs / experiment).iterdir() if not path.is_symlink()]
    assert [path.name for path in runs.iterdir()] == [experiment]
    assert len(folders) == 1
    assert {path.name for path in (folders[0] / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert [row["epoch"] for row in history(Run(folders[0]))] == ["0", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["unet_mse", *nightly])
def test_metrics_do_not_depend_on_the_number_of_processes(trained, in_process, experiment):
    """Those of the training with two, and of the same checkpoint with three."""
    place, _ = trained(experiment)
    run = run_of(place, experiment)
    two = scores(run)
    assert two["n"] == 5
    in_process(place, "eval", run.folder, "--trust", *processes(3))  # git does not know watch.py
    assert scores(run) == two


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["unet_mse", *nightly])
def test_what_chooses_the_best_checkpoint_is_the_metric_of_all_samples(trained, experiment, history):
    place, _ = trained(experiment)
    run = run_of(place, experiment)
    rule = yaml.safe_load(run.config.read_text())["checkpoint"]
    monitored = [float(row[rule["monitor"]]) for row in history(run)]
    best = min(monitored) if rule["mode"] == "min" else max(monitored)
    checkpoint = torch.load(run.checkpoints / "best.ckpt", weights_only=True)
    chosen = next(state for name, state in checkpoint["callbacks"].items() if name.startswith("ModelCheckpoint"))
    assert float(chosen["best_model_score"]) == pytest.approx(best, rel=1e-6)  # float32 in Lightning
    assert checkpoint["epoch"] == monitored.index(best)
    assert scores(run)[rule["monitor"].removeprefix("val/")] == best


@pytest.mark.nightly
def test_each_sample_is_augmented_as_by_one_process(trained, make_place, in_process):
    both, single = trained("unet_mse")[0], make_place()
    in_process(single, *words("unet_mse", 1), "--trainer.callbacks", "watch.Watch")
    seen = {n: set((both / f"seen{n}.txt").read_text().splitlines()) for n in (0, 1)}
    alone = set((single / "seen0.txt").read_text().splitlines())
    assert not seen[0] & seen[1]
    assert len(seen[0]) == len(seen[1]) == 2 * 6  # 13 samples: one is left over in each epoch
    assert len(alone) == 2 * 12  # in batches of two
    # One process leaves out its last incomplete batch, two processes what does not divide: all others are the same.
    a, b = ({ast.literal_eval(line)[:2]: line for line in lines} for lines in (alone, seen[0] | seen[1]))
    common = a.keys() & b.keys()
    assert len(common) >= 2 * 11
    assert all(a[key] == b[key] for key in common)


# All in one start of two processes, as importing takes longer than training.
EVERY_EXPERIMENT = """
import os, sys
from project.cli import main

for name in sys.argv[1].split(","):
    os.environ["PROJECT_RUN_FOLDER"] = f"runs/{name}/two"
    freezes = name == "resnet_finetune"
    assert main([
        "train", name, "--logger=none", "--data.dataset=yeast", "--data.crop=32", "--data.batch_size=2",
        "--data.num_workers=0", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
        "--trainer.accelerator=cpu", "--trainer.devices=2",
        f"--trainer.strategy=ddp{'_find_unused_parameters_true' * freezes}",
    ]) == 0, name
"""


@pytest.mark.nightly
def test_every_experiment_trains_two_steps_on_two_devices(make_place, environment, history):
    place = make_place()
    (place / "every.py").write_text(EVERY_EXPERIMENT)
    found = {path.stem for path in (CONFIGS / "experiments").glob("*.yaml")}
    first = ("unet_dice", "unet_masked")  # from which others start
    names = [*first, *sorted(name for name in found if name not in first and not name.startswith("baseline_"))]
    command = [*TORCHRUN, "every.py", ",".join(names)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in names:
        assert scores(Run(place / "runs" / name / "two"))["n"] == 5
        assert history(Run(place / "runs" / name / "two"))[0]["step"] == "2"


@pytest.mark.nightly
def test_torchrun_shares_the_folder_that_was_chosen(make_place, environment):
    """What the job script starts on each node."""
    place, folder = make_place(), "runs/unet_mse/chosen"
    command = [*TORCHRUN, "-m", "project", *words("unet_mse", 2)]
    refused = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=400)
    assert refused.returncode != 0
    assert "set PROJECT_RUN_FOLDER=runs/unet_mse/<name>" in refused.stderr
    assert not (place / "runs").exists()
    given = environment | {"PROJECT_RUN_FOLDER": folder}
    done = subprocess.run(command, cwd=place, env=given, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (place / "runs/unet_mse").iterdir() if not path.is_symlink()] == ["chosen"]
    assert scores(Run(place / folder))["n"] == 5


@pytest.mark.nightly
def test_devices_agree_on_the_end_of_a_time_budget(make_place, in_process):
    place = make_place()
    options = words("unet_mse", 2)
    options.remove("--trainer.max_epochs=2")
    in_process(place, *options, "--minutes=0.3", "--unchecked")
    run = run_of(place, "unet_mse")
    facts = run.read("provenance.json")
    assert facts["status"] == "finished"
    assert facts["trained"]["steps"] >= 1
    assert run.metrics_file("val").is_file()
