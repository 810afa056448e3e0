"""What comes from elsewhere: run folders name classes, and importing a class runs the code of its module."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import all_suffixes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from project.errors import UserError, bullet_list
from project.provenance import git
from project.runs.run_folder import RUNS, Run
from project.yaml_files import DEFAULT_CONFIG

# A configuration from anywhere may name what is in these. Other parts of torch run text or files that they are given.
KNOWN = (
    *("project", "torch.nn", "torch.optim", "torch._C._nn", "torch._VariableFunctionsClass", "lightning"),
    *("torchmetrics", "torchvision", "segmentation_models_pytorch", "timm", "albumentations"),
)
PACKAGES = {known.partition(".")[0] for known in KNOWN}
# A configuration has some kilobytes and some hundred values. YAML can write millions in a few lines, by references.
MOST_BYTES, MOST_VALUES = 2**20, 100_000
# What of `trainer:` decides how numbers are computed. Nothing else counts after the training.
TRAINER = ("accelerator", "precision", "benchmark", "deterministic")
NOT_CODE = ("runs", "data")  # folders here that hold what was written by programs, or fetched


def read_config(path: Path) -> dict[str, Any]:
    """A configuration that comes from a run folder: plain values, no more than can be meant.

    Raises:
        UserError: It is damaged, or no configuration.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f'"{path}" has {path.stat().st_size:,} bytes: that is no configuration of a run')
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        values = sum(1 for _ in _texts(content))
    except UserError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'"{path}" is damaged: {reason}; copy the run folder again') from error
    if not isinstance(content, dict) or not values:
        raise UserError(f'"{path}" is no configuration of a run; copy the run folder again')
    return content


def read_provenance(run: Run) -> dict[str, Any]:
    """The provenance.json of a run folder; what becomes part of a file name elsewhere is a plain name.

    Raises:
        UserError: It is damaged, or a name leads out of its folder.
    """
    try:
        facts = run.read("provenance.json")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f'"{run.folder / "provenance.json"}" is damaged ({error}); copy the run folder again'
        ) from error
    if not facts.get("experiment"):
        raise UserError(f'"{run.folder / "provenance.json"}" does not say what was run; copy the run folder again')
    for key in ("experiment", "dataset", "task"):
        value = facts.get(key, "")
        if not isinstance(value, str) or (value and value != safe_file_name(value)):
            raise UserError(f'"{run.folder / "provenance.json"}": {key} is {value!r}, which is no name')
    return facts


def require_trusted_location(run: Run, trusted: bool) -> None:
    """Refuse a run folder that does not lie below runs/, where this is about to do what it says, whatever that is.

    Args:
        run: The run folder.
        trusted: Whether the user said that it may.

    Raises:
        UserError: It lies elsewhere, or holds links.
    """
    check_links(run)
    if not (trusted or _is_own(run.folder)):
        raise UserError(
            f'"{run.folder}" does not lie below {RUNS}/, and code that it names or holds would be run; if you know '
            "where it comes from, add --trust"
        )


@contextmanager
def restrict_imports(run: Run, content: dict[str, Any], typed: list[str], trusted: bool = False) -> Iterator[None]:
    """Let a configuration from a run folder name classes and functions of known packages only.

    These are `KNOWN`, and modules in the working folder that git tracks or that an experiment of
    this checkout names (but for those below runs/, data/ and the run folder itself). A run below runs/ may also name
    packages that an experiment of this checkout names. What is typed is the user's own. Inside the context,
    jsonargparse refuses to import anything else, whatever way a value is written, and also what a known module only
    passes on (`torch.os.system`).

    Args:
        run: The run folder.
        content: Its configuration.
        typed: What was typed, `--key value`.
        trusted: Whether the user said so: then nothing is checked.

    Raises:
        UserError: The configuration names something else; the message says what.
    """
    if trusted:
        yield
        return
    names, own = set(_dotted(content)), _own_modules()
    if foreign := sorted(name for name in names if not _allowed(name, run, own)):
        raise UserError(
            f'"{run.folder}" names code from outside this project and its libraries of layers, which would be run:\n'
            f"{bullet_list(foreign)}\nIf the code is yours, let git track it (`git add`) or name it in an experiment; if "  # noqa: E501
            "you know where the run comes from, add --trust"
        )
    allowed = {*KNOWN, *(name if _top(name) in PACKAGES else _top(name) for name in _dotted(_values(typed)))}
    for name in names:
        if _top(name) in PACKAGES:
            allowed.add(name)
        elif find_spec(_top(name)):
            module, _ = _local_module(name, [Path.cwd()])
            allowed.add(module or _top(name))
    allowed = {name for name in allowed if all(part.isidentifier() for part in name.split("."))}
    with _only(sorted(name for name in allowed if _top(name) != "jsonargparse"), run):
        yield


@contextmanager
def evaluation_config(run: Run, typed: list[str], trusted: bool = False) -> Iterator[dict[str, Any]]:
    """The configuration of a run for its evaluation, which may import only what `importing` allows.

    Of `trainer:` only `TRAINER` counts: loggers, profilers, callbacks and plugins of a run from elsewhere could write
    and delete files, and limits would leave samples out.

    Args:
        run: The run folder.
        typed: Overrides, `--key value`; the user's own.
        trusted: Whether the user said so.

    Raises:
        UserError: The configuration is damaged, or names code from elsewhere, or the run folder holds links.
    """
    check_links(run)
    config = read_config(run.config)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise UserError(f'"{run.config}" has no section "trainer"; copy the run folder again')
    with restrict_imports(run, config, typed, trusted):
        # The project's samplers share out samples between devices; Lightning's would repeat some.
        fixed = {"use_distributed_sampler": False, "enable_model_summary": False}
        yield config | {"trainer": {key: trainer[key] for key in TRAINER if key in trainer} | fixed}


def check_links(run: Run) -> None:
    """Refuse a run folder from elsewhere that holds anything but folders and files: what is written would follow links.

    Raises:
        UserError: It does; the message names them.
    """
    if _is_own(run.folder):
        return
    wrong = []
    for folder, names, files in os.walk(run.folder):
        names[:] = [name for name in names if name != "wandb"]  # nothing here reads or writes below it
        for path in (Path(folder, name) for name in [*names, *files]):
            mode = path.lstat()
            shared = path.name == "log.txt" and mode.st_nlink > 1  # is appended to
            if shared or not (stat.S_ISREG(mode.st_mode) or stat.S_ISDIR(mode.st_mode)):
                wrong.append(str(path.relative_to(run.folder)))
    if wrong:
        raise UserError(
            f'"{run.folder}" is a run from elsewhere with symbolic links or special files, which would be followed:\n'
            f"{bullet_list(wrong)}\nReplace them by what they point to, or remove them"
        )


@contextmanager
def _only(packages: list[str], run: Run) -> Iterator[None]:
    from jsonargparse import _common, set_parsing_settings

    before = dict(_common.parsing_settings)  # there is no public way to have them back
    inside = [*NOT_CODE, ".".join(_below_here(run.folder) or ())]
    denied = [name for name in inside if name and all(part.isidentifier() for part in name.split("."))]
    try:
        set_parsing_settings(
            import_path_denylist=["*"], import_path_allowlist=packages, instantiate_subclass_spec_in_any=False
        )
        set_parsing_settings(import_path_denylist=denied)
        yield
    finally:
        _common.parsing_settings.clear()
        _common.parsing_settings.update(before)


def safe_file_name(text: str, longest: int = 200) -> str:
    """A text from a data file or a run as the name of a file: it can neither leave a folder nor be too long for one."""
    plain = text.replace("/", "_")
    name = re.sub(r"[\\\x00-\x1f\x7f]", "_", plain)
    if name != plain or len(name.encode()) > longest:  # two texts shall not have one name
        import hashlib

        kept = name.encode()[: longest - 9].decode(errors="ignore")
        name = f"{kept}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name if name.strip(".") else f"_{name}"


# What a configuration names -------------------------------------------------------------------------------------------


def _texts(content: Any) -> Iterator[str]:
    """All texts of a configuration, those in keys included.

    Raises:
        UserError: There are more values than any configuration has.
    """
    stack, seen = [content], 0
    while stack:
        value = stack.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise UserError(
                f"the configuration has more than {MOST_VALUES:,} values: that is no configuration of a run"
            )
        if isinstance(value, dict):
            stack += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            stack += value
        elif isinstance(value, str):
            yield value


def _dotted(content: Any) -> Iterator[str]:
    """Everything that could be the path of something to import, such as "torch.nn.MSELoss"."""
    for text in _texts(content):
        yield from re.findall(r"(?<![\w./\\-])[^\W\d]\w*(?:\.[^\W\d]\w*)+(?![\w/\\-])", text)


def _values(typed: list[str]) -> list[str]:
    return [word.partition("=")[2] if word.startswith("--") else word for word in typed]


def _top(name: str) -> str:
    return name.partition(".")[0]


def _allowed(name: str, run: Run, own: set[str]) -> bool:
    """Whether importing a dotted name runs only code of the project's packages, or of the user."""
    if _top(name) in PACKAGES:
        return name in own or any(f"{name}.".startswith(f"{known}.") for known in KNOWN)
    try:
        spec = find_spec(_top(name))  # only of the uppermost package: nothing is imported
    except (ImportError, ValueError, AttributeError):
        return False
    if spec is None:  # "weights.pth"
        return True
    if spec.submodule_search_locations is not None:
        folders = [Path(folder).parent for folder in spec.submodule_search_locations]
    else:
        folders = [Path(spec.origin).parent] if spec.has_location and spec.origin else []
    if folders and all(_below_here(folder / _top(name)) for folder in folders):
        module, files = _local_module(name, folders)
        return all(_is_users(path, run) for path in files) and (module in own or _tracked(files))
    return _is_own(run.folder) and _top(name) in map(_top, own)


def _local_module(name: str, folders: Iterable[Path]) -> tuple[str, list[Path]]:
    """The module of a dotted name, and all files that importing it could run; what follows are its attributes."""
    parts, files, module = name.split("."), list[Path](), ""
    for folder in folders:
        for depth in range(1, len(parts) + 1):
            path = folder.joinpath(*parts[:depth])
            candidates = [path.with_name(path.name + suffix) for suffix in all_suffixes()]
            candidates += [path / f"__init__{suffix}" for suffix in all_suffixes()]
            found = [candidate for candidate in candidates if candidate.is_file()]
            if not found and not path.is_dir():
                break
            files += found
            module = max(module, ".".join(parts[:depth]), key=len)
    return module, files


def _is_users(path: Path, run: Run) -> bool:
    """Whether a file is in the working folder, and neither in an environment nor among runs and data."""
    parts = _below_here(path)
    if parts is None or parts[0] in NOT_CODE or parts[0].startswith(".") or "site-packages" in parts:
        return False
    return not _is_below(path, run.folder)


def _tracked(files: list[Path]) -> bool:
    """Whether git tracks all of these files, and there are any."""
    listed = git("ls-files", "-z", "--", *map(str, files)) if files else None
    return len({name for name in (listed or "").split("\0") if name}) == len({path.resolve() for path in files}) > 0


def _own_modules() -> set[str]:
    """Modules, and names as they are, that the experiments of this checkout name."""
    found = set[str]()
    for path in (DEFAULT_CONFIG, *sorted((DEFAULT_CONFIG.parent / "experiments").glob("*.yaml"))):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        for name in _dotted(content):
            found |= {name, name.rpartition(".")[0]}
    return found


def _is_own(folder: Path) -> bool:
    """Whether a run folder lies below runs/, where the folder of an experiment may be a link, as to a larger disk."""
    linked = os.path.realpath(folder.parent.parent) == os.path.realpath(RUNS) and not folder.is_symlink()
    return _is_below(folder, RUNS) or (linked and folder.stat().st_uid == os.getuid())


def _is_below(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _below_here(path: Path) -> tuple[str, ...] | None:
    """The parts of a path from the working folder on; None if it lies elsewhere."""
    here, place = Path(os.path.realpath(".")), Path(os.path.realpath(path))
    return place.relative_to(here).parts or None if place.is_relative_to(here) else None
