"""What labels are worth: experiments trained with some shares of the labels and several seeds, in one table."""

import hashlib
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from scipy.stats import t as student

from project.data.store import SplitReader
from project.errors import UserError
from project.few_labels.pseudo_labels import data_of, pseudo_label, summary
from project.files import safe_file_name, write_json
from project.provenance import file_hash
from project.runs.run_folder import RUNS, Run
from project.yaml_files import DEFAULT_CONFIG

Train = Callable[[list[str]], Run]


@dataclass(frozen=True)
class Point:
    """One training.

    Attributes:
        method: Name of the experiment, with what was done besides.
        fraction: Share of the labels.
        seed: Of everything.
        run: Its folder.
        dataset: Of which the labels are.
        n_labelled: Images with labels.
        metric, value: The task's first one, on the validation split.
        typed: What was typed besides.
        made_of: Hash of the data and of the configuration files: with others, a point is measured again.
    """

    method: str
    fraction: float
    seed: int
    run: str
    dataset: str
    n_labelled: int
    metric: str
    value: float
    typed: list[str]
    made_of: str = ""


def measure(
    experiments: list[str],
    fractions: list[float],
    seeds: list[int],
    typed: list[str],
    train: Train,
    threshold: float | None = None,
    root: Path = RUNS,
) -> str:
    """Train each experiment with each share of the labels and each seed, and compare.

    What has been trained with the same words, configuration files and data is not trained again, so that the command
    can be stopped and repeated; it is stored in `<root>/tables/<name>.json`. The tables are kept beside it.

    Args:
        experiments: Names; the first one is what the others are compared with.
        fractions: Shares of the labels, as `data.labelled_fraction`.
        seeds: Each decides about the choice of the labels, the first weights, and the order.
        typed: Arguments for all trainings, `--key value`.
        train: Trains from such words, the experiment's name first, and returns the run.
        threshold: Also label the other images by each run of the first experiment, see `pseudo.pseudo_label`, and
            train the first experiment once more on both.
        root: Folder of the runs.

    Returns:
        The table.

    Raises:
        UserError: A training failed; what is done before is kept.
    """
    name = safe_file_name("_".join(["labels", *experiments]))
    kept = root / "tables" / f"{name}.json"
    points = [Point(**each) for each in json.loads(kept.read_text())["points"]] if kept.is_file() else []

    def once(method: str, fraction: float, seed: int, experiment: str, words: list[str], of: str | None) -> Point:
        same = (p for p in points if (p.method, p.fraction, p.seed, p.typed) == (method, fraction, seed, typed))
        if (found := next(same, None)) is not None and _still_holds(found):
            return found
        run = train([experiment, *_without(typed, words), "--seed_everything", str(seed), *words])
        point = _point(method, fraction, seed, typed, run, of)
        points[:] = [p for p in points if p is not found] + [point]
        write_json(kept, {"points": [asdict(each) for each in points]})
        return point

    for seed in seeds:  # outermost: stopped early, there are fewer seeds of everything
        for fraction in fractions:
            share = ["--data.labelled_fraction", f"{fraction:g}"]
            first, *_ = [once(name, fraction, seed, name, share, None) for name in experiments]
            if threshold is not None and fraction < 1:
                # The data of other runs stays as it is: every run has a dataset of its own.
                labels = f"{first.dataset}_pseudo{threshold:g}_{fraction:g}_{seed}"
                if not _there(first, labels):
                    print(summary(pseudo_label(Run(Path(first.run)), threshold, labels)))
                words = ["--data.dataset", labels]
                method = f"{experiments[0]} + pseudo-labels {threshold:g}"
                once(method, fraction, seed, experiments[0], words, first.dataset)
    wanted = [p for p in points if p.seed in seeds and p.fraction in fractions and p.typed == typed]
    return write_table(wanted, root / "tables" / f"{name}.md")


def _without(typed: list[str], words: list[str]) -> list[str]:
    """The arguments but for those that other words give anew."""
    left, at = [], 0
    while at < len(typed):
        key, equals, _ = typed[at].partition("=")
        n = 1 if equals or at + 1 == len(typed) or typed[at + 1].startswith("--") else 2
        left += [] if key in words else typed[at : at + n]
        at += n
    return left


def _there(first: Point, labels: str) -> bool:
    """Whether the run has labelled already."""
    run = Run(Path(first.run))
    path = data_of(run).folder.with_name(labels) / "train.h5"
    facts = SplitReader(path).attributes.get("pseudo") if path.is_file() else None
    return facts is not None and facts["run"] == run.name


def _still_holds(point: Point) -> bool:
    """Whether a point is of the data and the configuration files that are here now."""
    run = Run(Path(point.run))
    try:
        return bool(run.read("metrics.json")) and point.made_of == _made_of(run)
    except UserError:  # the data has been prepared again, or something is damaged or missing
        return False


def _made_of(run: Run) -> str:
    """Hash of the data of a run, and of the files of its configuration, as they are now."""
    data = data_of(run)
    files = DEFAULT_CONFIG, DEFAULT_CONFIG.parent / "experiments" / f"{run.read_provenance().experiment}.yaml"
    parts = [*(data.reader(split).content_hash for split in ("train", "val")), *(str(file_hash(f)) for f in files)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _point(method: str, fraction: float, seed: int, typed: list[str], run: Run, of: str | None) -> Point:
    content, data = run.read("metrics.json"), data_of(run)
    metric = next(name for name in run.read_provenance().leading if name in content["metrics"])
    known = data.whole.attributes.get("pseudo")
    n_labelled = known["n_labelled"] if known else len(data.readers["train"])
    value = content["metrics"][metric]
    folder, dataset = str(run.folder.resolve()), of or data.dataset
    return Point(method, fraction, seed, folder, dataset, n_labelled, metric, value, typed, _made_of(run))


# The table ------------------------------------------------------------------------------------------------------------


def write_table(points: list[Point], path: Path) -> str:
    """Mean and 95 % interval over the seeds of each method and share; and of the differences from the first method.

    Differences are taken seed by seed: both had the same labels and the same first seed. Intervals are Student's.

    Args:
        points: At least one; the first one's method is what others are compared with.
        path: Where to write it, as Markdown.
    """
    methods = list(dict.fromkeys(point.method for point in points))
    header = ["labels", "images", "seeds"]
    for number, method in enumerate(methods):
        header += [method, *(["difference"] if number else [])]
    lines = []
    for fraction in sorted({point.fraction for point in points}):
        found = {m: {p.seed: p.value for p in points if (p.method, p.fraction) == (m, fraction)} for m in methods}
        counts = [p.n_labelled for p in points if p.fraction == fraction]
        line = [f"{fraction:.3g}", _range(counts), str(max(map(len, found.values())))]
        for number, method in enumerate(methods):
            line.append(interval(list(found[method].values())))
            if number:
                both = [seed for seed in found[method] if seed in found[methods[0]]]
                line.append(interval([found[method][seed] - found[methods[0]][seed] for seed in both], sign="+"))
        lines.append(line)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    table = "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])
    title = f"{points[0].dataset}, {points[0].metric} on the validation split, mean and 95 % interval over the seeds"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{title}\n\n{table}\n", encoding="utf-8")
    return f"{title}\n\n{table}\n\n{path}"


def interval(values: list[float], sign: str = "") -> str:
    """Mean ± half the 95 % interval of the mean, by Student's t; the mean alone of a single value."""
    if not values:
        return "-"
    told = f"{statistics.fmean(values):{sign}.3f}"
    if len(values) == 1:
        return told
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{told} ± {half:.3f}"


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
