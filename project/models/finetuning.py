"""Fine-tuning of pretrained weights: frozen epochs, and layer-wise learning rates."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from project.errors import UserError, bullet_list
from project.models.pretrained import submodule

Named = dict[str, nn.Parameter]
Stage = list[tuple[str, nn.Module]]


@dataclass
class Finetuning:
    """How the backbone, the part with pretrained weights, is trained; the rest of the network is the head.

    Attributes:
        freeze_epochs: Number of epochs in which the backbone is frozen, while the head adapts; -1 is
            always.
        rate: Factor on the learning rate of the backbone.
        decay: Another factor for each stage further from the head: the last stage of the backbone has it once, the one
            before twice. Howard & Ruder (2018), ACL, section 3.2 (0.38 there); Bao et al. (2022), ICLR, "BEiT" (0.65 to
            0.75 for the blocks of transformers).
        part: Dotted name of the backbone; needed unless it is `encoder` or the network is from timm.

    Raises:
        UserError: A number makes no sense.
    """

    freeze_epochs: int = 0
    rate: float = 1.0
    decay: float = 1.0
    part: str | None = None
    frozen: bool = field(default=False, init=False)
    # What `apply` froze, by name: some networks have parameters that are never trained.
    _held: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.freeze_epochs < -1:
            raise UserError(
                f"finetuning.freeze_epochs is {self.freeze_epochs}; write a number of epochs, or -1 (always)"
            )
        if not self.rate > 0:
            raise UserError(f"finetuning.rate is {self.rate}; write a positive number, or freeze_epochs: -1")
        if not 0 < self.decay <= 1:
            raise UserError(f"finetuning.decay is {self.decay}; write a number above 0 and up to 1 (no decay)")

    def apply(self, net: nn.Module, epoch: int) -> None:
        """Freeze or unfreeze the backbone for an epoch (the first is 0). Call it again after resuming.

        With several devices: DistributedDataParallel never averages gradients of parameters that are frozen when
        it wraps the network, and the copies silently diverge once these are unfrozen. So call this first when training
        has started, with `find_unused_parameters=True`, unless the backbone stays frozen (-1): then call it before.

        Raises:
            UserError: There is no backbone, or nothing but the backbone to train.
        """
        _, parameters = backbone(net, self.part)
        self.frozen = self.freeze_epochs == -1 or epoch < self.freeze_epochs
        if not self.frozen:
            for name in self._held:
                parameters[name].requires_grad_(True)
            self._held = set()
            return
        if not any(p.requires_grad for name, p in net.named_parameters() if name not in parameters):
            raise UserError("finetuning: with the backbone frozen nothing is left to train; the network has no head")
        for name, parameter in parameters.items():
            if parameter.requires_grad:
                self._held.add(name)
                parameter.requires_grad_(False)
            # An optimizer passes over parameters without a gradient; one of 0 would still decay them.
            parameter.grad = None

    def train_mode(self, net: nn.Module) -> None:
        """Put a frozen backbone in evaluation mode; call it after every `net.train()`.

        Without it, batch normalization would go on adapting its statistics to the new images.
        """
        if self.frozen:
            for module in _modules(net, self.part):
                module.training = False

    def groups(self, net: nn.Module, lr: float, weight_decay: float | None = None) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer, from the first stage of the backbone to the head.

        They hold each trainable parameter once, those that are frozen for now as well: unfreezing needs no new groups.

        Args:
            net: The network.
            lr: Of the head.
            weight_decay: Of all groups; None leaves it to the optimizer.

        Returns:
            Dictionaries with "params", "lr", "name" ("backbone.0", ..., "head") and, if given, "weight_decay".
        """
        name, parameters = backbone(net, self.part)
        distances = _distances(net, name, parameters)
        by_distance: dict[int | None, list[nn.Parameter]] = {}
        for key, parameter in net.named_parameters():
            if parameter.requires_grad or key in self._held:
                by_distance.setdefault(distances.get(key), []).append(parameter)
        head = by_distance.pop(None, [])
        rates = {distance: lr * self.rate * self.decay**distance for distance in by_distance if distance is not None}
        groups = [
            {"params": by_distance[distance], "lr": rates[distance], "name": f"backbone.{i}"}
            for i, distance in enumerate(sorted(rates, reverse=True))
        ]
        groups += [{"params": head, "lr": lr, "name": "head"}] if head else []
        return [group | ({} if weight_decay is None else {"weight_decay": weight_decay}) for group in groups]


def backbone(net: nn.Module, part: str | None = None) -> tuple[str, Named]:
    """The part of a network that pretrained weights are loaded into.

    `part` where it is given; else `net.encoder` (segmentation_models_pytorch); else, for networks of timm, everything
    but the classifier.

    Returns:
        Its dotted name ("" if it is no submodule), and its parameters by their names in `net`.

    Raises:
        UserError: There is no such part.
    """
    name = part or ("encoder" if isinstance(getattr(net, "encoder", None), nn.Module) else "")
    if name:
        submodule(net, name, "finetuning.part")
        parameters = {k: p for k, p in net.named_parameters() if k.startswith(f"{name}.")}
    elif callable(getattr(net, "get_classifier", None)):
        head = {id(p) for classifier in _classifiers(net) for p in classifier.parameters()}
        parameters = {k: p for k, p in net.named_parameters() if id(p) not in head}
    else:
        raise UserError(
            f"finetuning: the network {type(net).__name__} has no `encoder` and is not from timm. Name in\n"
            f"finetuning.part the pretrained part:\n{bullet_list(child for child, _ in net.named_children())}"
        )
    return name, parameters


def _classifiers(net: nn.Module) -> list[nn.Module]:
    """Distilled transformers have two."""
    heads = net.get_classifier()  # type: ignore[operator]
    return [head for head in (heads if isinstance(heads, tuple | list) else (heads,)) if isinstance(head, nn.Module)]


def _modules(net: nn.Module, part: str | None) -> Iterator[nn.Module]:
    """The modules of the backbone."""
    name, _ = backbone(net, part)
    if name:
        yield from net.get_submodule(name).modules()
        return
    head = {id(module) for classifier in _classifiers(net) for module in classifier.modules()}
    for key, module in net.named_modules():
        # timm calls the dropout before the classifier head_drop or head.drop; it belongs to the head.
        dropout = key.startswith("head") and isinstance(module, nn.Dropout)
        if key and id(module) not in head and not dropout and not _holds(module, head):
            yield module


def _holds(module: nn.Module, ids: set[int]) -> bool:
    return any(id(inner) in ids for inner in module.modules())


# Stages ---------------------------------------------------------------------------------------------------------------


def _distances(net: nn.Module, name: str, parameters: Named) -> dict[str, int]:
    """How far from the head each parameter of the backbone is: 1 in its last stage, more before."""
    inside = net.get_submodule(name) if name else net
    prefix = f"{name}." if name else ""
    matched = next((m for m in inside.modules() if callable(getattr(m, "group_matcher", None))), None)
    if matched is not None:
        where = next(key for key, module in net.named_modules() if module is matched)
        stages = _stages_of_timm(matched, f"{where}." if where else "")
    else:
        stages = _stages_in_order(inside, prefix)
    inner = {key: stages.get(key, 0) for key in parameters}
    # timm counts layers between the last stage and the classifier (a normalization) as the head's.
    heads = [stages[key] for key in stages if key not in parameters]
    last = max(heads) if heads else max(inner.values(), default=0) + 1
    return {key: max(0, last - stage) for key, stage in inner.items()}


def _stages_of_timm(net: nn.Module, prefix: str) -> dict[str, int]:
    from timm.models import group_parameters

    layers = group_parameters(net, net.group_matcher(coarse=True), reverse=True)  # type: ignore[operator]
    return {f"{prefix}{name}": layer for name, layer in layers.items()}


def _stages_in_order(module: nn.Module, prefix: str) -> dict[str, int]:
    """Parameter -> stage, from the order of the children.

    Where that gives fewer than four stages (or the `depth` of an encoder of smp), the largest is opened: some networks
    keep all their blocks in one list.
    """
    least = min(4, getattr(module, "_depth", 4))
    units = [(prefix.rstrip("."), module)]
    while len(_joined(units)) < least:
        opened = [unit for unit in units if any(_numel(child) for child in unit[1].children())]
        if not opened:
            break
        at = units.index(max(opened, key=lambda unit: _numel(unit[1])))
        name, largest = units[at]
        dot = f"{name}." if name else ""
        units[at : at + 1] = [(f"{dot}{key}", child) for key, child in largest.named_children() if _numel(child)]
    return {
        f"{name}.{key}" if name else key: stage
        for stage, members in enumerate(_as_smp_says(module, _joined(units)))
        for name, unit in members
        for key, _ in unit.named_parameters()
    }


def _joined(units: Stage) -> list[Stage]:
    """Units in stages: a normalization belongs to the convolution before it."""
    stages: list[Stage] = []
    for name, unit in units:
        if stages and all(p.ndim < 2 for p in unit.parameters()):
            stages[-1].append((name, unit))
        else:
            stages.append([(name, unit)])
    return stages


def _as_smp_says(encoder: nn.Module, stages: list[Stage]) -> list[Stage]:
    """Join modules that smp counts as one stage; it names the last two. SegFormer's modules are not in order."""
    try:
        known = encoder.get_stages() if hasattr(encoder, "get_stages") else {}  # type: ignore[operator]
    except NotImplementedError:
        known = {}
    for parts in known.values():
        inside = {id(module) for part in parts for module in part.modules()}
        members = [stage for stage in stages if id(stage[0][1]) in inside]
        if members:
            at = stages.index(members[-1])
            stages[at] = [unit for stage in members for unit in stage]
            stages = [stage for stage in stages if stage not in members[:-1]]
    return stages


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
