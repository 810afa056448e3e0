"""One table of every run and every baseline that was measured on the same split of the same data."""

import csv
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from project.errors import UserError
from project.experiment.run import RUNS, Run, all_runs
from project.experiment.trust import file_name

# A terminal is narrow; the files have all columns.
N_SHOWN = 6
UNFINISHED = ("started", "interrupted")
# What must agree for two runs to stand in one table.
SAME = ("data_hash", "task", "scoring", "fold")
# The same for the runs of one experiment over all folds.
SAME_BUT_FOLD = ("all_folds_hash", "task", "scoring")


def comparable(run: Run, split: str, root: Path = RUNS) -> list[dict[str, Any]]:
    """The newest run of each experiment of the same task, measured on the same data and split as `run`, best first.

    Returns:
        The contents of their metrics files, with `run["seconds"]` and `run["unfinished"]` from the provenance.

    Raises:
        UserError: `run` itself has not been measured on this split.
    """
    reference = run.read(run.metrics_file(split).name)
    if not reference:
        raise UserError(f"{run.name} has not been evaluated on {split}; run `make eval RUN={run.quoted} SPLIT={split}`")
    newest: dict[str, dict[str, Any]] = {}
    for other in [*all_runs(root), run]:  # the run may lie elsewhere
        content = other.read(other.metrics_file(split).name)
        if content and all(content["run"].get(key) == reference["run"].get(key) for key in SAME):
            facts = other.read("provenance.json")
            content["run"] |= {"seconds": facts.get("seconds"), "unfinished": facts.get("status") in UNFINISHED}
            # A run that is not finished does not take the place of one that is.
            if content["run"]["unfinished"] and other.folder.resolve() != run.folder.resolve():
                newest.setdefault(other.experiment, content)
                continue
            # The run that was asked for stands for its experiment, even if it is not the newest.
            if other.experiment != run.experiment or other.folder.resolve() == run.folder.resolve():
                newest[other.experiment] = content
    return sorted(newest.values(), key=_goodness)


def _goodness(content: dict[str, Any]) -> tuple[bool, float]:
    """Oracles last; otherwise by the leading metric."""
    name, direction = next(iter(_leading(content).items()))
    value = content["metrics"].get(name)
    worst = float("inf")
    return bool(content["run"].get("oracle")), worst if value is None else value if direction == "min" else -value


def _leading(content: dict[str, Any]) -> dict[str, str]:
    """The task's leading metrics and their direction, the first of which sorts."""
    return dict(content["run"].get("leading") or {"loss": "min"})


def over_folds(run: Run, split: str, root: Path = RUNS) -> list[list[dict[str, Any]]]:
    """The newest run of each experiment on each fold of the data of `run`, measured on the same split.

    Returns:
        For each experiment the contents of its metrics files, in the order of the folds; the best experiment on average
        first. Empty where the data has no folds, or no experiment was run on two of them.
    """
    reference = run.read(run.metrics_file(split).name).get("run", {})
    if reference.get("fold") is None:
        return []
    newest: dict[str, dict[int, dict[str, Any]]] = {}
    for other in [*all_runs(root), run]:
        content = other.read(other.metrics_file(split).name)
        if content and all(content["run"].get(key) == reference.get(key) for key in SAME_BUT_FOLD):
            newest.setdefault(other.experiment, {})[content["run"]["fold"]] = content
    found = [[folds[number] for number in sorted(folds)] for folds in newest.values()]
    return sorted(found, key=lambda folds: _goodness(_mean(folds))) if max(map(len, found)) > 1 else []


def _mean(folds: list[dict[str, Any]]) -> dict[str, Any]:
    """One for all folds, with the means of the metrics that are defined on each of them."""
    names = [name for name in folds[0]["metrics"] if all(name in content["metrics"] for content in folds)]
    means = {name: statistics.fmean(content["metrics"][name] for content in folds) for name in names}
    return folds[0] | {"metrics": means}


def print_tables(split: str, root: Path = RUNS) -> None:
    """One table for each task on each version (and fold) of each dataset, and one over all folds."""
    newest: dict[str, Run] = {}
    divided: dict[str, Run] = {}
    for run in all_runs(root):
        if content := run.read(run.metrics_file(split).name):
            newest[str([content["run"].get(key) for key in SAME])] = run
            divided[str([content["run"].get(key) for key in SAME_BUT_FOLD])] = run
    if not newest:
        raise UserError(f"no run has been evaluated on {split} yet; train one with `make train EXP=unet_mse`")
    for run in newest.values():
        _print_table(run, split, root)
    for run in divided.values():
        _print_folds(run, split, root)


def print_table(run: Run, split: str, root: Path = RUNS, console: Console | None = None) -> None:
    """Print the table, and the one over all folds, if any; keep both as Markdown and CSV in `<root>/tables/`."""
    _print_table(run, split, root, console)
    _print_folds(run, split, root, console)


def _print_folds(run: Run, split: str, root: Path, console: Console | None = None) -> None:
    if not (found := over_folds(run, split, root)):
        return
    metrics = [name for name in _leading(found[0][0]) if any(name in c["metrics"] for folds in found for c in folds)]
    dataset, task = (found[0][0]["run"].get(key, "?") for key in ("dataset", "task"))
    console = console or console_of_width()
    table = Table(title=f"{dataset}, {task}, {split} split, mean ± standard deviation over folds", title_justify="left")
    header, lines = ["experiment", "folds", *metrics], []
    for folds in found:
        numbers = ", ".join(str(content["run"]["fold"]) for content in folds)
        values = [_spread([content["metrics"].get(name) for content in folds]) for name in metrics]
        lines.append([_name(folds[0]["run"]), numbers, *values])
    shown = header[: 2 + N_SHOWN]
    for i, name in enumerate(shown):
        table.add_column(name, justify="left" if i < 2 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line[: len(shown)])
    console.print(table)
    if len({line[1] for line in lines}) > 1:
        console.print("Not all stand for the same folds, which may differ in difficulty.", style="dim", highlight=False)
    path = _keep(root / "tables" / file_name(f"{dataset}_{task}_{split}_folds"), header, lines)
    console.print(f"all columns: {path}", style="dim", highlight=False)


def _spread(values: list[float | None]) -> str:
    """Mean and sample standard deviation; nothing where the metric is not defined on each fold."""
    defined = [value for value in values if value is not None]
    if len(defined) < len(values):
        return "-"
    return f"{statistics.fmean(defined):.4g}" + (f" ± {statistics.stdev(defined):.2g}" if len(defined) > 1 else "")


def console_of_width() -> Console:
    """The terminal; wide enough for a table where there is none."""
    return Console(width=None if sys.stdout.isatty() else 120)


def _print_table(run: Run, split: str, root: Path, console: Console | None = None) -> None:
    rows = comparable(run, split, root)
    metrics = [name for name in _leading(rows[0]) if any(name in row["metrics"] for row in rows)]
    header = ["experiment", *metrics, "epoch", "parameters", "seconds", "commit"]
    lines = [_line(row, metrics) for row in rows]
    dataset, task = rows[0]["run"].get("dataset", "?"), rows[0]["run"].get("task", "?")
    fold = rows[0]["run"].get("fold")
    console = console or console_of_width()
    which = f"{split} split" if fold is None else f"{split} split, fold {fold}"
    table = Table(title=f"{dataset}, {task}, {which}, {rows[0]['n_samples']} images", title_justify="left")
    terminal = {"experiment", *metrics[:N_SHOWN], "seconds", "commit"}
    shown = [i for i, name in enumerate(header) if name in terminal]
    for i in shown:
        table.add_column(header[i], justify="left" if i == 0 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*[line[i] for i in shown])
    console.print(table)
    file = f"{dataset}_{task}_{split}" + ("" if fold is None else f"_fold{fold}")
    path = _keep(root / "tables" / file_name(file), header, lines)
    notes = [
        f"{row['run']['experiment']}: {name} is not defined {count} times ({row['n_samples']} images)"
        for row in rows
        for name, count in row["undefined"].items()
    ]
    for note in [*notes, *_hints(rows, dataset)]:
        console.print(note, style="dim", highlight=False)
    console.print(f"all columns: {path}", style="dim", highlight=False)


def _line(row: dict[str, Any], metrics: list[str]) -> list[str]:
    run = row["run"]
    values = [f"{row['metrics'][m]:.4g}" if m in row["metrics"] else "-" for m in metrics]
    epoch = "-" if row["epoch"] is None or run.get("baseline") else str(row["epoch"] + 1)
    seconds = f"{run['seconds']:.0f}" if run.get("seconds") is not None else "-"
    commit = (run.get("commit") or "none")[:7] + ("+" if run.get("dirty") else "")
    return [_name(run), *values, epoch, f"{run.get('parameters', 0):,}", seconds, commit]


def _name(run: dict[str, Any]) -> str:
    marks = [name for name in ("oracle", "unfinished") if run.get(name)]
    return str(run["experiment"]) + (f" ({', '.join(marks)})" if marks else "")


def _hints(rows: list[dict[str, Any]], dataset: str) -> list[str]:
    hints = []
    if any(row["run"].get("oracle") for row in rows):
        hints.append("An oracle is shown the target: no model can be expected to reach it.")
    if any(row["run"].get("dirty") for row in rows):
        hints.append("+ after a commit: changes that are not in it; they are in the run folder's changes.patch.")
    if not any(row["run"].get("baseline") for row in rows):
        fold = rows[0]["run"].get("fold")
        of_fold = "" if fold is None else f" FOLD={fold}"
        hints.append(f"No baselines yet on this data: `make baselines DATASET={dataset}{of_fold}`")
    return hints


def _keep(path: Path, header: list[str], lines: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])
    path.with_suffix(".md").write_text(markdown + "\n", encoding="utf-8")
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])
    return path.with_suffix(".md")


def tell(run: Run, split: str = "val", console: Console | None = None) -> None:
    """Print what was measured, and where the files are."""
    console = console or Console()
    path = run.metrics_file(split)
    content = run.read(path.name)
    epoch = content["epoch"]
    at = "" if epoch is None or content["run"].get("baseline") else f" (epoch {epoch + 1}, the best)"
    images = "validation" if split == "val" else split
    console.print(f"\n[bold]{content['run']['experiment']}[/bold] on {content['n_samples']} {images} images{at}:")
    metrics, first = content["metrics"], next(iter(_leading(content)))
    shown = {name: value for name, value in metrics.items() if "/" not in name or name.startswith(f"{first}/")}
    for name, value in shown.items():
        console.print(f"  {name:16} {value:.5g}", highlight=False)
    undefined = {name: count for name, count in content["undefined"].items() if "/" not in name}
    for name, count in undefined.items():
        console.print(f"  {name} is not defined {count} times ({content['n_samples']} images)", highlight=False)
    if len(shown) < len(metrics):
        console.print(
            f"  {len(metrics) - len(shown)} more of single classes or channels are in {path}", highlight=False
        )
    console.print(f"pictures: {run.folder / 'pictures'}\nmetrics:  {path}", highlight=False)
    if split == "val":
        console.print("compare:  make eval", highlight=False)
