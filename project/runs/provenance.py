"""Provenance of a run: its hardware, and the uncommitted changes as files."""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from project.provenance import git, git_bytes
from project.runs.run_folder import Run

PREFIXES = ("--src-prefix=a/", "--dst-prefix=b/")


def hardware() -> dict[str, Any]:
    """Processor, cores, GPUs."""
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def write_changes(run: Run, suffix: str = "") -> str | None:
    """Write changed tracked files to changes.patch, and imported untracked files to untracked/.

    A resumed run has a `suffix`, and a separate patch if it differs from the first. Returns the patch's name, if any.
    """
    # Bytes, and without what git settings of the user could add: other prefixes, colors, programs.
    changes = git_bytes("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", *PREFIXES, "HEAD")
    first = run.folder / "changes.patch"
    for path in untracked_modules():
        copy, first_copy = (run.folder / name / path for name in (f"untracked{suffix}", "untracked"))
        if not first_copy.is_file() or path.read_bytes() != first_copy.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    if not changes:
        return None
    if suffix and first.is_file() and first.read_bytes() == changes:
        return first.name
    patch = first.with_name(f"changes{suffix}.patch")
    patch.write_bytes(changes)
    return patch.name


def untracked_modules() -> list[Path]:
    """Files below the working folder that this process has imported and git does not track."""
    listed = git("ls-files", "-z", "--others", "--exclude-standard")
    if not listed:
        return []
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    imported = {Path(file).resolve() for file in files if isinstance(file, str)}
    return [path for path in map(Path, listed.strip("\0").split("\0")) if path.resolve() in imported]
