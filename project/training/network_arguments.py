"""Channels and classes of networks: arguments of any class whose constructor has one of the usual names for them."""

import copy
import importlib
import inspect
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser

# Names of arguments; of those that a class has, the first one counts.
INPUTS = ("in_channels", "in_chans", "input_channels", "n_channels", "num_channels", "in_features")
OUTPUTS = ("num_classes", "n_classes", "classes", "num_outputs", "out_channels", "out_chans", "out_features")
# Ends of the names of arguments that hold networks: whole ones; parts that see the image; parts that give the output.
NETWORKS, ENCODERS, HEADS = ("net", "model", "network", "module"), ("encoder", "backbone"), ("head", "decoder")
# What a function takes as `**options`, so that its signature does not show it.
HIDDEN = {"timm.create_model": ("in_chans", "num_classes")}
Parameters = dict[str, inspect.Parameter]


@dataclass
class ChannelArgument:
    """A number of channels or classes among the arguments of a network.

    Attributes:
        arguments: The section of the configuration that holds it.
        key: Of this section.
        name: Of the argument.
        is_input: Whether it is about the image, and not about the output.
        required: Whether it has no default.
        networks: Key and value of the list of networks that it is in, which can only be set as a whole; or None.
    """

    arguments: dict[str, Any]
    key: str
    name: str
    is_input: bool
    required: bool
    networks: tuple[str, list[Any]] | None

    @property
    def value(self) -> Any:
        """What is typed; None for nothing."""
        return self.arguments.get(self.name)

    def set(self, value: int) -> list[str]:
        """Change the section, and return the words of the command line that do so in the configuration."""
        self.arguments[self.name] = value
        if self.networks is None:
            return [f"--{self.key}.{self.name}={value}"]
        key, networks = self.networks
        return [f"--{key}=[]", f"--{key}={json.dumps(networks)}"]  # two lists would be joined item by item


def network_spec(net: Any) -> dict[str, Any] | None:
    """A copy of a class in a configuration, with `class_path` and `init_args`; None if it is no class."""
    spec = {"class_path": net} if isinstance(net, str) else copy.deepcopy(net)
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        return None
    spec["init_args"] = spec.get("init_args") or {}
    return spec


def channel_arguments(
    net: dict[str, Any],
    key: str,
    inputs: bool = True,
    outputs: bool = True,
    networks: tuple[str, list[Any]] | None = None,
) -> Iterator[ChannelArgument]:
    """Arguments of a network, and of networks among its arguments, that follow from the data.

    Args:
        net: As `network_spec` gives it; networks among its arguments are brought into the same form.
        key: Of the network in the configuration.
        inputs: Whether it sees the image.
        outputs: Whether it gives the output.
        networks: See `ChannelArgument`.
    """
    class_path, arguments = net["class_path"], net["init_args"]
    item = import_object(class_path)
    if item is None:
        return
    section, (parameters, takes_others) = "init_args", constructor_parameters(item)
    if takes_others:
        parameters |= _forwarded(item)
    if hidden := HIDDEN.get(class_path):
        section, arguments = "dict_kwargs", net.setdefault("dict_kwargs", {})
        parameters |= _with_default(hidden)
    names = [_first(INPUTS if is_input else OUTPUTS, parameters) for is_input in (True, False)]
    for name, wanted, is_input in zip(names, (inputs, outputs), (True, False), strict=True):
        if name and wanted:
            required = parameters[name].default is inspect.Parameter.empty
            yield ChannelArgument(arguments, f"{key}.{section}", name, is_input, required, networks)
    parts = {name: specs for name, value in net["init_args"].items() if (specs := _networks(name, value))}
    has_head = any(_kind(name) in HEADS for name in parts)
    for name, specs in parts.items():
        inner_key, is_list = f"{key}.init_args.{name}", isinstance(net["init_args"][name], list)
        net["init_args"][name] = specs if is_list else specs[0]
        sees_image = inputs and _kind(name) not in HEADS
        gives_output = outputs and names[1] is None and not (_kind(name) in ENCODERS and has_head)
        inside = networks or ((inner_key, specs) if is_list else None)
        for spec in specs:
            yield from channel_arguments(spec, inner_key, sees_image, gives_output, inside)


def constructor_parameters(item: Any) -> tuple[Parameters, bool]:
    """Parameters of a class, of base classes too to which it passes `**options`, or of a function.

    Returns:
        Name -> parameter; and whether it is a function that takes others, too.
    """
    parameters: Parameters = {}
    levels = [level for level in inspect.getmro(item) if "__init__" in vars(level)] if inspect.isclass(item) else [item]
    for level in levels:
        try:
            signature = inspect.signature(level).parameters
        except (ValueError, TypeError):  # written in C
            break
        parameters = {name: p for name, p in signature.items() if p.kind is not p.VAR_KEYWORD} | parameters
        if all(p.kind is not p.VAR_KEYWORD for p in signature.values()):
            return parameters, False
    return parameters, not inspect.isclass(item)


def _forwarded(function: Any) -> Parameters:
    """Parameters that a function passes on to others, as its source shows."""
    with suppress(Exception):  # sources of any kind
        keys = ArgumentParser(exit_on_error=False).add_function_arguments(function, "f", fail_untyped=False)
        return _with_default(key.removeprefix("f.") for key in keys)
    return {}


def _with_default(names: Iterable[str]) -> Parameters:
    return {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=1) for name in names}


def import_object(class_path: str) -> Any:
    """The class or function that a configuration names, or None: the parser then says what is wrong."""
    module, _, name = class_path.rpartition(".")
    try:
        item = getattr(importlib.import_module(module), name)
    except Exception:  # of the user's own module
        return None
    return item if callable(item) else None


def _kind(name: str) -> str:
    """Last word of a name, in the singular."""
    return name.rpartition("_")[2].removesuffix("s")


def _networks(name: str, value: Any) -> list[dict[str, Any]]:
    """The networks that an argument holds, as `network_spec` gives them; none where it holds something else."""
    if _kind(name) not in (*NETWORKS, *ENCODERS, *HEADS):
        return []  # such as a layer, whose channels are a decision
    specs = [network_spec(item) for item in (value if isinstance(value, list) else [value])]
    items = [spec and import_object(spec["class_path"]) for spec in specs]
    return [spec for spec in specs if spec] if all(items) else []


def _first(names: tuple[str, ...], parameters: Parameters) -> str | None:
    """The first of some names that is a parameter for one whole number."""
    return next((name for name in names if name in parameters and _is_number(parameters[name])), None)


def _is_number(parameter: inspect.Parameter) -> bool:
    hint, default = parameter.annotation, parameter.default
    if default is not None and default is not inspect.Parameter.empty:
        return type(default) is int
    hint = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
    return hint.replace(" ", "").removeprefix("typing.") in ("_empty", "int", "int|None", "Optional[int]")
