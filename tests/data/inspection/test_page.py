"""report.html: well-formed, on its own, escaped, and with each finding that is in the data."""

import io
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_report import RNG, look, said, write

from project.data.inspection import thumbnails
from project.data.inspection.page import TITLES
from project.data.inspection.report import inspect
from project.data.inspection.tables import tables
from project.data.inspection.thumbnails import MOST, file_uri, thumbnail
from project.data.store import SplitReader

VOID = {"meta", "img", "br"}
NASTY = "<script>a&\"b'</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Tags, text and the attributes that load something."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.images, self.links, self.text, self.tags = [], [], [], [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.images += [given["src"]] if "src" in given else []
        self.links += [given["href"]] if "href" in given else []
        assert not any(name.startswith("on") for name in given)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def fields(n, mean=3000, shape=(32, 32)):
    """Inputs with coarse structure, no two alike."""
    coarse = [RNG.normal(mean, mean / 4, (8, 8)) for _ in range(n)]
    return [np.kron(c, np.ones((shape[0] // 8, shape[1] // 8)))[None].clip(0, 60000).astype(np.uint16) for c in coarse]


def plant(folder):
    """One of everything that a page can tell."""
    train, val = fields(16), fields(4)
    train += fields(3, 30000)  # another day, ten times as bright
    train[0][:] = 1234
    train[1] = (train[1] // 50 + 3000).astype(np.uint16)
    train[2][0, :16] = 65535
    train[4] = train[3].copy()
    val[0] = (train[5] + RNG.integers(0, 60, train[5].shape)).astype(np.uint16)
    train[6] = fields(1, shape=(32, 40))[0]
    train[7] = (train[12] + RNG.integers(0, 60, train[12].shape)).astype(np.uint16)
    targets = [i.astype(np.float32) for i in train]
    targets[7][0, 0, :5] = np.nan
    targets[8] = fields(1)[0].astype(np.float32)
    numbers = [(i[0] > np.median(i)).astype(np.uint16) for i in train]
    numbers[0], numbers[9] = numbers[3].copy(), 0 * numbers[9]
    masks = [n.astype(np.uint8) for n in numbers]
    masks[10][:] = 0
    masks[11][:] = 255
    for n in numbers:
        n[:4] *= 2
    labels = [0] * 15 + [1] * 4
    groups = ["day1"] * 8 + ["day <2>"] * 8 + ["day3"] * 3
    ids = [f"{NASTY}/{i}" for i in range(19)]
    names = {"mask": ["soil & sand", "root"], "label": ["<i>wild", "mutant"]}
    attributes = {
        "channels": {"image": ["$x^2$ <b>"], "target": ["gfp"]},
        "classes": names,
        "background": "soil & sand",
        "ignore_index": 255,
        "source": {
            "command": "project data <x>",
            "commit": "abc123",
            "versions": {"numpy": "2.1"},
            "config": {"raw": NASTY},
        },
        "split": {"by": "group", "seed": 7, "axis": "x"},
    }
    arrays = {"image": train, "target": targets, "mask": masks, "instances": numbers}
    write(folder, "train", arrays, ids, groups, labels, **attributes)
    arrays = {
        "image": val,
        "target": [i.astype(np.float32) for i in val],
        "mask": masks[12:16],
        "instances": numbers[12:16],
    }
    write(folder, "val", arrays, None, ["day4"] * 4, [0, 0, 1, 1], **attributes)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "<b>cells & co"
    plant(folder)
    report = inspect(folder, Console(file=io.StringIO()))
    text = (folder / "inspect" / "report.html").read_text(encoding="utf-8")
    return report, text, Page(text), folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "clean"
    for split, n in (("train", 8), ("val", 6)):
        write(folder, split, {"image": fields(n)}, groups=[f"{split}{i // 2}" for i in range(n)])
    report = inspect(folder, Console(file=io.StringIO()))
    text = (folder / "inspect" / "report.html").read_text(encoding="utf-8")
    return report, Page(text)


def test_tags_are_balanced_and_every_section_is_there(planted):
    _, _, page, _ = planted
    assert page.open == []
    assert page.ids == ["advice", *TITLES]
    assert {link.removeprefix("#") for link in page.links} == set(page.ids)


def test_sections_without_matter_are_left_out(clean):
    _, page = clean
    assert not {"sizes", "classes", "objects"} & set(page.ids)
    assert {"advice", "splits", "values", "groups", "samples", "outliers", "duplicates", "source"} == set(page.ids)


def test_nothing_comes_from_elsewhere(planted):
    _, text, page, _ = planted
    assert page.images
    assert all(source.startswith("data:image/") for source in page.images)
    assert all(link.startswith("#") for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in text


def test_whatever_comes_from_the_data_is_escaped(planted):
    report, text, page, _ = planted
    assert "<script" not in text
    assert not page.tags & {"i"}
    shown = "".join(page.text)
    for name in ("<b>cells & co", "day <2>", "<i>wild", "soil & sand", "$x^2$ <b>", "project data <x>"):
        assert name in shown
        assert escape(name) in text
    assert f'title="{escape(NASTY)}/0"' in text
    assert any(NASTY in sentence for sentence in report["warnings"])


def test_sentences_tables_and_suggestions_are_those_of_the_report(planted):
    report, _, page, _ = planted
    shown = "".join(page.text)
    for sentence in [*report["warnings"], *report["notes"]]:
        assert sentence in shown
    for suggestion in report["suggestions"]:
        assert suggestion["set"] in shown
        assert suggestion["why"] in shown
    for table in tables(report):
        assert table.title in shown
        assert set(table.columns) <= set(page.text)
        assert {cell for row in table.rows for cell in row} <= set(page.text)
    for text in ("abc123", "numpy 2.1", '"raw"', "seed"):
        assert text in shown
    assert page.text.index("Warnings") < page.text.index("Notes: nothing to do")


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
def test_each_planted_image_stands_out_with_its_reason(planted, clean, kind, index, reason):
    report, text, _, folder = planted
    shown = [e for e in report["images"]["shown"] if e["kind"] == kind]
    where = {(e["split"], e["id"]) for e in shown}
    assert ("train", f"{NASTY}/{index}") in where
    assert all(reason in e["reason"] for e in shown)
    if kind != "unusual":
        assert len({id_ for _, id_ in where}) == 1
    # Its picture is there, in the words of the sentence.
    assert (
        thumbnail(SplitReader(folder / "train.h5"), f"{NASTY}/{index}", shown[0]["role"], shown[0]["channel"])[0]
        in text
    )
    assert not any(e["kind"] == kind for e in clean[0]["images"]["shown"])


def test_copies_and_near_copies_stand_side_by_side(planted, clean):
    report, text, page, folder = planted
    ids = {n: ["train", f"{NASTY}/{n}"] for n in (3, 4, 5, 7, 12)}
    copies = [c for c in report["images"]["duplicates"] if c["role"] == "image"]
    assert copies == [{"role": "image", "across_splits": False, "samples": [ids[3], ids[4]]}]
    assert report["images"]["similar"]["pairs"] == [
        {"kind": "across_splits", "samples": [ids[5], ["val", "val0"]]},
        {"kind": "across_groups", "samples": [ids[7], ids[12]]},
    ]
    assert any("1 pair of 2 images look nearly the same in different groups of one split" in n for n in report["notes"])
    assert said(report, "image: 1 pair of 2 images look nearly the same in different splits", "(train) ~ val0 (val)")
    assert "Nearly the same, in different splits" in page.text
    pair = thumbnail(SplitReader(folder / "train.h5"), ids[5][1], "image")[0]
    other = thumbnail(SplitReader(folder / "val.h5"), "val0", "image")[0]
    part = text[text.index("Nearly the same, in different splits") :]
    assert 0 < part.index(pair) < part.index(other)
    assert any("no two inputs are equal" in t for t in clean[1].text)
    assert clean[0]["images"]["similar"]["pairs"] == []


def test_drift_is_marked_and_absent_where_there_is_none(planted, clean):
    report, text, _, _ = planted
    assert said(report, "another brightness", "day3 (mean ")
    assert re.search(r'<td class="marked">[^<]*times brighter', text)
    assert clean[0]["warnings"] == []
    assert any("No" in t or "None." in t for t in clean[1].text)


def test_class_shares_are_bars(planted):
    report, text, _, _ = planted
    share = report["classes"]["label"]["train"]["mutant"]["share"]
    assert f'<td class="bar" style="--share:{share * 100:.1f}%">4 (21.1 %)</td>' in text


def test_sizes_are_counted(planted):
    report = planted[0]
    assert [(s["height"], s["width"], s["n"], s["splits"]) for s in report["sizes"]] == [
        (32, 32, 22, {"train": 18, "val": 4}),
        (32, 40, 1, {"train": 1, "val": 0}),
    ]


def test_near_copies_within_a_split_are_a_note_unless_the_split_is_by_place(tmp_path):
    images = fields(6)
    images[1] = (images[0] + RNG.integers(0, 60, images[0].shape)).astype(np.uint16)
    for groups, split, noted in (("abcdef", {}, True), ("aacdef", {}, False), ("abcdef", {"by": "place"}, False)):
        write(tmp_path, "train", {"image": images}, groups=list(groups), split=split)
        report = look(tmp_path)
        assert len(report["images"]["similar"]["pairs"]) == (groups[0] != groups[1])
        assert any("nearly the same" in note for note in report["notes"]) == noted
        assert not said(report, "nearly the same")


def test_pictures_are_small_however_large_the_images(tmp_path, monkeypatch):
    write(tmp_path, "train", {"image": [RNG.integers(0, 65535, (1, 300, 900)).astype(np.uint16)]})
    for uri in thumbnail(SplitReader(tmp_path / "train.h5"), "train0", "image"):
        assert len(uri) < 40_000
    Image.fromarray(RNG.integers(0, 255, (200, 300, 3), np.uint8)).save(tmp_path / "noise.png")
    sharp = file_uri(tmp_path / "noise.png")
    most = len(sharp) // 2
    monkeypatch.setattr(thumbnails, "MOST", most)
    assert len(file_uri(tmp_path / "noise.png")) * 3 / 4 <= most
    # Histograms, brightness and three sheets, eight of each of the nine kinds twice, copies; base64 adds a third.
    assert 5 * MOST * 4 / 3 < 6_000_000


def test_a_page_does_not_grow_with_the_dataset(tmp_path):
    """Of many images that stand out, and of many copies, a few are shown."""
    images = [np.full((1, 8, 8), 7, np.uint16)] * 40 + [i for f in fields(20, shape=(8, 8)) for i in (f, f)]
    write(tmp_path, "train", {"image": images})
    inspect(tmp_path, Console(file=io.StringIO()))
    page = Page((tmp_path / "inspect" / "report.html").read_text())
    assert len(page.images) < 30
    assert any("(6 of 20)" in text for text in page.text)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_renders_it(planted, tmp_path):
    *_, folder = planted
    shot = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--window-size=500,3000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
    copy = shutil.copy(folder / "inspect" / "report.html", tmp_path / "page.html")
    subprocess.run([CHROMIUM, *options, f"file://{copy}"], check=True, capture_output=True, timeout=120)
    with Image.open(shot) as picture:
        assert np.asarray(picture.convert("L")).std() > 10
