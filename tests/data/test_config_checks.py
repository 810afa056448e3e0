"""Settings of a data config that do not go together are refused, and roles and classes follow from the others."""

import pytest

from project.data.config import (
    ArrayConfig,
    DatasetConfig,
    PolygonConfig,
    SizesConfig,
    SplitConfig,
    TableConfig,
    has_mask,
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


def test_labels_from_two_places():
    with pytest.raises(UserError, match=r"the column `table\.label` and from the field \{label\}"):
        DatasetConfig("raw", {"a": "{label}/{id}.tif"}, table=TableConfig("t.csv", label="kind"))


def test_a_separator_needs_a_label_column():
    for table in (TableConfig("t.csv", separator=";"), TableConfig("t.csv", label="kind", separator="")):
        with pytest.raises(UserError, match="separator"):
            DatasetConfig("raw", {"a": "{id}.tif"}, table=table)


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
    ("options", "told"),
    [
        ({"classes": ["a", "b"], "mask": "m/{id}.tif", **LABEL}, "both a mask and labels"),
        ({"classes": ["a", "b"]}, "neither mask nor labels"),
        ({"classes": {"labels": ["a"], "pixel": ["b"]}, **LABEL}, "unknown key labels, pixel"),
        ({"classes": {"mask": ["a"], "label": ["b"]}}, "no mask and no label"),
        ({"classes": {"label": ["a", "b", "a", "c", "c"]}, **LABEL}, "- label: a\n  - label: c"),
        ({"classes": {"mask": ["a", "b", "c"]}, "instances": "m/{id}.tif"}, "has two classes"),
    ],
)
def test_names_that_are_not_clear(options, told):
    with pytest.raises(UserError) as caught:
        DatasetConfig("raw", **IMAGE | options)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image": {}}, "image: name at least one channel"),
        ({"image": {}, "source": {}}, "source: write `source: {class_path"),
        ({"image": {}, "source": {"class_path": "m.S", "arguments": {}}}, "source: write `source: {class_path"),
        (
            SOURCE | {"mask": "{id}.tif", "group": "{id}", "pages": "samples"},
            "source: mask, group, pages are for files that are found without your own class",
        ),
        (SOURCE | {"arrays": [ArrayConfig("a.npy")]}, "source: arrays is for files"),
        (SOURCE | {"classes": ["a", "b"]}, "has a `source`; write `classes: {mask: [...], label: [...]}`"),
        ({"polygons": PolygonConfig("a.json"), "mask": "{id}.tif"}, "polygons: mask would be drawn"),
        ({"polygons": PolygonConfig("a.json"), "instances": "{id}.tif"}, "polygons: instances would be drawn"),
        ({"polygons": PolygonConfig("{id}.json", image="name")}, "polygons: `image` is for one file"),
        ({"polygons": PolygonConfig("a.json"), "mask_values": {255: 1}}, "mask_values: there are no files of `mask`"),
        ({"mask_values": {255: 1}}, "mask_values: there are no files of `mask`"),
        ({"mask": "{id}.tif", "mask_values": {255: 70000}}, "class numbers are 0 to 65535:\n  - 255: 70000"),
        ({"mask": "{id}.tif", "mask_values": {0: -1}}, "class numbers are 0 to 65535:\n  - 0: -1"),
        ({"mask": "{id}.tif", "mask_values": {255: 1}, "ignore_index": 255}, "255 is the `ignore_index`"),
        ({"mask": "{id}.tif", "mask_values": {}}, "no value is named"),
        ({"pages": {"t": "samples"}}, "pages: t is no axis"),
        ({"pages": {"Time": "samples"}}, "pages: Time is no axis"),
        ({"pages": {"Y": "max"}}, "pages: Y is no axis"),
        ({"pages": {"T": "sample"}}, "T is samples, channels, max, mean or a position counted from 0, not sample"),
        ({"pages": {"T": -1}}, "counted from 0, not -1"),
        ({"pages": {"T": "samples", "S": "samples"}}, "pages: only one axis can be the samples"),
        ({"pages": {"T": "channels", "S": "channels"}}, "pages: only one axis can be the channels"),
        ({"pages": {"T": "samples", "Z": "max"}, "axes": "TCYX"}, "pages: Z is none of the `axes` TCYX"),
        ({"pages": "samples", "mask": "{id}.tif[0]"}, "leave out the channel numbers of\n  - {id}.tif[0]"),
        ({"pages": "samples", "convert": "rgb"}, "convert does not go together with `pages: samples`"),
        ({"sizes": SizesConfig("crop")}, "sizes: crop needs `size`"),
        ({"sizes": SizesConfig("keep", 64)}, "sizes: keep has no `size`"),
        ({"sizes": SizesConfig("pad", 0)}, "`size` must be 1 or more, not 0"),
        ({"sizes": SizesConfig("pad", [64, -1])}, "`size` must be 1 or more"),
        ({"sizes": SizesConfig("pad", [64])}, "is a number of pixels or [height, width], not [64]"),
        ({"sizes": SizesConfig("pad", 64, overlap=2)}, "`overlap` is for tiles"),
        ({"sizes": SizesConfig("tile", [64, 32], overlap=32)}, "`overlap` must be 0 or more and less than `size`"),
        ({"sizes": SizesConfig("tile", 64, overlap=-1)}, "`overlap` must be 0 or more and less than `size`"),
        (
            {"image": {"a": "{split}/{id}.tif"}, "split": SplitConfig(file="s.csv")},
            "given splits come from the field {split} and from `split.file`",
        ),
        (
            {"table": TableConfig("t.csv", split="set"), "split": SplitConfig(file="s.csv")},
            "given splits come from the column `table.split` and from `split.file`",
        ),
    ],
)
def test_settings_that_do_not_go_together(options, told):
    with pytest.raises(UserError) as caught:
        DatasetConfig("raw", **IMAGE | options)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("options", "roles", "mask", "made"),
    [
        ({}, ["image"], False, False),
        ({"target": {"t": "{id}.tif"}, "mask": "{id}.tif"}, ["image", "target", "mask"], True, False),
        ({"instances": "{id}.tif"}, ["image", "instances"], True, True),
        ({"polygons": PolygonConfig("{id}.json")}, ["image", "instances"], True, True),
        ({"polygons": PolygonConfig("{id}.json", label="kind")}, ["image", "mask", "instances"], True, False),
        (SOURCE, [], False, False),
        (SOURCE | {"polygons": PolygonConfig("{id}.json")}, ["instances"], True, True),
        ({"image": {}, "arrays": [ArrayConfig("a.npy", mask="m.npy", label="l.npy")]}, ["image", "mask"], True, False),
        ({"sizes": SizesConfig("tile", [64, 32], overlap=31)}, ["image"], False, False),
        ({"pages": {"T": 0, "Z": "mean"}, "axes": "TZYX"}, ["image"], False, False),
    ],
)
def test_roles_that_are_known_beforehand(options, roles, mask, made):
    config = DatasetConfig("raw", **IMAGE | options)
    assert config.raw_roles == roles
    assert (has_mask(config.raw_roles), makes_mask(config.raw_roles)) == (mask, made)


def test_what_a_source_may_have_classes_for():
    given = {"mask": ["a", "b"], "label": ["c"]}
    assert DatasetConfig("raw", **SOURCE, classes=given, mask_values={255: 1}).classes == given
