"""Arguments of an experiment that its data determines: channels and classes of networks, crops. What is typed wins."""

import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from project.data.crops import automatic_crops, largest_crop
from project.data.datamodule import ImageDataModule
from project.data.dataset_facts import dataset_facts
from project.errors import UserError, bullet_list
from project.runs.find_runs import latest_trained, pretrained_experiment, trained_on
from project.tasks.base import Task
from project.training.network_arguments import channel_arguments, constructor_parameters, import_object, network_spec
from project.training.overrides import apply_overrides, last_value

NET = "model.init_args.net"


@dataclass
class DataArguments:
    """What follows from the data.

    Attributes:
        words: Arguments, to be added to those of the experiment.
        notes: Lines for the log.
        problems: What is typed and contradicts the data.
    """

    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def refuse_problems(self) -> None:
        """Raise one `UserError` for all problems."""
        if self.problems:
            raise UserError(
                f"the settings do not fit the data:\n{bullet_list(self.problems, 20)}\n"
                "What is left out follows from the data."
            )

    def set(self, key: str, value: Any) -> None:
        """Add an argument."""
        self.words.append(f"--{key}={json.dumps(value)}")


def data_arguments(words: list[str], task: type[Task]) -> DataArguments:
    """Arguments of an experiment that follow from its dataset; defaults of classes do not count as typed.

    Args:
        words: Arguments of the experiment, as `project.training.overrides.parser_arguments` gives them.
        task: Of the experiment.
    """
    settings, result = apply_overrides({}, words), DataArguments()
    data = _defaults(ImageDataModule) | {"crops_per_image": None} | _section(settings, "data")
    options = _section(settings["model"], "init_args")
    folder = Path(str(data["root"])) / str(data["dataset"])
    if not (folder / "train.h5").is_file():  # the parser is satisfied, so that the message is about the data
        _fill_network(options.get("net"), (1, 1), result, only_required=True)
        return result
    facts = dataset_facts(folder, data["fold"] if isinstance(data["fold"], int) else None)
    needed = task.needed_inputs(options)
    if missing := [role for role in needed if role not in facts.available_roles]:
        result.problems.append(f"there is no {' and no '.join(missing)}, which {task.__name__} needs")
        return result
    _fill_network(options.get("net"), task.network_channels(facts, options), result)
    if not hasattr(import_object((network_spec(options.get("net")) or {}).get("class_path", "")), "fit"):
        sizes = (dataset_facts(folder, labels=False) if needed == ("image",) else facts).sizes
        divisor = options.get("size_divisor", _defaults(task).get("size_divisor"))
        _fill_crops(data, sizes, divisor if isinstance(divisor, int) else 1, last_value(words, "--data.crop"), result)
    _choose_pretrained(settings, data, result)
    return result


def _choose_pretrained(settings: dict[str, Any], data: dict[str, Any], result: DataArguments) -> None:
    """Replace `runs/<experiment>/latest` by the run that is meant: the latest one on this data, if there is any."""
    name = pretrained_experiment(settings)
    if name and (run := latest_trained(name, data["dataset"], data["fold"])):
        dataset, fold = trained_on(run)
        result.words.append(f"--model.init_args.pretrained.file={run.folder}")
        result.notes.append(
            f"pretrained weights: {run.folder}, trained on {dataset}{'' if fold is None else f', fold {fold}'}"
        )


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, dict) else {}


def _defaults(item: Any) -> dict[str, Any]:
    parameters, _ = constructor_parameters(item)
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


def _fill_network(
    net: Any, channels: tuple[int, int | None], result: DataArguments, only_required: bool = False
) -> None:
    """Set the channels and classes of a network that are not typed."""
    if (spec := network_spec(net)) is None:
        return
    filled = []
    for argument in channel_arguments(spec, NET):
        number = channels[0] if argument.is_input else channels[1]
        if number is None or (only_required and not argument.required):
            continue
        if argument.value is None:
            result.words += argument.set(number)
            filled.append(f"{argument.name} {number}")
        elif argument.value != number and not only_required:
            which = "the images have" if argument.is_input else "the outputs that the task needs are"
            result.problems.append(f"{argument.key}.{argument.name} is {argument.value}, but {which} {number}")
    if filled:
        result.notes.append(f"from the data: {', '.join(filled)}")


def _fill_crops(
    data: dict[str, Any], sizes: list[tuple[int, int]], divisor: int, on_command_line: str | None, result: DataArguments
) -> None:
    """Set the size and number of the training crops, unless they are typed."""
    crop, crops, batch_size = data["crop"], data["crops_per_image"], data["batch_size"]
    shortest, largest, differ = min(map(min, sizes)), largest_crop(sizes, divisor), len(set(sizes)) > 1
    if isinstance(crop, int) and crop > shortest:
        if on_command_line:
            result.problems.append(
                f"data.crop is {crop}, but the shortest side of an image has {shortest} pixels: write {largest}"
            )
        result.notes.append(f"data.crop: {largest}, not {crop}: the shortest side of an image has {shortest} pixels")
        crop = largest
        result.set("data.crop", crop)
    elif crop is None and differ and not on_command_line:
        crop = largest
        result.notes.append(
            f"data.crop: {crop}, because the images differ in size; `sizes:` of the data config resizes"
        )
        result.set("data.crop", crop)
    if not isinstance(batch_size, int) or not (crop is None or isinstance(crop, int)):
        return  # the parser says what is wrong
    if crops is None:
        crops = automatic_crops(sizes, crop, batch_size)
        result.set("data.crops_per_image", crops)
        if crops > 1:
            result.notes.append(f"data.crops_per_image: {crops}, of {len(sizes)} images")
    elif isinstance(crops, int) and crops * len(sizes) < batch_size:
        result.problems.append(
            f"data.batch_size is {batch_size}, but an epoch has {crops * len(sizes)} samples ({len(sizes)} images, "
            f"crops_per_image {crops}): write a batch_size of at most {crops * len(sizes)}, or more crops_per_image"
        )
