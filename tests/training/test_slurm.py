"""The Slurm job, with stand-ins for the commands of a cluster."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "configs/slurm.sh"
# Writes down its arguments; a training that waits ends at SIGTERM, as ours does.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > srun.txt
mkdir -p "$PROJECT_RUN_FOLDER" && touch "$PROJECT_RUN_FOLDER/config.yaml"
[ -z "${WAIT:-}" ] || { trap 'exit 143' TERM; sleep 60 & wait; }
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo node1 || echo "$@" >> scontrol.txt
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for name, value in {"JOB_ID": "77", "JOB_NODELIST": "node[1-2]", "NNODES": "2", "GPUS_ON_NODE": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("PROJECT_RUN_FOLDER", raising=False)
    return tmp_path


def test_the_job_starts_one_process_per_gpu_and_hands_options_on(cluster):
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    subprocess.run(["bash", SCRIPT, "unet_mse", "--data.root", "my data"], check=True)
    words = (cluster / "srun.txt").read_text().splitlines()
    assert {"--nnodes=2", "--nproc-per-node=4", "--trainer.devices=4", "--trainer.strategy=ddp"} <= set(words)
    assert words[words.index("train") + 1] == "unet_mse"
    assert words[-2:] == ["--data.root", "my data"]
    assert not (cluster / "scontrol.txt").exists()


@pytest.mark.slow
def test_at_the_time_limit_the_job_is_queued_again_and_resumes(cluster):
    job = subprocess.Popen(["bash", SCRIPT, "unet_mse"], env={**os.environ, "WAIT": "1"})
    for _ in range(200):
        if (cluster / "srun.txt").exists():
            break
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) in (138, 143)  # of the signal, or of the training
    assert (cluster / "scontrol.txt").read_text() == "requeue 77\n"
    subprocess.run(["bash", SCRIPT, "unet_mse"], check=True)
    assert (cluster / "srun.txt").read_text().splitlines()[-2:] == ["--resume", "runs/unet_mse/slurm-77"]
