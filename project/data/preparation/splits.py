"""Split rule: samples -> train, val, test or folds; groups stay together, and a seed always gives the same splits."""

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise

from project.data.config import SPLITS, SplitConfig
from project.data.raw.samples import Sample
from project.errors import UserError, bullet_list

ALL = "all"  # counted beside the classes, so that the splits get the wanted sizes too


def split_samples(
    samples: list[Sample], config: SplitConfig, size: Callable[[Sample], tuple[int, int]], warnings: list[str]
) -> dict[str, list[Sample]]:
    """Divide the samples as `config` says: split name -> samples, in the order of their ids.

    The result depends on the names of the groups, the seed and the numbers of samples (with `stratify`, the labels).
    No group is in two splits or folds. With `folds`, the samples of "train" have the number of their fold, and there is
    no "val". `size` gives (height, width) of a sample, asked for "place" only; `warnings` gets a line for each division
    whose shares differ much from those wanted.

    Raises:
        UserError: Too few groups, a group in two given splits, no training samples, no labels to stratify by, val
            given beside folds, or regions that do not fit into the images.
    """
    samples = sorted(samples, key=lambda sample: sample.id)
    wanted = {name: config.fractions[name] for name in SPLITS if config.fractions.get(name, 0) > 0}
    if abs(sum(wanted.values()) - 1) > 1e-6:
        raise UserError(f"split.fractions must add up to 1, not {sum(wanted.values()):g}")
    if config.by == "place":
        return _by_place(samples, wanted, config, size, warnings)
    return _by_group(samples, wanted, config, warnings)


def _by_group(
    samples: list[Sample], wanted: dict[str, float], config: SplitConfig, warnings: list[str]
) -> dict[str, list[Sample]]:
    where = _given(samples)
    if config.folds and (val := [f"{s.id}: val" for s in samples if where.get(s.group) == "val"]):
        raise UserError(
            f"split.folds: each fold is val in its turn, but these have val as their given split:\n{bullet_list(val)}\n"
            "Give them train, so that they are divided too, or leave out `folds`."
        )
    free = [sample for sample in samples if sample.group not in where]
    if not free and "val" not in where.values() and wanted.get("val"):
        free = [sample for sample in samples if where[sample.group] == "train"]
        share = wanted["train"] + wanted["val"]
        wanted = {name: wanted[name] / share for name in ("train", "val")}
    divided = {sample.group for sample in free}
    given = {split for group, split in where.items() if group not in divided}
    where |= _distribute(free, wanted, config, warnings, "splits", given)
    if "train" not in where.values():
        raise UserError("no sample is left for training: all have a given split, none of them train")
    parts = {name: [s for s in samples if where[s.group] == name] for name in SPLITS}
    if config.folds:
        shares = {str(i): 1 / config.folds for i in range(config.folds)}
        folds = _distribute(parts["train"], shares, config, warnings, "folds", set())
        parts["train"] = [replace(sample, fold=int(folds[sample.group])) for sample in parts["train"]]
    return {name: part for name, part in parts.items() if part}


def _given(samples: list[Sample]) -> dict[str, str]:
    """Group -> given split; samples without one go where their group goes."""
    splits: dict[str, set[str]] = {}
    for sample in samples:
        if sample.split:
            splits.setdefault(sample.group, set()).add(sample.split)
    leaks = [f"{group}: {', '.join(sorted(each))}" for group, each in sorted(splits.items()) if len(each) > 1]
    if leaks:
        raise UserError(
            f"these groups are in more than one given split, so that their samples would leak:\n{bullet_list(leaks)}\n"
            "Choose another group, or divide by `fractions` instead of given splits."
        )
    return {group: split for group, (split,) in splits.items()}


def _distribute(
    samples: list[Sample],
    wanted: dict[str, float],
    config: SplitConfig,
    warnings: list[str],
    what: str,
    given: set[str],
) -> dict[str, str]:
    """Group -> part, a split or fold, given part -> its share, and the parts that have samples already.

    Groups come in a random order, or the largest first where that meets shares that the random order misses by far.
    """
    if not samples:
        return {}
    contents = _contents(samples, config.stratify)
    # A hash of seed and name, unlike a random generator, is the same on every machine and version.
    groups = sorted(contents, key=lambda group: hashlib.sha256(f"{config.seed}:{group}".encode()).hexdigest())
    needed = len(set(wanted) - given)
    if len(groups) < needed:
        raise UserError(
            f"{needed} {what} need at least {needed} groups, there {'is' if len(groups) == 1 else 'are'} "
            f"{len(groups)}:\n{bullet_list(sorted(groups))}\nChoose a finer group"
            + (", or fewer folds." if what == "folds" else ", or `split: {by: place}` to cut one field into regions.")
        )

    def sizes(parts: dict[str, str]) -> Counter[str]:
        return sum((Counter({part: contents[group][ALL]}) for group, part in parts.items()), Counter[str]())

    where = _divide(contents, groups, wanted, given)
    if _describe_shares(sizes(where), wanted):
        other = _divide(contents, sorted(groups, key=lambda group: -contents[group][ALL]), wanted, given)
        if what == "folds" or Counter(other.values())["train"] >= config.folds:  # each fold needs a group
            where = min(where, other, key=lambda parts: _distance(sizes(parts), wanted))
    # Beside given samples, the rest may be too little to have shares.
    if not given and (message := _describe_shares(sizes(where), wanted)):
        warnings.append(
            f"the {what} differ much from the wanted shares: {message}. The {len(groups)} groups are never divided: "
            "choose a finer group if there is one, or say which goes where (`table.split`, `split.file`)."
        )
    return where


def _distance(sizes: Counter[str], wanted: dict[str, float]) -> float:
    """Twice the number of samples that are in another part than the wanted shares would put them in."""
    return sum(abs(sizes[part] - share * sizes.total()) for part, share in wanted.items())


def _describe_shares(sizes: Counter[str], wanted: dict[str, float]) -> str:
    """Sizes and shares, if one is off by more than one sample and a tenth of all, or half of what is wanted."""
    n = sizes.total()
    if all(abs(sizes[part] - share * n) <= max(1, min(0.1, share / 2) * n) for part, share in wanted.items()):
        return ""
    return ", ".join(
        f"{part} has {sizes[part]} ({sizes[part] / n:.1%} for {share:.1%})" for part, share in wanted.items()
    )


def _contents(samples: list[Sample], stratify: bool) -> dict[str, Counter[str]]:
    """Group -> number of its samples (`ALL`) and, to stratify, of those of each class."""
    if stratify and (missing := [sample.id for sample in samples if sample.label is None]):
        raise UserError(
            f"split.stratify needs a label for every sample; these have none:\n{bullet_list(missing)}\n"
            "Add them (`table.label`, or {label} in a pattern), or leave out `stratify`."
        )
    contents = defaultdict[str, Counter[str]](Counter)
    for sample in samples:
        labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
        classes = [f"class {label}" for label in labels] or ["no class"]
        contents[sample.group].update([ALL, *(classes if stratify else ())])
    return contents


def _divide(
    contents: dict[str, Counter[str]], groups: list[str], wanted: dict[str, float], given: set[str]
) -> dict[str, str]:
    """Group -> part: each group, in this order, goes where most of its samples and classes are missing.

    To stratify, the groups of rare classes come first, as in iterative stratification (Sechidis, Tsoumakas, Vlahavas:
    On the stratification of multi-label data, ECML PKDD 2011, algorithm 1); as in scikit-learn's
    `StratifiedGroupKFold`, a whole group goes where it brings the shares of all its classes nearest to what is wanted.
    A class with fewer groups than parts goes to the large parts first, and no part stays empty.
    """
    totals = sum(contents.values(), Counter[str]())
    left = Counter(class_ for counts in contents.values() for class_ in counts)  # groups with each class
    rarity = {group: min(left[class_] for class_ in counts) for group, counts in contents.items()}
    have = {name: Counter[str]() for name in wanted}
    where: dict[str, str] = {}
    for group in sorted(groups, key=lambda group: rarity[group]):
        counts = contents[group]
        open_ = list(wanted)
        for class_ in sorted(counts, key=lambda c: (c != ALL, left[c], c)):
            without = {n: w for n, w in wanted.items() if not have[n][class_] and not (class_ == ALL and n in given)}
            open_ = _reserved(open_, without, left[class_])
            left[class_] -= 1
        if len(totals) == 1:  # not stratified
            where[group] = max(open_, key=lambda name: wanted[name] - have[name][ALL] / totals[ALL])
        else:
            where[group] = min(open_, key=lambda name: _cost(counts, have[name], totals, wanted[name]))
        have[where[group]] += counts
    return where


def _reserved(open_: list[str], without: dict[str, float], n_groups: int) -> list[str]:
    """Those of the open parts that a class must go to, if its last groups are to reach the parts `without` it."""
    if not without or n_groups > len(without):
        return open_
    least = sorted(without.values(), reverse=True)[n_groups - 1]
    return [name for name in open_ if without.get(name, 0) >= least] or open_


def _cost(counts: Counter[str], have: Counter[str], totals: Counter[str], wanted: float) -> float:
    """How much further from the wanted shares a group brings a part: the growth of the squared difference, summed."""
    shares = {class_: n / totals[class_] for class_, n in sorted(counts.items())}
    return sum(share * (share + 2 * (have[c] / totals[c] - wanted)) for c, share in shares.items()) / wanted


def _by_place(
    samples: list[Sample],
    wanted: dict[str, float],
    config: SplitConfig,
    size: Callable[[Sample], tuple[int, int]],
    warnings: list[str],
) -> dict[str, list[Sample]]:
    """Cut every image into regions; the frames of one field at the same pixels, also if their sizes differ.

    The samples of a group are frames of one field, or all samples where none has a group: they are one group in each
    split. The shortest frame is divided by the fractions; in the longer ones the last region is longer.
    """
    if given := [f"{sample.id}: {sample.split}" for sample in samples if sample.split]:
        raise UserError(
            f"`split: {{by: place}}` divides every image, but these have a given split:\n{bullet_list(given)}"
        )
    axis = int(config.axis == "x")
    grouped = len(samples) == 1 or any(sample.group != sample.id for sample in samples)
    fields = {sample.id: sample.group if grouped else "all frames" for sample in samples}
    shortest: dict[str, int] = {}
    for sample in samples:
        field = fields[sample.id]
        shortest[field] = min(shortest.get(field, sys.maxsize), size(sample)[axis])
    parts, pixels = defaultdict[str, list[Sample]](list), Counter[str]()
    for sample in samples:
        (height, width), field = size(sample), fields[sample.id]
        regions = _regions(wanted, config.gap, shortest[field])
        groups = {name: f"{field}@{config.axis}{start}-{stop}" for name, (start, stop) in regions.items()}
        regions[max(regions, key=lambda name: regions[name])][1] = (height, width)[axis]
        for name, (start, stop) in regions.items():
            pixels[name] += stop - start
            window = (start, stop, 0, width) if config.axis == "y" else (0, height, start, stop)
            id_ = f"{sample.id}@{config.axis}{start}-{stop}"
            parts[name].append(replace(sample, id=id_, group=groups[name], window=window))
    if message := _describe_shares(pixels, wanted):
        warnings.append(
            f"the splits differ much from `split.fractions`, in pixels along {config.axis}: {message}. Frames of one "
            "field are cut at the same pixels; give images of different fields different groups."
        )
    return dict(parts)


def _regions(wanted: dict[str, float], gap: int, length: int) -> dict[str, list[int]]:
    """Split -> first pixel of its region, and the one behind the last."""
    shares = accumulate(wanted.values(), initial=0.0)
    cuts = [round(share * (length - gap * (len(wanted) - 1))) for share in shares]
    if gap < 0 or any(a >= b for a, b in pairwise(cuts)):
        raise UserError(f"split: `gap` must be 0 or more, and leave room for each split in {length} pixels")
    # Whole pixels are cut first and the gaps put between them, so that no rounding makes a gap narrower.
    ends = zip(wanted, pairwise(cuts), strict=True)
    return {name: [start + i * gap, stop + i * gap] for i, (name, (start, stop)) in enumerate(ends)}
