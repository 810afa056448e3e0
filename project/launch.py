"""How `train` starts trainings: one experiment, several seeds, planned experiments, baselines, or a resumed run."""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from project import prerequisites as needs
from project.command_line import Options
from project.data.dataset_facts import check_fold
from project.data.store import SplitReader
from project.errors import UserError, python
from project.planning.plan import MINUTES, check_planned, plan_dataset, planned_experiments
from project.runs.find_runs import find_run, run_to_resume
from project.runs.run_folder import Run, new_run, train_in_subprocess
from project.runs.untrusted import read_config, require_trusted_location
from project.training.overrides import last_value

DATA_OPTIONS = ("dataset", "root", "fold")  # of `data:`, which choose the samples


def train(options: Options, started: float) -> None:
    """Run the command `train`, which began at `started` of `time.monotonic()`, and print the metrics."""
    if options.minutes is not None:
        limits = ["--trainer.max_epochs=-1", "--trainer.max_steps=-1", f"--length.minutes={options.minutes:g}"]
        options.overrides = [*limits, *options.overrides]  # of an experiment file; what is typed too ends it earlier
    elif last_value(options.overrides, "--length.steps"):
        options.overrides = ["--length.minutes=null", *options.overrides]  # of a plan
    if options.resume is not None:
        _resume(options, started)
    elif not options.experiment and last_value(options.overrides, "--data.dataset"):
        _train_planned(options, started)
    elif not options.experiment:
        raise UserError(f"name the experiment first: {python()} -m project train EXPERIMENT")
    else:
        _train_seeds(options, started)


def train_experiment(
    experiment: str,
    overrides: list[str],
    logger: str | None = None,
    unchecked: bool = False,
    started: float | None = None,
) -> None:
    """Train one run of an experiment, after what it needs: prepared data, and a run with its pretrained weights."""
    logger, started = logger or "tensorboard", time.monotonic() if started is None else started
    path, content = needs.read_experiment(experiment)
    if "--print_config" not in overrides and not any(word.endswith("help") for word in overrides):
        settings = needs.prepare_for(content, overrides)
        _check_plan(path, settings, unchecked)
        before = time.monotonic()
        needed = needs.missing_pretrained_run(settings, overrides)
        if needed in needs.config_names(needs.EXPERIMENTS):
            data = settings["data"]
            print(
                f"{experiment} starts from weights of {needed}, which has no run on {data['dataset']}: "
                "training that first"
            )
            typed = [f"--data.{key}={data[key]}" for key in DATA_OPTIONS if data.get(key) is not None]
            train_in_subprocess([str(needed), "--logger", logger, *typed])
        started += time.monotonic() - before
    from project.training.train import train as train_run

    run = train_run(path, overrides, new_run(experiment), logger, unchecked=unchecked, started=started)
    _report(run)


def _check_plan(path: Path, settings: dict[str, Any], unchecked: bool) -> None:
    """Compare the data that an experiment was planned for with its data; `UserError` if it does not fit."""
    if (folder := needs.dataset_folder(settings)) is None or needs.is_further_device():
        return
    try:
        message = check_planned(path, folder)
    except UserError as error:
        if not unchecked:
            raise
        message = str(error)
    if message:
        print(f"warning: {message}")


def fit_baselines(overrides: list[str], task: str | None) -> int:
    """Fit the baselines that a dataset has the inputs for, or those of one task; returns how many could be fitted."""
    from project.training.lightning_cli import task_class

    dataset, root, fold = (last_value(overrides, f"--data.{name}") for name in DATA_OPTIONS)
    folder = needs.prepared_dataset(str(dataset), Path(root) if root else None)
    if fold is not None and not fold.isdecimal():
        raise UserError(f"data.fold is {fold}: write the number of a fold, such as 0")
    check_fold(SplitReader(folder / "train.h5"), None if fold is None else int(fold))
    available, n_fitted, left_out = needs.available_inputs(folder), 0, defaultdict[str, list[str]](list)
    for name in needs.config_names(needs.EXPERIMENTS):
        if not name.startswith("baseline_") or not needs.has_inputs(name, available):
            continue
        kind = getattr(task_class(needs.read_experiment(name)[1]), "kind", task)
        if task not in (None, kind):
            continue
        try:
            train_experiment(name, ["--trainer.devices=1", *overrides], "none")
            n_fitted += 1
        except UserError as error:
            left_out[str(error)].append(name)
    if not (n_fitted or left_out):
        print(
            f"No baseline{f' for {task}' if task else ''} predicts anything that {dataset} has: {', '.join(available)}"
        )
    for message, names in left_out.items():
        print(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} left out: {message}")
    return n_fitted


def _train_seeds(options: Options, started: float) -> None:
    """Train once, or once for each of several seeds, each in a process and a run folder of its own."""
    if options.seeds is None:
        train_experiment(options.experiment, options.overrides, options.logger, options.unchecked, started)
        return
    seeds = options.seeds.split(",")
    if not all(seed.strip().isdecimal() for seed in seeds) or last_value(options.overrides, "--seed_everything"):
        raise UserError(f"--seeds {options.seeds}: give numbers with commas, such as 0,1,2, and no --seed_everything")
    for seed in dict.fromkeys(int(seed) for seed in seeds):
        train_in_subprocess([*_words(options), "--seed_everything", str(seed)])


def _words(options: Options) -> list[str]:
    """The command line of a training in another process."""
    logger = ["--logger", options.logger] if options.logger else []
    return [options.experiment, *options.overrides, *(["--unchecked"] if options.unchecked else []), *logger]


def _train_planned(options: Options, started: float) -> None:
    """Plan experiments for a dataset if it has none, train them, fit the baselines, print the table of each task."""
    data = {name: value for name in DATA_OPTIONS if (value := last_value(options.overrides, f"--data.{name}"))}
    dataset, root = data["dataset"], data.get("root")
    folder = needs.prepared_dataset(dataset, Path(root) if root else None)
    if names := planned_experiments(needs.EXPERIMENTS, dataset, options.task):
        print(f"{dataset} has been planned: {', '.join(names)}")
    else:
        minutes = MINUTES if options.minutes is None else options.minutes
        names = [path.stem for path in plan_dataset(folder, needs.EXPERIMENTS, minutes, options.task)]
    for name in names:
        once = Options(**vars(options) | {"experiment": name})
        if options.seeds is not None or len(names) == 1:
            _train_seeds(once, started)
        else:
            train_in_subprocess(_words(once))
    if needs.is_further_device():
        return
    print("\nBaselines, which the minutes of a training do not include:")
    fit_baselines([f"--data.{name}={value}" for name, value in data.items()], options.task)
    from project.results.tables import print_table

    for name in names:
        print_table(find_run(name))


def _resume(options: Options, started: float) -> None:
    """Resume a training."""
    run = run_to_resume(options.resume, options.experiment, dataset=last_value(options.overrides, "--data.dataset"))
    require_trusted_location(run, options.trust)
    needs.prepare_for(read_config(run.config), options.overrides)
    from project.training.train import train as train_run

    train_run(run.config, options.overrides, run, options.logger, resume=True, started=started)
    _report(run)


def _report(run: Run) -> None:
    """Write the card of a run that has metrics, and print them."""
    if not needs.is_further_device() and run.metrics_file("val").is_file():
        from project.results.card import write_card
        from project.results.tables import print_summary

        write_card(run)
        print_summary(run)
