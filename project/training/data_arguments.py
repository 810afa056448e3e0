"""Arguments that data and weights determine: channels, classes, crops, pretrained files. What is typed wins."""

import inspect
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from project.data.crops import automatic_crops, crops_by_area, largest_crop
from project.data.datamodule import ImageDataModule
from project.data.dataset_facts import DatasetFacts, dataset_facts
from project.errors import UserError, bullet_list
from project.runs.find_runs import latest_trained, pretrained_experiment, trained_on
from project.tasks.base import Task
from project.yaml_files import named_object

# Names of arguments for channels and classes; of those that a class has, the first one counts.
INPUTS = ("in_channels", "in_chans", "input_channels", "n_channels", "num_channels", "in_features")
OUTPUTS = ("num_classes", "n_classes", "classes", "num_outputs", "out_channels", "out_chans", "out_features")
LOSS_CLASSES = ("num_classes", "n_classes")  # of losses; `classes` may be those that count
# Last words of arguments that hold networks: whole ones; parts that see the image; parts that give the output.
NETWORKS, ENCODERS, HEADS = ("net", "model", "network", "module"), ("encoder", "backbone"), ("head", "decoder")
# A larger batch would show each part of each image more than ten times.
MOST_REPEATS, LARGE_BATCH = 10, 128


@dataclass
class DataArguments:
    """What follows from the data."""

    words: list[str] = field(default_factory=list)  # added to the arguments of the experiment
    notes: list[str] = field(default_factory=list)  # for the log
    problems: list[str] = field(default_factory=list)  # what is typed and contradicts the data

    def refuse_problems(self) -> None:
        """Raise one `UserError` for all problems."""
        if self.problems:
            raise UserError(
                f"the settings do not fit the data:\n{bullet_list(self.problems, 20)}\n"
                "What is left out follows from the data."
            )

    def set(self, key: str, value: Any, note: str = "") -> None:
        """Add an argument, and a line for the log."""
        self.words.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
        self.notes += [f"{key}: {value}{note}"] if note else []


def data_arguments(settings: dict[str, Any], crop_is_typed: bool, task: type[Task]) -> DataArguments:
    """Arguments of an experiment (`settings` with overrides) that follow from its dataset; what is typed wins.

    Defaults of classes do not count as typed. A crop on the command line is refused where it is too large, not lowered.
    """
    data = constructor_arguments(ImageDataModule) | {"crops_per_image": None} | _section(settings, "data")
    options, result = _section(settings["model"], "init_args"), DataArguments()
    folder = Path(str(data["root"])) / str(data["dataset"])
    if not (folder / "train.h5").is_file():  # the parser is satisfied, so that the message is about the data
        _set_channels(options.get("net"), (1, 1), DataArguments(words=result.words))
        return result
    facts = dataset_facts(folder, data["fold"] if isinstance(data["fold"], int) else None)
    needed = task.needed_inputs(options)
    if missing := [role for role in needed if role not in facts.available_roles]:
        result.problems.append(f"there is no {' and no '.join(missing)}, which {task.__name__} needs")
        return result
    _set_channels(options.get("net"), task.network_channels(facts, options), result)
    _set_loss_classes(options.get("loss"), facts.classes.get(task.target_kind or ""), result)
    net = imported_callable(_class_and_arguments(options.get("net"))[0])
    if part := getattr(net, "pretrained_part", None):
        _set_encoder(part, options, result)
    if not hasattr(net, "fit"):
        divisor = options.get("size_divisor", constructor_arguments(task).get("size_divisor"))
        all_images = dataset_facts(folder, labels=False) if needed == ("image",) else facts
        _set_crops(data, all_images, divisor if isinstance(divisor, int) else 1, crop_is_typed, result)
    name = pretrained_experiment(settings)
    if name and (run := latest_trained(name, data["dataset"], data["fold"])):
        # The latest run on this data, if there is any.
        dataset, fold = trained_on(run)
        about = f", trained on {dataset}{'' if fold is None else f', fold {fold}'}"
        result.set("model.init_args.pretrained.file", str(run.folder), about)
    return result


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, dict) else {}


# Networks -------------------------------------------------------------------------------------------------------------


def _set_channels(net: Any, channels: tuple[int, int | None], result: DataArguments) -> None:
    """Set the channels and classes of a network that are not typed."""
    for key, typed, is_input in _channel_arguments(net, "model.init_args.net"):
        number = channels[0] if is_input else channels[1]
        if number is not None and typed is None:
            result.set(key, number, " (from the data)")
        elif number is not None and typed != number:
            which = "the images have" if is_input else "the outputs that the task needs are"
            result.problems.append(f"{key} is {typed}, but {which} {number}")


def _set_encoder(part: str, options: dict[str, Any], result: DataArguments) -> None:
    """Set the encoder of a probe, and its weights, unless they are typed."""
    if options.get("pretrained") is not None:
        return
    from project.models.encoder_files import ADVICE, find_encoder  # takes seconds

    if (encoder := find_encoder()) is None:
        raise UserError(ADVICE)
    result.set("model.init_args.net.init_args.encoder_name", encoder.name)
    result.set("model.init_args.pretrained", encoder.pretrained(part), " (by its weights)")


def _set_loss_classes(loss: Any, classes: list[str] | None, result: DataArguments) -> None:
    """Set the number of classes of a loss that has an argument for it, unless it is typed."""
    class_path, arguments = _class_and_arguments(loss)
    known = constructor_arguments(imported_callable(class_path)) if classes else {}
    for name in LOSS_CLASSES:
        if name in known and arguments.get(name) is None:
            result.set(f"model.init_args.loss.init_args.{name}", len(classes or ()), " (from the data)")


def _channel_arguments(
    net: Any, key: str, sees_image: bool = True, gives_output: bool = True
) -> Iterator[tuple[str, Any, bool]]:
    """Key, typed value and whether it is about the image, of the channels of a network and of networks in it."""
    class_path, arguments = _class_and_arguments(net)
    known = constructor_arguments(imported_callable(class_path))
    names = [
        next((name for name in usual if name in known and type(known[name]) in (int, type(None))), None)
        for usual in (INPUTS, OUTPUTS)
    ]
    for name, is_wanted, is_input in zip(names, (sees_image, gives_output), (True, False), strict=True):
        if name and is_wanted:
            yield f"{key}.init_args.{name}", arguments.get(name), is_input
    classes = [name for name, value in arguments.items() if _class_and_arguments(value)[0]]
    parts = {name: name.rpartition("_")[2].removesuffix("s") for name in classes}  # last word, in the singular
    has_head = any(word in HEADS for word in parts.values())
    for name, word in parts.items():
        if word in (*NETWORKS, *ENCODERS, *HEADS):  # the channels of other layers are a decision
            yields = gives_output and names[1] is None and not (word in ENCODERS and has_head)
            inner = f"{key}.init_args.{name}"
            yield from _channel_arguments(arguments[name], inner, sees_image and word not in HEADS, yields)


def _class_and_arguments(spec: Any) -> tuple[str, dict[str, Any]]:
    """Class path and arguments of a class in a configuration; "" if it is none."""
    spec = {"class_path": spec} if isinstance(spec, str) and "." in spec else spec
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        return "", {}
    short = {name: value for name, value in spec.items() if name not in ("class_path", "init_args")}  # --net.width 4
    return spec["class_path"], _section(spec, "init_args") | short


def imported_callable(class_path: str) -> Any:
    """The class or function that a configuration names, or None: the parser then says what is wrong."""
    try:
        item = named_object(class_path)
    except Exception:  # of the user's own module
        return None
    return item if callable(item) else None


def constructor_arguments(item: Any) -> dict[str, Any]:
    """Name -> default (None without one) of the arguments of a class or function, as the parser sees them.

    Those of base classes and functions to which it passes `**options` are among them.
    """
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(item) else parser.add_function_arguments
    with suppress(Exception):  # sources of any kind
        names = add(item, "x", fail_untyped=False)
        defaults = parser.get_defaults(skip_validation=True)
        return {name.removeprefix("x."): defaults.get(name) for name in names}
    return {}


# Crops ----------------------------------------------------------------------------------------------------------------


def _set_crops(
    data: dict[str, Any], facts: DatasetFacts, divisor: int, crop_is_typed: bool, result: DataArguments
) -> None:
    """Set the size and number of the training crops, unless they are typed."""
    crop, crops, batch_size, sizes = data["crop"], data["crops_per_image"], data["batch_size"], facts.sizes
    shortest, largest = min(map(min, sizes)), largest_crop(sizes, divisor)
    if isinstance(crop, int) and crop > shortest:
        problem = f"the shortest side of an image has {shortest} pixels"
        if crop_is_typed:
            result.problems.append(f"data.crop is {crop}, but {problem}: write {largest}")
        result.set("data.crop", largest, f", not {crop}: {problem}")
        crop = largest
    elif crop is None and len(set(sizes)) > 1 and not crop_is_typed:
        crop = largest
        result.set("data.crop", crop, ", because the images differ in size; `sizes:` of the data config resizes")
    if not isinstance(batch_size, int) or not (crop is None or isinstance(crop, int)):
        return  # the parser says what is wrong
    most = max(MOST_REPEATS * len(sizes) * crops_by_area(sizes, crop), LARGE_BATCH)
    if crops is None and batch_size > most:
        result.problems.append(
            f"data.batch_size is {batch_size}, many times what the {len(sizes)} training images have: write at most "
            f"{most}, or type data.crops_per_image"
        )
    elif crops is None:
        crops = automatic_crops(sizes, crop, batch_size)
        result.set("data.crops_per_image", crops, f", of {len(sizes)} images" if crops > 1 else "")
    elif isinstance(crops, int) and 0 < crops * len(sizes) < batch_size:
        result.problems.append(
            f"data.batch_size is {batch_size}, but an epoch has {crops * len(sizes)} samples ({len(sizes)} images, "
            f"crops_per_image {crops}): write a batch_size of at most {crops * len(sizes)}, or more crops_per_image"
        )
