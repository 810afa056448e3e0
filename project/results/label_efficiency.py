"""Label efficiency: experiments trained with shares of the labels and several seeds, in one table."""

import hashlib
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from scipy.stats import t as student

from project.data.config import PROCESSED
from project.data.datamodule import ImageDataModule
from project.errors import UserError
from project.files import atomic_path, safe_file_name, write_json
from project.provenance import file_hash
from project.results.tables import markdown_table
from project.runs.run_folder import RUNS, Run
from project.runs.untrusted import read_config
from project.yaml_files import DEFAULT_CONFIG

Train = Callable[[list[str]], Run]


@dataclass(frozen=True)
class Point:
    """One training."""

    experiment: str
    fraction: float  # share of the labels
    seed: int  # of the choice of labels, the first weights and the order
    run: str  # its folder
    dataset: str
    n_labeled: int
    metric: str  # the first main metric
    value: float  # on the validation split
    overrides: list[str]
    sources: str  # hash of data and configuration files; with others a point is measured again


def measure(
    experiments: list[str],
    fractions: list[float],
    seeds: list[int],
    overrides: list[str],
    train: Train,
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
        root: Folder of the runs.
    """
    name = safe_file_name("_".join(["labels", *experiments]))
    file = root / "tables" / f"{name}.json"
    points = _read_points(file)
    wanted = [(e, fraction, seed) for seed in seeds for fraction in fractions for e in experiments]
    chosen = []
    for key in wanted:  # seeds are outermost: stopped early, there are fewer seeds of everything
        same = [p for p in points if (p.experiment, p.fraction, p.seed, p.overrides) == (*key, overrides)]
        if not (same and _is_current(same[0])):
            experiment, fraction, seed = key
            words = ["--seed_everything", str(seed), "--data.labelled_fraction", f"{fraction:g}"]
            point = _point(*key, overrides, train([experiment, *overrides, *words]))
            points = [p for p in points if p not in same] + [point]
            write_json(file, {"points": [asdict(point) for point in points]})
            same = [point]
        chosen.append(same[0])
    return write_table(chosen, root / "tables" / f"{name}.md")


def _read_points(file: Path) -> list[Point]:
    try:
        return [Point(**point) for point in json.loads(file.read_text())["points"]] if file.is_file() else []
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f'"{file}" is damaged or of another version; rename it to measure again: {error}') from error


def _is_current(point: Point) -> bool:
    """Whether data and configuration files are still those of a point."""
    run = Run(Path(point.run))
    try:
        return run.read_metrics() is not None and point.sources == _hash_of_sources(run, _data_of(run))
    except UserError:  # the data has been prepared again, or something is damaged or missing
        return False


def _data_of(run: Run) -> ImageDataModule:
    """The data of a run, with its share of the labels; UserError if it has changed since the training."""
    config, hashes = read_config(run.config), run.read_provenance().data_hash
    section = config["data"]
    data = ImageDataModule(
        section["dataset"],
        str(section.get("root") or PROCESSED),
        fold=section.get("fold"),
        labelled_fraction=float(section.get("labelled_fraction") or 1),
        seed=int(config.get("seed_everything") or 0),
    )
    if hashes and hashes.get("train") != data.readers["train"].content_hash:
        raise UserError(f'"{data.folder}" has been prepared again since {run.name} was trained; train again')
    return data


def _hash_of_sources(run: Run, data: ImageDataModule) -> str:
    """Hash of the data of a run, and of the files of its configuration, as they are now."""
    files = DEFAULT_CONFIG, DEFAULT_CONFIG.parent / "experiments" / f"{run.read_provenance().experiment}.yaml"
    parts = [*(data.reader(split).content_hash for split in ("train", "val")), *(str(file_hash(f)) for f in files)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _point(experiment: str, fraction: float, seed: int, overrides: list[str], run: Run) -> Point:
    if (record := run.read_metrics()) is None:
        raise UserError(f"{run.name} has no metrics; train again")
    data, folder = _data_of(run), str(run.folder.resolve())
    metric = next(name for name in record.run.leading if name in record.metrics)
    n_labeled, sources = len(data.readers["train"]), _hash_of_sources(run, data)
    values = data.dataset, n_labeled, metric, record.metrics[metric], overrides, sources
    return Point(experiment, fraction, seed, folder, *values)


def write_table(points: list[Point], path: Path) -> str:
    """Write mean and 95 % interval over the seeds of each experiment and share, and of differences from the first one.

    Differences are taken seed by seed: both experiments had the same labels and the same seed. Intervals are
    Student's t. Returns the table, and the path.
    """
    experiments = list(dict.fromkeys(point.experiment for point in points))
    header = ["labels", "images", "seeds", experiments[0]]
    for experiment in experiments[1:]:
        header += [experiment, "difference"]
    lines = []
    for fraction in sorted({point.fraction for point in points}):
        of_share = [p for p in points if p.fraction == fraction]
        values = {e: {p.seed: p.value for p in of_share if p.experiment == e} for e in experiments}
        counts = sorted({p.n_labeled for p in of_share})
        images = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        first = values[experiments[0]]
        line = [f"{fraction:.3g}", images, str(max(map(len, values.values()))), format_mean([*first.values()])]
        for experiment in experiments[1:]:
            differences = [value - first[seed] for seed, value in values[experiment].items() if seed in first]
            line += [format_mean([*values[experiment].values()]), format_mean(differences, sign="+")]
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
