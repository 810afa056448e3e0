"""Score against minutes: planned experiments trained for 1, 3 and 10 minutes, beside the baselines.

`python tests/benchmarks minutes --datasets yeast mine --minutes 1 3 10 30`: the demo, and datasets of configs/data. The
budget of a training is wall time; what it took of the processor stands beside it, since other programs take their part.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml
from harness import ROOT, Goal, Report, Table

COLUMNS = ["data, task", "main metric", "minutes", "processor minutes", "planned", "best baseline"]

BASELINES = "runs/baseline_*/2*/metrics.json"
ERRORS = ("mae", "mse")  # the smaller, the better


def measure(quick: bool, datasets: Sequence[str] = ("yeast",), minutes: Sequence[float] = (1, 3, 10)) -> Report:
    """The main metric on the validation split, one seed; each training starts from nothing."""
    report, rows = Report(), []
    with tempfile.TemporaryDirectory() as folder:
        for dataset in datasets:
            work = _clone(Path(folder) / dataset)
            _project(work, "baselines", dataset)
            _project(work, "plan", dataset)
            tasks = [path.stem for path in sorted(work.glob(f"configs/experiments/{dataset}*.yaml"))]
            for name in tasks[:1] if quick else tasks:
                rows += [_train(work, dataset, name, budget) for budget in ([0.2] if quick else minutes)]
                metric, planned, baseline = rows[-1][1], rows[-1][4], rows[-1][5]
                gain = baseline - planned if metric in ERRORS else planned - baseline
                report.goals.append(Goal(f"{name}: {metric}, better than the best baseline by", gain, "≥ 0"))
    note = "Nothing typed but the minutes; validation split, one seed, the best checkpoint by the main metric."
    report.tables.append(Table("Score against minutes", COLUMNS, rows, note))
    return report


def _clone(work: Path) -> Path:
    """A folder with the configs and the data of the checkout, in which runs and plans are made."""
    shutil.copytree(ROOT / "configs", work / "configs")
    (work / "data").symlink_to(ROOT / "data")
    return work


def _project(work: Path, *words: str) -> float:
    """Run a command; returns seconds of the processor."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "project", *words], cwd=work, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _train(work: Path, dataset: str, name: str, budget: float) -> list[str | int | float]:
    task = name.removeprefix(dataset).strip("_")
    (work / "configs" / "experiments" / f"{name}.yaml").unlink()
    _project(work, "plan", dataset, "--minutes", str(budget), *(["--task", task] if task else []))
    seconds = _project(work, "train", name, "--logger", "none")
    run = max(work.glob(f"runs/{name}/2*"))
    chosen = yaml.safe_load((run / "config.yaml").read_text())["checkpoint"]["monitor"]
    metric = chosen.removeprefix("val/").replace("loss", "accuracy")  # classifiers are chosen by their loss
    best = min if metric in ERRORS else max
    results, *others = (json.loads(path.read_text()) for path in (run / "metrics.json", *work.glob(BASELINES)))
    baselines = [other["metrics"] for other in others if other["run"]["task"] == results["run"]["task"]]
    baseline = best(scores[metric] for scores in baselines if scores.get(metric) is not None)
    return [f"{dataset}, {task}", metric, budget, seconds / 60, results["metrics"][metric], baseline]
