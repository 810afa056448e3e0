"""Reproduce a run: train again at its commit with its uncommitted changes, and compare the metrics."""

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from project.data.store import SplitReader
from project.errors import UserError, bullet_list
from project.metrics.conformal import is_coverage
from project.provenance import git, run_git, versions
from project.runs.records import Provenance
from project.runs.run_folder import RUNS, Run, train_in_subprocess
from project.runs.untrusted import read_config


def reproduce(run: Run) -> int:
    """Train a run again in a temporary working copy of its commit; returns 0 if all metrics are the same, 1 if not."""
    provenance, record = run.read_provenance(), run.read_metrics()
    if provenance.status != "finished" or record is None:
        raise UserError(f"{run.name} is not finished: there is nothing to compare with")
    config = read_config(run.config)
    try:
        file = Path(config["data"]["root"]) / config["data"]["dataset"] / "train.h5"
    except (KeyError, TypeError) as error:
        raise UserError(f'"{run.config}" names no dataset: copy the run folder again') from error
    if provenance.all_folds_hash not in (None, SplitReader(file).content_hash):
        raise UserError(f'"{file}" has other content than when the run was trained')
    for name, version in versions().items():
        if (before := provenance.versions.get(name)) != version:
            print(f"{name}: {before} then, {version} now")
    if provenance.resumed:
        print("the run was resumed; changes of settings and code since its start are not repeated")
    with _working_copy(run, provenance) as folder:
        _train(run, provenance, config, folder)
        new_record = Run(folder / RUNS / run.experiment / "latest").read_metrics()
    if new_record is None:
        raise UserError("the new run has no metrics; see above")
    print(_compare(record.metrics, new_record.metrics))
    # Coverage may have been measured later than the run was trained.
    first, second = ({k: v for k, v in r.metrics.items() if not is_coverage(k)} for r in (record, new_record))
    return 0 if first == second else 1


@contextmanager
def _working_copy(run: Run, provenance: Provenance) -> Iterator[Path]:
    """The files of the commit, with the changes and the untracked files that the run folder has."""
    commit = provenance.commit
    if not commit or git("cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise UserError(f"the commit of the run ({commit}) is not in this repository")
    folder = Path(tempfile.mkdtemp(prefix="reproduce-")).resolve() / "project"
    try:
        run_git("worktree", "add", "--detach", str(folder), commit)
        patch = run.folder / "changes.patch"
        if patch.is_file():
            run_git("-C", str(folder), "apply", "--whitespace=nowarn", str(patch.resolve()))
        if (untracked := run.folder / "untracked").is_dir():
            shutil.copytree(untracked, folder, dirs_exist_ok=True)
        print(f"{commit[:10]}{' with changes' if patch.is_file() else ''} in {folder}")
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))
        shutil.rmtree(folder.parent, ignore_errors=True)
        git("worktree", "prune")


def _train(run: Run, provenance: Provenance, config: dict[str, Any], folder: Path) -> None:
    """Train in the working copy, with the configuration of the run as its experiment file."""
    config["data"]["root"] = str(Path(config["data"]["root"]).resolve())
    pretrained = config["model"]["init_args"].get("pretrained")
    if isinstance(pretrained, dict):
        pretrained["file"] = str(Path(pretrained["file"]).expanduser().resolve())
    length, steps = config.get("length") or {}, provenance.trained.get("steps")
    if steps and length.get("minutes") is not None:
        print(f"a time budget of {length['minutes']:g} minutes: its {steps} steps are repeated, and digits will differ")
        length["minutes"], config["trainer"]["max_steps"] = None, steps
    config = {section: value for section, value in config.items() if value is not None}
    file = folder / "configs/experiments" / f"{run.experiment}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    # How sums are divided among threads decides how they are rounded.
    threads = provenance.hardware.get("torch_threads")
    flags = [flag for flag in ("--unchecked", "--skip-checks") if flag in provenance.command.split()]
    variables = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    train_in_subprocess([run.experiment, "--logger", "none", *flags], folder, **variables)


def _compare(then: dict[str, float], now: dict[str, float]) -> str:
    if then == now:
        return f"reproduced: all {len(then)} metrics are the same, to the last bit"
    pairs = {name: (then.get(name, math.nan), now.get(name, math.nan)) for name in then | now}
    lines = [f"{name}: {a:.8g} then, {b:.8g} now" for name, (a, b) in pairs.items() if a != b]
    return f"not the same: {len(lines)} of {len(pairs)} metrics differ\n{bullet_list(lines, 40)}"
