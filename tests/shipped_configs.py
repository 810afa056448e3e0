"""The configurations that the tests use: those of the template, also in a project that changed its own."""

from pathlib import Path

_COPY = Path(__file__).parent / "template/configs"  # made by `make start`
CONFIGS = _COPY if _COPY.is_dir() else Path(__file__).parents[1] / "configs"
