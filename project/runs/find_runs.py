"""Finding runs: by folder, experiment or "latest", the run that was last started or resumed."""

import os
from pathlib import Path

from project.errors import UserError, bullet_list, did_you_mean
from project.runs.run_folder import RUN_FOLDER_VARIABLE, RUNS, Run, inherited_run


def runs_of(experiment: str, root: Path = RUNS) -> list[Run]:
    """All runs of an experiment that have a configuration, the last started or resumed one last."""
    return _by_start([Run(f.parent) for f in (root / experiment).glob("*/config.yaml") if not f.parent.is_symlink()])


def all_runs(root: Path = RUNS) -> list[Run]:
    """All runs of all experiments, the last started or resumed one last."""
    names = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return _by_start([run for name in names for run in runs_of(name, root)])


def _by_start(runs: list[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (run.last_started(), run.folder.name))


def find_run(text: str | None, root: Path = RUNS) -> Run:
    """The run that a text names: a run folder, an experiment (its latest run), or "latest" (of all; also for None).

    Args:
        text: With or without "runs/". The latest run is the one that was last started or resumed; baselines, which are
            fitted after it and cannot be resumed, only count if nothing else was trained.
        root: Folder of the runs.

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
    if named_latest and not parent:
        runs = [run for run in runs if not _is_baseline(run)] or runs
    if runs:
        return _below(root, runs[-1].folder) or runs[-1]
    experiments = sorted({run.experiment for run in all_runs(root)})
    if not experiments:
        raise UserError(f'there is no run below "{root}" yet; train one with `make train EXP=unet_mse`')
    options = f"Experiments with runs:\n{bullet_list(experiments)}"
    raise UserError(f'there is no run "{text or parent}".{did_you_mean(text or parent, experiments)} {options}')


def run_to_resume(text: str, experiment: str | None, root: Path = RUNS) -> Run:
    """The run to resume, see `find_run`; processes that this one starts inherit it.

    Raises:
        UserError: There is none, or it is not of `experiment`.
    """
    if (run := inherited_run()) is None:
        run = find_run(experiment if text == "latest" and experiment else text, root)
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
