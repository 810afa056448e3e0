"""Weights that have to be fetched: what to say when they cannot be, and how to do without."""

import re
import socket
import ssl
import traceback
import urllib.error
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from project.errors import UserError

SOCKETS = (urllib.error.URLError, socket.gaierror, ssl.SSLError, ConnectionError, TimeoutError)
# Told by name: which of them is installed is up to huggingface_hub.
CLIENTS = {"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2"}
HUB = re.compile(r"https?://[^/\s]+/(?P<repo>[^/\s]+/[^/\s]+)/resolve/(?P<revision>[^/\s]+)/")


def explain_download(error: BaseException) -> UserError | None:
    """What to do, if a network could not be built because its weights could not be downloaded; else None.

    Args:
        error: As caught, with its traceback; its causes are looked through.
    """
    errors = list(_causes(error))
    failed = [e for e in errors if _is_download(e)]
    if not failed:
        return None
    place = _place_of(errors)
    name = _local(errors, "encoder_name", "model_name")
    reason = next(iter(str(failed[-1]).strip().splitlines()), type(failed[-1]).__name__)
    what = f'of "{name}" ' if name else ""
    where = f" from {place.partition('/resolve/')[0]}" if place else ""
    smp = _local(errors, "encoder_name") is not None
    off, part = ("encoder_weights: null", ", part: encoder") if smp else ("pretrained: false", "")
    return UserError(
        f"the pretrained weights {what}could not be downloaded{where}:\n  {reason}\n"
        f"{_how_to_copy(place)}"
        f"Or start without them, {off}, or from a file with  {off}  for the network and\n"
        f"  pretrained: {{file: FILE.pth{part}}}\n"
        "for the task."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that led to it, each once."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [e for e in (current.__cause__, current.__context__) if e is not None]


def _is_download(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    hub = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    return isinstance(error, SOCKETS + hub) or type(error).__module__.partition(".")[0] in CLIENTS


def _place_of(errors: Iterable[BaseException]) -> str | None:
    """The address in question: in a message, in a request, or in what was being called."""
    errors = list(errors)
    for error in errors:
        if found := re.search(r"https?://\S+", str(error)):
            return found[0].rstrip(".,:)")
        # httpx raises where there is no request.
        request = error.__dict__.get("_request") or error.__dict__.get("request")
        if url := getattr(request, "url", None):
            return str(url)
    return _local(errors, "url")


def _local(errors: Iterable[BaseException], *names: str) -> str | None:
    """A variable in the calls that failed. Neither smp nor urllib says in its errors what it was asked for."""
    for error in errors:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            for name in names:
                if isinstance(value := frame.f_locals.get(name), str):
                    return value
    return None


def _how_to_copy(place: str | None) -> str:
    if place and (found := HUB.match(place)):
        from huggingface_hub.constants import HF_HUB_CACHE

        repo, revision = found["repo"], found["revision"]
        return (
            "On a machine with a network, fetch them:\n"
            '  python -c "from huggingface_hub import snapshot_download as fetch; '
            f"print(fetch('{repo}', revision='{revision}', allow_patterns=['*.json', '*.safetensors']))\"\n"
            f"then copy the folder models--{repo.replace('/', '--')} with its links (rsync -a) from its cache to\n"
            f"  {HF_HUB_CACHE}\n"
            "and set HF_HUB_OFFLINE=1, so that nothing is looked up first.\n"
        )
    if place:
        return f"On a machine with a network, fetch that file, and put it into\n  {torch.hub.get_dir()}/checkpoints\n"
    return "Check the network.\n"


def without_downloads(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a configuration that builds its networks without weights, for those that get a checkpoint's anyway.

    Every `encoder_weights` becomes None, every `pretrained` None, or False where it was a switch.

    Args:
        config: Dictionaries and lists, as from YAML. Keys that are not written have their defaults: give the resolved
            configuration, since `encoder_weights` of smp is "imagenet" by default.
    """
    copied: dict[str, Any] = _without_downloads(config)
    return copied


def _without_downloads(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_downloads(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        k: _nothing(k, v) if k in ("encoder_weights", "pretrained") else _without_downloads(v) for k, v in value.items()
    }


def _nothing(key: str, value: Any) -> Any:
    return False if isinstance(value, bool) and key == "pretrained" else None
