"""Plan experiments on a dataset: measure data and machine, decide, write YAML files with a reason for each decision."""

import json
import math
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import xxhash
import yaml

from project.data.dataset_facts import dataset_facts
from project.data.normalization import Choice
from project.errors import UserError, did_you_mean
from project.files import write_text
from project.planning.decisions import ALL, decide_all, possible_tasks
from project.planning.fingerprint import Fingerprint, describe_data, measure_fingerprint
from project.planning.machine import Machine, measure_machine

MINUTES = 20.0  # of a training, where nobody says
WIDTH = 120
PLANNED_FOR = "# planned for: "  # a line of the file, with `describe_data` as JSON
CHECKSUM = "# checksum: "
MAY_CHANGE = {"training images", "objects", "content"}  # a plan still fits, though another might be better
ORDER = ("length", "trainer", "checkpoint", "model", "data", "optimizer")  # of the sections


def planned_experiments(experiments: Path, dataset: str, task: str | None = None) -> list[str]:
    """Names of the experiments that have been planned for a dataset, of all tasks or of one."""
    names = [f"{dataset}_{task}", dataset] if task else [dataset, *(f"{dataset}_{name}" for name in ALL)]
    found = [name for name in names if (experiments / f"{name}.yaml").is_file()]
    return found[:1] if task else found


def plan_dataset(folder: Path, experiments: Path, minutes: float, task: str | None = None) -> list[Path]:
    """Write an experiment file for each task that `data/processed/<dataset>` is for, or for one of them; prints them.

    Raises:
        UserError: The task is not possible, or a file was changed by hand.
    """
    if not 0 < minutes < math.inf:
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
    tree: dict[str, Any] = {}
    for key, choice in decide_all(data, machine, task, minutes).items():
        *parents, name = key.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = choice
    lines = [*_comment(title, 0), PLANNED_FOR + json.dumps(data.facts)]
    lines += [line for name in sorted(tree, key=ORDER.index) for line in _lines(name, tree[name], 0)]
    text = "\n".join(lines) + "\n"
    return f"{text}{CHECKSUM}{_checksum(text)}\n"


def _lines(name: str, value: Any, indent: int) -> list[str]:
    """A key with its reason beside it, or above it where the line would be too long."""
    start = " " * indent + f"{name}:"
    if not isinstance(value, Choice):
        return [start, *(line for key, part in value.items() for line in _lines(key, part, indent + 2))]
    text = yaml.safe_dump(value.value, default_flow_style=True, sort_keys=False, width=10**6)
    line = f"{start} " + text.removesuffix("\n").removesuffix("\n...")
    beside = f"{line} # {value.reason}" if value.reason else line
    if len(beside) <= WIDTH:
        return [beside]
    block = textwrap.indent(yaml.safe_dump(value.value, sort_keys=False), " " * (indent + 2)).splitlines()
    return [*_comment(value.reason, indent), *([line] if len(line) <= WIDTH else [start, *block])]


def _comment(text: str, indent: int) -> list[str]:
    start = " " * indent + "# "
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False)


def _checksum(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())


def write_plan(path: Path, text: str) -> None:
    """Write a plan; an earlier one is replaced as long as nobody has changed it.

    Raises:
        UserError: The file was changed, or was not written by `make plan`.
    """
    if path.is_file():
        before, _, checksum = path.read_text(encoding="utf-8").rpartition(CHECKSUM)
        if checksum.strip() != _checksum(before):
            raise UserError(f"{path} was changed by hand, and is not overwritten: rename or delete it, then plan again")
    write_text(path, text)


def check_planned(path: Path, folder: Path) -> str | None:
    """What has changed in `data/processed/<dataset>` since an experiment file was planned, if the plan still fits.

    Raises:
        UserError: It does not fit.
    """
    match = re.search(f"^{PLANNED_FOR}({{.*}})$", path.read_text(encoding="utf-8"), re.MULTILINE)
    if not match:  # it was not planned
        return None
    planned, actual = json.loads(match[1]), describe_data(dataset_facts(folder))
    names = [name for name in dict.fromkeys([*planned, *actual]) if planned.get(name) != actual.get(name)]
    if not names:
        return None
    changes = ", ".join(f"{name} {planned.get(name, 'none')}, now {actual.get(name, 'none')}" for name in names[:-1])
    message = f"{path} was planned for other data: {changes or 'other values'}. `make plan DATASET={folder.name}`"
    if set(names) <= MAY_CHANGE:
        return f"{message} plans again"
    raise UserError(f"{message} plans again; --unchecked trains in spite of it")
