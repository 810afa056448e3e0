"""`make check`: finds the mistakes that would spoil a training, before it begins; and the short form of it."""

import logging
import shlex
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from project.checks import data, figures, inputs, machine, network, sampling
from project.checks.verdicts import Context, Level, Report, Verdict
from project.errors import UserError, format_own_traceback
from project.files import write_json
from project.runs.run_folder import RUNS, new_folder
from project.training.lightning_cli import ExperimentCLI, built_apart

log = logging.getLogger("project")
CHECKS = RUNS / "checks"
Check = Callable[[Context], Iterator[Verdict]]

_DATA: tuple[Check, ...] = (
    data.values,
    data.statistics,
    data.channels,
    data.classes,
    data.splits,
    inputs.aligned,
    inputs.normalisation,
    inputs.units,
    sampling.geometry,
    sampling.intensity,
    sampling.crops,
    sampling.shuffling,
    sampling.batches,
    sampling.validation,
)
_NETWORK: tuple[Check, ...] = (
    network.activation,
    network.first_loss,
    network.optimizer,
    network.gradients,
)
# Those that need a fraction of a second each; a training begins with them.
BRIEF: tuple[Check, ...] = (*_DATA, network.network, *_NETWORK)
# What the machine must have is measured before other steps take memory.
FULL: tuple[Check, ...] = (
    *(*_DATA, sampling.workers, network.network, machine.cost, *_NETWORK),
    *(network.learning_rate, network.one_batch),
)
# Where the network fails on a batch, these can say nothing.
NEED_NETWORK = (*_NETWORK, machine.cost, network.learning_rate, network.one_batch)


def brief(cli: ExperimentCLI) -> Report:
    """The short form, at the start of a training, which it leaves as it was: weights, random numbers, datamodule.

    Args:
        cli: Set up for "fit".
    """
    device = cli.trainer.strategy.root_device if cli.trainer.world_size == 1 else torch.device("cpu")
    with isolate_rng(include_cuda=device.type == "cuda"):
        return run(Context(cli, "brief", device), BRIEF)


def refuse(report: Report, unchecked: bool = False) -> None:
    """Tell what is not as it should be, and stop a training that is not safe.

    Args:
        report: Of the short form.
        unchecked: Go on in spite of an error.

    Raises:
        UserError: There is an error among the verdicts.
    """
    told: tuple[Level, ...] = ("warning", "error") if unchecked else ("warning",)
    for line in report.text(*told).splitlines():
        log.warning("check: %s", line)
    if not report.safe and not unchecked:
        raise UserError(
            f"not safe to train:\n{report.text('error')}\n"
            f"`make check EXP={shlex.quote(report.experiment)}` shows more; to train in spite of it, add --unchecked"
        )


def run(ctx: Context, checks: tuple[Check, ...]) -> Report:
    """All verdicts of some checks. One that fails itself is told, and stops nothing.

    Args:
        ctx: The experiment.
        checks: In this order.
    """
    started = time.monotonic()
    report = Report(ctx.cli.run.experiment, ctx.data.dataset)
    for check in checks:
        failed = any(v.name == "network" and v.level == "error" for v in report.verdicts)
        if failed and check in NEED_NETWORK:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries, about loaders and loggers that are not there
                found = list(check(ctx))
        except UserError as error:
            found = [Verdict(_named(check), "refused", "error", str(error))]
        except Exception as error:  # whatever a network or task of one's own may do
            log.debug("%s", check.__name__, exc_info=True)
            told = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            own = format_own_traceback(error)
            told += f"\n{own}" if own else ""
            found = [Verdict(_named(check), "could not be checked", "warning", told)]
        report.verdicts += found
    report.seconds = round(time.monotonic() - started, 1)
    return report


def _named(check: Check) -> str:
    return check.__name__.replace("_", " ")


def check_experiment(experiment: str, content: dict[str, Any], typed: list[str]) -> Report:
    """All checks of an experiment, with pictures and a report in `runs/checks/<experiment>/<time>/`.

    Args:
        experiment: Its name.
        content: Its configuration.
        typed: Arguments that win over it, `--key value`.

    Raises:
        UserError: The configuration does not fit, or there is nothing to train.
    """
    with built_apart(experiment, content, typed) as cli:
        cli.datamodule.check_training(cli.trainer.world_size)
        ctx = Context(cli, "full", cli.trainer.strategy.root_device)
        report = run(ctx, FULL)
        place = new_folder(CHECKS / experiment)
        report.pictures = figures.draw(ctx, place)
    write_json(place / "report.json", report.as_json())
    print(f"{report.text()}\n\n{experiment} on {report.dataset}: {report.summary()}\n{place}")
    return report
