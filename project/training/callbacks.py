"""CudnnBenchmark: speed of GPUs; CurrentBatchNorm: statistics of batch norm that belong to the validated weights."""

from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn.modules.batchnorm import _BatchNorm


class CudnnBenchmark(Callback):
    """Let cuDNN try its algorithms where batches have one size, and multiply matrices in TF32 on GPUs.

    Training batches have one size. In validation each new size would be tried again, which takes longer than it saves:
    it is on there only if all images have one size. `trainer.benchmark` and `trainer.deterministic` win.

    Args:
        config: The section `trainer`.
    """

    def __init__(self, config: Any) -> None:
        self.chooses = config.benchmark is None and not config.deterministic

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.strategy.root_device.type == "cuda" and torch.get_float32_matmul_precision() == "highest":
            torch.set_float32_matmul_precision("high")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reader = trainer.datamodule.reader("test" if trainer.testing else "val")  # type: ignore[attr-defined]
        self._set(len({shape[1:] for shape in reader.shapes["image"]}) == 1)

    on_validation_end = on_train_start
    on_test_start = on_validation_start

    def _set(self, on: bool) -> None:
        if self.chooses:
            torch.backends.cudnn.benchmark = on


class CurrentBatchNorm(Callback):
    """Before each validation, compute the statistics of batch norm with the current weights, on the last batches.

    Running averages are over the weights of the last ten steps or so, in the first epoch also over the initial values.
    While weights change fast, validation then measures a network that never was: Dice 0.19 for 0.69 on the demo after
    13 steps. As in precise batch norm (Wu and Johnson, 2021, arXiv:2105.07576, section 3), without a further pass.
    It must come after `WeightAveraging` in the list of callbacks, whose average is validated.

    Args:
        n_batches: Of the epoch's last batches, not augmented.
    """

    def __init__(self, n_batches: int = 4) -> None:
        self.batches: deque[Any] = deque(maxlen=n_batches)
        self.statistics: list[dict[str, Any]] = []  # of each layer, during a validation

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A training that resumes at an epoch has no earlier batches either.
        self.batches.clear()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the running averages of layers that are trained."""
        layers = _trained_layers(pl_module)
        task: Any = pl_module
        if not (layers and self.batches and trainer.state.fn == TrainerFn.FITTING):
            return
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
            layer.momentum = None  # the mean of all batches
        for batch in self.batches:
            task.forward_batch(batch)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.eval()
            layer.momentum = momentum
            for values in (layer.running_mean, layer.running_var):
                if trainer.world_size > 1 and isinstance(values, torch.Tensor):
                    values.copy_(trainer.strategy.reduce(values.clone(), reduce_op="mean"))
            self.statistics.append({name: value.clone() for name, value in layer.named_buffers()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where averaged weights were validated, the current ones have their statistics back: set them again."""
        for layer, values in zip(_trained_layers(pl_module) if self.statistics else [], self.statistics, strict=True):
            layer.load_state_dict(values, strict=False)
        self.statistics = []


def _trained_layers(module: LightningModule) -> list[_BatchNorm]:
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
    return [layer for layer in layers if layer.weight is None or layer.weight.requires_grad]
