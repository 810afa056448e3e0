"""Checks of an experiment before training: the quick ones of every training, and all of `make check`."""

import logging
import shlex
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from project.checks import alignment, data, figures, groups, inputs, labels, learning, loss, network, pixels, schedule
from project.checks.context import Context
from project.checks.report import INDENT, LEVELS, Finding, Level, Report, error, not_judged
from project.data.datamodule import ImageDataModule
from project.errors import UserError, format_own_traceback
from project.runs.run_folder import RUNS, new_folder, write_json
from project.tasks.base import Task

log = logging.getLogger("project")


class Check(NamedTuple):
    """A named function from the experiment to its findings.

    One cause is one line: a check is left out after an error of those in `after`, which it would only repeat.
    """

    name: str
    function: Callable[[Context], Iterator[Finding]]
    after: tuple[str, ...] = ()


PAIRS = ("leaked target", "alignment")
UNTRAINED = ("network", "activation", "dependence", "loss", "first loss", "gradients")
CHECKS = (
    Check("values", data.values),
    Check("classes", labels.classes),
    Check("numbers", labels.numbers),
    Check("splits", data.splits),
    Check("copies", data.copies, ("splits",)),
    Check("contradictions", data.contradictions),
    Check("filled", pixels.filled),
    Check("interpolated", pixels.interpolated),
    Check("wrapped", pixels.wrapped),
    Check("channels", groups.channels),
    Check("brightness", groups.brightness, ("values", "channels")),
    Check("tied classes", groups.tied_classes),
    Check("leaked target", pixels.leaked_target),
    Check("alignment", alignment.alignment, PAIRS[:1]),
    Check("inverted", groups.inverted, PAIRS),
    Check("annotation", groups.annotation),
    Check("normalization", inputs.normalization),
    Check("level", inputs.level),
    Check("crops", inputs.crops),
    Check("geometry", inputs.geometry),
    Check("meaning", inputs.meaning, ("classes",)),
    Check("intensity", inputs.intensity, ("normalization",)),
    Check("network", network.network, ("values", "normalization")),
    Check("activation", loss.activation, UNTRAINED[:1]),
    Check("dependence", network.dependence, UNTRAINED[:2]),
    Check("loss", loss.loss, UNTRAINED[:3]),
    Check("first loss", loss.first_loss, UNTRAINED[:4]),
    Check("gradients", network.gradients, UNTRAINED[:5]),
    Check("schedule", schedule.schedule),
    Check("monitor", schedule.monitors),
    Check("updates", schedule.updates),
    Check("regularization", network.regularization),
)
TRAINING = (  # of `make check` only
    Check("learning rate", learning.learning_rate, UNTRAINED),
    Check("one batch", learning.one_batch, UNTRAINED),
)


def check_quickly(
    experiment: str, task: Task, datamodule: ImageDataModule, trainer: Trainer, skip_errors: bool = False
) -> list[dict[str, Any]]:
    """Checks of a few seconds at the start of a training, which alter neither weights nor random state.

    The datamodule is set up for "fit". Returns the findings as plain values.

    Raises:
        UserError: A check found an error, unless `skip_errors`.
    """
    ctx = Context(task, datamodule, trainer)
    with isolate_rng(include_cuda=ctx.device.type == "cuda"):
        report = run_checks(ctx)
    shown: tuple[Level, ...] = LEVELS[1:] if skip_errors else LEVELS[1:-1]
    for line in report.text(*shown).splitlines():
        log.warning("check: %s", line)
    if not report.safe and not skip_errors:
        raise UserError(
            f"not safe to train:\n{report.text('error')}\n"
            f"`make check EXP={shlex.quote(experiment)}` shows more; to train in spite of it, add --unchecked"
        )
    return [asdict(finding) for finding in report.findings]


def check_fully(experiment: str, task: Task, datamodule: ImageDataModule, trainer: Trainer) -> Report:
    """All checks, with a figure and report.json in `runs/checks/<experiment>/<time>/`; prints the findings."""
    ctx = Context(task, datamodule, trainer, full=True)
    report = run_checks(ctx)
    folder = new_folder(RUNS / "checks" / experiment)
    figures.draw_inputs(ctx).savefig(folder / "inputs.png", dpi=110)
    facts = {"safe": report.safe, "experiment": experiment, "dataset": datamodule.dataset}
    write_json(folder / "report.json", facts | asdict(report))
    print(f"{'level':{INDENT}}{'check':16}measured\n{report.text()}\n")
    print(f"{experiment} on {datamodule.dataset}: {report.summary()}\n{folder}")
    return report


def run_checks(ctx: Context) -> Report:
    """All findings. A check that fails itself is reported as not judged, and stops nothing."""
    started = time.monotonic()
    findings: list[Finding] = []
    failed: set[str] = set()
    left_out = []
    for check in (*CHECKS, *(TRAINING if ctx.full else ())):
        if failed.intersection(check.after):
            failed.add(check.name)
            left_out.append(check.name)
            continue
        new = findings_of(check, ctx)
        failed |= {check.name for finding in new if finding.level == "error"}
        # A wrong setting can be refused by several checks in the same words.
        reported = {finding.advice for finding in findings if finding.level == "error"}
        findings += [finding for finding in new if finding.level != "error" or finding.advice not in reported]
    if left_out:
        findings.append(not_judged(", ".join(left_out), "they would only repeat the errors above", "others"))
    return Report(findings, round(time.monotonic() - started, 1))


def findings_of(check: Check, ctx: Context) -> list[Finding]:
    """Findings of one check, whatever it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about loaders and loggers that are not there
            findings = list(check.function(ctx))
    except UserError as refusal:
        findings = [error("refused", str(refusal))]
    except Exception as failure:  # a network or task of the user may raise anything
        log.debug("%s", check.name, exc_info=True)
        cause = f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"
        findings = [not_judged("the check itself failed", f"{cause}\n{format_own_traceback(failure)}".strip())]
    return [replace(finding, name=check.name) for finding in findings]
