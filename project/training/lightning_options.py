"""Options of Lightning's Trainer, ModelCheckpoint and callbacks that could undermine what a training promises.

The promises: the best checkpoint is that of the best validated weights; metrics are of whole images, each counted
once; a training can be resumed; nothing is reported as done that was not. Each option is allowed, handled by the
project, or refused for some values. A test compares these tables with the arguments of the installed Lightning.
"""

import importlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from jsonargparse import Namespace

from project.errors import UserError, bullet_list


@dataclass(frozen=True)
class Option:
    """What is done about an option.

    Attributes:
        kind: "refused" options are refused for the values for which `wrong` holds, and allowed otherwise.
        why: How it is handled, or why it is refused and what to write instead.
        wrong: Whether a value is refused.
    """

    kind: Literal["allowed", "handled", "refused"]
    why: str = ""
    wrong: Callable[[Any], bool] = lambda value: False


def _allowed(why: str = "") -> Option:
    return Option("allowed", why)


def _handled(why: str) -> Option:
    return Option("handled", why)


def _refused(wrong: Callable[[Any], bool], why: str) -> Option:
    return Option("refused", why, wrong)


def _zero(value: Any) -> bool:
    return value is not None and value is not False and value == 0


TRAINER: dict[str, Option] = {
    "accelerator": _handled("one that is not there is a short error"),
    "strategy": _handled("samples are shared out by the project; freezing on several devices needs find_unused"),
    "devices": _allowed(),
    "num_nodes": _allowed(),
    "precision": _refused(
        lambda value: str(value) not in ("None", "32-true", "32", "16-mixed", "bf16-mixed", "16", "bf16"),
        "normalisation and metrics are computed in float32: write 32-true, 16-mixed or bf16-mixed",
    ),
    "logger": _handled("null takes those of --logger"),
    "callbacks": _handled("see CALLBACKS"),
    "fast_dev_run": _handled("leaves no run behind"),
    "max_epochs": _refused(_zero, "no epoch would be trained: write 1 or more, or -1 for no limit"),
    "min_epochs": _allowed(),
    "max_steps": _refused(_zero, "no step would be trained: write 1 or more, or -1 for no limit"),
    "min_steps": _allowed(),
    "max_time": _handled("stops after a step, with a checkpoint to resume from"),
    "limit_train_batches": _refused(_zero, "no step would be trained"),
    "limit_val_batches": _refused(
        _zero, "without validation there is no best checkpoint and there are no metrics; a small number is allowed"
    ),
    "limit_test_batches": _allowed("a training never tests"),
    "limit_predict_batches": _allowed("a training never predicts"),
    "overfit_batches": _refused(
        bool,
        "it replaces the project's samplers, and validates on training images: `make check` overfits one batch, "
        "--trainer.limit_train_batches trains on few",
    ),
    "val_check_interval": _refused(_zero, "no validation would take place"),
    "check_val_every_n_epoch": _refused(_zero, "no validation would take place"),
    "num_sanity_val_steps": _handled("metrics that are monitored are looked for in it"),
    "log_every_n_steps": _allowed("losses and metrics are logged at the end of each epoch"),
    "enable_checkpointing": _refused(
        lambda value: value is False, "without checkpoints there is nothing to evaluate: leave it out"
    ),
    "enable_progress_bar": _handled("null shows it on terminals"),
    "enable_model_summary": _allowed(),
    "accumulate_grad_batches": _handled("a training is left and resumed between whole steps only"),
    "gradient_clip_val": _handled("no fused optimizer in mixed precision"),
    "gradient_clip_algorithm": _allowed(),
    "deterministic": _handled("turns off the search for fast kernels"),
    "benchmark": _handled("null chooses by the sizes of images"),
    "inference_mode": _allowed(),
    "use_distributed_sampler": _refused(
        lambda value: value is True, "Lightning's sampler repeats samples, so that metrics would be wrong: leave it out"
    ),
    "profiler": _allowed(),
    "detect_anomaly": _handled("losses are looked at in each step"),
    "barebones": _refused(bool, "it turns off checkpoints, logging and validation"),
    "plugins": _allowed(),
    "sync_batchnorm": _allowed(),
    "reload_dataloaders_every_n_epochs": _refused(
        bool, "a loader that is made again during a training cannot be resumed, and reads the same data"
    ),
    "default_root_dir": _handled("is the run folder"),
    "enable_autolog_hparams": _allowed(),
    "model_registry": _allowed(),
}

CHECKPOINT: dict[str, Option] = {
    "dirpath": _refused(lambda value: value is not None, "checkpoints are in the run folder: leave it out"),
    "filename": _refused(
        lambda value: value == "last" or "/" in re.sub(r"{.*?}", "", value or ""),
        "it names the best checkpoint, in checkpoints/ of the run folder, beside last.ckpt",
    ),
    "monitor": _refused(
        lambda value: not value, "the best checkpoint is that of a metric: name one, such as val/loss with mode min"
    ),
    "verbose": _allowed(),
    "save_last": _handled("last.ckpt is that of the last epoch; false writes none, and nothing can be resumed"),
    "save_top_k": _refused(
        lambda value: value != 1,
        "only one checkpoint is the best: write 1; others can be kept by a ModelCheckpoint in trainer.callbacks",
    ),
    "save_on_exception": _refused(bool, "weights that were never validated would be called the best: leave it out"),
    "save_weights_only": _allowed("such a run cannot be resumed, and says so"),
    "mode": _handled("the direction of a metric that the task knows is checked"),
    "auto_insert_metric_name": _allowed(),
    "every_n_train_steps": _handled("how often last.ckpt is written; the best is chosen after each validation"),
    "train_time_interval": _refused(
        lambda value: value is not None,
        "weights that were never validated would be called the best: every_n_train_steps writes last.ckpt",
    ),
    "every_n_epochs": _handled("how often last.ckpt is written; the best is chosen after each validation"),
    "save_on_train_epoch_end": _handled("metrics are compared only with the weights that they are of"),
    "enable_version_counter": _allowed(),
}

# By the names of Lightning's classes; classes that are derived from them are treated alike.
CALLBACKS: dict[str, Option] = {
    "BackboneFinetuning": _refused(bool, "write model.init_args.finetuning, which knows the parts of the network"),
    "BaseFinetuning": _allowed(),
    "BasePredictionWriter": _allowed(),
    "BatchSizeFinder": _refused(bool, "another batch size is another experiment: `python -m project batch` tries some"),
    "Callback": _allowed(),
    "Checkpoint": _allowed(),
    "DeviceStatsMonitor": _allowed(),
    "EarlyStopping": _handled("monitor and mode are checked, and an early stop is reported with its reason"),
    "GradientAccumulationScheduler": _allowed(),
    "LambdaCallback": _allowed(),
    "LearningRateFinder": _refused(
        bool,
        "it sets one rate for all layers and none for schedules: write project.optimizers.FindLearningRate",
    ),
    "LearningRateMonitor": _allowed(),
    "ModelCheckpoint": _handled("is one beside the best; it may not write best.ckpt or last.ckpt"),
    "ModelPruning": _refused(bool, "its masks change the names of weights: best.ckpt could not be loaded"),
    "ModelSummary": _allowed(),
    "OnExceptionCheckpoint": _allowed(),
    "ProgressBar": _allowed(),
    "RichModelSummary": _allowed(),
    "RichProgressBar": _allowed(),
    "StochasticWeightAveraging": _refused(
        bool,
        "its averages are neither validated nor saved: write lightning.pytorch.callbacks.WeightAveraging, or "
        "EMAWeightAveraging",
    ),
    "SpikeDetection": _allowed(),
    "ThroughputMonitor": _allowed(),
    "Timer": _allowed(),
    "TQDMProgressBar": _allowed(),
    "EMAWeightAveraging": _handled("before the first average the weights themselves are validated"),
    "WeightAveraging": _handled("before the first average the weights themselves are validated"),
}


def check_options(config: Namespace) -> None:
    """Refuse a configuration of a training that would break a promise.

    Args:
        config: Parsed, before anything is built.

    Raises:
        UserError: All that is refused, each with what to write instead.
    """
    trainer = config.trainer
    wrong = [
        f"{section}.{name} {_text(values.get(name))}: {option.why}"
        for section, values, options in (("trainer", trainer, TRAINER), ("checkpoint", config.checkpoint, CHECKPOINT))
        for name, option in options.items()
        if name in values and option.wrong(values.get(name))
    ]
    for spec in trainer.callbacks or ():
        wrong += _wrong_callback(spec)
    for unit in ("epochs", "steps"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        if least and most is not None and 0 < most < least:
            wrong.append(f"trainer.min_{unit} {least} is above trainer.max_{unit} {most}, which would win")
    if config.checkpoint.every_n_epochs == 0:
        wrong.append("checkpoint.every_n_epochs 0: write 1 or more; save_last: false writes no last.ckpt")
    if wrong:
        raise UserError(f"a training does not take\n{bullet_list(wrong, 20)}")


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _wrong_callback(spec: Any) -> list[str]:
    path = str(spec.get("class_path", ""))
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    for level in getattr(found, "__mro__", (found,)):
        if level.__module__.startswith("project."):
            return []
        option = CALLBACKS.get(level.__name__) if level.__module__.startswith("lightning.") else None
        if option and option.wrong(True):
            return [f"{path}: {option.why}"]
        if option and level.__name__ == "EMAWeightAveraging" and _never_averages(spec.init_args):
            return [f"{path}: it would never average: write update_every_n_steps: 1, or update_starting_at_epoch: 1"]
        if option and level.__name__ == "ModelCheckpoint" and spec.init_args.get("dirpath") is None:
            names = spec.init_args.get("filename"), spec.init_args.get("save_last")
            if names[0] in ("best", "last") or names[1]:
                return [f"{path}: it would overwrite best.ckpt or last.ckpt; give it a filename, and no save_last"]
    return []


def _never_averages(arguments: Any) -> bool:
    return arguments.get("update_every_n_steps", 1) < 1 and arguments.get("update_starting_at_epoch") is None


def _batches(value: Any) -> Any:
    """Option of type int or float as Lightning takes it: above 1 it is a number of batches, also where it is 2.0."""
    return int(value) if isinstance(value, float) and value > 1 else value


def check_length(trainer: Any, n_batches: int) -> None:
    """Refuse a training in which nothing would be validated.

    Args:
        trainer: Of Lightning, or its section of a configuration.
        n_batches: Training batches of an epoch.

    Raises:
        UserError: No validation would take place before the end.
    """
    limit = _batches(trainer.limit_train_batches)
    n = n_batches if limit is None else min(n_batches, limit) if isinstance(limit, int) else int(n_batches * limit)
    if n == 0:
        raise UserError(f"trainer.limit_train_batches {limit} of {n_batches} batches is none; write a larger number")
    interval, every = _batches(trainer.val_check_interval), trainer.check_val_every_n_epoch
    interval = 1.0 if interval is None else interval
    if isinstance(interval, str | dict | timedelta):
        return  # a time
    if isinstance(interval, int) and every is not None and interval > n:
        raise UserError(
            f"trainer.val_check_interval {interval} is more than the {n} batches of an epoch; write at most that, or "
            "trainer.check_val_every_n_epoch: null to count batches over epochs"
        )
    within = interval if isinstance(interval, int) else max(1, int(n * interval))
    first = interval if every is None else (every - 1) * n + within
    epochs, steps = trainer.max_epochs, trainer.max_steps
    by_epochs = math.inf if epochs == -1 else (epochs or 1000) * n
    if epochs is None and steps != -1:
        by_epochs = math.inf
    by_steps = math.inf if steps == -1 else steps * (trainer.accumulate_grad_batches or 1)
    if first > min(by_epochs, by_steps):
        raise UserError(
            f"the training ends after {min(by_epochs, by_steps):g} batches, before its first validation after {first}: "
            "there would be no best checkpoint. Train longer, or validate earlier (trainer.check_val_every_n_epoch, "
            "trainer.val_check_interval)"
        )
