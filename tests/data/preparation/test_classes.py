"""Which class is background, and which of two is positive."""

import pytest

from project.data.config import DatasetConfig, PolygonConfig, TableConfig
from project.data.preparation.classes import background_class, is_background_name, positive_class
from project.errors import UserError

MASK = {"mask": "m/{id}.tif"}
OBJECTS = {"instances": "o/{id}.tif"}
LABEL = {"image": {"a": "{label}/{id}.tif"}}


def config(**options) -> DatasetConfig:
    return DatasetConfig("raw", **{"image": {"a": "a/{id}.tif"}} | options)


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        # Of a mask alone, the name decides.
        (["0", "1"], MASK, None),
        (["sky", "building", "car"], MASK, None),
        (["Background", "cell"], MASK | {"classes": ["Background", "cell"]}, "Background"),
        (["cell", "background"], MASK | {"classes": ["cell", "background"]}, "background"),
        (["membrane", "bg"], MASK | {"classes": ["membrane", "bg"]}, "bg"),
        # Of objects and outlines, class 0 is what is none of them.
        (["background", "object"], OBJECTS, "background"),
        (["agar", "cell"], OBJECTS | {"classes": ["agar", "cell"]}, "agar"),
        (["other", "tree"], {"polygons": PolygonConfig("{id}.geojson", label="kind")}, "other"),
        (["0", "1", "2"], MASK | OBJECTS, "0"),
        (["road", "car"], MASK | OBJECTS | {"classes": ["road", "car"]}, None),
        # The configuration has the last word.
        (["0", "1"], MASK | {"background": 0}, "0"),
        (["sky", "car"], MASK | {"background": "sky"}, "sky"),
        (["background", "object"], OBJECTS | {"background": None}, None),
        (["background", "object"], OBJECTS | {"background": "none"}, None),
        (["background", "object"], OBJECTS | {"background": "object"}, "object"),
        (["none", "cell"], MASK | {"classes": ["none", "cell"], "background": "none"}, "none"),
    ],
)
def test_the_background_is_what_data_and_configuration_say(names, options, expected):
    chosen = config(**options)
    roles = {"image", *({"mask", "instances"} if chosen.polygons else options)}
    found, note = background_class(names, roles, chosen)
    assert found == expected
    assert ("all" in note) if expected is None else (f"class {expected} is" in note)


def test_names_of_backgrounds():
    names = ["background", "Background", "0_background", "BG", "void", "none", "no object", "Unlabelled"]
    assert all(map(is_background_name, names))
    assert not any(map(is_background_name, ["sky", "membrane", "0", "bgl", "other", "avoid", "ground"]))


@pytest.mark.parametrize(
    ("names", "several", "options", "expected"),
    [
        (["healthy", "sick"], False, {}, "sick"),
        (["healthy", "sick"], False, {"positive": "healthy"}, "healthy"),
        (["0", "1"], False, {"positive": 0}, "0"),
        (["a", "b", "c"], False, {}, None),
        (["a", "b"], True, {}, None),
    ],
)
def test_the_positive_class_is_the_second_of_two_or_named(names, several, options, expected):
    assert positive_class(names, several, config(**LABEL | options))[0] == expected


def test_names_that_turn_out_to_be_no_classes_are_refused():
    with pytest.raises(UserError, match="no class is called 7"):
        background_class(["0", "1"], {"image", "mask"}, config(**MASK | {"background": 7}))
    with pytest.raises(UserError, match="must be one of two classes, there are the classes a, b, c"):
        positive_class(["a", "b", "c"], False, config(**LABEL | {"positive": "a"}))
    with pytest.raises(UserError, match="several labels per image"):
        positive_class(["a", "b"], True, config(**LABEL | {"positive": "a"}))


def test_prepared_files_and_messages_say_what_was_decided(folder):
    folder.masks(0, 1)
    folder.table("id,kind", *(f"{i},{'ab'[i % 2]}" for i in range(8)))
    options = {"target": {}, "mask": "m/{id}.tif", "table": TableConfig("t.csv", label="kind")}
    for more, decided, lines in (
        ({}, (None, "b"), ("no class is called background: all 2 classes count", "the positive class is b")),
        ({"background": 0, "positive": "a"}, ("0", "a"), ("class 0 is background",)),
    ):
        readers = folder.prepare(**options, **more)
        assert all(line in folder.output for line in lines)
        for reader in readers.values():
            assert (reader.attributes["background"], reader.attributes["positive"]) == decided
