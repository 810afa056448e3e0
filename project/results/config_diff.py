"""What two runs were told: whether it is the same but for the seed, and the differences in plain words."""

from collections.abc import Iterator
from typing import Any

# Where a run lies and how fast it is, not what comes out.
NEUTRAL = (
    *("trainer.logger", "trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
    *("trainer.log_every_n_steps", "trainer.num_sanity_val_steps", "trainer.profiler", "trainer.enable_checkpointing"),
    *("checkpoint.dirpath", "checkpoint.verbose", "data.root", "data.num_workers", "data.eval_batch_size"),
)
SEEDS = ("seed_everything", "data.seed", "model.init_args.seed")
FOLD = "data.fold"
WORDS = {
    "seed_everything": "seed",
    "model": "task",
    "model.init_args.net": "network",
    "model.init_args.loss": "loss",
    "model.init_args.intensity": "intensity augmentation",
    "model.init_args.geometry": "augmentation on the device",
    "model.init_args.pretrained": "pretrained weights",
    "model.init_args.finetuning": "fine-tuning",
    "data.transforms": "geometric augmentation",
    "data.fold": "fold for validation",
    "optimizer": "optimizer",
    "optimizer.init_args.lr": "learning rate",
    "lr_scheduler": "learning rate schedule",
    "trainer.max_epochs": "epochs",
    "trainer.max_steps": "steps",
    "trainer.max_time": "time limit",
    "trainer.gradient_clip_val": "gradient clipping",
    "trainer.accumulate_grad_batches": "batches per step",
    "checkpoint.monitor": "best checkpoint by",
}
LONGEST = 90  # characters of a value


def config_key_without_seed(config: dict[str, Any]) -> str:
    """A text that is the same for configurations which give the same but for the seed and the fold."""
    left_out = {*NEUTRAL, *SEEDS, FOLD}
    return repr(sorted((key, repr(value)) for key, value in _flat(config, "") if key not in left_out))


def differences(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str] = ("a", "b")) -> list[str]:
    """What is set differently in two configurations, one line each.

    Args:
        first: A whole configuration, as in config.yaml.
        second: Another.
        names: What they are called.

    Returns:
        As "learning rate: 0.001 in a, 0.003 in b  (optimizer.init_args.lr)".
    """
    lines = []
    for key, one, other in _unlike(first, second, ""):
        if key not in NEUTRAL:
            called = WORDS.get(key) or key.split(".")[-1].replace("_", " ")
            told = f"{called}: {_told(one)} in {names[0]}, {_told(other)} in {names[1]}"
            lines.append(told if called == key else f"{told}  ({key})")
    return lines


def short_difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """What is set differently in the second, in a few words; empty if that takes more."""
    found = [(key, other) for key, _, other in _unlike(first, second, "") if key not in (*NEUTRAL, *SEEDS, FOLD)]
    told = ", ".join(f"{WORDS.get(key) or key.split('.')[-1].replace('_', ' ')} {_told(other)}" for key, other in found)
    return told if len(found) <= 2 and len(told) <= 40 else ""


def environment_differences(
    first: dict[str, Any], second: dict[str, Any], names: tuple[str, str] = ("a", "b")
) -> list[str]:
    """What else is not the same about two runs: code, data, versions, machine.

    Args:
        first: Provenance of one.
        second: Of the other.
        names: What they are called.
    """
    pairs: list[tuple[Any, ...]] = [("commit", _commit(first), _commit(second))]
    pairs.append(("status", first.get("status"), second.get("status")))
    versions = [facts.get("versions") or {} for facts in (first, second)]
    pairs += [(name, *(each.get(name) for each in versions)) for name in dict.fromkeys([*versions[0], *versions[1]])]
    machines = [facts.get("hardware") or {} for facts in (first, second)]
    pairs += [(name, *(each.get(name) for each in machines)) for name in ("processor", "cores", "gpus")]
    return [f"{name}: {_told(a)} in {names[0]}, {_told(b)} in {names[1]}" for name, a, b in pairs if a != b]


def _commit(facts: dict[str, Any]) -> str:
    return str(facts.get("commit") or "none")[:7] + (" with changes" if facts.get("dirty") else "")


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Dotted key -> value, without what is not set."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _flat(each, f"{key}.{name}" if key else str(name))
    elif value is not None:
        yield key, value


def _unlike(first: Any, second: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two values differ; another class is one difference, whatever its arguments."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        if first != second:
            yield key, first, second
    elif key and first.get("class_path") != second.get("class_path"):
        yield key, first, second
    else:
        for name in dict.fromkeys([*first, *second]):
            yield from _unlike(first.get(name), second.get(name), f"{key}.{name}" if key else str(name))


def _told(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _text(value: Any) -> str:
    """A class as "UNet(width 16)", a list in brackets; what is not set is told as such."""
    if value is None or value == []:
        return "not set" if value is None else "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        arguments = value.get("init_args", {}) if "class_path" in value else value
        inside = ", ".join(f"{k} {_text(v)}" for k, v in (arguments or {}).items() if v is not None)
        name = str(value.get("class_path", "")).rpartition(".")[2]
        return f"{name}({inside})" if inside else name
    return str(value)
