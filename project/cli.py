"""The commands. Everything heavy is imported only by the command that needs it."""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from project.errors import UserError, bullet_list, did_you_mean, write_failure
from project.training import overrides
from project.yaml_files import DEFAULT_CONFIG, read_yaml

if TYPE_CHECKING:
    from project.data.config import DatasetConfig
    from project.runs.run_folder import Run

EXPERIMENTS = Path("configs/experiments")
DATASETS = Path("configs/data")
HELP = """Usage: python -m project COMMAND ...      (or the targets of the Makefile: type `make`)

  data DATASET               raw images -> data/processed/DATASET/{{train,val,test}}.h5; --estimate tells first what it
                               takes;  --processes 4  --cluster tcp://host:8786 (Dask)
  inspect DATASET            what is in the data: sizes, counts, value ranges, pictures
  train EXPERIMENT           train one experiment; further arguments are keys of the configuration:
                               --trainer.max_epochs 3  --data.dataset ihc  --model.init_args.loss torch.nn.L1Loss
                               --logger tensorboard|wandb|none  --print_config
                               --data.fold 0, where the data has folds;  --seeds 0,1,2: one run after the other
                               --resume latest, or a run: go on with a training that was stopped
  reproduce [RUN or EXP.]    train a run anew, at its commit with its changes, and compare the metrics; --keep
  check EXPERIMENT           look for mistakes before training: data, augmentation, network, learning rate; keys as for
                               train, which begins with the quick ones and stops at an error unless --unchecked is given
  batch EXPERIMENT           try batch sizes: time per sample, memory, the largest that fits; keys as for train
  tune EXPERIMENT            search good settings in the ranges of configs/tune/EXPERIMENT.yaml: --trials 20 (in all)
                               --sampler tpe|random  --space NAME  --study NAME; keys as for train
  slurm EXPERIMENT           a job of it for a Slurm cluster: --nodes 2 --gpus 4 --cpus 8 (per GPU) --time 24:00:00
                               --partition NAME --submit; keys as for train
  baselines [DATASET]        fit every baseline on a dataset; --fold 0, where it has folds
  eval [RUN or EXPERIMENT]   evaluate a run (default: the latest) and print the table of all runs on its data;
                               --split test  --predictions  --trust (a run from elsewhere that names other code)
  compare [RUN or EXP.]      all runs on its data with 95 % intervals and tests against a reference: --reference NAME
                               --other RUN (two runs, and what is set differently)  --dataset NAME  --split test
  report [RUN or EXP.]       a page for a browser: curves, samples, groups, calibration, likely wrong labels
                               --dataset NAME (a page of all its runs)  --split test
  predict RUN INPUT OUTPUT   predict all raw images of a folder (several RUN: their mean, and how far they differ)
                               --tile 1024  --tta  --float  --png  --accelerator cpu  --trust
  export RUN                 the run with its normalisation as ONNX and torch.export, checked: --output FOLDER
                               --formats onnx,pt2  --float (raw images as float32)  --size 256 256 (no other)  --trust
  pseudo [RUN or EXP.]       label images that have no labels, where the run is sure: DATASET_pseudo holds both;
                               --threshold 0.9  --name NAME  --trust
  fractions EXPERIMENT ...   what labels are worth: train with shares of the labels and several seeds, and compare;
                               --fractions 0.01,0.05,0.2  --seeds 0,1,2  --pseudo 0.9 (the first one); keys as for train
  table [RUN or EXPERIMENT]  print that table again; without a name, one for each task and dataset

Experiments: {experiments}
Datasets:    {datasets}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A mistake of the user gives a short block and status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except UserError as error:
        # Every process tells: a launcher ends the others, perhaps before the first has come to its own words.
        which = f" (process {os.environ['LOCAL_RANK']})" if _is_further_device() else ""
        print(f"\nerror{which}: {error}\n", file=sys.stderr)
        return 2
    except Exception as error:
        if not (message := write_failure(error)):
            raise
        print(f"\nerror: {message}\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if not _is_further_device():
            print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
        return getattr(stop, "status", 130)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(experiments=", ".join(names(EXPERIMENTS)), datasets=", ".join(names(DATASETS))))
        return 0
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        raise UserError(
            f'there is no command "{command}".{did_you_mean(command, COMMANDS)} Known: {", ".join(COMMANDS)}'
        )
    # Behind the name of an experiment it is the help of its configuration.
    if command in CONFIGURED and {"-h", "--help"} & {*(rest[:1] if command == "train" else rest)}:
        print(command_help(command))
        return 0
    return COMMANDS[command](rest) or 0


def command_help(command: str) -> str:
    """The part of the help that is about one command, and the experiments."""
    lines = HELP.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"  {command} "))
    n = next(i for i, line in enumerate(lines[first + 1 :], 1) if not line.startswith("     "))
    shown = ["Usage: python -m project", *lines[first : first + n], "", lines[-2]]
    return "\n".join(shown).format(experiments=", ".join(names(EXPERIMENTS)))


def names(folder: Path) -> list[str]:
    """Names of the YAML files in a folder of configurations."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


class _Parser(argparse.ArgumentParser):
    """Argparse that raises `UserError` in place of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n{self.format_usage().strip()}")


def _parse(command: str, rest: list[str], *arguments: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    parser = _Parser(f"python -m project {command}", allow_abbrev=False)
    for name, options in arguments:
        parser.add_argument(name, **options)
    return parser.parse_args(rest)


def config_file(folder: Path, name: str, what: str) -> Path:
    """The configuration of an experiment or dataset.

    Raises:
        UserError: There is none; the message lists those there are.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = names(folder)
        raise UserError(
            f'there is no {what} "{name}" in {folder}.{did_you_mean(name, known)} There are:\n{bullet_list(known, 40)}'
        )
    return path


# Commands -------------------------------------------------------------------------------------------------------------


def data(rest: list[str]) -> None:
    """Prepare a dataset."""
    known: tuple[tuple[str, dict[str, Any]], ...] = (
        ("--root", {"type": Path}),
        ("--processes", {"type": int}),
        ("--cluster", {}),
    )
    options = _parse("data", rest, ("dataset", {}), ("--estimate", {"action": "store_true"}), *known)
    workers = {"processes": options.processes, "cluster": options.cluster}
    if not options.estimate:
        _prepare(options.dataset, options.root, workers)
        return
    from project.data.config import PROCESSED
    from project.data.preparation.estimate import estimate

    print(estimate(options.dataset, _dataset_config(options.dataset), options.root or PROCESSED, **workers))


def inspect(rest: list[str]) -> None:
    """Look at a dataset."""
    options = _parse("inspect", rest, ("dataset", {}), ("--root", {"type": Path, "default": None}))
    folder = _prepared(options.dataset, options.root)
    from project.data.inspection.report import inspect as look

    look(folder)


def train(rest: list[str]) -> None:
    """Train an experiment."""
    _train(rest)


def _train(rest: list[str]) -> "Run | None":
    """The same; returns the run, if it is a single one."""
    if any(word == "--resume" or word.startswith("--resume=") for word in rest):
        return _resume(rest)
    experiment, typed = _named("train", rest)
    path = config_file(EXPERIMENTS, experiment, "experiment")
    unchecked = overrides.flag(typed, "--unchecked")
    if (seeds := overrides.take(typed, "--seeds")) is not None:
        _train_seeds([experiment, *typed, *(["--unchecked"] if unchecked else [])], seeds)
        return None
    logger = overrides.take(typed, "--logger") or "tensorboard"
    from project.runs.run_folder import RUNS, new_run, remove_unused, run_of_job

    if started := run_of_job(experiment, typed):
        if started.read("provenance.json").get("status") == "finished":
            print(f"{started.name} is finished: this job had trained it before it was queued again")
        else:
            _resume([*rest, "--resume", str(started.folder)])
        return started
    content = read_yaml(path)
    _check_spelling(path, content, typed, logger)
    settings = overrides.applied(content, typed)
    dataset, root = _data(settings)
    builds = "--print_config" not in typed and not any(word.endswith("help") for word in typed)
    if dataset and builds:
        _prepared(dataset, root)
    needed = _needed_run(settings)
    if builds and needed and not (RUNS / needed).is_dir() and needed in names(EXPERIMENTS):
        print(f"{experiment} starts from the weights of {needed}, of which there is no run yet: training that first")
        data_of = {"--data.dataset": dataset, "--data.root": root, "--data.fold": settings["data"].get("fold")}
        given = [word for key, value in data_of.items() if value is not None for word in (key, str(value))]
        _train_apart([needed, "--logger", logger, *given])
    run = new_run(experiment)
    try:
        from project.training.train import train as train_run

        train_run(path, typed, run, logger, unchecked=unchecked)
    finally:
        remove_unused(run)
    _tell(run)
    return run


def _train_seeds(words: list[str], seeds: str) -> None:
    """Train once for each seed, one after the other, each in a run folder of its own."""
    if not all(seed.strip().isdecimal() for seed in seeds.split(",")) or overrides.last(words[1:], "--seed_everything"):
        raise UserError(f"--seeds {seeds}: give numbers with commas between them, as in 0,1,2, and no other seed")
    for seed in dict.fromkeys(int(seed) for seed in seeds.split(",")):
        _train_apart([*words, "--seed_everything", str(seed)])


def _resume(rest: list[str]) -> "Run":
    """Go on with a training; returns its run."""
    experiment, typed = (rest[0], rest[1:]) if not rest[0].startswith("-") else (None, rest[:])
    trusted, _ = overrides.flag(typed, "--trust"), overrides.flag(typed, "--unchecked")
    which, logger = overrides.take(typed, "--resume") or "latest", overrides.take(typed, "--logger")
    from project.runs.run_folder import run_to_resume
    from project.runs.untrusted import require_trusted_location

    run = run_to_resume(which, experiment)
    require_trusted_location(run, trusted)
    content = read_yaml(run.config)
    _check_spelling(run.config, content, typed, logger or "none")
    _prepare_for(overrides.applied(content, typed))
    from project.training.train import train as train_run

    train_run(run.config, typed, run, logger, going_on=True)
    _tell(run)
    return run


def _tell(run: "Run") -> None:
    if not _is_further_device() and run.metrics_file("val").is_file():
        from project.results.tables import print_summary

        print_summary(run)


def reproduce(rest: list[str]) -> int:
    """Train a run anew at its commit, and compare; returns 1 if the metrics differ."""
    flags = [(name, {"action": "store_true"}) for name in ("--keep", "--trust")]
    options = _parse("reproduce", rest, ("run", {"nargs": "?"}), *flags)
    from project.runs.reproduce import reproduce as again
    from project.runs.run_folder import find_run
    from project.runs.untrusted import require_trusted_location

    run = find_run(options.run)
    require_trusted_location(run, options.trust)
    return again(run, options.keep)


def batch(rest: list[str]) -> None:
    """Try batch sizes of an experiment."""
    experiment, content, typed = _experiment("batch", rest)
    from project.training.batch_size import try_batches

    print(try_batches(experiment, content, typed))


def tune(rest: list[str]) -> None:
    """Search for good settings of an experiment."""
    experiment, typed = _named("tune", rest)
    known = ("trials", "sampler", "study", "logger")
    options = {key: value for key in known if (value := overrides.take(typed, f"--{key}"))}
    named = overrides.take(typed, "--space")
    experiment, content, typed = _experiment("tune", [experiment, *typed])
    from project.runs.run_folder import RUNS
    from project.search.space import check_keys, find_space

    check_keys(EXPERIMENTS / f"{experiment}.yaml", content, typed, space := find_space(experiment, named))
    if (needed := _needed_run(overrides.applied(content, typed))) and not (RUNS / needed).is_dir():
        raise UserError(
            f"{experiment} starts from the weights of {needed}: run `make train EXP={shlex.quote(needed)}` first"
        )
    from project.search.command import tune as search

    search(experiment, EXPERIMENTS / f"{experiment}.yaml", content, typed, space, **options)


def check(rest: list[str]) -> int:
    """Look for mistakes before training; returns 1 if it is not safe to train."""
    experiment, content, typed = _experiment("check", rest)
    from project.checks.preflight import check_experiment
    from project.runs.run_folder import RUNS

    needed = _needed_run(overrides.applied(content, typed))
    if needed and not (RUNS / needed).is_dir():
        print(f"without the weights of {needed}, of which there is no run yet")
        typed = [*typed, "--model.init_args.pretrained=null"]
    return 0 if check_experiment(experiment, content, typed).safe else 1


def baselines(rest: list[str]) -> int:
    """Fit all baselines on one dataset; returns 1 if none could be fitted."""
    known = (("dataset", {"nargs": "?", "default": "yeast"}), ("--root", {"default": None}), ("--fold", {"type": int}))
    options = _parse("baselines", rest, *known)
    folder = _prepared(options.dataset, Path(options.root) if options.root else None)
    from project.data.datamodule import check_fold
    from project.data.store import SplitReader
    from project.training.lightning_cli import task_class

    reader = SplitReader(folder / "train.h5")
    check_fold(reader, options.fold)
    has = {*reader.dtypes, *(["label"] if reader.labels is not None else [])}
    # On one device: fitting gains nothing from more.
    typed = [
        f"--data.dataset={options.dataset}",
        f"--data.root={folder.parent}",
        "--logger=none",
        "--trainer.devices=1",
        *([f"--data.fold={options.fold}"] if options.fold is not None else []),
    ]
    n_fitted = 0
    for name in names(EXPERIMENTS):
        path = EXPERIMENTS / f"{name}.yaml"
        if name.startswith("baseline_") and set(task_class(read_yaml(path)).roles) <= has:
            try:
                train([name, *typed])
                n_fitted += 1
            except UserError as error:
                print(f"{name} is left out: {error}")
    if not n_fitted:
        print(f'No baseline could be fitted on "{options.dataset}".', file=sys.stderr)
    return 0 if n_fitted else 1


def slurm(rest: list[str]) -> None:
    """Make a job of a training, for a Slurm cluster."""
    experiment, typed = _named("slurm", rest)
    submit = overrides.flag(typed, "--submit")
    asked: dict[str, Any] = {key: value for key in JOB if (value := overrides.take(typed, f"--{key}")) is not None}
    content = read_yaml(path := config_file(EXPERIMENTS, experiment, "experiment"))
    logger = overrides.take(typed, "--logger")
    _check_spelling(path, content, typed, logger or "tensorboard")
    _prepare_for(overrides.applied(content, typed))  # once and here, not in all processes

    from project.runs.run_folder import new_run, remove_unused
    from project.training import slurm as jobs

    try:
        asked = {key: JOB[key](value) for key, value in asked.items()}
    except ValueError as error:
        raise UserError(f"slurm: {error}") from error
    job, run = jobs.Job(**asked), new_run(experiment)
    try:
        print(jobs.prepare(run, job, [*typed, *(["--logger", logger] if logger else [])], submit))
    finally:
        remove_unused(run)


def evaluate(rest: list[str]) -> None:
    """Evaluate a run, and print the table."""
    name, typed = (rest[0], rest[1:]) if rest and not rest[0].startswith("-") else (None, rest[:])
    predictions, trusted = overrides.flag(typed, "--predictions"), overrides.flag(typed, "--trust")
    split = overrides.take(typed, "--split") or "val"
    if split not in ("val", "test"):
        raise UserError(f'there is no split "{split}" to evaluate on; take val or test')
    from project.runs.run_folder import find_run

    run = find_run(name)
    if typed:
        from project.runs.untrusted import read_config

        _check_spelling(run.config, read_config(run.config), typed)
    _warn_if_run_outdated(run, typed)
    from project.results.commands import print_table
    from project.results.tables import print_summary
    from project.training.evaluate import evaluate as evaluate_run

    results = evaluate_run(run, split, typed, predictions, trusted)
    if _is_further_device():
        return
    if results != run:
        print_summary(results, split)
        print("Measured with overrides: not compared with other runs, whose results are kept.")
    else:
        print_table(run, split, trusted)


def compare(rest: list[str]) -> None:
    """Compare all runs on one dataset and split, or two runs."""
    keys: list[tuple[str, dict[str, Any]]] = [(f"--{name}", {}) for name in ("reference", "other", "dataset")]
    options = _parse("compare", rest, ("run", {"nargs": "?"}), *keys, SPLIT, TRUST)
    from project.results.commands import compare_dataset, compare_run, compare_runs, run_with_results

    given = {"split": options.split, "trusted": options.trust}
    _warn_if_compared_outdated(options.run, options.dataset)
    if options.other:
        first, second = (run_with_results(name, options.split) for name in (options.run, options.other))
        compare_runs(first, second, **given)
    elif options.dataset and not options.run:
        compare_dataset(options.dataset, options.reference, **given)
    else:
        compare_run(run_with_results(options.run, options.split), options.reference, **given)


def report(rest: list[str]) -> None:
    """Make a page of a run, or of all runs on a dataset."""
    options = _parse("report", rest, ("run", {"nargs": "?"}), ("--dataset", {}), ("--reference", {}), SPLIT, TRUST)
    from project.results.commands import report_dataset, report_run, run_with_results

    given = {"split": options.split, "trusted": options.trust}
    _warn_if_compared_outdated(options.run, options.dataset)
    if options.dataset and not options.run:
        report_dataset(options.dataset, options.reference, **given)
    else:
        report_run(run_with_results(options.run, options.split), options.reference, **given)


def predict(rest: list[str]) -> int:
    """Predict a folder of raw images; returns 1 if some could not be predicted."""
    flags = [(f"--{name}", {"action": "store_true"}) for name in ("tta", "float", "png", "trust")]
    known: tuple[tuple[str, dict[str, Any]], ...] = (
        *(("runs", {"nargs": "+"}), ("input", {"type": Path}), ("output", {"type": Path})),
        *(("--tile", {"type": int}), ("--accelerator", {})),
    )
    options = _parse("predict", rest, *known, *flags)
    if len(options.runs) == 1 and not Path(options.runs[0]).is_dir():  # `make predict RUN="a b"` gives one word
        options.runs = shlex.split(options.runs[0])
    from project.inference.folder import Settings, predict_folder
    from project.inference.model import load

    model = load(options.runs, options.accelerator, options.trust)
    settings = Settings(options.tile, options.tta, options.float, options.png)
    outcomes = predict_folder(model, options.input, options.output, settings)
    print(outcomes.told(options.output))
    return 1 if outcomes.failed else 0


def export(rest: list[str]) -> None:
    """Write a run as files that other programs run."""
    flags = [(f"--{name}", {"action": "store_true"}) for name in ("float", "trust")]
    sizes = ("--size", {"type": int, "nargs": 2})
    options = _parse("export", rest, ("run", {}), ("--output", {"type": Path}), ("--formats", {}), sizes, *flags)
    from project.inference.export import export as export_run

    formats = options.formats.split(",") if options.formats else None
    print(export_run(options.run, options.output, formats, options.float, options.trust, options.size))


def table(rest: list[str]) -> None:
    """Print the table of all runs on the data of a run, or all tables."""
    options = _parse("table", rest, ("run", {"nargs": "?"}), SPLIT)
    from project.results.commands import print_table, print_tables, run_with_results

    if options.run:
        print_table(run_with_results(options.run, options.split), options.split)
    else:
        print_tables(options.split)


def pseudo(rest: list[str]) -> None:
    """Label images without labels by a run."""
    known: tuple[tuple[str, dict[str, Any]], ...] = (
        ("--threshold", {"type": float, "default": 0.9}),
        ("--name", {}),
        ("--trust", {"action": "store_true"}),
    )
    options = _parse("pseudo", rest, ("run", {"nargs": "?"}), *known)
    from project.few_labels.pseudo_labels import pseudo_label, summary
    from project.runs.run_folder import find_run

    folder = pseudo_label(find_run(options.run), options.threshold, options.name, trusted=options.trust)
    print(f'{summary(folder)}\ntrain on it: make train EXP=... ARGS="--data.dataset {shlex.quote(folder.name)}"')


def fractions(rest: list[str]) -> None:
    """Train experiments with shares of the labels, and compare them."""
    n = next((position for position, word in enumerate(rest) if word.startswith("-")), len(rest))
    experiments, typed = rest[:n], rest[n:]
    asked = {key: overrides.take(typed, f"--{key}") for key in ("fractions", "seeds", "pseudo")}
    if not experiments:
        raise UserError("name the experiments first, as: python -m project fractions unet_dice unet_dice_from_mae")
    for name in experiments:
        config_file(EXPERIMENTS, name, "experiment")
    try:
        shares = [float(word) for word in (asked["fractions"] or "0.01,0.05,0.2").split(",")]
        seeds = [int(word) for word in (asked["seeds"] or "0,1,2").split(",")]
        threshold = None if asked["pseudo"] is None else float(asked["pseudo"])
    except ValueError as error:
        raise UserError(f"fractions: {error}; write numbers with commas, as --fractions 0.01,0.05 --seeds 0") from None
    from project.few_labels.label_efficiency import measure

    def once(words: list[str]) -> "Run":
        # On one device, in this process: each is short, and starting takes as long as some of them.
        logger = [] if overrides.last(typed, "--logger") else ["--logger=none"]
        run = _train([words[0], "--trainer.devices=1", *logger, *words[1:]])
        assert run is not None
        return run

    print(measure(experiments, shares, seeds, typed, once, threshold))


SPLIT: tuple[str, dict[str, Any]] = ("--split", {"default": "val", "choices": ("val", "test")})
TRUST: tuple[str, dict[str, Any]] = ("--trust", {"action": "store_true"})
# What can be asked of a cluster, see `project.training.slurm.Job`.
JOB: dict[str, type[int] | type[str]] = {"nodes": int, "gpus": int, "cpus": int, "time": str, "partition": str}
# Commands whose options are keys of the configuration, which no argument parser lists.
CONFIGURED = ("train", "check", "batch", "tune", "slurm", "eval", "fractions")
COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "data": data,
    "inspect": inspect,
    "train": train,
    "check": check,
    "batch": batch,
    "tune": tune,
    "slurm": slurm,
    "baselines": baselines,
    "reproduce": reproduce,
    "eval": evaluate,
    "predict": predict,
    "export": export,
    "compare": compare,
    "report": report,
    "pseudo": pseudo,
    "fractions": fractions,
    "table": table,
}


# Shared ---------------------------------------------------------------------------------------------------------------


def _named(command: str, rest: list[str]) -> tuple[str, list[str]]:
    """The experiment that is named first, and the options behind it."""
    if not rest or rest[0].startswith("-"):
        raise UserError(f"name the experiment first: python -m project {command} EXPERIMENT {' '.join(rest)}".rstrip())
    return rest[0], rest[1:]


def _experiment(command: str, rest: list[str]) -> tuple[str, dict[str, Any], list[str]]:
    """The experiment that is named, its configuration, and its overrides; its data is prepared."""
    experiment, typed = _named(command, rest)
    path = config_file(EXPERIMENTS, experiment, "experiment")
    content = read_yaml(path)
    _check_spelling(path, content, typed)
    _prepare_for(overrides.applied(content, typed))
    return experiment, content, typed


def _check_spelling(path: Path, content: dict[str, Any], typed: list[str], logger: str = "none") -> None:
    """Refuse what is misspelt before anything is prepared or imported."""
    from project.training.config_keys import check, check_logger

    default = {DEFAULT_CONFIG: read_yaml(DEFAULT_CONFIG)} if DEFAULT_CONFIG.is_file() else {}
    check({**default, path: content}, typed)
    check_logger(logger)


def _data(settings: dict[str, Any]) -> tuple[str | None, Path | None]:
    """The dataset of a configuration with its overrides, and the folder that it is in, where they are given."""
    section = settings.get("data")
    section = section if isinstance(section, dict) else {}
    dataset, root = section.get("dataset"), section.get("root")
    return None if dataset is None else str(dataset), Path(root) if root else None


def _prepare_for(settings: dict[str, Any]) -> None:
    dataset, root = _data(settings)
    if dataset:
        _prepared(dataset, root)


def _needed_run(settings: dict[str, Any]) -> str | None:
    """The experiment whose latest run gives the pretrained weights, as `runs/<experiment>/latest`."""
    try:
        parts = Path(str(settings["model"]["init_args"]["pretrained"]["file"])).parts
    except (KeyError, TypeError):
        return None
    return parts[1] if len(parts) > 2 and parts[0] == "runs" and parts[2] == "latest" else None


def _train_apart(words: list[str]) -> None:
    """Train in a process of its own: a second training in this one would be taken for a further device of the first."""
    inherited = ("LOCAL_RANK", "PROJECT_RUN_FOLDER")
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    done = subprocess.run([sys.executable, "-m", "project", "train", *words], env=environment, check=False)
    if done.returncode:
        raise UserError(f"{words[0]} could not be trained; see above")


def _is_further_device() -> bool:
    return os.environ.get("LOCAL_RANK", "0") != "0"


def _prepared(dataset: str, root: Path | None) -> Path:
    """The folder of a prepared dataset; demo data is prepared on the way.

    Raises:
        UserError: It is not prepared and not a demo.
    """
    from project.data.config import PROCESSED

    folder = (root or PROCESSED) / dataset
    if (folder / "train.h5").is_file():
        _warn_if_outdated(folder)
        return folder
    if "generate" in read_yaml(config_file(DATASETS, dataset, "dataset")):
        return _prepare(dataset, root)
    raise UserError(f'the dataset "{dataset}" is not prepared; run `make data DATASET={shlex.quote(dataset)}`')


def _warn_if_outdated(folder: Path) -> None:
    """Say so if the data config or the raw files have changed since the dataset was prepared."""
    path = DATASETS / f"{folder.name}.yaml"
    if _is_further_device() or not path.is_file() or not (folder / "train.h5").is_file():
        return
    from project.data.preparation.outdated import describe_changes

    try:
        config = _dataset_config(folder.name)
    except UserError:
        config = None
    if message := describe_changes(folder, config, path):
        print(f"warning: {message}")


def _warn_if_run_outdated(run: "Run", typed: Sequence[str] = ()) -> None:
    """The same, for the dataset of a run."""
    from project.data.config import PROCESSED
    from project.runs.untrusted import read_config

    dataset, root = _data(overrides.applied(read_config(run.config), list(typed)))
    if dataset:
        _warn_if_outdated((root or PROCESSED) / dataset)


def _warn_if_compared_outdated(run: str | None, dataset: str | None) -> None:
    """The same, for the dataset of a comparison."""
    from project.data.config import PROCESSED
    from project.runs.run_folder import find_run

    if dataset and not run:
        _warn_if_outdated(PROCESSED / dataset)
    else:
        _warn_if_run_outdated(find_run(run))


def _dataset_config(dataset: str) -> "DatasetConfig":
    path = config_file(DATASETS, dataset, "dataset")
    content = read_yaml(path)
    from project.data.config_reader import build_config

    try:
        return build_config(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _prepare(dataset: str, root: Path | None, workers: dict[str, Any] | None = None) -> Path:
    config = _dataset_config(dataset)
    from project.data.config import PROCESSED
    from project.data.preparation.prepare import prepare
    from project.data.store import SplitReader

    folder = prepare(dataset, config, root or PROCESSED, **(workers or {}))
    counts = ", ".join(f"{len(SplitReader(file))} {file.stem}" for file in sorted(folder.glob("*.h5")))
    print(f"{folder}: {counts} images. Look at them with `make inspect DATASET={shlex.quote(dataset)}`")
    return folder


if __name__ == "__main__":
    sys.exit(main())
