"""Differences between two configurations, and whether they are the same but for the seed."""

from collections.abc import Iterator
from typing import Any

from project.runs.records import Provenance

# Where a run is and how fast it is, not what comes out.
IRRELEVANT_KEYS = (
    *("trainer.logger", "trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
    *("trainer.log_every_n_steps", "trainer.num_sanity_val_steps", "trainer.profiler", "trainer.enable_checkpointing"),
    *("checkpoint.dirpath", "checkpoint.verbose", "data.root", "data.num_workers", "data.eval_batch_size"),
)
SEEDS = ("seed_everything", "data.seed", "model.init_args.seed")
FOLD = "data.fold"
MAX_LENGTH = 90  # characters of a value


def config_key_without_seed(config: dict[str, Any]) -> str:
    """A text that is equal for configurations which differ in nothing but seed and fold."""
    ignored = {*IRRELEVANT_KEYS, *SEEDS, FOLD}
    return repr(sorted((key, repr(value)) for key, value in _flatten(config, "") if key not in ignored))


def differences(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str] = ("a", "b")) -> list[str]:
    """What is set differently, one line each, as "optimizer.init_args.lr: 0.001 in a, 0.003 in b"."""
    return [
        f"{key}: {_shorten(one)} in {names[0]}, {_shorten(other)} in {names[1]}"
        for key, one, other in _changed(first, second, "")
        if key not in IRRELEVANT_KEYS
    ]


def short_difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """What is set differently in the second, in a few words; empty if it takes more."""
    ignored = (*IRRELEVANT_KEYS, *SEEDS, FOLD)
    changes = [(key, other) for key, _, other in _changed(first, second, "") if key not in ignored]
    text = ", ".join(f"{key.split('.')[-1]} {_shorten(other)}" for key, other in changes)
    return text if len(changes) <= 2 and len(text) <= 40 else ""


def environment(run: Provenance) -> dict[str, Any]:
    """Code, status, package versions and machine of a run, for `differences`."""
    commit = (run.commit or "none")[:7] + (" with changes" if run.dirty else "")
    machine = {name: run.hardware.get(name) for name in ("processor", "cores", "gpus")}
    return {"commit": commit, "status": run.status, **run.versions, **machine}


def _flatten(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Dotted key -> value, without what is not set."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flatten(item, f"{key}.{name}" if key else str(name))
    elif value is not None:
        yield key, value


def _changed(first: Any, second: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two values differ; another class is one difference, whatever its arguments."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        if first != second:
            yield key, first, second
    elif key and first.get("class_path") != second.get("class_path"):
        yield key, first, second
    else:
        for name in dict.fromkeys([*first, *second]):
            yield from _changed(first.get(name), second.get(name), f"{key}.{name}" if key else str(name))


def _shorten(value: Any) -> str:
    text = _format(value)
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."


def _format(value: Any) -> str:
    """A class as "UNet(width 16)", a list with commas."""
    if value is None or value == []:
        return "not set" if value is None else "none"
    if isinstance(value, list):
        return ", ".join(map(_format, value))
    if isinstance(value, dict):
        arguments = value.get("init_args", {}) if "class_path" in value else value
        inside = ", ".join(f"{k} {_format(v)}" for k, v in (arguments or {}).items() if v is not None)
        name = str(value.get("class_path", "")).rpartition(".")[2]
        return f"{name}({inside})" if inside else name
    return str(value)
