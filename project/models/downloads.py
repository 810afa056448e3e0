"""Downloads of pretrained weights: what to do when one fails, and building networks without them."""

import re
from typing import Any

from project.errors import UserError

# Libraries whose errors are about connections, by name: which of them is installed is up to huggingface_hub.
CLIENTS = (
    *("urllib", "socket", "ssl", "requests", "urllib3", "huggingface_hub"),
    *("httpx", "httpx2", "httpcore", "httpcore2"),
)


def explain_download(error: BaseException) -> UserError | None:
    """Error to raise if a network could not be built because the download of its weights failed; else None.

    Args:
        error: As caught; its causes are looked through.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    reason, address, current = "", "", error
    while current is not None:
        package = type(current).__module__.partition(".")[0]
        if package in CLIENTS or isinstance(current, ConnectionError | TimeoutError):
            reason = next(iter(str(current).strip().splitlines()), type(current).__name__)
        if not address and (match := re.search(r"https?://[^\s'\"]+", str(current))):
            address = f" from {match[0].rstrip('.,:)')}"
        current = current.__cause__ or current.__context__  # type: ignore[assignment]
    if not reason:
        return None
    return UserError(
        f"the pretrained weights of the network could not be downloaded{address}:\n  {reason}\n"
        "On a machine with a network, build it once, and copy its cache with links (rsync -a) to\n"
        f"  {HF_HUB_CACHE}\n"
        "or start without weights (encoder_weights: null, or pretrained: false), or from a file with these and\n"
        "  pretrained: {file: FILE.pth, part: encoder}\nfor the task."
    )


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
    off = {"encoder_weights": None, "pretrained": False if isinstance(config.get("pretrained"), bool) else None}
    return {key: off[key] if key in off else without_downloads(value) for key, value in config.items()}
