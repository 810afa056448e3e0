"""Files of weights: read without running code in them, and the best checkpoint of a run folder."""

import json
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from project.errors import UserError


def read_file(path: Path, what: str) -> Any:
    """Content of a file that `torch.save` wrote, loaded with `weights_only=True`; tensors on the CPU.

    The checksums of the archive are compared, which torch does not do.

    Args:
        path: The file.
        what: Begins the message of an error.

    Raises:
        UserError: It is damaged, or holds more than plain values and tensors.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"  # else the format before torch 1.6
        if is_archive:
            with zipfile.ZipFile(path) as archive:
                # All checksums are 0 where the writer left them out.
                if any(member.CRC for member in archive.infolist()) and (damaged := archive.testzip()):
                    raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        # Mapped, not copied: a file never claims more memory than it has.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # a damaged pickle raises anything
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{what}: {path} holds more than weights ({code[1]}): loading it would run code.\n"
                "If you trust its source, save the weights alone and name the new file:\n"
                f"  python -c \"import torch; c = torch.load('{path}', weights_only=False); "
                f"torch.save(c.get('state_dict', c.get('model', c)), '{path.stem}-weights.pth')\""
            ) from error
        raise UserError(
            f"{what}: {path} cannot be read as weights: it is damaged, incomplete, or of another kind "
            f"(a web page, a Git LFS pointer); it has {path.stat().st_size:,} bytes. Download it again."
        ) from error


def best_checkpoint(run: Path) -> Path:
    """The checkpoint that a run folder records as its best in provenance.json; else best.ckpt.

    Raises:
        UserError: It does not exist: no other file is taken instead, but the newest finished run is named.
    """
    path = _recorded_checkpoint(run)
    if path.is_file():
        return path
    message = (
        f'"{run}" has no checkpoint {path.name}, the best: it was deleted, or the training stopped before its '
        f"first validation. Resume the training (make train RESUME={quote(str(run))}), or train again"
    )
    for other in sorted(run.parent.glob("[!l]*/provenance.json"), reverse=True):  # latest is a link to one of them
        with suppress(OSError, ValueError, AttributeError, UserError):
            finished = json.loads(other.read_bytes()).get("status") == "finished"
            if finished and _recorded_checkpoint(other.parent).is_file():
                message += f". The newest finished run of {run.parent.name} is RUN={quote(str(other.parent))}"
                break
    raise UserError(message)


def _recorded_checkpoint(run: Path) -> Path:
    record, folder = run / "provenance.json", run / "checkpoints"
    try:
        best = json.loads(record.read_text(encoding="utf-8")).get("best") if record.exists() else None
        path = folder / (best["checkpoint"] if best else "best.ckpt")
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f'"{record}" does not name the best checkpoint: {error}') from error
    if ".." in path.parts[len(run.parts) :] or not path.is_relative_to(folder):
        raise UserError(f'"{record}": the best checkpoint, "{path}", is not in {folder}')
    return path
