"""What a run was: code, data, machine. Gathered at the start, completed at the end."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from project.data.provenance import command, file_hash, git, git_state, versions
from project.experiment.run import Run


def gather(seed: int | None, data_hashes: dict[str, str], config: Path) -> dict[str, Any]:
    """Everything needed to say later what was run, as plain JSON values."""
    return {
        "command": command(),
        **git_state(),
        "config_hash": file_hash(config),
        "lock_hash": file_hash(Path("requirements.lock")),
        "data_hash": data_hashes,
        "seed": seed,
        "versions": versions(),
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Processor, cores, GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def keep_changes(run: Run) -> None:
    """Write what differs from the commit, of tracked files, to changes.patch."""
    if changes := git("diff", "HEAD"):
        (run.folder / "changes.patch").write_text(changes + "\n")
