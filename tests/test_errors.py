"""Tracebacks of the user's own code."""

import json

import pytest

from project.errors import format_own_traceback


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
