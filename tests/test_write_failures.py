"""Errors of writing, such as a full disk, are reported in one line."""

import errno
import os
import tempfile
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
        with (tmp_path / "a.txt").open("w") as file:
            try:
                file.write("a")
                raise failure(number)
            except OSError:
                raise RuntimeError("unexpected pos 704 vs 598")  # as torch does  # noqa: B904

    monkeypatch.setitem(cli.COMMANDS, "table", Command(write, "", (), False))
    assert cli.main(["table"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert str(tmp_path / "a.txt") in lines[0]
    assert os.strerror(number) in lines[0]


def test_no_place_for_temporary_files_gives_one_line(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nothing"])
    monkeypatch.setitem(cli.COMMANDS, "table", Command(lambda _: tempfile.gettempdir(), "", (), False))
    assert cli.main(["table"]) == 2
    assert "TMPDIR" in capsys.readouterr().err.strip().splitlines()[0]


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(_: list[str]) -> None:
        raise failure(errno.EIO)

    monkeypatch.setitem(cli.COMMANDS, "table", Command(fail, "", (), False))
    with pytest.raises(OSError, match="Input/output"):
        cli.main(["table"])
    assert write_failure(None) == write_failure(UserError("a")) == ""


def test_a_failure_of_the_writer_of_torch_names_the_file(tmp_path):
    def save(path: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598\nframe #0")

    with pytest.raises(RuntimeError) as caught:
        save(tmp_path / "a.pt2")
    message = write_failure(caught.value)
    assert str(tmp_path / "a.pt2") in message
    assert "\n" not in message


def test_a_file_that_is_named_wins_over_the_open_one(tmp_path):
    with pytest.raises(OSError, match="No space") as caught, (tmp_path / "a").open("w"):
        raise failure(errno.ENOSPC, tmp_path / "b")
    assert str(tmp_path / "b") in write_failure(caught.value)
