"""Differences between two configurations, and whether they are the same but for the seed."""

from collections.abc import Iterator, Sequence
from typing import Any

from project.runs.records import Provenance

# Where a run is and how fast it is, not what comes out.
IRRELEVANT_KEYS = (
    *("trainer.logger", "trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
    *("trainer.log_every_n_steps", "trainer.num_sanity_val_steps", "trainer.profiler", "trainer.enable_checkpointing"),
    *("checkpoint.dirpath", "checkpoint.verbose", "data.root", "data.num_workers", "data.eval_batch_size"),
)
REPETITION = ("seed_everything", "data.seed", "model.init_args.seed", "data.fold")
MAX_LENGTH = 90  # characters of a value


def config_key_without_seed(config: dict[str, Any]) -> str:
    """A text that is equal for configurations which differ in nothing but seed and fold."""
    return repr(sorted((key, repr(value)) for key, value in _flatten(config).items() if key not in REPETITION))


def differences(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str] = ("a", "b")) -> list[str]:
    """What is set differently, one line each, as "optimizer.init_args.lr: 0.001 in a, 0.003 in b"."""
    a, b = names
    return [f"{k}: {shorten(one)} in {a}, {shorten(other)} in {b}" for k, one, other in changed_settings(first, second)]


def short_difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """What is set differently in the second, in a few words; empty if it takes more."""
    changes = [(key, other) for key, _, other in changed_settings(first, second) if key not in REPETITION]
    text = ", ".join(f"{key.split('.')[-1]} {shorten(other)}" for key, other in changes)
    return text if len(changes) <= 2 and len(text) <= 40 else ""


def environment(run: Provenance) -> dict[str, Any]:
    """Code, status, package versions and machine of a run, for `differences`."""
    commit = (run.commit or "none")[:7] + (" with changes" if run.dirty else "")
    machine = {name: run.hardware.get(name) for name in ("processor", "cores", "gpus")}
    return {"commit": commit, "status": run.status, **run.versions, **machine}


def _flatten(config: dict[str, Any], ignored: Sequence[str] = IRRELEVANT_KEYS, parent: str = "") -> dict[str, Any]:
    """Dotted key -> value, without what is not set or ignored."""
    flat = dict[str, Any]()
    for name, value in config.items():
        key = f"{parent}{name}"
        if isinstance(value, dict):
            flat |= _flatten(value, ignored, f"{key}.")
        elif value is not None and not is_below(key, ignored):
            flat[key] = value
    return flat


def changed_settings(
    first: dict[str, Any], second: dict[str, Any], ignored: Sequence[str] = IRRELEVANT_KEYS
) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, first and second value of what differs."""
    a, b = _flatten(first, ignored), _flatten(second, ignored)
    for key in a | b:
        if a.get(key) != b.get(key):
            yield key, a.get(key), b.get(key)


def shorten(value: Any) -> str:
    """A value of a configuration as text."""
    text = "not set" if value is None else str(value)
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."


def is_below(key: str, parents: Sequence[str]) -> bool:
    """Whether a dotted key is one of `parents`, or inside of one."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)
