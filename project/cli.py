"""Commands of `python -m project`: each is a function that imports what is heavy inside, and calls one package.

To add one, write a function that takes the parsed options, and decorate it with `@command(argument(...), ...)`.
"""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from project import prerequisites as needs
from project.command_line import COMMANDS, Options, argument, command, overview, parse, positive, switch
from project.errors import UserError, file_failure, format_own_traceback
from project.training.overrides import last_value

DATASET = argument("dataset", "name of a file in configs/data")
EXPERIMENT = argument("experiment", "name of a file in configs/experiments")
RUN = argument("run", "run folder, or experiment (its latest run); default: the latest training", nargs="?")
ROOT = argument("--root", "folder of all prepared datasets", type=Path)
SPLIT = argument("--split", "split to evaluate on", default="val", choices=("val", "test"))
TRUST = switch("--trust", "take a run from elsewhere, or one that names code outside this project")
REFERENCE = argument("--reference", "run or experiment to compare with; default: the best baseline")
ON_DATASET = argument("--dataset", "only runs on this dataset; without a run, all of them")
LOGGER = argument("--logger", "tensorboard, wandb, mlflow, csv, none, or several with commas")


# Data -----------------------------------------------------------------------------------------------------------------


@command(
    DATASET,
    argument("--raw", "folder of raw files: propose the data config from a look at it, write it, prepare", type=Path),
    ROOT,
    switch("--estimate", "only estimate seconds, memory and disk space"),
    argument("--processes", "number of worker processes", type=positive),
)
def data(options: Options) -> None:
    """Prepare a dataset: raw images -> data/processed/DATASET/{train,val,test}.h5."""
    if options.raw is not None:
        needs.propose_data_config(options.dataset, options.raw)
    if not options.estimate:
        needs.prepare_dataset(options.dataset, options.root, options.processes)
        return
    config = needs.dataset_config(options.dataset)
    from project.data.preparation.estimate import estimate

    print(estimate(options.dataset, config, options.root or needs.PROCESSED, processes=options.processes))


@command(DATASET, ROOT)
def inspect(options: Options) -> None:
    """Report about a dataset: sizes, counts, value ranges, outliers, copies, drift."""
    folder = needs.prepared_dataset(options.dataset, options.root)
    from project.data.inspection.report import inspect_dataset

    inspect_dataset(folder)


@command(
    DATASET,
    ROOT,
    argument("--minutes", "time that a training may take (20)", type=float, default=20.0),
    argument("--task", "translation, segmentation, classification or regression; default: each that the data is for"),
)
def plan(options: Options) -> None:
    """Plan experiments on a dataset: configs/experiments/DATASET.yaml, with a reason for each decision."""
    folder = needs.prepared_dataset(options.dataset, options.root)
    from project.planning.plan import plan_dataset

    for path in plan_dataset(folder, needs.EXPERIMENTS, options.minutes, options.task):
        print(f"train:  make train EXP={path.stem}")


# Training -------------------------------------------------------------------------------------------------------------


@command(
    argument("experiment", "name of a file in configs/experiments; not needed with --dataset or --resume", nargs="?"),
    argument("--task", "without an experiment: plan and train for this task only"),
    argument("--resume", "run to resume; without a value: the latest", nargs="?", const="latest"),
    argument("--seeds", "several seeds with commas: one run after the other"),
    argument("--minutes", "time budget of each training, without baselines: epochs and schedule follow", type=float),
    LOGGER,
    switch("--unchecked", "train although a check finds an error"),
    TRUST,
    overrides=True,
)
def train(options: Options) -> None:
    """Train an experiment or resume a training, evaluate the best checkpoint, print the metrics."""
    started = time.monotonic()  # before imports, which take seconds of a time budget
    if options.experiment and options.resume is None:
        needs.read_experiment(options.experiment)  # a misspelt name is answered without importing torch
    from project import launch

    launch.train(options, started)


@command(RUN, TRUST)
def reproduce(options: Options) -> int:
    """Train a run again at its commit, with its data and settings; exit status 1 if the metrics differ."""
    from project.runs.find_runs import find_run
    from project.runs.reproduce import reproduce as train_again
    from project.runs.untrusted import require_trusted_location

    run = find_run(options.run)
    require_trusted_location(run, options.trust)
    return train_again(run)


@command(EXPERIMENT, overrides=True)
def check(options: Options) -> int:
    """Look for mistakes before training; exit status 1 after an error, 3 if something could not be judged."""
    _, content = needs.read_experiment(options.experiment)
    settings = needs.prepare_for(content, options.overrides)
    from project.checks.run import check_fully
    from project.training.lightning_cli import temporary_experiment

    overrides = list(options.overrides)
    if needed := needs.missing_pretrained_run(settings, options.overrides):
        print(f"without the weights of {needed}, which has no run yet")
        overrides.append("--model.init_args.pretrained=null")
    with temporary_experiment(options.experiment, content, overrides) as cli:
        cli.datamodule.check_training(cli.trainer.world_size)
        report = check_fully(options.experiment, cli.model, cli.datamodule, cli.trainer)
    return 1 if not report.safe else 0 if report.complete else 3


@command(
    EXPERIMENT,
    argument("--trials", "trials of the study in all (20)", type=int, default=20),
    argument("--sampler", "tpe (Bayesian, the default) or random", choices=("tpe", "random"), default="tpe"),
    argument("--space", "another file of configs/tune"),
    argument("--study", "name of the study; default: the experiment"),
    LOGGER,
    overrides=True,
)
def tune(options: Options) -> None:
    """Search good settings in the ranges of configs/tune/EXPERIMENT.yaml."""
    path, content = needs.read_experiment(options.experiment)
    from project.search.space import find_space

    space = find_space(options.experiment, options.space, options.overrides)
    settings = needs.prepare_for(content, options.overrides)
    if needed := needs.missing_pretrained_run(settings, options.overrides):
        first = f"make train EXP={shlex.quote(needed)} DATASET={shlex.quote(str(settings['data']['dataset']))}"
        raise UserError(f"{options.experiment} starts from the weights of {needed}: run `{first}` first")
    from project.search.search import tune as search

    search(path, content, space, options)


@command(
    argument("dataset", "name of a prepared dataset", nargs="?", default="yeast"),
    argument("--task", "only those of this task, such as translation"),
    overrides=True,
)
def baselines(options: Options) -> int:
    """Fit the baselines on a dataset; exit status 1 if none could be fitted."""
    overrides = [f"--data.dataset={options.dataset}", *options.overrides]
    from project.launch import fit_baselines

    if fit_baselines(overrides, options.task):
        return 0
    print(f'No baseline could be fitted on "{last_value(overrides, "--data.dataset")}".', file=sys.stderr)
    return 1


# Results --------------------------------------------------------------------------------------------------------------


@command(
    RUN,
    argument("--dataset", "only runs on this dataset are meant"),
    SPLIT,
    TRUST,
    switch("--predictions", "keep the predictions of the split"),
    overrides=True,
    name="eval",
)
def evaluate(options: Options) -> None:
    """Evaluate a run and print the table of all runs on its data."""
    from project.runs.find_runs import find_run

    run = find_run(options.run, dataset=options.dataset)
    needs.warn_if_outdated(run, options.overrides)
    from project.results.card import write_card
    from project.results.tables import print_coverage, print_summary, print_table
    from project.training.evaluate import evaluate as evaluate_run

    results = evaluate_run(run, options.split, options.overrides, options.predictions, options.trust)
    if needs.is_further_device():
        return
    if results == run:
        write_card(run)
        print_table(run, options.split, trusted=options.trust)
        print_coverage(run, options.split)
    else:
        print_summary(results, options.split)
        print("Measured with overrides: not compared with other runs, whose results are kept.")


@command(RUN, REFERENCE, argument("--other", "compare two runs: the second"), ON_DATASET, SPLIT, TRUST)
def compare(options: Options) -> None:
    """All runs on the data of a run, with 95 % intervals and tests against a reference; or two runs."""
    from project.results.compare import COMPARABLE_OVER_FOLDS, compare_two
    from project.results.run_results import newest_runs, run_with_results
    from project.results.tables import print_table, print_two_runs

    split, dataset = options.split, options.dataset
    if options.other:
        first, second = (run_with_results(name, split, dataset) for name in (options.run, options.other))
        needs.warn_if_outdated(first)
        print_two_runs(compare_two(first, second, split, options.trust))
        return
    if dataset and not options.run:
        runs = newest_runs(dataset, split, COMPARABLE_OVER_FOLDS)
    else:
        runs = [run_with_results(options.run, split, dataset)]
    for run in runs:
        needs.warn_if_outdated(run)
        print_table(run, split, options.reference, options.trust, every=True)


@command(RUN, REFERENCE, argument("--dataset", "only runs on this dataset are meant"), SPLIT, TRUST)
def report(options: Options) -> None:
    """Write a page for a browser about a run."""
    from project.results.page import write_run_page
    from project.results.run_results import run_with_results

    run = run_with_results(options.run, options.split, options.dataset)
    needs.warn_if_outdated(run)
    print(f"open {write_run_page(run, options.split, options.reference, options.trust)}")


# Use ------------------------------------------------------------------------------------------------------------------


@command(
    argument("runs", "run folders or experiments", nargs="+"),
    argument("input", "folder of raw images", type=Path),
    argument("output", "folder for the predictions", type=Path),
    argument(
        "--tile",
        "side of tiles in pixels; default: 1024, of images above 2048 (instance norms: 4096)",
        type=positive,
    ),
    switch("--tta", "test-time augmentation: mean over flips and rotations"),
    switch("--float", "write float32 instead of the dtype of the target"),
    switch("--intervals", "translation: also write {id}_low and {id}_high; 90 %% of the true values are between them"),
    argument("--accelerator", "cpu, gpu ..."),
    TRUST,
)
def predict(options: Options) -> int:
    """Predict all raw images of a folder; several runs: their mean, and how much they differ."""
    runs = options.runs
    if len(runs) == 1 and not Path(runs[0]).is_dir():  # `make predict RUN="a b"` gives one word
        runs = shlex.split(runs[0])
    from project.inference.folder import Settings, predict_folder
    from project.inference.model import load

    model = load(runs, options.accelerator, options.trust)
    settings = Settings(options.tile, options.tta, options.float, options.intervals)
    report = predict_folder(model, options.input, options.output, settings)
    print(report.describe(options.output))
    return 1 if report.failed else 0


@command(
    argument("run", "run folder or experiment"),
    argument("--output", "folder; default: export/ in the run folder", type=Path),
    argument("--formats", "some of onnx, pt2, bioimageio, with commas"),
    argument("--size", "only images of this height and width", type=positive, nargs=2),
    switch("--float", "take raw images as float32"),
    TRUST,
)
def export(options: Options) -> None:
    """Export a run with its normalization as ONNX, torch.export and bioimage.io package, checked."""
    from project.inference.export import export as export_run

    formats = options.formats.split(",") if options.formats else None
    print(export_run(options.run, options.output, formats, options.float, options.trust, options.size))


# Own project ----------------------------------------------------------------------------------------------------------


@command(
    argument("name", "of the project, such as my_study"),
    argument("--author", "for the license and citation; default: git's user.name"),
    switch("--no-demo", "remove the shipped experiments but unet_mse and the baselines"),
    switch("--fresh-history", "one commit without the template's history"),
)
def start(options: Options) -> None:
    """Make a clone of the template a project of your own: name, README, citation, license; one commit."""
    from project.own_project import start as start_project

    start_project(options.name, options.author, not options.no_demo, options.fresh_history)


@command(
    argument("--url", "repository of the template; default: the recorded one"),
    argument("--revision", "branch, tag or commit of the template", default="HEAD"),
)
def update(options: Options) -> int:
    """Merge a newer version of the template into a project; exit status 1 if conflicts are left to resolve."""
    from project.own_project import update as update_project

    return 0 if update_project(options.url, options.revision) else 1


@command()
def schema(options: Options) -> None:
    """Write the JSON Schemas of experiments and data configs, with which editors complete and check them."""
    from project.schemas import write_schemas

    print("\n".join(f"written: {path}" for path in write_schemas()))


# Entry ----------------------------------------------------------------------------------------------------------------


def run_command(words: Sequence[str]) -> int:
    """Run one command; returns the exit status, and raises the errors that `main` prints."""
    experiments, datasets = (", ".join(needs.config_names(folder)) for folder in (needs.EXPERIMENTS, needs.DATASETS))
    epilog = f"Experiments: {experiments}\nDatasets:    {datasets}"
    options = (
        parse(words, epilog) if words and words[0] not in ("-h", "--help", "help") else f"{overview()}\n\n{epilog}"
    )
    if isinstance(options, str):
        print(options)
        return 0
    return COMMANDS[options.command].run(options) or 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. An error of the user is printed as a short block with status 2."""
    try:
        return run_command(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        # Every process prints it: a launcher ends the others, perhaps before the first has printed anything.
        process = f" (process {os.environ['LOCAL_RANK']})" if needs.is_further_device() else ""
        print(f"\nerror{process}: {error}\n", file=sys.stderr)
        return 2
    except Exception as error:
        if not (message := file_failure(error)):
            raise
        print(f"\nerror: {message}\n{format_own_traceback(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if not needs.is_further_device():
            print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
        return getattr(stop, "status", 130)
