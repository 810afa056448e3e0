"""Settings of a data config that do not go together are refused, and roles and classes follow from the others."""

import pytest

from project.data.config import (
    ArrayConfig,
    DatasetConfig,
    PolygonConfig,
    SizesConfig,
    SplitConfig,
    TableConfig,
    makes_mask,
)
from project.errors import UserError

IMAGE, LABEL = {"image": {"a": "{id}.tif"}}, {"table": TableConfig("t.csv", label="kind")}
SOURCE = {"image": {}, "source": {"class_path": "m.S"}}


def test_class_names_that_yaml_reads_as_something_else():
    def names(*names):
        return DatasetConfig("raw", {"a": "{id}.tif"}, mask="m/{id}.tif", classes=list(names)).class_names("mask")

    assert names(0, 1) == names("0", "1") == ["0", "1"]
    for name in (False, None, 1.5, " "):
        with pytest.raises(UserError, match=f"classes: mask: {name!r} is no name"):
            names("cell", name)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"classes": ["a", "b"], **LABEL}, {"label": ["a", "b"]}),
        ({"classes": ["a", "b"], "mask": "m/{id}.tif"}, {"mask": ["a", "b"]}),
        ({"classes": ["a", "b"], "instances": "m/{id}.tif"}, {"mask": ["a", "b"]}),
        ({"classes": ["a", "b"], "image": {"a": "{label}/{id}.tif"}}, {"label": ["a", "b"]}),
        ({"classes": {"mask": ["a"], "label": ["a"]}, "mask": "m/{id}.tif", **LABEL}, {"mask": ["a"], "label": ["a"]}),
        ({}, {}),
    ],
)
def test_whose_names_these_are(options, expected):
    assert DatasetConfig("raw", **IMAGE | options).classes == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["a", "b"], "mask": "m/{id}.tif", **LABEL}, "both a mask and labels"),
        ({"classes": ["a", "b"]}, "neither mask nor labels"),
        ({"classes": {"labels": ["a"], "pixel": ["b"]}, **LABEL}, "unknown key labels, pixel"),
        ({"classes": {"mask": ["a"], "label": ["b"]}}, "no mask and no label"),
        ({"classes": {"label": ["a", "b", "a", "c", "c"]}, **LABEL}, "- label: a\n  - label: c"),
        ({"classes": {"mask": ["a", "b", "c"]}, "instances": "m/{id}.tif"}, "has two classes"),
        ({"image": {}}, "image: name at least one channel"),
        ({"image": {}, "source": {"class_path": "m.S", "arguments": {}}}, "source: write `source: {class_path"),
        (
            SOURCE | {"polygons": PolygonConfig("{id}.json"), "group": "{id}", "pages": "samples"},
            "source: polygons, group, pages are for files that are found without your own class",
        ),
        (SOURCE | {"classes": ["a", "b"]}, "has a `source`; write `classes: {mask: [...], label: [...]}`"),
        ({"polygons": PolygonConfig("a.json"), "mask": "{id}.tif"}, "polygons: mask would be drawn"),
        ({"polygons": PolygonConfig("a.json"), "mask_values": {255: 1}}, "mask_values: there are no files of `mask`"),
        ({"mask": "{id}.tif", "mask_values": {255: 70000}}, "class numbers are 0 to 65535:\n  - 255: 70000"),
        ({"mask": "{id}.tif", "mask_values": {255: 1}, "ignore_index": 255}, "255 is the `ignore_index`"),
        ({"pages": {"Time": "samples"}}, "pages: Time is no axis"),
        ({"pages": {"T": "sample"}}, "T is samples, channels, max, mean or a position counted from 0, not sample"),
        ({"pages": {"T": -1}}, "counted from 0, not -1"),
        ({"pages": {"T": "samples", "S": "samples"}}, "pages: only one axis can be the samples"),
        ({"pages": {"T": "samples", "Z": "max"}, "axes": "TCYX"}, "pages: Z is none of the `axes` TCYX"),
        ({"pages": "samples", "mask": "{id}.tif[0]"}, "leave out the channel numbers of\n  - {id}.tif[0]"),
        ({"pages": "samples", "convert": "rgb"}, "convert takes whole files"),
        ({"sizes": SizesConfig("crop")}, "sizes: crop needs `size`"),
        ({"sizes": SizesConfig("keep", 64)}, "sizes: keep has no `size`"),
        ({"sizes": SizesConfig("pad", 0)}, "`size` is a number of pixels from 1 on, or [height, width], not 0"),
        ({"sizes": SizesConfig("pad", [64])}, "[height, width], not [64]"),
        ({"sizes": SizesConfig("pad", 64, overlap=2)}, "`overlap` is for tiles"),
        (
            {"sizes": SizesConfig("tile", [64, 32], overlap=32)},
            "`overlap` is for tiles, 0 or more and less than `size`, not 32",
        ),
        ({"background": "cell"}, "background: cell is named, but the dataset has no mask"),
        ({"positive": "sick"}, "positive: sick is named, but the dataset has no label"),
        ({"mask": "{id}.tif", "classes": ["sky", "car"], "background": "ski"}, 'called ski. Did you mean "sky"'),
        (LABEL | {"classes": ["a", "b"], "positive": "c"}, "positive: no class of the label is called c"),
        ({"arrays": [ArrayConfig("a.npy", split="dev")], "image": {}}, "arrays: unknown split dev"),
        (
            {"arrays": [ArrayConfig("a.npy"), ArrayConfig("b.npy", mask="m.npy")], "image": {}},
            "must have the same keys",
        ),
        ({"split": SplitConfig(fractions={"train": 1, "dev": 0})}, "unknown split ['dev']"),
        (
            {"split": SplitConfig(fractions={"train": 1.1, "test": -0.1})},
            "shares are 0 to 1, not train: 1.1, test: -0.1",
        ),
        ({"split": SplitConfig(folds=1)}, "folds is 1; use a number of folds from 2 on"),
        ({"split": SplitConfig(folds=2, by="place")}, "folds distribute whole images, but `by: place` cuts"),
        ({"split": SplitConfig(folds=2, fractions={"test": 1.0})}, "there must be a train split"),
        ({"table": TableConfig("t.csv", separator=";")}, "separator"),
        ({"table": TableConfig("t.csv", label="kind", separator="")}, "separator"),
        (LABEL | {"image": {"a": "{label}/{id}.tif"}}, "the column `table.label` and from the field {label}"),
        (
            {"image": {"a": "{split}/{id}.tif"}, "split": SplitConfig(file="s.csv")},
            "given splits come from the field {split} and from `split.file`",
        ),
    ],
)
def test_settings_that_do_not_go_together(options, message):
    with pytest.raises(UserError) as caught:
        DatasetConfig("raw", **IMAGE | options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "roles", "made"),
    [
        ({}, ["image"], False),
        ({"target": {"t": "{id}.tif"}, "mask": "{id}.tif"}, ["image", "target", "mask"], False),
        ({"instances": "{id}.tif"}, ["image", "instances"], True),
        ({"polygons": PolygonConfig("{id}.json")}, ["image", "instances"], True),
        ({"polygons": PolygonConfig("{id}.json", label="kind")}, ["image", "mask", "instances"], False),
        (SOURCE, [], False),
        ({"image": {}, "arrays": [ArrayConfig("a.npy", mask="m.npy", label="l.npy")]}, ["image", "mask"], False),
    ],
)
def test_roles_that_are_known_beforehand(options, roles, made):
    config = DatasetConfig("raw", **IMAGE | options)
    assert config.raw_roles == roles
    assert makes_mask(config.raw_roles) == made


def test_what_a_source_may_have_classes_for():
    given = {"mask": ["a", "b"], "label": ["c"]}
    assert DatasetConfig("raw", **SOURCE, classes=given, mask_values={255: 1}).classes == given
