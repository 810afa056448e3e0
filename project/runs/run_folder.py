"""The run folder: where everything about one training lies, and how runs are found again."""

import json
import os
import shlex
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from project.errors import UserError, bullet_list, did_you_mean
from project.files import atomic_path

RUNS = Path("runs")
# Chosen once, in the parent process; processes that Lightning starts for further devices inherit it.
RUN_FOLDER_VARIABLE = "PROJECT_RUN_FOLDER"
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
    def quoted(self) -> str:
        """The folder as a shell has to be given it, in the commands that messages name."""
        return shlex.quote(str(self.folder))

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
        """A JSON file of the folder, empty if it is not there.

        Raises:
            UserError: It cannot be read, or holds something else than a JSON object.
        """
        path = self.folder / name
        try:
            content = json.loads(path.read_bytes()) if path.exists() else {}
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f'"{path}" is damaged: {error}') from error
        if not isinstance(content, dict):
            raise UserError(f'"{path}" is damaged: it holds no JSON object')
        return content

    def identity(self, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        """What stands in every metrics file, from provenance.json."""
        facts = self.read("provenance.json") if facts is None else facts
        return {"name": self.name, **{name: facts[name] for name in IDENTITY if name in facts}}

    def last_started(self) -> float:
        """When it was started or resumed last, in seconds since 1970; from config.yaml where that is not recorded."""
        try:
            facts = self.read("provenance.json")
            starts = [facts.get("started"), *(start["time"] for start in facts.get("resumed", []))]
            return datetime.fromisoformat(starts[-1]).timestamp()
        except (UserError, ValueError, TypeError, LookupError, AttributeError):
            return self.config.stat().st_mtime


def now() -> str:
    """The time as it is recorded."""
    return datetime.now(UTC).isoformat()


def link_latest(parent: Path) -> None:
    """Let `runs/<experiment>/latest` point to the run of the experiment that was started or resumed last."""
    runs, link = runs_of(parent.name, parent.parent), parent / "latest"
    beside = link.with_name(f".latest.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        if runs:
            beside.symlink_to(runs[-1].folder.name)
            beside.replace(link)
        elif link.is_symlink():
            link.unlink()
    except OSError:  # a file system without links: `find_run` needs none
        beside.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file at once or not at all.

    Raises:
        ValueError: A number is NaN or infinite, which JSON does not know.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def new_run(experiment: str, root: Path = RUNS) -> Run:
    """Make the folder of a new run; `remove_unused` removes it if the training is refused.

    A process that was started for a further device takes the folder that its parent made.

    Raises:
        UserError: The processes were started by a launcher, and no folder was chosen beforehand.
    """
    if inherited := _inherited():
        inherited.folder.mkdir(parents=True, exist_ok=True)
        return inherited
    if _launched():
        raise UserError(
            f"each process would choose its own run folder; set {RUN_FOLDER_VARIABLE}=runs/{experiment}/<name> "
            "for all of them"
        )
    folder = new_folder(root / experiment)
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    return Run(folder)


def new_folder(parent: Path) -> Path:
    """Make a folder named by the time, which no other process can have made."""
    stamp, count = datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), 1
    while True:
        folder = parent / (stamp if count == 1 else f"{stamp}-{count}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            count += 1


def remove_unused(run: Run) -> None:
    """Remove the folder of a training that did not start: without config.yaml it is no run."""
    if run.config.is_file():
        return
    (run.folder / "log.txt").unlink(missing_ok=True)
    for logger in ("tensorboard", "wandb"):
        shutil.rmtree(run.folder / logger, ignore_errors=True)
    for folder in (run.folder, *run.folder.parents[:2]):
        with suppress(OSError):  # not empty: it holds other runs, or what others wrote
            folder.rmdir()


def _launched() -> bool:
    """Whether a launcher has started several processes, each of which runs the command."""
    by_slurm = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS") or 1) > 1
    return "TORCHELASTIC_RUN_ID" in os.environ or by_slurm


def _inherited() -> Run | None:
    """The run that a parent process, or whoever set up the launcher, has chosen."""
    folder = os.environ.get(RUN_FOLDER_VARIABLE)
    return Run(Path(folder)) if folder and ("LOCAL_RANK" in os.environ or _launched()) else None


def run_to_resume(which: str, experiment: str | None, root: Path = RUNS) -> Run:
    """The run to resume; processes that this one starts inherit it.

    Args:
        which: A run folder, or "latest", which passes over baselines.
        experiment: Of which the latest run is meant; None is the latest of all.
        root: Folder of the runs.

    Raises:
        UserError: There is none, or it is of another experiment.
    """
    if (run := _inherited()) is None:
        if which == "latest":
            runs = runs_of(experiment, root) if experiment else all_runs(root)
            trained = [run for run in runs if _facts(run).get("baseline", False) is False]
            run = trained[-1] if trained else find_run(experiment, root)
        else:
            run = find_run(which, root)
        if experiment and run.experiment != experiment:
            raise UserError(f'"{run.folder}" is a run of {run.experiment}, not of {experiment}; leave out {experiment}')
    os.environ[RUN_FOLDER_VARIABLE] = str(run.folder)
    return run


def run_of_job(experiment: str, overrides: list[str], root: Path = RUNS) -> Run | None:
    """The run that this job of SLURM had started with the same words, before it was put into the queue again."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or int(os.environ.get("SLURM_RESTART_COUNT") or 0) == 0:
        return None
    for run in reversed(runs_of(experiment, root)):
        facts = _facts(run)
        if facts.get("slurm_job") == job and facts.get("overrides", overrides) == overrides:
            return run
    return None


def _facts(run: Run) -> dict[str, Any]:
    """The provenance of one run among others; a damaged one is that of no training and of no job."""
    try:
        return run.read("provenance.json")
    except UserError:
        return {"baseline": None}


def runs_of(experiment: str, root: Path = RUNS) -> list[Run]:
    """All runs of an experiment that have a configuration, by the time when they were started or resumed last."""
    return _by_start([Run(f.parent) for f in (root / experiment).glob("*/config.yaml") if not f.parent.is_symlink()])


def all_runs(root: Path = RUNS) -> list[Run]:
    """All runs of all experiments, by the time when they were started or resumed last."""
    names = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return _by_start([run for name in names for run in runs_of(name, root)])


def _by_start(runs: list[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (run.last_started(), run.folder.name))


def _below(root: Path, folder: Path) -> Run | None:
    """The same run folder below `root`, under its one name there: by an absolute path it would be another run."""
    name = folder.resolve().name
    for path in sorted(parent / name for parent in (root.iterdir() if root.is_dir() else ())):
        if path.is_dir() and not path.is_symlink() and path.samefile(folder):
            return Run(path)
    return None


def find_run(text: str | None, root: Path = RUNS) -> Run:
    """The run that is meant by a folder, an experiment's name (its latest run), or nothing (the latest of all).

    The latest run is the one that was started or resumed last; `runs/<experiment>/latest` is a link to it.

    Raises:
        UserError: There is none; the message names the nearest.
    """
    if text:
        path = Path(os.path.normpath(Path(text).expanduser()))
        is_link = path.name == "latest" and (path.is_symlink() or not path.exists())
        if is_link and (runs := runs_of(path.parent.name, path.parent.parent)):
            return _below(root, runs[-1].folder) or runs[-1]
        if (path / "config.yaml").is_file():
            return _below(root, path) or Run(path if path.name else path.absolute())
    runs = all_runs(root)
    if not runs:
        raise UserError(f'there is no run below "{root}" yet; train one with `make train EXP=unet_mse`')
    if text is None:
        return runs[-1]
    if matching := [run for run in runs if text.strip("/") in (run.experiment, run.name, str(run.folder))]:
        return matching[-1]
    names = sorted({run.experiment for run in runs})
    raise UserError(
        f'there is no run "{text}".{did_you_mean(text, names)} Experiments with runs:\n{bullet_list(names)}'
    )
