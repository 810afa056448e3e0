"""A training as a job of a Slurm cluster: `configs/slurm.sh` filled in, in a run folder of its own."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from project.errors import UserError
from project.runs.run_folder import Run

TEMPLATE = Path("configs/slurm.sh")
# As Slurm takes them: minutes, minutes:seconds, hours:minutes:seconds, days-hours, ...
TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}")


@dataclass(frozen=True)
class Job:
    """What is asked of the cluster.

    Attributes:
        nodes: Machines.
        gpus: GPUs of each.
        cpus: Cores for each GPU, which read and augment.
        time: As Slurm takes it; when it is over, the job is queued again and goes on.
        partition: Which of the cluster's queues; its own choice if not given.
    """

    nodes: int = 1
    gpus: int = 1
    cpus: int = 8
    time: str = "24:00:00"
    partition: str | None = None

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus", "cpus"):
            if getattr(self, name) < 1:
                raise UserError(f"slurm: {name} is {getattr(self, name)}; take 1 or more")
        if not TIME.fullmatch(self.time):
            raise UserError(f'slurm: "{self.time}" is no time; write hours:minutes:seconds or days-hours')
        if self.partition is not None and not re.fullmatch(r"[\w.,-]+", self.partition):
            raise UserError(f'slurm: "{self.partition}" is no name of a partition')


def render(run: Run, job: Job, typed: list[str]) -> str:
    """The job script of a training.

    Args:
        run: Folder of the run, below the working folder; its parent names the experiment.
        job: What is asked of the cluster.
        typed: Further arguments of `train`.

    Raises:
        UserError: There is no template, or a path that a job script cannot name.
    """
    if not TEMPLATE.is_file():
        raise UserError(f'there is no "{TEMPLATE}" to make a job of')
    # Lines for Slurm end at a space, whatever is quoted.
    if not re.fullmatch(r"[\w./+-]+", str(run.folder)):
        raise UserError(f'slurm: "{run.folder}" has characters that a job script cannot name')
    devices = {"accelerator": "gpu", "num_nodes": job.nodes, "devices": job.gpus, "strategy": "ddp"}
    several = job.nodes * job.gpus > 1
    given = [
        f"--trainer.{key}={value}"
        for key, value in devices.items()
        if not any(re.match(rf"--trainer\.{key}(=|$)", word) for word in typed) and (key != "strategy" or several)
    ]
    values = {
        "NAME": run.experiment,
        "NODES": job.nodes,
        "GPUS": job.gpus,
        "CPUS": job.cpus * job.gpus,
        "TIME": job.time,
        "FOLDER": run.folder,
        "OPTIONS": f"#SBATCH --partition={job.partition}\n" if job.partition else "",
        "ROOT": shlex.quote(str(Path.cwd())),
        "PYTHON": shlex.quote(sys.executable),
        "WORDS": shlex.join(["train", run.experiment, *given, *typed]),
    }
    return re.sub(
        r"@([A-Z]+)@", lambda found: str(values.get(found[1], found[0])), TEMPLATE.read_text(encoding="utf-8")
    )


def prepare(run: Run, job: Job, typed: list[str], submit: bool = False) -> Path:
    """Write the job script into the run folder, and hand it to the cluster if asked to.

    Raises:
        UserError: There is no cluster here, or it refuses the job.
    """
    script = render(run, job, typed)
    if submit and shutil.which("sbatch") is None:
        raise UserError("there is no `sbatch` here: submit from a login node of the cluster")
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / "job.sh"
    path.write_text(script, encoding="utf-8")
    if submit:
        done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"sbatch refuses the job:\n{(done.stderr or done.stdout).strip()}")
        print(done.stdout.strip())
    return path
