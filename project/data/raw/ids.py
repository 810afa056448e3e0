"""Which sample a cell of a table means: its id, its file, or either without leading zeros."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from project.data.raw.headers import SUFFIXES


class IdIndex:
    """The sample that a cell of a table means: by its id, by its file, or by either without leading zeros.

    "img_1.tif" means the id "img_1" unless that text is an id itself. A path means the image whose file below the raw
    folder ends like it, or the other way round ("phase/001.tif", "001", "/data/raw/phase/001.tif"). "80" means "080",
    as spreadsheets drop zeros. A text that could mean two samples means none.
    """

    def __init__(self, ids: Iterable[str], files: Iterable[tuple[str, Sequence[Path]]] = ()) -> None:
        """Take up the ids, and the paths of files below the raw folder, as (id, paths)."""
        self.ids = set(ids)
        self.bridged: list[tuple[str, str]] = []
        self._tails, self._files = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        self._unpadded = defaultdict[str, set[str]](set)
        for id_, paths in [*((id_, [Path(id_)]) for id_ in self.ids), *files]:
            for path in paths:
                parts = _without_suffix(path.as_posix()).split("/")
                self._files["/".join(parts)].add(id_)
                for start in range(len(parts)):
                    tail = "/".join(parts[start:])
                    self._tails[tail].add(id_)
                    self._unpadded[_unpadded(tail)].add(id_)

    def find(self, text: str) -> str:
        """The id of the sample that is meant, or the text itself where it means none."""
        stem = _without_suffix(text)
        for candidate in (text, stem, stem.removesuffix(".ome")):
            if candidate in self.ids:
                return candidate
        parts = stem.replace("\\", "/").split("/")
        paths = [
            self._files["/".join(parts[start:])]
            for start in range(len(parts))
            if "/".join(parts[start:]) in self._files
        ]
        for ids in (self._tails.get("/".join(parts), set()), *paths, self._unpadded.get(_unpadded(stem), set())):
            if len(ids) == 1:
                (id_,) = ids
                self.bridged.append((text, id_))
                return id_
        return text

    def describe_bridged(self, path: Path) -> list[str]:
        """One line about the rows that name their image in another form than its id."""
        if not self.bridged:
            return []
        (text, id_), n = self.bridged[0], len(self.bridged)
        return [
            f'"{path}": {n} row{"s" * (n > 1)} found by the file or without leading zeros, such as "{text}" for "{id_}"'
        ]


def _without_suffix(text: str) -> str:
    suffix = Path(text).suffix
    return text.removesuffix(suffix) if suffix.lower() in SUFFIXES else text


def _unpadded(text: str) -> str:
    """The text without leading zeros of numbers, and without ".0" of a whole one: "day1/080" becomes "day1/80"."""
    return re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"^(\d+)\.0$", r"\1", text))
