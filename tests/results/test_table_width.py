"""Tables on a terminal."""

import pytest
from rich.console import Console

from project.results.tables import Table

ROW = [
    "baseline_trees_mask (unfinished)",
    "0.5123 [0.4812, 0.5411] ± 0.011",
    "+0.32 [+0.30, +0.34]",
    "0.78",
    "a6b11f8+",
]
COLUMNS = ["experiment", "object_ap ↑ (monitored)", "object_ap: difference", "boundary_f1 ↑", "commit"]


@pytest.mark.parametrize(("width", "left_out"), [(160, []), (100, []), (80, ["commit"]), (50, COLUMNS[2:])])
def test_no_number_or_header_is_cut(width, left_out, monkeypatch, capsys):
    monkeypatch.setattr("project.results.tables._wide_console", lambda: Console(width=width))
    Table("title", COLUMNS, [ROW, ["unet", *ROW[1:]]]).print()
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    shown = len(COLUMNS) - len(left_out)
    for part in ("[0.4812, 0.5411]", *(word for cell in [*COLUMNS[:shown], ROW[0]] for word in cell.split())):
        assert part in text
    assert [name for name in COLUMNS if name in text.partition("Not shown")[2]] == left_out
