"""Run folders from elsewhere: their configuration names classes, and importing a class runs the code of its module.

Without `--trust` a configuration may name the libraries in `LIBRARIES`, modules that git tracks here, and modules that
an experiment of this checkout names. jsonargparse refuses to import anything else, however it is written.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from project.errors import UserError, bullet_list
from project.provenance import git
from project.runs.run_folder import RUNS, Run
from project.yaml_files import DEFAULT_CONFIG

# Not all of torch: other parts of it run text or files that they are given.
LIBRARIES = (
    *("project", "torch.nn", "torch.optim", "torch._C._nn", "torch._VariableFunctionsClass", "lightning"),
    *("torchmetrics", "torchvision", "segmentation_models_pytorch", "timm", "albumentations"),
)
NOT_CODE = ("runs", "data")  # folders of files that programs wrote or that were downloaded
# A configuration has some kilobytes and some hundred values; YAML references can write millions in a few lines.
MAX_BYTES, MAX_VALUES = 2**20, 100_000
# The keys of `trainer:` that decide how numbers are computed. Loggers, profilers and callbacks could write files.
TRAINER_KEYS = ("accelerator", "precision", "benchmark", "deterministic")


def read_config(path: Path) -> dict[str, Any]:
    """A configuration from a run folder, as plain values and of limited size; UserError if it is damaged."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"it has {size:,} bytes")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not content:
            raise ValueError("it has no sections")
        for _ in _texts(content):
            pass
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f'"{path}" is no configuration of a run, or damaged: {reason}. Copy the run folder again'
        ) from error
    return content


@contextmanager
def evaluation_config(run: Run, overrides: list[str], trusted: bool = False) -> Iterator[dict[str, Any]]:
    """The configuration of a run for its evaluation; inside the context, only the code listed above is imported.

    Of `trainer:` only `TRAINER_KEYS` count. The user's `overrides` (`--key value`) may name any code; the configuration
    only if it is `trusted`.

    Raises:
        UserError: The configuration is damaged or names code from elsewhere, or the run folder holds links.
    """
    check_links(run)
    config = read_config(run.config)
    for section in ("model", "trainer"):
        if not isinstance(config.get(section), dict):
            raise UserError(f'"{run.config}" has no section "{section}"; copy the run folder again')
    # The project's own samplers divide samples among devices; Lightning's would repeat some.
    fixed = {"use_distributed_sampler": False, "enable_model_summary": False}
    kept = {key: value for key, value in config["trainer"].items() if key in TRAINER_KEYS}
    used = config | {"trainer": kept | fixed}
    if trusted:
        yield used
        return
    if foreign := foreign_code(config):
        raise UserError(
            f'"{run.folder}" names code from outside this project and its libraries, which would be run:\n'
            f"{bullet_list(foreign)}\nIf the code is yours, let git track it (git add) or name it in an experiment; "
            "if you know where the run comes from, add --trust"
        )
    values = [word.partition("=")[2] if word.startswith("--") else word for word in overrides]
    allowed = {*LIBRARIES, *_own_names(config), *_dotted(values)}
    names = sorted(name for name in allowed if not name.startswith("jsonargparse"))
    before = dict(jsonargparse._common.parsing_settings)  # there is no public way to restore them
    try:
        jsonargparse.set_parsing_settings(
            import_path_denylist=["*"], import_path_allowlist=names, instantiate_subclass_spec_in_any=False
        )
        yield used
    finally:
        jsonargparse._common.parsing_settings.clear()
        jsonargparse._common.parsing_settings.update(before)


def foreign_code(config: dict[str, Any]) -> list[str]:
    """What a configuration names and may not name without trust; names of nothing that exists are left out."""
    prefixes = tuple(f"{name}." for name in (*LIBRARIES, *_own_names(config)))
    return [name for name in sorted(set(_dotted(config))) if not f"{name}.".startswith(prefixes) and _exists(name)]


def require_trusted_location(run: Run, trusted: bool) -> None:
    """Refuse a run folder outside of runs/, whose whole configuration would be used, unless it is trusted."""
    check_links(run)
    if not (trusted or is_below_runs(run.folder)):
        raise UserError(
            f'"{run.folder}" does not lie below {RUNS}/, and code that it names or holds would be run; if you know '
            "where it comes from, add --trust"
        )


def check_links(run: Run) -> None:
    """Refuse links and special files in a run folder from elsewhere: what is written would follow them."""
    if is_below_runs(run.folder):
        return
    special_files = []
    for folder, names, files in os.walk(run.folder):
        names[:] = [name for name in names if name != "wandb"]  # is neither read nor written
        for path in (Path(folder, name) for name in [*names, *files]):
            mode = path.lstat()
            shared = path.name == "log.txt" and mode.st_nlink > 1  # is appended to
            if shared or not (stat.S_ISREG(mode.st_mode) or stat.S_ISDIR(mode.st_mode)):
                special_files.append(str(path.relative_to(run.folder)))
    if special_files:
        raise UserError(
            f'"{run.folder}" is a run from elsewhere with symbolic links or special files, which would be followed:\n'
            f"{bullet_list(special_files)}\nReplace them by what they point to, or remove them"
        )


def is_below_runs(folder: Path) -> bool:
    """Whether a run folder is below runs/, where the folder of an experiment may be a link to a larger disk."""
    if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(RUNS)):
        return True
    linked = os.path.realpath(folder.parent.parent) == os.path.realpath(RUNS) and not folder.is_symlink()
    return linked and folder.stat().st_uid == os.getuid()


# What a configuration names -------------------------------------------------------------------------------------------


def _texts(content: Any) -> Iterator[str]:
    """All texts of a configuration, keys included; ValueError if there are more values than any configuration has."""
    stack, n_values = [content], 0
    while stack:
        value = stack.pop()
        if (n_values := n_values + 1) > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        if isinstance(value, dict):
            stack += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            stack += value
        elif isinstance(value, str):
            yield value


def _dotted(content: Any) -> Iterator[str]:
    """All texts, or parts of texts, that can be an import path, such as "torch.nn.MSELoss"."""
    for text in _texts(content):
        yield from re.findall(r"(?<![\w./\\-])[^\W\d]\w*(?:\.[^\W\d]\w*)+(?![\w/\\-])", text)


def _exists(name: str) -> bool:
    """Whether the first package of a dotted name can be imported; nothing is imported."""
    try:
        return find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError, AttributeError):
        return True


def _own_names(config: dict[str, Any]) -> set[str]:
    """Modules that the experiments here name, and those in a configuration that git tracks here.

    Of `LIBRARIES` only the very names of the experiments: other names in the same module may do harm.
    """
    names = set[str]()
    tops = {library.partition(".")[0] for library in LIBRARIES}
    for path in (DEFAULT_CONFIG, *sorted((DEFAULT_CONFIG.parent / "experiments").glob("*.yaml"))):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        for name in _dotted(content):
            names.add(name if name.partition(".")[0] in tops else name.rpartition(".")[0])
    tracked = set((git("ls-files", "-z", "--", "*.py") or "").split("\0"))
    return names | {module for name in _dotted(config) if (module := _tracked_module(name, tracked))}


def _tracked_module(name: str, tracked: set[str]) -> str | None:
    """The module of a dotted name, if git tracks all files that importing it runs."""
    parts = name.split(".")
    if parts[0] in NOT_CODE:
        return None
    for depth in range(len(parts) - 1, 0, -1):
        folder = Path(*parts[:depth])
        files = [parent / "__init__.py" for parent in (folder, *folder.parents) if parent != Path()]
        files = [file for file in [folder.with_suffix(".py"), *files] if file.is_file()]
        if folder.with_suffix(".py").is_file() or (folder / "__init__.py").is_file():
            return ".".join(parts[:depth]) if {file.as_posix() for file in files} <= tracked else None
    return None
