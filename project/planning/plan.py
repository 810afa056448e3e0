"""Plan experiments on a dataset: measure data and machine, decide, write the files."""

import shlex
from pathlib import Path

from project.errors import UserError, did_you_mean
from project.planning.decisions import ALL, decide_all, possible_tasks
from project.planning.experiment_file import format_plan, format_value, write_plan
from project.planning.fingerprint import Fingerprint, measure_fingerprint
from project.planning.machine import Machine, measure_machine

MINUTES = 20.0  # of a training, where nobody says
# Decisions that follow from the data alone, and not from the machine.
OF_DATA = (
    *("crop", "balanced", "foreground_crops", "objects", "loss"),
    *("input_normalization", "target_normalization", "intensity_augmentation"),
)


def planned_experiments(experiments: Path, dataset: str, task: str | None = None) -> list[str]:
    """Names of the experiments that have been planned for a dataset, of all tasks or of one."""
    names = [f"{dataset}_{task}", dataset] if task else [dataset, *(f"{dataset}_{name}" for name in ALL)]
    found = [name for name in names if (experiments / f"{name}.yaml").is_file()]
    return found[:1] if task else found


def plan_dataset(folder: Path, experiments: Path, minutes: float, task: str | None = None) -> list[Path]:
    """Write an experiment file for each task that the data is for, or for one of them; prints them.

    Args:
        folder: `data/processed/<dataset>`.
        experiments: Folder of the experiment files.
        minutes: That a training may take.
        task: A key of `project.planning.decisions.TASKS`; None plans all that are possible.

    Raises:
        UserError: The task is not possible, or a file was changed by hand.
    """
    if not minutes > 0:
        raise UserError(f"--minutes is {minutes:g}: give the time that a training may take, such as 20")
    data = measure_fingerprint(folder)
    tasks = possible_tasks(data)
    if task is not None and task not in tasks:
        meant = did_you_mean(task, tasks)
        raise UserError(f"{data.dataset} has no targets for {task}.{meant} Possible: {', '.join(tasks)}")
    if task is None and len(tasks) > 1:
        print(f"{data.dataset} has targets for {', '.join(tasks)}: each gets a plan. --task {tasks[0]} plans one.\n")
    machine, written = measure_machine(), []
    for name in [task] if task else tasks:
        path = experiments / f"{data.dataset}{f'_{name}' if len(tasks) > 1 else ''}.yaml"
        text = plan_text(data, machine, name, minutes)
        write_plan(path, text)
        print(f"{path}:\n\n{text}")
        written.append(path)
    return written


def plan_text(data: Fingerprint, machine: Machine, task: str, minutes: float) -> str:
    """The experiment file of one task."""
    described = ", ".join(f"{name} {value}" for name, value in data.facts.items() if name != "content")
    title = (
        f"{task.capitalize()}, planned for {data.dataset} ({described}) by `make plan "
        f"DATASET={shlex.quote(data.dataset)} MINUTES={minutes:g}`. Change what you like: a changed plan is kept."
    )
    return format_plan(title, decide_all(data, machine, task, minutes), data.facts)


def suggest_settings(folder: Path) -> list[dict[str, str]]:
    """What plans for a dataset decide by its data alone, for its page: the "task", what to "set" and "why".

    Nothing where no experiment can be planned, as without validation images.
    """
    try:
        data = measure_fingerprint(folder)
        tasks = possible_tasks(data)
    except UserError:
        return []
    suggestions = []
    for task in tasks:
        for key, choice in decide_all(data, Machine(), task, MINUTES).items():
            name = key.rpartition(".")[2]
            if name in OF_DATA and choice.reason:
                setting = f"{name}: {format_value(choice.value)}"
                suggestions.append({"task": task, "set": setting, "why": choice.reason})
    return suggestions
