"""Raw folders as they come: broken files, stray values, copies, and strange names."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import tifffile

from project.data.config import SizesConfig, SplitConfig, TableConfig
from project.data.duplicates import signature
from project.data.raw.images import FunctionImage
from project.data.raw.samples import Sample
from project.data.raw.sources import Source

SPLITS = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
TABLE = TableConfig("t.csv", label="kind", group="well", split="split", values=["age", "size"])
WHOLE = {"table": TABLE, "mask": "m/{id}.tif"}
MASKS = {"target": {}, "mask": "m/{id}.tif"}


def put_all(folder, dtype=np.uint16, **options) -> None:
    """12 images with targets, masks and a table; the first six are for training, then three each for val and test."""
    folder.pairs(12, dtype=dtype, **options)
    rows = []
    for i, split in enumerate(SPLITS):
        folder.put(f"m/{i:02d}.tif", dtype=np.uint8, low=0, high=3)
        rows.append(f"{i:02d},{'abc'[i % 3]},w{i // 2 if i < 6 else i},{split},{i},{i / 8}")
    folder.table("id,kind,well,split,age,size", *rows)


def check_rest(folder, readers, skipped: dict[str, str]) -> None:
    """All files agree with what is left, which are the images of `put_all` but those skipped."""
    left = [f"{i:02d}" for i in range(12) if f"{i:02d}" not in skipped]
    folder.check(readers, image="in", target="out", mask="m")
    for name, reader in readers.items():
        assert reader.ids == [id_ for id_ in left if SPLITS[int(id_)] == name]
        numbers = np.array([int(id_) for id_ in reader.ids])
        head = reader.attributes
        assert {id_ for id_, reason in head["skipped"] if skipped[id_] in reason} == skipped.keys()
        assert reader.groups == [f"w{i // 2 if i < 6 else i}" for i in numbers]
        np.testing.assert_array_equal(reader.labels, numbers % 3)
        np.testing.assert_array_equal(reader.values, np.stack([numbers, numbers / 8], axis=1))
        assert head["channels"]["value"] == ["age", "size"]
        assert head["split"]["n"] == head["split"]["given"] == {each: len(readers[each]) for each in readers}
        assert head["statistics"] == readers["train"].attributes["statistics"]
        for index, id_ in enumerate(reader.ids):
            for role, place in (("image", "in"), ("target", "out")):
                check_level(reader.image_statistics[role][index, 0], folder.images[f"{place}/{id_}.tif"])
            np.testing.assert_array_equal(reader.signatures[index], signature(reader.read("image", index)))
            mask = folder.images[f"m/{id_}.tif"]
            np.testing.assert_array_equal(reader.mask_counts[index], np.bincount(mask.ravel(), minlength=3))
    check_statistics(folder, readers["train"].attributes["statistics"], readers["train"].ids)


def check_level(level: np.ndarray, image: np.ndarray) -> None:
    """Minimum, maximum, mean, standard deviation, number of values that are not finite, 1st and 99th percentile."""
    wide = image.astype(np.float64)
    expected = [wide.min(), wide.max(), wide.mean(), wide.std(), 0, *np.percentile(wide, [1, 99]), 1]
    np.testing.assert_allclose(level, expected, rtol=1e-12)


def check_statistics(folder, statistics: dict, ids: list[str]) -> None:
    """Those of these images and masks."""
    values = np.stack([folder.images[f"in/{id_}.tif"] for id_ in ids]).astype(np.float64)
    (stored,) = statistics["image"]
    assert (stored["n"], stored["min"], stored["max"]) == (values.size, values.min(), values.max())
    assert (stored["mean"], stored["std"]) == pytest.approx((values.mean(), values.std()), rel=1e-9)
    masks = np.stack([folder.images[f"m/{id_}.tif"] for id_ in ids])
    assert statistics["mask"] == {str(c): int((masks == c).sum()) for c in range(3)}
    assert statistics["n_samples"] == len(ids)
    assert statistics["label"] == {kind: sum(int(id_) % 3 == i for id_ in ids) for i, kind in enumerate("abc")}


# --- files that cannot be used ---


def break_pixels(path: Path) -> None:
    """Destroy the compressed pixels but not the header."""
    tifffile.imwrite(path, tifffile.imread(path), compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        start, length = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    content[start : start + length] = bytes(length)
    path.write_bytes(content)


def save(path: Path, change) -> None:
    tifffile.imwrite(path, change(tifffile.imread(path)))


def stray(mask: np.ndarray) -> np.ndarray:
    mask[0, :3] = 7, 7, 200
    return mask


SPOILT = {
    "missing partner": ("out", Path.unlink, "no target file"),
    "empty file": ("in", lambda path: path.write_bytes(b""), "the file is empty"),
    "broken pixels": ("out", break_pixels, "cannot be read"),
    "other size": ("out", lambda path: save(path, lambda image: image[1:]), "target 11 x 10"),
    "other dtype": ("in", lambda path: save(path, lambda image: image.astype(np.uint8)), "dtype uint8, most have"),
    "stray classes": ("m", lambda path: save(path, stray), "mask values 7, 200"),
}
CLASSES = {"mask": ["x", "y", "z"], "label": ["a", "b", "c"]}


@pytest.mark.parametrize(
    "bad",
    [
        {"03": "missing partner", "04": "other dtype", "07": "empty file", "08": "other size"},
        {"03": "broken pixels", "07": "stray classes", "08": "broken pixels"},
    ],
)
def test_unusable_files_are_reported_together_or_left_out(folder, bad):
    put_all(folder)
    folder.prepare(**WHOLE)  # must be untouched by what fails later
    for id_, kind in bad.items():
        role, spoil, _ = SPOILT[kind]
        spoil(folder.raw / f"{role}/{id_}.tif")
    reasons = {id_: SPOILT[kind][2] for id_, kind in bad.items()}
    message = folder.problem(**WHOLE, classes=CLASSES)
    lines = [line for line in message.splitlines() if line.startswith("  - ")]
    assert len(lines) == len(bad)
    assert all(any(id_ in line and reason in line for line in lines) for id_, reason in reasons.items())
    assert "`on_error: skip`" in message
    assert message.endswith("\nNo split was written.")

    readers = folder.prepare(**WHOLE, classes=CLASSES, on_error="skip")
    check_rest(folder, readers, reasons)
    assert f"{len(bad)} left out (all are listed" in folder.output
    assert all(f"  - {id_}: " in folder.output for id_ in bad)
    assert readers["val"].attributes["classes"] == CLASSES


def test_problems_of_all_steps_are_reported_together(folder):
    """Pairs, table, labels, headers and sizes, so that a person corrects the folder once."""
    put_all(folder)
    (folder.raw / "out/00.tif").unlink()
    (folder.raw / "in/01.tif").write_bytes(b"")
    folder.put("m/02.tif", dtype=np.uint8, low=0, high=3, shape=(11, 10))
    for role in ("in", "out", "m"):
        folder.put(f"{role}/03.tif", dtype=np.uint8 if role == "m" else np.uint16, low=0, high=3, shape=(20, 20))
    table = (folder.raw / "t.csv").read_text().replace("\n04,b,", "\nx04,b,").replace("\n05,c,", "\n05,strange,")
    (folder.raw / "t.csv").write_text(table)
    message = folder.problem(**WHOLE, classes=CLASSES)
    for line in (
        '- 00: no target file for "out/{id}.tif"',
        '- 04: no rows with this "id"',
        '- 05: the label "strange" is not among the classes',
        "in/01.tif: the file is empty",
        "mask 11 x 10; are these files of one image?",
        "- 20 x 20: 1 image",
    ):
        assert line in message
    assert message.count("\nNo split was written.") == 1
    (folder.raw / "t.csv").unlink()
    message = folder.problem(**WHOLE)
    assert 't.csv" does not exist' in message
    assert "- 02: sizes differ" in message


@pytest.mark.parametrize(
    ("kind", "ids", "lost"), [("empty file", range(12), ""), ("broken pixels", (6, 7, 8), " for val")]
)
def test_a_split_or_dataset_that_loses_all_its_images(folder, kind, ids, lost):
    put_all(folder)
    role, spoil, reason = SPOILT[kind]
    for i in ids:
        spoil(folder.raw / f"{role}/{i:02d}.tif")
    message = folder.problem(table=TABLE, on_error="skip")
    assert message.startswith(f"no sample is left{lost}; what was left out:\n  - ")
    assert reason in message


def test_folds_agree_with_what_is_left(folder):
    put_all(folder)
    options = {"mask": "m/{id}.tif", "table": TableConfig("t.csv", label="kind")}
    options["split"] = SplitConfig(folds=3, fractions={"test": 0.25})
    before = folder.prepare(**options)["train"]
    bad = before.ids[4]
    break_pixels(folder.raw / f"in/{bad}.tif")
    reader = folder.prepare(**options, on_error="skip")["train"]
    folds = dict(zip(before.ids, before.folds.tolist(), strict=True))
    assert dict(zip(reader.ids, reader.folds.tolist(), strict=True)) == {i: f for i, f in folds.items() if i != bad}
    assert len(reader.attributes["fold_statistics"]) == 3
    for fold in range(3):
        ids = [id_ for id_ in reader.ids if folds[id_] != fold]
        check_statistics(folder, reader.attributes["fold_statistics"][fold], ids)
        part = reader.fold_subset(fold, training=True)
        assert (part.ids, part.attributes["statistics"]) == (ids, reader.attributes["fold_statistics"][fold])
    check_statistics(folder, reader.attributes["statistics"], reader.ids)


def test_tiles_of_a_broken_file_are_one_problem(folder):
    for i in range(4):
        folder.put(f"in/{i}.tif", shape=(64, 64))
    break_pixels(folder.raw / "in/2.tif")
    options = {"target": {}, "sizes": SizesConfig("tile", 8)}
    message = folder.problem(**options)
    assert message.count("\n  - ") == 1
    assert "64 samples or files, such as 2@y0x0: " in message
    readers = folder.prepare(**options, on_error="skip")
    assert sum(map(len, readers.values())) == 3 * 64
    assert [id_.partition("@")[0] for id_, _ in readers["train"].attributes["skipped"]] == ["2"] * 64
    assert folder.output.count("\n  - ") == 1


# --- pixels ---


def test_pixels_that_are_not_finite(folder):
    folder.pairs(12, dtype=np.float32)
    for id_ in ("01", "09"):
        folder.images[f"out/{id_}.tif"][1, :2] = np.nan, np.inf
        folder.put(f"out/{id_}.tif", folder.images[f"out/{id_}.tif"])
    message = folder.problem()
    assert message.count("\n  - ") == 2
    assert "01: 2 pixels of the target are NaN or infinite" in message
    readers = folder.prepare(not_finite=-1.5)
    folder.check(readers, lambda array, role: np.where(np.isfinite(array), array, -1.5), image="in", target="out")
    for reader in readers.values():
        assert (reader.statistic("target", "n_not_finite") == 0).all()
        assert (reader.statistic("target", "min") == -1.5).sum() == len({"01", "09"} & {*reader.ids})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"not_finite": float("nan")}, "not_finite: nan is no finite number"),
        ({"not_finite": 1e39}, "not_finite: 1e+39 is no finite number"),
        ({"ignore_index": -1}, "ignore_index: the values of a mask are 0 to 65535, not -1"),
        (
            {"mask_values": {0: 0, 255: 2}, "classes": ["soil", "root"]},
            "mask_values: 255: 2 is beyond the 2 classes, 0 to 1 (soil, root)",
        ),
    ],
)
def test_values_that_no_pixel_can_have(folder, options, message):
    folder.masks(0, 255)
    assert message in folder.problem(**options | MASKS)


@pytest.mark.parametrize(
    ("values", "ignore", "dtype"),
    [
        ({0: 1, 128: 0, 255: 1}, 7, np.uint8),
        ({0: 0, 255: 300}, None, np.uint16),
        ({0: 0, 1000: 1}, 65535, np.uint16),
        ({-1: 255, 0: 0, 2: 1}, 255, np.uint8),
    ],
)
def test_mask_values(folder, values, ignore, dtype):
    there = [*values, *([] if ignore in (None, *values.values()) else [ignore])]
    folder.masks(*there, dtype=np.int32)
    readers = folder.prepare(mask_values=values, ignore_index=ignore, **MASKS)
    expect = np.vectorize(lambda value: values.get(value, ignore))
    folder.check(readers, lambda array, role: expect(array), mask="m")
    n = max({*values.values()} - {ignore}) + 1
    for reader in readers.values():
        assert reader.dtypes["mask"] == dtype
        assert reader.attributes["classes"]["mask"] == [str(i) for i in range(n)]
        for index in range(len(reader)):
            mask = reader.read("mask", index)
            assert reader.mask_counts[index].tolist() == [(mask == c).sum() * (c != ignore) for c in range(n)]


def test_values_that_are_not_in_mask_values(folder):
    folder.masks(0, 128, 255)
    message = folder.problem(mask_values={0: 0, 255: 1}, **MASKS)
    assert message.count("\n  - ") == 8
    assert "0: mask values 128 are not in `mask_values`, but between 0 and 255" in message
    assert folder.prepare(mask_values={0: 0, 255: 1}, ignore_index=128, **MASKS)
    folder.masks(0, 1, 60, 120, 200, 243)  # JPEG also overshoots
    assert "but between 0 and 240: resized" in folder.problem(mask_values={0: 0, 240: 1}, **MASKS)
    folder.masks(-1, 0, 2, dtype=np.float32)
    assert "0: mask values -1 are beyond the 65536 classes" in folder.problem(**MASKS)
    folder.masks(1, 2)
    message = folder.problem(classes=["soil", "root"], **MASKS)
    assert "are the 2 classes counted from 1? Give each its number, `mask_values: {1: 0, 2: 1}`" in message


# --- names and folders ---


def test_strange_names(folder):
    names = ["é", "e\u0301\u0301", "图像 1", "a b%20c'd", "x.y.z", "[1]", "@", "L" * 200]
    for name in names:
        folder.put(f"in/{name}.tif")
        folder.put(f"out/{name}.tif")
    ids = [id_ for reader in folder.prepare().values() for id_ in reader.ids]
    assert len(set(ids)) == 8
    assert {"图像 1", "a b%20c'd", "x.y.z", "[1]", "@", "L" * 200} < set(ids)


def test_a_folder_that_cannot_be_written(folder):
    folder.pairs()
    folder.processed.write_text("in the way")
    assert f"the prepared data could not be written below {folder.processed}: " in folder.problem()


# --- the same image twice ---


def test_a_file_that_was_copied_hundreds_of_times(folder):
    for i in range(300):
        folder.put(f"in/{i:03d}.tif", np.arange(120, dtype=np.uint16).reshape(12, 10))
    message = folder.problem(target={})
    assert message.count("\n  - ") == 1
    assert len(message) < 500
    assert all(f"({split})" in message for split in ("train", "val", "test"))


# --- other sources ---


def scene_of(path: Path, number: int) -> np.ndarray:
    return np.load(path) + np.uint16(number)


class Scenes(Source):
    """One sample per file, read by a function."""

    channels = {"image": ["light"]}  # noqa: RUF012

    def __init__(self, folder: str, day: date) -> None:
        self.folder, self.day = Path(folder), day

    def samples(self, problems):
        for path in sorted(self.folder.glob("*.npy")):
            ref = FunctionImage(scene_of, path, 5)
            yield Sample(path.stem, {"image": [ref]}, label=path.stem[0], group=path.stem[0], window=(2, 10, 1, 9))


@pytest.mark.parametrize("sizes", [None, SizesConfig("tile", 4)])
def test_windows_of_a_source(folder, sizes):
    folder.raw.mkdir(parents=True)
    for name in ("a1", "a2", "b1", "c1", "c2", "d1"):
        folder.images[name] = folder.rng.integers(0, 999, (15, 20) if name == "c1" else (12, 10), np.uint16)
        np.save(folder.raw / f"{name}.npy", folder.images[name])
    source = {"class_path": f"{__name__}.Scenes", "init_args": {"folder": str(folder.raw), "day": date(2024, 3, 1)}}
    options = {"image": {}, "target": {}, "source": source, "sizes": sizes}
    readers = folder.prepare(**options)
    assert sum(map(len, readers.values())) == (24 if sizes else 6)
    for reader in readers.values():
        assert reader.attributes["channels"] == {"image": ["light"]}
        assert reader.attributes["source"]["config"]["source"]["init_args"]["day"] == "2024-03-01"
        for index, id_ in enumerate(reader.ids):
            assert reader.groups[index] == "abcd"[reader.labels[index]] == id_[0]
            name, _, place = id_.partition("@y")
            y, x = map(int, place.split("x")) if sizes else (2, 1)
            side = 4 if sizes else 8
            expected = folder.images[name][y : y + side, x : x + side] + 5
            np.testing.assert_array_equal(reader.read("image", index)[0], expected)
    assert "have windows already" in folder.problem(**options | {"split": SplitConfig(by="place")})
    np.save(folder.raw / "c1.npy", np.ones((9, 20), np.uint16))
    assert "c1: the window (2, 10, 1, 9) lies outside the image of 9 x 20" in folder.problem(**options)
