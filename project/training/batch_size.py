"""Batch sizes on a GPU: time per sample, memory, and the largest that fits."""

import gc
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error

from project.errors import UserError
from project.models.downloads import without_downloads
from project.training.lightning_cli import ExperimentCLI, temporary_experiment

STEPS = 4  # per batch size; the first is not timed
# One device, no validation, nothing written.
ALONE = {
    **{"devices": 1, "num_nodes": 1, "strategy": "auto", "max_epochs": -1, "max_steps": STEPS, "max_time": None},
    **{"limit_train_batches": 1.0, "limit_val_batches": 0, "num_sanity_val_steps": 0, "fast_dev_run": False},
    **{"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False},
}


def try_batch_sizes(experiment: str, content: dict[str, Any], overrides: list[str]) -> str:
    """Train some steps with batches of 1, 2, 4 ... samples until one does not fit, or the data has no more samples.

    Returns:
        A table.

    Raises:
        UserError: There is no GPU.
    """
    with temporary_experiment(experiment, without_downloads(content), overrides) as cli:
        if cli.trainer.strategy.root_device.type != "cuda":
            raise UserError(
                "batch sizes are tried on GPUs only: a CPU would swap instead of refusing one. If memory is short, "
                "lower data.batch_size or data.crop"
            )
        cli.model.lr_scheduler = None  # may span the training
        lines, size = ["batch size  ms per sample  GB", "----------  -------------  ----"], 1
        while size <= len(cli.datamodule.datasets["train"]):
            measured = _measure(cli, size)
            if measured is None:
                break
            lines.append(f"{size:10}  {1e3 * measured[0]:13.2f}  {measured[1] / 1e9:4.1f}")
            size *= 2
        if size == 1:
            raise UserError("not even one sample fits: lower data.crop")
        tried_all = size > len(cli.datamodule.datasets["train"])
        lines.append(
            f"the data has no larger batch than {size // 2}" if tried_all else f"{size} do not fit, {size // 2} do"
        )
    return "\n".join(lines)


def _measure(cli: ExperimentCLI, size: int) -> tuple[float, int] | None:
    """Seconds per sample and peak bytes of some training steps; None if the batch does not fit."""
    clock = _Clock()
    cli.datamodule.batch_size = size
    torch.cuda.reset_peak_memory_stats()
    try:
        cli.instantiate_trainer(**ALONE, callbacks=[clock]).fit(cli.model, datamodule=cli.datamodule)
    except RuntimeError as error:
        if not is_oom_error(error):
            raise
        return None
    finally:
        gc.collect()
        garbage_collection_cuda()
    return clock.seconds / (STEPS - 1) / size, torch.cuda.max_memory_reserved()


class _Clock(Callback):
    """Measures all steps but the first."""

    seconds, started = 0.0, 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds, self.started = (now - self.started, self.started) if self.started else (0.0, now)
