"""Label efficiency: experiments trained with shares of the labels and several seeds, in one table."""

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
from project.files import atomic_path, safe_file_name, write_json
from project.provenance import file_hash
from project.results.tables import markdown_table
from project.runs.run_folder import RUNS, Run
from project.yaml_files import DEFAULT_CONFIG

Train = Callable[[list[str]], Run]


@dataclass(frozen=True)
class Point:
    """One training."""

    method: str  # the experiment, with "+ pseudo-labels" where these were added
    fraction: float  # share of the labels
    seed: int  # of the choice of labels, the first weights and the order
    run: str  # its folder
    dataset: str  # whose labels were used
    n_labelled: int
    metric: str  # the first main metric
    value: float  # on the validation split
    typed: list[str]  # overrides of the command
    made_of: str = ""  # hash of data and configuration files; with others a point is measured again


def measure(
    experiments: list[str],
    fractions: list[float],
    seeds: list[int],
    overrides: list[str],
    train: Train,
    threshold: float | None = None,
    root: Path = RUNS,
) -> str:
    """Train each experiment with each share of the labels and each seed, and compare; returns the table.

    Trainings with the same arguments, configuration files and data are not repeated: the command can be stopped and
    given again. Points are stored in `<root>/tables/<name>.json`, the table beside it.

    Args:
        experiments: Names; the others are compared with the first.
        fractions: Shares of the labels, as `data.labelled_fraction`.
        seeds: As `seed_everything`.
        overrides: For all trainings, `--key value`.
        train: Trains from a list of arguments, the experiment's name first, and returns the run.
        threshold: Also label the other images by each run of the first experiment, see `pseudo_label`, and train the
            first experiment once more on both.
        root: Folder of the runs.
    """
    name = safe_file_name("_".join(["labels", *experiments]))
    file = root / "tables" / f"{name}.json"
    points = [Point(**point) for point in json.loads(file.read_text())["points"]] if file.is_file() else []

    def measure_once(method: str, fraction: float, seed: int, experiment: str, extra: list[str], dataset: str) -> Point:
        key = method, fraction, seed, overrides
        earlier = next((p for p in points if (p.method, p.fraction, p.seed, p.typed) == key), None)
        if earlier and _is_current(earlier):
            return earlier
        run = train([experiment, *overrides, "--seed_everything", str(seed), *extra])
        point = _point(method, fraction, seed, overrides, run, dataset)
        points[:] = [p for p in points if p is not earlier] + [point]
        write_json(file, {"points": [asdict(point) for point in points]})
        return point

    for seed in seeds:  # outermost: stopped early, there are fewer seeds of everything
        for fraction in fractions:
            share = ["--data.labelled_fraction", f"{fraction:g}"]
            first, *_ = [measure_once(experiment, fraction, seed, experiment, share, "") for experiment in experiments]
            if threshold is not None and fraction < 1:
                # Each run has a dataset of its own: the data of earlier runs must not change.
                dataset = f"{first.dataset}_pseudo{threshold:g}_{fraction:g}_{seed}"
                if not _is_labeled_by(first, dataset):
                    print(summary(pseudo_label(Run(Path(first.run)), threshold, dataset)))
                method, extra = f"{experiments[0]} + pseudo-labels {threshold:g}", ["--data.dataset", dataset]
                measure_once(method, fraction, seed, experiments[0], extra, first.dataset)
    chosen = [p for p in points if p.seed in seeds and p.fraction in fractions and p.typed == overrides]
    return write_table(chosen, root / "tables" / f"{name}.md")


def _is_labeled_by(point: Point, dataset: str) -> bool:
    """Whether a dataset of pseudo-labels was made by the run of a point."""
    run = Run(Path(point.run))
    path = data_of(run).folder.with_name(dataset) / "train.h5"
    facts = SplitReader(path).attributes.get("pseudo") if path.is_file() else None
    return facts is not None and facts["run"] == run.name


def _is_current(point: Point) -> bool:
    """Whether data and configuration files are still those of a point."""
    run = Run(Path(point.run))
    try:
        return run.read_metrics() is not None and point.made_of == _hash_of_sources(run)
    except UserError:  # the data has been prepared again, or something is damaged or missing
        return False


def _hash_of_sources(run: Run) -> str:
    """Hash of the data of a run, and of the files of its configuration, as they are now."""
    data = data_of(run)
    files = DEFAULT_CONFIG, DEFAULT_CONFIG.parent / "experiments" / f"{run.read_provenance().experiment}.yaml"
    parts = [*(data.reader(split).content_hash for split in ("train", "val")), *(str(file_hash(f)) for f in files)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _point(method: str, fraction: float, seed: int, overrides: list[str], run: Run, dataset: str) -> Point:
    if (record := run.read_metrics()) is None:
        raise UserError(f"{run.name} has no metrics; train again")
    data = data_of(run)
    metric = next(name for name in record.run.leading if name in record.metrics)
    pseudo = data.whole.attributes.get("pseudo")
    n_labeled = pseudo["n_labelled"] if pseudo else len(data.readers["train"])
    folder, dataset = str(run.folder.resolve()), dataset or data.dataset
    value, sources = record.metrics[metric], _hash_of_sources(run)
    return Point(method, fraction, seed, folder, dataset, n_labeled, metric, value, overrides, sources)


def write_table(points: list[Point], path: Path) -> str:
    """Write mean and 95 % interval over the seeds of each method and share, and of differences from the first method.

    Differences are taken seed by seed: both methods had the same labels and the same seed. Intervals are Student's t.
    Returns the table, and the path.
    """
    methods = list(dict.fromkeys(point.method for point in points))
    header = ["labels", "images", "seeds", methods[0]]
    for method in methods[1:]:
        header += [method, "difference"]
    lines = []
    for fraction in sorted({point.fraction for point in points}):
        values = {m: {p.seed: p.value for p in points if (p.method, p.fraction) == (m, fraction)} for m in methods}
        counts = sorted({p.n_labelled for p in points if p.fraction == fraction})
        images = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        first = values[methods[0]]
        line = [f"{fraction:.3g}", images, str(max(map(len, values.values()))), format_mean([*first.values()])]
        for method in methods[1:]:
            differences = [value - first[seed] for seed, value in values[method].items() if seed in first]
            line += [format_mean([*values[method].values()]), format_mean(differences, sign="+")]
        lines.append(line)
    title = f"{points[0].dataset}, {points[0].metric} on the validation split, mean and 95 % interval over the seeds"
    text = f"{title}\n\n{markdown_table(header, lines)}\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return f"{text}\n{path}"


def format_mean(values: list[float], sign: str = "") -> str:
    """Mean ± half the 95 % interval of the mean, by Student's t; the mean alone of a single value."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):{sign}.3f}"
    if len(values) == 1:
        return mean
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {half:.3f}"
