"""Files are written completely or not at all, links are never followed; YAML that people write."""

import os
from pathlib import Path

import pytest

from project.files import atomic_path, write_json
from project.yaml_files import read_yaml


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_links_are_replaced_and_not_followed(tmp_path):
    other = tmp_path / "thesis.tex"
    other.write_text("three years")
    for name in ("metrics.json", ".metrics.json.partial"):
        (tmp_path / name).symlink_to(other)
    write_json(tmp_path / "metrics.json", {"a": 1})
    assert other.read_text() == "three years"
    assert not (tmp_path / "metrics.json").is_symlink()


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(Path(tmp_path, "a.json"), {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_exponents_without_a_point_are_numbers_unless_they_are_in_quotes(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: [1e-3, -2E+4, 1.5e3, 1.e2]\nb: ['1e-3', 1e, e3, 1e3x]\n")
    assert read_yaml(file) == {"a": [0.001, -20000.0, 1500.0, 100.0], "b": ["1e-3", "1e", "e3", "1e3x"]}
