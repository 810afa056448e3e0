"""Keys of the data config that follow from roles, contents and names, each with its reason."""

from collections import Counter
from pathlib import Path
from typing import Any

from project.data.config import given_split
from project.data.proposal.draft import THREE_SPLITS, Draft, unclear
from project.data.proposal.fields import MIN_GROUPS, FieldNames
from project.data.proposal.pixels import Content, is_one_field
from project.data.proposal.roles import Roles, channel_names
from project.data.proposal.streams import Stream
from project.data.proposal.tables import TableColumns
from project.formatting import first_few

MIN_GAP = 32  # pixels between the regions of one field


def add_keys(draft: Draft, raw: Path, roles: Roles, table: TableColumns | None, fields: FieldNames) -> None:
    """All keys for image files.

    Raises:
        UserError: The pages of stacks may be samples, channels or depth.
    """
    _add_patterns(draft, roles, table, fields)
    if mask := roles.annotations.get("mask"):
        _add_classes(draft, mask)
    elif roles.annotations:
        draft.add("classes", {"mask": ["background", "object"]}, "the mask is made of the objects")
    _add_conversion(draft, roles)
    _add_pages(draft, roles)
    _add_split(draft, raw, roles, table, fields)


def _add_patterns(draft: Draft, roles: Roles, table: TableColumns | None, fields: FieldNames) -> None:
    """Patterns of all roles, and what becomes of images that lack a file."""
    main, given = roles.images[0], roles.images[0].values("split")
    # A given split without any annotation or row, such as a test set, is dropped.
    first = roles.partners[0] if roles.partners else main
    rows = table.images if table and not roles.partners else {*main.names}
    known = {dict(key[0]).get("split", "") for key in first.files if main.files.get(key) in rows}
    dropped = sorted({*given} - known - {""})
    kept = [split for split in dict.fromkeys(given) if split not in dropped]
    split = f"{{split:{'|'.join(kept)}}}" if len(kept) > 1 else kept[0]
    # "{split}/{id}.png" fits "trainannot/1.png" too.
    if not dropped and all("{split}/" in s.folder or "{split}" not in s.folder for s in roles.partners):
        split = "{split}"
    again = "{split}" if split.startswith("{") else split

    def patterns(streams: list[Stream]) -> dict[str, str]:
        texts = {name: fields.rename(s) for name, s in zip(channel_names(streams), streams, strict=True)}
        return {name: t.replace("{split}", split, 1).replace("{split}", again) for name, t in texts.items()}

    counts = ", ".join(f"{name} {n}" for name, n in Counter(given).items() if name and name in kept)
    reason = roles.reason + f"; {fields.reason}" * (fields.kind == "label")
    draft.add("image", patterns(roles.images), reason + f"; given splits: {counts}" * bool(counts))
    if roles.targets:
        draft.add("target", patterns(roles.targets), roles.reason)
    for kind, stream in roles.annotations.items():
        (pattern,) = patterns([stream]).values()
        draft.add(kind, pattern + "[0]" * stream.content.all_equal, _describe_values(kind, stream.content))
    for name in dropped:
        texts = [fields.rename(stream).replace("{split}", name) for stream in roles.images]
        draft.unused += texts
        draft.notes.append(f"not used: {', '.join(texts)}: no target; `unlabelled:` trains on them without labels")
    n = len(set.intersection(*(set(s.files) for s in (*roles.images, *roles.partners))))
    n_all = sum(split not in dropped for split in given)
    if table:
        draft.add("table", table.keys, "; ".join(table.reasons))
        n = min(n, len(table.images))
    if n < n_all:
        reason = f"{n_all - n} of {n_all} images lack a file or a row; they are left out and listed. Are they empty?"
        draft.add("on_error", "skip", reason)


def _describe_values(kind: str, content: Content) -> str:
    values = ", ".join(map(str, content.values[:8])) + " ..." * (len(content.values) > 8)
    meaning = f"classes: {values}" if kind == "mask" else f"numbers of objects, up to {max(content.values)},"
    equal = "; three equal channels, of which one is taken" * content.all_equal
    return f"values are {meaning} in {content.n_looked} files that were read{equal}"


def _add_classes(draft: Draft, stream: Stream) -> None:
    """What the values of a mask need to become class numbers."""
    values, two = stream.content.values, {"mask": ["background", "object"]}
    if {"trimap", "trimaps"} & stream.words and {*values} <= {1, 2, 3}:
        draft.add("mask_values", {2: 0, 1: 1}, "a trimap: 1 is the object, 2 background")
        draft.add("ignore_index", 3, "3 is the undecided border")
        draft.add("classes", two, "names of the two")
        return
    if len(values) > 2 and values[-1] == 255 and values[-2] < 64:
        draft.add("ignore_index", 255, "255 beside small numbers means not annotated")
        values = values[:-1]
    is_counted = values == tuple(range(len(values)))
    if len(values) == 2:
        if not is_counted:
            draft.add("mask_values", {values[0]: 0, values[1]: 1}, f"{values[0]} is background, {values[1]} object")
        draft.add("classes", two, "two values; rename them as you like")
    elif not is_counted and values[0] == 0 and values[-1] < 64:
        names = [str(i) for i in range(values[-1] + 1)]
        draft.add("classes", {"mask": names}, "not all numbers were seen; names by number")
    elif not is_counted:
        mapping = {value: number for number, value in enumerate(values)}
        draft.add("mask_values", mapping, f"the values seen in {stream.content.n_looked} files, as class numbers")


def _add_conversion(draft: Draft, roles: Roles) -> None:
    images = roles.images[0].content
    if len(roles.images) == 1 and (len(images.channels) > 1 or images.mixed):
        colored = max(images.channels) >= 3 or "palettes" in images.mixed
        kinds = ", ".join(f"{n} with {c} channel{'s' * (c > 1)}" for c, n in sorted(images.channels.items()))
        draft.add("convert", "rgb" if colored else "grey", f"images are of mixed kind: {kinds}{images.mixed}")
    if len(images.sizes) > 1:
        listed = ", ".join(f"{h} x {w}" for (h, w), _ in images.sizes.most_common(3))
        draft.add("sizes", {"how": "keep"}, f"{len(images.sizes)} sizes such as {listed}; tile, crop ... are possible")
    if not roles.partners and images.sizes and all(width == 2 * height for height, width in images.sizes):
        draft.notes.append("all images are twice as wide as high: if input and target are side by side, cut them apart")


def _add_pages(draft: Draft, roles: Roles) -> None:
    """The use of pages: those that masks or targets have too, or along time, are samples."""
    axes = roles.images[0].content.axes
    partners = [stream.content.axes for stream in roles.partners]
    samples = [a for a, n in axes.items() if a == "T" or (partners and all(n in other.values() for other in partners))]
    is_small = len(axes) == 1 and "Z" not in axes and max(axes.values()) <= 4 and len(roles.images) == 1
    text = ", ".join(f"{n} along {axis}" for axis, n in axes.items())
    if len(samples) == 1 and {*axes} <= {*samples, "C"}:
        pages: Any = "samples" if len(axes) == 1 else {a: "samples" if a in samples else "channels" for a in axes}
        draft.add("pages", pages, f"stacks of {text}; time, or as many as the targets have: samples")
    elif {*axes} - {"C"} and not is_small:  # else channels, as without the key
        question = f"The files are stacks of {text}: are pages channels, samples, or depth of which the max is taken?"
        raise unclear(question, draft.content | {"pages": dict.fromkeys(axes, "samples")})
    elif len(axes) == 1 and not partners and "table" not in draft.content:
        (pattern, *others) = draft.content["image"].values()
        if not others and "{label}" not in pattern:
            advice = f'is one of them the target? Then `target: {{name: "{pattern}[1]"}}`, and [0] for the image'
            draft.notes.append(f"the pages ({text}) are channels of the input: {advice}")


def _add_split(draft: Draft, raw: Path, roles: Roles, table: TableColumns | None, fields: FieldNames) -> None:
    """Groups, and how samples are divided."""
    main, given = roles.images[0], roles.images[0].values("split")
    is_given = any(map(given_split, given)) or bool(table and "split" in table.keys)
    groups = fields.counts("group")
    is_field = bool(roles.partners) and not is_given and len(groups) < MIN_GROUPS
    is_field = is_field and is_one_field(raw, main.names)
    pairs = {(group, dict(key[0]).get("split")) for key, group in fields.values.items()}
    crossed = is_given and len(pairs) > len(groups)
    if groups and not crossed and (len(groups) >= MIN_GROUPS or is_field):
        draft.add("group", "{group}", fields.reason)
    elif groups:
        reason = "occur in several given splits" if crossed else f"are {len(groups)}, too few for three splits"
        draft.notes.append(
            f"the folders {', '.join(list(groups)[:3])} {reason}: images of one are in several splits, so that scores "
            "say nothing about another such folder"
        )
    is_stack = "pages" in draft.content and len(main.files) < MIN_GROUPS
    if is_field or ((is_stack or (len(main.files) == 1 and bool(roles.partners))) and not is_given):
        _add_regions(draft, roles, is_field)
        return
    draft.add("near_duplicates", "drop", "training images that look like one of val or test are left out, and listed")
    labels = fields.counts("label") or (table.labels if table else Counter())
    if labels and min(labels.values()) > 1:
        draft.add("split", {"stratify": True}, "every split gets about the same share of each class")
    elif labels:
        rare = [name for name, n in labels.items() if n == 1]
        draft.notes.append(f"no `stratify`: {first_few(rare, 'the table')} has a single image")
    elif not is_given:
        is_grouped = "group" in draft.content or (table and "group" in table.keys)
        draft.add("split", THREE_SPLITS, "whole groups" if is_grouped else "no group is known: each image is its own")


def _add_regions(draft: Draft, roles: Roles, is_field: bool) -> None:
    height, width = roles.images[0].content.sizes.most_common(1)[0][0]
    diameters = [stream.content.diameter for stream in roles.annotations.values()]
    gap = min(max([MIN_GAP, *(int(2 * d) for d in diameters)]), max(height, width) // 12)
    reason = "successive images look the same: frames of one field, whose division by frame would leak"
    n = len(roles.images[0].files)
    few = f"{n} stacks are too few to divide: each page is cut" if n > 1 else "one file cannot be divided: it is cut"
    reason = reason if is_field else few
    split = {"by": "place", "axis": "x" if width >= height else "y", "gap": gap}
    draft.add("split", split, f"{reason}. Regions of each image, with a gap wider than an object")
