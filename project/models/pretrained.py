"""Pretrained weights: loading a file strictly into a network, and the input statistics that an encoder expects."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
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
        match: "name", or "position": the n-th tensor goes to the n-th, for files with other names. All shapes must
            agree.
    """

    file: str
    part: str = ""
    source: str = ""
    skip: list[str] = field(default_factory=list)
    match: Literal["name", "position"] = "name"


def load_pretrained(net: nn.Module, spec: Pretrained) -> list[str]:
    """Load weights into a network, strictly: a tensor that does not fit must be named in `skip`.

    A first convolution for another number of input channels is adapted, so that the same image in every channel gives
    the same output. Counters of batch normalization (`num_batches_tracked`) may be missing. Stages of the file that the
    network has dropped (`project.models.unused`) are left out.

    Returns:
        Lines to print: what was adapted, loaded and left out.

    Raises:
        UserError: The file cannot be read without running code in it, or something does not fit. The network is then
            unchanged.
    """
    path = _weights_file(spec.file)
    part = submodule(net, spec.part, "pretrained")
    ours, theirs = part.state_dict(), _below(_read_weights(path), spec.source, path)
    dropped = [stage for stage in dropped_stages(part) if any(_is_below(name, stage) for name in theirs)]
    theirs = _without(theirs, dropped)
    for prefix in spec.skip:  # a misspelled name would be loaded in silence
        if not any(_is_below(name, prefix) for name in [*ours, *theirs]):
            known = dict.fromkeys(p for name in [*ours, *theirs] for p in _prefixes(name))
            raise UserError(
                f'pretrained.skip: neither the network nor {path} has anything called "{prefix}".'
                f"{did_you_mean(prefix, known)} Names are dotted, relative to `part` and `source`."
            )
    wanted, offered = _without(ours, spec.skip), _without(theirs, spec.skip)
    pairs = _by_position(wanted, offered, path) if spec.match == "position" else _by_name(wanted, offered, path)
    channels = _input_channels(ours, theirs, pairs)
    values = {name: _adapted(wanted[name], offered[other], channels) for name, other in pairs}
    if wrong := [name for name, value in values.items() if value is None]:
        shapes = [f"{n}: {tuple(offered[o].shape)} in the file, {tuple(ours[n].shape)} here" for n, o in pairs]
        lines = [line for line in shapes if line.partition(":")[0] in wrong]
        skip = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in wrong[:4]))
        raise UserError(
            f"pretrained: {len(wrong)} tensors of {path} have another shape:\n{bullet_list(lines, 6)}\n"
            f"To leave these as they are, write  skip: [{skip}]"
        )
    messages = []
    with torch.no_grad():
        for name, other in pairs:
            ours[name].copy_(values[name])
            if ours[name].shape != offered[other].shape:
                messages.append(f"{name}: adapted from {offered[other].shape[1]} to {ours[name].shape[1]} channels")
    messages += [f"not used by this network: {', '.join(dropped)}"] if dropped else []
    skipped = f"; skipped: {', '.join(spec.skip)}" if spec.skip else ""
    return [*messages, f"loaded {len(pairs)} tensors from {path}{f' into {spec.part}' if spec.part else ''}{skipped}"]


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


# The file -------------------------------------------------------------------------------------------------------------


def _weights_file(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "checkpoints").is_dir():
            latest = f" Did you mean {path / 'latest'}?" if (path / "latest").is_dir() else ""
            raise UserError(f"pretrained: {path} has no checkpoints/, so it is no run folder.{latest}")
        return best_checkpoint(path)
    if not path.is_file():
        neighbors = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f'pretrained: there is no file "{path}".{did_you_mean(path.name, neighbors)}')
    return path


def _read_weights(path: Path) -> State:
    """Tensors of a file by name, without wrappers and common prefixes."""
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else read_file(path, "pretrained")
    state, is_lightning = content, isinstance(content, dict) and "pytorch-lightning_version" in content
    if isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        wrappers = [k for k in ("state_dict", "model_state_dict", "model", "net") if isinstance(content.get(k), dict)]
        state = content[wrappers[0]] if wrappers else {}
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        keys = f" It holds: {', '.join(map(str, list(content)[:12]))}." if isinstance(content, dict) else ""
        raise UserError(f"pretrained: there are no named tensors in {path}.{keys}")
    # A task's checkpoint also holds its loss, its normalization and its metrics.
    if is_lightning and any(name.startswith("net.") for name in tensors):
        tensors = {name: value for name, value in tensors.items() if name.startswith("net.")}
    for prefix in ("net.", "module.", "_orig_mod.", "module."):  # DataParallel around torch.compile, or the reverse
        if all(name.startswith(prefix) for name in tensors) and (prefix != "net." or is_lightning):
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
    if not source:
        return tensors
    below = {name.removeprefix(f"{source}."): value for name, value in tensors.items() if _is_below(name, source)}
    if not below:
        known = list(dict.fromkeys(prefix for name in tensors for prefix in _prefixes(name)))
        raise UserError(
            f'pretrained: there is no source "{source}" in {path}.{did_you_mean(source, known)} It has:\n'
            f"{bullet_list(dict.fromkeys(name.split('.')[0] for name in tensors))}"
        )
    return below


# Pairs of tensors -----------------------------------------------------------------------------------------------------


def _is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _prefixes(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[:n]) for n in range(1, len(words) + 1)]


def _without(tensors: State, skip: list[str]) -> State:
    return {name: value for name, value in tensors.items() if not any(_is_below(name, prefix) for prefix in skip)}


def _is_counter(name: str) -> bool:
    """Whether it counts batches: old files lack it, and only a batch normalization without momentum reads it."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _by_name(wanted: State, offered: State, path: Path) -> list[tuple[str, str]]:
    missing = [name for name in wanted if name not in offered and not _is_counter(name)]
    left = [name for name in offered if name not in wanted and not _is_counter(name)]
    if missing or left:
        lines = [f"{len(missing)} tensors of the network are not in the file:", bullet_list(missing, 6)] * bool(missing)
        lines += [f"{len(left)} tensors of the file are not in the network:", bullet_list(left, 6)] * bool(left)
        advice = _advice(missing, left, wanted, offered)
        raise UserError("\n".join([f"pretrained: {path} does not fit.", *lines, advice]))
    return [(name, name) for name in wanted if name in offered]


def _advice(missing: list[str], left: list[str], wanted: State, offered: State) -> str:
    """The setting that is probably missing, guessed from the names."""
    if common := set(wanted) & set(offered):
        # The shortest prefixes that do not skip anything that fits.
        shared = {prefix for name in common for prefix in _prefixes(name)}
        skip = dict.fromkeys(next((p for p in _prefixes(name) if p not in shared), name) for name in [*missing, *left])
        return f"To leave them out, write  skip: [{', '.join(skip)}]" if len(skip) <= 8 else "Is it another network?"
    for short, long, key in ((wanted, offered, "source"), (offered, wanted, "part")):
        first = next((name for name in short if not _is_counter(name)), "")
        if prefix := next((name.removesuffix(f".{first}") for name in long if name.endswith(f".{first}")), ""):
            return f"Did you mean  {key}: {prefix}  ?"
    return "No name agrees. If it is the same network with other names, write  match: position"


def _by_position(wanted: State, offered: State, path: Path) -> list[tuple[str, str]]:
    ours, theirs = ([name for name in state if not _is_counter(name)] for state in (wanted, offered))
    pairs = list(zip(ours, theirs, strict=False))
    channels = _input_channels(wanted, offered, pairs)
    different = [(n, o) for n, o in pairs if _adapted(wanted[n], offered[o], channels) is None]
    if different or len(ours) != len(theirs):
        name, other = different[0] if different else ([*ours, "(none)"][len(pairs)], [*theirs, "(none)"][len(pairs)])
        shapes = [tuple(state[key].shape) if key in state else "" for state, key in ((wanted, name), (offered, other))]
        raise UserError(
            f"pretrained: {path} does not fit by position ({len(ours)} tensors here, {len(theirs)} in the file). First "
            f"difference:\n  {name} {shapes[0]} in the network\n  {other} {shapes[1]} in the file\n"
            "Leave out what only one of them has with `skip` (a head, for example), or it is another network."
        )
    return pairs


# Values ---------------------------------------------------------------------------------------------------------------


def _input_channels(ours: State, theirs: State, pairs: list[tuple[str, str]]) -> tuple[int, int] | None:
    """Channels of the images in the file and in the network, if the first convolution shows that they differ."""
    for name, other in pairs:
        new, old = ours[name].shape, theirs[other].shape
        if len(new) == 4:
            # Networks are trained on gray or color images; any other number belongs to a layer inside.
            return (old[1], new[1]) if len(old) == 4 and new[1] != old[1] and old[1] in (1, 3) else None
    return None


def _adapted(ours: Tensor, theirs: Tensor, channels: tuple[int, int] | None) -> Tensor | None:
    """Value for a tensor of the network, None if the file's has another shape."""
    if ours.shape == theirs.shape:
        return theirs
    new, old = ours.shape, theirs.shape
    # Several convolutions can read the image: the branches of RepVGG and MobileOne.
    if len(new) == len(old) == 4 and (old[1], new[1]) == channels and (new[0], *new[2:]) == (old[0], *old[2:]):
        return adapt_input(theirs, new[1])
    return None


def adapt_input(weight: Tensor, channels: int) -> Tensor:
    """Weights of a first convolution for another number of input channels, as timm's `adapt_input_conv`.

    To one channel: the sum. To more: repeated in turn, and scaled by old / new.

    Args:
        weight: (O, I, h, w).
        channels: Number of input channels J.

    Returns:
        (O, J, h, w), same dtype.
    """
    n = weight.shape[1]
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight[:, [c % n for c in range(channels)]].float()
    return (repeated * (n / channels)).to(weight.dtype)


# Statistics -----------------------------------------------------------------------------------------------------------


def input_statistics(net: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per color (RGB, values 0 to 1) of the images an encoder was trained on.

    From timm's configuration of the network; else from smp's file beside downloaded weights; else by the name of the
    encoder; else ImageNet. Nothing is downloaded.
    """
    for module in net.modules():
        config = getattr(module, "pretrained_cfg", None)
        if isinstance(config, dict) and config.get("mean") and config.get("std"):
            return list(config["mean"]), list(config["std"])
    # smp calls its networks "unet-resnet18" and the like, and the encoder does not know its name.
    name = str(getattr(net, "name", "")).partition("-")[2]
    mean, std = _downloaded_statistics(name) or next((v for k, v in OTHERS.items() if name.startswith(k)), IMAGENET)
    return list(mean), list(std)


def _downloaded_statistics(encoder_name: str) -> tuple[list[float], list[float]] | None:
    """From the cache beside downloaded weights; smp itself would ask the network for half a minute."""
    from huggingface_hub import try_to_load_from_cache
    from segmentation_models_pytorch.encoders import (  # type: ignore[import-untyped]
        encoders,
        get_preprocessing_params,
    )

    for weights, source in encoders.get(encoder_name, {}).get("pretrained_settings", {}).items():
        if isinstance(try_to_load_from_cache(source["repo_id"], "config.json", revision=source["revision"]), str):
            statistics = get_preprocessing_params(encoder_name, weights)
            return statistics["mean"], statistics["std"]
    return None
