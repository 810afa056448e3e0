"""What a training refuses before anything is written: options, callbacks and metrics that break its promises.

The promises: the best checkpoint is that of the best validated weights; metrics are of whole images, each counted
once; a training can be resumed; nothing is reported as done that was not.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from project.checks.schedule import monitored_metrics
from project.data.datamodule import ImageDataModule
from project.errors import UserError, bullet_list, did_you_mean
from project.tasks.base import Task
from project.yaml_files import named_object


def _is_zero(value: Any) -> bool:
    return value is not None and value is not False and value == 0


def _is_set(value: Any) -> bool:
    return value is not None


NOT_VALIDATED = "weights that were never validated would be called the best: leave it out"
PRECISIONS = ("None", "32-true", "32", "16-mixed", "bf16-mixed", "16", "bf16")
# Key -> for which values it is refused, and why or what to write instead.
OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "trainer.precision": (
        lambda value: str(value) not in PRECISIONS,
        "normalization and metrics are computed in float32: write 32-true, 16-mixed or bf16-mixed",
    ),
    "trainer.max_epochs": (_is_zero, "no epoch would be trained: write 1 or more, or -1 for no limit"),
    "trainer.max_steps": (_is_zero, "no step would be trained: write 1 or more, or -1 for no limit"),
    "trainer.max_time": (_is_set, "it would end in the middle of an epoch: write length.minutes, a time budget"),
    "trainer.limit_train_batches": (_is_zero, "no step would be trained"),
    "trainer.limit_val_batches": (_is_zero, "there would be no best checkpoint; a small number is allowed"),
    "trainer.val_check_interval": (_is_zero, "no validation would take place"),
    "trainer.check_val_every_n_epoch": (_is_zero, "no validation would take place"),
    "trainer.overfit_batches": (
        bool,
        "it validates on training images: `make check` overfits one batch, --trainer.limit_train_batches trains on few",
    ),
    "trainer.enable_checkpointing": (lambda value: value is False, "there would be nothing to evaluate: leave it out"),
    "trainer.strategy": (
        lambda value: any(word in str(value).lower() for word in ("fsdp", "deepspeed")),
        "devices validate unequal numbers of images, and weights are saved whole: write ddp",
    ),
    "trainer.barebones": (bool, "it turns off checkpoints, logging and validation"),
    "trainer.use_distributed_sampler": (
        lambda value: value is True,
        "Lightning's sampler repeats samples, so that metrics would be wrong: leave it out",
    ),
    "trainer.reload_dataloaders_every_n_epochs": (bool, "a training with it cannot be resumed: leave it out"),
    "checkpoint.dirpath": (_is_set, "checkpoints are in the run folder: leave it out"),
    "checkpoint.filename": (
        lambda value: value == "last" or "/" in re.sub(r"{.*?}", "", value or ""),
        "it names the best checkpoint, in checkpoints/ of the run folder, beside last.ckpt",
    ),
    "checkpoint.save_top_k": (
        lambda value: value != 1,
        "only one checkpoint is the best: write 1; others can be kept by a ModelCheckpoint in trainer.callbacks",
    ),
    "checkpoint.save_on_exception": (bool, NOT_VALIDATED),
    "checkpoint.train_time_interval": (_is_set, NOT_VALIDATED),
    "checkpoint.every_n_train_steps": (_is_set, NOT_VALIDATED),
}
# Names of Lightning's callbacks, and of classes that are derived from them.
CALLBACKS = {
    "BackboneFinetuning": "write model.init_args.finetuning, which knows the parts of the network",
    "BatchSizeFinder": "another batch size is another experiment: type data.batch_size",
    "LearningRateFinder": "it sets one rate for all layers: try rates with `project tune`",
    "ModelPruning": "its masks change the names of weights: best.ckpt could not be loaded",
    "StochasticWeightAveraging": "its averages are neither validated nor saved: write WeightAveraging or "
    "EMAWeightAveraging of lightning.pytorch.callbacks",
}


def refuse_options(config: Namespace) -> None:
    """Raise one `UserError` for all options that would break a promise, before anything is built."""
    values = ((key, config.get(key), is_wrong, why) for key, (is_wrong, why) in OPTIONS.items())
    wrong = [
        f"{key} {json.dumps(value, default=str)}: {why}" for key, value, is_wrong, why in values if is_wrong(value)
    ]
    for spec in config.trainer.callbacks or ():
        wrong += _wrong_callback(spec)
    trainer = config.trainer
    epochs, every = trainer.max_epochs, trainer.check_val_every_n_epoch
    if every and epochs not in (None, -1) and every > epochs:
        wrong.append(f"trainer.check_val_every_n_epoch {every}: the {epochs} epochs end before its first validation")
    if wrong:
        raise UserError(f"a training does not take\n{bullet_list(wrong, 20)}")


def _wrong_callback(spec: Any) -> list[str]:
    path, arguments = str(spec.get("class_path", "")), spec.get("init_args") or {}
    bases = getattr(named_object(path), "__mro__", ())
    if any(base.__module__.startswith("project.") for base in bases):
        return []
    names = {base.__name__ for base in bases if base.__module__.startswith("lightning.")}
    wrong = [f"{path}: {CALLBACKS[name]}" for name in CALLBACKS if name in names]
    overwrites = arguments.get("filename") in ("best", "last") or arguments.get("save_last")
    if "ModelCheckpoint" in names and overwrites and arguments.get("dirpath") is None:
        wrong.append(f"{path}: it would overwrite best.ckpt or last.ckpt; give it a filename, and no save_last")
    return wrong


def refuse_unknown_metrics(trainer: Trainer, task: Task) -> None:
    """Raise a `UserError` with the nearest names if a callback or schedule monitors a metric that nothing computes.

    Called when a validation is done. Code outside the project may log metrics of its own in training.
    """
    known = ["train/loss", *(name for name in trainer.callback_metrics if name.startswith("val/"))]
    modules = [type(item).__module__ for item in (task, *trainer.callbacks)]  # type: ignore[attr-defined]
    logs_others = not all(module.startswith(("project.", "lightning.")) for module in modules)
    wrong = [
        f'{key}: there is no metric "{metric}".{did_you_mean(metric, known)}'
        for key, metric, _ in monitored_metrics(trainer, task)
        if metric not in known and (metric.startswith("val/") or not logs_others)
    ]
    if wrong:
        raise UserError("\n".join([*wrong, f"Metrics that can be monitored:\n{bullet_list(known, 40)}"]))


# Task and data --------------------------------------------------------------------------------------------------------


def refuse_unfit(config: Namespace, task: Task, datamodule: ImageDataModule, n_devices: int) -> None:
    """Raise a `UserError` for what would fail, or be wrong without a message, only after a while.

    That is: no batch, no optimizer, freezing with an unfit strategy, or pretrained weights that have seen the
    validation images. The datamodule is set up for "fit".
    """
    datamodule.check_training(n_devices)
    _refuse_seen_fold(config, datamodule)
    if task.optimizer is None and type(task).configure_optimizers is Task.configure_optimizers:
        raise UserError(
            "the experiment names no optimizer; add\n"
            "  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}"
        )
    freezes = task.finetuning is not None and task.finetuning.freeze_epochs != 0
    if freezes and n_devices > 1 and "find_unused" not in str(config.trainer.strategy):
        raise UserError("freezing on several devices needs --trainer.strategy ddp_find_unused_parameters_true")


def _refuse_seen_fold(config: Namespace, datamodule: ImageDataModule) -> None:
    """Refuse weights of a run that was trained on the images of this fold."""
    spec, fold = config.model.init_args.get("pretrained"), datamodule.fold
    if spec is None or fold is None:
        return
    path = Path(spec.file).expanduser()
    files = [folder / "config.yaml" for folder in (path, *path.parents[:2])]  # a run folder, or a checkpoint in it
    data = next((yaml.safe_load(file.read_text())["data"] for file in files if file.is_file()), None)
    if data and data["dataset"] == datamodule.dataset and data.get("fold") != fold:
        raise UserError(
            f"pretrained: {spec.file} was trained with fold {data.get('fold')} for validation, so that it has seen "
            f"the validation images of fold {fold}; train that experiment with FOLD={fold} first"
        )
