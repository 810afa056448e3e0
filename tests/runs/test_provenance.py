"""The changes that a run keeps are those of the working copy, byte by byte."""

import subprocess
import sys

import pytest

from project.provenance import command, write_changes


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a commit, whose owner prefers other diffs."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    settings = {"user.name": "a", "user.email": "a@b", "diff.noprefix": "true", "color.ui": "always"}
    subprocess.run(["git", "init", "-q"], check=True)
    for key, value in settings.items():
        subprocess.run(["git", "config", key, value], check=True)
    (folder / "crlf.txt").write_bytes(b"a\r\nb\r\nc\r\n")
    (folder / "latin.csv").write_bytes("Größe\n1\n".encode("latin-1"))
    subprocess.run("git add . && git commit -q -m first", shell=True, check=True)
    return folder


def test_a_patch_applies_whatever_the_files_hold(repository, tmp_path):
    changed = {"crlf.txt": b"a\r\nB\r\nc\r\n", "latin.csv": "Größe\n2 µm\n".encode("latin-1")}
    for name, content in changed.items():
        (repository / name).write_bytes(content)
    assert write_changes(tmp_path) == "changes.patch"
    assert write_changes(tmp_path, ".resume-1") == "changes.patch"  # the same
    subprocess.run(["git", "checkout", "-q", "."], check=True)
    subprocess.run(["git", "apply", str(tmp_path / "changes.patch")], check=True)
    assert {name: (repository / name).read_bytes() for name in changed} == changed


def test_a_command_can_be_typed_again(monkeypatch):
    words = ["eval", "runs/my run/x", "--trainer.precision", "32-true", "--a", "it's $HOME"]
    monkeypatch.setattr(sys, "argv", ["project", *words])
    done = subprocess.run(["sh", "-c", f"printf '%s\\n' {command()}"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["project", *words]
