"""Evaluate a run from its folder alone: the same loop, metrics and files for every model."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from project.data.provenance import command, git_state
from project.errors import UserError, listed
from project.experiment import trust
from project.experiment.config import ExperimentCLI
from project.experiment.logs import logging_to
from project.experiment.recorder import Recorder
from project.experiment.run import Run, write_json
from project.models.downloads import without_downloads
from project.models.pretrained import read_file

log = logging.getLogger("project")
# However many devices a run was trained on.
ONE_PROCESS = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")


def evaluate(
    run: Run, split: str = "val", typed: list[str] | None = None, predictions: bool = False, trusted: bool = False
) -> None:
    """Evaluate the best checkpoint of a run, and write its metrics, samples table and picture.

    Args:
        run: A run folder; its config.yaml says everything.
        split: "val" or "test"; each look at the test split is recorded in provenance.json.
        typed: Arguments that win over the run's configuration, `--key value`.
        predictions: Also write every prediction as TIFF.
        trusted: Let the configuration name any code; see `project.experiment.trust`.

    Raises:
        UserError: There is no checkpoint, it is damaged or of another network, the configuration names code from
            elsewhere, or the data is not the data of the run.
    """
    path, typed = best_checkpoint(run), typed or []
    config, facts = trust.read_config(run.config), trust.read_facts(run)
    with trust.importing(run, config, typed, trusted), logging_to(run):
        checkpoint = read_checkpoint(path)
        recorder = Recorder(run, run.identity(), predictions=predictions)
        recorder.epoch = checkpoint["epoch"]
        arguments = [f"--config={json.dumps(without_downloads(config))}", *ONE_PROCESS, *typed]
        cli = ExperimentCLI(arguments, run, "none", [recorder])
        check_data(cli, facts, run)
        load_weights(cli, checkpoint, path)
        log.info("evaluating %s (epoch %d) on %s", run.name, recorder.epoch + 1, split)
        loop = cli.trainer.validate if split == "val" else cli.trainer.test
        loop(cli.model, datamodule=cli.datamodule, verbose=False)
        if predictions and not recorder.n_written:
            log.warning("%s gives no files of predictions: see samples/%s.csv", type(cli.model).__name__, split)
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
        if path.is_dir():
            raise UserError(
                f'"{path}" is a folder with a part of the weights per device; write one file of it with\n'
                f"  python -m lightning.pytorch.utilities.consolidate_checkpoint {path} --output_file {path}.whole\n"
                f"and give that file the name {name}"
            )
    raise UserError(f'"{run.folder}" has no checkpoint: it stopped before its first epoch was complete')


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint with its `state_dict` and `epoch`, read without running code; tensors on the CPU.

    Raises:
        UserError: It is damaged, or no checkpoint of a training.
    """
    content = read_file(path, "checkpoint")
    whole = isinstance(content, dict) and isinstance(content.get("epoch"), int)
    if not whole or not isinstance(content.get("state_dict"), dict):
        raise UserError(f'"{path}" is no checkpoint of a training: it has no state_dict and epoch')
    return dict(content)


def load_weights(cli: ExperimentCLI, checkpoint: dict[str, Any], path: Path) -> None:
    """Give the network its weights: here and not in Lightning, which would read the file once more, unchecked."""
    try:
        cli.model.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        raise UserError(
            f'"{path}" does not fit the network of config.yaml beside it, or is damaged:\n{listed(lines, 6)}'
        ) from error


def check_data(cli: ExperimentCLI, facts: dict[str, Any], run: Run) -> None:
    """Refuse a fold that the run was trained on, and data that is not that of its training."""
    if cli.datamodule.fold != facts.get("fold"):
        raise UserError(
            f"{run.name} was trained with fold {facts.get('fold')} for validation: the images of fold "
            f"{cli.datamodule.fold} are not new to it. Leave out `--data.fold`, or find the run of that fold."
        )
    hashes = facts.get("data_hash")
    trained_on = hashes.get("train") if isinstance(hashes, dict) else None
    if trained_on and cli.datamodule.reader("train").content_hash != trained_on:
        raise UserError(
            f'"{cli.datamodule.folder}" has been prepared anew with other content since {run.name} was trained: its '
            "numbers would not compare. Train again, or name the old data with `--data.root`."
        )
