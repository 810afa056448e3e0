"""The report page of a run: one HTML file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from project.data.inspection.figures import color_classes, thumbnails
from project.files import write_table, write_text
from project.formatting import format_number, shorten
from project.pages.render import figure_uri, render, thumbnail_uri
from project.results import figures
from project.results.compare import Comparison, compare
from project.results.mislabeled import Suspect, find_suspects
from project.results.prediction_pass import PredictionPass, run_prediction_pass
from project.results.run_results import RunResults, metrics_from_rows, read_results
from project.results.statistics import interval, per_sample_column
from project.results.tables import coverage_table, format_table
from project.runs.run_folder import Run
from project.tasks.base import Task
from project.tasks.figures import draw_confusion
from project.training.history import read_history

MOST_SAMPLES = 3  # of the worst, of the middle and of the best
MOST_ROWS = 40  # groups
MOST_METRICS = 4  # cards, and columns of the groups
COMPARED_METRICS = 3  # columns of a comparison; all are in its CSV
MOST_SUSPECTS, LEAST_SUSPECTS, SUSPECT_SHARE = 48, 6, 10  # likely mislabeled samples on the page; one of ten
HIDDEN_FACTS = ("leading", "checks")


def write_run_page(run: Run, split: str = "val", reference: str | None = None, trusted: bool = False) -> Path:
    """Write the page of a run that was evaluated on the split into its folder; returns its path.

    Arguments and errors as of `compare`; a pass over the test split is recorded as a test evaluation.
    """
    results = read_results(run, split)
    comparisons = compare(run, split, reference, trusted)
    chosen = choose_samples(results)
    own_pass = run_prediction_pass(run, split, [i for indices in chosen.values() for i in indices], trusted)
    history = read_history(run.folder / "history.csv")
    curves = figures.draw_curves(history, list(results.main_metrics), results.record.epoch)
    numbers = [(format_number(results.metrics[m]), m) for m in results.main_metrics if m in results.metrics]
    page = render(
        "run.html.j2",
        f"{run.name}: report",
        f"{results.identity.task} on {results.identity.dataset}",
        run.name,
        numbers=[(str(len(results.ids)), f"images, {split} split"), *numbers[:MOST_METRICS]],
        metrics=_metrics(results, own_pass.task),
        comparisons=[_comparison(comparison) for comparison in comparisons],
        curves=figure_uri(curves) if curves else "",
        score=_score(results)[0],
        samples=_samples(results, own_pass, chosen),
        groups=_groups(results, own_pass.task),
        coverage=coverage_table(results),
        calibration=[(name, figure_uri(figure)) for name, figure in _calibration(own_pass)],
        suspects=_suspects(run, split, own_pass, trusted),
        facts=_facts(results),
        config=json.dumps(results.configs[-1], indent=2, ensure_ascii=False),
    )
    path = run.folder / ("report.html" if split == "val" else f"report.{split}.html")
    write_text(path, page)
    return path


def _comparison(comparison: Comparison) -> dict[str, Any]:
    table = format_table(comparison, COMPARED_METRICS)
    metric = comparison.metrics[0] if comparison.metrics else ""
    figure = figure_uri(figures.draw_intervals(comparison, metric)) if metric else ""
    return {**table._asdict(), "notes": comparison.notes, "metric": metric, "figure": figure}


def _metrics(results: RunResults, task: Task) -> list[list[str]]:
    """Name, value, interval and number of undefined samples of each metric."""
    replicates, rows = results.replicates(metrics_from_rows(task)), []
    for name, value in results.metrics.items():
        ends = interval(replicates[name], results.n_units) if name in replicates else None
        cells = [format_number(number) for number in (value, *(ends or (None, None)))]
        rows.append([name, *cells, str(results.record.undefined.get(name, ""))])
    return rows


def _score(results: RunResults) -> tuple[str, np.ndarray, bool]:
    """The score that ranks samples: the first main metric or, where it has no usable values per sample, the loss.

    Returns:
        Its name, the values (N,), and whether larger is better.
    """
    metric = next((name for name in results.main_metrics if name in results.metrics), None)
    if metric is not None and (column := per_sample_column(metric, results.metrics[metric], results.rows)):
        direction = results.main_metrics[metric]
        if len(results.rows[column].unique()) > 2 and direction != "zero":
            return column, results.rows[column].numpy(), direction == "max"
    return "loss", results.rows["loss"].numpy(), False


def choose_samples(results: RunResults) -> dict[str, list[int]]:
    """Positions of the "worst", the "middle" and the "best" samples; none is in two of them."""
    _, values, larger_is_better = _score(results)
    order = np.argsort(values if larger_is_better else -values, kind="stable")
    order = order[np.isfinite(values[order])]
    n = min(3 * MOST_SAMPLES, len(order)) // 3 or min(1, len(order))
    start = max((len(order) - n) // 2, n)
    parts = {"worst": order[:n], "middle": order[start : start + n], "best": order[max(len(order) - n, start + n) :]}
    return {name: part.tolist() for name, part in parts.items() if len(part)}


def _samples(results: RunResults, own_pass: PredictionPass, chosen: dict[str, list[int]]) -> list[tuple[str, str, str]]:
    """Heading, ids with their scores, and figure."""
    _, values, _ = _score(results)
    parts = []
    for name, indices in chosen.items():
        if samples := [own_pass.samples[i] for i in indices if i in own_pass.samples]:
            text = ", ".join(f"{shorten(results.ids[i])} ({format_number(float(values[i]))})" for i in indices)
            parts.append((name, text, figure_uri(own_pass.task.draw(samples))))
    return parts


def _groups(results: RunResults, task: Task) -> dict[str, Any] | None:
    """Main metrics of each group, the worst first; nothing without groups."""
    names = sorted(set(results.groups))
    if len(names) < 2 or len(names) == len(results.ids):
        return None
    groups, aggregate = np.array(results.groups, dtype=object), metrics_from_rows(task)
    metrics = [name for name in results.main_metrics if name in results.metrics][:MOST_METRICS]
    scores = {}
    for name in names:
        index = torch.from_numpy(np.flatnonzero(groups == name))
        scores[name] = aggregate({column: row[index] for column, row in results.rows.items()})
    first = metrics[0] if metrics else ""
    sign = 1 if results.main_metrics.get(first) == "max" else -1
    order = sorted(names, key=lambda name: sign * scores[name].get(first, np.inf))[:MOST_ROWS]
    rows = [[n, str(results.groups.count(n)), *(format_number(scores[n].get(m)) for m in metrics)] for n in order]
    return {"columns": ["group", "images", *metrics], "rows": rows, "n": len(names)}


def _calibration(own_pass: PredictionPass) -> list[tuple[str, Any]]:
    """Name and figure of what the kind of target allows, and the summary of the task."""
    task, results, drawn = own_pass.task, own_pass.task.results, []
    if (joint := own_pass.sums.get("joint")) is not None:
        n, names = len(joint), task.channels.get("target", [])
        names = names if len(names) >= n else [f"channel {i}" for i in range(n)]
        low, high = (values[:n].cpu().numpy().astype(float) for values in (task.low, task.high))
        drawn.append(("calibration", figures.draw_calibration(joint, low, high, names)))
    if (curve := own_pass.calibration()) is not None:
        drawn.append(("confusion matrix", draw_confusion(own_pass.sums["confusion"], task.names, curve, "pixels")))
    if results and (summary := task.draw_summary(results)) is not None:
        drawn.append(("summary", summary))
    return drawn


def _suspects(run: Run, split: str, own_pass: PredictionPass, trusted: bool) -> dict[str, Any] | None:
    """Likely mislabeled samples; writes all of them into the run folder."""
    suspects, n_runs = find_suspects(run, split, trusted, own_pass)
    if not suspects:
        return None
    path = run.folder / "samples" / f"{split}.suspects.csv"
    write_table(path, [{"rank": rank} | vars(suspect) for rank, suspect in enumerate(suspects, 1)])
    n_folds = len({suspect.fold for suspect in suspects} - {None})
    shown = suspects[: min(MOST_SUSPECTS, max(len(suspects) // SUSPECT_SHARE, LEAST_SUSPECTS))]
    text = (
        f"{len(shown)} of {len(suspects)} images whose {'label' if shown[0].suggested else 'mask'} is least likely "
        f"according to {n_runs} run{'s' * (n_runs > 1)}{f' over {n_folds} folds' if n_folds > 1 else ''} trained "
        f"without them. A network may be wrong: look before you change anything. All are in {path.name}."
    )
    return {"text": text, "images": [_suspect(suspect, own_pass, n_folds > 1) for suspect in shown]}


def _suspect(suspect: Suspect, own_pass: PredictionPass, over_folds: bool) -> dict[str, Any]:
    # Over folds, the sample need not be in the split of this run.
    reader, uris = own_pass.all_folds if over_folds else own_pass.reader, []
    text = f"agreement {suspect.confidence:.2f}"
    if suspect.suggested:
        given = f"{suspect.given} ({suspect.confidence:.0%})"
        text = f"{given}, rather {suspect.suggested} ({suspect.confidence_suggested:.0%})"
    if suspect.id in reader.ids:  # otherwise the table of the run is not about this data
        uris = thumbnails(reader, suspect.id)[:1]
        if not suspect.suggested:
            mask = color_classes(reader, reader.read("mask", reader.ids.index(suspect.id)))
            uris.append(thumbnail_uri((255 * mask[..., :3]).astype(np.uint8)))
    where = "" if suspect.fold is None else f"fold {suspect.fold} "
    return {"id": suspect.id, "uris": uris, "text": text, "where": where}


def _facts(results: RunResults) -> dict[str, Any]:
    """Provenance, without what is empty."""
    facts = {name: value for name, value in asdict(results.provenance).items() if name not in HIDDEN_FACTS}
    facts["test_evaluations"] = len(facts["test_evaluations"])
    return {name.replace("_", " "): value for name, value in facts.items() if value not in (None, [], {}, "")}
