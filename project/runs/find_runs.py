"""Finding runs: by folder, experiment or "latest", the run that was last started or resumed."""

import glob
import os
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

from project.errors import UserError, bullet_list, did_you_mean
from project.models.checkpoint_files import best_checkpoint
from project.runs.run_folder import RUN_FOLDER_VARIABLE, RUNS, Run, inherited_run


def runs_of(experiment: str, root: Path = RUNS) -> list[Run]:
    """All runs of an experiment that have a configuration, the last started or resumed one last."""
    return _by_start([Run(f.parent) for f in (root / experiment).glob("*/config.yaml") if not f.parent.is_symlink()])


def all_runs() -> list[Run]:
    """All runs of all experiments, the last started or resumed one last."""
    names = sorted(p.name for p in RUNS.iterdir() if p.is_dir()) if RUNS.is_dir() else []
    return _by_start([run for name in names for run in runs_of(name)])


def _by_start(runs: list[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (run.last_started(), run.folder.name))


def trained_on(run: Run) -> tuple[str | None, int | None]:
    """Dataset and fold of a run; None where they are not recorded."""
    facts = _facts(run)
    return facts.get("dataset"), facts.get("fold")


def pretrained_experiment(settings: dict[str, Any]) -> str | None:
    """The experiment whose latest run a configuration takes its weights from: `file: runs/<experiment>/latest`."""
    try:
        parts = Path(str(settings["model"]["init_args"]["pretrained"]["file"])).parts
    except (KeyError, TypeError):
        return None
    return parts[1] if len(parts) > 2 and parts[0] == "runs" and parts[2] == "latest" else None


def latest_trained(experiment: str, dataset: str, fold: int | None) -> Run | None:
    """The latest run of an experiment that has its best checkpoint; if there are any, of those on this data.

    Runs on this data have the same dataset and fold; weights of an encoder fit other data, too.
    """
    runs = [run for run in reversed(runs_of(experiment)) if _has_best_checkpoint(run)]
    return next((run for run in runs if trained_on(run) == (dataset, fold)), runs[0] if runs else None)


def find_run(text: str | None, dataset: str | None = None) -> Run:
    """The run that a text names: a run folder, an experiment (its latest run), or "latest" (of all; also for None).

    The latest run is the one that was last started or resumed; baselines, which are fitted after it and cannot be
    resumed, only count if nothing else was trained. With `dataset` only runs on it are meant. `UserError` with the
    nearest name if there is none.
    """
    folder = Path(os.path.normpath(Path(text or "latest").expanduser()))
    is_latest = folder.name == "latest" and (folder.is_symlink() or not folder.exists())
    if not is_latest and (folder / "config.yaml").is_file():
        return _below_runs(folder) or Run(folder if folder.name else folder.absolute())
    everything, wanted = all_runs(), str(folder.parent if is_latest else folder)
    is_folder = is_latest and wanted != "." and folder.parent.is_dir()
    runs = runs_of(folder.parent.name, folder.parent.parent) if is_folder else everything
    runs = [run for run in runs if dataset is None or trained_on(run)[0] == dataset]
    if is_latest and wanted == ".":
        runs = [run for run in runs if not _facts(run).get("baseline")] or runs
    elif not is_folder:
        runs = [run for run in runs if wanted in (run.experiment, run.name, str(run.folder))]
    if runs:
        return _below_runs(runs[-1].folder) or runs[-1]
    name = wanted.removeprefix(f"{RUNS}/")
    if Path("configs/experiments", f"{name}.yaml").is_file():
        on, option = (f' on "{dataset}"', f" DATASET={quote(dataset)}") if dataset else ("", "")
        raise UserError(f"{name} has not been trained{on} yet: `make train EXP={quote(name)}{option}`")
    if not everything:
        raise UserError(f'there is no run below "{RUNS}" yet; train one with `make train EXP=unet_mse`')
    experiments = sorted({run.experiment for run in everything})
    which = " ".join([f'"{wanted}"'] * (wanted != ".") + [f'on "{dataset}"'] * (dataset is not None))
    known = sorted({f"{run.experiment} on {trained_on(run)[0]}" for run in everything})
    datasets = [trained_on(run)[0] or "" for run in everything]
    hint = did_you_mean(dataset or "", datasets) if wanted == "." else did_you_mean(wanted, experiments)
    raise UserError(f"there is no run {which}.{hint} Experiments with runs:\n{bullet_list(known)}")


def run_to_resume(text: str, experiment: str | None, dataset: str | None = None) -> Run:
    """The run to resume, see `find_run`, which must be of `experiment`; processes that this one starts inherit it."""
    if (run := inherited_run()) is None:
        run = find_run(experiment if text == "latest" and experiment else text, dataset)
        if experiment and run.experiment != experiment:
            raise UserError(f'"{run.folder}" is a run of {run.experiment}, not of {experiment}; leave out {experiment}')
    os.environ[RUN_FOLDER_VARIABLE] = str(run.folder)
    return run


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


def _has_best_checkpoint(run: Run) -> bool:
    with suppress(UserError):
        return best_checkpoint(run.folder).is_file()
    return False


def _facts(run: Run) -> dict[str, Any]:
    """What provenance.json says; a damaged one counts as a baseline's, which cannot be resumed."""
    try:
        return run.read("provenance.json")
    except UserError:
        return {"baseline": True}


def _below_runs(folder: Path) -> Run | None:
    """The same folder under its one name below runs/: under two names a run would be compared with itself."""
    for path in sorted(RUNS.glob(f"*/{glob.escape(folder.resolve().name)}")):
        if path.is_dir() and not path.is_symlink() and path.samefile(folder):
            return Run(path)
    return None
