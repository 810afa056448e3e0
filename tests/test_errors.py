"""Tracebacks of the user's own code; errors of writing, such as a full disk."""

import errno
import json
import os
from pathlib import Path

import h5py
import pytest

from project import cli
from project.command_line import Command
from project.errors import UserError, file_failure, format_own_traceback, python


def test_python_is_named_as_it_is_typed(tmp_path, monkeypatch):
    (tmp_path / "my env/bin").mkdir(parents=True)
    (file := tmp_path / "my env/bin/python").touch(0o755)
    monkeypatch.setattr("sys.executable", str(file))
    monkeypatch.chdir(tmp_path)
    assert python() == "'my env/bin/python'"
    monkeypatch.chdir(tmp_path / "my env/bin")
    monkeypatch.setenv("PATH", str(file.parent))  # activated
    assert python() == "python"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", "/elsewhere/bin/python3")
    assert python() == "/elsewhere/bin/python3"


def test_a_traceback_begins_in_own_code(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import json\n\n\ndef load():\n    return json.loads('{')  # the mistake\n")
    namespace: dict = {}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    with pytest.raises(ValueError, match="property") as error:
        namespace["load"]()
    error.value.__traceback__ = error.value.__traceback__.tb_next  # this test is own code too
    lines = format_own_traceback(error.value).splitlines()
    assert 'mine.py", line 5' in lines[1]
    assert "# the mistake" in lines[2]
    assert lines[-1].startswith("json.decoder.JSONDecodeError")


def test_an_error_of_a_library_alone_has_no_own_code():
    with pytest.raises(ValueError, match="property") as error:
        json.loads("{")
    error.value.__traceback__ = error.value.__traceback__.tb_next
    assert format_own_traceback(error.value) == ""


def failure(number: int, filename: Path | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([str(filename)] if filename else []))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_gives_a_line_with_the_file(tmp_path, monkeypatch, capsys, number):
    def write(_: list[str]) -> None:
        try:
            raise failure(number, tmp_path / "a.txt")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # as torch does  # noqa: B904

    monkeypatch.setitem(cli.COMMANDS, "table", Command(write, "", (), False))
    assert cli.main(["table"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[1].startswith("Traceback from your code")  # which this test is
    assert str(tmp_path / "a.txt") in lines[0]
    assert os.strerror(number) in lines[0]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ELOOP])
def test_a_file_that_cannot_be_used_is_named_and_hides_no_other_error(tmp_path, number):
    error = failure(number, tmp_path / "a.txt")
    assert file_failure(error).startswith(f'"{tmp_path / "a.txt"}": {os.strerror(number)}; ')
    later = KeyError("a name that is missing where that error was expected")
    later.__context__ = error
    assert file_failure(later) == ""


def test_a_file_that_hdf5_cannot_use_is_named(tmp_path):
    with pytest.raises(OSError, match="Is a directory") as error:
        h5py.File(tmp_path, "r")
    assert str(tmp_path) in file_failure(error.value)


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(_: list[str]) -> None:
        raise failure(errno.EIO)

    monkeypatch.setitem(cli.COMMANDS, "table", Command(fail, "", (), False))
    with pytest.raises(OSError, match="Input/output"):
        cli.main(["table"])
    assert file_failure(None) == file_failure(UserError("a")) == ""


def test_a_failure_of_the_writer_of_torch_is_one_of_writing():
    error = RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598\nframe #0")
    assert "could not be written" in file_failure(error)
