"""The files of an inspection, its page, its figures, and what it prints."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from inspected_data import Prepared, write
from rich.console import Console

from project.data.inspection import report
from project.data.inspection.figures import draw_brightness, draw_contact_sheet, thumbnails
from project.data.inspection.report import inspect_dataset, make_report
from project.errors import UserError

NASTY = "<script>a&\"b'</script>"


def inspect(folder):
    console = Console(file=io.StringIO(), width=2000)
    return inspect_dataset(folder, console), console.file.getvalue()


class Page(HTMLParser):
    """Sections, text, and the attributes that load something."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.sources, self.links, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sections += [values["id"]] if tag == "section" else []
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []
        assert tag not in ("script", "link", "iframe", "i")
        assert not any(name.startswith("on") for name in values)

    def handle_data(self, data):
        self.text += data


def structured(rng, n, mean=3000, shape=(32, 32)):
    """Inputs with coarse structure, no two alike."""
    coarse = [rng.normal(mean, mean / 4, (8, 8)) for _ in range(n)]
    return [np.kron(c, np.ones((shape[0] // 8, shape[1] // 8)))[None].clip(0, 60000).astype(np.uint16) for c in coarse]


def plant(folder):
    """One of everything that a page can show, under names that could be taken for markup."""
    rng = np.random.default_rng(0)
    train, val = structured(rng, 16), structured(rng, 4)
    train += structured(rng, 3, 30000)  # another day, ten times as bright
    train[0][:] = 1234
    train[1] = (train[1] // 50 + 3000).astype(np.uint16)
    train[2][0, :16] = 65535
    train[4] = train[3].copy()
    val[0] = (train[5] + rng.integers(0, 60, train[5].shape)).astype(np.uint16)
    train[6] = structured(rng, 1, shape=(32, 40))[0]
    targets = [i.astype(np.float32) for i in train]
    targets[7][0, 0, :5] = np.nan
    instances = [(i[0] > np.median(i)).astype(np.uint16) for i in train]
    instances[0], instances[9] = instances[3].copy(), 0 * instances[9]
    masks = [number.astype(np.uint8) for number in instances]
    masks[10][:], masks[11][:] = 0, 255
    for number in instances:
        number[:4] *= 2
    attributes = {
        "channels": {"image": ["$x^2$ <b>"], "target": ["gfp"]},
        "classes": {"mask": ["soil & sand", "root"], "label": ["<i>wild", "mutant"]},
        "background": "soil & sand",
        "ignore_index": 255,
        "source": {"commit": "abc123", "versions": {"numpy": "2.1"}, "config": {"raw": NASTY}},
        "split": {"by": "group", "seed": 7, "axis": "x"},
    }
    arrays = {"image": train, "target": targets, "mask": masks, "instances": instances}
    groups = ["day1"] * 8 + ["day <2>"] * 8 + ["day3"] * 3
    write(folder, "train", arrays, [f"{NASTY}/{i}" for i in range(19)], groups, [0] * 15 + [1] * 4, **attributes)
    arrays = {"image": val, "target": [i.astype(np.float32) for i in val]}
    arrays |= {"mask": masks[12:16], "instances": instances[12:16]}
    write(folder, "val", arrays, None, ["day4"] * 4, [0, 0, 1, 1], **attributes)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Report, printed text and page of a dataset with one of everything."""
    folder = tmp_path_factory.mktemp("data") / "<b>cells & co"
    plant(folder)
    content, printed = inspect(folder)
    return content, printed, (folder / "inspect/report.html").read_text(encoding="utf-8"), Prepared(folder)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The same of a dataset without any problem, in one group per pair of images."""
    folder, rng = tmp_path_factory.mktemp("data") / "clean", np.random.default_rng(1)
    for split, n in (("train", 8), ("val", 6)):
        write(folder, split, {"image": structured(rng, n)}, groups=[f"{split}{i // 2}" for i in range(n)])
    content, printed = inspect(folder)
    return content, printed, (folder / "inspect/report.html").read_text(encoding="utf-8")


def test_sections_with_content_are_shown_and_linked(planted, clean):
    page = Page(planted[2])
    every = ["advice", "splits", "sizes", "values", "groups", "classes", "objects", "outliers", "duplicates", "samples"]
    assert page.sections == [*every, "source"]
    assert page.links == [f"#{name}" for name in page.sections]
    assert set(page.sections) - set(Page(clean[2]).sections) == {"sizes", "classes", "objects", "source"}


def test_a_page_loads_nothing_and_shows_names_as_text(planted):
    _, _, text, _ = planted
    page = Page(text)
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in text
    for name in ("<b>cells & co", "<i>wild", "soil & sand", "$x^2$ <b>", NASTY):
        assert name in page.text


def test_the_page_has_sentences_numbers_and_origin(planted):
    content, _, text, _ = planted
    page = Page(text)
    for sentence in content["warnings"]:
        assert sentence in page.text
    for expected in ("abc123", '"raw"', "seed", "32 x 40", "1 x 32 x 32-40 uint16"):
        assert expected in page.text
    assert "axis" not in page.text  # has no effect on a division by groups
    share = content["classes"]["label"]["train"]["mutant"]["share"]
    assert f'<td class="bar" style="--share:{share * 100:.1f}%">4 (21.1 %)</td>' in text
    assert re.search(r'<td class="marked">', text)


@pytest.mark.parametrize(
    ("kind", "index", "reason"),
    [
        ("constant", 0, "1234"),
        ("faint", 1, "usually"),
        ("saturated", 2, "50 %"),
        ("not_finite", 7, "5"),
        ("unusual", 16, "mean "),
        ("no_objects", 9, ""),
        ("no_foreground", 10, ""),
        ("not_annotated", 11, ""),
    ],
)
def test_outliers_are_shown_with_reason_and_thumbnail(planted, clean, kind, index, reason):
    content, _, text, data = planted
    shown = [outlier for outlier in content["outliers"] if outlier["kind"] == kind]
    assert ("train", f"{NASTY}/{index}") in {(outlier["split"], outlier["id"]) for outlier in shown}
    assert kind == "unusual" or len({outlier["id"] for outlier in shown}) == 1
    assert all(reason in outlier["reason"] for outlier in shown)
    assert thumbnails(data.reader(), f"{NASTY}/{index}", shown[0]["role"], shown[0]["channel"])[0] in text
    assert clean[0]["outliers"] == []


def test_copies_and_near_duplicates_are_side_by_side(planted, clean):
    content, _, text, data = planted
    ids = {n: ["train", f"{NASTY}/{n}"] for n in (3, 4, 5)}
    assert content["copies"] == {
        "across_splits": [],
        "within_split": [[ids[3], ids[4]]],
        "similar": [[ids[5], ["val", "val0"]]],
    }
    part = text[text.index("Nearly the same, in different splits") :]
    uris = thumbnails(data.reader(), ids[5][1])[0], thumbnails(data.reader("val"), "val0")[0]
    assert 0 < part.index(uris[0]) < part.index(uris[1])
    assert "no two inputs are equal" in clean[2]


def test_the_summary_on_the_terminal(planted, clean):
    content, printed, _, data = planted
    for text in ("23 samples, 19 train in 3 groups", "image/$x^2$ <b>: uint16", NASTY, *content["warnings"]):
        assert text in printed
    assert printed.endswith(f"open {data.folder / 'inspect/report.html'}\n")
    assert "No warnings." in clean[1]


def test_files(planted):
    content, _, _, data = planted
    folder = data.folder / "inspect"
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.html", "images.csv"}
    assert json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail) == content
    with (folder / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 23
    assert {name: rows[6][name] for name in ("split", "id", "group", "label", "height", "width", "objects")} == {
        "split": "train", "id": f"{NASTY}/6", "group": "day1", "label": "0", "height": "32", "width": "40",
        "objects": "2",
    }  # fmt: skip
    image = data.reader().read("image", 6)
    assert float(rows[6]["image/$x^2$ <b> mean"]) == pytest.approx(image.mean())
    assert float(rows[6]["image/$x^2$ <b> std"]) == pytest.approx(image.std())


def test_an_inspection_replaces_the_earlier_one_when_it_is_complete(prepared, noise, monkeypatch):
    prepared.write("train", {"image": noise(2)})
    inspect(prepared.folder)
    path = prepared.folder / "inspect/report.json"
    before = path.read_bytes()
    prepared.write("train", {"image": noise(2, 5000)})

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(report, "write_text", fail)
    with pytest.raises(UserError, match="no space left"):
        inspect(prepared.folder)
    assert path.read_bytes() == before
    monkeypatch.undo()
    inspect(prepared.folder)
    assert path.read_bytes() != before


# Figures


def test_of_many_groups_those_that_differ_most_are_shown(prepared, noise):
    """The number of those that are not shown is in the title."""
    means = [1000] * 22 + [2500 + 100 * i for i in range(14)]
    images = [image for mean in means for image in noise(1, mean)]
    prepared.write("train", {"image": images * 2}, groups=[f"g{i:02}" for i in range(36)] * 2)
    measures = prepared.measures()
    (axes,) = draw_brightness(measures, make_report("d", measures)).axes
    assert "12 of 36 groups" in axes.get_title("left")
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"g{35 - i}" for i in range(12)]


@pytest.mark.parametrize("background", [None, "sky"])
def test_a_contact_sheet_names_classes_in_their_colors_and_outlines_objects(prepared, noise, background):
    mask = np.array([[0, 1], [2, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    instances = np.zeros((16, 16), np.uint16)
    instances[2:7, 1:6] = 3
    named = {"classes": {"mask": ["sky", "car", "tree"]}, "background": background, "ignore_index": 255}
    arrays = {"image": noise(1), "mask": [mask], "instances": [instances]}
    sheet = draw_contact_sheet(prepared.write("train", arrays, **named).reader(), "d, train")
    (legend,) = sheet.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sky", "car", "tree", "not annotated"]
    overlay = sheet.axes[1].images[-1].get_array()
    for patch, (y, x) in zip(legend.get_patches(), [(0, 0), (0, 8), (8, 0), (8, 8)], strict=True):
        if background is None or (y, x) != (0, 0):
            assert overlay[y, x].tolist() == pytest.approx([*patch.get_facecolor()[:3], 0.5])
    assert overlay[0, 0, 3] == (0.5 if background is None else 0)  # the input shows through
    outlines = sheet.axes[2].images[-1].get_array()[..., 3]
    assert (outlines[2, 3], outlines[4, 3], outlines[0, 0]) == (1, 0, 0)
