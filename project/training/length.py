"""Length of a training: optimizer steps or minutes -> epochs, and how often they are validated."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import EarlyStopping

from project.data.datamodule import ImageDataModule
from project.errors import UserError
from project.training.checkpoints import LastCheckpoint

MIN_EPOCHS = 5  # of a training whose length is in steps: epochs of large data are cut
MIN_EPOCH_BATCHES = 10  # not shorter
MIN_VALIDATIONS, MAX_VALIDATIONS = 3, 50
TRAINING_COST = 3  # of a pixel in training, relative to validation: the backward pass costs twice the forward pass


@dataclass
class Length:
    """How long a training is where `trainer.max_epochs` and `trainer.max_steps` leave it open.

    Args:
        steps: Optimizer steps, rounded to whole epochs; null is no limit.
        share: Of these steps; a preset for small data shortens each experiment with it.
        minutes: Time budget from start to metrics, instead of `steps`.
        validation_share: Of the time, at most, for validation; but three validations at least. It is in use where
            `trainer.check_val_every_n_epoch` and `trainer.val_check_interval` are null.
    """

    steps: int | None = 2000
    share: float = 1.0
    minutes: float | None = None
    validation_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("steps", "share", "minutes"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise UserError(f"length.{name} is {value}: write a number above 0")
        if not 0 < self.validation_share <= 1:
            raise UserError(f"length.validation_share is {self.validation_share}: write a share, such as 0.05")


def set_length(cli: Any) -> None:
    """Set epochs, batches per epoch and validation interval where they are open; in the configuration too.

    The datamodule of the `ExperimentCLI` is set up for "fit".
    """
    config, trainer, data, length = cli.config.trainer, cli.trainer, cli.datamodule, cli.config.length
    if trainer.fast_dev_run or hasattr(cli.model.net, "fit"):
        return
    n, accumulated = cli.datamodule.n_training_batches(cli.trainer), config.accumulate_grad_batches or 1
    is_open = config.max_epochs in (None, -1) and config.max_steps == -1
    if is_open and n and length.minutes is None and length.steps is not None:
        batches = max(1, round(length.steps * length.share)) * accumulated
        if n > (longest := max(MIN_EPOCH_BATCHES, batches // MIN_EPOCHS)):
            n = longest
            config.limit_train_batches = trainer.limit_train_batches = n
        config.max_epochs = trainer.fit_loop.max_epochs = max(1, round(batches / n))
    if not cli.chooses_validation:
        interval, longest, of = config.val_check_interval, n, "an epoch"
        if config.check_val_every_n_epoch is None:  # it counts batches across epochs
            longest, of = n * (config.max_epochs or -1), "the training"
        if isinstance(interval, int) and 0 < longest < interval:
            raise UserError(f"trainer.val_check_interval {interval} is more than the {longest} batches of {of}")
        return
    every = None  # as it was typed: the clock decides
    if length.minutes is None and n:
        epochs = config.max_epochs if config.max_epochs not in (None, -1) else math.inf
        epochs = min(epochs, config.max_steps * accumulated / n if config.max_steps != -1 else math.inf)
        every = 1 if counts_epochs(cli) else validation_interval(n, epochs, data, length.validation_share)
        trainer.check_val_every_n_epoch = every
    config.check_val_every_n_epoch = every
    for callback in trainer.callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.only_validated = True


def counts_epochs(cli: Any) -> bool:
    """Whether a callback or schedule waits for a number of epochs, each of which has to be validated."""
    waits = str((cli.config.get("lr_scheduler") or {}).get("class_path")).endswith("ReduceLROnPlateau")
    return waits or any(isinstance(callback, EarlyStopping) for callback in cli.trainer.callbacks)


def validation_interval(n_batches: int, epochs: float, data: ImageDataModule, share: float) -> int:
    """Epochs between two validations, from numbers of pixels: the same on any machine.

    An epoch has `n_batches` on each device. Validation takes at most a share of the time, but for `MIN_VALIDATIONS`.
    """
    areas = {split: [math.prod(s[1:]) for s in data.reader(split).shapes["image"]] for split in ("train", "val")}
    crop = data.crop**2 if data.crop else float(np.mean(areas["train"]))
    training = TRAINING_COST * n_batches * data.batch_size * crop
    wanted = sum(areas["val"]) * (1 - share) / (share * training)
    if epochs < math.inf:
        wanted = min(max(wanted, epochs / MAX_VALIDATIONS), epochs // MIN_VALIDATIONS)
    return max(1, math.ceil(wanted))


def describe_length(cli: Any) -> str:
    """Length of a training, its validations, and samples of a step, in one line.

    Batch and learning rate are not scaled with the number of devices.
    """
    config, minutes, n = cli.config.trainer, cli.config.length.minutes, cli.datamodule.n_training_batches(cli.trainer)
    size, devices, batches = cli.datamodule.batch_size, cli.trainer.world_size, cli.trainer.accumulate_grad_batches
    step = f"{size} samples{f' x {devices} devices' * (devices > 1)}{f' x {batches} batches' * (batches > 1)}"
    step += f" = {size * devices * batches} samples" * (devices * batches > 1)
    every = config.check_val_every_n_epoch
    validated = {None: "", 1: ", each validated"}.get(every, f", every {every} validated")
    length = f"{config.max_epochs} epochs of {n} batches{validated}"
    if minutes is not None:
        length = f"{minutes:g} minutes from start to metrics, epochs of {n} batches"
    elif config.max_epochs in (None, -1):
        length = f"{config.max_steps} steps, epochs of {n} batches{validated}"
    return f"length: {length}; a step: {step}"
