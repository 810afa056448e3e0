"""One run of a model: its task with the best weights, built from the run folder alone, applied whole or in tiles."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor

from project.data.statistics import image_statistics
from project.errors import UserError
from project.inference.tiling import tiled, whole_image_norms
from project.models.checkpoint_files import best_checkpoint
from project.provenance import file_hash
from project.runs.run_folder import Run
from project.tasks.base import DATA_ATTRIBUTES, Task
from project.training.evaluate import load_weights, read_checkpoint, rebuilt

TILE = 1024  # side of tiles in pixels, unless another is given


class Member:
    """One run of a model: its task with its weights, on a device, with the precision of the evaluation."""

    def __init__(self, run: Run, task: Task, device: torch.device, precision: Precision, checkpoint: Path) -> None:
        self.run, self.device, self.precision = run, device, precision
        precision.convert_module(task)
        self.task: Task = task.to(device).eval()
        commit, weights = run.read_provenance().commit, file_hash(checkpoint)
        self.origin = {"name": run.name, "commit": commit, "checkpoint": checkpoint.name, "weights": weights}
        # What must agree for runs to be averaged.
        self.signature = {"task": type(task).__name__, "classes": task.classes} | task.prediction_settings
        for role in ("image", "target", "value"):
            statistics = task.statistics.get(role, [])
            names = channel_names(task.channels.get(role), len(statistics))
            self.signature[role] = [(c.get("dtype"), name) for c, name in zip(statistics, names, strict=True)]

    def __call__(self, raw: np.ndarray, tile: int | None) -> np.ndarray:
        """Raw (C, H, W) -> float32 in the target's units (C', H, W), or (K,); UserError without enough memory."""
        raw = np.require(raw, raw.dtype.newbyteorder("="), ["C", "W"])
        # Each tile is normalized as part of the whole image.
        levels = [image_statistics(raw)] if self.task.normalize_input.by_image else []
        statistics = [torch.from_numpy(level)[None].to(self.device) for level in levels]

        def predict(x: Tensor) -> Tensor:
            return torch.as_tensor(self.task(self.precision.convert_input(x.to(self.device)), *statistics))

        try:
            with torch.inference_mode(), self.precision.forward_context():
                x = torch.from_numpy(raw)[None]
                if tile:
                    how = predict, x, tile, self.task.size_divisor
                    with whole_image_norms(self.task.net, *how):
                        values = tiled(*how)
                else:
                    values = predict(x).float().cpu()
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or is_oom_error(error)):
                raise
            height, width = (tile, tile) if tile else raw.shape[1:]
            smaller = min(tile or TILE, *raw.shape[1:]) // 2
            advice = f"take a smaller --tile, such as {smaller}" if self.task.is_dense else "take --accelerator cpu"
            raise UserError(f"not enough memory on {self.device} for {height} x {width} pixels; {advice}") from error
        return np.asarray(values[0].numpy())


def channel_names(names: list[str] | None, n: int) -> list[str]:
    """The names of `n` channels, numbers if there are none."""
    return list(names) if names and len(names) == n else [str(i) for i in range(n)]


def load_member(run: Run, accelerator: str | None, trusted: bool) -> Member:
    """Build a run from its folder, with its best weights; arguments as for `project.inference.model.load`."""
    path = best_checkpoint(run.folder)
    checkpoint = read_checkpoint(path)
    data: dict[str, Any] = checkpoint.get("data") or {}
    if not isinstance(data.get("statistics"), dict):
        raise UserError(f'"{run.folder}": the checkpoint does not hold the statistics of its data; train again')
    attributes = {name: data[name] for name in DATA_ATTRIBUTES if name in data}
    overrides = [f"--trainer.accelerator={accelerator}"] if accelerator else []
    # Networks are initialized randomly before they get their weights; the caller's random state must not change.
    with torch.random.fork_rng(devices=[]), rebuilt(run, overrides, trusted, attributes=attributes) as cli:
        load_weights(cli, checkpoint, path)
    if hasattr(cli.model, "background") and "background" not in data:
        raise UserError(f"{run.name} is of an old version, which did not record the background class; train again")
    if getattr(cli.model.net, "oracle", False):
        raise UserError(f"{run.name} is an oracle, which has to see the target: it cannot predict")
    strategy = cli.trainer.strategy
    return Member(run, cli.model, strategy.root_device, strategy.precision_plugin, path)
