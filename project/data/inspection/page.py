"""`report.html`: the whole inspection on one page, for a browser or a printer, without anything from elsewhere."""

import json
from collections import defaultdict
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from project.data.inspection.images import EXAMPLES, SAID
from project.data.inspection.tables import Table, tables
from project.data.inspection.thumbnails import file_uri, thumbnail
from project.data.store import SplitReader
from project.formatting import format_channels, shorten

COPIES = 6  # groups of copies with pictures, and as many pairs of similar images
RANGES = 6  # channels whose range is told at the top
IN_A_GROUP = 4  # copies of one image that are shown
TITLES = {
    "splits": "Samples and splits",
    "sizes": "Image sizes",
    "values": "Pixel values",
    "groups": "Brightness of splits and groups",
    "classes": "Classes",
    "objects": "Objects",
    "outliers": "Images that stand out",
    "duplicates": "Copies and near-copies",
    "samples": "Samples, evenly spaced",
    "source": "Where this comes from",
}
# No scripts, and nothing that a browser would fetch: the policy forbids both, should an id ever get through as markup.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --soft: #5b6675; --page: #f5f6f8; --card: #ffffff; --line: #dfe3e8;
  --bar: #0072b233; --warn: #b45309; --warn-back: #fff7e8; --note: #0369a1; --note-back: #eef7fd; --good: #15803d; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --soft: #9aa6b4; --page: #12161c; --card: #1b2129;
  --line: #323b47; --bar: #4aa8e055; --warn: #fbbf5c; --warn-back: #2d2415; --note: #7cc7f5; --note-back: #16252f;
  --good: #6fd397; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.9rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 0 0 .7rem; }
h3 { font-size: .95rem; margin: 1.1rem 0 .4rem; } p { margin: .4rem 0; } .soft { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .2rem .9rem; margin: .8rem 0 1.2rem; font-size: .88rem; }
a { color: var(--note); text-decoration: none; } a:hover { text-decoration: underline; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.2rem;
  margin: 0 0 1.1rem; scroll-margin-top: 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.warning, .note, .suggestion { border-left: 4px solid var(--warn); background: var(--warn-back);
  border-radius: 0 6px 6px 0; padding: .55rem .8rem; margin: .5rem 0; overflow-wrap: anywhere; }
.note { border-color: var(--note); background: var(--note-back); } .suggestion { border-color: var(--line);
  background: none; } .suggestion p { margin: .15rem 0 0; } .good { color: var(--good); }
.warning b { color: var(--warn); } .note b { color: var(--note); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem .28rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } th, td:not(:first-child) { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; max-width: 22rem; overflow-wrap: break-word; }
td.bar { background: linear-gradient(90deg, var(--bar) var(--share), transparent 0); background-repeat: no-repeat;
  background-size: calc(100% - .7rem) 76%; background-position: 0 50%; min-width: 9rem; }
td.marked { color: var(--warn); font-weight: 600; }
table.text td:not(:first-child) { text-align: left; white-space: normal; overflow-wrap: anywhere; }
code { font: .88em ui-monospace, Consolas, monospace; background: var(--page); border-radius: 4px; padding: .08em .3em;
  overflow-wrap: anywhere; } pre { overflow-x: auto; background: var(--page); border-radius: 6px; padding: .7rem; }
pre code { padding: 0; overflow-wrap: normal; }
img.plot { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; margin: .6rem 0; }
.strip { display: flex; flex-wrap: wrap; gap: .8rem; margin: .5rem 0 1rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; } figure > div { display: flex; gap: .25rem; flex-wrap: wrap; }
figure img { display: block; border-radius: 4px; background: #000; max-width: 100%; }
figcaption { font-size: .76rem; line-height: 1.35; max-width: 17rem; overflow-wrap: anywhere; margin-top: .2rem; }
.pair { border: 1px solid var(--line); border-radius: 8px; padding: .6rem; display: flex; flex-wrap: wrap; gap: .7rem; }
.pair figure { max-width: 8.5rem; } .train { color: #0072b2; } .val { color: #b37700; } .test { color: #009e73; }
.split { font-weight: 600; } summary { cursor: pointer; color: var(--soft); }
@media (max-width: 600px) { main { padding: .8rem .5rem 3rem; } section { padding: .8rem; } body { font-size: 14px; } }
@media print { :root { color-scheme: light; --text: #000; --soft: #444; --page: #fff; --card: #fff; --line: #bbb;
  --warn: #8a4b00; --warn-back: #fff; --note: #024f7a; --note-back: #fff; --bar: #0072b233; --good: #0b5c2b; }
  body { font-size: 10pt; } nav { display: none; } main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; } figure, tr, .warning, .note, .suggestion, .card { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .wide { overflow: visible; } table { font-size: 7.5pt; }
  td.bar, img { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def write_page(folder: Path, report: dict[str, Any], readers: dict[str, SplitReader]) -> None:
    """Write `report.html` into `folder`, where the pictures named in the report lie.

    All numbers and sentences are those of the report. The page has at most some hundred small pictures, whatever the
    size of the dataset; it needs no network, no script and no other file.
    """
    (folder / "report.html").write_text(page(folder, report, readers), encoding="utf-8")


def page(folder: Path, report: dict[str, Any], readers: dict[str, SplitReader]) -> str:
    """The page as text; arguments as of `write_page`."""
    every = tables(report)
    made = {name: "".join(table_html(table) for table in every if table.section == name) for name in TITLES}
    made["groups"] += plot(file_uri(folder / "brightness.png"), "mean of each image by split or group")
    made["values"] += plot(file_uri(folder / "histograms.png"), "histograms of the pixel values")
    made["splits"] += _division(report)
    sheets = [name for name in report["pictures"] if name.startswith("contact_")]
    made["samples"] = "".join(
        plot(file_uri(folder / name), name.removesuffix(".png").replace("_", " sheet of ")) for name in sheets
    )
    made["outliers"] = _outliers(report, readers)
    made["duplicates"] = _duplicates(report, readers)
    made["source"] = _source(report)
    sections = {"advice": ("What to do", _advice(report))} | {name: (TITLES[name], made[name]) for name in made}
    dataset = report["dataset"]
    return document(f"{dataset}: inspection", "Inspection of the dataset", dataset, _cards(report), sections)


def document(title: str, kind: str, heading: str, head: str, sections: dict[str, tuple[str, str]]) -> str:
    """A whole page, which needs no network, no script and no other file.

    Args:
        title: Of the browser's window, as plain text.
        kind: What the page is, above the heading; plain text.
        heading: Plain text.
        head: HTML between the heading and the links to the sections.
        sections: Anchor -> title and HTML; empty ones are left out.
    """
    shown = {name: part for name, part in sections.items() if part[1]}
    navigation = "".join(f'<a href="#{name}">{escape(of)}</a>' for name, (of, _) in shown.items())
    body = "".join(
        f'<section id="{name}"><h2>{escape(of)}</h2>{content}</section>\n' for name, (of, content) in shown.items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><main><header><p class="soft">{escape(kind)}</p><h1>{escape(heading)}</h1>{head}'
        f"<nav>{navigation}</nav></header>\n{body}</main></body></html>\n"
    )


def cards(numbers: Iterable[tuple[str, str]]) -> str:
    """Numbers, each with a word below it, both plain text."""
    each = "".join(
        f'<div class="card"><b>{escape(b)}</b><span class="soft">{escape(t)}</span></div>' for b, t in numbers
    )
    return f'<div class="cards">{each}</div>'


def _cards(report: dict[str, Any]) -> str:
    total = sum(split["n_samples"] for split in report["splits"].values())
    numbers = [(str(total), "samples")]
    for name, split in report["splits"].items():
        groups = split["n_groups"]
        grouped = f", {groups} group{'s' * (groups != 1)}" if groups != split["n_samples"] else ""
        numbers.append((str(split["n_samples"]), f"{name}{grouped}"))
    sizes = report["sizes"]
    size = f"{sizes[0]['height']} x {sizes[0]['width']}"
    numbers.append((size, "pixels" if len(sizes) == 1 else f"pixels, and {len(sizes) - 1} other sizes"))
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for e in report["channels"]:
        alike[e["role"], e["text"]].append(e["channel"])
    ranges = [
        f"<li><b>{escape(format_channels(role, own))}</b>: {escape(text)}</li>" for (role, text), own in alike.items()
    ]
    more = f"<li>and {len(ranges) - RANGES} more</li>" if len(ranges) > RANGES else ""
    return f'{cards(numbers)}<ul class="soft">{"".join(ranges[:RANGES])}{more}</ul>'


def _advice(report: dict[str, Any]) -> str:
    warnings = "".join(_sentence("warning", text) for text in report["warnings"])
    notes = "".join(_sentence("note", text) for text in report["notes"])
    suggestions = "".join(
        f'<div class="suggestion"><b>{escape(s["what"])}</b> <code>{escape(s["set"])}</code>'
        f"<p>{escape(s['why'])}</p></div>"
        for s in report["suggestions"]
    )
    none = '<p class="good">None.</p>'
    return (
        f"<h3>Warnings</h3>{warnings or none}"
        + (f"<h3>Notes: nothing to do</h3>{notes}" if notes else "")
        + f"<h3>Suggestions for an experiment</h3>{suggestions}"
    )


def _sentence(kind: str, text: str) -> str:
    """What it is about in bold: all up to the first ": "."""
    where, colon, what = text.partition(": ")
    return f'<div class="{kind}"><b>{escape(where)}{colon}</b>{escape(what)}</div>'


def table_html(table: Table) -> str:
    """A table, with bars and marks."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = ""
    for i, row in enumerate(table.rows):
        body += "<tr>"
        for j, cell in enumerate(row):
            share, marked = table.shares.get((i, j)), ' class="marked"' if (i, j) in table.marked else ""
            bar = f' class="bar" style="--share:{min(share, 1) * 100:.1f}%"' if share is not None else marked
            body += f"<td{bar}>{escape(cell)}</td>"
        body += "</tr>"
    return f'<h3>{escape(table.title)}</h3><div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _division(report: dict[str, Any]) -> str:
    """How the samples were divided, as the preparation wrote it; without what is not used."""
    definition = report["split_definition"]
    unused = {"axis", "gap"} if definition.get("by") == "group" else set()
    unused |= {name for name, value in definition.items() if value in (None, {}, []) or value is False}
    known = {name: value for name, value in definition.items() if name not in unused}
    return f"<h3>How they were divided</h3>{pairs(known)}" if known else ""


def _source(report: dict[str, Any]) -> str:
    source = dict(report["source"])
    config, versions = source.pop("config", None), source.pop("versions", None)
    source |= {f"content of {name}": split["content_hash"] for name, split in report["splits"].items()}
    if versions:
        source["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = pairs(source)
    if config:
        shown = escape(json.dumps(config, indent=2, ensure_ascii=False))
        text += f"<details><summary>configuration</summary><pre><code>{shown}</code></pre></details>"
    return text


def pairs(values: dict[str, Any]) -> str:
    """Names with their values, which are plain JSON."""

    def told(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).strip("{}").replace('"', "")

    rows = (f"<tr><td>{escape(name)}</td><td>{escape(told(value))}</td></tr>" for name, value in values.items())
    return f'<div class="wide"><table class="text">{"".join(rows)}</table></div>'


def _outliers(report: dict[str, Any], readers: dict[str, SplitReader]) -> str:
    """A strip of pictures for each kind of image that stands out."""
    shown = report["images"]["shown"]
    if not shown:
        return '<p class="good">None: no damaged, empty, saturated or unusually bright image.</p>'
    text = (
        '<p class="soft">Each image twice: scaled by itself, and as the training images are, which shows how '
        f"bright it is. At most {EXAMPLES} of a kind, the worst first; all are in report.json.</p>"
    )
    for kind, role in dict.fromkeys((example["kind"], example["role"]) for example in shown):
        own = [example for example in shown if (example["kind"], example["role"]) == (kind, role)]
        figures = (_figure(readers, e["split"], e["id"], e["role"], e["channel"], e["reason"]) for e in own)
        text += f"<h3>{escape(role)}: {escape(SAID[kind][0])}</h3>{strip(figures)}"
    return text


def _duplicates(report: dict[str, Any], readers: dict[str, SplitReader]) -> str:
    copies, similar = report["images"]["duplicates"], report["images"]["similar"]
    text = ""
    for across, heading in ((True, "Equal in different splits"), (False, "Equal in one split")):
        own = [c for c in copies if c["across_splits"] == across]
        if own:
            text += f"<h3>{heading}{_more(len(own))}</h3>"
            text += strip(_pair(readers, c["role"], c["samples"]) for c in own[:COPIES])
    headings = {
        "across_splits": "Nearly the same, in different splits",
        "across_groups": "Nearly the same, in different groups of one split",
    }
    for kind, heading in headings.items():
        own = [pair for pair in similar["pairs"] if pair["kind"] == kind]
        if own:
            text += f"<h3>{heading}{_more(similar['counts'][kind])}</h3>"
            text += strip(_pair(readers, "image", pair["samples"]) for pair in own[:COPIES])
    return text or '<p class="good">None: no two inputs are equal or look nearly the same.</p>'


def _more(total: int) -> str:
    return f" ({COPIES} of {total})" if total > COPIES else ""


def _pair(readers: dict[str, SplitReader], role: str, samples: list[list[str]]) -> str:
    figures = "".join(_figure(readers, split, id_, role, both=False) for split, id_ in samples[:IN_A_GROUP])
    more = f"<p>and {len(samples) - IN_A_GROUP} more</p>" if len(samples) > IN_A_GROUP else ""
    return f'<div class="pair">{figures}{more}</div>'


def strip(figures: Iterable[str]) -> str:
    """Figures side by side."""
    return f'<div class="strip">{"".join(figures)}</div>'


def _figure(
    readers: dict[str, SplitReader],
    split: str,
    id_: str,
    role: str,
    channel: str | None = None,
    reason: str = "",
    both: bool = True,
) -> str:
    uris = thumbnail(readers[split], id_, role, channel)[: 2 if both else 1]
    images = "".join(f'<img src="{uri}" alt="">' for uri in uris)
    why = "; ".join(text for text in (channel, reason) if text)
    return (
        f'<figure><div>{images}</div><figcaption title="{escape(id_)}"><span class="split {split}">{split}</span> '
        f"{escape(shorten(id_))}{f'<br>{escape(why)}' if why else ''}</figcaption></figure>"
    )


def plot(uri: str, what: str) -> str:
    """A picture as wide as the page, from a data URI."""
    return f'<img class="plot" src="{uri}" alt="{escape(what)}">'
