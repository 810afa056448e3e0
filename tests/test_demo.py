"""The demonstration data is the same everywhere and has the properties the tutorials rely on."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile

from project import demo

N, SIZE = 60, 64  # three images of every group


def read(folder: Path, image_id: str, kind: str) -> np.ndarray:
    group, stem = image_id.split("/")
    return tifffile.imread(folder / group / kind / f"{stem}.tif")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def yeast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("yeast")
    demo.simulate_yeast(folder, N, SIZE, seed=3)
    return folder


@pytest.fixture(scope="module")
def rows(yeast: Path) -> list[dict[str, str]]:
    with (yeast / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_second_run_writes_the_same_bytes_and_another_seed_does_not(tmp_path, yeast):
    demo.simulate_yeast(tmp_path / "again", N, SIZE, seed=3)
    assert contents(tmp_path / "again") == contents(yeast)
    demo.simulate_yeast(tmp_path / "other", 2, SIZE, seed=4)
    first = contents(tmp_path / "other")["day1_trap01/brightfield/0000.tif"]
    assert first != contents(yeast)["day1_trap01/brightfield/0000.tif"]


def test_samples_and_files_name_each_other(yeast, rows):
    assert list(rows[0]) == ["id", "day", "trap", "label", "n_cells", "budding_fraction"]
    assert len({row["id"] for row in rows}) == len(rows) == N
    for kind in ("brightfield", "fluorescence", "masks"):
        found = {f"{path.parent.parent.name}/{path.stem}" for path in yeast.glob(f"*/{kind}/*.tif")}
        assert found == {row["id"] for row in rows}
    for row in rows:
        assert row["id"].split("/")[0] == f"day{row['day']}_trap{int(row['trap']):02d}"
    assert len({(row["day"], row["trap"]) for row in rows}) == 20


def test_classes_are_balanced_in_every_group_and_not_predictable_from_the_frame_number(rows):
    assert Counter(row["label"] for row in rows) == dict.fromkeys(("budding", "arrested", "starved"), N // 3)
    per_group = Counter((row["day"], row["trap"], row["label"]) for row in rows)
    assert set(per_group.values()) == {1}
    assert len({row["label"] for row in rows if row["id"].endswith("/0000")}) == 3


def test_values_of_the_images(yeast, rows):
    for row in rows:
        bright, glow, masks = (read(yeast, row["id"], kind) for kind in ("brightfield", "fluorescence", "masks"))
        assert {(image.shape, image.dtype) for image in (bright, glow, masks)} == {((SIZE, SIZE), np.dtype(np.uint16))}
        assert np.unique(masks).tolist() == list(range(int(row["n_cells"]) + 1))
        assert bright.min() > 8000  # narrow and far from zero
        assert int(bright.max()) - int(bright.min()) < 0.12 * 65535
        assert 180 < glow.min() < 450
        assert glow[masks > 0].mean() > 2 * np.median(glow[masks == 0])


def predictable_share(n_images: int = 300, seed: int = 0) -> dict[str, float]:
    """Measure how well a perfect predictor could predict fluorescence from bright field.

    It knows every visible part exactly (outlines, vacuole, nucleus, granules, focus) and answers with the mean over the
    rest. For "_new_group", a trap never seen, gain, offset and autofluorescence are the middle of their ranges.
    """
    typical = {name: (low + high) / 2 for name, (low, high) in demo.GROUP_RANGES.items()}
    stacks: dict[str, list[np.ndarray]] = {"target": [], "": [], "_new_group": []}
    for index in range(n_images):
        scene = demo._scene(seed, index, 128)
        stacks["target"].append(demo._record(seed, index, scene)["fluorescence"].ravel().astype(float))
        for suffix, group in {"": demo._group(seed, index), "_new_group": typical}.items():
            stacks[suffix].append(demo._fluorescence(scene, group, None).ravel())
    y, scores = np.array(stacks["target"]), {}
    for suffix in ("", "_new_group"):
        p = np.array(stacks[suffix])
        scores[f"pearson{suffix}"] = float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(y, p, strict=True)]))
        scores[f"r2{suffix}"] = float(np.mean(1 - ((y - p) ** 2).mean(1) / y.var(1)))
        scores[f"r2_pooled{suffix}"] = float(1 - ((y - p) ** 2).mean() / y.var())
    return scores


def test_part_of_the_fluorescence_cannot_be_predicted(monkeypatch):
    share = predictable_share(20)
    assert 0.92 < share["pearson"] < 0.98
    assert 0.83 < share["r2"] < 0.93
    assert 0.83 < share["r2_pooled"] < 0.93
    assert share["r2_new_group"] < share["r2"]
    monkeypatch.setattr(demo, "RESIDUAL_SD", 0.0)
    monkeypatch.setattr(demo, "NUCLEUS_GAIN", (demo.NUCLEUS_GAIN[0], 0.0))
    assert predictable_share(20)["r2"] > 0.98  # what is left is noise


def test_ihc_is_a_pair_of_equal_shape(tmp_path):
    demo.export_ihc(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.tif")} == {"grey/ihc.tif", "haematoxylin/ihc.tif"}
    grey, stain = (tifffile.imread(tmp_path / kind / "ihc.tif") for kind in ("grey", "haematoxylin"))
    assert grey.shape == stain.shape == (512, 512)
    assert (grey.dtype, stain.dtype) == (np.uint8, np.float32)
    assert grey.std() > 20
    assert stain.std() > 0
    assert np.corrcoef(grey.ravel(), stain.ravel())[0, 1] < -0.2  # stain absorbs light
