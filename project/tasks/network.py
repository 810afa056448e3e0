"""The network of a task: normalization of its input, padding, pretrained weights, freezing, and its optimizer."""

import logging
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional

from project.data.batch import Tensors
from project.errors import UserError
from project.models.finetuning import Finetuning
from project.models.pretrained import Pretrained, input_statistics, load_pretrained
from project.models.unused import drop_unused
from project.optimizers import build_optimizers, follow_clock
from project.transforms.normalize import Method, Normalize

log = logging.getLogger("project")


class NormalizedNetwork(LightningModule):
    """A network with the normalization of its input, so that this is stored in the checkpoint and cannot change.

    Args:
        net: Any module that maps normalized (B, C, H, W) to (B, C', H, W) or (B, K).
        statistics: One dictionary per image channel, of the training split.
        input_normalization: See `project.transforms.normalize.Normalize`.
        pretrained: Weights from a file; see `project.models.pretrained.Pretrained`.
        finetuning: Freezing, and learning rates by layer; see `project.models.finetuning.Finetuning`.
        size_divisor: Height and width are padded to a multiple of this, at the lower right, by repeating the border,
            and the output is cropped: encoders halve their input several times.
        compile: Compile the network with `torch.compile`: a minute or more at first, then faster steps.
        optimizer: A class of optimizers or a `functools.partial` of it, or `class_path` and `init_args`; AdamW by
            default.
        lr_scheduler: The same; none by default.
    """

    clock: Any = None  # with a time budget: has the `progress` of the training, from 0 to 1

    def __init__(
        self,
        net: nn.Module,
        statistics: list[dict[str, Any]] | None,
        input_normalization: Method = "mean_std",
        pretrained: Pretrained | None = None,
        finetuning: Finetuning | None = None,
        size_divisor: int = 32,
        compile: bool = False,
        optimizer: Any = None,
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__()
        drop_unused(net)
        self.loaded_weights = load_pretrained(net, pretrained) if pretrained else []
        for line in self.loaded_weights:
            log.info("%s", line)
        # Channels last is faster for convolutions on CPUs and recent GPUs, but instance norm copies such arrays.
        has_instance_norm = any(isinstance(module, nn.InstanceNorm2d) for module in net.modules())
        self.layout = torch.contiguous_format if has_instance_norm else torch.channels_last
        self.net = net.to(memory_format=self.layout)
        if compile:
            self.net.compile()
        self.size_divisor, self.finetuning = size_divisor, finetuning
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        encoder = input_statistics(net) if input_normalization == "encoder" else None
        self.normalize_input = Normalize(statistics, input_normalization, encoder)

    def check_baseline(self, n_classes: int) -> None:
        """Raise a `UserError` for a baseline that is made for another number of classes."""
        n = getattr(self.net, "classes", n_classes)
        if hasattr(self.net, "fit") and n != n_classes:
            raise UserError(f"{type(self.net).__name__} is for {n} classes, and there are {n_classes}")

    def network_input(self, batch: Tensors) -> Tensor:
        """The normalized `image` of a batch, (B, C, H, W) float32."""
        levels = batch["image_statistics"] if self.normalize_input.by_image else None
        return torch.as_tensor(self.normalize_input(batch["image"], levels))

    def apply_net(self, x: Tensor, *target: Tensor) -> Tensor:
        """The network on normalized input of any size; float32 whatever the precision of training.

        Oracles, baselines that may see the target, get it as second argument.
        """
        height, width = x.shape[-2:]
        pad = (-height) % self.size_divisor, (-width) % self.size_divisor
        if any(pad):
            x = functional.pad(x, (0, pad[1], 0, pad[0]), mode="replicate")
        output = self.net(x.contiguous(memory_format=self.layout), *target)
        if not isinstance(output, Tensor):
            raise UserError(
                f"the network {type(self.net).__name__} returns a {type(output).__name__}; a task needs one tensor.\n"
                "Write a module around it whose forward returns the tensor to train on, such as  self.net(x)[0],\n"
                "and name that module in net.class_path"
            )
        output = output.float()
        if output.ndim == 4:
            output = output[..., :height, :width]
        return output.contiguous()

    def train(self, mode: bool = True) -> Self:
        """As of every module; what is frozen stays in evaluation mode, or its batch statistics would drift."""
        super().train(mode)
        if mode and self.finetuning:
            self.finetuning.train_mode(self.net)
        return self

    def on_train_start(self) -> None:
        """Freeze; a training that is resumed in the middle of an epoch does not start the epoch."""
        self.freeze_for_epoch()

    def freeze_for_epoch(self) -> None:
        """Freeze or unfreeze the backbone as this epoch asks."""
        if self.finetuning:
            self.finetuning.apply(self.net, self.current_epoch)
            self.train()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """What the optimizer trains, with learning rates by layer where fine-tuning asks for them; `lr` of the head."""
        if self.finetuning:
            groups = self.finetuning.groups(self.net, lr)
            inside = {id(p) for p in self.net.parameters()}
            groups[-1]["params"] += [p for p in self.parameters() if p.requires_grad and id(p) not in inside]
            return groups
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return build_optimizers(self, self.optimizer, self.lr_scheduler)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """A step of the schedule; with a time budget, as many as fit the time that is used."""
        if getattr(scheduler, "follows_clock", False):
            follow_clock(scheduler, self.clock.progress)
        else:
            super().lr_scheduler_step(scheduler, metric)
