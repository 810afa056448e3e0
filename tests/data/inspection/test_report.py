import csv
import io
import json
import re

import h5py
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from project.data.inspection import figures as pictures
from project.data.inspection.images import UNUSUAL_Z
from project.data.inspection.report import inspect, make_report
from project.data.inspection.rows import histograms, read_split
from project.data.split_writer import SplitWriter
from project.data.store import SplitReader
from project.errors import UserError
from project.formatting import FEW, format_percent

RNG = np.random.default_rng(0)


def write(folder, split, /, arrays, ids=None, groups=None, labels=None, **attributes):
    """One split file from role -> list of arrays."""
    n = len(arrays["image"])
    ids = ids or [f"{split}{i}" for i in range(n)]
    shapes = {role: [a.shape for a in each] for role, each in arrays.items()}
    dtypes = {role: each[0].dtype for role, each in arrays.items()}
    channels = {role: [f"c{i}" for i in range(each[0].shape[0])] for role, each in arrays.items() if each[0].ndim == 3}
    folder.mkdir(parents=True, exist_ok=True)
    labels = None if labels is None else np.array(labels)
    with SplitWriter(folder / f"{split}.h5", shapes, dtypes, ids, groups or ids, labels) as writer:
        for index in range(n):
            for role, each in arrays.items():
                writer.write(index, role, each[index])
        writer.finish({"channels": channels, "classes": None, "ignore_index": None} | attributes)


def noise(n, mean=1000, std=50, shape=(1, 16, 16), dtype=np.uint16):
    return [RNG.normal(mean, std, shape).astype(dtype) for _ in range(n)]


def look(folder):
    """The report without pictures: what most tests need."""
    paths = [p for s in ("train", "val", "test") if (p := folder / f"{s}.h5").is_file()]
    return make_report("d", {p.stem: read_split(p.stem, SplitReader(p), Console(file=io.StringIO())) for p in paths})[0]


def said(report, *words):
    """The warnings that hold all the words."""
    return [w for w in report["warnings"] if all(word in w for word in words)]


def table(folder):
    with (folder / "inspect" / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


# Ranges


def test_ranges_and_statistics_are_those_of_numpy(tmp_path):
    train, val = noise(4, 5000, 800, (2, 9, 11)), noise(3, 5200, 700, (2, 9, 11))
    write(tmp_path, "train", {"image": train})
    write(tmp_path, "val", {"image": val})
    report = look(tmp_path)
    assert [c["channel"] for c in report["channels"]] == ["c0", "c1"]
    for c, entry in enumerate(report["channels"]):
        every, mine = np.stack(train + val)[:, c], np.stack(train)[:, c]
        assert (entry["min"], entry["max"]) == (every.min(), every.max())
        assert entry["n_distinct"] == len(np.unique(every))
        assert entry["bits"] == pytest.approx(np.log2(int(every.max()) - int(every.min()) + 1))
        assert entry["used_share"] == pytest.approx((int(every.max()) - int(every.min())) / 65535)
        found = entry["splits"]["train"]
        assert (found["mean"], found["std"]) == (pytest.approx(mine.mean()), pytest.approx(mine.std()))
        for p in (0.1, 1, 50, 99, 99.9):
            assert found["percentiles"][f"{p:g}"] == pytest.approx(np.percentile(mine, p))
    assert report["warnings"] == []


def test_the_range_is_told_in_words(tmp_path):
    image = np.full((1, 8, 8), 10000, np.uint16)
    image[0, 0, :3] = 9012, 15034, 12001
    write(tmp_path, "train", {"image": [image]})
    told = "uint16, uses 9012..15034 of 0..65535 (9.2 %), 12.6 bits; 4 distinct values"
    assert look(tmp_path)["channels"][0]["text"] == told


@pytest.mark.parametrize(("largest", "eight_bit"), [(255, True), (256, False)])
def test_eight_bit_values_in_uint16(tmp_path, largest, eight_bit):
    image = np.arange(64, dtype=np.uint16).reshape(1, 8, 8)
    image[0, -1, -1] = largest
    write(tmp_path, "train", {"image": [image]})
    assert any("8-bit values in uint16" in note for note in look(tmp_path)["notes"]) == eight_bit


@pytest.mark.parametrize(("smallest", "far"), [(6000, False), (7000, True)])
def test_values_far_from_zero(tmp_path, smallest, far):
    image = (smallest + np.arange(64)).astype(np.uint16).reshape(1, 8, 8)
    write(tmp_path, "train", {"image": [image]})
    assert any("far from zero" in note for note in look(tmp_path)["notes"]) == far


def test_values_that_were_stretched(tmp_path):
    write(tmp_path, "train", {"image": [image * 16 for image in noise(3)]})
    report = look(tmp_path)
    assert report["channels"][0]["step"] == 16
    assert any("16 apart" in note for note in report["notes"])


def test_each_image_stretched_by_itself_is_not_called_saturated(tmp_path):
    images = noise(6, 20000, 5000, (1, 40, 40))
    for image in images:
        image[0, 0, 0] = 65535
    write(tmp_path, "train", {"image": images})
    report = look(tmp_path)
    assert any("stretched by itself" in note for note in report["notes"])
    assert not said(report, "largest value")


@pytest.mark.parametrize(("n_white", "normal"), [(6, True), (4, True), (3, False)])
def test_white_in_most_inputs_is_normal_and_told_once(tmp_path, n_white, normal):
    images = noise(6, 20000, 5000)
    for image in images[:n_white]:
        image[0, :2] = 65535
    write(tmp_path, "train", {"image": images, "target": images[::-1]})
    report = look(tmp_path)
    sentence = f"{n_white} of 6 images have more than 0.1 % of the pixels at the largest value, 65535"
    assert not any("stretched by itself" in note for note in report["notes"])
    assert [sentence in note for note in report["notes"]].count(True) == normal
    assert bool(said(report, "image/c0", sentence)) != normal
    assert len(report["images"]["saturated"]["image/c0"]) == (0 if normal else n_white)
    # What is to be predicted is lost however many have it.
    assert said(report, "target/c0", sentence)


# Single images


@pytest.mark.parametrize("ceiling", [65535, 4095])
def test_saturated_images(tmp_path, ceiling):
    images = [np.clip(i, 0, ceiling) for i in noise(6, 3000, 200, (1, 32, 32))]
    images[2][0, :8] = ceiling
    write(tmp_path, "train", {"image": images})
    report = look(tmp_path)
    assert report["images"]["saturated"] == {"image/c0": [["train", "train2"]]}
    assert said(report, "1 of 6 images has", f"largest value, {ceiling}", "train2 (train, 25 %)")
    assert report["channels"][0]["saturated"]["train"] == pytest.approx(0.25 / 6)


def test_a_natural_maximum_and_a_binary_picture_are_not_saturated(tmp_path):
    binary = [(i > 1000).astype(np.uint8) * 255 for i in noise(6)]
    write(tmp_path, "train", {"image": noise(6, shape=(1, 64, 64)), "target": [np.repeat(b, 4, -1) for b in binary]})
    report = look(tmp_path)
    assert [c["ceiling"] for c in report["channels"]] == [None, None]
    assert not said(report, "largest value")


def test_clipped_floats_are_saturated(tmp_path):
    images = [np.clip(i, 0, 1) for i in noise(5, 0.5, 0.1, dtype=np.float32)]
    images[3][0, :4] = 1
    write(tmp_path, "train", {"image": images})
    assert look(tmp_path)["images"]["saturated"]["image/c0"] == [["train", "train3"]]


def test_constant_image(tmp_path):
    write(tmp_path, "train", {"image": [*noise(5), np.full((1, 16, 16), 1000, np.uint16)]})
    report = look(tmp_path)
    assert report["images"]["constant"] == {"image/c0": [["train", "train5"]]}
    assert said(report, "image/c0", "one value everywhere", "train5 (train, 1000)")


def test_unusual_image_and_many_are_cut_short(tmp_path):
    write(tmp_path, "train", {"image": [*noise(12), *noise(1, 1400)]})
    report = look(tmp_path)
    assert report["images"]["unusual"] == {"image/c0": [["train", "train12"]]}
    assert said(report, "train12", "far from the usual", f"above {UNUSUAL_Z:g}")
    write(tmp_path, "val", {"image": noise(FEW + 3, 1400)})
    assert said(look(tmp_path), "far from the usual", "and 4 more")


def test_z_is_the_robust_one(tmp_path):
    images = [np.full((1, 4, 4), 100 + 10 * i, np.uint16) for i in range(5)]
    write(tmp_path, "train", {"image": images})
    inspect(tmp_path, Console(file=io.StringIO()))
    rows = table(tmp_path)
    assert [float(row["image/c0 z"]) for row in rows] == pytest.approx(np.array([-2, -1, 0, 1, 2]) / 1.4826)


def test_duplicates_within_and_across_splits(tmp_path):
    train, val = noise(4), noise(3)
    train[3] = train[1]
    val[2] = train[0]
    write(tmp_path, "train", {"image": train})
    write(tmp_path, "val", {"image": val})
    report = look(tmp_path)
    assert report["images"]["duplicates"] == [
        {"role": "image", "across_splits": True, "samples": [["train", "train0"], ["val", "val2"]]},
        {"role": "image", "across_splits": False, "samples": [["train", "train1"], ["train", "train3"]]},
    ]
    assert said(report, "different splits", "train0 (train) = val2 (val)")
    assert said(report, "in one split", "train1 (train) = train3 (train)")


def test_one_pixel_makes_no_duplicate(tmp_path):
    first = noise(1)[0]
    second = first.copy()
    second[0, 3, 3] += 1
    write(tmp_path, "train", {"image": [first, second]})
    assert look(tmp_path)["images"]["duplicates"] == []


def test_target_that_is_the_input(tmp_path):
    images, targets = noise(3), noise(3)
    write(tmp_path, "train", {"image": images, "target": [targets[0], images[1], targets[2]]})
    report = look(tmp_path)
    assert report["images"]["target_is_image"] == [["train", "train1"]]
    assert said(report, "target that is the input", "train1")


# Splits and groups


@pytest.mark.parametrize(("factor", "warned"), [(10, True), (0.1, True), (1, False), (1.1, False)])
def test_split_of_another_brightness(tmp_path, factor, warned):
    write(tmp_path, "train", {"image": noise(6)})
    write(tmp_path, "val", {"image": noise(3, 1000 * factor, 50 * factor)})
    found = said(look(tmp_path), "image/c0: val is", "than train")
    assert bool(found) == warned
    if warned:
        times, word = re.search(r"val is (\S+) times (\w+) than", found[0]).groups()
        assert float(times) == pytest.approx(10, rel=0.05)
        assert word == ("brighter" if factor > 1 else "darker")


@pytest.mark.parametrize(("factor", "warned"), [(10, True), (1, False)])
def test_group_of_another_brightness(tmp_path, factor, warned):
    images = noise(6) + noise(3, 1000 * factor, 50 * factor)
    write(tmp_path, "train", {"image": images}, groups=["a"] * 3 + ["b"] * 3 + ["c"] * 3)
    report = look(tmp_path)
    assert report["groups"]["c"]["channels"]["image/c0"]["mean"] == pytest.approx(1000 * factor, rel=0.01)
    assert bool(said(report, "another brightness", "c (mean")) == warned
    # One bright group must not make all others look dark.
    assert not said(report, "another brightness", "a (mean")


def test_two_training_groups_are_compared_with_each_other(tmp_path):
    write(tmp_path, "train", {"image": noise(3) + noise(3, 10000, 500)}, groups=["a"] * 3 + ["b"] * 3)
    assert said(look(tmp_path), "2 of 2 groups have", "a (mean", "b (mean")


def test_folders_stand_in_for_groups(tmp_path):
    ids = [f"ds1/{i}" for i in range(4)] + [f"ds2/{i}" for i in range(2)]
    write(tmp_path, "train", {"image": noise(4) + noise(2, 10000, 500)}, ids=ids)
    report = look(tmp_path)
    assert list(report["groups"]) == ["ds1", "ds2"]
    assert said(report, "another brightness", "ds2 (mean")


# Kinds of data


def test_images_of_different_sizes(tmp_path):
    sizes = [(1, 20, 30), (1, 24, 16), (1, 40, 12)]
    images = [noise(1, shape=s)[0] for s in sizes]
    write(tmp_path, "train", {"image": images, "instances": [np.ones(s[1:], np.uint16) for s in sizes]})
    report = inspect(tmp_path, Console(file=io.StringIO()))
    role = report["splits"]["train"]["roles"]["image"]
    assert (role["smallest"], role["largest"]) == ([1, 20, 12], [1, 40, 30])
    assert report["channels"][0]["n"] == sum(np.prod(s) for s in sizes)
    rows = table(tmp_path)
    assert [(int(r["height"]), int(r["width"])) for r in rows] == [s[1:] for s in sizes]


def test_floats_that_are_not_finite(tmp_path):
    images = noise(6, 0, 1, dtype=np.float32)
    images[1][0, 0, :3] = np.nan, np.inf, -np.inf
    images[4][:] = np.nan
    write(tmp_path, "train", {"image": images, "target": [np.full((1, 16, 16), np.nan, np.float32)] * 6})
    report = inspect(tmp_path, Console(file=io.StringIO()))
    entry, target = report["channels"]
    assert (entry["n"], entry["n_not_finite"]) == (5 * 256 - 3, 256 + 3)
    finite = np.concatenate([i[np.isfinite(i)] for i in images])
    assert (entry["min"], entry["max"]) == (finite.min(), finite.max())
    assert entry["splits"]["train"]["mean"] == pytest.approx(finite.mean(dtype=np.float64))
    assert target["min"] is None
    assert report["images"]["not_finite"]["image/c0"] == [["train", "train4"], ["train", "train1"]]
    assert said(report, "2 of 6 images have NaN", "train4 (train, 256), train1 (train, 3)")  # the worst first
    assert strict(tmp_path / "inspect" / "report.json") == report


def test_class_balance_of_masks(tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[0], mask[1, 0], mask[2] = 1, 2, 255
    arrays = {"image": noise(1), "mask": [mask]}
    named = {"classes": {"mask": ["soil", "root", "stone", "worm"]}, "ignore_index": 255}
    write(tmp_path, "train", arrays, **named)
    report = look(tmp_path)
    counts = report["classes"]["mask"]["train"]
    assert {name: entry["count"] for name, entry in counts.items()} == {
        "soil": 256 - 33, "root": 16, "stone": 1, "worm": 0, "not annotated": 16
    }  # fmt: skip
    assert counts["root"]["share"] == pytest.approx(16 / 240)
    assert said(report, "mask: train holds no worm")
    assert said(report, "rare in train: stone (0.42 %)")
    assert not said(report, "Renumber")
    write(tmp_path, "train", arrays, **named | {"ignore_index": None})
    assert said(look(tmp_path), "mask: values 255", "ignore_index")
    write(tmp_path, "train", arrays, **named | {"classes": {"mask": ["soil", "root"]}})
    assert said(look(tmp_path), "mask: values 2, but the classes are 0 to 1")


@pytest.mark.parametrize(
    ("background", "expected"),
    [("soil", (pytest.approx(2 / 3), 0)), ("root", (pytest.approx(2 / 3), 1)), (None, (None, None))],
)
def test_foreground_is_a_share_of_the_annotated_pixels(tmp_path, background, expected):
    named = {"classes": {"mask": ["soil", "root", "stone"]}, "background": background}
    masks = [np.repeat(np.array([[values]], np.uint8), 4, axis=1)[0] for values in ([0, 1, 2, 255], [255] * 4, [0] * 4)]
    write(tmp_path, "train", {"image": noise(3, shape=(1, 4, 4)), "mask": masks}, ignore_index=255, **named)
    rows = read_split("train", SplitReader(tmp_path / "train.h5"), Console(file=io.StringIO())).rows
    assert [row.foreground for row in rows] == [expected[0], None, expected[1]]
    assert [row.annotated for row in rows] == [0.75, 0, 1]


def test_mask_without_class_names_counts_from_zero(tmp_path):
    for top, stray in ((1, False), (255, True)):
        masks = [(i[0] > 1000).astype(np.uint8) * top for i in noise(2)]
        write(tmp_path, "train", {"image": noise(2), "mask": masks})
        assert bool(said(look(tmp_path), f"mask: values 0, {top}")) == stray


def test_class_balance_of_labels(tmp_path):
    write(tmp_path, "train", {"image": noise(5)}, labels=[0, 0, 1, 0, 1], classes={"label": ["wild", "mutant"]})
    write(tmp_path, "val", {"image": noise(2)}, labels=[0, 0], classes={"label": ["wild", "mutant"]})
    report = look(tmp_path)
    assert report["classes"]["label"] == {
        "train": {"wild": {"count": 3, "share": 0.6}, "mutant": {"count": 2, "share": 0.4}},
        "val": {"wild": {"count": 2, "share": 1.0}, "mutant": {"count": 0, "share": 0.0}},
    }
    assert said(report, "label: val holds no mutant")
    assert not said(report, "label: train")


def test_labels_where_an_image_may_have_several(tmp_path):
    names = {"classes": {"label": ["round", "budding", "dead"]}}
    write(tmp_path, "train", {"image": noise(4)}, labels=[[1, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]], **names)
    report = inspect(tmp_path, Console(file=io.StringIO()))
    assert report["classes"]["label"] == {
        "train": {
            "round": {"count": 3, "share": 0.75},
            "budding": {"count": 2, "share": 0.5},
            "dead": {"count": 0, "share": 0.0},
        }
    }
    assert said(report, "label: train holds no dead")
    assert [row["label"] for row in table(tmp_path)] == ["0 1", "0 1", "", "0"]


def test_masks_and_labels_have_their_own_names(tmp_path):
    names = {"classes": {"mask": ["soil", "root"], "label": ["wild", "mutant", "lost"]}}
    masks = [(i[0] > 1000).astype(np.uint8) for i in noise(2)]
    write(tmp_path, "train", {"image": noise(2), "mask": masks}, labels=[0, 1], **names)
    report = look(tmp_path)
    assert list(report["classes"]["mask"]["train"]) == ["soil", "root"]
    assert list(report["classes"]["label"]["train"]) == ["wild", "mutant", "lost"]


def test_objects_per_image(tmp_path):
    def objects(*numbers):
        array = np.zeros((16, 16), np.uint16)
        array[0, : len(numbers)] = numbers
        return array

    # Numbers may have gaps, and an object may fill the image.
    full = np.full((16, 16), 9, np.uint16)
    write(tmp_path, "train", {"image": noise(4), "instances": [objects(1, 2, 7), objects(5), objects(), full]})
    report = look(tmp_path)
    assert report["objects"]["train"] == {
        "mean": 1.25,
        "median": 1.0,
        "min": 0,
        "max": 3,
        "n_images": 4,
        "n_without": 1,
    }
    assert said(report, "1 of 4 images has no object", "train2 (train)")
    assert not said(report, "foreground")
    write(tmp_path, "train", {"image": noise(3), "instances": [objects(255, 255), objects(255), objects(255)]})
    assert said(look(tmp_path), "foreground")


# Files and terminal


def test_report_rows_and_pictures(tmp_path):
    photo = [RNG.integers(0, 256, (3, 24, 40)).astype(np.uint8) for _ in range(3)]
    cells = np.zeros((24, 40), np.uint16)
    cells[4:12, 4:12], cells[4:12, 12:20] = 1, 2
    for split in ("train", "test"):
        shade = 0 if split == "train" else 1
        arrays = {"image": [p ^ shade for p in photo], "target": noise(3, shape=(1, 24, 40))}
        write(tmp_path, split, arrays | {"instances": [cells] * 3, "mask": [cells] * 3}, labels=[0, 1, 1])
    report = inspect(tmp_path, Console(file=io.StringIO()))
    folder = tmp_path / "inspect"
    assert strict(folder / "report.json") == report
    assert report["pictures"] == ["histograms.png", "brightness.png", "contact_train.png", "contact_test.png"]
    assert {p.name for p in folder.iterdir()} == {"report.json", "report.html", "images.csv", *report["pictures"]}
    for name in report["pictures"]:
        with Image.open(folder / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    rows = table(tmp_path)
    assert len(rows) == 6
    assert (rows[1]["split"], rows[1]["id"], rows[1]["label"], rows[1]["objects"]) == ("train", "train1", "1", "2")
    assert float(rows[1]["image/c2 mean"]) == pytest.approx(photo[1][2].mean())
    assert float(rows[1]["image/c2 std"]) == pytest.approx(photo[1][2].std())


def test_an_earlier_inspection_is_replaced_whole(tmp_path):
    write(tmp_path, "train", {"image": noise(2)})
    write(tmp_path, "val", {"image": noise(2)})
    inspect(tmp_path, Console(file=io.StringIO()))
    assert (tmp_path / "inspect" / "contact_val.png").exists()
    (tmp_path / "val.h5").unlink()
    inspect(tmp_path, Console(file=io.StringIO()))
    assert not (tmp_path / "inspect" / "contact_val.png").exists()
    assert not (tmp_path / ".inspect.partial").exists()


def test_a_failing_inspection_keeps_the_earlier_one(tmp_path, monkeypatch):
    write(tmp_path, "train", {"image": noise(2)})
    inspect(tmp_path, Console(file=io.StringIO()))
    before = (tmp_path / "inspect" / "report.json").read_bytes()
    write(tmp_path, "train", {"image": noise(2, 5000)})

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(pictures, "draw", full)
    with pytest.raises(UserError, match="no space left"):
        inspect(tmp_path, Console(file=io.StringIO()))
    assert (tmp_path / "inspect" / "report.json").read_bytes() == before
    assert not (tmp_path / ".inspect.partial").exists()


def test_nothing_prepared(tmp_path):
    with pytest.raises(UserError, match="make data DATASET=cells"):
        inspect(tmp_path / "cells")


def test_the_terminal_shows_warnings_last_and_brackets_as_they_are(tmp_path):
    images = [*noise(5, shape=(2, 16, 16)), np.full((2, 16, 16), 7, np.uint16)]
    ids = [f"[red]{i}" for i in range(6)]
    groups = ["[b]day1"] * 3 + ["[b]day2"] * 3
    write(tmp_path, "train", {"image": images}, ids=ids, groups=groups, channels={"image": ["stack"]})
    console = Console(file=io.StringIO(), width=200)
    inspect(tmp_path, console)
    text = console.file.getvalue()
    assert "image/stack[1]: uint16" in text
    assert "[red]5 (train, stack[0], 7)" in text
    assert "[b]day1   " in text
    assert text.index("Warnings") > text.index("image/stack[1]: uint16")
    assert "histograms.png" in text[text.index("Warnings") :]
    assert text.endswith(f"open {tmp_path / 'inspect' / 'report.html'}\n")


def test_one_sample_is_in_memory_at_a_time(tmp_path, monkeypatch):
    import gc
    import weakref

    write(tmp_path, "train", {"image": noise(5)})
    alive, real = [], SplitReader.read

    def read(self, name, index, window=None, out=None):
        array = real(self, name, index, window, out)
        gc.collect()
        alive.append(weakref.ref(array))
        assert sum(r() is not None for r in alive) <= 2  # the new one, and the one it replaces
        return array

    monkeypatch.setattr(SplitReader, "read", read)
    look(tmp_path)
    assert len(alive) == 5


# Pictures


def whole(split, entry):
    """The counts that are drawn over the whole range of the first channel."""
    ends = 0.0 if entry["min"] is None else entry["min"], 0.0 if entry["max"] is None else entry["max"]
    edges = [pictures._edges(entry, *ends)]
    return pictures._binned(histograms({"train": split})["image", "c0"]["train"], split.reader, ("image", "c0"), edges)[
        0
    ]


def test_sheets_and_plots_are_limited(tmp_path):
    write(tmp_path, "train", {"image": noise(30, shape=(30, 4, 4))})
    report = look(tmp_path)
    reader = SplitReader(tmp_path / "train.h5")
    sheet = pictures.draw_contact_sheet(reader, "d, train")
    titles = [axes.get_title(loc="left").split("\n")[0] for axes in sheet.axes]
    named = [title for title in titles if title]
    assert len(named) == pictures.SHOWN
    assert (named[0], named[-1]) == ("train0", "train29")
    every = histograms({"train": read_split("train", reader, Console(file=io.StringIO()))})
    assert len(pictures.draw_histograms({"train": reader}, every, report).axes) == 2 * pictures.PLOTS


@pytest.mark.parametrize(
    "images",
    [
        noise(3, 1000, 300),
        [i // 7 * 7 for i in noise(3, 1000, 300)],
        [np.array([[[0, 65535], [1, 2]]], np.uint16)],
        [np.array([[[5, 5], [5, 5]]], np.uint8)],
        noise(3, 1000, 0.01, dtype=np.float32),
        [np.array([[[np.nan, 3], [np.inf, 4]]], np.float32)],
        [np.array([[[2, 2], [2, 2]]], np.float32)],
    ],
)
def test_every_finite_pixel_is_in_the_histogram_picture(tmp_path, images):
    write(tmp_path, "train", {"image": images})
    reader = SplitReader(tmp_path / "train.h5")
    split = read_split("train", reader, Console(file=io.StringIO()))
    report, _ = make_report("d", {"train": split})
    counts = whole(split, report["channels"][0])
    assert counts.sum() == np.isfinite(np.stack(images)).sum()
    assert len(counts) <= pictures.BINS + 1


def test_narrow_floats_far_from_zero_are_resolved(tmp_path):
    write(tmp_path, "train", {"image": noise(3, 1000, 0.1, (1, 64, 64), np.float32)})
    reader = SplitReader(tmp_path / "train.h5")
    split = read_split("train", reader, Console(file=io.StringIO()))
    assert (whole(split, make_report("d", {"train": split})[0]["channels"][0]) > 0).sum() > pictures.BINS / 2


def test_evenly_spread_values_show_no_comb(tmp_path):
    values = (np.arange(4096) * 4 % 300).astype(np.uint16).reshape(1, 64, 64)
    values[0, 0, 0] = 1  # one odd value, so that the common step is 1 and not 4
    write(tmp_path, "train", {"image": [values]})
    reader = SplitReader(tmp_path / "train.h5")
    split = read_split("train", reader, Console(file=io.StringIO()))
    entry = make_report("d", {"train": split})[0]["channels"][0]
    assert entry["step"] == 1
    assert (whole(split, entry) > 0).all()


@pytest.mark.parametrize("background", [None, "sky"])
def test_a_contact_sheet_names_the_classes_in_their_colours(tmp_path, background):
    mask = np.array([[0, 1], [2, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    named = {"classes": {"mask": ["sky", "car", "tree"]}, "background": background, "ignore_index": 255}
    write(tmp_path, "train", {"image": noise(1), "mask": [mask]}, **named)
    sheet = pictures.draw_contact_sheet(SplitReader(tmp_path / "train.h5"), "d, train")
    (legend,) = sheet.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sky", "car", "tree", "not annotated"]
    overlay = sheet.axes[-1].images[-1].get_array()
    patches = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    for color, (y, x) in zip(patches, [(0, 0), (0, 8), (8, 0), (8, 8)], strict=True):
        if background is None or (y, x) != (0, 0):
            assert overlay[y, x].tolist() == pytest.approx([*color, 0.5])
    assert overlay[0, 0, 3] == (0.5 if background is None else 0)  # the input shows through


def test_outlines_lie_on_borders_only():
    labels = np.zeros((9, 12), np.uint16)
    labels[2:7, 1:6], labels[2:7, 6:11] = 3, 8
    edge = pictures._outlines(labels)
    assert edge[4, 3] == 0
    assert edge[0, 0] == 0
    assert (edge[4, 1], edge[4, 0]) == (3, 3)
    assert (edge[4, 5], edge[4, 6]) == (8, 8)
    assert not pictures._outlines(np.ones((4, 4), np.uint16)).any()


def test_black_and_white_are_percentiles_of_each_channel():
    planes = np.stack([np.arange(1001.0).reshape(7, 143), np.arange(1001.0).reshape(7, 143) * 100]).astype(np.float32)
    small, low, high = pictures.stretched(planes)
    assert (low, high) == (pytest.approx(5), pytest.approx(995))
    assert np.allclose(small[0], small[1], atol=1e-6)
    assert (small.min(), small.max()) == (0, 1)


def test_shares_are_never_rounded_to_nothing_or_all():
    assert [format_percent(s) for s in (0, 1e-7, 0.0123, 0.5, 0.99999, 1)] == [
        "0 %",
        "1e-05 %",
        "1.2 %",
        "50 %",
        "99.9 %",
        "100 %",
    ]


def test_blank_images_are_no_duplicates_and_folds_are_places(tmp_path):
    images = [np.full((1, 16, 16), 7, np.uint16)] * 3 + noise(3)
    images += [images[-1]]
    write(tmp_path, "train", {"image": images})
    report = look(tmp_path)
    assert [len(each["samples"]) for each in report["images"]["duplicates"]] == [2]
    assert not report["images"]["duplicates"][0]["across_splits"]
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file["fold"] = np.arange(7) % 2
    report = look(tmp_path)
    assert [each["across_splits"] for each in report["images"]["duplicates"]] == [True]
    assert said(report, "fold 0")
