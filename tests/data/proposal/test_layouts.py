"""Proposals for layouts of public datasets, made of tiny images."""

import csv
import gzip
import json
from collections.abc import Callable
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


def photo(seed: int, channels: int = 1, dtype: type = np.uint8) -> np.ndarray:
    pixels = gaussian_filter(np.random.default_rng(seed).random((SIZE, SIZE, channels)), (0.8, 0.8, 0))
    pixels = (30 + 200 * (pixels - pixels.min()) / np.ptp(pixels)).astype(dtype)
    return pixels[..., 0] if channels == 1 else pixels


def mask(seed: int, *values: int) -> np.ndarray:
    """Squares of each value, two of each."""
    rng, plane = np.random.default_rng(seed), np.zeros((SIZE, SIZE), np.uint8)
    plane[:] = values[0]
    corners = rng.permutation([(y, x) for y in range(1, SIZE - 5, 6) for x in range(1, SIZE - 5, 6)])
    for number, (y, x) in enumerate(corners[: 2 * len(values[1:])]):
        plane[y : y + 4, x : x + 4] = values[1:][number // 2]
    return plane


def objects(seed: int) -> np.ndarray:
    """Squares with the numbers 1 to 3, 4 or 5."""
    n, plane = 3 + seed % 3, np.zeros((SIZE, SIZE), np.uint16)
    for number in range(n):
        y, x = divmod((number * 5 + seed) % 16, 4)
        plane[1 + 6 * y : 5 + 6 * y, 1 + 6 * x : 5 + 6 * x] = number + 1
    return plane


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".tif", ".tiff"):
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def write_csv(path: Path, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def nnunet(raw: Path) -> None:
    for i in range(6):
        for channel in range(2):
            save(raw / f"imagesTr/liver_{i:03}_000{channel}.png", photo(2 * i + channel))
        save(raw / f"labelsTr/liver_{i:03}.png", mask(i, 0, 1, 2))
    save(raw / "imagesTs/liver_010_0000.png", photo(50))
    save(raw / "imagesTs/liver_010_0001.png", photo(51))
    (raw / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "tumor": 2}}))


def cityscapes(raw: Path) -> None:
    for split, cities in {"train": ("aachen", "bochum", "ulm"), "val": ("lindau", "munster")}.items():
        for city in cities:
            for i in range(2):
                name = f"{split}/{city}/{city}_{i:06}_000019"
                save(raw / f"leftImg8bit/{name}_leftImg8bit.png", photo(hash_of(city, i), 3))
                save(raw / f"gtFine/{name}_gtFine_labelIds.png", mask(i, 0, 7, 11, 26))
                colors = np.array([[0, 0, 0], [128, 64, 128], [70, 70, 70]], np.uint8)
                save(raw / f"gtFine/{name}_gtFine_color.png", colors[mask(i, 0, 1, 2)])
                coded = mask(i, 7, 11, 26).astype(np.uint16)
                save(raw / f"gtFine/{name}_gtFine_instanceIds.png", np.where(coded == 26, 26001, coded).astype("u2"))
                (raw / f"gtFine/{name}_gtFine_polygons.json").write_text('{"objects": []}')


def hash_of(text: str, i: int) -> int:
    return sum(map(ord, text)) * 10 + i


def cell_tracking(raw: Path) -> None:
    for sequence in ("01", "02"):
        field = photo(int(sequence)).astype(int)
        for i in range(8):
            save(raw / f"{sequence}/t{i:03}.tif", (field + photo(i) % 3).astype(np.uint8))
            save(raw / f"{sequence}_GT/TRA/man_track{i:03}.tif", objects(i))
            if i % 2:
                save(raw / f"{sequence}_GT/SEG/man_seg{i:03}.tif", objects(i))


def dsb2018(raw: Path) -> None:
    for i in range(4):
        name = f"{i}a3f{i}"
        save(raw / f"stage1_train/{name}/images/{name}.png", photo(i, 4))
        for number in range(3):
            save(raw / f"stage1_train/{name}/masks/{i}b{number}.png", (objects(i) == number + 1).astype(np.uint8) * 255)


def bbbc(raw: Path) -> None:
    for i in range(6):
        for site in (1, 2):
            save(raw / f"BBBC005_v1_images/SIMCEPImages_A{i:02}_C7_F1_s{site:02}_w1.TIF", photo(10 * i + site))
            name = f"BBBC005_v1_ground_truth/SIMCEPImages_A{i:02}_C7_F1_s{site:02}_w1.TIF"
            if i < 4:
                save(raw / name, mask(i, 0, 255))


def class_folders(raw: Path) -> None:
    for label in ("AnnualCrop", "Forest", "River"):
        for i in range(6):
            save(raw / f"EuroSAT/2750/{label}/{label}_{i + 1}.jpg", photo(hash_of(label, i), 3))
    (raw / "EuroSAT/.DS_Store").write_bytes(b"x")


def given_splits(raw: Path) -> None:
    for split, n in {"train": 4, "val": 2, "test": 2}.items():
        for label in ("hot dog", "not.hot dog"):
            for i in range(n):
                save(raw / f"{split}/{label}/{i:02}.JPG", photo(hash_of(split + label, i), 3))
            (raw / f"{split}/{label}/Thumbs.db").write_bytes(b"x")


def coco(raw: Path) -> None:
    for i in range(4):
        save(raw / f"train2017/{i:012}.jpg", photo(i, 3))
    content = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}
    (raw / "annotations").mkdir()
    (raw / "annotations/instances_train2017.json").write_text(json.dumps(content))


def labels_in_table(raw: Path) -> None:
    for i in range(12):
        save(raw / f"images/img {i:03}.png", photo(i))
    rows = [(f"img {i:03}.png", ("healthy", "ill")[i % 2], f"p{i // 3}") for i in range(12)]
    write_csv(raw / "meta.csv", [("file_name", "diagnosis", "patient_id"), *rows])


def numbers_in_table(raw: Path) -> None:
    for i in range(8):
        save(raw / f"{i}.png", photo(i))
    write_csv(raw / "values.csv", [("image", "diameter", "height_um"), *((i, i * 1.5, 2 - i / 7) for i in range(8))])


def kaggle(raw: Path) -> None:
    for i in range(8):
        save(raw / f"train/{i:04}f.jpg", photo(i, 3))
        save(raw / f"test/{i:04}e.jpg", photo(100 + i, 3))
    write_csv(raw / "train.csv", [("image_id", "label"), *((f"{i:04}f", i % 2) for i in range(8))])
    write_csv(raw / "sample_submission.csv", [("image_id", "label"), *((f"{i:04}e", 0) for i in range(8))])


def pets(raw: Path) -> None:
    for breed in ("Abyssinian", "great_pyrenees", "pug"):
        for i in range(4):
            save(raw / f"images/{breed}_{i}.jpg", photo(hash_of(breed, i), 3))
            save(raw / f"annotations/trimaps/{breed}_{i}.png", mask(i, 2, 1, 3))
    (raw / "annotations/README").write_text("text")


def drive(raw: Path) -> None:
    for split, first in (("training", 21), ("test", 1)):
        for i in range(first, first + 4):
            save(raw / f"{split}/images/{i:02}_{split}.tif", photo(i, 3))
            save(raw / f"{split}/1st_manual/{i:02}_manual1.gif", mask(i, 0, 255))
            save(raw / f"{split}/mask/{i:02}_{split}_mask.gif", mask(0, 0, 255))
            if split == "test":
                save(raw / f"{split}/2nd_manual/{i:02}_manual2.gif", mask(i, 0, 255))


def pix2pix(raw: Path) -> None:
    for split, n in {"train": 6, "val": 2}.items():
        for i in range(n):
            save(raw / f"A/{split}/{i}.jpg", photo(hash_of(split, i), 3))
            save(raw / f"B/{split}/{i}.jpg", photo(hash_of(split, i), 3))


def unpaired(raw: Path) -> None:
    for i in range(6):
        save(raw / f"trainA/n{i}.jpg", photo(i, 3))
        save(raw / f"trainB/m{i + 70}.jpg", photo(i, 3))


def channels(raw: Path) -> None:
    for i in range(6):
        for channel in (1, 2):
            save(raw / f"B{i:02}_s1_w{channel}.tif", photo(10 * i + channel, dtype=np.uint16))
        save(raw / f"B{i:02}_s1_mask.tif", mask(i, 0, 1))


def arrays(raw: Path) -> None:
    raw.mkdir()
    content = {}
    for split, n in {"train": 12, "val": 4, "test": 4}.items():
        content[f"{split}_images"] = np.stack([photo(hash_of(split, i)) for i in range(n)])
        content[f"{split}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 2
    np.savez(raw / "mnist.npz", **content)


def hdf5(raw: Path) -> None:
    raw.mkdir()
    with h5py.File(raw / "set.h5", "w") as file:
        file["raw/images"] = np.stack([photo(i, 3) for i in range(8)])
        file["raw/masks"] = np.stack([mask(i, 0, 1) for i in range(8)])


def idx(raw: Path) -> None:
    raw.mkdir()
    for name, n in (("train", 6), ("t10k", 3)):
        pixels, header = np.stack([photo(i) for i in range(n)]), bytes([0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, SIZE] * 1)
        (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + header[8:] + pixels.tobytes()))
        labels = bytes([0, 0, 8, 1, 0, 0, 0, n]) + bytes(i % 2 for i in range(n))
        (raw / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def stacks(raw: Path) -> None:
    for i in range(5):
        save(raw / f"stacks/s{i}.tif", np.stack([photo(10 * i + page) for page in range(6)]))
        save(raw / f"masks/s{i}.tif", np.stack([mask(10 * i + page, 0, 1) for page in range(6)]))


def days(raw: Path) -> None:
    for day in ("monday", "tuesday", "friday"):
        for i in range(3):
            save(raw / f"{day}/phase/a{i:02}.tif", photo(hash_of(day, i), dtype=np.uint16))
            save(raw / f"{day}/gfp/a{i:02}.tif", photo(hash_of(day, i + 50), dtype=np.uint16))
            save(raw / f"{day}/thumbs/a{i:02}.png", photo(hash_of(day, i)))


def images_only(raw: Path) -> None:
    for i in range(6):
        save(raw / f"scan.{i}.png", photo(i))


def split_and_role_in_one_folder(raw: Path) -> None:
    for split in ("train", "val", "test"):
        for i in range(3):
            save(raw / f"{split}/{split}_{i}.png", photo(hash_of(split, i), 3))
            save(raw / f"{split}annot/{split}_{i}.png", mask(i, 0, 1, 2))


def class_in_names(raw: Path) -> None:
    for i in range(6):
        for animal in ("cat", "dog"):
            save(raw / f"train/{animal}.{i}.jpg", photo(hash_of(animal, i), 3))


def groups_in_names(raw: Path) -> None:
    for mouse in range(4):
        for i in range(3):
            save(raw / f"images/mouse{mouse}_slice{i:02}.tif", photo(10 * mouse + i))
            save(raw / f"masks/mouse{mouse}_slice{i:02}.tif", mask(10 * mouse + i, 0, 1))


def folder_of_each_image(raw: Path) -> None:
    for i in range(5):
        save(raw / f"patient{i:02}/image.png", photo(i))
        save(raw / f"patient{i:02}/mask.png", mask(i, 0, 1))


def color_masks(raw: Path) -> None:
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    for i in range(4):
        save(raw / f"images/{i}.png", photo(i, 3))
        save(raw / f"masks/{i}.png", colors[mask(i, 0, 1, 2)])


def jpeg_masks(raw: Path) -> None:
    for i in range(4):
        save(raw / f"images/{i}.jpg", photo(i, 3))
        save(raw / f"masks/{i}.jpg", mask(i, 0, 255))


def same_field_in_unknown_folders(raw: Path) -> None:
    for i in range(6):
        save(raw / f"foo/{i}.png", photo(i))
        save(raw / f"bar/{i}.png", 255 - photo(i))


def classes_with_the_same_numbers(raw: Path) -> None:
    for label in ("cat", "dog"):
        for i in range(6):
            save(raw / f"{label}/{i}.png", photo(hash_of(label, i), 3))


def ambiguous_folders(raw: Path) -> None:
    for folder in ("p1", "p2", "p3"):
        for i in range(4):
            save(raw / f"{folder}/{i}.png", photo(hash_of(folder, i)))


def one_class_per_column(raw: Path) -> None:
    for i in range(6):
        save(raw / f"{i}.png", photo(i))
    write_csv(raw / "y.csv", [("image", "MEL", "NV"), *((i, i % 2, 1 - i % 2) for i in range(6))])


def words_in_two_spellings(raw: Path) -> None:
    for i in range(6):
        save(raw / f"im{i}_{'Phase' if i % 2 else 'phase'}.tif", photo(i))
        save(raw / f"im{i}_gfp.tif", photo(i + 50))


def two_eyes_with_masks_beside(raw: Path) -> None:
    for i in range(5):
        for side in ("left", "right"):
            save(raw / f"p{i:02}_{side}.png", photo(hash_of(side, i)))
            save(raw / f"p{i:02}_{side}_mask.png", mask(i, 0, 1))


def role_in_the_middle(raw: Path) -> None:
    for position in range(4):
        for i in range(3):
            save(raw / f"pos{position}_phase_t{i:02}.tif", photo(10 * position + i))
            save(raw / f"pos{position}_gfp_t{i:02}.tif", photo(10 * position + i + 5))


def boxes_in_texts(raw: Path) -> None:
    for i in range(4):
        save(raw / f"{i}.jpg", photo(i, 3))
        (raw / f"{i}.txt").write_text("0 0.5 0.5 0.1 0.1")


def images_of_two_sizes(raw: Path) -> None:
    for i in range(6):
        save(raw / f"{i}.png", photo(i)[: SIZE - i % 2])


def classes_called_a_and_b(raw: Path) -> None:
    for label in "AB":
        for i in range(6):
            save(raw / f"{label}/{i}.png", photo(hash_of(label, i)))


LAYOUTS: list[tuple[Callable[[Path], None], dict[str, object] | str]] = [
    (
        nnunet,
        {
            "image": {"imagesTr": "imagesTr/{id}_0000.png", "imagesTr_1": "imagesTr/{id}_0001.png"},
            "mask": "labelsTr/{id}.png",
        },
    ),
    (
        cityscapes,
        {
            "image": {"leftImg8bit": "leftImg8bit/{split}/{group}/{id}_leftImg8bit.png"},
            "mask": "gtFine/{split}/{group}/{id}_gtFine_labelIds.png",
            "instances": None,
            "group": "{group}",
        },
    ),
    (
        cell_tracking,
        {
            "image": {"image": "{group}/t{id}.tif"},
            "instances": "{group}_GT/SEG/man_seg{id}.tif",
            "on_error": "skip",
            "group": "{group}",
            "split": {"by": "place", "axis": "x", "gap": 2},
        },
    ),
    (dsb2018, "Join masks of single objects"),
    (
        bbbc,
        {
            "mask": "BBBC005_v1_ground_truth/{id}.tif",
            "mask_values": {0: 0, 255: 1},
            "on_error": "skip",
        },
    ),
    (class_folders, {"image": {"EuroSAT": "EuroSAT/2750/{label}/{id}.jpg"}, "split": {"stratify": True}}),
    (given_splits, {"image": {"image": "{split}/{label}/{id}.jpg"}}),
    (coco, "in a format not read"),
    (
        labels_in_table,
        {"table": {"path": "meta.csv", "id": "file_name", "group": "patient_id", "label": "diagnosis"}},
    ),
    (numbers_in_table, {"table": {"path": "values.csv", "id": "image", "values": ["diameter", "height_um"]}}),
    (
        kaggle,
        {
            "image": {"image": "train/{id}.jpg"},
            "table": {"path": "train.csv", "id": "image_id", "label": "label"},
        },
    ),
    (
        pets,
        {
            "mask": "annotations/trimaps/{id}.png",
            "mask_values": {2: 0, 1: 1},
            "ignore_index": 3,
            "classes": {"mask": ["background", "object"]},
        },
    ),
    (
        drive,
        {
            "image": {"images": "{split}/images/{id}_{split}.tif"},
            "mask": "{split}/1st_manual/{id}_manual1.gif",
        },
    ),
    (pix2pix, {"image": {"A": "A/{split}/{id}.jpg"}, "target": {"B": "B/{split}/{id}.jpg"}}),
    (unpaired, "do not pair up"),
    (channels, {"image": {"w1": "{id}_w1.tif", "w2": "{id}_w2.tif"}, "mask": "{id}_mask.tif"}),
    (
        arrays,
        {
            "arrays": [
                {"image": f"mnist.npz:{s}_images", "label": f"mnist.npz:{s}_labels", "split": s}
                for s in ("test", "train", "val")
            ]
        },
    ),
    (hdf5, {"arrays": [{"image": "set.h5:raw/images", "mask": "set.h5:raw/masks"}]}),
    (
        idx,
        {
            "arrays": [
                {"image": f"{n}-images-idx3-ubyte.gz", "label": f"{n}-labels-idx1-ubyte.gz", "split": s}
                for n, s in (("t10k", "test"), ("train", "train"))
            ]
        },
    ),
    (stacks, {"pages": "samples", "mask": "masks/{id}.tif"}),
    (
        days,
        {
            "image": {"phase": "{group}/phase/{id}.tif"},
            "target": {"gfp": "{group}/gfp/{id}.tif"},
            "group": "{group}",
        },
    ),
    (
        split_and_role_in_one_folder,
        {"image": {"image": "{split:test|train|val}/{id}.png"}, "mask": "{split:test|train|val}annot/{id}.png"},
    ),
    (class_in_names, {"image": {"train": "train/{label}.{id}.jpg"}}),
    (groups_in_names, {"image": {"images": "images/{group}_slice{id}.tif"}, "group": "{group}"}),
    (folder_of_each_image, {"image": {"image": "{id}/image.png"}, "mask": "{id}/mask.png"}),
    (color_masks, "have a color for each class"),
    (jpeg_masks, "save masks as PNG or TIFF"),
    (same_field_in_unknown_folders, "they are no classes"),
    (classes_with_the_same_numbers, {"image": {"image": "{label}/{id}.png"}}),
    (ambiguous_folders, "may be classes, or groups"),
    (one_class_per_column, "The column MEL"),
    (words_in_two_spellings, "differ in upper and lower case"),
    (
        two_eyes_with_masks_beside,
        {"image": {"image": "{group}_{id}.png"}, "mask": "{group}_{id}_mask.png", "group": "{group}"},
    ),
    (
        role_in_the_middle,
        {"image": {"phase": "{group}_phase_{id}.tif"}, "target": {"gfp": "{group}_gfp_{id}.tif"}},
    ),
    (boxes_in_texts, "in a format not read"),
    (images_of_two_sizes, {"image": {"image": "{id}.png"}, "sizes": {"how": "keep"}}),
    (classes_called_a_and_b, "do not pair up"),
    (images_only, {"image": {"image": "{id}.png"}, "mask": None, "group": None}),
]


@pytest.mark.parametrize(("make", "expected"), LAYOUTS, ids=[make.__name__ for make, _ in LAYOUTS])
def test_layouts_of_public_datasets(tmp_path, make, expected):
    make(tmp_path / "raw")
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            propose_config(tmp_path / "raw")
        return
    text = propose_config(tmp_path / "raw")
    content = yaml.safe_load(text)
    assert {key: content.get(key) for key in expected} == expected
