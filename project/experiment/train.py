"""Train one experiment."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins.io import TorchCheckpointIO

from project.errors import UserError
from project.experiment import provenance
from project.experiment.checkpoints import BackgroundCheckpoints, KeepLast
from project.experiment.config import DEFAULT, ExperimentCLI
from project.experiment.recorder import Recorder
from project.experiment.run import Run, write_json

log = logging.getLogger("project")
# Advice of Lightning that is wrong here, each with its reason.
NOISE = (
    r".*LightningCLI's args parameter is intended.*",  # the front has taken its own words away
    r".*does not have many workers.*",  # cheap samples are fastest in the training process
    r".*The number of training batches.*is smaller than the logging interval.*",  # history has every epoch
    r".*Checkpoint directory .* exists and is not empty.*",  # the run folder is new; Lightning looks twice
    r".*The dirpath has changed from.*",  # a run folder may be moved
    r".*It is recommended to use `self.log.*sync_dist=True.*",  # every device logs the numbers of all samples
    r".*You're using the WeightAveraging callback, but loading.*",  # what was kept are the averaged weights
    r".*Precision bf16-mixed is not supported by the model summary.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # inside Lightning, with newer torch
)


def train(config: Path, typed: list[str], run: Run, logger: str = "tensorboard") -> Run:
    """Train, then evaluate the best checkpoint on the validation split.

    Args:
        config: The experiment file.
        typed: Further arguments, `--key value`; they win over the file.
        run: The folder to fill.
        logger: See `project.experiment.loggers`.

    Raises:
        UserError: The configuration or the data do not fit.
    """
    with logging_to(run):
        recorder = Recorder(run, {})
        files = [f"--config={path}" for path in (DEFAULT, config) if path.is_file()]
        cli = ExperimentCLI([*files, *typed], run, logger, [recorder, KeepLast()])
        started = time.time()
        # What does not fit the data is said before anything is written.
        cli.datamodule.setup("fit")
        is_baseline = hasattr(cli.model.net, "fit")
        if not is_baseline:
            cli.datamodule.check_training(cli.trainer.world_size)
            _check(cli)
        if cli.trainer.is_global_zero:
            _begin(cli, recorder, run)
        if is_baseline:
            _fit_baseline(cli, run)
        else:
            if type(cli.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                cli.trainer.strategy.checkpoint_io = BackgroundCheckpoints()
            try:
                cli.trainer.fit(cli.model, datamodule=cli.datamodule, weights_only=True)
            except MisconfigurationException as error:  # such as a metric that is monitored and does not exist
                raise UserError(str(error)) from error
            _evaluate_best(cli, recorder)
        if cli.trainer.is_global_zero and not cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
            facts = run.read("provenance.json")
            status = "interrupted" if cli.trainer.interrupted else "finished"
            facts |= {"status": status, "seconds": round(time.time() - started, 1), "reading": cli.datamodule.reading}
            write_json(run.folder / "provenance.json", facts)
    return run


def _begin(cli: ExperimentCLI, recorder: Recorder, run: Run) -> None:
    """Write what is known beforehand: a run that dies has its configuration and origin."""
    cli.save(run.config)
    provenance.keep_changes(run)
    hashes = {split: cli.datamodule.reader(split).content_hash for split in ("train", "val")}
    seed = cli.config.get("seed_everything")
    facts = provenance.gather(seed if isinstance(seed, int) else None, hashes, run.config)
    parameters = sum(p.numel() for p in cli.model.net.parameters())
    facts |= {
        "experiment": run.experiment,
        "dataset": cli.datamodule.dataset,
        "parameters": parameters,
        "oracle": bool(getattr(cli.model.net, "oracle", False)),
        "baseline": hasattr(cli.model.net, "fit"),
        "task": type(cli.model).__name__.removesuffix("Task").lower(),
        "leading": cli.model.leading,
        "scoring": cli.model.scoring,
        "pretrained": cli.model.loaded,
        "fold": cli.datamodule.fold,
        # What the folds have in common; the hashes of the data are those of the fold.
        "all_folds_hash": cli.datamodule.whole.content_hash,
        "status": "started",
    }
    write_json(run.folder / "provenance.json", facts)
    recorder.facts = run.identity()
    run.make_latest()
    log.info("run folder: %s", run.folder)
    log.info(
        "%s on %s: %d training and %d validation images, %.2f million parameters",
        run.experiment,
        cli.datamodule.dataset,
        len(cli.datamodule.reader("train")),
        len(cli.datamodule.reader("val")),
        parameters / 1e6,
    )


def _fit_baseline(cli: ExperimentCLI, run: Run) -> None:
    """Fit on whole training images, then go through the same validation as every network."""
    cli.model.fit_net(iter(cli.datamodule.eval_dataloader("train")))
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    cli.trainer.save_checkpoint(run.checkpoints / "best.ckpt")


def _check(cli: ExperimentCLI) -> None:
    """Refuse what would fail, or be wrong without a word, only after a while.

    Raises:
        UserError: There is no optimizer, the monitored metric is kept at its worst, freezing does not go with the
            strategy, the pretrained weights have seen the validation images, or the network does not take the data.
    """
    task, config = cli.model, cli.config
    _check_fold_of_weights(cli)
    if "configure_optimizers" not in task.__dict__:
        raise UserError(
            "the experiment names no optimizer; add\n"
            "  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}"
        )
    monitor, mode = str(config.checkpoint.monitor), config.checkpoint.mode
    good = task.leading.get(monitor.removeprefix("val/"), mode)
    if good in ("min", "max") and good != mode:
        raise UserError(f"checkpoint: {monitor} is best at its {good}imum, but mode is {mode}: write mode: {good}")
    freezes = task.finetuning is not None and task.finetuning.freeze_epochs != 0
    if freezes and cli.trainer.world_size > 1 and "find_unused" not in str(config.trainer.strategy):
        raise UserError("freezing on several devices needs --trainer.strategy ddp_find_unused_parameters_true")
    batch = cli.datamodule.datasets["train"][0, 0]
    task.eval()
    try:
        with torch.no_grad():
            task(batch["image"])
    except RuntimeError as error:
        raise UserError(
            f"the network fails on an image of {tuple(batch['image'].shape[1:])} (channels, height, width): {error}"
        ) from error
    finally:
        task.train()


def _check_fold_of_weights(cli: ExperimentCLI) -> None:
    """Refuse weights of a run that was trained on the images of this fold."""
    spec, fold = cli.config.model.init_args.get("pretrained"), cli.datamodule.fold
    if spec is None or fold is None:
        return
    path = Path(spec.file).expanduser()
    files = [folder / "config.yaml" for folder in (path, *path.parents[:2])]  # a run folder, or a checkpoint in it
    found = [yaml.safe_load(file.read_text())["data"] for file in files if file.is_file()]
    if found and found[0]["dataset"] == cli.datamodule.dataset and found[0].get("fold") != fold:
        raise UserError(
            f"pretrained: {spec.file} was trained with fold {found[0].get('fold')} for validation, so that it has seen "
            f"the validation images of fold {fold}; train that experiment with FOLD={fold} first"
        )


def _evaluate_best(cli: ExperimentCLI, recorder: Recorder) -> None:
    best = cli.trainer.checkpoint_callback.best_model_path if cli.trainer.checkpoint_callback else ""  # type: ignore[attr-defined]
    if not best or cli.trainer.interrupted:
        return
    recorder.epoch = checkpoint_epoch(Path(best))
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=best, weights_only=True, verbose=False)


def checkpoint_epoch(path: Path) -> int:
    """The epoch, from 0, after which a checkpoint was written."""
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"])


@contextmanager
def logging_to(run: Run) -> Iterator[None]:
    """Log to the terminal and to the run's log.txt, without Lightning's advice that is wrong here."""
    handlers: list[logging.Handler] = []
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        terminal = logging.StreamHandler(sys.stdout)
        terminal.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
        handlers.append(terminal)
    run.folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(run.folder / "log.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers.append(file)
    for handler in handlers:
        log.addHandler(handler)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in NOISE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        # A configuration error leaves no run behind.
        if not run.config.is_file():
            (run.folder / "log.txt").unlink(missing_ok=True)
            for folder in (run.folder, run.folder.parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
