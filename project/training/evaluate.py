"""Evaluate the best checkpoint of a run: the same loop, metrics and files for every model, and after training."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from project.errors import UserError, bullet_list
from project.models.checkpoint_files import best_checkpoint, read_file
from project.models.downloads import without_downloads
from project.provenance import command, git_state
from project.runs.config_diff import IRRELEVANT_KEYS, is_below
from project.runs.records import Provenance
from project.runs.run_folder import Run, new_folder, now
from project.runs.untrusted import evaluation_config
from project.training.lightning_cli import ExperimentCLI
from project.training.loggers import logging_to, quiet_lightning
from project.training.overrides import options
from project.training.results_writer import ResultsWriter

log = logging.getLogger("project")
# Whatever the number of devices a run was trained on.
ONE_PROCESS = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")
# Overrides that do not change what is measured, only where the (checked) data is and how fast.
SAME_RESULTS = (*IRRELEVANT_KEYS, *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy")))


def evaluate(
    run: Run, split: str = "val", overrides: list[str] | None = None, predictions: bool = False, trusted: bool = False
) -> Run:
    """Evaluate the best checkpoint of a run, and write its metrics, samples table and figure.

    Args:
        run: A run folder; callbacks and limits of the trainer in its config.yaml do not count.
        split: "val" or "test"; each test evaluation is recorded in provenance.json.
        overrides: Of the run's configuration, `--key value`.
        predictions: Also write every prediction as TIFF.
        trusted: Let the configuration name any code; see `project.runs.untrusted`.

    Returns:
        The folder of the results: `run`, or a new one below its `evaluations/` if an override changes what is measured.
    """
    overrides, changed = overrides or [], changing_overrides(overrides or [])
    identity = {"name": run.name, **run.read_provenance().identity()} | ({"overrides": changed} if changed else {})
    writer = ResultsWriter(run, identity, predictions=predictions)
    with rebuilt(run, overrides, trusted, [writer, RecordTestEvaluation(run)]) as cli, logging_to(run):
        if cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise UserError(f"fast_dev_run keeps no result; try --trainer.limit_{split}_batches 1")
        checkpoint = load_best(cli)
        if changed and cli.trainer.is_global_zero:
            writer.run = Run(new_folder(run.folder / "evaluations"))
        log.info("evaluating %s (epoch %d) on %s", run.name, checkpoint["epoch"] + 1, split)
        writer.epoch = checkpoint["epoch"]
        loop = cli.trainer.validate if split == "val" else cli.trainer.test
        loop(cli.model, datamodule=cli.datamodule, verbose=False)
        if predictions and not writer.n_prediction_files:
            log.warning("%s gives no files of predictions: see samples/%s.csv", type(cli.model).__name__, split)
    return writer.run


@contextmanager
def rebuilt(
    run: Run,
    overrides: Sequence[str] = (),
    trusted: bool = False,
    callbacks: Sequence[Callback] = (),
    attributes: dict[str, Any] | None = None,
) -> Iterator[ExperimentCLI]:
    """Task, data and trainer of a run from its config.yaml, as for its evaluation; the network without its weights.

    With `attributes`, what the task has to know of its data, there is no datamodule, and nothing is compiled.
    """
    with evaluation_config(run, list(overrides), trusted) as config, quiet_lightning(logging.ERROR):
        content = without_downloads(config)
        if attributes is not None:
            content = {"model": content["model"], "trainer": content["trainer"], "seed_everything": False}
            if "compile" in (content["model"].get("init_args") or {}):
                content["model"]["init_args"]["compile"] = False  # which takes a minute for each new size
        arguments = [f"--config={json.dumps(content)}", *ONE_PROCESS, *overrides]
        yield ExperimentCLI(arguments, run, "none", callbacks, attributes=attributes)


def load_best(cli: ExperimentCLI) -> dict[str, Any]:
    """Give a rebuilt run the weights of its best checkpoint, whose content is returned; its data must be the same."""
    path = best_checkpoint(cli.run.folder)
    checkpoint = read_checkpoint(path)
    check_data(cli, cli.run.read_provenance(), cli.run)
    load_weights(cli, checkpoint, path)
    return checkpoint


def measure_best(cli: ExperimentCLI, writer: ResultsWriter, path: str) -> None:
    """Evaluate the best checkpoint after training, on the whole validation split even if training used a part."""
    cli.trainer.limit_val_batches = 1.0
    writer.epoch = int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"])
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True, verbose=False)


def changing_overrides(overrides: list[str]) -> list[str]:
    """Overrides that change what an evaluation measures, as "key=value"."""
    pairs = [(name.removeprefix("--"), value) for name, value in options(overrides)]
    return [key if value is None else f"{key}={value}" for key, value in pairs if not is_below(key, SAME_RESULTS)]


class RecordTestEvaluation(Callback):
    """Add a test evaluation to provenance.json when the first batch has been read, so that a failed one counts too."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_test_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, *_: int) -> None:
        if batch_idx == 0 and trainer.is_global_zero:
            self.run.add_test_evaluation({"time": now(), "command": command(), **git_state()})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint with its `state_dict` and `epoch`, read to the CPU without running code; `UserError` if damaged."""
    content = read_file(path, "checkpoint")
    whole = isinstance(content, dict) and isinstance(content.get("epoch"), int)
    if not whole or not isinstance(content.get("state_dict"), dict):
        raise UserError(f'"{path}" is no checkpoint of a training: it has no state_dict and epoch')
    return dict(content)


def load_weights(cli: ExperimentCLI, checkpoint: dict[str, Any], path: Path) -> None:
    """Give the network its weights, or raise a `UserError`; Lightning would read the file again, unchecked."""
    try:
        cli.model.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        raise UserError(
            f'"{path}" does not fit the network of config.yaml beside it, or is damaged:\n{bullet_list(lines, 6)}'
        ) from error


def check_data(cli: ExperimentCLI, provenance: Provenance, run: Run) -> None:
    """Raise a `UserError` for a fold that the run was trained on, and for data other than that of its training."""
    if cli.datamodule.fold != provenance.fold:
        raise UserError(
            f"{run.name} was trained with fold {provenance.fold} for validation: the images of fold "
            f"{cli.datamodule.fold} are not new to it. Leave out `--data.fold`, or find the run of that fold."
        )
    trained_on = provenance.data_hash.get("train")
    if trained_on and cli.datamodule.reader("train").content_hash != trained_on:
        raise UserError(
            f'"{cli.datamodule.folder}" has been prepared again with other content since {run.name} was trained: its '
            "numbers would not compare. Train again, or name the old data with `--data.root`."
        )
