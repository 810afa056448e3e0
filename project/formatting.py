"""Numbers, shares and lists in messages."""

from collections.abc import Sequence
from typing import Any

FEW = 4  # places named in one sentence
LONGEST = 30  # characters of an id in a sentence


def format_number(value: float | None) -> str:
    """A number for people: 4 digits, or the whole part."""
    if value is None:
        return "-"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def format_percent(share: float | None) -> str:
    """A share in per cent; a little is never shown as nothing, and nearly all never as all."""
    if share is None or share in (0, 1):
        return "-" if share is None else f"{share * 100:.0f} %"
    return f"{share * 100:.2g} %" if share < 0.1 else f"{min(share * 100, 99.9):.3g} %"


def shorten(text: str) -> str:
    """An id of at most `LONGEST` characters, cut in the middle: names differ at their ends."""
    return text if len(text) <= LONGEST else f"{text[:12]}...{text[-15:]}"


def first_few(places: Sequence[Any], rest: str = "images.csv") -> str:
    """The first few places, how many more there are, and in which file."""
    more = f" and {len(places) - FEW} more (see {rest})" if len(places) > FEW else ""
    return ", ".join(str(place) for place in places[:FEW]) + more


def count_of(count: int, total: int, noun: str = "image") -> str:
    """Such as "1 of 8 images has" or "3 of 8 images have"."""
    return f"{count} of {total} {noun}s {'has' if count == 1 else 'have'}"


def format_channels(role: str, channels: Sequence[str]) -> str:
    """Channels of one role that one sentence is about, as "image/red, green, blue"."""
    more = f" and {len(channels) - FEW} more channels" if len(channels) > FEW else ""
    return f"{role}/{', '.join(channels[:FEW])}{more}"
