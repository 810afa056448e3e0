"""The run folder: where everything about one training is, and how runs are found again."""

import json
import os
import shlex
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from project.errors import UserError, bullet_list, did_you_mean
from project.files import write_json
from project.runs.records import Metrics, Provenance, read_record

RUNS = Path("runs")
# Set in the parent process; processes that Lightning starts for further devices inherit it.
RUN_FOLDER_VARIABLE = "PROJECT_RUN_FOLDER"


@dataclass(frozen=True)
class Run:
    """One run folder; the README lists its files, `project.runs.records` what the JSON files hold."""

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
        """The folder, quoted for a shell, for the commands in messages."""
        return shlex.quote(str(self.folder))

    @property
    def checkpoints(self) -> Path:
        """Folder of best.ckpt and last.ckpt."""
        return self.folder / "checkpoints"

    @property
    def config(self) -> Path:
        """The complete configuration."""
        return self.folder / "config.yaml"

    def metrics_file(self, split: str) -> Path:
        """metrics.json for validation, metrics.<split>.json for others."""
        return self.folder / ("metrics.json" if split == "val" else f"metrics.{split}.json")

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder as it is; empty if there is none.

        Raises:
            UserError: It cannot be read, or does not hold a JSON object.
        """
        path = self.folder / name
        try:
            content = json.loads(path.read_bytes()) if path.exists() else {}
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f'"{path}" is damaged: {error}') from error
        if not isinstance(content, dict):
            raise UserError(f'"{path}" is damaged: it does not hold a JSON object')
        return content

    def read_metrics(self, split: str = "val") -> Metrics | None:
        """What was measured on a split; None if the run was not evaluated on it.

        Raises:
            UserError: The file is damaged.
        """
        path = self.metrics_file(split)
        content = self.read(path.name)
        return read_record(Metrics, content, path) if content else None

    def read_provenance(self) -> Provenance:
        """What was run.

        Raises:
            UserError: The file is missing or damaged.
        """
        return read_record(Provenance, self.read("provenance.json"), self.folder / "provenance.json")

    def update_provenance(self, **changes: Any) -> None:
        """Set fields of provenance.json; other processes may do so at the same time."""
        with FileLock(self.folder / ".provenance.lock"):
            write_json(self.folder / "provenance.json", self.read("provenance.json") | changes)

    def add_test_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Record an evaluation on the test split."""
        with FileLock(self.folder / ".provenance.lock"):
            content = self.read("provenance.json")
            evaluations = [*content.get("test_evaluations", []), evaluation]
            write_json(self.folder / "provenance.json", content | {"test_evaluations": evaluations})

    def last_started(self) -> float:
        """When it was last started or resumed, in seconds since 1970; the time of config.yaml if not recorded."""
        try:
            content = self.read("provenance.json")
            starts = [content.get("started"), *(start["time"] for start in content.get("resumed", []))]
            return datetime.fromisoformat(starts[-1]).timestamp()
        except (UserError, ValueError, TypeError, LookupError, AttributeError):
            return self.config.stat().st_mtime


def now() -> str:
    """The time as it is recorded."""
    return datetime.now(UTC).isoformat()


# New runs -------------------------------------------------------------------------------------------------------------


def new_run(experiment: str, root: Path = RUNS) -> Run:
    """Make the folder of a new run; `remove_unused` removes it if the training is refused.

    A process for a further device takes the folder that its parent made.

    Raises:
        UserError: A launcher started the processes, and no folder was chosen beforehand.
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
    for name in ("log.txt", ".provenance.lock"):
        (run.folder / name).unlink(missing_ok=True)
    for logger in ("tensorboard", "wandb"):
        shutil.rmtree(run.folder / logger, ignore_errors=True)
    for folder in (run.folder, *run.folder.parents[:2]):
        with suppress(OSError):  # not empty
            folder.rmdir()


def link_latest(parent: Path) -> None:
    """Link `runs/<experiment>/latest` to the latest run, for people and file managers; `find_run` does not need it."""
    runs, link = runs_of(parent.name, parent.parent), parent / "latest"
    temporary = link.with_name(f".latest.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        if runs:
            temporary.symlink_to(runs[-1].folder.name)
            temporary.replace(link)
        elif link.is_symlink():
            link.unlink()
    except OSError:  # a file system without links
        temporary.unlink(missing_ok=True)


def _launched() -> bool:
    """Whether a launcher has started several processes, each of which runs the command."""
    by_slurm = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS") or 1) > 1
    return "TORCHELASTIC_RUN_ID" in os.environ or by_slurm


def _inherited() -> Run | None:
    """The run that the parent process, or the user of a launcher, has chosen."""
    folder = os.environ.get(RUN_FOLDER_VARIABLE)
    return Run(Path(folder)) if folder and ("LOCAL_RANK" in os.environ or _launched()) else None


# Finding runs ---------------------------------------------------------------------------------------------------------


def runs_of(experiment: str, root: Path = RUNS) -> list[Run]:
    """All runs of an experiment that have a configuration, the last started or resumed one last."""
    return _by_start([Run(f.parent) for f in (root / experiment).glob("*/config.yaml") if not f.parent.is_symlink()])


def all_runs(root: Path = RUNS) -> list[Run]:
    """All runs of all experiments, the last started or resumed one last."""
    names = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return _by_start([run for name in names for run in runs_of(name, root)])


def _by_start(runs: list[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (run.last_started(), run.folder.name))


def find_run(text: str | None, root: Path = RUNS, trained: bool = False) -> Run:
    """The run that a text names.

    Args:
        text: A run folder, with or without "runs/"; an experiment, or `experiment/latest`: its latest run; "latest" or
            None: the latest run of all. The latest is the run that was last started or resumed.
        root: Folder of the runs.
        trained: Pass over baselines, which are fitted and cannot be resumed, when looking for the latest.

    Raises:
        UserError: There is none; the message names the nearest.
    """
    parent, last = os.path.split(os.path.normpath(Path(text or "latest").expanduser()))
    folder = Path(parent, last)
    named_latest = last == "latest" and (folder.is_symlink() or not folder.exists())
    if not named_latest and (folder / "config.yaml").is_file():
        return _below(root, folder) or Run(folder if folder.name else folder.absolute())
    runs = all_runs(root)
    if named_latest and parent and Path(parent).is_dir():
        runs, text = runs_of(Path(parent).name, Path(parent).parent), None
    elif named_latest:
        text = parent or None
    if text is not None:
        names = text.strip("/"), os.path.normpath(text)
        runs = [run for run in runs if {run.experiment, run.name, str(run.folder)} & {*names}]
    if trained:
        runs = [run for run in runs if not _is_baseline(run)] or runs
    if runs:
        return _below(root, runs[-1].folder) or runs[-1]
    experiments = sorted({run.experiment for run in all_runs(root)})
    if not experiments:
        raise UserError(f'there is no run below "{root}" yet; train one with `make train EXP=unet_mse`')
    known = f"Experiments with runs:\n{bullet_list(experiments)}"
    raise UserError(f'there is no run "{text or parent}".{did_you_mean(text or parent, experiments)} {known}')


def run_to_resume(text: str, experiment: str | None, root: Path = RUNS) -> Run:
    """The run to resume; processes that this one starts inherit it.

    Args:
        text: See `find_run`; "latest" is that of `experiment`, if one is given.
        experiment: The name that was given besides.
        root: Folder of the runs.

    Raises:
        UserError: There is none, or it is of another experiment.
    """
    if (run := _inherited()) is None:
        run = find_run(experiment if text == "latest" and experiment else text, root, trained=True)
        if experiment and run.experiment != experiment:
            raise UserError(f'"{run.folder}" is a run of {run.experiment}, not of {experiment}; leave out {experiment}')
    os.environ[RUN_FOLDER_VARIABLE] = str(run.folder)
    return run


def _is_baseline(run: Run) -> bool:
    """Whether a run cannot be resumed: it is a baseline, or damaged."""
    try:
        return bool(run.read("provenance.json").get("baseline"))
    except UserError:
        return True


def _below(root: Path, folder: Path) -> Run | None:
    """The same folder under its one name below `root`: under two names a run would be compared with itself."""
    name = folder.resolve().name
    for path in sorted(parent / name for parent in (root.iterdir() if root.is_dir() else ())):
        if path.is_dir() and not path.is_symlink() and path.samefile(folder):
            return Run(path)
    return None
