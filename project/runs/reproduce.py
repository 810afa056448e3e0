"""Training a run anew, at its commit and with its changes, to see whether the same numbers come out."""

import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from project.data.store import SplitReader
from project.errors import UserError, bullet_list
from project.provenance import git, versions
from project.runs.provenance import hardware
from project.runs.run_folder import RUN_FOLDER_VARIABLE, Run


def reproduce(run: Run, keep: bool = False) -> int:
    """Train a run anew in a temporary working copy of its commit, and compare the metrics.

    Args:
        run: A finished run.
        keep: Keep the working copy with its new run.

    Returns:
        0 if all metrics are the same, 1 if not.

    Raises:
        UserError: The run has no commit, no metrics or other data, or the training fails.
    """
    facts, then = run.read("provenance.json"), run.read("metrics.json").get("metrics", {})
    if facts.get("status") != "finished" or not then:
        raise UserError(f"{run.name} is not finished: there is nothing to compare with")
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    _check_data(config, facts)
    print("\n".join(differences(facts)) or "the same versions and the same kind of machine")
    with _working_copy(run, facts, keep) as folder:
        again = _train(run, facts, config, folder)
    now = again.get("metrics", {})
    print(_told(then, now))
    return 0 if then == now else 1


def differences(facts: dict[str, Any]) -> list[str]:
    """What is not as it was, and may change numbers; one line each."""
    machine = facts.get("hardware", {})
    then = {**facts.get("versions", {}), **{name: machine.get(name) for name in ("processor", "gpus")}}
    now = {**versions(), **hardware()}
    lines = [f"{name}: {old} then, {now.get(name)} now" for name, old in then.items() if now.get(name) != old]
    restarts = facts.get("restarts", [])
    lines += [f"it diverged in epoch {each['epoch'] + 1} and went back, as it will again" for each in restarts]
    for start in facts.get("resumed", []):
        lines += [f"it was resumed with changed {line}, which is not repeated" for line in start.get("changed", [])]
        if start.get("commit") != facts.get("commit") or start.get("changes") not in (None, "changes.patch"):
            lines.append(f"it was resumed with other code ({start.get('commit')}), which is not repeated")
    return lines


def _check_data(config: dict[str, Any], facts: dict[str, Any]) -> None:
    folder = Path(config["data"]["root"]) / config["data"]["dataset"]
    known = {"train": facts.get("all_folds_hash")}
    if facts.get("fold") is None:
        known["val"] = facts.get("data_hash", {}).get("val")
    for split, content in known.items():
        file = folder / f"{split}.h5"
        if not file.is_file():
            raise UserError(f'"{file}", the data of the run, is not there')
        if content and SplitReader(file).content_hash != content:
            raise UserError(f'"{file}" has other content than when the run was trained')


@contextmanager
def _working_copy(run: Run, facts: dict[str, Any], keep: bool) -> Iterator[Path]:
    """The files of the commit, with the changes and the untracked files that were kept."""
    commit = facts.get("commit")
    if not commit or git("cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise UserError(f"the commit of the run ({commit}) is not in this repository")
    folder = Path(tempfile.mkdtemp(prefix="reproduce-")).resolve() / "project"
    try:
        _git("worktree", "add", "--detach", str(folder), commit)
        patch = run.folder / "changes.patch"
        if patch.is_file():
            _git("-C", str(folder), "apply", "--whitespace=nowarn", str(patch.resolve()))
        if (untracked := run.folder / "untracked").is_dir():
            shutil.copytree(untracked, folder, dirs_exist_ok=True)
        print(f"{commit[:10]}{' with changes' if patch.is_file() else ''} in {folder}")
        yield folder
    finally:
        if keep:
            print(f"kept: {folder} (git worktree remove --force {shlex.quote(str(folder))})")
        else:
            git("worktree", "remove", "--force", str(folder))
            shutil.rmtree(folder.parent, ignore_errors=True)
            git("worktree", "prune")


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]} fails:\n{done.stderr.strip()}")


def _train(run: Run, facts: dict[str, Any], config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train in the working copy; returns the new metrics.json."""
    config["data"]["root"] = str(Path(config["data"]["root"]).resolve())
    pretrained = config["model"]["init_args"].get("pretrained")
    if isinstance(pretrained, dict):
        pretrained["file"] = str(Path(pretrained["file"]).expanduser().resolve())
    for section in [name for name, value in config.items() if value is None]:
        del config[section]
    file = folder / "configs/experiments" / f"{run.experiment}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in (RUN_FOLDER_VARIABLE, "LOCAL_RANK")}
    # How sums are split among threads decides how they are rounded.
    if threads := facts.get("hardware", {}).get("torch_threads"):
        environment["OMP_NUM_THREADS"] = str(threads)
    words = ["train", run.experiment, "--logger", "none"]
    if "--unchecked" in str(facts.get("command")).split():
        words.append("--unchecked")
    done = subprocess.run([sys.executable, "-m", "project", *words], cwd=folder, env=environment, check=False)
    if done.returncode:
        raise UserError(f"the training ends with status {done.returncode}; see above")
    return Run(folder / "runs" / run.experiment / "latest").read("metrics.json")


def _told(then: dict[str, float], now: dict[str, float]) -> str:
    if then == now:
        return f"reproduced: all {len(then)} metrics are the same, to the last bit"
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    lines = [_difference(name, then.get(name, math.nan), now.get(name, math.nan)) for name in names]
    same = len({**then, **now}) - len(names)
    return f"not the same: {len(names)} metrics differ, {same} do not\n{bullet_list(lines, 40)}"


def _difference(name: str, then: float, now: float) -> str:
    relative = abs(now - then) / max(abs(then), abs(now)) if then or now else 0.0
    return f"{name}: {then:.8g} then, {now:.8g} now ({100 * relative:.2g} %)"
