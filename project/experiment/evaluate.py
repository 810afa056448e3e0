"""Evaluate a run from its folder alone: the same loop, metrics and files for every model."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from project.data.provenance import command, git_state
from project.errors import UserError
from project.experiment.config import ExperimentCLI
from project.experiment.recorder import Recorder
from project.experiment.run import Run, write_json
from project.experiment.train import checkpoint_epoch, logging_to
from project.models.downloads import without_downloads

log = logging.getLogger("project")
# However many devices a run was trained on.
ONE_PROCESS = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")


def evaluate(run: Run, split: str = "val", typed: list[str] | None = None, predictions: bool = False) -> None:
    """Evaluate the best checkpoint of a run, and write its metrics, samples table and picture.

    Args:
        run: A run folder; its config.yaml says everything.
        split: "val" or "test"; each look at the test split is recorded in provenance.json.
        typed: Arguments that win over the run's configuration, `--key value`.
        predictions: Also write every prediction as TIFF.

    Raises:
        UserError: There is no checkpoint, or the data is not the data of the run.
    """
    checkpoint = best_checkpoint(run)
    facts = run.read("provenance.json")
    with logging_to(run):
        recorder = Recorder(run, run.identity(), predictions=predictions)
        recorder.epoch = checkpoint_epoch(checkpoint)
        config = without_downloads(yaml.safe_load(run.config.read_text()))
        cli = ExperimentCLI([f"--config={json.dumps(config)}", *ONE_PROCESS, *(typed or [])], run, "none", [recorder])
        _check_data(cli, facts, run)
        log.info("evaluating %s (epoch %d) on %s", run.name, recorder.epoch + 1, split)
        loop = cli.trainer.validate if split == "val" else cli.trainer.test
        loop(cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), weights_only=True, verbose=False)
    if split == "test":
        look = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": command(), **git_state()}
        facts.setdefault("test_evaluations", []).append(look)
        write_json(run.folder / "provenance.json", facts)


def best_checkpoint(run: Run) -> Path:
    """The checkpoint that counts: the best on the monitored metric, else the last.

    Raises:
        UserError: There is none.
    """
    for name in ("best.ckpt", "last.ckpt"):
        if (path := run.checkpoints / name).is_file():
            return path
    raise UserError(f'"{run.folder}" has no checkpoint: it stopped before its first epoch was complete')


def _check_data(cli: ExperimentCLI, facts: dict[str, Any], run: Run) -> None:
    if cli.datamodule.fold != facts.get("fold"):
        raise UserError(
            f"{run.name} was trained with fold {facts.get('fold')} for validation: the images of fold "
            f"{cli.datamodule.fold} are not new to it. Leave out `--data.fold`, or find the run of that fold."
        )
    trained_on = facts.get("data_hash", {}).get("train")
    if trained_on and cli.datamodule.reader("train").content_hash != trained_on:
        raise UserError(
            f'"{cli.datamodule.folder}" has been prepared anew with other content since {run.name} was trained: its '
            "numbers would not compare. Train again, or name the old data with `--data.root`."
        )
