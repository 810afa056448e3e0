"""The start of a training: metrics that are monitored exist, and only then is the start written into the run folder."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from project.errors import UserError, bullet_list, did_you_mean
from project.files import write_json
from project.runs.run_folder import Run, link_latest
from project.tasks.base import Task
from project.training.logs import hide_wrong_advice

log = logging.getLogger("project")


@dataclass
class StartRecord:
    """What a start or a resume writes, prepared before training, as plain values: a process may be given it.

    Attributes:
        run: The run folder.
        facts: For provenance.json.
        files: Name -> text of configuration files.
        lines: For the log.
        before: Called with the trainer before anything is written, in the first process.
    """

    run: Run
    facts: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    before: Callable[[Trainer, dict[str, Any]], None] | None = None

    def is_written(self, facts: dict[str, Any]) -> bool:
        """Whether provenance.json holds this start, perhaps written by a process for another device."""
        return bool(facts) and len(facts.get("resumed", [])) == len(self.facts.get("resumed", []))

    def write(self, trainer: Trainer) -> None:
        """Write everything: nothing refuses the training any more."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        if self.before:
            self.before(trainer, self.facts)
        write_json(self.run.folder / "provenance.json", self.facts)
        for name, text in self.files.items():
            (self.run.folder / name).write_text(text, encoding="utf-8")
        link_latest(self.run.folder.parent)
        for line in self.lines:
            log.info("%s", line)


class Start(Callback):
    """Refuses metrics that are monitored and do not exist, writes the record once training starts, reports early stops.

    Metrics are known from the validation before training, or, when a training is resumed, from its checkpoint; without
    both, from the first validation.

    Attributes:
        monitors: Key of the configuration -> metric.
        record: What is written.
    """

    def __init__(self) -> None:
        self.monitors: dict[str, str] = {}
        self.record: StartRecord | None = None
        self.checked = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called in each process: those that Lightning spawns know no filters of warnings."""
        hide_wrong_advice()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing was trained yet, and everything is built and put back."""
        self._check(trainer, pl_module)
        if trainer.is_global_zero and self.record and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.record.write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All metrics of a validation are known; called before other callbacks look for theirs."""
        self._check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why a training ends before its last epoch."""
        done, record = trainer.current_epoch, self.record
        if record is None or not trainer.is_global_zero:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(callback, EarlyStopping) or not trainer.should_stop or callback.stopped_epoch != done - 1:
                continue
            reason = callback.stopping_reason_message
            log.info("stopped early, after %d epochs: %s", done, reason)
            run = record.run
            write_json(run.folder / "provenance.json", run.read("provenance.json") | {"stopped_early": reason})

    def _check(self, trainer: Trainer, task: LightningModule) -> None:
        names = [name for name in trainer.callback_metrics if name.startswith("val/")]
        if self.checked or not names:
            return
        self.checked = True
        logging = [task.training_step, *trainer.callbacks]  # type: ignore[attr-defined]
        own = any(not (each.__module__ or "").startswith(("project.", "lightning.")) for each in logging)
        check_monitors(self.monitors, names, own)


def monitors(config: Namespace) -> Iterator[tuple[str, str, str | None]]:
    """Of everything in a configuration that monitors a metric: its key, the metric, and the mode if it has one."""
    settings = config.as_dict()
    yield "checkpoint", settings["checkpoint"]["monitor"], settings["checkpoint"]["mode"]
    specs = [(f"trainer.callbacks: {spec['class_path']}", spec) for spec in settings["trainer"]["callbacks"] or ()]
    for key, spec in [*specs, ("lr_scheduler", settings.get("lr_scheduler") or {})]:
        arguments = spec.get("init_args") or {}
        if isinstance(arguments.get("monitor"), str):
            yield key, arguments["monitor"], arguments.get("mode")
        elif str(spec.get("class_path")).endswith("ReduceLROnPlateau"):
            yield key, "val/loss", arguments.get("mode")


def check_modes(config: Namespace, task: Task) -> None:
    """Refuse a mode that is the wrong way round for its metric.

    Raises:
        UserError: The best would be the worst.
    """
    directions: dict[str, str] = {"loss": "min", **task.main_metrics}
    wrong = []
    for key, metric, mode in monitors(config):
        name = metric.removeprefix("val/").removeprefix("train/")
        good = directions.get(name) or directions.get(name.removesuffix("_pooled"), mode)
        if mode is not None and good in ("min", "max") and good != mode:
            wrong.append(f"{key}: {metric} is best at its {good}imum, but mode is {mode}: write mode: {good}")
    if wrong:
        raise UserError("\n".join(wrong))


def check_monitors(wanted: dict[str, str], names: list[str], own: bool) -> None:
    """Refuse metrics that nothing computes.

    Args:
        wanted: Key of the configuration -> metric.
        names: Of the metrics of a validation.
        own: Whether there is code that is not the project's, which may log other metrics in training.

    Raises:
        UserError: One does not exist; the message names the nearest.
    """
    known = ["train/loss", *names]
    wrong = [
        f'{key}: there is no metric "{metric}".{did_you_mean(metric, known)}'
        for key, metric in wanted.items()
        if metric not in known and not (own and not metric.startswith("val/"))
    ]
    if wrong:
        raise UserError("\n".join([*wrong, f"Metrics that can be monitored:\n{bullet_list(known, 40)}"]))
