"""The job script for a cluster: what is rendered, and what it does, with stand-ins for Slurm's commands."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from project.cli import main
from project.errors import UserError
from project.runs.run_folder import Run
from project.training.slurm import Job, render

ROOT = Path(__file__).parents[2]
# Without options, `srun` runs what follows them; FAKE takes the place of the training.
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
echo "$@" >>started
if [ -n "${FAKE:-}" ]; then exec bash -c "$FAKE"; fi
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >>requeued; fi
"""
ENDLESS = "trap 'echo saved >>saved; exit 143' TERM; echo up >up; while :; do sleep 0.05; done"


@pytest.fixture
def place(tmp_path, monkeypatch, write_tiny):
    monkeypatch.chdir(tmp_path)
    for name in ("PROJECT_RUN_FOLDER", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    write_tiny(tmp_path / "data/processed/yeast")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def rendered(capsys, *words):
    assert main(["slurm", "unet_mse", *words]) == 0
    return Path(capsys.readouterr().out.strip().splitlines()[-1])


def start(place, script, fake="", **more):
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    jobs = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost", "PATH": path}
    environment = os.environ | jobs | {"FAKE": fake, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    environment.pop("PROJECT_RUN_FOLDER", None)
    with (place / "log").open("a") as log:
        return subprocess.Popen(["bash", script], cwd=place, env=environment, stdout=log, stderr=log)


def wait_for(path, process, seconds=200):
    for _ in range(20 * seconds):
        if path.exists():
            return
        assert process.poll() is None, Path("log").read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear:\n{Path('log').read_text()}")


def test_the_script_says_what_was_asked_for(place, capsys):
    asked = {"--nodes": 2, "--gpus": 4, "--cpus": 6, "--time": "1-12", "--partition": "gpu", "--data.batch_size": 8}
    script = rendered(capsys, *(str(word) for pair in asked.items() for word in pair))
    text = script.read_text()
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    lines = text.splitlines()
    given = {
        line.partition("--")[2].partition("=")[0]: line.partition("=")[2] for line in lines if "#SBATCH --" in line
    }
    assert {"nodes": "2", "gpus-per-node": "4", "cpus-per-task": "24", "time": "1-12", "partition": "gpu"}.items() <= (
        given.items()
    )
    assert given["job-name"] == "unet_mse"
    assert "requeue" in given
    assert given["signal"] == "B:USR1@180"
    assert given["output"] == f"{script.parent}/slurm-%j.log"
    # Slurm reads its lines up to the first command only.
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
    assert f"export PROJECT_RUN_FOLDER={script.parent}\n" in text
    assert "--nnodes=2 --nproc-per-node=4 " in text
    words = "train unet_mse --trainer.accelerator=gpu --trainer.num_nodes=2 --trainer.devices=4 --trainer.strategy=ddp"
    assert f"-m project {words} --data.batch_size 8 " in text
    assert script.parent.parent == Path("runs/unet_mse")
    assert "@" not in text.replace("USR1@180", "").replace("two @", "").replace("[@]", "")


def test_what_is_typed_wins_and_is_quoted(place, capsys):
    script = rendered(
        capsys, "--trainer.strategy", "fsdp", "--data.transforms", "[{class_path: a.B}]", "--logger", "none"
    )
    text = script.read_text()
    assert "strategy=ddp" not in text
    assert "--data.transforms '[{class_path: a.B}]' --logger none" in text


def test_one_gpu_needs_no_strategy(place, capsys):
    assert "trainer.strategy" not in rendered(capsys).read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "0"], "nodes is 0"),
        (["--gpus", "many"], "invalid literal"),
        (["--time", "soon"], "is no time"),
        (["--partition", "a\n#SBATCH --wrap=x"], "is no name of a partition"),
        (["--data.batch_sise", "3"], 'Did you mean "batch_size"?'),
        (["--submit"], "there is no `sbatch` here"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(place, capsys, words, message):
    assert main(["slurm", "unet_mse", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_folder_that_slurm_cannot_read_is_refused(place):
    with pytest.raises(UserError, match="has characters"):
        render(Run(Path("runs/a b/c")), Job(), [])


def test_submitting_hands_over_the_script(place, capsys, monkeypatch):
    sbatch = place / "bin/sbatch"
    sbatch.write_text('#!/bin/bash\ncp "$1" submitted\necho "Submitted batch job 7"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
    script = rendered(capsys, "--submit")
    assert (place / "submitted").read_text() == script.read_text()
    sbatch.write_text("#!/bin/bash\necho no such partition >&2\nexit 1\n")
    assert main(["slurm", "unet_mse", "--submit"]) == 2
    assert "no such partition" in capsys.readouterr().err


# What the script does -------------------------------------------------------------------------------------------------


def test_at_the_time_limit_it_saves_is_queued_again_and_goes_on(place, capsys):
    script = rendered(capsys)
    job = start(place, script, ENDLESS)
    wait_for(place / "up", job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 143
    assert Path("saved").read_text() == "saved\n"
    assert Path("requeued").read_text() == f"requeue {os.getpid()}\n"
    assert "--resume" not in Path("started").read_text()
    (script.parent / "config.yaml").touch()
    assert start(place, script, "exit 0").wait(20) == 0
    assert Path("started").read_text().splitlines()[-1].endswith(f" --resume {script.parent}")
    assert len(Path("requeued").read_text().splitlines()) == 1


def test_a_job_that_is_cancelled_is_not_queued_again(place, capsys):
    job = start(place, rendered(capsys), ENDLESS)
    wait_for(place / "up", job)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 143
    assert Path("saved").exists()
    assert not Path("requeued").exists()


@pytest.mark.parametrize("status", [0, 1])
def test_a_training_that_ends_by_itself_is_not_queued_again(place, capsys, status):
    assert start(place, rendered(capsys), f"exit {status}").wait(20) == status
    assert not Path("requeued").exists()


@pytest.mark.slow
def test_two_processes_are_stopped_and_go_on_in_the_same_folder(place, capsys):
    """The script itself, with the training in it, on CPUs."""
    n_epochs = 30
    words = {
        "--gpus": 2,
        "--logger": "none",
        "--trainer.accelerator": "cpu",
        "--trainer.devices": 2,
        "--data.crop": 32,
        "--data.batch_size": 2,
        "--data.num_workers": 0,
        "--trainer.max_epochs": n_epochs,
        "--model.init_args.net.init_args.width": 2,
    }
    script = rendered(capsys, *(str(word) for pair in words.items() for word in pair))
    job = start(place, script)
    history = script.parent / "history.csv"
    wait_for(history, job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(100) != 0, Path("log").read_text()
    done = len(history.read_text().splitlines()) - 1
    assert done < n_epochs, "it was stopped on the way"
    assert Path("requeued").exists()
    assert start(place, script).wait(300) == 0, Path("log").read_text()
    epochs = [line.split(",")[0] for line in history.read_text().splitlines()[1:]]
    assert epochs == [str(epoch) for epoch in range(n_epochs)]
    assert Run(script.parent).read("metrics.json")["n_samples"] == 5
    assert [path.name for path in script.parent.parent.iterdir() if not path.is_symlink()] == [script.parent.name]
    assert sys.executable in script.read_text()
