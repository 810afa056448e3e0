"""Weights from a file: loading them strictly, and what they expect as input."""

import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import torch
from torch import Tensor, nn

from project.errors import UserError, bullet_list, did_you_mean
from project.models.unused import dropped_stages

State = dict[str, Tensor]

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Encoders of smp whose weights expect something else. Its own answer lies beside the weights on the network.
DPN = [0.486275, 0.458824, 0.407843], [0.234824, 0.234824, 0.234824]
INCEPTION = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
OTHERS = {"dpn": DPN, "inception": INCEPTION, "xception": INCEPTION}


@dataclass
class Pretrained:
    """Which weights a network starts from; `load_pretrained` takes them.

    Attributes:
        file: A file of timm, smp or torchvision (.pth, .pt, .safetensors), a checkpoint of this project, or a run
            folder (its best checkpoint).
        part: Dotted name of the submodule to load into, such as "encoder"; "" is the whole network.
        source: Dotted prefix in the file, such as "encoder": only what is under it counts, and without it. The "net."
            of this project's checkpoints, "module." and "_orig_mod." go by themselves.
        skip: Names, or beginnings of dotted names, that stay as initialised and are not taken: "fc", "head.norm".
        match: "name", or "position": the n-th tensor goes to the n-th, for files in which everything is called
            otherwise. Shapes must agree all the way.
    """

    file: str
    part: str = ""
    source: str = ""
    skip: list[str] = field(default_factory=list)
    match: Literal["name", "position"] = "name"


def load_pretrained(net: nn.Module, spec: Pretrained) -> list[str]:
    """Load weights into a network, strictly: whatever does not fit must be named in `skip`.

    A first convolution for another number of input channels is adapted, so that the same image in every channel gives
    the same output. Counters of batch normalisation (`num_batches_tracked`) may be missing. Stages of the file that the
    network has dropped (`project.models.unused`) are left out.

    Returns:
        One line for each thing that should be known: what was adapted, how much was loaded, what was left out.

    Raises:
        UserError: The file cannot be read without running code in it, or something does not fit. The network is then
            as it was.
    """
    path = _file(spec.file)
    part = submodule(net, spec.part, "pretrained")
    own, given = part.state_dict(), _below(_read(path), spec.source, path)
    dropped = [stage for stage in dropped_stages(part) if any(_under(name, stage) for name in given)]
    given = _without(given, dropped)
    _check_skip(spec.skip, own, given, path)
    wanted, offered = _without(own, spec.skip), _without(given, spec.skip)
    pairs = _by_position(wanted, offered, path) if spec.match == "position" else _by_name(wanted, offered, path)
    values, messages = _fitting(wanted, offered, pairs, path, _input_channels(own, given, pairs))
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    messages += [f"not in this network, which has no use for them: {', '.join(dropped)}"] if dropped else []
    return [*messages, _summary(spec, path, len(values), own, given)]


# The file -------------------------------------------------------------------------------------------------------------


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "checkpoints").is_dir():
            latest = f" Did you mean {path / 'latest'}?" if (path / "latest").is_dir() else ""
            raise UserError(f"pretrained: {path} is a folder without checkpoints/, so no run.{latest}")
        return best_checkpoint(path)
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f'pretrained: there is no file "{path}".{did_you_mean(path.name, beside)}')
    return path


def best_checkpoint(run: Path) -> Path:
    """The checkpoint that a run folder records as its best, in provenance.json; best.ckpt in those of older versions.

    Raises:
        UserError: It is not there, or no file: nothing is taken in its place.
    """
    try:
        facts = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
        best = facts.get("best") or {"checkpoint": "best.ckpt"}
        path = run / "checkpoints" / best["checkpoint"]
    except FileNotFoundError:
        path = run / "checkpoints/best.ckpt"
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f'"{run / "provenance.json"}" does not say which checkpoint is the best: {error}') from error
    if ".." in path.parts[len(run.parts) :] or not path.is_relative_to(run / "checkpoints"):
        raise UserError(f'"{run / "provenance.json"}": the best checkpoint, "{path}", is not in {run / "checkpoints"}')
    if path.is_dir():
        raise UserError(
            f'"{path}" is a folder with a part of the weights per device; write one file of it with\n'
            f"  python -m lightning.pytorch.utilities.consolidate_checkpoint {quote(str(path))} "
            f"--output_file {quote(str(path))}.whole\nand give that file the name {path.name}"
        )
    if not path.is_file():
        kept = sorted(other.name for other in path.parent.glob("*.ckpt"))
        others = f" There are {', '.join(kept)}, which are not the best." if kept else ""
        raise UserError(
            f'"{run}" has no checkpoint {path.name}, the best: it was deleted, or the training stopped before its '
            f"first validation.{others} Resume the training (make train RESUME={quote(str(run))}), or train again"
        )
    return path


def _read(path: Path) -> State:
    """Tensors of a file, by their names without wrappers and prefixes that everything shares."""
    content = _load(path)
    state, lightning = content, isinstance(content, dict) and "pytorch-lightning_version" in content
    if isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        wrappers = [k for k in ("state_dict", "model_state_dict", "model", "net") if isinstance(content.get(k), dict)]
        state = content[wrappers[0]] if wrappers else {}
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        keys = f" It holds: {', '.join(map(str, list(content)[:12]))}." if isinstance(content, dict) else ""
        raise UserError(f"pretrained: there are no named tensors in {path}.{keys}")
    # A task's checkpoint also holds its loss, its normalisation and its metrics.
    if lightning and any(name.startswith("net.") for name in tensors):
        tensors = {name: value for name, value in tensors.items() if name.startswith("net.")}
        tensors = _stripped(tensors, "net.")
    for prefix in ("module.", "_orig_mod.", "module."):  # DataParallel around torch.compile, or the reverse
        if all(name.startswith(prefix) for name in tensors):
            tensors = _stripped(tensors, prefix)
    return tensors


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, MemoryError) as error:
            raise UserError(f"pretrained: {path} is damaged or no safetensors file ({error})") from error
    return read_file(path, "pretrained")


def read_file(path: Path, what: str) -> Any:
    """The content of a file that `torch.save` wrote, read without running code in it; tensors on the CPU.

    The checksums of the file are compared, which torch does not do, and its tensors are mapped, not copied: what a
    file claims to hold is never more than what is in it.

    Args:
        path: The file.
        what: Begins the message where it cannot be read.

    Raises:
        UserError: It is damaged, or holds more than plain values and tensors.
    """
    try:
        with path.open("rb") as file:
            mapped = file.read(4) == b"PK\x03\x04"  # else it is of the format before torch 1.6
        if mapped:
            _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        _check_sizes(content)
        return content
    except Exception as error:  # a damaged pickle raises anything
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(_more_than_weights(path, code[1], what)) from error
        raise UserError(
            f"{what}: {path} cannot be read as weights: it is damaged, incomplete, or something else altogether "
            f"(a web page, a Git LFS pointer); it has {path.stat().st_size:,} bytes. Fetch it again."
        ) from error


def _check_archive(path: Path) -> None:
    """Compare the checksums of a zip archive; nothing in it is compressed, or a small file could fill the memory."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise zipfile.BadZipFile("compressed")
        # They are all 0 where whoever wrote it did not want them.
        if any(member.CRC for member in members) and (bad := archive.testzip()):
            raise zipfile.BadZipFile(f"bad checksum of {bad}")


def _check_sizes(content: Any) -> None:
    """Refuse tensors that repeat few numbers to a size that fills the memory as soon as they are copied."""
    stack, known = [content], set[int]()
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            if value.layout == torch.strided and value.nbytes > max(16 * value.untyped_storage().nbytes(), 2**24):
                raise ValueError("a tensor is larger than its numbers")
        elif isinstance(value, dict | list | tuple | set) and id(value) not in known:
            known.add(id(value))
            stack += [*value.values()] if isinstance(value, dict) else value


def _more_than_weights(path: Path, code: str, what: str) -> str:
    return (
        f"{what}: {path} is refused, because it holds more than weights ({code}): loading would run code in it.\n"
        "If you trust where it comes from, keep the weights alone, and name the new file:\n"
        f"  python -c \"import torch; c = torch.load('{path}', weights_only=False); "
        f"torch.save(c.get('state_dict', c.get('model', c)), '{path.with_name(path.stem + '-weights.pth')}')\""
    )


def _stripped(tensors: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def _below(tensors: State, source: str, path: Path) -> State:
    """The tensors under a dotted prefix, named from there."""
    if not source:
        return tensors
    below = {name: value for name, value in tensors.items() if _under(name, source)}
    if not below:
        known = list(dict.fromkeys(prefix for name in tensors for prefix in _prefixes(name)))
        raise UserError(
            f'pretrained: there is no source "{source}" in {path}.{did_you_mean(source, known)} There are:\n'
            f"{bullet_list(dict.fromkeys(name.split('.')[0] for name in tensors))}"
        )
    return _stripped(below, f"{source}.")


# What goes where ------------------------------------------------------------------------------------------------------


def submodule(net: nn.Module, part: str, key: str) -> nn.Module:
    """A part of a network by its dotted name; `key` says where that name was written.

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


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _prefixes(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[:n]) for n in range(1, len(words) + 1)]


def _check_skip(skip: list[str], own: State, given: State, path: Path) -> None:
    """A misspelt name to skip would silently be loaded."""
    for prefix in skip:
        names = [*own, *given]
        if not any(_under(name, prefix) for name in names):
            known = dict.fromkeys(p for name in names for p in _prefixes(name))
            raise UserError(
                f'pretrained.skip: neither the network nor {path} has anything called "{prefix}".'
                f"{did_you_mean(prefix, known)} Names are dotted, and count from `part` and `source` on."
            )


def _without(tensors: State, skip: list[str]) -> State:
    return {name: value for name, value in tensors.items() if not any(_under(name, prefix) for prefix in skip)}


def _counter(name: str) -> bool:
    """Of batches; old files lack it, and only a batch normalisation without momentum reads it."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _by_name(wanted: State, offered: State, path: Path) -> list[tuple[str, str]]:
    missing = [name for name in wanted if name not in offered and not _counter(name)]
    left = [name for name in offered if name not in wanted and not _counter(name)]
    if missing or left:
        lines = []
        if missing:
            lines += [f"{len(missing)} tensors of the network are not in the file:", bullet_list(missing, 6)]
        if left:
            lines += [f"{len(left)} tensors of the file are not in the network:", bullet_list(left, 6)]
        advice = _advice(missing, left, wanted, offered)
        raise UserError("\n".join([f"pretrained: {path} does not fit.", *lines, advice]))
    return [(name, name) for name in wanted if name in offered]


def _advice(missing: list[str], left: list[str], wanted: State, offered: State) -> str:
    """What to write, as far as can be guessed from the names."""
    if common := set(wanted) & set(offered):
        # The shortest beginnings that do not skip anything that fits.
        shared = {prefix for name in common for prefix in _prefixes(name)}
        skip = dict.fromkeys(next((p for p in _prefixes(name) if p not in shared), name) for name in [*missing, *left])
        return f"If that is meant, write  skip: [{', '.join(skip)}]" if len(skip) <= 8 else "Is it another network?"
    for short, long, key in ((wanted, offered, "source"), (offered, wanted, "part")):
        first = next((name for name in short if not _counter(name)), "")
        if prefix := next((name.removesuffix(f".{first}") for name in long if name.endswith(f".{first}")), ""):
            return f"Did you mean  {key}: {prefix}  ?"
    return "No name agrees. If it is the same network with other names, write  match: position"


def _by_position(wanted: State, offered: State, path: Path) -> list[tuple[str, str]]:
    ours, theirs = ([name for name in state if not _counter(name)] for state in (wanted, offered))
    channels = _input_channels(wanted, offered, list(zip(ours, theirs, strict=False)))
    for number, (name, other) in enumerate(zip(ours, theirs, strict=False), 1):
        if _fit(wanted[name], offered[other], channels) is None:
            raise UserError(
                f"pretrained: {path} does not fit by position. Tensor {number} is the first that differs:\n"
                f"  {name} {tuple(wanted[name].shape)} in the network\n"
                f"  {other} {tuple(offered[other].shape)} in the file\n"
                "Take away what only one of them has with `skip` (a head, for example), or it is another network."
            )
    if len(ours) != len(theirs):
        which, rest = ("network", ours[len(theirs) :]) if len(ours) > len(theirs) else ("file", theirs[len(ours) :])
        raise UserError(
            f"pretrained: {path} does not fit by position: {len(ours)} tensors in the network, {len(theirs)} in the "
            f"file. The first without a partner is {rest[0]} of the {which}; name what to leave out in `skip`."
        )
    return list(zip(ours, theirs, strict=True))


# Values ---------------------------------------------------------------------------------------------------------------


def _input_channels(own: State, given: State, pairs: list[tuple[str, str]]) -> tuple[int, int] | None:
    """Channels of the images, in the file and in the network, if the first convolution says that they differ."""
    for name, other in pairs:
        new, old = own[name].shape, given[other].shape
        if len(new) == 4:
            # Nets are trained on grey or colour images; any other number belongs to a layer inside.
            differs = len(old) == 4 and new[1] != old[1] and old[1] in (1, 3)
            return (old[1], new[1]) if differs else None
    return None


def _fit(own: Tensor, given: Tensor, channels: tuple[int, int] | None) -> Tensor | None:
    """The value for a tensor of the network, or None if the file's cannot be brought to its shape."""
    if own.shape == given.shape:
        return given
    new, old = own.shape, given.shape
    # Several convolutions can read the image: the branches of RepVGG and MobileOne.
    if len(new) == len(old) == 4 and (old[1], new[1]) == channels and (new[0], *new[2:]) == (old[0], *old[2:]):
        return adapt_input(given, new[1])
    return None


def adapt_input(weight: Tensor, channels: int) -> Tensor:
    """Weights of a first convolution for another number of input channels.

    To one channel: the sum. To more: repeated in turn, and scaled by old / new. It is what timm (`adapt_input_conv`)
    and smp do from three channels, here from any number.

    Args:
        weight: (O, I, h, w).
        channels: Wanted number of input channels, J.

    Returns:
        (O, J, h, w), same dtype.
    """
    n = weight.shape[1]
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight[:, [c % n for c in range(channels)]].float()
    return (repeated * (n / channels)).to(weight.dtype)


def _fitting(
    wanted: State, offered: State, pairs: list[tuple[str, str]], path: Path, channels: tuple[int, int] | None
) -> tuple[State, list[str]]:
    values, messages, wrong = {}, [], []
    for name, other in pairs:
        value = _fit(wanted[name], offered[other], channels)
        new, old = tuple(wanted[name].shape), tuple(offered[other].shape)
        if value is None:
            wrong.append(f"{name}: {old} in the file, {new} in the network")
            continue
        values[name] = value
        if new != old:
            messages.append(f"{name}: adapted from {old[1]} to {new[1]} input channels")
    if wrong:
        skip = ", ".join(dict.fromkeys(line.partition(":")[0].rpartition(".")[0] for line in wrong[:4]))
        raise UserError(
            f"pretrained: {len(wrong)} tensors of {path} have another shape:\n{bullet_list(wrong, 6)}\n"
            f"If these shall stay as initialised, write  skip: [{skip}]"
        )
    return values, messages


def _summary(spec: Pretrained, path: Path, n: int, own: State, given: State) -> str:
    line = f"loaded {n} tensors from {path}{f' into {spec.part}' if spec.part else ''}"
    for text, state in (("left as initialised", own), ("not taken", given)):
        names = [prefix for prefix in spec.skip if any(_under(name, prefix) for name in state)]
        line += f"; {text}: {', '.join(names)}" if names else ""
    return line


# What the weights expect ----------------------------------------------------------------------------------------------


def input_statistics(net: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, per colour (RGB, values 0 to 1), of the images an encoder was trained on.

    From timm's configuration of the network where it has one; from smp where its answer lies on this disk; else what
    is known of encoders of that name; else those of ImageNet. Nothing is looked up on the network.
    """
    for module in net.modules():
        known = getattr(module, "pretrained_cfg", None)
        if isinstance(known, dict) and known.get("mean") and known.get("std"):
            return list(known["mean"]), list(known["std"])
    # smp calls its networks "unet-resnet18" and the like, and does not tell the encoder its own name.
    name = str(getattr(net, "name", "")).partition("-")[2]
    mean, std = _downloaded_statistics(name) or next((v for k, v in OTHERS.items() if name.startswith(k)), IMAGENET)
    return list(mean), list(std)


def _downloaded_statistics(encoder_name: str) -> tuple[list[float], list[float]] | None:
    """What lies in the cache beside downloaded weights; smp itself would ask the network for half a minute."""
    from huggingface_hub import try_to_load_from_cache
    from segmentation_models_pytorch.encoders import (  # type: ignore[import-untyped]
        encoders,
        get_preprocessing_params,
    )

    for weights, place in encoders.get(encoder_name, {}).get("pretrained_settings", {}).items():
        if isinstance(try_to_load_from_cache(place["repo_id"], "config.json", revision=place["revision"]), str):
            found = get_preprocessing_params(encoder_name, weights)
            return found["mean"], found["std"]
    return None
