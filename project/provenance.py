"""Provenance: command, git commit, versions; stored in data files and run folders."""

import hashlib
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "lightning",
    "torchmetrics",
    "segmentation-models-pytorch",
    "timm",
    "albumentations",
    "h5py",
    "numpy",
    "scikit-image",
    "scikit-learn",
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


def command() -> str:
    """The command line of this process, to be pasted into a shell after `python -m`."""
    return shlex.join(["project", *sys.argv[1:]])


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file; None if it does not exist."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
