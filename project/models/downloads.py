"""Downloads of pretrained weights: what to do when one fails, and building networks without them."""

import re
import socket
import ssl
import traceback
import urllib.error
from collections.abc import Iterator
from typing import Any

from project.errors import UserError

SOCKETS = (urllib.error.URLError, socket.gaierror, ssl.SSLError, ConnectionError, TimeoutError)
# By name: which of them is installed is up to huggingface_hub.
CLIENTS = {"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2"}


def explain_download(error: BaseException) -> UserError | None:
    """Error to raise if a network could not be built because the download of its weights failed; else None.

    Args:
        error: As caught, with its traceback; its causes are looked through.
    """
    errors = list(_causes(error))
    failed = [e for e in errors if _is_download(e)]
    if not failed:
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    reason = next(iter(str(failed[-1]).strip().splitlines()), type(failed[-1]).__name__)
    address = next((match[0] for e in errors if (match := re.search(r"https?://[^\s'\"]+", str(e)))), None)
    address = (address or _local(errors, "url") or "").rstrip(".,:)")
    encoder, model = _local(errors, "encoder_name"), _local(errors, "model_name")
    off, part = ("encoder_weights: null", ", part: encoder") if encoder else ("pretrained: false", "")
    return UserError(
        f'the pretrained weights of "{encoder or model or "the network"}" could not be downloaded'
        f"{f' from {address}' if address else ''}:\n  {reason}\n"
        "On a machine with a network, build it once, and copy its cache with links (rsync -a) to\n"
        f"  {HF_HUB_CACHE}\nor start without weights ({off}), or from a file with  {off}  for the network and\n"
        f"  pretrained: {{file: FILE.pth{part}}}\nfor the task."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that led to it, each once."""
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop(0)
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            waiting += [e for e in (current.__cause__, current.__context__) if e is not None]


def _is_download(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    hub = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    return isinstance(error, SOCKETS + hub) or type(error).__module__.partition(".")[0] in CLIENTS


def _local(errors: list[BaseException], name: str) -> str | None:
    """A local variable of the calls that failed: smp and timm do not name the encoder in their errors."""
    for error in errors:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if isinstance(value := frame.f_locals.get(name), str):
                return value
    return None


def without_downloads(config: Any) -> Any:
    """A copy of a configuration that builds its networks without weights, for those that load a checkpoint anyway.

    Every `encoder_weights` and `pretrained` becomes None, or False where it was a switch.

    Args:
        config: Dictionaries and lists, as from YAML, with the defaults of smp resolved: its `encoder_weights` is
            "imagenet" by default.
    """
    if isinstance(config, list):
        return [without_downloads(item) for item in config]
    if not isinstance(config, dict):
        return config
    return {
        key: (False if isinstance(value, bool) and key == "pretrained" else None)
        if key in ("encoder_weights", "pretrained")
        else without_downloads(value)
        for key, value in config.items()
    }
