"""The run folder: where everything about one training lies, and how runs are found again."""

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from project.errors import UserError, listed, nearest

RUNS = Path("runs")
# Chosen once, in the parent process; processes that Lightning starts for further devices inherit it.
VARIABLE = "PROJECT_RUN_FOLDER"
IDENTITY = (
    *("experiment", "dataset", "task", "leading", "scoring", "commit", "dirty", "config_hash", "seed", "parameters"),
    *("oracle", "baseline", "fold", "all_folds_hash"),
)


@dataclass(frozen=True)
class Run:
    """One run folder; see the README for what lies in it."""

    folder: Path

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return self.folder.parent.name

    @property
    def name(self) -> str:
        """Experiment and time."""
        return f"{self.experiment}/{self.folder.name}"

    @property
    def checkpoints(self) -> Path:
        """Folder of best.ckpt and last.ckpt."""
        return self.folder / "checkpoints"

    @property
    def config(self) -> Path:
        """The whole resolved configuration."""
        return self.folder / "config.yaml"

    def metrics_file(self, split: str) -> Path:
        """metrics.json for validation, metrics.<split>.json for others."""
        return self.folder / ("metrics.json" if split == "val" else f"metrics.{split}.json")

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder, empty if it is not there."""
        path = self.folder / name
        try:
            found = json.loads(path.read_text()) if path.is_file() else {}
        except ValueError as error:
            raise UserError(f'"{path}" is not valid JSON: {error}') from error
        return dict(found)

    def identity(self) -> dict[str, Any]:
        """What stands in every metrics file, from provenance.json."""
        facts = self.read("provenance.json")
        return {"name": self.name, **{name: facts[name] for name in IDENTITY if name in facts}}

    def make_latest(self) -> None:
        """Let `runs/<experiment>/latest` point here."""
        link = self.folder.parent / "latest"
        beside = link.with_name(f".latest.{os.getpid()}")
        beside.unlink(missing_ok=True)
        try:
            beside.symlink_to(self.folder.name)
            beside.replace(link)
        except OSError:  # a file system without links: the newest time is found by name
            beside.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file at once or not at all.

    Raises:
        ValueError: A number is NaN or infinite, which JSON does not know.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    beside.replace(path)


def new_run(experiment: str, root: Path = RUNS) -> Run:
    """Choose the folder of a new run, without making it.

    A process that was started for a further device takes the folder that its parent chose.

    Raises:
        UserError: The processes were started by a launcher, and no folder was chosen beforehand.
    """
    if inherited := _inherited():
        return inherited
    if _launched():
        raise UserError(
            f"each process would choose its own run folder; set {VARIABLE}=runs/{experiment}/<name> for all of them"
        )
    folder = new_folder(root / experiment)
    os.environ[VARIABLE] = str(folder)
    return Run(folder)


def new_folder(parent: Path) -> Path:
    """A path named by the time, at which there is nothing yet."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder, count = parent / stamp, 1
    while folder.exists():
        count += 1
        folder = parent / f"{stamp}-{count}"
    return folder


def _launched() -> bool:
    """Whether a launcher has started several processes, each of which runs the command."""
    by_slurm = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS") or 1) > 1
    return "TORCHELASTIC_RUN_ID" in os.environ or by_slurm


def _inherited() -> Run | None:
    """The run that a parent process, or whoever set up the launcher, has chosen."""
    folder = os.environ.get(VARIABLE)
    return Run(Path(folder)) if folder and ("LOCAL_RANK" in os.environ or _launched()) else None


def run_to_resume(which: str, experiment: str | None, root: Path = RUNS) -> Run:
    """The run that shall go on, for this process and those that it starts.

    Args:
        which: A run folder, or "latest".
        experiment: Of which the latest run is meant; None is the latest of all.
        root: Folder of the runs.

    Raises:
        UserError: There is none, or it is of another experiment.
    """
    if (run := _inherited()) is None:
        latest = which == "latest"
        run = find_run(experiment if latest else which, root)
        if experiment and run.experiment != experiment:
            raise UserError(f'"{run.folder}" is a run of {run.experiment}, not of {experiment}; leave out {experiment}')
    os.environ[VARIABLE] = str(run.folder)
    return run


def run_of_job(experiment: str, root: Path = RUNS) -> Run | None:
    """The run that this job of SLURM had begun before it was put into the queue again."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or int(os.environ.get("SLURM_RESTART_COUNT") or 0) == 0:
        return None
    mine = [run for run in runs_of(experiment, root) if run.read("provenance.json").get("slurm_job") == job]
    return mine[-1] if mine else None


def runs_of(experiment: str, root: Path = RUNS) -> list[Run]:
    """All runs of an experiment that have a configuration, oldest first."""
    return [Run(f.parent) for f in sorted((root / experiment).glob("*/config.yaml")) if not f.parent.is_symlink()]


def all_runs(root: Path = RUNS) -> list[Run]:
    """All runs of all experiments, oldest first."""
    names = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return sorted((run for name in names for run in runs_of(name, root)), key=lambda run: run.folder.name)


def find_run(text: str | None, root: Path = RUNS) -> Run:
    """The run that is meant by a folder, an experiment's name (its latest run), or nothing (the latest of all).

    Raises:
        UserError: There is none; the message names the nearest.
    """
    if text and (Path(text) / "config.yaml").is_file():
        return Run(Path(text).resolve().relative_to(Path.cwd()) if Path(text).is_symlink() else Path(text))
    runs = all_runs(root)
    if not runs:
        raise UserError(f'there is no run below "{root}" yet; train one with `make train EXP=unet_mse`')
    if text is None:
        return runs[-1]
    if matching := [run for run in runs if text.strip("/") in (run.experiment, run.name, str(run.folder))]:
        return matching[-1]
    names = sorted({run.experiment for run in runs})
    raise UserError(f'there is no run "{text}".{nearest(text, names)} Experiments with runs:\n{listed(names)}')
