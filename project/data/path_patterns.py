"""Alternatives in path patterns: {split:train|val|test} restricts a field, {0..12} and {405|488} make channels."""

import re

from project.errors import UserError

ALTERNATIVES = r"[^{}:]*\|[^{}:]*|-?\d+\.\.-?\d+"  # "a|b" or "0..12"
RANGE = re.compile(rf"\{{({ALTERNATIVES})\}}")
MAX_ALTERNATIVES = 10_000
FIELD = re.compile(r"\{([^\W\d]\w*)(?::([^{}]*))?\}")


def alternatives(text: str) -> tuple[str, ...]:
    """Texts listed by "a|b|c" or "0..12"; "00..12" pads with zeros."""
    if limits := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text):
        first, last = map(int, limits.groups())
        if abs(last - first) >= MAX_ALTERNATIVES:
            raise UserError(f'"{{{text}}}" in a pattern: these are more than {MAX_ALTERNATIVES} channels or values')
        width = max(len(limit) if re.match("-?0.", limit) else 1 for limit in limits.groups())
        step = 1 if first <= last else -1
        return tuple(f"{number:0{width}d}" for number in range(first, last + step, step))
    options = tuple(option.strip() for option in text.split("|"))
    if "" in options or len(set(options)) < len(options):
        raise UserError(f'"{{{text}}}" in a pattern: each alternative must occur once, and none may be empty')
    return options


def field_names(pattern: str) -> list[str]:
    """The names of the fields in a pattern, in their order."""
    return [name for name, _ in FIELD.findall(pattern)]


def field_values(patterns: list[str]) -> dict[str, tuple[str, ...]]:
    """Field -> the values that it is restricted to in any of the patterns, by {field:a|b}; it means the same in all."""
    values: dict[str, tuple[str, ...]] = {}
    for name, text in (match for pattern in patterns for match in FIELD.findall(pattern) if match[1]):
        options = alternatives(text)
        if set(values.setdefault(name, options)) != set(options):
            raise UserError(
                f"the field {{{name}}} is restricted to {'|'.join(values[name])} and, in another pattern, to {text}"
            )
    return values


def expand_channels(patterns: dict[str, str]) -> dict[str, str]:
    """Channel name -> pattern, one channel for each alternative: {"z": "{0..1}/{id}.tif"} gives "z[0]" and "z[1]"."""
    expanded: dict[str, str] = {}
    for name, pattern in patterns.items():
        if match := RANGE.search(pattern):
            before, after = pattern[: match.start()], pattern[match.end() :]
            options = {f"{name}[{option}]": f"{before}{option}{after}" for option in alternatives(match[1])}
            expanded |= expand_channels(options)
        else:
            expanded[name] = pattern
    return expanded
