"""The page of a run, and that of a comparison: one file each, for a browser, without anything from elsewhere."""

import json
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from project.data.inspection.page import cards, document, pairs, plot, strip, table_html
from project.data.inspection.tables import Table
from project.data.inspection.thumbnails import thumbnail
from project.data.store import SplitReader
from project.files import atomic_path, safe_file_name
from project.formatting import format_number, shorten
from project.metrics.classification import reliability
from project.results import figures
from project.results.compare import Comparison, compare
from project.results.mislabelled import Suspect, keep, suspects
from project.results.prediction_pass import Seen, calibration, look
from project.results.run_results import RunResults, metrics_from_rows, read_results
from project.results.statistics import interval, per_sample_column
from project.results.tables import NOTHING, describe_differences, entry_name, format_table
from project.runs.run_folder import RUNS, Run
from project.tasks.base import Task

EACH = 3  # samples of the worst, of the middle and of the best
LISTED = 40  # groups, and differences
COLUMNS = 3  # metrics of a comparison; all are in its CSV
SUSPECTS, SHARE = 48, 10  # pictures of samples that are likely mislabelled: at most so many, and of every tenth


def write_run(
    run: Run, split: str = "val", reference: str | None = None, trusted: bool = False, root: Path = RUNS
) -> Path:
    """Write the page of a run into its folder; returns its path.

    Args:
        run: A run that was evaluated on the split.
        split: "val" or "test"; the pass over the test split is recorded as a look.
        reference: Of the comparison, see `compare`.
        trusted: Let the configuration name any code.
        root: Folder of the runs.

    Raises:
        UserError: As for an evaluation.
    """
    own = read_results(run, split)
    comparisons = compare(run, split, reference, trusted=trusted, root=root)
    seen = look(run, split, [place for _, chosen in _chosen(own) for place in chosen], trusted)
    sections = {
        "metrics": ("Metrics", _metrics(own, seen.task)),
        "comparison": ("Against other runs", "".join(map(_comparison, comparisons))),
        **_test_split(run, split, seen.task, reference, trusted, root),
        "curves": ("Training", _curves(own)),
        "samples": ("Worst, middle and best samples", _samples(own, seen)),
        "groups": ("By group", _groups(own, seen)),
        "calibration": ("Errors and calibration", _calibration(seen)),
        "labels": ("Likely wrong labels", _labels(run, split, seen, trusted, root)),
        "source": ("Where this comes from", _source(own)),
    }
    shown = [(format_number(own.metrics[m]), m) for m in own.main_metrics if m in own.metrics][:4]
    head = cards([(str(len(own.ids)), f"images, {split} split"), *shown])
    page = document(f"{run.name}: report", f"{own.identity.task} on {own.identity.dataset}", run.name, head, sections)
    path = run.folder / ("report.html" if split == "val" else f"report.{split}.html")
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def write_comparison(comparisons: list[Comparison], root: Path = RUNS) -> Path:
    """Write the page of a dataset's runs into `<root>/tables/`; returns its path."""
    first = comparisons[0]
    sections: dict[str, tuple[str, str]] = {}
    for i, comparison in enumerate(comparisons):
        sections[f"table{i}"] = (comparison.title, _comparison(comparison))
        names = [name for name in comparison.metrics if name != comparison.metrics[0]][:5]
        plots = "".join(plot(figures.uri(figures.draw_intervals(comparison, m)), m) for m in names)
        sections[f"metrics{i}"] = (f"Other metrics: {comparison.identity.task}", plots)
        if comparison.split == first.split:
            name = f"What was set differently: {comparison.identity.task}"
            sections[f"settings{i}"] = (name, _settings(comparison))
    dataset = str(first.identity.dataset)
    n = sum(len(comparison.entries) for comparison in comparisons)
    head = cards([(str(n), "experiments"), (first.split, "split")])
    path = root / "tables" / f"{safe_file_name(dataset)}_{first.split}.html"
    with atomic_path(path) as temporary:
        temporary.write_text(document(f"{dataset}: runs", "All runs on", dataset, head, sections), encoding="utf-8")
    return path


def _comparison(comparison: Comparison) -> str:
    header, lines = format_table(comparison, COLUMNS)
    shown = table_html(Table("comparison", comparison.title, header, lines))
    if comparison.metrics:
        shown += plot(figures.uri(figures.draw_intervals(comparison, comparison.metrics[0])), comparison.metrics[0])
    return shown + "".join(f'<p class="soft">{escape(note)}</p>' for note in comparison.notes)


def _settings(comparison: Comparison) -> str:
    """Each entry against the best."""
    best, *others = comparison.entries
    parts = []
    for entry in others[:LISTED]:
        lines = "".join(f"<li>{escape(line)}</li>" for line in describe_differences(entry, best)[:LISTED])
        parts.append(f"<details><summary>{escape(entry_name(entry))}</summary><ul>{lines}</ul></details>")
    return f"<p>Each against {escape(best.name)}.</p>{''.join(parts)}" if parts else ""


def _test_split(
    run: Run, split: str, task: Task, reference: str | None, trusted: bool, root: Path
) -> dict[str, tuple[str, str]]:
    """What an earlier test evaluation found, on the page about validation; this is no further test evaluation."""
    if split != "val" or not run.metrics_file("test").is_file():
        return {}
    comparisons = compare(run, "test", reference, trusted=trusted, root=root)
    text = _metrics(read_results(run, "test"), task) + "".join(map(_comparison, comparisons))
    return {"test": ("The test split", text)}


def _metrics(own: RunResults, task: Task) -> str:
    replicates = own.replicates(metrics_from_rows(task))
    n_units = int(own.units.max()) + 1
    rows = []
    for name, value in own.metrics.items():
        ends = interval(replicates[name], n_units) if name in replicates else None
        undefined = own.record.undefined.get(name)
        rows.append(
            [
                name,
                format_number(value),
                *(map(format_number, ends) if ends else (NOTHING, NOTHING)),
                str(undefined or ""),
            ]
        )
    drawn = "images" if n_units == len(own.ids) else "groups of images"
    text = f"Intervals of 95 % by bootstrap over {n_units} {drawn}, for these trained weights."
    if n_units < 2:
        text = "One image or group says nothing about others: there are no intervals."
    note = f'<p class="soft">{text}</p>'
    columns = ["metric", "value", "from", "to", "not defined for"]
    return table_html(Table("metrics", f"{own.split} split", columns, rows)) + note


def _curves(own: RunResults) -> str:
    history = figures.read_history(own.run.folder / "history.csv")
    figure = figures.draw_curves(history, list(own.main_metrics), own.record.epoch)
    if figure is None:
        return '<p class="soft">Fitted, not trained: there are no epochs.</p>'
    return plot(figures.uri(figure), "curves of the training")


# Samples and groups ---------------------------------------------------------------------------------------------------


def _score(own: RunResults) -> tuple[str, np.ndarray, bool]:
    """What ranks samples: the leading metric's own column or, where it is none or a yes and no, the loss.

    Returns:
        Its name, the values (N,), and whether larger is better.
    """
    leading = own.main_metrics
    metric = next((name for name in leading if name in own.metrics), None)
    column = per_sample_column(metric, own.metrics[metric], own.rows) if metric else None
    if metric is not None and column and len(own.rows[column].unique()) > 2 and leading[metric] != "zero":
        return column, own.rows[column].numpy(), leading[metric] == "max"
    return "loss", own.rows["loss"].numpy(), False


def _chosen(own: RunResults) -> list[tuple[str, list[int]]]:
    """Positions of the worst, the middle and the best samples; none stands in two of them."""
    _, values, larger = _score(own)
    order = np.argsort(values if larger else -values, kind="stable")
    order = order[np.isfinite(values[order])]
    n = min(3 * EACH, len(order)) // 3 or min(1, len(order))
    middle = max((len(order) - n) // 2, n)
    parts = {"worst": order[:n], "middle": order[middle : middle + n], "best": order[max(len(order) - n, middle + n) :]}
    return [(name, part.tolist()) for name, part in parts.items() if len(part)]


def _samples(own: RunResults, seen: Seen) -> str:
    score, values, _ = _score(own)
    text = f'<p class="soft">By {escape(score)}.</p>'
    for name, chosen in _chosen(own):
        samples = [seen.samples[i] for i in chosen if i in seen.samples]
        if samples:
            told_values = ", ".join(f"{shorten(own.ids[i])} ({format_number(float(values[i]))})" for i in chosen)
            picture = figures.uri(seen.task.draw(samples))
            text += f"<h3>{name}</h3><p>{escape(told_values)}</p>{plot(picture, name)}"
    return text


def _groups(own: RunResults, seen: Seen) -> str:
    names = sorted(set(own.groups))
    if len(names) < 2 or len(names) == len(own.ids):
        return ""
    score, values, _ = _score(own)
    groups = np.array(own.groups, dtype=object)
    aggregate = metrics_from_rows(seen.task)
    metrics = [name for name in own.main_metrics if name in own.metrics][:4]
    found: dict[str, dict[str, float]] = {}
    for name in names:
        index = torch.from_numpy(np.flatnonzero(groups == name))
        found[name] = aggregate({column: row[index] for column, row in own.rows.items()})
    key = metrics[0] if metrics else ""
    good = own.main_metrics.get(key, "min")
    sign = -1 if good == "min" else 1
    order = sorted(names, key=lambda name: sign * found[name].get(key, np.inf))
    rows = [
        [name, str(own.groups.count(name)), *(format_number(found[name].get(metric)) for metric in metrics)]
        for name in order[:LISTED]
    ]
    more = f" ({LISTED} of {len(names)})" if len(names) > LISTED else ""
    shown = table_html(Table("groups", f"Groups, the worst first{more}", ["group", "images", *metrics], rows))
    by_group = {name: values[groups == name] for name in order}
    return shown + plot(figures.uri(figures.draw_groups(by_group, score)), "score of each sample by group")


# Errors, calibration, labels ------------------------------------------------------------------------------------------


def _calibration(seen: Seen) -> str:
    task: Any = seen.task
    results, drawn = seen.results, []
    if seen.joint is not None:
        n = len(seen.joint)
        low, high = (each[:n].cpu().numpy().astype(float) for each in (task.low, task.high))
        names = task.channels.get("target", [])
        names = names if len(names) >= n else [f"channel {i}" for i in range(n)]
        drawn.append(("residuals", figures.draw_residuals(seen.joint, low, high, names)))
        if results and "mean_t" in results.rows:
            levels = figures.draw_levels(results.rows["mean_t"].numpy(), results.rows["mean_p"].numpy())
            drawn.append(("mean of each image", levels))
    if task.target_kind == "mask":
        if (curve := calibration(seen)) is not None:
            drawn.append(("reliability", figures.draw_reliability(*curve, "pixels")))
        if seen.confusion is not None:
            names = [*task.names, "rim"][: len(seen.confusion)]
            drawn.append(("confusion matrix", figures.draw_matrix(seen.confusion, names, "pixels")))
    if task.target_kind == "label" and task.multi_label and results:
        p, labels = task.probabilities(results.rows), task.labels(results.rows)
        confidence, right, count = reliability(p, labels)
        drawn.append(("reliability", figures.draw_reliability(confidence, right, count, "decisions")))
    summary = task.draw_summary(results) if results else None
    if summary is not None:
        drawn.append(("summary", summary))
    return "".join(plot(figures.uri(figure), name) for name, figure in drawn)


def _labels(run: Run, split: str, seen: Seen, trusted: bool, root: Path) -> str:
    found, n_runs = suspects(run, split, trusted, root, seen)
    if not found:
        return ""
    path = run.folder / "samples" / f"{split}.suspects.csv"
    keep(found, path)
    folds = {each.fold for each in found} - {None}
    asked = f"{n_runs} runs over {len(folds)} folds" if len(folds) > 1 else f"{n_runs} run{'s' * (n_runs > 1)}"
    masks = found[0].given == "mask" and not found[0].suggested
    shown = found[: min(SUSPECTS, max(len(found) // SHARE, 6))]
    text = (
        f'<p class="soft">The {len(shown)} of {len(found)} images whose {"mask" if masks else "label"} '
        f"{asked} believe{'s' * (n_runs == 1)} least, without having been trained on them. A network may be wrong: "
        f"look before you change anything. All are in {escape(path.name)}.</p>"
    )
    figures_html = [_suspect(each, seen, len(folds) > 1, masks) for each in shown]
    return text + strip(figures_html)


def _suspect(each: Suspect, seen: Seen, over_folds: bool, masks: bool) -> str:
    # Out of fold, the sample is not in the split of this run.
    reader = seen.whole if over_folds else seen.reader
    there = each.id in reader.ids  # or the table of the run is not about this data
    picture = f'<img src="{thumbnail(reader, each.id, "image")[0]}" alt="">' if there else ""
    if masks:
        picture += f'<img src="{figures.mask_uri(*_mask(reader, each.id))}" alt="">'
        told_text = f"agreement {each.confidence:.2f}"
    else:
        told_text = f"{each.given} ({each.confidence:.0%})"
        told_text += f", rather {each.suggested} ({each.rival:.0%})"
    where = "" if each.fold is None else f"fold {each.fold} "
    return (
        f'<figure><div>{picture}</div><figcaption title="{escape(each.id)}"><b>{escape(told_text)}</b><br>'
        f"{where}{escape(shorten(each.id))}</figcaption></figure>"
    )


def _mask(reader: SplitReader, id_: str) -> tuple[np.ndarray, int]:
    """The given mask, and the number of its classes."""
    return reader.read("mask", reader.ids.index(id_)), len(reader.attributes["classes"].get("mask", []))


def _source(own: RunResults) -> str:
    facts = asdict(own.provenance)
    for name in ("leading", "checks", "preflight"):
        facts.pop(name, None)
    versions = facts.pop("versions", None) or {}
    machine = facts.pop("hardware", None) or {}
    looks = facts.pop("test_evaluations", [])
    facts["looks at the test split"] = len(looks)
    told_facts = {name: value for name, value in facts.items() if value not in (None, [], {}, "")}
    told_facts |= {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())}
    told_facts |= {"machine": ", ".join(f"{name}: {value}" for name, value in machine.items() if value)}
    config = escape(json.dumps(own.configs[-1], indent=2, ensure_ascii=False))
    return pairs(told_facts) + f"<details><summary>configuration</summary><pre><code>{config}</code></pre></details>"
