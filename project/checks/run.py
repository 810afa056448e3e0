"""Checks of an experiment before training: the quick ones of every training, and all of `make check`."""

import logging
import shlex
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from project.checks import alignment, data, figures, groups, inputs, learning, meaning, network, pixels, settings
from project.checks.context import Context
from project.checks.last_activation import last_activation
from project.checks.leaked_target import leaked_target
from project.checks.loss import loss
from project.checks.report import INDENT, Level, Report, Verdict, error, not_judged
from project.checks.schedule import schedule
from project.data.datamodule import ImageDataModule
from project.errors import UserError, format_own_traceback
from project.runs.run_folder import RUNS, new_folder, write_json
from project.tasks.base import Task

log = logging.getLogger("project")
Check = Callable[[Context], Iterator[Verdict]]

DATA: tuple[Check, ...] = (
    *(data.values, data.classes, data.splits, data.contradictions, pixels.filled, pixels.interpolated),
    *(groups.channels, groups.brightness, groups.tied_classes, leaked_target, alignment.alignment),
    *(groups.inverted, inputs.normalization, inputs.levels, inputs.geometry, meaning.meaning, inputs.intensity),
    inputs.crops,
)
NETWORK: tuple[Check, ...] = (
    *(network.network, last_activation, loss, network.first_loss, network.gradients),
    *(schedule, settings.monitors, settings.regularization),
)
TRAINING: tuple[Check, ...] = (learning.learning_rate, learning.one_batch)

# One cause, one line: a check is left out after an error of these others, which it would only repeat.
CAUSES: dict[Check, tuple[Check, ...]] = {
    groups.brightness: (groups.channels,),
    alignment.alignment: (leaked_target,),
    groups.inverted: (leaked_target, alignment.alignment),
    network.network: (data.values, inputs.normalization),
    last_activation: (network.network,),
    loss: (network.network, last_activation),
    network.first_loss: (network.network, last_activation, loss),
    network.gradients: (network.network, last_activation, network.first_loss),
    **dict.fromkeys(TRAINING, (last_activation, loss, network.network, network.first_loss, network.gradients)),
}


def check_quickly(
    experiment: str, task: Task, datamodule: ImageDataModule, trainer: Trainer, skip_errors: bool = False
) -> list[dict[str, Any]]:
    """Checks of a few seconds at the start of a training, which alter neither weights nor random state.

    The datamodule is set up for "fit". Returns the verdicts as plain values.

    Raises:
        UserError: A check found an error, unless `skip_errors`.
    """
    ctx = Context(task, datamodule, trainer)
    with isolate_rng(include_cuda=ctx.device.type == "cuda"):
        report = run_checks(ctx)
    shown: tuple[Level, ...] = (
        ("note", "not judged", "warning", "error") if skip_errors else ("note", "not judged", "warning")
    )
    for line in report.text(*shown).splitlines():
        log.warning("check: %s", line)
    if not report.safe and not skip_errors:
        raise UserError(
            f"not safe to train:\n{report.text('error')}\n"
            f"`make check EXP={shlex.quote(experiment)}` shows more; to train in spite of it, add --unchecked"
        )
    return [asdict(verdict) for verdict in report.verdicts]


def check_fully(experiment: str, task: Task, datamodule: ImageDataModule, trainer: Trainer) -> Report:
    """All checks, with a figure and report.json in `runs/checks/<experiment>/<time>/`; prints the verdicts."""
    ctx = Context(task, datamodule, trainer, full=True)
    report = run_checks(ctx)
    folder = new_folder(RUNS / "checks" / experiment)
    figures.draw_inputs(ctx).savefig(folder / "inputs.png", dpi=110)
    facts = {"safe": report.safe, "experiment": experiment, "dataset": datamodule.dataset}
    write_json(folder / "report.json", facts | asdict(report))
    print(f"{'level':{INDENT}}{'check':22}measured\n{report.text()}\n")
    print(f"{experiment} on {datamodule.dataset}: {report.summary()}\n{folder}")
    return report


def run_checks(ctx: Context) -> Report:
    """All verdicts. A check that fails itself is reported as not judged, and stops nothing."""
    started = time.monotonic()
    verdicts: list[Verdict] = []
    failed: set[Check] = set()
    left_out: list[str] = []
    for check in (*DATA, *NETWORK, *(TRAINING if ctx.full else ())):
        if failed.intersection(CAUSES.get(check, ())):
            failed.add(check)
            left_out.append(check.__name__.replace("_", " "))
            continue
        new = _verdicts(check, ctx)
        failed |= {check} if any(verdict.level == "error" for verdict in new) else set()
        # A wrong setting can be refused by several checks in the same words.
        reported = {verdict.advice for verdict in verdicts if verdict.level == "error"}
        verdicts += [verdict for verdict in new if verdict.level != "error" or verdict.advice not in reported]
    if left_out:
        verdicts.append(not_judged("others", ", ".join(left_out), "they would only repeat the errors above"))
    return Report(verdicts, round(time.monotonic() - started, 1))


def _verdicts(check: Check, ctx: Context) -> list[Verdict]:
    name = check.__name__.replace("_", " ")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about loaders and loggers that are not there
            return list(check(ctx))
    except UserError as refusal:
        return [error(name, "refused", str(refusal))]
    except Exception as failure:  # a network or task of the user may raise anything
        log.debug("%s", name, exc_info=True)
        cause = f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"
        return [not_judged(name, "the check itself failed", f"{cause}\n{format_own_traceback(failure)}".strip())]
