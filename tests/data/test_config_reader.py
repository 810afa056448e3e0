"""A data config as YAML gives it: keys, types, and text that looks like something else."""

import pytest
import yaml

from project.data.config_reader import build_config
from project.errors import UserError
from project.yaml_files import Loader

BASE = "raw: r\nimage: {a: '{id}.tif'}\nmask: 'm/{id}.tif'\n"
NAMES = ["sky", "yes", "01", "1", "1e3", "null", "~", "[a]", "a: b", "2020-01-01"]


def build(text: str):
    return build_config(yaml.load(BASE + text, Loader))


@pytest.mark.parametrize("key", ["classes: ", "classes: {mask: "])
def test_names_in_quotes_stay_as_they_are(key):
    config = build(f"{key}{NAMES}{'}' * key.count('{')}\nbackground: '01'")
    assert config.class_names("mask") == NAMES
    assert config.background == "01"


def test_text_in_quotes_stays_text_at_any_depth():
    config = build(
        "group: '01'\nsplit: {file: '1'}\ntable: {path: 'null', label: '1e3', values: ['7']}\npositive: 'no'"
    )
    assert (config.group, config.split.file, config.positive) == ("01", "1", "no")
    assert (config.table.path, config.table.label, config.table.values) == ("null", "1e3", ["7"])
    content = {
        "raw": "r",
        "source": {"class_path": "own.Source", "init_args": {"code": "01", "names": ["no", "1e3"], 1: 2}},
    }
    assert build_config(content).source == content["source"]


def test_numbers_and_keys_that_are_numbers():
    config = build("sizes: {how: tile, size: [64, 32]}\nmask_values: {'0': 0, 255: 1}\nnot_finite: 1")
    assert (config.sizes.size, config.mask_values, config.not_finite) == ([64, 32], {0: 0, 255: 1}, 1.0)
    config = build("pages: {T: samples, C: 0}\nsplit: {fractions: {train: 1}}\ngroup: 2020-01-01")
    assert (config.pages, config.split.fractions) == ({"T": "samples", "C": 0}, {"train": 1.0})
    assert config.group == "2020-01-01"
    assert build_config({"raw": "r", "image": {0: "{id}_0.tif", 1: "{id}_1.tif"}}).image["1"] == "{id}_1.tif"


@pytest.mark.parametrize("text", ["imag:", "imag: {a: {}}"])
def test_unknown_key_is_refused_whatever_its_value_is(text):
    with pytest.raises(UserError, match=r'unknown key "imag"\. Did you mean "image"'):
        build(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("split:", "split: "),
        ("split: {stratify: 'yes'}", "split.stratify"),
        ("split: {fractions: {train: a}}", "split.fractions.train"),
        ("classes:", "classes"),
        ("convert: RGB", "convert: expected 'rgb' or 'grey', got \"RGB\". Did you mean \"rgb\""),
        ("group: 1", "group: expected text, got 1; put it in quotes"),
        ("arrays: [{image: a}, {image: 5}]", "^arrays.1.image: expected text, got 5; put it in quotes$"),
        ("arrays: [{image: a}, {image: b, labl: c}]", r'^unknown key "arrays.1.labl"\. Did you mean "label"'),
        ("pages: {T: 1.5}", "^pages.T: expected text or an integer, got 1.5; put it in quotes$"),
        ("near_duplicates: no", "^near_duplicates: expected 'refuse'.*, got false; YAML reads no"),
        ("classes: {label: {1: a}}", '^classes.label: expected a list, got {"1": "a"}$'),
        (
            "sizes: {how: tile, size: '64'}",
            'sizes.size: expected an integer or a list, got "64"; leave out the quotes',
        ),
        ("sizes: {how: tile, siz: 64}", r'unknown key "sizes.siz"\. Did you mean "size"'),
        ("background: yes", "background.*quote"),
        ("sizes: kachel-größe", '^sizes: expected keys with values, got "kachel-größe"$'),
        ("sizes: {size: 3}", 'sizes: the key "how" is missing'),
        ("sizes: {how: tile, size: 64.0}", "sizes.size"),
        ("mask_values: {zero: 0}", '^mask_values.zero: expected an integer, got "zero"$'),
        ("table: {path: t.csv, lable: x}", r'^unknown key "table.lable"\. Did you mean "label"'),
        ("mask_values: {0: true}", "mask_values.0"),
        ("table: {path: t.csv, values: x}", r"table.values.*write a list: \[x\]"),
    ],
)
def test_wrong_value_is_refused_with_its_key(text, place):
    with pytest.raises(UserError, match=place):
        build(text)


def test_all_problems_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        build("sizes: {how: keep, size: 3}\nmask_values: {0: -1}\nsplit: {fractions: {val: 1}}")
    assert len(str(caught.value).splitlines()) == 5
    for words in ("must be a train split", "class numbers are 0 to 65535", "keep has no `size`"):
        assert words in str(caught.value)
