"""Ranges, outliers, copies, classes and objects in a report, on data in which they are known."""

import csv

import h5py
import numpy as np
import pytest

from project.data.inspection.figures import BINS, bin_edges
from project.data.inspection.measure import write_csv
from project.data.inspection.report import make_report

# Ranges


def test_range_in_words(prepared):
    image = np.full((1, 8, 8), 10000, np.uint16)
    image[0, 0, :3] = 9012, 15034, 12001
    text = "uint16, uses 9012..15034 of 0..65535 (9.2 %); 4 distinct values"
    assert prepared.write("train", {"image": [image]}).report()["channels"][0]["text"] == text


# Outliers


@pytest.mark.parametrize(("n_white", "normal"), [(6, True), (4, True), (3, False)])
def test_white_in_most_inputs_is_normal(prepared, noise, n_white, normal):
    images = noise(6, 20000, 5000)
    for image in images[:n_white]:
        image[0, :2] = 65535
    report = prepared.write("train", {"image": images, "target": images[::-1]}).report()
    saturated = [outlier["role"] for outlier in report["outliers"] if outlier["kind"] == "saturated"]
    # In what is predicted it is a loss, however many have it.
    assert saturated == ["image"] * (0 if normal else n_white) + ["target"] * n_white


@pytest.mark.parametrize("ceiling", [65535, 4095, 1.0])
def test_saturated_images(prepared, noise, ceiling):
    options = (0.5, 0.1, (1, 32, 32), np.float32) if ceiling == 1 else (3000, 200, (1, 32, 32))
    images = [np.clip(image, 0, ceiling) for image in noise(6, *options)]
    images[2][0, :8] = ceiling
    report = prepared.write("train", {"image": images}).report()
    assert [o["id"] for o in report["outliers"] if o["kind"] == "saturated"] == ["train2"]
    assert prepared.warnings("1 of 6 images has", f"train2 (train, 25 % at {ceiling:g})")
    assert report["channels"][0]["saturated"]["train"] == pytest.approx(0.25 / 6)


def test_a_natural_maximum_and_a_binary_image_are_not_saturated(prepared, noise):
    binary = [np.repeat((i > 1000).astype(np.uint8) * 255, 4, -1) for i in noise(6)]
    report = prepared.write("train", {"image": noise(6, shape=(1, 64, 64)), "target": binary}).report()
    assert [c["ceiling"] for c in report["channels"]] == [None, None]
    assert report["outliers"] == []


def test_robust_z(prepared):
    images = [np.full((1, 4, 4), 100 + 10 * i, np.uint16) for i in range(5)]
    measures = prepared.write("train", {"image": images}).measures()
    make_report("d", measures)
    assert measures.values["image", "c0"]["z"] == pytest.approx(np.array([-2, -1, 0, 1, 2]) / 1.4826)


def test_several_channels_are_in_one_sentence(prepared, noise):
    names = {"channels": {"image": ["red", "green", "blue"]}}
    dark = [i // 10 for i in noise(3, shape=(3, 16, 16))]
    images = noise(8, shape=(3, 16, 16))
    images[2][:] = 65535
    images[5][1, :8] = 65535
    prepared.write("train", {"image": images + dark}, groups=["a"] * 4 + ["b"] * 4 + ["c"] * 3, **names)
    prepared.write("val", {"image": [i // 30 for i in noise(3, shape=(3, 16, 16))]}, groups=["d"] * 3, **names)
    assert prepared.warnings("image/red: 1 of 2 splits has another brightness", "val (mean ")
    assert prepared.warnings("image/red: 2 of 4 groups have another brightness", '"c" (mean ')
    assert prepared.warnings("image/red, green, blue: 1 of 14 images has one value everywhere: train2 (train, red, ")
    # An image that is saturated in green alone counts too, and its channel is named.
    assert prepared.warnings("2 of 14 images have", "train2 (train, red, 100 % at 65535), train5 (train, green, ")


# Copies


def test_copies_within_and_across_splits(prepared, noise):
    train, val = noise(5), noise(3)
    train[3] = train[1]
    val[2] = train[0]
    train[4][:] = 7
    val[1][:] = 7  # blank images are all equal, and no copies
    report = prepared.write("train", {"image": train}).write("val", {"image": val}).report()
    assert report["copies"]["across_splits"] == [[["train", "train0"], ["val", "val2"]]]
    assert report["copies"]["within_split"] == [[["train", "train1"], ["train", "train3"]]]
    assert prepared.warnings("different splits", "train0 (train) = val2 (val)")
    assert prepared.warnings("in one split", "train1 (train) = train3 (train)")
    with h5py.File(prepared.folder / "train.h5", "r+") as file:
        file["fold"] = [0, 1, 0, 0, 0]
    assert prepared.warnings("2 images occur more than once in different splits", "train1 (fold 1) = train3 (fold 0)")


# Kinds of data


def test_sizes_that_differ_and_pixels_that_are_not_finite(prepared, noise):
    sizes = [(1, 20, 30), (1, 24, 16), (1, 40, 12), (1, 20, 30)]
    images = [noise(1, 0, 1, size, np.float32)[0] for size in sizes]
    images[1][0, 0, :3] = np.nan, np.inf, -np.inf
    images[2][:] = np.nan
    targets = [np.full(size, np.nan, np.float32) for size in sizes]
    report = prepared.write("train", {"image": images, "target": targets}).report()
    role = report["splits"]["train"]["roles"]["image"]
    assert role == "1 x 20-40 x 12-30 float32"
    assert [(s["height"], s["width"], s["n"]) for s in report["sizes"]] == [(20, 30, 2), (24, 16, 1), (40, 12, 1)]
    entry, target = report["channels"]
    finite = np.concatenate([i[np.isfinite(i)] for i in images])
    assert (entry["n"], entry["n_not_finite"]) == (finite.size, 40 * 12 + 3)
    assert (entry["min"], entry["max"], target["min"]) == (finite.min(), finite.max(), None)
    assert entry["splits"]["train"]["mean"] == pytest.approx(finite.mean(dtype=np.float64))
    assert prepared.warnings("2 of 4 images have NaN", "train2 (train, 480), train1 (train, 3)")  # the worst first


def test_misspelt_labels_are_named(prepared, noise):
    prepared.write("train", {"image": noise(6)}, labels=[0, 0, 0, 0, 0, 1], classes={"label": ["pullover", "pulover"]})
    assert prepared.warnings("pulover (1): misspelt pullover (5)?")


def test_class_balance_of_masks(prepared, noise):
    mask = np.zeros((16, 16), np.uint8)
    mask[0], mask[1, 0], mask[2] = 1, 2, 255
    arrays = {"image": noise(1), "mask": [mask]}
    named = {"classes": {"mask": ["soil", "root", "stone", "worm"]}, "ignore_index": 255}
    counts = prepared.write("train", arrays, **named).report()["classes"]["mask"]["train"]
    expected = {"soil": 256 - 33, "root": 16, "stone": 1, "worm": 0, "not annotated": 16}
    assert {name: numbers["count"] for name, numbers in counts.items()} == expected
    assert counts["root"]["share"] == pytest.approx(16 / 240)
    assert prepared.warnings("mask: train holds no worm")
    assert prepared.warnings("rare in train: stone (0.42 %)")


@pytest.mark.parametrize(
    ("background", "expected"), [("soil", (2 / 3, 0)), ("root", (2 / 3, 1)), (None, (np.nan, np.nan))]
)
def test_foreground_is_a_share_of_the_annotated_pixels(prepared, noise, background, expected):
    named = {"classes": {"mask": ["soil", "root", "stone"]}, "background": background}
    masks = [np.tile(np.array(values, np.uint8), (4, 1)) for values in ([0, 1, 2, 255], [255] * 4, [0] * 4)]
    prepared.write("train", {"image": noise(3, shape=(1, 4, 4)), "mask": masks}, ignore_index=255, **named)
    columns = prepared.measures().columns
    assert columns["foreground"] == pytest.approx([expected[0], np.nan, expected[1]], nan_ok=True)
    assert columns["annotated"].tolist() == [0.75, 0, 1]


def test_class_balance_of_labels(prepared, noise):
    names = {"classes": {"label": ["wild", "mutant"]}}
    prepared.write("train", {"image": noise(5)}, labels=[0, 0, 1, 0, 1], **names)
    report = prepared.write("val", {"image": noise(2)}, labels=[0, 0], **names).report()
    assert report["classes"]["label"]["train"] == {
        "wild": {"count": 3, "share": 0.6},
        "mutant": {"count": 2, "share": 0.4},
    }
    (warning,) = report["warnings"]
    assert warning.startswith("label: val holds no mutant")
    (prepared.folder / "val.h5").unlink()
    # Several classes per image: shares are of the images.
    prepared.write("train", {"image": noise(4)}, labels=[[1, 1], [1, 1], [0, 0], [1, 0]], **names)
    assert [c["share"] for c in prepared.report()["classes"]["label"]["train"].values()] == [0.75, 0.5]


def test_labels_without_names_that_are_in_some_splits(prepared, noise):
    prepared.write("train", {"image": noise(3)}, labels=[0, 1, 2])
    report = prepared.write("val", {"image": noise(3)}, labels=[0, 1, 1]).report()
    assert report["classes"]["label"]["val"]["2"]["count"] == 0
    prepared.write("val", {"image": noise(2)})
    assert "val" not in prepared.report()["classes"]["label"]
    measures = prepared.measures()
    make_report("d", measures)
    write_csv(prepared.folder / "images.csv", measures)
    rows = list(csv.DictReader((prepared.folder / "images.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["0", "1", "2", "", ""]


GAPS = 16 * (np.array([0, 1, 3])[np.arange(4096) % 3] + np.arange(4096) // 3 % 33 * 4)  # 0, 16, 48, 64, 80, 112 ...


@pytest.mark.parametrize("values", [np.arange(4096) % 300 * 7, np.arange(4096) * 4 % 300, np.full(4096, 5), GAPS])
def test_bins_of_integers_hold_equally_many_values(prepared, values):
    prepared.write("train", {"image": [values.astype(np.uint16).reshape(1, 64, 64)]})
    (entry,), (histograms,) = prepared.report()["channels"], prepared.measures().histograms.values()
    counts = np.histogram(values, edges := bin_edges(entry, [*histograms.values()]))[0]
    assert counts.sum() == 4096
    assert (counts > 0).all()
    assert len(edges) <= BINS + 2


def test_a_constant_of_huge_floats_has_one_bin(prepared):
    prepared.write("train", {"image": [np.full((1, 8, 8), 1e20, np.float32)]})
    assert len(bin_edges(prepared.report()["channels"][0], [])) == 2


def test_objects_per_image(prepared, noise):
    masks = np.zeros((4, 16, 16), np.uint16)
    masks[0, 0, :3] = 1, 2, 7  # numbers may have gaps
    masks[1, 0, 0], masks[3] = 5, 9
    report = prepared.write("train", {"image": noise(4), "instances": list(masks)}).report()
    numbers = {"mean": 1.25, "median": 1.0, "min": 0, "max": 3, "n_without": 1}
    assert report["objects"]["train"] == numbers
    assert prepared.warnings("1 of 4 images has no object", "train2 (train)")
