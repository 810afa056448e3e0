"""Proposals for layouts of public datasets, made of tiny images."""

import csv
import gzip
import itertools
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter

from project.data.proposal.propose import propose_config
from project.errors import UserError

SIZE = 24
LAYOUTS: list[tuple[Callable[[Path], None], dict[str, object] | str]] = []


def layout(message: str = "", **expected: object) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Marks a function that writes a layout, with keys of the proposed config, or a message of the refusal."""
    return lambda make: LAYOUTS.append((make, message or expected)) or make


def photo(seed: int, channels: int = 1, dtype: type = np.uint8) -> np.ndarray:
    pixels = gaussian_filter(np.random.default_rng(seed).random((SIZE, SIZE, channels)), (0.8, 0.8, 0))
    pixels = (30 + 200 * (pixels - pixels.min()) / np.ptp(pixels)).astype(dtype)
    return pixels[..., 0] if channels == 1 else pixels


color, photo16 = partial(photo, channels=3), partial(photo, dtype=np.uint16)


def mask(seed: int, *values: int) -> np.ndarray:
    """Squares of each value, two of each."""
    rng, plane = np.random.default_rng(seed), np.zeros((SIZE, SIZE), np.uint8)
    plane[:] = values[0]
    corners = rng.permutation([(y, x) for y in range(1, SIZE - 5, 6) for x in range(1, SIZE - 5, 6)])
    for number, (y, x) in enumerate(corners[: 2 * len(values[1:])]):
        plane[y : y + 4, x : x + 4] = values[1:][number // 2]
    return plane


def masks(*values: int) -> Callable[[int], np.ndarray]:
    return lambda seed: mask(seed, *values)


def objects(seed: int) -> np.ndarray:
    """Squares with the numbers 1 to 3, 4 or 5."""
    n, plane = 3 + seed % 3, np.zeros((SIZE, SIZE), np.uint16)
    for number in range(n):
        y, x = divmod((number * 5 + seed) % 16, 4)
        plane[1 + 6 * y : 5 + 6 * y, 1 + 6 * x : 5 + 6 * x] = number + 1
    return plane


def coded(seed: int) -> np.ndarray:
    """Classes and, of one of them, the class * 1000 + a number."""
    plane = mask(seed, 7, 11, 26).astype(np.uint16)
    return np.where(plane == 26, 26001, plane).astype(np.uint16)


def color_mask(seed: int) -> np.ndarray:
    return np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[mask(seed, 0, 1, 2)]


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".tif", ".tiff"):
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def put(raw: Path, name: str, pixels: Callable[[int], np.ndarray], first: int = 0, **fields: Iterable[object]) -> None:
    """Save an image for each combination of the fields in its name; their seeds are counted from `first`."""
    for seed, values in enumerate(itertools.product(*fields.values()), first):
        save(raw / name.format(**dict(zip(fields, values, strict=True))), pixels(seed))


def put_table(path: Path, *rows: tuple[object, ...]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@layout(image={"imagesTr": "imagesTr/{id}_0000.png", "imagesTr_1": "imagesTr/{id}_0001.png"}, mask="labelsTr/{id}.png")
def nnunet(raw: Path) -> None:
    put(raw, "imagesTr/liver_{i:03}_000{channel}.png", photo, i=range(6), channel=range(2))
    put(raw, "labelsTr/liver_{i:03}.png", masks(0, 1, 2), i=range(6))
    put(raw, "imagesTs/liver_010_000{channel}.png", photo, 50, channel=range(2))
    (raw / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "tumor": 2}}))


@layout(
    image={"leftImg8bit": "leftImg8bit/{split}/{group}/{id}_leftImg8bit.png"},
    mask="gtFine/{split}/{group}/{id}_gtFine_labelIds.png",
    instances=None,
    group="{group}",
)
def cityscapes(raw: Path) -> None:
    for n, (split, cities) in enumerate({"train": ("aachen", "bochum", "ulm"), "val": ("lindau", "munster")}.items()):
        name, fields = f"{split}/{{city}}/{{city}}_{{i:06}}_000019_", {"city": cities, "i": range(2)}
        put(raw, f"leftImg8bit/{name}leftImg8bit.png", color, 10 * n, **fields)
        put(raw, f"gtFine/{name}gtFine_labelIds.png", masks(0, 7, 11, 26), **fields)
        put(raw, f"gtFine/{name}gtFine_color.png", color_mask, **fields)
        put(raw, f"gtFine/{name}gtFine_instanceIds.png", coded, **fields)
        for city, i in itertools.product(*fields.values()):
            polygons = f"gtFine/{name}gtFine_polygons.json".format(city=city, i=i)
            (raw / polygons).write_text('{"objects": []}')


@layout(
    image={"image": "{group}/t{id}.tif"},
    instances="{group}_GT/SEG/man_seg{id}.tif",
    on_error="skip",
    group="{group}",
    split={"by": "place", "axis": "x", "gap": 2},
)
def cell_tracking(raw: Path) -> None:
    for sequence in (1, 2):
        field = photo(sequence)
        put(raw, f"0{sequence}/t{{i:03}}.tif", lambda seed, field=field: field + photo(seed) % 3, i=range(8))
        put(raw, f"0{sequence}_GT/TRA/man_track{{i:03}}.tif", objects, i=range(8))
        put(raw, f"0{sequence}_GT/SEG/man_seg{{i:03}}.tif", objects, i=range(1, 8, 2))


@layout("Join masks of single objects")
def dsb2018(raw: Path) -> None:
    put(raw, "stage1_train/{i}a3f/images/{i}a3f.png", partial(photo, channels=4), i=range(4))
    put(raw, "stage1_train/{i}a3f/masks/{i}b{n}.png", masks(0, 255), i=range(4), n=range(3))


@layout(mask="BBBC005_v1_ground_truth/{id}.tif", mask_values={0: 0, 255: 1}, on_error="skip")
def bbbc(raw: Path) -> None:
    name = "SIMCEPImages_A{i:02}_C7_F1_s{site:02}_w1.TIF"
    put(raw, f"BBBC005_v1_images/{name}", photo, i=range(6), site=(1, 2))
    put(raw, f"BBBC005_v1_ground_truth/{name}", masks(0, 255), i=range(4), site=(1, 2))


@layout(image={"EuroSAT": "EuroSAT/2750/{label}/{id}.jpg"}, split={"stratify": True})
def class_folders(raw: Path) -> None:
    put(raw, "EuroSAT/2750/{x}/{x}_{i}.jpg", color, x=("AnnualCrop", "Forest", "River"), i=range(1, 7))
    (raw / "EuroSAT/.DS_Store").write_bytes(b"x")


@layout(image={"image": "{split}/{label}/{id}.jpg"})
def given_splits(raw: Path) -> None:
    for first, (split, n) in enumerate({"train": 4, "val": 2, "test": 2}.items()):
        put(raw, f"{split}/{{label}}/{{i:02}}.JPG", color, 10 * first, label=("hot dog", "not.hot dog"), i=range(n))
        (raw / f"{split}/hot dog/Thumbs.db").write_bytes(b"x")


@layout("in a format not read")
def coco(raw: Path) -> None:
    put(raw, "train2017/{i:012}.jpg", color, i=range(4))
    content = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}
    (raw / "annotations").mkdir()
    (raw / "annotations/instances_train2017.json").write_text(json.dumps(content))


@layout(table={"path": "meta.csv", "id": "file_name", "group": "patient_id", "label": "diagnosis"})
def labels_in_table(raw: Path) -> None:
    put(raw, "images/img {i:03}.png", photo, i=range(12))
    rows = [(f"img {i:03}.png", ("healthy", "ill")[i % 2], f"p{i // 3}") for i in range(12)]
    put_table(raw / "meta.csv", ("file_name", "diagnosis", "patient_id"), *rows)


@layout(table={"path": "values.csv", "id": "image", "values": ["diameter", "height_um"]})
def numbers_in_table(raw: Path) -> None:
    put(raw, "{i}.png", photo, i=range(8))
    put_table(raw / "values.csv", ("image", "diameter", "height_um"), *((i, i * 1.5, 2 - i / 7) for i in range(8)))


@layout(image={"image": "train/{id}.jpg"}, table={"path": "train.csv", "id": "image_id", "label": "label"})
def kaggle(raw: Path) -> None:
    put(raw, "train/{i:04}f.jpg", color, i=range(8))
    put(raw, "test/{i:04}e.jpg", color, 100, i=range(8))
    put_table(raw / "train.csv", ("image_id", "label"), *((f"{i:04}f", i % 2) for i in range(8)))
    put_table(raw / "sample_submission.csv", ("image_id", "label"), *((f"{i:04}e", 0) for i in range(8)))


@layout(
    mask="annotations/trimaps/{id}.png",
    mask_values={2: 0, 1: 1},
    ignore_index=3,
    classes={"mask": ["background", "object"]},
)
def pets(raw: Path) -> None:
    breeds = ("Abyssinian", "great_pyrenees", "pug")
    put(raw, "images/{breed}_{i}.jpg", color, breed=breeds, i=range(4))
    put(raw, "annotations/trimaps/{breed}_{i}.png", masks(2, 1, 3), breed=breeds, i=range(4))
    (raw / "annotations/README").write_text("text")


@layout(image={"images": "{split}/images/{id}_{split}.tif"}, mask="{split}/1st_manual/{id}_manual1.gif")
def drive(raw: Path) -> None:
    for split, first in (("training", 21), ("test", 1)):
        numbers = range(first, first + 4)
        put(raw, f"{split}/images/{{i:02}}_{split}.tif", color, first, i=numbers)
        put(raw, f"{split}/1st_manual/{{i:02}}_manual1.gif", masks(0, 255), i=numbers)
        put(raw, f"{split}/mask/{{i:02}}_{split}_mask.gif", lambda seed: mask(0, 0, 255), i=numbers)
    put(raw, "test/2nd_manual/{i:02}_manual2.gif", masks(0, 255), i=range(1, 5))


@layout(image={"A": "A/{split}/{id}.jpg"}, target={"B": "B/{split}/{id}.jpg"})
def pix2pix(raw: Path) -> None:
    for letter in "AB":
        put(raw, f"{letter}/train/{{i}}.jpg", color, i=range(6))
        put(raw, f"{letter}/val/{{i}}.jpg", color, 10, i=range(2))


@layout("do not pair up")
def unpaired(raw: Path) -> None:
    put(raw, "trainA/n{i}.jpg", color, i=range(6))
    put(raw, "trainB/m{i}.jpg", color, i=range(70, 76))


@layout(image={"w1": "{id}_w1.tif", "w2": "{id}_w2.tif"}, mask="{id}_mask.tif")
def channels(raw: Path) -> None:
    put(raw, "B{i:02}_s1_w{channel}.tif", photo16, i=range(6), channel=(1, 2))
    put(raw, "B{i:02}_s1_mask.tif", masks(0, 1), i=range(6))


@layout(
    arrays=[
        {"image": f"mnist.npz:{s}_images", "label": f"mnist.npz:{s}_labels", "split": s}
        for s in ("test", "train", "val")
    ]
)
def arrays(raw: Path) -> None:
    raw.mkdir()
    content = {}
    for split, (first, n) in {"train": (0, 12), "val": (20, 4), "test": (30, 4)}.items():
        content[f"{split}_images"] = np.stack([photo(first + i) for i in range(n)])
        content[f"{split}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 2
    np.savez(raw / "mnist.npz", **content)


@layout(arrays=[{"image": "set.h5:raw/images", "mask": "set.h5:raw/masks"}])
def hdf5(raw: Path) -> None:
    raw.mkdir()
    with h5py.File(raw / "set.h5", "w") as file:
        file["raw/images"] = np.stack([color(i) for i in range(8)])
        file["raw/masks"] = np.stack([mask(i, 0, 1) for i in range(8)])


@layout(
    arrays=[
        {"image": f"{n}-images-idx3-ubyte.gz", "label": f"{n}-labels-idx1-ubyte.gz", "split": s}
        for n, s in (("t10k", "test"), ("train", "train"))
    ]
)
def idx(raw: Path) -> None:
    raw.mkdir()
    for name, n in (("train", 6), ("t10k", 3)):
        header = bytes([0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, SIZE, 0, 0, 0, SIZE])
        pixels = b"".join(photo(i).tobytes() for i in range(n))
        (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels))
        labels = bytes([0, 0, 8, 1, 0, 0, 0, n]) + bytes(i % 2 for i in range(n))
        (raw / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


@layout(pages="samples", mask="masks/{id}.tif")
def stacks(raw: Path) -> None:
    put(raw, "stacks/s{i}.tif", lambda seed: np.stack([photo(10 * seed + page) for page in range(6)]), i=range(5))
    put(raw, "masks/s{i}.tif", lambda seed: np.stack([mask(10 * seed + page, 0, 1) for page in range(6)]), i=range(5))


@layout(image={"phase": "{group}/phase/{id}.tif"}, target={"gfp": "{group}/gfp/{id}.tif"}, group="{group}")
def days(raw: Path) -> None:
    fields = {"day": ("monday", "tuesday", "friday"), "i": range(3)}
    put(raw, "{day}/phase/a{i:02}.tif", photo16, **fields)
    put(raw, "{day}/gfp/a{i:02}.tif", photo16, 50, **fields)
    put(raw, "{day}/thumbs/a{i:02}.png", photo, **fields)


@layout(image={"image": "{split:test|train|val}/{id}.png"}, mask="{split:test|train|val}annot/{id}.png")
def split_and_role_in_one_folder(raw: Path) -> None:
    fields = {"split": ("train", "val", "test"), "i": range(3)}
    put(raw, "{split}/{split}_{i}.png", color, **fields)
    put(raw, "{split}annot/{split}_{i}.png", masks(0, 1, 2), **fields)


@layout(image={"train": "train/{label}.{id}.jpg"})
def class_in_names(raw: Path) -> None:
    put(raw, "train/{animal}.{i}.jpg", color, i=range(6), animal=("cat", "dog"))


@layout(image={"images": "images/{group}_slice{id}.tif"}, group="{group}")
def groups_in_names(raw: Path) -> None:
    put(raw, "images/mouse{mouse}_slice{i:02}.tif", photo, mouse=range(4), i=range(3))
    put(raw, "masks/mouse{mouse}_slice{i:02}.tif", masks(0, 1), mouse=range(4), i=range(3))


@layout(image={"image": "{id}/image.png"}, mask="{id}/mask.png")
def folder_of_each_image(raw: Path) -> None:
    put(raw, "patient{i:02}/image.png", photo, i=range(5))
    put(raw, "patient{i:02}/mask.png", masks(0, 1), i=range(5))


@layout("have a color for each class")
def color_masks(raw: Path) -> None:
    put(raw, "images/{i}.png", color, i=range(4))
    put(raw, "masks/{i}.png", color_mask, i=range(4))


@layout("save masks as PNG or TIFF")
def jpeg_masks(raw: Path) -> None:
    put(raw, "images/{i}.jpg", color, i=range(4))
    put(raw, "masks/{i}.jpg", masks(0, 255), i=range(4))


@layout("they are no classes")
def same_field_in_unknown_folders(raw: Path) -> None:
    put(raw, "foo/{i}.png", photo, i=range(6))
    put(raw, "bar/{i}.png", lambda seed: 255 - photo(seed), i=range(6))


@layout(image={"image": "{label}/{id}.png"})
def classes_with_the_same_numbers(raw: Path) -> None:
    put(raw, "{label}/{i}.png", color, label=("cat", "dog"), i=range(6))


@layout("may be classes, or groups")
def ambiguous_folders(raw: Path) -> None:
    put(raw, "{folder}/{i}.png", photo, folder=("p1", "p2", "p3"), i=range(4))


@layout("The column MEL")
def one_class_per_column(raw: Path) -> None:
    put(raw, "{i}.png", photo, i=range(6))
    put_table(raw / "y.csv", ("image", "MEL", "NV"), *((i, i % 2, 1 - i % 2) for i in range(6)))


@layout("differ in upper and lower case")
def words_in_two_spellings(raw: Path) -> None:
    put(raw, "im{i}_Phase.tif", photo, i=(1, 3, 5))
    put(raw, "im{i}_phase.tif", photo, 10, i=(0, 2, 4))
    put(raw, "im{i}_gfp.tif", photo, 50, i=range(6))


@layout(image={"image": "{group}_{id}.png"}, mask="{group}_{id}_mask.png", group="{group}")
def two_eyes_with_masks_beside(raw: Path) -> None:
    put(raw, "p{i:02}_{side}.png", photo, i=range(5), side=("left", "right"))
    put(raw, "p{i:02}_{side}_mask.png", masks(0, 1), i=range(5), side=("left", "right"))


@layout(image={"phase": "{group}_phase_{id}.tif"}, target={"gfp": "{group}_gfp_{id}.tif"})
def role_in_the_middle(raw: Path) -> None:
    put(raw, "pos{position}_phase_t{i:02}.tif", photo, position=range(4), i=range(3))
    put(raw, "pos{position}_gfp_t{i:02}.tif", photo, 50, position=range(4), i=range(3))


@layout("in a format not read")
def boxes_in_texts(raw: Path) -> None:
    put(raw, "{i}.jpg", color, i=range(4))
    for i in range(4):
        (raw / f"{i}.txt").write_text("0 0.5 0.5 0.1 0.1")


@layout(image={"image": "{id}.png"}, sizes={"how": "keep"})
def images_of_two_sizes(raw: Path) -> None:
    put(raw, "{i}.png", lambda seed: photo(seed)[: SIZE - seed % 2], i=range(6))


@layout("do not pair up")
def classes_called_a_and_b(raw: Path) -> None:
    put(raw, "{label}/{i}.png", photo, label="AB", i=range(6))


@layout(image={"image": "{id}.png"}, mask=None, group=None)
def images_only(raw: Path) -> None:
    put(raw, "scan.{i}.png", photo, i=range(6))


@layout("such as mask, but do not pair up")
def single_files_called_masks(raw: Path) -> None:
    put(raw, "{n}.tif", photo16, n=("cell", "leaf", "root", "stem", "mask", "seed"))


@layout(image={"image": "{group}/{id}.tif"}, group="{group}")
def folders_called_as_days(raw: Path) -> None:
    put(raw, "2024-{day}/{i}.tif", photo16, day=("03-01", "03-02", "04-11"), i=range(4))


@layout(image={"image": "{id}.tif"}, table={"path": "y.csv", "id": "file", "label": "state", "separator": ";"})
def table_of_files_with_several_classes_in_a_cell(raw: Path) -> None:
    put(raw, "p{i}_{age}.tif", photo16, i=range(6), age=("early", "late"))
    kinds = {"early": ("round;budding", "round", "dead"), "late": ("budding;dead", "dead", "budding")}
    rows = ((f"p{i}_{age}.tif", kinds[age][i % 3]) for age in kinds for i in range(6))
    put_table(raw / "y.csv", ("file", "state"), *rows)


@layout(image={"image": "{id}.*"}, table={"path": "y.csv", "id": "file", "label": "state"})
def table_of_files_with_two_suffixes(raw: Path) -> None:
    names = [f"{i}.{('TIFF', 'tif')[i % 2]}" for i in range(12)]
    put(raw, "{n}", photo16, n=names)
    put_table(raw / "y.csv", ("file", "state"), *((name, ("sick", "well")[i % 2]) for i, name in enumerate(names)))


@pytest.mark.parametrize(("make", "expected"), LAYOUTS, ids=[make.__name__ for make, _ in LAYOUTS])
def test_layouts_of_public_datasets(tmp_path, make, expected):
    make(tmp_path / "raw")
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            propose_config(tmp_path / "raw")
        return
    content = yaml.safe_load(propose_config(tmp_path / "raw"))
    assert {key: content.get(key) for key in expected} == expected
