"""Files are written completely or not at all, links are never followed; YAML that people write."""

import os
from pathlib import Path

import pytest

from project.errors import UserError
from project.files import atomic_path, write_json, write_table
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
    write_table(path, [{"a": 1}, {"b": "2,3"}])
    assert path.read_bytes() == b'a,b\n1,\n,"2,3"\n'
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


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"a: &x {b: [*x]}", "line 1, column 12: .*inside of its own anchor"),
        (b"a: &x {<<: *x}", "line 1, column 12: .*inside of its own anchor"),
        (b"a: 1\nb: {c: 1, c: 2}", 'line 2, column 11: .*"c" is there twice'),
        (b"a:\n  yes: 1", 'line 2, column 3: .*"yes" is no text'),
        (b"a: {? : 1}", 'line 1, column 6: .*"" is no text'),
        (b"a: 1\n---\nb: 2", "line 2, column 1"),
        (b"a:\n\tb: 1", "line 2, column 1"),
        (b"a: \xe4", "utf-8"),
        (b"a: " + b"9" * 5000, "digits"),
        (b"image: {img: img/{id}.tif}", "put patterns in quotes"),
        (b"[" * 5000, "recursion"),
        (b"", "expected keys with values"),
        (None, "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_valid_file_is_refused_with_its_line(tmp_path, content, place):
    file = tmp_path / "a.yaml"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=f"a.yaml.*{place}"):
        read_yaml(file)


def test_aliases_merged_keys_and_dates_are_as_written(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\ne: [*x, *x]\n2024-1-1: 2024-13-45\n")
    one = {"b": 1, "c": 2}
    assert read_yaml(file) == {"a": one, "d": {"b": 3, "c": 2}, "e": [one, one], "2024-1-1": "2024-13-45"}
