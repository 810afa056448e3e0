"""Label efficiency: experiments trained with shares of the labels and several seeds, in one table."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student

from project.data.config import PROCESSED
from project.data.few_labels import labeled_subset
from project.data.store import SplitReader
from project.errors import UserError
from project.files import atomic_path, safe_file_name
from project.results.tables import markdown_table
from project.runs.find_runs import runs_of
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
    n_images: int  # with labels
    metric: str  # the first main metric
    value: float  # on the validation split


def measure(
    experiments: list[str],
    fractions: list[float],
    seeds: list[int],
    overrides: list[str],
    train: Train,
    root: Path = RUNS,
) -> str:
    """Train each experiment with each share of the labels and each seed, and compare; returns the table.

    Finished runs with the same arguments that are newer than data and configuration files are not repeated: the command
    can be stopped and given again. The table is written to `<root>/tables/`.

    Args:
        experiments: Names; the others are compared with the first.
        fractions: Shares of the labels, as `data.labelled_fraction`.
        seeds: As `seed_everything`.
        overrides: For all trainings, `--key value`.
        train: Trains from a list of arguments, the experiment's name first, and returns the run.
        root: Folder of the runs.
    """
    points = []
    for seed in seeds:  # outermost: stopped early, there are fewer seeds of everything
        for fraction in fractions:
            for experiment in experiments:
                share = ["--seed_everything", str(seed), "--data.labelled_fraction", f"{fraction:g}"]
                words = ["--trainer.devices=1", *overrides, *share]
                run = _finished_run(experiment, words, root) or train([experiment, *words])
                points.append(_point(experiment, fraction, seed, run))
    return write_table(points, root / "tables" / f"{safe_file_name('_'.join(['labels', *experiments]))}.md")


def _finished_run(experiment: str, overrides: list[str], root: Path) -> Run | None:
    """The newest finished run with these overrides, of the same data, newer than the files of its configuration."""
    for run in reversed(runs_of(experiment, root)):
        provenance = run.read_provenance()
        if provenance.finished and provenance.overrides == overrides and run.metrics_file("val").is_file():
            files = DEFAULT_CONFIG, DEFAULT_CONFIG.parent / "experiments" / f"{experiment}.yaml"
            is_newer = run.last_started() > max(file.stat().st_mtime for file in files)
            return run if is_newer and provenance.all_folds_hash == _reader(run, whole=True).content_hash else None
    return None


def _reader(run: Run, whole: bool = False) -> SplitReader:
    """The training images of a run, with all labels; `whole`: of all folds."""
    section = read_config(run.config)["data"]
    reader = SplitReader(Path(section.get("root") or PROCESSED) / section["dataset"] / "train.h5")
    return reader if whole or section.get("fold") is None else reader.fold_subset(section["fold"], training=True)


def _point(experiment: str, fraction: float, seed: int, run: Run) -> Point:
    if (record := run.read_metrics()) is None:
        raise UserError(f"{run.name} has no metrics; train again")
    metric = next(name for name in record.run.leading if name in record.metrics)
    n_images = len(labeled_subset(_reader(run), fraction, seed))
    return Point(experiment, fraction, seed, n_images, metric, record.metrics[metric])


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
        counts = sorted({p.n_images for p in of_share})
        images = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        first = values[experiments[0]]
        line = [f"{fraction:.3g}", images, str(max(map(len, values.values()))), format_mean([*first.values()])]
        for experiment in experiments[1:]:
            differences = [value - first[seed] for seed, value in values[experiment].items() if seed in first]
            line += [format_mean([*values[experiment].values()]), format_mean(differences, sign="+")]
        lines.append(line)
    title = f"{points[0].metric} on the validation split, mean and 95 % interval over the seeds"
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
