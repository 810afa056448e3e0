"""Fine-tuning of pretrained weights: frozen epochs, and layer-wise learning rates."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from project.errors import UserError, bullet_list
from project.models.pretrained import submodule

Named = dict[str, nn.Parameter]
STAGES = 4  # of a backbone, at least, unless smp's encoder has fewer


@dataclass
class Finetuning:
    """How the backbone, the part with pretrained weights, is trained; the rest of the network is the head.

    Attributes:
        freeze_epochs: Number of epochs in which the backbone is frozen, while the head adapts; -1 is always.
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
        if self.freeze_epochs < -1 or not self.rate > 0 or not 0 < self.decay <= 1:
            raise UserError(
                f"finetuning: freeze_epochs is {self.freeze_epochs} (-1 is always), rate {self.rate} (above 0), "
                f"decay {self.decay} (above 0 and up to 1)"
            )

    def apply(self, net: nn.Module, epoch: int) -> None:
        """Freeze or unfreeze the backbone for an epoch (the first is 0). Call it again after resuming.

        With several devices: DistributedDataParallel never averages gradients of parameters that are frozen when
        it wraps the network, and the copies silently diverge once these are unfrozen. So call this first when training
        has started, with `find_unused_parameters=True`, unless the backbone stays frozen (-1): then call it before.

        Raises:
            UserError: There is no backbone, or nothing but the backbone to train.
        """
        parameters = backbone(net, self.part)
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
        if not self.frozen:
            return
        inside = {id(p) for p in backbone(net, self.part).values()}
        for module in net.modules():
            ids = [id(p) for p in module.parameters()]
            if ids and inside.issuperset(ids):
                module.eval()

    def groups(self, net: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Parameter groups "backbone.0" ... and "head", which learns with `lr`, for an optimizer.

        They hold each trainable parameter once, those that are frozen for now as well: unfreezing needs no new groups.
        """
        trainable = {k: p for k, p in net.named_parameters() if p.requires_grad or k in self._held}
        parameters = {k: p for k, p in backbone(net, self.part).items() if k in trainable}
        stages = _stages(net, self.part or ("encoder" if hasattr(net, "encoder") else ""))
        # timm counts layers between the last stage and the classifier (a normalization) as the head's.
        ends = [stages[key] for key in stages if key not in parameters and key in trainable]
        last = max(ends) if ends else max((stages.get(key, 0) for key in parameters), default=0) + 1
        by_distance: dict[int, list[nn.Parameter]] = {}
        for key, parameter in parameters.items():
            by_distance.setdefault(max(0, last - stages.get(key, 0)), []).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": by_distance[distance], "lr": lr * self.rate * self.decay**distance, "name": f"backbone.{i}"}
            for i, distance in enumerate(sorted(by_distance, reverse=True))
        ]
        head = [parameter for key, parameter in trainable.items() if key not in parameters]
        return groups + ([{"params": head, "lr": lr, "name": "head"}] if head else [])


def backbone(net: nn.Module, part: str | None = None) -> Named:
    """Parameters of the part of a network that pretrained weights are loaded into, by their names in `net`.

    `part` where it is given; else `net.encoder` (segmentation_models_pytorch); else, for networks of timm, everything
    but the classifier.

    Raises:
        UserError: There is no such part.
    """
    name = part or ("encoder" if isinstance(getattr(net, "encoder", None), nn.Module) else "")
    if name:
        submodule(net, name, "finetuning.part")
        return {k: p for k, p in net.named_parameters() if k.startswith(f"{name}.")}
    if not callable(getattr(net, "get_classifier", None)):
        raise UserError(
            f"finetuning: the network {type(net).__name__} has no `encoder` and is not from timm. Name in\n"
            f"finetuning.part the pretrained part:\n{bullet_list(child for child, _ in net.named_children())}"
        )
    heads = net.get_classifier()  # type: ignore[operator]  # distilled transformers have two
    modules = [head for head in (heads if isinstance(heads, tuple | list) else (heads,)) if isinstance(head, nn.Module)]
    head = {id(p) for module in modules for p in module.parameters()}
    return {k: p for k, p in net.named_parameters() if id(p) not in head}


def _stages(net: nn.Module, part: str) -> dict[str, int]:
    """Parameter -> number of its stage, from the image on: timm's if it knows them, else in the order of modules."""
    inside = net.get_submodule(part)
    for name, module in net.named_modules():
        if name.startswith(part) and callable(getattr(module, "group_matcher", None)):
            from timm.models import group_parameters

            layers = group_parameters(module, module.group_matcher(coarse=True), reverse=True)
            return {f"{name}.{key}".lstrip("."): layer for key, layer in layers.items()}
    units = [(part, inside)]
    # Some networks have all their blocks in one list: the largest module is opened until there are enough stages.
    while sum(map(_is_stage, units)) < min(STAGES, getattr(inside, "_depth", STAGES)):
        closed = [unit for unit in units if any(_size(child) for child in unit[1].children())]
        if not closed:
            break
        name, largest = max(closed, key=lambda unit: _size(unit[1]))
        children = [(f"{name}.{key}".lstrip("."), child) for key, child in largest.named_children() if _size(child)]
        at = [unit[1] for unit in units].index(largest)
        units[at : at + 1] = children
    stages, n = dict[str, int](), -1
    for unit in units:
        n += _is_stage(unit) or n < 0
        stages |= {f"{unit[0]}.{key}".lstrip("."): n for key, _ in unit[1].named_parameters()}
    return stages


def _is_stage(unit: tuple[str, nn.Module]) -> bool:
    """Whether a module is more than a normalization, which belongs to the convolution before it."""
    return any(p.ndim > 1 for p in unit[1].parameters())


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
