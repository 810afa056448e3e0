"""What a command needs before it starts: experiment and data configs, prepared data, runs with pretrained weights."""

import functools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.data.config import PROCESSED, DatasetConfig
from project.data.config_reader import build_config
from project.errors import UserError, bullet_list, did_you_mean
from project.files import safe_file_name, write_text
from project.training.overrides import apply_overrides, is_demo
from project.yaml_files import read_yaml

if TYPE_CHECKING:
    from project.runs.run_folder import Run

EXPERIMENTS = Path("configs/experiments")
DATASETS = Path("configs/data")


def is_further_device() -> bool:
    """Whether this process was launched for another device than the first."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


# Configs --------------------------------------------------------------------------------------------------------------


def config_names(folder: Path) -> list[str]:
    """Names of the YAML files in a folder of configs."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def config_file(folder: Path, name: str, kind: str) -> Path:
    """Path of the config of an experiment or dataset; `UserError` with those that exist if there is none."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        if not folder.is_dir():
            raise UserError(f"there is no {folder} in {Path.cwd()}: run this in the top folder of the project")
        known = config_names(folder)
        hint = f"\nFor your own images: make data RAW=folder NAME={shlex.quote(name)}" if kind == "dataset" else ""
        raise UserError(
            f'there is no {kind} "{name}" in {folder}.{did_you_mean(name, known)} There are:\n'
            f"{bullet_list(known, 40)}{hint}"
        )
    return path


def read_experiment(experiment: str) -> tuple[Path, dict[str, Any]]:
    """Path and content of an experiment file; `UserError` if there is none, or a section of it has no keys."""
    path = config_file(EXPERIMENTS, experiment, "experiment")
    content = read_yaml(path)
    try:
        return path, apply_overrides(content, [])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def dataset_config(dataset: str) -> DatasetConfig:
    """The checked config of a dataset."""
    path = config_file(DATASETS, dataset, "dataset")
    content = read_yaml(path)
    try:
        return build_config(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def propose_data_config(dataset: str, raw: Path) -> None:
    """Write the data config that a folder of raw files suggests, and print it; never over another."""
    path = DATASETS / f"{dataset}.yaml"
    if path.exists():
        raise UserError(
            f"{path} exists, and says where the raw files are: leave out RAW (--raw), or take another name. To have a "
            "new one proposed, remove it first."
        )
    if safe_file_name(dataset) != dataset or dataset.startswith("."):
        raise UserError(f'"{dataset}" cannot be the name of a file and of a folder; use letters, digits, _ and -')
    from project.data.proposal.propose import propose_config

    text = propose_config(raw)
    write_text(path, text)
    print(f"{text}\nWritten to {path}; each comment says why.\n")


# Data -----------------------------------------------------------------------------------------------------------------


def dataset_folder(settings: dict[str, Any]) -> Path | None:
    """Folder of the prepared dataset of a configuration; None if it names none."""
    section = settings.get("data") or {}
    return Path(section.get("root") or PROCESSED, str(section["dataset"])) if section.get("dataset") else None


def prepare_dataset(dataset: str, root: Path | None = None, processes: int | None = None) -> Path:
    """Prepare a dataset and print how many samples each split has; returns its folder."""
    config = dataset_config(dataset)
    from project.data.preparation.prepare import prepare
    from project.data.store import SplitReader

    folder = prepare(dataset, config, root or PROCESSED, processes=processes)
    counts = ", ".join(f"{len(SplitReader(file))} {file.stem}" for file in sorted(folder.glob("*.h5")))
    print(f"{folder}: {counts} images. Look at them with `make inspect DATASET={shlex.quote(dataset)}`")
    return folder


def prepared_dataset(dataset: str, root: Path | None = None) -> Path:
    """Folder of a prepared dataset; a demo dataset is simulated and prepared when it is missing."""
    folder = (root or PROCESSED) / dataset
    if (folder / "train.h5").is_file():
        _warn_if_outdated(folder)
        return folder
    config_file(DATASETS, dataset, "dataset")
    if is_demo(dataset):
        return prepare_dataset(dataset, root)
    raise UserError(f'the dataset "{dataset}" is not prepared; run `make data DATASET={shlex.quote(dataset)}`')


def prepare_for(content: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Prepare the dataset of an experiment if it is missing; returns its settings with the overrides.

    Raises:
        UserError: A key, class or type of the configuration is wrong, which is checked before anything is prepared; or
            the dataset has not what the task needs.
    """
    settings = apply_overrides(content, overrides)
    if (folder := dataset_folder(settings)) is None:
        return settings
    is_prepared = (folder / "train.h5").is_file()
    if missing_pretrained_run(settings, overrides) or (not is_prepared and is_demo(folder.name)):
        from project.training.lightning_cli import check_config

        check_config(content, overrides)
    available = available_inputs(prepared_dataset(folder.name, folder.parent))
    if missing := [role for role in _needed_inputs(settings) if role not in available]:
        names = [name for name in config_names(EXPERIMENTS) if not name.startswith("baseline_")]
        fitting = [name for name in names if has_inputs(name, available)]
        task = str(settings["model"]["class_path"]).rpartition(".")[2]
        raise UserError(
            f'the dataset "{folder.name}" has {", ".join(available)}, but no {" and no ".join(missing)}, which {task} '
            f"needs. Experiments for this data:\n{bullet_list(fitting)}"
        )
    return settings


def available_inputs(folder: Path) -> Sequence[str]:
    """What each sample of a prepared dataset has: image, target, mask ..."""
    from project.data.dataset_facts import dataset_facts

    return dataset_facts(folder).available_roles


def has_inputs(experiment: str, available: Sequence[str]) -> bool:
    """Whether data has what the task of an experiment needs."""
    return {*_needed_inputs(read_experiment(experiment)[1])} <= {*available}


def _needed_inputs(settings: dict[str, Any]) -> Sequence[str]:
    """Arrays of the data file that an experiment needs; none where it names no task, which the parser reports."""
    from project.training.lightning_cli import task_class

    task = task_class(settings)
    return task.needed_inputs(settings["model"].get("init_args") or {}) if task else ()


def warn_if_outdated(run: "Run", overrides: Sequence[str] = ()) -> None:
    """Print a warning if the dataset of a run no longer fits its data config or raw files."""
    from project.runs.untrusted import read_config

    if folder := dataset_folder(apply_overrides(read_config(run.config), list(overrides))):
        _warn_if_outdated(folder)


@functools.cache  # once, however many trainings a command starts
def _warn_if_outdated(folder: Path) -> None:
    path = DATASETS / f"{folder.name}.yaml"
    if is_further_device() or not path.is_file() or not (folder / "train.h5").is_file():
        return
    from project.data.preparation.outdated import describe_changes

    try:
        config = dataset_config(folder.name)
    except UserError:
        config = None
    if message := describe_changes(folder, config, path):
        print(f"warning: {message}")


# Runs -----------------------------------------------------------------------------------------------------------------


def missing_pretrained_run(settings: dict[str, Any], overrides: list[str]) -> str | None:
    """The experiment whose latest run has the pretrained weights (`runs/<experiment>/latest`), if it has to be trained.

    It has to be if it has no run on this data and fold. Where the data lacks what it needs, and where the weights are
    named on the command line, a run on other data will do.
    """
    from project.runs.find_runs import latest_trained, pretrained_experiment, trained_on

    name, folder = pretrained_experiment(settings), dataset_folder(settings)
    if name is None or folder is None:
        return None
    fold = settings["data"].get("fold")
    if (run := latest_trained(name, folder.name, fold)) is None:
        return name
    if trained_on(run) == (folder.name, fold) or pretrained_experiment(apply_overrides({}, overrides)):
        return None
    is_prepared = (folder / "train.h5").is_file()
    can_train = name in config_names(EXPERIMENTS) and (not is_prepared or has_inputs(name, available_inputs(folder)))
    return name if can_train else None
