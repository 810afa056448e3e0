"""Run folders from elsewhere: their configuration names classes, and importing a class runs the code of its module.

Without `--trust` a configuration may name the libraries in `LIBRARIES`, modules that git tracks here, and what an
experiment of this checkout names. jsonargparse refuses to import anything else, however it is written.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonargparse

from project.errors import UserError, bullet_list
from project.provenance import git
from project.runs.run_folder import RUNS, Run
from project.yaml_files import DEFAULT_CONFIG, read_yaml

log = logging.getLogger("project")
# Not all of torch: other parts of it run text or files that they are given.
LIBRARIES = (
    *("project", "torch.nn", "torch.optim", "torch._C._nn", "torch._VariableFunctionsClass", "lightning"),
    *("torchmetrics", "torchvision", "segmentation_models_pytorch", "timm", "albumentations"),
)
# The keys of `trainer:` that decide how numbers are computed. Loggers, profilers and callbacks could write files.
TRAINER_KEYS = ("accelerator", "precision", "benchmark", "deterministic")
# Options that are gone, at the values that change nothing: older runs have recorded them.
GONE: dict[str, dict[str, Any]] = {
    "project.models.classifier.EncoderClassifier": {"hidden": None},
    "project.transforms.device.DeviceGeometry": {"rotate": [0, 0], "scale": [1, 1], "translate": [0, 0]},
}
CLASS_PATH = r"(?<![\w./\\-])[^\W\d]\w*(?:\.[^\W\d]\w*)+(?![\w/\\-])"  # such as torch.nn.MSELoss


def read_config(path: Path) -> dict[str, Any]:
    """A configuration from a run folder, as plain values; UserError if it is damaged."""
    try:
        content = read_yaml(path)
    except UserError as error:
        raise UserError(f"{error}\nThis is no configuration of a run, or damaged: copy the run folder again") from error
    _drop_gone(content)
    return content


def _drop_gone(value: Any) -> None:
    """Remove the options of `GONE` from a configuration."""
    if isinstance(value, list):
        for item in value:
            _drop_gone(item)
    elif isinstance(value, dict):
        options = value.get("init_args")
        for name, unused in GONE.get(str(value.get("class_path")), {}).items():
            if isinstance(options, dict) and options.get(name) == unused:
                options.pop(name, None)
        for item in value.values():
            _drop_gone(item)


@contextmanager
def evaluation_config(run: Run, overrides: list[str], trusted: bool = False) -> Iterator[dict[str, Any]]:
    """The configuration of a run for its evaluation; inside the context, only the code listed above is imported.

    Of `trainer:` only `TRAINER_KEYS` count. The user's `overrides` (`--key value`) may name any code; the configuration
    only if it is `trusted`.
    """
    refuse_links(run)
    config = read_config(run.config)
    text = run.config.read_text(encoding="utf-8")  # git and other systems may change the ends of its lines
    if run.read("provenance.json").get("config_hash") not in (None, "", hashlib.sha256(text.encode()).hexdigest()):
        log.warning('"%s" was changed after the training: the results are of the changed one', run.config)
    for section in ("model", "trainer"):
        if not isinstance(config.get(section), dict):
            raise UserError(f'"{run.config}" has no section "{section}"; copy the run folder again')
    # The project's own samplers divide samples among devices; Lightning's would repeat some.
    fixed = {"use_distributed_sampler": False, "enable_model_summary": False}
    used = config | {"trainer": {key: v for key, v in config["trainer"].items() if key in TRAINER_KEYS} | fixed}
    if trusted:
        yield used
        return
    allowed = {*LIBRARIES, *_own_names(), *re.findall(CLASS_PATH, " ".join(overrides))}
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


def _own_names() -> set[str]:
    """What the experiments here name, and modules that git tracks here with all packages that they are in.

    Of `LIBRARIES` only the very names of the experiments: other names in the same module may do harm.
    """
    names, tops = set[str](), {library.partition(".")[0] for library in LIBRARIES}
    for path in (DEFAULT_CONFIG, *(DEFAULT_CONFIG.parent / "experiments").glob("*.yaml")):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for name in re.findall(CLASS_PATH, re.sub("#.*", "", text)):
            names.add(name if name.partition(".")[0] in tops else name.rpartition(".")[0])
    tracked = {Path(file) for file in (git("ls-files", "-z", "--", "*.py") or "").split("\0") if file}
    for file in tracked:
        module, packages = file.with_suffix("").parts, [folder / "__init__.py" for folder in file.parents]
        # A package is left out: its name would stand for all modules in it.
        if file not in packages and all(package in tracked or not package.is_file() for package in packages):
            names |= {".".join(module)} if all(map(str.isidentifier, module)) else set()
    return names


def imports_are_restricted() -> bool:
    """Whether this is inside the context of `evaluation_config`, for a run that is not trusted."""
    return "*" in jsonargparse._common.parsing_settings["import_path_verdicts"]


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
