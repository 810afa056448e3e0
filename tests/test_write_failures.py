"""Errors of writing, such as a full disk, are reported in one line."""

import errno
import os
from pathlib import Path

import pytest

from project import cli
from project.command_line import Command
from project.errors import UserError, write_failure


def failure(number: int, filename: Path | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([str(filename)] if filename else []))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_gives_one_line_with_the_file(tmp_path, monkeypatch, capsys, number):
    def write(_: list[str]) -> None:
        try:
            raise failure(number, tmp_path / "a.txt")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # as torch does  # noqa: B904

    monkeypatch.setitem(cli.COMMANDS, "table", Command(write, "", (), False))
    assert cli.main(["table"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert str(tmp_path / "a.txt") in lines[0]
    assert os.strerror(number) in lines[0]


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(_: list[str]) -> None:
        raise failure(errno.EIO)

    monkeypatch.setitem(cli.COMMANDS, "table", Command(fail, "", (), False))
    with pytest.raises(OSError, match="Input/output"):
        cli.main(["table"])
    assert write_failure(None) == write_failure(UserError("a")) == ""


def test_a_failure_of_the_writer_of_torch_is_one_of_writing():
    error = RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598\nframe #0")
    assert "could not be written" in write_failure(error)
