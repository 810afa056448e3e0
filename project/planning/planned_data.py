"""For which data a plan was made, and what has changed since."""

import json
import re
from pathlib import Path
from typing import Any

from project.data.dataset_facts import DatasetFacts, dataset_facts
from project.errors import UserError

PLANNED_FOR = "# planned for: "  # a line of the experiment file, with `describe_data` as JSON
MAY_CHANGE = {"training images", "objects", "content"}  # a plan still fits, though another might be better


def describe_data(data: DatasetFacts) -> dict[str, str]:
    """What a plan has to fit to, in words."""
    sides = sorted({side for size in data.sizes for side in size})
    size = "{} x {}".format(*data.sizes[0]) if len(set(data.sizes)) == 1 else f"{sides[0]} to {sides[-1]} pixels"
    facts = {"training images": str(len(data.sizes)), "size": size}
    for name, n in data.n_channels.items():
        facts[name] = f"{n} {'number' if name == 'value' else 'channel'}{'s' * (n > 1)}"
    facts |= {name: f"{len(names)} classes" for name, names in data.classes.items() if names}
    if objects := data.statistics.get("instances"):
        facts["objects"] = str(objects["n"])
    return facts | {"content": data.readers["train"].content_hash[:12]}


def planned_facts(path: Path) -> dict[str, Any]:
    """What the experiment in a file was planned for; empty for those that were not planned."""
    match = re.search(f"^{PLANNED_FOR}(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    try:
        facts = json.loads(match[1]) if match else {}
    except ValueError:
        facts = {}
    return facts if isinstance(facts, dict) else {}


def check_planned(path: Path, folder: Path) -> str | None:
    """Compare the data that an experiment was planned for with the prepared data.

    Args:
        path: The experiment file.
        folder: `data/processed/<dataset>`.

    Returns:
        A sentence on what has changed, if the plan still fits.

    Raises:
        UserError: It does not fit.
    """
    if not (planned := planned_facts(path)):
        return None
    actual = describe_data(dataset_facts(folder))
    names = [name for name in dict.fromkeys([*planned, *actual]) if planned.get(name) != actual.get(name)]
    if not names:
        return None
    changes = ", ".join(f"{name} {planned.get(name, 'none')}, now {actual.get(name, 'none')}" for name in names[:-1])
    message = f"{path} was planned for other data: {changes or 'other values'}. `make plan DATASET={folder.name}`"
    if set(names) <= MAY_CHANGE:
        return f"{message} plans again"
    raise UserError(f"{message} plans again; --unchecked trains in spite of it")
