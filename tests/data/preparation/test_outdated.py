"""What has changed since a dataset was prepared."""

import json
import os
from pathlib import Path

import pytest
import yaml

from project import prerequisites
from project.cli import main
from project.data.config import PolygonConfig, SizesConfig, SplitConfig, TableConfig
from project.data.preparation.outdated import changed_keys, describe_changes
from project.data.store import read_raw_files


def changes(folder, **options) -> str:
    return describe_changes(folder.final, folder.config(**options), Path("d.yaml"))


def touch(path: Path) -> None:
    """As if the file had been written a second later."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def test_nothing_has_changed(folder):
    folder.pairs()
    (folder.raw / "notes.txt").write_text("no image")
    folder.prepare()
    assert changes(folder) == ""
    touch(folder.raw / "notes.txt")
    (folder.raw / "out/new.txt").write_text("no image")
    assert changes(folder) == ""


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"split": SplitConfig(seed=5, fractions={"train": 0.5, "val": 0.25, "test": 0.25})}, "split.seed"),
        ({"image": {"a": "out/{id}.tif"}, "target": {"t": "in/{id}.tif"}}, "image, target"),
        ({"sizes": SizesConfig("crop", 8)}, "sizes"),
        ({"not_finite": 0.0, "ignore_index": 3}, "ignore_index, not_finite"),
    ],
)
def test_a_setting_has_changed(folder, options, keys):
    folder.pairs()
    folder.prepare()
    message = changes(folder, **options)
    assert f"({keys})" in message
    assert "\n" not in message


def test_the_order_of_channels_counts_and_new_keys_do_not():
    before = {"image": {"a": "x", "b": "y"}, "split": {"seed": 0}, "gone": 1}
    now = {"image": {"b": "y", "a": "x"}, "split": {"seed": 0, "new": 1}, "later": 2}
    assert changed_keys(before, now) == ["image"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda raw: touch(raw / "out/03.tif"), '1 changed, such as "out/03.tif"'),
        (lambda raw: (raw / "in/03.tif").unlink(), '1 removed, such as "in/03.tif"'),
        (lambda raw: (raw / "in/new.tif").write_bytes(b"x"), '1 added, such as "in/new.tif"'),
        (lambda raw: (raw / "more/new.tif").write_bytes(b"x"), '1 added, such as "more/new.tif"'),
        (lambda raw: touch(raw / "t.csv"), '1 changed, such as "t.csv"'),
    ],
)
def test_raw_files_have_changed(folder, change, where):
    folder.pairs()
    folder.put("more/x.tif")
    folder.table("id,kind", *(f"{i:02d},a" for i in range(8)))
    splits = ["train"] * 4 + ["val", "test"] * 2
    folder.table("id,split", *(f"{i:02d},{s}" for i, s in enumerate(splits)), name="s.csv")
    options = {
        "table": TableConfig("t.csv", label="kind"),
        "split": SplitConfig(file="s.csv"),
        "unlabelled": {"a": "more/{id}.tif"},
    }
    folder.prepare(**options)
    assert changes(folder, **options) == ""
    change(folder.raw)
    assert f"({where})" in changes(folder, **options)


def test_raw_files_that_are_not_there_are_no_change(folder):
    folder.pairs()
    folder.prepare()
    folder.raw.rename(folder.raw.with_name("elsewhere"))
    assert changes(folder) == ""
    folder.raw.mkdir()
    assert changes(folder) == ""


def test_outlines_have_changed(folder):
    folder.pairs(8, shape=(16, 16))
    square = [[[2, 2], [9, 2], [9, 9], [2, 9], [2, 2]]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": square}}
    for i in range(8):
        content = {"type": "FeatureCollection", "features": [feature]}
        (folder.raw / f"in/{i:02d}.geojson").write_text(json.dumps(content))
    options = {"target": {}, "polygons": PolygonConfig("in/{id}.geojson")}
    folder.prepare(**options)
    assert len(read_raw_files(folder.final / "train.h5")) == 24
    touch(folder.raw / "in/05.geojson")
    assert '(1 changed, such as "in/05.geojson")' in changes(folder, **options)


def test_commands_say_so(folder, monkeypatch, tmp_path, capsys):
    folder.pairs()
    monkeypatch.chdir(tmp_path)
    path = Path("configs/data/d.yaml")
    path.parent.mkdir(parents=True)
    text = yaml.safe_dump({"raw": str(folder.raw), "image": {"a": "in/{id}.tif"}, "target": {"t": "out/{id}.tif"}})
    path.write_text(text)
    assert main(["data", "d", "--root", "processed"]) == 0
    monkeypatch.setattr("project.data.inspection.report.inspect_dataset", lambda *_: None)
    path.write_text(f"# a comment\n{text}")
    assert main(["inspect", "d", "--root", "processed"]) == 0
    assert "warning" not in capsys.readouterr().out
    for content, where in (
        (f"{text}split: {{seed: 1}}\n", "(split.seed)"),
        (f"{text}imag: x\n", "cannot be read"),
    ):
        path.write_text(content)
        prerequisites._warn_if_outdated.cache_clear()  # each command is a process of its own
        assert main(["inspect", "d", "--root", "processed"]) == 0
        warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")]
        assert len(warnings) == 1
        assert where in warnings[0]
