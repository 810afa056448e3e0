"""Which class is background, and which of two is positive."""

import numpy as np
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "cell"}, "background: cell is named, but the dataset has no mask"),
        ({"positive": "sick"}, "positive: sick is named, but the dataset has no label"),
        (MASK | {"classes": ["sky", "car"], "background": "ski"}, 'called ski. Did you mean "sky"'),
        (LABEL | {"classes": ["a", "b"], "positive": "c"}, "positive: no class of the label is called c"),
    ],
)
def test_names_that_are_no_classes_are_refused_before_anything_is_read(options, message):
    with pytest.raises(UserError) as caught:
        config(**options)
    assert message in str(caught.value)


def test_names_that_turn_out_to_be_no_classes_are_refused():
    with pytest.raises(UserError, match="no class is called 7"):
        background_class(["0", "1"], {"image", "mask"}, config(**MASK | {"background": 7}))
    with pytest.raises(UserError, match="must be one of two classes, there are the classes a, b, c"):
        positive_class(["a", "b", "c"], False, config(**LABEL | {"positive": "a"}))
    with pytest.raises(UserError, match="several labels per image"):
        positive_class(["a", "b"], True, config(**LABEL | {"positive": "a"}))


def test_prepared_files_and_messages_say_what_was_decided(folder):
    for i in range(8):
        folder.put(f"in/{i}.tif")
        folder.put(f"m/{i}.tif", folder.rng.integers(0, 2, (12, 10)).astype(np.uint8))
    rows = "".join(f"{i},{'ab'[i % 2]}\n" for i in range(8))
    (folder.raw / "t.csv").write_text("id,kind\n" + rows)
    options = {"target": {}, "mask": "m/{id}.tif", "table": TableConfig("t.csv", label="kind")}
    readers = folder.prepare(**options)
    assert "no class is called background: all 2 classes count in mean scores" in folder.output
    assert "the positive class is b" in folder.output
    for reader in readers.values():
        assert (reader.attributes["background"], reader.attributes["positive"]) == (None, "b")
    other = folder.prepare(**options, background=0, positive="a")
    assert "class 0 is background" in folder.output
    for reader in other.values():
        assert (reader.attributes["background"], reader.attributes["positive"]) == ("0", "a")
