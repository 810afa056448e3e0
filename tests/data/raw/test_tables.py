"""CSV tables in all common forms, and rows that do not fit the images."""

from pathlib import Path

import pytest

from project.data.config import DatasetConfig, TableConfig
from project.data.raw.samples import Problems, Sample
from project.data.raw.tables import join_tables
from project.errors import UserError


def write(raw: Path, text: str, encoding: str = "utf-8") -> None:
    (raw / "t.csv").write_bytes(text.encode(encoding))


def join(raw: Path, ids: str | list[str], problems: Problems | None = None, **options):
    config = DatasetConfig(str(raw), {"a": "{id}.tif"}, table=TableConfig("t.csv", **options))
    problems = problems or Problems()
    samples = join_tables([Sample(id_, {}) for id_ in ids], config, problems)
    problems.check()
    return samples


def problem(raw: Path, ids: str | list[str], **options) -> str:
    with pytest.raises(UserError) as caught:
        join(raw, ids, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "newline", "separator"), [("utf-8", "\n", ","), ("utf-8-sig", "\r\n", ";"), ("utf-8", "\r\n", "\t")]
)
def test_labels_and_groups(raw, encoding, newline, separator):
    lines = ["id,kind,plate", "ü, dead ,p2", "unused,alive,p9", "", '"a","alive","p1"', ""]
    write(raw, newline.join(lines).replace(",", separator), encoding=encoding)
    samples = join(raw, "aü", label="kind", group="plate")
    assert [(s.id, s.label, s.group) for s in samples] == [("a", "alive", "p1"), ("ü", "dead", "p2")]


def test_the_separator_is_the_one_of_the_header_and_most_rows(raw):
    for text in (
        'id|"a, b, c, d"|kind\na|1|"x,y"\nb|2|z\n',
        'id,"note (a;b;c;d)",kind\na,1,"x,y"\nb,2,z\n',
        "id;weight (g, dry, sum);kind\na;1,5;x,y\nb;2,5;z\n",
        "id;kind;;\na;x,y;;\n;;;\nb;z;;\n",
        'id, kind\na, "x,y"\nb, z\n',
        '\n,,\nid,kind,note\na,"x,y",1\nb,z,2\n',
        'id,count (a;b;c),kind\na,1,"x,y"\nb,2,z\n',
    ):
        write(raw, text)
        assert [s.label for s in join(raw, "ab", label="kind")] == ["x,y", "z"], text


def test_cells_beyond_the_header_are_refused(raw):
    write(raw, 'id,kind,plate\na,slow,p1\nb,slow, but ok,p2\nc,"x\ny",p3\nd,3,5,p4,\ne,x,p5,\n')
    message = problem(raw, "abcde", label="kind", group="plate")
    assert message.count("\n  - ") == 2
    assert "- line 3 has 4 cells: b, slow, but ok, p2\n" in message
    assert "- line 6 has 5 cells" in message
    write(raw, 'id,kind\na,"x\nb,y\n')
    assert "a quotation mark not closed" in problem(raw, "ab", label="kind")


def test_ids_may_be_names_of_files(raw):
    write(raw, "id,kind\na.tif,x\nb.PNG,y\nc.tif,z\ne.ome.tif,v\n")
    assert [s.label for s in join(raw, ["a", "b", "c.tif", "e"], label="kind")] == ["x", "y", "z", "v"]
    assert 'c: no rows with this "id"' in problem(raw, ["c.tif", "c"])
    write(raw, "id,kind\nd.txt,z\n")
    assert 'd: no rows with this "id"' in problem(raw, "d")


def test_several_classes_in_a_cell(raw):
    write(raw, "id,kind\na, round ;budding;\nb,\nc,dead\n")
    samples = join(raw, "abc", label="kind", separator=";")
    assert [s.label for s in samples] == [("round", "budding"), (), ("dead",)]


def test_values_that_are_not_numbers(raw):
    write(raw, "id,size,age\na,1,\nb,large,2\nc,NaN,3\nd,inf,4\ne,1,5\n")
    message = problem(raw, "abcde", values=["size", "age"])
    for line in (
        'a: the "age" is empty',
        'b: the "size" is not a number: "large"',
        'd: the "size" is not a number: "inf"',
    ):
        assert f"- {line}" in message
    assert message.count("\n  - ") == 4


def test_rows_that_are_missing_doubled_or_empty_are_listed(raw):
    write(raw, "id,kind,plate\na,x,p\nb,x,p\nb,y,p\nc, ,p\ne\nf,x,\n")
    message = problem(raw, "abcdef", label="kind", group="plate")
    for line in ('b: 2 rows with this "id"', 'c: the "kind" is empty', "d: no rows with", 'e: the "plate" is empty'):
        assert f"- {line}" in message
    assert message.count("\n  - ") == 6
    write(raw, "id,kind\na,x\na,x\n")
    assert '- a: 2 equal rows with this "id"' in problem(raw, "a", label="kind")


def test_misspelt_and_repeated_columns(raw):
    write(raw, "id,label,kind,kind\na,x,y,z\n")
    assert 'no column "labels". Did you mean "label"?' in problem(raw, "a", label="labels")
    assert 'Its columns are "id", "label", "kind", "kind".' in problem(raw, "a", values=["size"])
    assert 'has 2 columns called "kind"' in problem(raw, "a", label="kind")


def test_no_table_and_unreadable_tables(raw):
    assert "does not exist" in problem(raw, "a")
    write(raw, "")
    assert 'no column "id"' in problem(raw, "a")
    write(raw, "id,kind\n")
    assert "a: no rows" in problem(raw, "a")
    write(raw, "id,label\na,b\nü,größer\n", encoding="latin-1")
    assert "t.csv: cannot be read: line 3 is not in UTF-8" in problem(raw, "a")
