"""The run folder: where everything about one training is."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from project.errors import UserError
from project.files import write_json
from project.metrics.conformal import Calibration
from project.runs.records import Metrics, Provenance, read_record

RUNS = Path("runs")
MLFLOW_ID = "mlflow.txt"  # in a run folder: the id of the run in MLflow
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

    @property
    def configs(self) -> list[Path]:
        """config.yaml, and the configurations with which the training was resumed, the last one last."""
        resumed = self.folder.glob("config.resume-*.yaml")
        return [self.config, *sorted(resumed, key=lambda path: (len(path.name), path.name))]

    def metrics_file(self, split: str) -> Path:
        """metrics.json for validation, metrics.<split>.json for others."""
        return self.folder / ("metrics.json" if split == "val" else f"metrics.{split}.json")

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder, empty if there is none; UserError if it is damaged."""
        path = self.folder / name
        try:
            content = json.loads(path.read_bytes()) if path.exists() else {}
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f'"{path}" is damaged: {error}') from error
        if not isinstance(content, dict):
            raise UserError(f'"{path}" is damaged: it does not hold a JSON object')
        return content

    def read_metrics(self, split: str = "val") -> Metrics | None:
        """What was measured on a split, None if the run was not evaluated on it; UserError if it is damaged."""
        path = self.metrics_file(split)
        content = self.read(path.name)
        return read_record(Metrics, content, path) if content else None

    def read_calibration(self, n_parts: int) -> Calibration | None:
        """That of the validation, for this number of parts; None also if the file is damaged: `eval` mends it."""
        with suppress(UserError):
            record = self.read_metrics()
            if record and record.calibration and len(record.calibration.values) == n_parts:
                return record.calibration
        return None

    def read_provenance(self) -> Provenance:
        """What was run; UserError if the file is missing or damaged."""
        if not (path := self.folder / "provenance.json").exists():
            raise UserError(f'"{path}" is missing: copy the run folder again')
        return read_record(Provenance, self.read(path.name), path)

    def update_provenance(self, **changes: Any) -> None:
        """Set fields of provenance.json; other processes may do so at the same time."""
        with FileLock(self.folder / ".provenance.lock"):
            write_json(self.folder / "provenance.json", self.read("provenance.json") | changes)

    def add_test_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Record an evaluation on the test split."""
        with FileLock(self.folder / ".provenance.lock"):
            content = self.read("provenance.json")
            content["test_evaluations"] = [*content.get("test_evaluations", []), evaluation]
            write_json(self.folder / "provenance.json", content)

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

    A process for a further device takes the folder that its parent made, or that was chosen for a launcher.
    """
    if inherited := inherited_run():
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
    for name in ("log.txt", ".provenance.lock", MLFLOW_ID):
        (run.folder / name).unlink(missing_ok=True)
    for logger in ("tensorboard", "wandb"):
        shutil.rmtree(run.folder / logger, ignore_errors=True)
    for folder in (run.folder, *run.folder.parents[:2]):
        with suppress(OSError):  # not empty
            folder.rmdir()


def _launched() -> bool:
    """Whether a launcher has started several processes, each of which runs the command."""
    by_slurm = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS") or 1) > 1
    return "TORCHELASTIC_RUN_ID" in os.environ or by_slurm


def train_in_subprocess(words: list[str], folder: Path | None = None, **variables: str) -> None:
    """Run `python -m project train` in a separate process: here it would count as a further device of the first run."""
    inherited = (RUN_FOLDER_VARIABLE, "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in inherited} | variables
    command = [sys.executable, "-m", "project", "train", *words]
    if subprocess.run(command, cwd=folder, env=environment, check=False).returncode:
        raise UserError(f"{words[0]} could not be trained; see above")


def inherited_run() -> Run | None:
    """The run that the parent process, or the user of a launcher, has chosen; None in a first process."""
    folder = os.environ.get(RUN_FOLDER_VARIABLE)
    return Run(Path(folder)) if folder and ("LOCAL_RANK" in os.environ or _launched()) else None
