"""Run folders from elsewhere: their configuration names classes, and importing a class runs the code of its module.

Without `--trust` a configuration may name the libraries in `LIBRARIES`, modules that git tracks here, and modules that
an experiment of this checkout names. jsonargparse refuses to import anything else, however it is written.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
# The keys of `trainer:` that decide how numbers are computed. Loggers, profilers and callbacks could write files.
TRAINER_KEYS = ("accelerator", "precision", "benchmark", "deterministic")


def read_config(path: Path) -> dict[str, Any]:
    """A configuration from a run folder, as plain values; UserError if it is damaged."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not content:
            raise ValueError("it has no sections")
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
    refuse_links(run)
    config = read_config(run.config)
    for section in ("model", "trainer"):
        if not isinstance(config.get(section), dict):
            raise UserError(f'"{run.config}" has no section "{section}"; copy the run folder again')
    # The project's own samplers divide samples among devices; Lightning's would repeat some.
    fixed = {"use_distributed_sampler": False, "enable_model_summary": False}
    used = config | {"trainer": {key: v for key, v in config["trainer"].items() if key in TRAINER_KEYS} | fixed}
    if trusted:
        yield used
        return
    if foreign := foreign_code(config):
        raise UserError(
            f'"{run.folder}" names code from outside this project and its libraries, which would be run:\n'
            f"{bullet_list(foreign)}\nIf the code is yours, let git track it (git add) or name it in an experiment; "
            "if you know where the run comes from, add --trust (make: ARGS=--trust)"
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
    refuse_links(run)
    if not (trusted or is_below_runs(run.folder)):
        raise UserError(
            f'"{run.folder}" does not lie below {RUNS}/, and code that it names or holds would be run; if you know '
            "where it comes from, add --trust (make: ARGS=--trust)"
        )


def refuse_links(run: Run) -> None:
    """Refuse links in a run folder from elsewhere: what is written would follow them."""
    links = [] if is_below_runs(run.folder) else [path for path in run.folder.rglob("*") if path.is_symlink()]
    links = [path for path in links if "wandb" not in path.relative_to(run.folder).parts]  # neither read nor written
    if links:
        raise UserError(
            f'"{run.folder}" is a run from elsewhere with symbolic links, which would be followed:\n'
            f"{bullet_list(str(path.relative_to(run.folder)) for path in links)}\n"
            "Replace them by what they point to, or remove them"
        )


def is_below_runs(folder: Path) -> bool:
    """Whether a run folder is below runs/, where the folder of an experiment may be a link to a larger disk."""
    is_below = ".." not in folder.parts and folder.absolute().is_relative_to(RUNS.absolute())
    return is_below and not folder.is_symlink()


# What a configuration names -------------------------------------------------------------------------------------------


def _texts(content: Any) -> Iterator[str]:
    """All texts of a configuration, keys included; what YAML references repeat is looked at once."""
    stack, seen = [content], set[int]()
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            stack += [*value, *value.values()] if isinstance(value, dict) else value


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
    names, tops = set[str](), {library.partition(".")[0] for library in LIBRARIES}
    for path in (DEFAULT_CONFIG, *sorted((DEFAULT_CONFIG.parent / "experiments").glob("*.yaml"))):
        with suppress(UserError):
            for name in _dotted(read_config(path)):
                names.add(name if name.partition(".")[0] in tops else name.rpartition(".")[0])
    tracked = set((git("ls-files", "-z", "--", "*.py") or "").split("\0"))
    return names | {module for name in _dotted(config) if (module := _tracked_module(name, tracked))}


def _tracked_module(name: str, tracked: set[str]) -> str | None:
    """The module of a dotted name, if git tracks all files that importing it runs."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        files = [Path(*parts[:depth]).with_suffix(".py"), Path(*parts[:depth], "__init__.py")]
        if any(file.is_file() for file in files):
            files += [Path(*parts[:above], "__init__.py") for above in range(1, depth)]
            existing = {file.as_posix() for file in files if file.is_file()}
            return ".".join(parts[:depth]) if existing <= tracked else None
    return None
