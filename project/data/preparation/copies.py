"""Copies and near-duplicates that a preparation finds: refused, reported, or left out of the training images."""

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

from project.data.config import DatasetConfig
from project.data.duplicates import MOST_PAIRS
from project.data.leakage import UNLABELLED, Images, Leaks, find_leaks
from project.data.preparation.plan import shard_key
from project.data.preparation.shards import Shard, without
from project.data.raw.images import FileRef
from project.data.raw.samples import Sample, read_role
from project.errors import UserError, bullet_list

UNLABELLED_SPLIT = "unlabeled"  # its file
PROBE = 4096  # bytes at the beginning, in the middle and at the end of a file that are compared first
Shards = dict[str, list[Shard]]


def place_of(split: str, sample: Sample) -> str:
    """Where a sample is, as `leakage.Images` has it."""
    if split == UNLABELLED_SPLIT:
        return UNLABELLED
    return split if sample.fold is None else f"fold {sample.fold}"


def find_equal_files(shards: Shards) -> Leaks:
    """Copies among files of equal content, known before any image is decoded; others are found when all are read."""
    samples = [(place_of(split, s), s) for split, each in shards.items() for shard in each for s in shard.samples]
    groups: dict[object, list[int]] = defaultdict(list)
    for index, (_, sample) in enumerate(samples):
        if (key := _sizes(sample)) is not None:
            groups[key].append(index)
    digests = [b""] * len(samples)
    for group in groups.values():
        for equal in _equal(group, samples, _probe):
            for copies in _equal(equal, samples, _content):
                if not _is_blank(samples[copies[0]][1]):
                    for index in copies:
                        digests[index] = copies[0].to_bytes(8, "big")
    images = Images()
    images.add([s.id for _, s in samples], [place for place, _ in samples], digests, [False] * len(samples), None)
    return find_leaks(images)


def _sizes(sample: Sample) -> object:
    """Equal for samples whose images are equal if the bytes of their files are; None where that cannot be said."""
    refs = sample.images["image"]
    if not all(type(ref) is FileRef for ref in refs):
        return None
    try:
        sizes = [path.stat().st_size for path in _files(sample)]
    except OSError:
        return None
    return sample.window, *(dataclasses.replace(ref, path=Path()) for ref in refs), *sizes  # type: ignore[type-var]


def _files(sample: Sample) -> list[Path]:
    return [path for ref in sample.images["image"] for path in ref.paths]


def _equal(group: list[int], samples: list[tuple[str, Sample]], content: object) -> Iterator[list[int]]:
    """The parts of a group that have the same content, if they are in several places."""
    parts: dict[bytes, list[int]] = defaultdict(list)
    if len({samples[index][0] for index in group}) > 1:
        for index in group:
            try:
                state = xxhash.xxh3_128()
                for path in _files(samples[index][1]):
                    content(path, state)  # type: ignore[operator]
            except OSError:
                continue
            parts[state.digest()].append(index)
    yield from (part for part in parts.values() if len({samples[index][0] for index in part}) > 1)


def _probe(path: Path, state: xxhash.xxh3_128) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        for start in (0, size // 2, max(size - PROBE, 0)):
            file.seek(start)
            state.update(file.read(PROBE))


def _content(path: Path, state: xxhash.xxh3_128) -> None:
    with path.open("rb") as file:
        while block := file.read(2**20):
            state.update(block)


def _is_blank(sample: Sample) -> bool:
    """Whether any two images like this one are alike; also where it cannot be read, which is reported later."""
    try:
        image = read_role(sample, "image", lambda ref: ref.open())
    except UserError:
        return True
    flat = image.reshape(len(image), -1)
    return bool((flat == flat[:, :1]).all())


def write_list(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write `Leaks.rows` as CSV; without any, an earlier list is removed."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "id", "place", "other id", "other place"])
        writer.writerows(rows)


def judge(leaks: Leaks, config: DatasetConfig, path: Path) -> list[str]:
    """Refuse leaks, or warn of them.

    Args:
        leaks: Exact copies, which are always refused, and near-duplicates where they are looked for.
        config: Says what happens to near-duplicates.
        path: The list of all, for the message.

    Raises:
        UserError: There are copies, or near-duplicates that are refused.
    """
    labelled, unlabelled = leaks.part(unlabelled=False), leaks.part(unlabelled=True)
    copies = [
        *_block("The same image stands in more than one split", labelled.describe_copies()),
        *_block("Unlabelled images are copies of images of validation or test", unlabelled.describe_copies()),
    ]
    n = len(labelled.pairs)
    few = "1 pair of images looks the same and stands in different splits"
    many = f"{n}{' or more' * (n >= MOST_PAIRS)} pairs of images look the same and stand in different splits"
    near = [
        *_block(few if n == 1 else many, labelled.describe_pairs()),
        *_block("unlabelled images look like images of validation or test", unlabelled.describe_pairs()),
    ]
    where = f"All pairs: {path}"
    if near and not copies and config.near_duplicates == "warn":
        return [f"{block}\nScores on them are no test of anything new. {where}" for block in near]
    if copies or near:
        cures = {
            "Give copies one group (`group:` or the table), or remove them.": labelled,
            "Remove unlabelled images that are in validation or test.": unlabelled,
            "`near_duplicates: drop` leaves out training and unlabelled images among them.": True,
            "If near-duplicates do not show the same, set `near_duplicates: warn`.": near,
        }
        told = " ".join(cure for cure, fits in cures.items() if fits)
        raise UserError("\n".join([*copies, *near, told, where, "Nothing was written."]))
    return []


def _block(heading: str, lines: Sequence[str]) -> list[str]:
    return [f"{heading}:\n{bullet_list(lines)}"] if lines else []


def leave_out(shards: Shards, leaks: Leaks) -> tuple[Shards, list[tuple[str, str]], Leaks]:
    """The shards without training images that are copies of validation or test images.

    Returns:
        The shards; id and reason of each image that is left out; and the leaks that stay.
    """
    reasons, rest = leaks.without_training_copies()
    gone = {(leaks.images.places[index], leaks.images.ids[index]) for index in reasons}
    left: Shards = {}
    for split, each in shards.items():
        left[split] = []
        for shard in each:
            ids = {s.id for s in shard.samples if (place_of(split, s), s.id) in gone}
            if len(ids) < len(shard.samples):
                smaller = without(shard, ids) if ids else shard
                left[split].append(dataclasses.replace(smaller, key=shard_key(smaller)) if ids else shard)
    images = leaks.images
    names = {i: images.name(i) if images.places[i] == UNLABELLED else images.ids[i] for i in sorted(reasons)}
    return left, [(name, reasons[i]) for i, name in names.items()], rest
