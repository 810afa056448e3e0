"""`make data RAW=folder NAME=mine`: the config is written, used, and never replaced."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from project.cli import main
from project.data.proposal import propose
from project.data.proposal.propose import propose_config
from project.data.raw.find_samples import find_samples
from project.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory without configs, with pairs of images of eight fields in it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    for i in range(8):
        for name in ("phase", "gfp"):
            tifffile.imwrite(tmp_path / f"raw/im{i:03}_{name}.tif", rng.integers(0, 4000, (40, 40)).astype(np.uint16))
    return tmp_path


def test_config_is_written_and_the_data_prepared(folder, capsys):
    assert main(["data", "mine", "--raw", "raw"]) == 0
    text = (folder / "configs/data/mine.yaml").read_text()
    assert text in capsys.readouterr().out
    assert (folder / "data/processed/mine/test.h5").is_file()
    keys = [line for line in text.splitlines() if line[0] not in "# "]
    before = [
        line for line, following in zip(text.splitlines(), text.splitlines()[1:], strict=False) if following in keys
    ]
    assert all(line.startswith("# ") for line in before)
    assert main(["data", "mine"]) == 0


def test_existing_config_is_not_replaced(folder, capsys):
    (folder / "configs/data").mkdir(parents=True)
    (folder / "configs/data/mine.yaml").write_text("raw: elsewhere\n")
    assert main(["data", "mine", "--raw", "raw"]) == 2
    assert "mine.yaml exists" in capsys.readouterr().err
    assert (folder / "configs/data/mine.yaml").read_text() == "raw: elsewhere\n"


def test_nothing_is_written_for_an_ambiguous_folder(folder, capsys):
    for path in (folder / "raw").glob("*_phase.tif"):
        path.rename(path.with_name(path.name.replace("phase", "rfp")))
    assert main(["data", "mine", "--raw", "raw"]) == 2
    printed = capsys.readouterr().err
    assert "target:" in printed
    assert "rfp: '{id}_rfp.tif'" in printed
    assert not (folder / "configs").exists()


@pytest.mark.parametrize("raw", ["nowhere", "empty"])
def test_folder_without_images_is_refused(folder, capsys, raw):
    (folder / "empty").mkdir()
    assert main(["data", "mine", "--raw", raw]) == 2
    assert raw in capsys.readouterr().err


@pytest.mark.parametrize("name", ["set.npz", "set.h5", "train-images-idx3-ubyte.gz"])
def test_damaged_arrays_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        propose_config(tmp_path)


def test_mistakes_in_a_folder_are_named(folder):
    raw, labels = folder / "raw", "image,kind\n" + "".join(f"im{i:03}_phase,a\n" for i in range(8))
    for path in raw.glob("*_gfp.tif"):
        path.unlink()
    (raw / "t.csv").write_text(labels.replace("im003_phase,a", "im003_phase,b"))
    assert "no `stratify`: b has a single image" in " ".join(propose_config(raw).split("\n# "))
    (raw / "t.csv").write_text(labels + "im003_phase,a\n")
    with pytest.raises(UserError, match=r"same row more than once, for im003_phase.tif: delete"):
        propose_config(raw)
    (raw / "t.csv").unlink()
    (raw / "im003_phase.png").write_bytes((raw / "im003_phase.tif").read_bytes())
    with pytest.raises(UserError, match=r"give the same ids:\n  - im003_phase"):
        propose_config(raw)
    (raw / "im003_phase.png").unlink()
    for i in range(8):
        tifffile.imwrite(raw / f"im{i:03}_mask.tif", np.zeros((40, 40), np.uint8))
    with pytest.raises(UserError, match="nothing is annotated"):
        propose_config(raw)


def test_pages_and_a_single_file_have_their_hints(folder):
    rng, raw = np.random.default_rng(0), folder / "two"
    raw.mkdir()
    for i in range(5):
        stack = rng.integers(0, 4000, (2, 40, 40)).astype(np.uint16)
        tifffile.imwrite(raw / f"{i}.tif", stack, imagej=True, metadata={"axes": "CYX"})
    assert 'is one of them the target? Then `target: {name: "{id}.tif[1]"}`' in " ".join(
        propose_config(raw).split("\n# ")
    )
    for path in (folder / "raw").glob("im00[1-7]*.tif"):
        path.unlink()
    assert "by: place" in propose_config(folder / "raw")


def test_images_must_not_get_lost(folder, monkeypatch):
    """A proposal that finds only some of the samples is not written."""
    assert "{id}_phase.tif" in propose_config(folder / "raw")
    monkeypatch.setattr(propose, "find_samples", lambda *arguments: find_samples(*arguments)[:4])
    with pytest.raises(UserError, match="8 of 16 images would not be used"):
        propose_config(folder / "raw")
