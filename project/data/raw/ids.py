"""Ids in tables, in the forms in which spreadsheets have them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from project.data.raw.readers import READERS


class IdIndex:
    """Sample that a cell of a table means: by its id, by its file, or by either without leading zeros.

    "img_1.tif" means the id "img_1" unless that text is an id itself. A path means the image whose file below the raw
    folder ends with it, or the other way round ("phase/001.tif", "001", "/data/raw/phase/001.tif"). "80" means "080",
    as spreadsheets drop zeros. A text that could mean two samples means none.

    Args:
        ids: Of the samples.
        files: (id, its files as paths relative to the raw folder).
    """

    def __init__(self, ids: Iterable[str], files: Iterable[tuple[str, Sequence[Path]]] = ()) -> None:
        self.ids = set(ids)
        self.bridged: list[tuple[str, str]] = []
        self._ids_by_tail, self._ids_by_file = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        self._ids_unpadded = defaultdict[str, set[str]](set)
        for id_, paths in [*((id_, [Path(id_)]) for id_ in self.ids), *files]:
            for path in paths:
                tails = _tails(_without_suffix(path.as_posix()))
                self._ids_by_file[tails[0]].add(id_)
                for tail in tails:
                    self._ids_by_tail[tail].add(id_)
                    self._ids_unpadded[_unpadded(tail)].add(id_)

    def find(self, text: str) -> str:
        """The id of the sample that is meant, or the text itself where it means none."""
        stem = _without_suffix(text)
        for candidate in (text, stem, stem.removesuffix(".ome")):
            if candidate in self.ids:
                return candidate
        tails = _tails(stem.replace("\\", "/"))
        by_file = [self._ids_by_file[tail] for tail in tails if tail in self._ids_by_file]
        for ids in (self._ids_by_tail.get(tails[0], set()), *by_file, self._ids_unpadded.get(_unpadded(stem), set())):
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
        rows = f"{n} row{'s' * (n > 1)}"
        return [f'"{path}": {rows} found by the file or without leading zeros, such as "{text}" for "{id_}"']


def _tails(path: str) -> list[str]:
    """The paths "a/b/c", "b/c" and "c" for "a/b/c"."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _without_suffix(text: str) -> str:
    suffix = Path(text).suffix
    return text.removesuffix(suffix) if suffix.lower() in READERS else text


def _unpadded(text: str) -> str:
    """The text without leading zeros of numbers, and without ".0" of a whole one: "day1/080" becomes "day1/80"."""
    return re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"^(\d+)\.0$", r"\1", text))
