"""Provenance: command, git commit and changes, versions, hardware; stored in data files and run folders."""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from project.errors import UserError

PACKAGES = (
    *("torch", "lightning", "torchmetrics", "segmentation-models-pytorch", "timm", "albumentations", "h5py"),
    *("numpy", "scikit-image", "scikit-learn"),
)


def git_bytes(*arguments: str) -> bytes | None:
    """Output of a git command in the working folder, unchanged; None where there is no git or no repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def git(*arguments: str) -> str | None:
    """The same as text without the final line break; bytes that are not UTF-8 are restored by `os.fsencode`."""
    output = git_bytes(*arguments)
    return None if output is None else output.decode("utf-8", "surrogateescape").rstrip("\n")


def run_git(
    *words: str, text: str | None = None, variables: dict[str, str] | None = None, default: str | None = None
) -> str:
    """Output of a git command; a failure gives `default`, or a `UserError` with git's own message if there is none."""
    options: Any = {"capture_output": True, "text": True, "errors": "surrogateescape", "check": False}
    done = subprocess.run(["git", *words], input=text, env=os.environ | (variables or {}), **options)
    if done.returncode and default is None:
        raise UserError(f"git {words[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return str(default if done.returncode else done.stdout.strip("\n"))


def git_state() -> dict[str, Any]:
    """Commit and whether tracked files differ from it; both None outside a repository."""
    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes) if changes is not None else None}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    numbers = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            continue
    return numbers


def hardware() -> dict[str, Any]:
    """Processor, cores, GPUs."""
    import torch

    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text(errors="replace")) if info.is_file() else None
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def write_changes(folder: Path, suffix: str = "") -> str | None:
    """Write changed tracked files to changes.patch of a run, and imported untracked files to untracked/.

    A resumed run has a `suffix`, and a separate patch if it differs from the first. Returns the patch's name, if any.
    """
    # Without what git settings of the user could add: other prefixes, colors, programs.
    plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    changes, first = git_bytes("diff", *plain, "HEAD"), folder / "changes.patch"
    for path in _untracked_modules():
        copy, first_copy = (folder / name / path for name in (f"untracked{suffix}", "untracked"))
        if not first_copy.is_file() or path.read_bytes() != first_copy.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    if not changes:
        return None
    is_same = suffix and first.is_file() and first.read_bytes() == changes
    patch = first if is_same else first.with_name(f"changes{suffix}.patch")
    patch.write_bytes(changes)
    return patch.name


def _untracked_modules() -> list[Path]:
    """Files below the working folder that this process has imported and git does not track."""
    listed = git("ls-files", "-z", "--others", "--exclude-standard") or ""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    imported = {Path(file).resolve() for file in files if isinstance(file, str)}
    return [path for path in map(Path, filter(None, listed.split("\0"))) if path.resolve() in imported]


def command() -> str:
    """The command line of this process, to be pasted into a shell after `python -m`."""
    return shlex.join(["project", *sys.argv[1:]])


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file; None if it does not exist."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
