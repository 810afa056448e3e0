"""Tests of the template's own README, notebooks and experiments: left out for files that you have changed.

`digests.json` has the SHA-256 of each file as the template ships it; `python tests/template/digests.py` writes it.
"""

import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIGESTS = Path(__file__).with_name("digests.json")
SHIPPED = ("README.md", "notebooks/*.ipynb", "configs/default.yaml", "configs/experiments/*.yaml")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shipped(pattern: str) -> list[str]:
    """Unchanged files of the template that match a pattern, relative to the root of the repository."""
    known = json.loads(DIGESTS.read_text())
    names = [name for name in known if Path(name).match(pattern)]
    return [name for name in names if (ROOT / name).is_file() and digest(ROOT / name) == known[name]]


if __name__ == "__main__":
    files = sorted(str(path.relative_to(ROOT)) for pattern in SHIPPED for path in ROOT.glob(pattern))
    DIGESTS.write_text(json.dumps({name: digest(ROOT / name) for name in files}, indent=1) + "\n")
