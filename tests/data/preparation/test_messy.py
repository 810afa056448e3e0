"""Raw folders as they come: broken files, stray values, copies, and strange names."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from project.data.config import ArrayConfig, SizesConfig, SplitConfig, TableConfig
from project.data.duplicates import signature
from project.data.raw.images import FunctionImage
from project.data.raw.samples import Sample
from project.data.raw.sources import Source

SPLITS = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
TABLE = TableConfig("t.csv", label="kind", group="well", split="split", values=["age", "size"])


def put_all(folder, dtype=np.uint16, **options) -> None:
    """12 images with targets, masks and a table; the first six are for training, then three each for val and test."""
    folder.pairs(12, dtype=dtype, **options)
    rows = ["id,kind,well,split,age,size"]
    for i, split in enumerate(SPLITS):
        folder.put(f"m/{i:02d}.tif", dtype=np.uint8, low=0, high=3)
        rows.append(f"{i:02d},{'abc'[i % 3]},w{i // 2 if i < 6 else i},{split},{i},{i / 8}")
    (folder.raw / "t.csv").write_text("\n".join(rows))


def whole(folder, **options):
    return folder.prepare(table=TABLE, mask="m/{id}.tif", **options)


def check_rest(folder, readers, skipped: dict[str, str]) -> None:
    """All files agree with what is left, which are the images of `put_all` but those skipped."""
    left = [f"{i:02d}" for i in range(12) if f"{i:02d}" not in skipped]
    for name, reader in readers.items():
        assert reader.ids == [id_ for id_ in left if SPLITS[int(id_)] == name]
        numbers = np.array([int(id_) for id_ in reader.ids])
        head = reader.attributes
        assert {id_: what for id_, what in head["skipped"] if skipped[id_] in what}.keys() == skipped.keys()
        assert reader.groups == [f"w{i // 2 if i < 6 else i}" for i in numbers]
        np.testing.assert_array_equal(reader.labels, numbers % 3)
        np.testing.assert_array_equal(reader.values, np.stack([numbers, numbers / 8], axis=1))
        assert head["channels"]["value"] == ["age", "size"]
        assert head["split"]["n"] == {each: len(readers[each]) for each in readers}
        assert head["split"]["given"] == {each: len(readers[each]) for each in readers}
        assert head["statistics"] == readers["train"].attributes["statistics"]
        for index, id_ in enumerate(reader.ids):
            for role, place in (("image", "in"), ("target", "out")):
                image = folder.images[f"{place}/{id_}.tif"]
                np.testing.assert_array_equal(reader.read(role, index)[0], image)
                check_level(reader.image_statistics[role][index, 0], image)
            np.testing.assert_array_equal(reader.signatures[index], signature(reader.read("image", index)))
            mask = folder.images[f"m/{id_}.tif"]
            np.testing.assert_array_equal(reader.read("mask", index), mask)
            np.testing.assert_array_equal(reader.mask_counts[index], np.bincount(mask.ravel(), minlength=3))
    check_statistics(folder, readers["train"].attributes["statistics"], readers["train"].ids)


def check_level(level: np.ndarray, image: np.ndarray) -> None:
    """Minimum, maximum, mean, standard deviation, number of values that are not finite, 1st and 99th percentile."""
    wide = image.astype(np.float64)
    np.testing.assert_allclose(
        level, [wide.min(), wide.max(), wide.mean(), wide.std(), 0, *np.percentile(wide, [1, 99]), 1], rtol=1e-12
    )


def check_statistics(folder, statistics: dict, ids: list[str]) -> None:
    """Those of these images and masks."""
    values = np.stack([folder.images[f"in/{id_}.tif"] for id_ in ids]).astype(np.float64)
    (told,) = statistics["image"]
    assert (told["n"], told["min"], told["max"]) == (values.size, values.min(), values.max())
    assert (told["mean"], told["std"]) == pytest.approx((values.mean(), values.std()), rel=1e-9)
    masks = np.stack([folder.images[f"m/{id_}.tif"] for id_ in ids])
    assert statistics["mask"] == {str(c): int((masks == c).sum()) for c in range(3)}
    assert statistics["n_samples"] == len(ids)
    assert statistics["label"] == {kind: sum(int(id_) % 3 == i for id_ in ids) for i, kind in enumerate("abc")}


# --- files that cannot be used ---


def cut(path: Path, n: int) -> None:
    path.write_bytes(path.read_bytes()[:n])


def break_pixels(path: Path) -> None:
    """Destroy the compressed pixels but not the header."""
    tifffile.imwrite(path, tifffile.imread(path), compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        start, length = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    content[start : start + length] = bytes(length)
    path.write_bytes(content)


def cut_png(path: Path) -> None:
    """A PNG file that was cut off, under the name of a TIFF file."""
    Image.fromarray(tifffile.imread(path)).save(path, format="PNG")
    cut(path, len(path.read_bytes()) // 2)


def save(path: Path, change) -> None:
    tifffile.imwrite(path, change(tifffile.imread(path)))


def stray(mask: np.ndarray) -> np.ndarray:
    mask[0, :3] = 7, 7, 200
    return mask


def gap(image: np.ndarray) -> np.ndarray:
    image = image.astype(np.float32)
    image[1, :2] = np.nan, np.inf
    return image


SPOILT = {
    "missing partner": ("out", Path.unlink, "no target file"),
    "empty file": ("in", lambda path: cut(path, 0), "the file is empty"),
    "a few bytes": ("in", lambda path: cut(path, 6), "cannot be read"),
    "half a file": ("in", lambda path: cut(path, len(path.read_bytes()) - 99), "the file is cut off"),
    "half a picture": ("in", cut_png, "cannot be read"),
    "broken pixels": ("out", break_pixels, "cannot be read"),
    "text": ("m", lambda path: path.write_text("see the other folder"), "is a text file"),
    "web page": ("in", lambda path: path.write_text("<!DOCTYPE html><html></html>"), "is a web page"),
    "archive": ("in", lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)), "is a ZIP archive"),
    "other size": ("out", lambda path: save(path, lambda image: image[1:]), "target 11 x 10"),
    "other dtype": (
        "in",
        lambda path: save(path, lambda image: image.astype(np.uint8)),
        "dtype uint8, most have uint16",
    ),
    "stray classes": ("m", lambda path: save(path, stray), "mask values 7, 200"),
    "halves": ("m", lambda path: save(path, lambda mask: mask * np.float32(0.5)), "must be integers"),
    "colours": ("m", lambda path: save(path, lambda mask: mask[..., None].repeat(3, -1)), "one channel, this has 3"),
    "link to nothing": ("in", lambda path: (path.unlink(), path.symlink_to("nowhere.tif")), "leads to no file"),
}
CLASSES = {"mask": ["x", "y", "z"], "label": ["a", "b", "c"]}


@pytest.mark.parametrize("how", SPOILT)
def test_spoilt_files_are_told_at_once_or_left_out(folder, how):
    put_all(folder)
    whole(folder)  # must be untouched by what fails later
    role, spoil, what = SPOILT[how]
    bad = ("03", "07", "08")
    for id_ in bad:
        spoil(folder.raw / f"{role}/{id_}.tif")
    message = folder.problem(table=TABLE, mask="m/{id}.tif", classes=CLASSES)
    lines = [line for line in message.splitlines() if line.startswith("  - ")]
    assert len(lines) == 3
    assert all(id_ in line and what in line for id_, line in zip(bad, lines, strict=True))
    assert message.endswith("\nNothing was written.")

    readers = whole(folder, classes=CLASSES, on_error="skip")
    check_rest(folder, readers, dict.fromkeys(bad, what))
    assert "3 left out (`on_error: skip`" in folder.told
    assert all(f"  - {id_}: " in folder.told for id_ in bad)
    assert readers["val"].attributes["classes"] == CLASSES


def test_problems_of_all_steps_are_told_at_once(folder):
    """Pairs, table, labels, headers and sizes, so that a person corrects the folder once."""
    put_all(folder)
    (folder.raw / "out/00.tif").unlink()
    (folder.raw / "in/01.tif").write_bytes(b"")
    folder.put("m/02.tif", dtype=np.uint8, low=0, high=3, shape=(11, 10))
    for role in ("in", "out", "m"):
        folder.put(f"{role}/03.tif", dtype=np.uint8 if role == "m" else np.uint16, low=0, high=3, shape=(20, 20))
    table = (folder.raw / "t.csv").read_text().replace("\n04,b,", "\nx04,b,").replace("\n05,c,", "\n05,strange,")
    (folder.raw / "t.csv").write_text(table)
    message = folder.problem(table=TABLE, mask="m/{id}.tif", classes=CLASSES)
    for line in (
        '- 00: no target file for "out/{id}.tif"',
        '- 04: no rows with this "id"',
        "- strange: 05",
        "in/01.tif: the file is empty",
        "- 02: sizes differ",
        "- 20 x 20: 1 image",
    ):
        assert line in message
    assert message.count("\nNothing was written.") == 1
    (folder.raw / "t.csv").unlink()
    message = folder.problem(table=TABLE, mask="m/{id}.tif")
    assert 't.csv" does not exist' in message
    assert "- 02: sizes differ" in message


def test_different_problems_are_left_out_together(folder):
    put_all(folder)
    bad = {
        f"{i:02d}": how for i, how in enumerate(["missing partner", "empty file", "other dtype", "stray classes"], 3)
    }
    for id_, how in bad.items():
        role, spoil, _ = SPOILT[how]
        spoil(folder.raw / f"{role}/{id_}.tif")
    (folder.raw / "out/99.tif").write_bytes((folder.raw / "out/00.tif").read_bytes())
    readers = whole(folder, classes=CLASSES, on_error="skip")
    skipped = {id_: SPOILT[how][2] for id_, how in bad.items()} | {"99": "has no partner"}
    check_rest(folder, readers, skipped)
    assert readers["train"].attributes["skipped"] == readers["test"].attributes["skipped"]


@pytest.mark.parametrize("how", ["empty file", "broken pixels"])
def test_a_split_that_loses_all_its_images(folder, how):
    put_all(folder)
    role, spoil, what = SPOILT[how]
    for i in (6, 7, 8):
        spoil(folder.raw / f"{role}/{i:02d}.tif")
    message = folder.problem(table=TABLE, on_error="skip")
    assert message.startswith("no sample is left for val; what was left out:\n  - 06: ")
    assert message.count(what) == 3


@pytest.mark.parametrize("how", ["empty file", "stray classes"])  # found in headers, in pixels
def test_all_images_are_spoilt(folder, how):
    folder.pairs(4)
    for i in range(4):
        folder.put(f"m/{i:02d}.tif", dtype=np.uint8, low=0, high=3)
    role, spoil, what = SPOILT[how]
    for path in sorted((folder.raw / role).iterdir()):
        spoil(path)
    message = folder.problem(mask="m/{id}.tif", classes=["x", "y", "z"], on_error="skip")
    assert "no sample is left" in message
    assert message.count(what) == 4


def test_a_fold_that_loses_all_its_images(folder):
    put_all(folder)
    split = SplitConfig(folds=3, fractions={"test": 0.25})
    reader = folder.prepare(split=split)["train"]
    for id_, fold in zip(reader.ids, reader.folds, strict=True):
        if fold == 1:
            break_pixels(folder.raw / f"in/{id_}.tif")
    assert "no sample is left for fold 1" in folder.problem(split=split, on_error="skip")


def test_folds_agree_with_what_is_left(folder):
    put_all(folder)
    split = SplitConfig(folds=3, fractions={"test": 0.25})
    before = folder.prepare(split=split, mask="m/{id}.tif", table=TableConfig("t.csv", label="kind"))["train"]
    bad = before.ids[4]
    break_pixels(folder.raw / f"in/{bad}.tif")
    options = {"mask": "m/{id}.tif", "table": TableConfig("t.csv", label="kind"), "on_error": "skip"}
    reader = folder.prepare(split=split, **options)["train"]
    folds = dict(zip(before.ids, before.folds.tolist(), strict=True))
    assert dict(zip(reader.ids, reader.folds.tolist(), strict=True)) == {i: f for i, f in folds.items() if i != bad}
    assert len(reader.attributes["fold_statistics"]) == 3
    for fold in range(3):
        ids = [id_ for id_ in reader.ids if folds[id_] != fold]
        check_statistics(folder, reader.attributes["fold_statistics"][fold], ids)
        part = reader.fold_subset(fold, training=True)
        assert (part.ids, part.attributes["statistics"]) == (ids, reader.attributes["fold_statistics"][fold])
        for id_, level in zip(part.ids, part.image_statistics["image"], strict=True):
            check_level(level[0], folder.images[f"in/{id_}.tif"])
    check_statistics(folder, reader.attributes["statistics"], reader.ids)


def test_tiles_of_a_broken_file_are_one_problem(folder):
    for i in range(4):
        folder.put(f"in/{i}.tif", shape=(64, 64))
    break_pixels(folder.raw / "in/2.tif")
    sizes = SizesConfig("tile", 8)
    message = folder.problem(target={}, sizes=sizes)
    assert message.count("\n  - ") == 1
    assert "2@y0x0 and 63 more: " in message
    readers = folder.prepare(target={}, sizes=sizes, on_error="skip")
    assert sum(map(len, readers.values())) == 3 * 64
    assert {id_.partition("@")[0] for id_, _ in readers["train"].attributes["skipped"]} == {"2"}
    assert len(readers["train"].attributes["skipped"]) == 64
    assert folder.told.count("\n  - ") == 1


# --- pixels ---


@pytest.mark.parametrize("role", ["in", "out"])
def test_pixels_that_are_not_finite(folder, role):
    put_all(folder, dtype=np.float32)
    for id_ in ("01", "09"):
        save(folder.raw / f"{role}/{id_}.tif", gap)
    message = folder.problem()
    assert message.count("\n  - ") == 2
    name = {"in": "image", "out": "target"}[role]
    assert f"01: 2 pixels of the {name} are NaN or infinite; set `not_finite: 0`" in message
    readers = folder.prepare(not_finite=-1.5, table=TABLE)
    reader, index = readers["train"], readers["train"].ids.index("01")
    expected = folder.images[f"{role}/01.tif"].copy()
    expected[1, :2] = -1.5
    np.testing.assert_array_equal(reader.read(name, index)[0], expected)
    check_level(reader.image_statistics[name][index, 0], expected)
    assert reader.attributes["statistics"][name][0]["n_not_finite"] == 0
    assert reader.attributes["statistics"][name][0]["min"] == -1.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_a_replacement_that_is_not_finite_itself(folder, value):
    folder.pairs(dtype=np.float32)
    assert f"not_finite: {value:g} is no finite number" in folder.problem(not_finite=value)


def put_masks(folder, *values: int, n: int = 8, dtype=np.uint8) -> list[np.ndarray]:
    masks = [folder.rng.choice(np.array(values), (12, 10)).astype(dtype) for _ in range(n)]
    for i, mask in enumerate(masks):
        folder.put(f"in/{i}.tif")
        folder.put(f"m/{i}.tif", mask)
    return masks


MASKS = {"target": {}, "mask": "m/{id}.tif"}


@pytest.mark.parametrize(
    ("values", "ignore", "dtype"),
    [
        ({0: 0, 255: 1}, None, np.uint8),
        ({0: 1, 128: 0, 255: 1}, 7, np.uint8),
        ({0: 0, 255: 300}, None, np.uint16),
        ({0: 0, 1000: 1}, 65535, np.uint16),
        ({0: 0, 1000: 1}, 255, np.uint8),
    ],
)
def test_mask_values(folder, values, ignore, dtype):
    there = [*values, *([] if ignore is None else [ignore])]
    masks = put_masks(folder, *there, dtype=np.uint16 if max(there) > 255 else np.uint8)
    readers = folder.prepare(mask_values=values, ignore_index=ignore, **MASKS)
    for reader in readers.values():
        assert reader.dtypes["mask"] == dtype
        assert reader.attributes["classes"]["mask"] == [str(i) for i in range(max(values.values()) + 1)]
        for index, id_ in enumerate(reader.ids):
            expected = np.vectorize(lambda value: values.get(value, ignore))(masks[int(id_)])
            np.testing.assert_array_equal(reader.read("mask", index), expected)
            counts = [(expected == c).sum() * (c != ignore) for c in range(max(values.values()) + 1)]
            assert reader.mask_counts[index].tolist() == counts


def test_values_that_are_not_in_mask_values(folder):
    put_masks(folder, 0, 128, 255)
    message = folder.problem(mask_values={0: 0, 255: 1}, **MASKS)
    assert message.count("\n  - ") == 8
    assert "0: mask values 128 are not in `mask_values`" in message
    assert folder.prepare(mask_values={0: 0, 255: 1}, ignore_index=128, **MASKS)


def test_mask_values_beyond_the_classes(folder):
    put_masks(folder, 0, 255)
    message = folder.problem(mask_values={0: 0, 255: 2}, classes=["soil", "root"], **MASKS)
    assert "mask_values: 255: 2 is beyond the 2 classes, 0 to 1 (soil, root)" in message


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.float32])
def test_mask_values_below_0(folder, dtype):
    masks = put_masks(folder, -1, 0, 2, dtype=dtype)
    assert "0: mask values -1 are beyond the 65536 classes" in folder.problem(**MASKS)
    readers = folder.prepare(mask_values={-1: 255, 0: 0, 2: 1}, ignore_index=255, **MASKS)
    for reader in readers.values():
        assert reader.dtypes["mask"] == np.uint8
        assert reader.attributes["classes"]["mask"] == ["0", "1"]
        for index, id_ in enumerate(reader.ids):
            expected = np.select([masks[int(id_)] == -1, masks[int(id_)] == 2], [255, 1])
            np.testing.assert_array_equal(reader.read("mask", index), expected)


@pytest.mark.parametrize("ignore", [-1, -100, 65536])
def test_an_ignore_index_that_no_pixel_can_have(folder, ignore):
    put_masks(folder, 0, 1)
    message = folder.problem(ignore_index=ignore, sizes=SizesConfig("pad", 16), **MASKS)
    assert f"ignore_index: the values of a mask are 0 to 65535, not {ignore}" in message


# --- kinds of files ---


def put_kinds(folder, *modes: str, n: int = 8) -> dict[str, np.ndarray]:
    """Pictures of these modes in turn; id -> (H, W, C) in the colours one sees."""
    folder.raw.mkdir(parents=True)
    seen = {}
    for i in range(n):
        picture = Image.fromarray(folder.rng.integers(0, 256, (12, 10, 4), np.uint8)).convert("RGB")
        if (mode := modes[i % len(modes)]) == "P":
            picture = picture.quantize(40)
        picture = picture.convert(mode)
        seen[str(i)] = np.atleast_3d(picture.convert("L" if mode in ("L", "LA") else "RGB"))
        picture.save(folder.raw / f"{i}.png")
    return seen


PICTURES = {"image": {"photo": "{id}.png"}, "target": {}}


def test_mixed_pictures_become_rgb(folder):
    seen = put_kinds(folder, "RGB", "RGBA", "L", "LA", "P")
    message = folder.problem(**PICTURES)
    assert "4.png: the values are indices into a color table; set `convert: rgb`" in message
    for reader in folder.prepare(convert="rgb", **PICTURES).values():
        for index, id_ in enumerate(reader.ids):
            expected = np.broadcast_to(seen[id_], (12, 10, 3)).transpose(2, 0, 1)
            np.testing.assert_array_equal(reader.read("image", index), expected)


def test_a_palette_holds_the_classes_of_a_mask(folder):
    masks = [folder.rng.integers(0, 3, (12, 10), np.uint8) for _ in range(8)]
    (folder.raw / "m").mkdir(parents=True)
    for i, mask in enumerate(masks):
        folder.put(f"in/{i}.tif")
        picture = Image.fromarray(mask).convert("P")
        picture.putdata(mask.ravel().tolist())
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
        picture.save(folder.raw / f"m/{i}.png")
    for reader in folder.prepare(target={}, mask="m/{id}.png").values():
        assert reader.attributes["classes"] == {"mask": ["0", "1", "2"]}
        for index, id_ in enumerate(reader.ids):
            np.testing.assert_array_equal(reader.read("mask", index), masks[int(id_)])


def test_a_file_whose_name_tells_another_kind(folder):
    folder.raw.mkdir(parents=True)
    for i in range(8):
        picture = Image.fromarray(folder.rng.integers(0, 256, (12, 10), np.uint8))
        picture.save(folder.raw / f"{i}.png", format="JPEG" if i in (2, 5) else "PNG")
    readers = folder.prepare(**PICTURES)
    (note,) = readers["test"].attributes["notes"]
    assert note == "2: the image is a .jpg file, despite its name (and 1 more)"
    assert f"note: {note}\n" in folder.told
    expected = np.asarray(Image.open(folder.raw / "2.png"))
    reader = next(reader for reader in readers.values() if "2" in reader.ids)
    np.testing.assert_array_equal(reader.read("image", reader.ids.index("2"))[0], expected)


# --- names and folders ---


def test_strange_names(folder):
    names = ["é", "e\u0301\u0301", "图像 1", "a b%20c'd", "x.y.z", "[1]", "@", "L" * 200]
    for name in names:
        folder.put(f"in/{name}.tif")
        folder.put(f"out/{name}.tif")
    ids = [id_ for reader in folder.prepare().values() for id_ in reader.ids]
    assert len(set(ids)) == 8
    assert {"图像 1", "a b%20c'd", "x.y.z", "[1]", "@", "L" * 200} < set(ids)
    for reader in folder.prepare(sizes=SizesConfig("tile", 6), compression="blosc2").values():
        for index, id_ in enumerate(reader.ids):
            name, _, place = id_.rpartition("@")
            if f"in/{name}.tif" not in folder.images:
                continue
            y, x = map(int, place.removeprefix("y").split("x"))
            expected = folder.images[f"in/{name}.tif"][y : y + 6, x : x + 6]
            np.testing.assert_array_equal(reader.read("image", index)[0], expected)


def test_names_that_are_no_text(folder):
    folder.pairs(8)
    for role in ("in", "out"):
        os.rename(folder.raw / role / "03.tif", os.fsencode(folder.raw / role) + b"/\xff.tif")  # noqa: PTH104
    message = folder.problem()
    assert r"'\udcff': the id is empty or not UTF-8; rename the file" in message
    assert sum(map(len, folder.prepare(on_error="skip").values())) == 7


def test_a_folder_that_may_not_be_read(folder, monkeypatch):
    folder.pairs()
    scan = os.scandir

    def forbidden(path):
        if Path(path).name == "out":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert f'the folder "{folder.raw / "out"}" cannot be read: Permission denied' in folder.problem()


@pytest.mark.parametrize("where", ["processed", "above"])
def test_a_place_that_cannot_be_written(folder, tmp_path, where):
    folder.pairs()
    if where == "processed":
        folder.processed.write_text("in the way")
    else:
        folder.processed = tmp_path / "file" / "processed"
        (tmp_path / "file").write_text("in the way")
    assert f"the prepared data could not be written below {folder.processed}: " in folder.problem()


# --- the same image twice ---


def put_scenes(folder, n: int = 12, shape=(64, 48)) -> None:
    """Smooth images, each of its own; places in the order of `SPLITS`."""
    rows = ["id,well,split"]
    for i, split in enumerate(SPLITS[:n]):
        scene = gaussian_filter(folder.rng.random(shape), 3)
        folder.put(f"in/{i:02d}.tif", (1000 + 40000 * (scene - scene.min()) / np.ptp(scene)).astype(np.uint16))
        rows.append(f"{i:02d},w{i},{split}")
    (folder.raw / "t.csv").write_text("\n".join(rows))


CHANGES = {"mirrored": lambda image: image[:, ::-1], "smaller": lambda image: image[::2, ::2]}
SCENES = {"target": {}, "table": TableConfig("t.csv", split="split"), "sizes": SizesConfig("keep")}


def test_different_scenes_are_no_copies(folder):
    put_scenes(folder)
    folder.prepare(near_duplicates="refuse", **SCENES)
    folder.prepare(near_duplicates="warn", **SCENES)
    assert "warning" not in folder.told


@pytest.mark.parametrize("change", [*CHANGES, "exact"])
def test_copies_in_one_split_or_group(folder, change):
    put_scenes(folder)
    copy = CHANGES.get(change, np.copy)(folder.images["in/02.tif"])
    folder.put("in/04.tif", copy)
    folder.prepare(**SCENES)
    (folder.raw / "g").mkdir()
    for i, path in enumerate(sorted((folder.raw / "in").iterdir())):
        path.rename(folder.raw / f"g/{'w' if i in (2, 4) else i}-{path.name}")
    for seed in range(4):  # wherever the group goes
        split = SplitConfig(seed=seed, fractions={"train": 0.5, "val": 0.25, "test": 0.25})
        options = SCENES | {"table": None, "image": {"a": "g/{well}-{id}.tif"}, "group": "{well}", "split": split}
        folder.prepare(**options)


@pytest.mark.parametrize("change", [*CHANGES, "exact"])
def test_copies_in_two_folds(folder, change):
    put_scenes(folder)
    options = SCENES | {"table": None, "split": SplitConfig(folds=3, fractions={"test": 0.25})}
    reader = folder.prepare(**options)["train"]
    places = dict(zip(reader.ids, reader.folds.tolist(), strict=True))
    first, *others = reader.ids
    same = next(id_ for id_ in others if places[id_] == places[first])
    other = next(id_ for id_ in others if places[id_] != places[first])
    keep, copy = folder.images[f"in/{same}.tif"], CHANGES.get(change, np.copy)(folder.images[f"in/{first}.tif"])
    folder.put(f"in/{same}.tif", copy)
    folder.prepare(**options)
    folder.put(f"in/{same}.tif", keep)
    folder.put(f"in/{other}.tif", copy)
    message = folder.problem(**options)
    assert f"{first} (fold {places[first]})" in message
    assert f"{other} (fold {places[other]})" in message


def test_a_file_that_was_copied_hundreds_of_times(folder):
    scene = np.arange(120, dtype=np.uint16).reshape(12, 10)
    for i in range(300):
        folder.put(f"in/{i:03d}.tif", scene)
    message = folder.problem(target={})
    assert message.count("\n  - ") == 1
    assert len(message) < 500
    assert all(f"({split})" in message for split in ("train", "val", "test"))


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_blank_images_are_no_copies(folder, value):
    put_scenes(folder)
    for i in (1, 7, 10):
        folder.put(f"in/{i:02d}.tif", np.full((64, 48), value, np.uint16))
    folder.prepare(**SCENES)


def test_copies_among_tiles(folder):
    put_scenes(folder, n=9, shape=(128, 64))
    copied = folder.images["in/07.tif"].copy()
    copied[64:] = folder.images["in/02.tif"][:64, ::-1]
    folder.put("in/07.tif", copied)
    message = folder.problem(**SCENES | {"sizes": SizesConfig("tile", 64)})
    assert "02@y0x0 (train) and 07@y64x0 (val)" in message


# --- other sources ---


def scene_of(path: Path, number: int) -> np.ndarray:
    return np.load(path) + np.uint16(number)


class Scenes(Source):
    """One sample per file, read by a function."""

    channels = {"image": ["light"]}  # noqa: RUF012

    def __init__(self, folder: str, window: bool = False) -> None:
        self.folder, self.window = Path(folder), window

    def samples(self, problems):
        for path in sorted(self.folder.glob("*.npy")):
            if path.stem == "bad":
                problems.add("bad", "is called so")
                continue
            ref = FunctionImage(scene_of, path, 5)
            window = (2, 10, 1, 9) if self.window else None
            yield Sample(path.stem, {"image": [ref]}, label=path.stem[0], group=path.stem[0], window=window)


def put_arrays(folder) -> dict:
    folder.raw.mkdir(parents=True)
    for name in ("a1", "a2", "b1", "c1", "c2", "d1"):
        folder.images[name] = folder.rng.integers(0, 999, (12, 10), np.uint16)
        np.save(folder.raw / f"{name}.npy", folder.images[name])
    return {"class_path": f"{__name__}.Scenes", "init_args": {"folder": str(folder.raw)}}


def test_a_source_of_ones_own(folder):
    source = put_arrays(folder)
    readers = folder.prepare(image={}, target={}, source=source)
    assert sorted(id_ for reader in readers.values() for id_ in reader.ids) == ["a1", "a2", "b1", "c1", "c2", "d1"]
    for reader in readers.values():
        assert reader.attributes["channels"] == {"image": ["light"]}
        assert reader.attributes["classes"] == {"label": ["a", "b", "c", "d"]}
        for index, id_ in enumerate(reader.ids):
            np.testing.assert_array_equal(reader.read("image", index)[0], folder.images[id_] + 5)
            assert reader.groups[index] == "abcd"[reader.labels[index]] == id_[0]


@pytest.mark.parametrize("sizes", [None, SizesConfig("tile", 4)])
def test_windows_of_a_source(folder, sizes):
    source = put_arrays(folder)
    source["init_args"]["window"] = True
    folder.images["c1"] = folder.rng.integers(0, 999, (15, 20), np.uint16)
    np.save(folder.raw / "c1.npy", folder.images["c1"])
    readers = folder.prepare(image={}, target={}, source=source, sizes=sizes)
    assert sum(map(len, readers.values())) == (24 if sizes else 6)
    for reader in readers.values():
        for index, id_ in enumerate(reader.ids):
            name, _, place = id_.partition("@y")
            y, x = map(int, place.split("x")) if sizes else (2, 1)
            side = 4 if sizes else 8
            expected = folder.images[name][y : y + side, x : x + side] + 5
            np.testing.assert_array_equal(reader.read("image", index)[0], expected)


def test_windows_that_cannot_be_cut(folder):
    source = put_arrays(folder)
    source["init_args"]["window"] = True
    np.save(folder.raw / "c1.npy", np.ones((9, 20), np.uint16))
    options = {"image": {}, "target": {}, "source": source}
    assert "c1: the window (2, 10, 1, 9) lies outside the image of 9 x 20" in folder.problem(**options)
    (folder.raw / "c1.npy").unlink()
    assert "have windows already" in folder.problem(**options | {"split": SplitConfig(by="place")})


def test_problems_of_a_source(folder):
    source = put_arrays(folder)
    for name in ("bad", "d2"):
        (folder.raw / f"{name}.npy").write_bytes(b"nothing")
    options = {"image": {}, "target": {}, "source": source}
    assert "\n  - bad: is called so\n" in folder.problem(**options)
    readers = folder.prepare(on_error="skip", **options)
    assert sum(map(len, readers.values())) == 6
    (first, second) = readers["train"].attributes["skipped"]
    assert first == ["bad", "is called so"]
    assert second[0] == "d2"
    assert "d2.npy" in second[1]


def test_hdf5_arrays(folder):
    stacks = {name: folder.rng.integers(0, 999, (9, 12, 10), np.uint16) for name in ("x", "m")}
    stacks["m"] %= 3
    folder.raw.mkdir(parents=True)
    with h5py.File(folder.raw / "all.h5", "w") as file:
        for name, stack in stacks.items():
            file.create_dataset(f"raw/{name}", data=stack, chunks=(1, 12, 10), compression="gzip")
        file.create_dataset("kind", data=np.arange(9) % 2)
    arrays = [ArrayConfig("all.h5:raw/x", mask="all.h5:raw/m", label="all.h5:kind")]
    readers = folder.prepare(image={}, target={}, arrays=arrays, classes={"label": ["even", "odd"]})
    assert sum(map(len, readers.values())) == 9
    for reader in readers.values():
        for index, id_ in enumerate(reader.ids):
            number = int(id_.removeprefix("all/raw/x/"))
            np.testing.assert_array_equal(reader.read("image", index)[0], stacks["x"][number])
            np.testing.assert_array_equal(reader.read("mask", index), stacks["m"][number])
            assert reader.labels[index] == number % 2
