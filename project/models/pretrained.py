"""Pretrained weights: loading a file strictly into a network, and the input statistics that an encoder expects."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from project.errors import UserError, bullet_list, did_you_mean
from project.models.checkpoint_files import best_checkpoint, read_file
from project.models.unused import dropped_stages

State = dict[str, Tensor]
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Encoders of smp whose weights expect other statistics, by the beginning of their names.
DPN = [0.486275, 0.458824, 0.407843], [0.234824, 0.234824, 0.234824]
INCEPTION = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
OTHERS = {"dpn": DPN, "inception": INCEPTION, "xception": INCEPTION}


@dataclass
class Pretrained:
    """Initial weights of a network; `load_pretrained` loads them.

    Attributes:
        file: A file of timm, smp or torchvision (.pth, .pt, .safetensors), a checkpoint of this project, or a run
            folder (its best checkpoint).
        part: Dotted name of the submodule to load into, such as "encoder"; "" is the whole network.
        source: Dotted prefix in the file, such as "encoder": only tensors below it are loaded. The prefixes "net." of
            this project's checkpoints, "module." and "_orig_mod." are removed.
        skip: Names, or beginnings of dotted names, that are not loaded: "fc", "head.norm".
    """

    file: str
    part: str = ""
    source: str = ""
    skip: list[str] = field(default_factory=list)


def load_pretrained(net: nn.Module, spec: Pretrained) -> list[str]:
    """Load weights into a network, strictly; returns lines to print: what was adapted, loaded and left out.

    A first convolution for another number of input channels is adapted, so that the same image in every channel gives
    the same output. Counters of batch normalization (`num_batches_tracked`) may be missing. Stages of the file that the
    network has dropped (`project.models.unused`) are left out.

    Raises:
        UserError: The file cannot be read without running code in it, or a tensor that `skip` does not name does not
            fit. The network is then unchanged.
    """
    path = _weights_file(spec.file)
    part = submodule(net, spec.part, "pretrained")
    ours, theirs = part.state_dict(), _below(read_weights(path), spec.source, path)
    inside = f"{spec.part}." if spec.part else ""
    dropped = [stage.removeprefix(inside) for stage in dropped_stages(net) if stage.startswith(inside)]
    dropped = [stage for stage in dropped if any(_is_below(name, stage) for name in theirs)]
    for prefix in spec.skip:  # a misspelled name would be loaded in silence
        if not any(_is_below(name, prefix) for name in [*ours, *theirs]):
            known = {p for name in [*ours, *theirs] for p in _prefixes(name)}
            raise UserError(
                f'pretrained.skip: neither the network nor {path} has anything called "{prefix}".'
                f"{did_you_mean(prefix, known)} Names are dotted, relative to `part` and `source`."
            )
    ours, theirs = _without(ours, spec.skip), _without(theirs, [*spec.skip, *dropped])
    _check_names(ours, theirs, path)
    names = [name for name in ours if name in theirs]
    values = _adapted({name: theirs[name] for name in names}, ours)
    if wrong := [name for name in names if values[name].shape != ours[name].shape]:
        lines = [f"{n}: {tuple(theirs[n].shape)} in the file, {tuple(ours[n].shape)} here" for n in wrong]
        skip = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in wrong[:4]))
        raise UserError(
            f"pretrained: {len(wrong)} tensors of {path} have another shape:\n{bullet_list(lines, 6)}\n"
            f"To leave these as they are, write  skip: [{skip}]"
        )
    messages = []
    with torch.no_grad():
        for name in names:
            ours[name].copy_(values[name])
            if values[name] is not theirs[name]:
                messages.append(f"{name}: adapted from {theirs[name].shape[1]} to {ours[name].shape[1]} channels")
    messages += [f"not used by this network: {', '.join(dropped)}"] if dropped else []
    skipped = f"; skipped: {', '.join(spec.skip)}" if spec.skip else ""
    return [*messages, f"loaded {len(names)} tensors from {path}{f' into {spec.part}' if spec.part else ''}{skipped}"]


def submodule(net: nn.Module, part: str, key: str) -> nn.Module:
    """A part of a network by its dotted name; `key` is the setting that names it.

    Raises:
        UserError: There is no such part.
    """
    try:
        return net.get_submodule(part)
    except AttributeError as error:
        known = [name for name, _ in net.named_modules() if name]
        raise UserError(
            f'{key}: the network {type(net).__name__} has no part "{part}".{did_you_mean(part, known)} It has:\n'
            f"{bullet_list(name for name, _ in net.named_children())}"
        ) from error


def _weights_file(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "checkpoints").is_dir():
            raise UserError(f"pretrained: {path} has no checkpoints/, so it is no run folder such as {path / 'latest'}")
        return best_checkpoint(path)
    if not path.is_file():
        neighbors = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f'pretrained: there is no file "{path}".{did_you_mean(path.name, neighbors)}')
    return path


def read_weights(path: Path) -> State:
    """Tensors of a file by name, without wrappers and common prefixes."""
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else read_file(path, "pretrained")
    content = content if isinstance(content, dict) else {}
    is_lightning, state = "pytorch-lightning_version" in content, content
    if not any(isinstance(value, Tensor) for value in content.values()):
        wrappers = [k for k in ("state_dict", "model_state_dict", "model", "net") if isinstance(content.get(k), dict)]
        state = content[wrappers[0]] if wrappers else {}
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"pretrained: no named tensors in {path}. It holds: {', '.join(map(str, list(content)[:12]))}")
    # A task's checkpoint also holds its loss, its normalization and its metrics.
    if is_lightning and any(name.startswith("net.") for name in tensors):
        tensors = {name.removeprefix("net."): v for name, v in tensors.items() if name.startswith("net.")}
    for prefix in ("module.", "_orig_mod.", "module."):  # DataParallel around torch.compile, or the reverse
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise UserError(f"pretrained: {path} is damaged or no safetensors file ({error})") from error


def _below(tensors: State, source: str, path: Path) -> State:
    """Tensors below a dotted prefix, without it."""
    below = {n.removeprefix(f"{source}."): v for n, v in tensors.items() if not source or _is_below(n, source)}
    if not below:
        known = {prefix for name in tensors for prefix in _prefixes(name)}
        raise UserError(
            f'pretrained: there is no source "{source}" in {path}.{did_you_mean(source, known)} It has:\n'
            f"{bullet_list(dict.fromkeys(name.split('.')[0] for name in tensors))}"
        )
    return below


def _is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _prefixes(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[:n]) for n in range(1, len(words) + 1)]


def _without(tensors: State, skip: list[str]) -> State:
    return {name: value for name, value in tensors.items() if not any(_is_below(name, prefix) for prefix in skip)}


def _check_names(ours: State, theirs: State, path: Path) -> None:
    """Refuse tensors that only the network or only the file has; say which setting is probably missing."""
    # Counters of batches: old files lack them, and only a batch normalization without momentum reads them.
    ours, theirs = ({n: v for n, v in s.items() if not is_counter(n)} for s in (ours, theirs))
    missing, left = [name for name in ours if name not in theirs], [name for name in theirs if name not in ours]
    if not missing and not left:
        return
    lines = [f"{len(missing)} tensors of the network are not in the file:", bullet_list(missing, 6)] * bool(missing)
    lines += [f"{len(left)} tensors of the file are not in the network:", bullet_list(left, 6)] * bool(left)
    advice = "Is it another network?"
    if common := ours.keys() & theirs.keys():
        skip = uncommon_prefixes([*missing, *left], common)
        advice = f"To leave them out, write  skip: [{', '.join(skip)}]" if len(skip) <= 8 else advice
    for short, long, key in ((ours, theirs, "source"), (theirs, ours, "part")):
        end = f".{next(iter(short), '')}"
        if not common and (prefix := next((n.removesuffix(end) for n in long if n.endswith(end)), "")):
            advice = f"Did you mean  {key}: {prefix}  ?"
    raise UserError("\n".join([f"pretrained: {path} does not fit.", *lines, advice]))


def is_counter(name: str) -> bool:
    """Whether a tensor counts the batches of a batch normalization; old files lack these."""
    return name.endswith("num_batches_tracked")


def uncommon_prefixes(names: Iterable[str], common: Iterable[str]) -> list[str]:
    """The shortest dotted prefixes that cover names, and none of the common ones."""
    shared = {prefix for name in common for prefix in _prefixes(name)}
    return list(dict.fromkeys(next((p for p in _prefixes(name) if p not in shared), name) for name in names))


def _adapted(theirs: State, ours: State) -> State:
    """Tensors of the file, where the number of image channels differs with adapted weights of what reads the image.

    The first convolution shows both numbers; the branches of RepVGG and MobileOne read the image, too.
    """
    first = next((name for name in theirs if ours[name].ndim == theirs[name].ndim == 4), None)
    old, new = (1, 1) if first is None else (theirs[first].shape[1], ours[first].shape[1])
    if old == new or old not in (1, 3):  # networks are trained on gray or color images: it is a layer inside
        return theirs
    return {
        name: adapt_input_conv(new, value if old == 3 else value.expand(-1, 3, -1, -1) / 3)
        if value.ndim == ours[name].ndim == 4 and (value.shape[1], ours[name].shape[1]) == (old, new)
        else value
        for name, value in theirs.items()
    }


def input_statistics(net: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per color (RGB, values 0 to 1) of the images an encoder was trained on.

    From timm's configuration of the network; else by the name of smp's encoder; else ImageNet.
    """
    for module in net.modules():
        config = getattr(module, "pretrained_cfg", None)
        if isinstance(config, dict) and config.get("mean") and config.get("std"):
            return list(config["mean"]), list(config["std"])
    # smp calls its networks "unet-resnet18" and the like, and the encoder does not know its name.
    name = str(getattr(net, "name", "")).partition("-")[2]
    return next((statistics for start, statistics in OTHERS.items() if name.startswith(start)), IMAGENET)
