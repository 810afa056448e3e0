"""Keys of the data config that follow from roles, contents and names, each with its reason."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from project.data.config import given_split
from project.data.duplicates import signature, similar_pairs
from project.data.proposal.content import Content, successive_images
from project.data.proposal.name_parts import MIN_GROUPS, NameParts
from project.data.proposal.proposal import Draft, ambiguous
from project.data.proposal.roles import Roles, channel_names, splits_without
from project.data.proposal.streams import Stream
from project.data.proposal.tables import TableColumns
from project.data.proposal.words import words

MIN_GAP = 32  # pixels between the regions of one field
MIN_SIMILAR = 0.5  # of the successive images look the same: frames of one field
AXIS_USES = {"T": "samples", "C": "channels"}


def add_roles(
    draft: Draft, roles: Roles, contents: dict[str, Content], table: TableColumns | None, parts: NameParts
) -> None:
    """Patterns of all roles, images without targets, and what becomes of images that lack a file."""
    main = roles.images[0]
    annotated = [s for s in (*roles.targets, roles.mask, roles.instances) if s]
    dropped = splits_without(main, annotated[0]) if annotated else _splits_without_row(main, table)
    present = [split for split in dict.fromkeys(main.values("split")) if split not in dropped]
    split = f"{{split:{'|'.join(present)}}}" if len(present) > 1 else present[0]

    # "{split}/{id}.png" fits "trainannot/1.png" too.
    restricted = bool(dropped) or any(re.search(r"\{split\}[^/]", s.folder) for s in annotated)

    def pattern(stream: Stream, value: str = split) -> str:
        text = parts.rename(stream.pattern)
        if not restricted:
            return text
        return text.replace("{split}", value, 1).replace("{split}", "{split}" if value.startswith("{") else value)

    names = channel_names(roles.images)
    reason = roles.image_reason
    reason += f"; {parts.reason}" * bool(parts.labels)
    if "{split" in pattern(main):
        reason += f"; given splits: {_counts(Counter(main.values('split')), dropped)}"
    draft.add("image", {name: pattern(s) for name, s in zip(names, roles.images, strict=True)}, reason)
    if roles.targets:
        targets = {name: pattern(s) for name, s in zip(channel_names(roles.targets), roles.targets, strict=True)}
        draft.add("target", targets, roles.target_reason)
    for key, stream in (("mask", roles.mask), ("instances", roles.instances)):
        if stream:
            draft.add(key, pattern(stream), _describe_values(contents[stream.pattern], key))
    n = len(set.intersection(*(set(s.files) for s in (*roles.images, *annotated))))
    more = {(stream.before, stream.after): stream for stream in roles.unlabeled}
    extra = [more[s.before, s.after] for s in roles.images if (s.before, s.after) in more]
    if dropped:
        patterns = {name: pattern(s, dropped[0]) for name, s in zip(names, roles.images, strict=True)}
        draft.add("unlabelled", patterns, f"images in {dropped[0]} have no target: for training without labels")
    elif len(extra) == len(roles.images):
        patterns = {name: stream.pattern for name, stream in zip(names, extra, strict=True)}
        draft.add("unlabelled", patterns, f"{len(extra[0].files)} images without target")
    else:
        roles.unused += [(stream, "images without partner") for stream in roles.unlabeled]
    n_all = sum(split not in dropped for split in main.values("split"))
    if table:
        draft.add("table", table.keys, "; ".join(table.reasons))
        n = min(n, len(table.images))
    if n < n_all:
        lack = "a row in the table" if table and not annotated else "a file of each role"
        reason = f"{n_all - n} of {n_all} images lack {lack}; they are left out and listed. Are they empty instead?"
        draft.add("on_error", "skip", reason)


def _splits_without_row(main: Stream, table: TableColumns | None) -> list[str]:
    """Given splits of which no image has a row in the table, such as the test set of a competition."""
    if table is None:
        return []
    splits = {dict(f).get("split", "") for (f, _), names in main.files.items() if not table.images & {*names}}
    present = {dict(f).get("split", "") for (f, _), names in main.files.items() if table.images & {*names}}
    return sorted(split for split in splits - present if split)


def _counts(counts: Counter[str], dropped: list[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items() if name not in dropped)


def _describe_values(content: Content, key: str) -> str:
    if key == "instances":
        return f"values number the objects: up to {max(content.values)} in {content.n_looked} files that were read"
    values = ", ".join(map(str, content.values[:8])) + " ..." * (len(content.values) > 8)
    return f"values are classes: {values} in {content.n_looked} files that were read"


def add_pixels(draft: Draft, raw: Path, names: list[str], roles: Roles, contents: dict[str, Content]) -> None:
    """What the values and shapes of the files need: classes, colors, pages, sizes."""
    images = contents[roles.images[0].pattern]
    described = _nnunet_description(raw, names)
    if roles.mask:
        _add_mask(draft, roles.mask, contents[roles.mask.pattern], described.get("labels", {}))
    elif roles.instances:
        draft.add("classes", {"mask": ["background", "object"]}, "the mask is made of the objects")
    for stream in (s for s in (roles.mask, roles.instances) if s and contents[s.pattern].all_equal):
        for i, (key, value, reason) in enumerate(draft.entries):
            if key in ("mask", "instances") and value.endswith(stream.suffix):
                draft.entries[i] = (key, f"{value}[0]", f"{reason}; three equal channels, of which one is taken")
    if len(roles.images) == 1 and (len(images.channels) > 1 or images.alpha or images.indexed):
        colored = max(images.channels) >= 3 or images.indexed
        kinds = ", ".join(f"{n} with {c} channel{'s' * (c > 1)}" for c, n in sorted(images.channels.items()))
        alpha = "; alpha is dropped" * images.alpha + "; palettes are looked up" * images.indexed
        draft.add("convert", "rgb" if colored else "grey", f"images are of mixed kind: {kinds}{alpha}")
    _add_pages(draft, roles, images, contents)
    annotated = bool(roles.targets or roles.mask or roles.instances)
    if not annotated and images.sizes and all(width == 2 * height for height, width in images.sizes):
        draft.notes.append("all images are twice as wide as high: if input and target are side by side, cut them apart")
    if len(images.sizes) > 1:
        listed = ", ".join(f"{h} x {w}" for (h, w), _ in images.sizes.most_common(3))
        draft.add("sizes", {"how": "keep"}, f"{len(images.sizes)} sizes such as {listed}; tile, crop ... are possible")


def _add_mask(draft: Draft, stream: Stream, content: Content, labels: dict[str, Any]) -> None:
    values, called = content.values, words(stream.text)
    if labels and all(isinstance(number, int) for number in labels.values()):
        numbers = {number: name for name, number in labels.items() if name != "ignore"}
        draft.add("classes", {"mask": [numbers.get(i, str(i)) for i in range(max(numbers) + 1)]}, "from dataset.json")
        if "ignore" in labels:
            draft.add("ignore_index", labels["ignore"], "ignore in dataset.json")
        return
    if {"trimap", "trimaps"} & {*called} and {*values} <= {1, 2, 3}:
        draft.add("mask_values", {2: 0, 1: 1}, "a trimap: 1 is the object, 2 background")
        draft.add("ignore_index", 3, "3 is the undecided border")
        draft.add("classes", {"mask": ["background", "object"]}, "names of the two")
        return
    ignored = [255] if len(values) > 2 and values[-1] == 255 and values[-2] < 64 else []
    classes = [value for value in values if value not in ignored]
    if ignored:
        draft.add("ignore_index", 255, "255 beside small numbers means not annotated")
    if len(classes) == 2:
        if classes != [0, 1]:
            draft.add("mask_values", {classes[0]: 0, classes[1]: 1}, f"{classes[0]} is background, {classes[1]} object")
        draft.add("classes", {"mask": ["background", "object"]}, "two values; rename them as you like")
    elif classes[-1] >= 64 or classes[0] > 0:
        mapping = {value: number for number, value in enumerate(classes)}
        draft.add("mask_values", mapping, f"the values seen in {content.n_looked} files, as class numbers")
    elif classes != list(range(len(classes))):
        names = [str(i) for i in range(classes[-1] + 1)]
        draft.add("classes", {"mask": names}, "not all numbers were seen; names by number")


def _nnunet_description(raw: Path, names: list[str]) -> dict[str, Any]:
    """The content of the file dataset.json of nnU-Net, or nothing."""
    if "dataset.json" not in names:
        return {}
    try:
        content = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
        labels = content.get("labels", {})
        version_1 = {name: int(number) for number, name in labels.items() if str(number).isdecimal()}
        return {"labels": version_1 or labels}
    except (ValueError, AttributeError, TypeError):
        return {}


def _add_pages(draft: Draft, roles: Roles, images: Content, contents: dict[str, Content]) -> None:
    """The use of the pages of stacks.

    Raises:
        UserError: They may be samples, channels or depth.
    """
    axes = dict(images.axes.most_common(1)[0][0]) if images.axes else {}
    if not axes:
        return
    partners = [s for s in (roles.mask, roles.instances, *roles.targets) if s]
    same = [dict(contents[s.pattern].axes.most_common(1)[0][0]) for s in partners]
    shared = [axis for axis, n in axes.items() if same and all(n in other.values() for other in same)]
    text = ", ".join(f"{n} along {axis}" for axis, n in axes.items())
    if len(axes) == 1:
        ((axis, n),) = axes.items()
        if shared or axis == "T":
            why = "masks or targets have as many" if shared else "T is time"
            draft.add("pages", "samples", f"stacks of {text}; {why}, so that each page is a sample")
            return
        if axis == "C" or (n <= 4 and axis != "Z" and (same or len(roles.images) == 1)):
            return  # channels, as without the key
        uses: dict[str, Any] = {"channels of one image": "channels", "samples, such as frames": "samples"}
        choices = {f"pages are {name}": {"pages": use} for name, use in uses.items()}
        choices["depth, of which the maximum is taken"] = {"pages": {axis: "max"}}
    else:
        uses = {axis: AXIS_USES.get(axis, "samples" if axis in shared else "?") for axis in axes}
        if "?" not in uses.values() and list(uses.values()).count("samples") == 1:
            draft.add("pages", uses, f"stacks of {text}")
            return
        choices = {
            f"{use} of the further axes": {"pages": {a: use if u == "?" else u for a, u in uses.items()}}
            for use in ("max", "mean")
        }
    keys = {key: value for key, value, _ in draft.entries if key in ("image", "target", "mask", "instances")}
    raise ambiguous(
        f"The files are stacks of {text}, and nothing says what the pages are.",
        {name: {**keys, **choice} for name, choice in choices.items()},
    )


def add_split(
    draft: Draft, raw: Path, roles: Roles, contents: dict[str, Content], table: TableColumns | None, parts: NameParts
) -> None:
    """Groups, and how samples are divided."""
    main, content = roles.images[0], contents[roles.images[0].pattern]
    has_pixels = bool(roles.targets or roles.mask or roles.instances)
    is_given = any(map(given_split, main.values("split"))) or bool(table and "split" in table.keys)
    groups = parts.groups
    is_field = has_pixels and not is_given and len(groups) < MIN_GROUPS and _is_one_field(raw, main)
    pages = "pages" in draft.content
    if groups and (len(groups) >= MIN_GROUPS or is_field) and not (is_given and _cross_splits(main, parts)):
        draft.add("group", "{group}", parts.reason)
    elif groups:
        reason = "occur in several given splits" if is_given else f"are {len(groups)}, too few for three splits"
        draft.notes.append(
            f"the folders {', '.join(list(groups)[:3])} {reason}: images of one are in several splits, so that scores "
            "say nothing about another such folder"
        )
    if is_field or (pages and not is_given and len(main.files) < MIN_GROUPS):
        height, width = content.sizes.most_common(1)[0][0]
        diameters = [contents[s.pattern].diameter for s in (roles.mask, roles.instances) if s]
        gap = min(max([MIN_GAP, *(int(2 * d) for d in diameters)]), max(height, width) // 12)
        reason = "successive images look the same: frames of one field, whose division by frame would leak"
        reason = reason if is_field else f"{len(main.files)} stacks are too few to divide: each page is cut"
        split: dict[str, Any] = {"by": "place", "axis": "x" if width >= height else "y", "gap": gap}
        draft.add("split", split, f"{reason}. Regions of each image, with a gap wider than an object")
        return
    draft.add("near_duplicates", "drop", "training images that look like one of val or test are left out, and listed")
    if labels := parts.labels or (table.labels if table else Counter()):
        if min(labels.values()) > 1:
            why = "the given training images are divided into train and val, " * _lacks_val(main)
            draft.add("split", {"stratify": True}, f"{why}every split gets about the same share of each class")
    elif not is_given:
        split = {"fractions": {"train": 0.7, "val": 0.15, "test": 0.15}, "seed": 0}
        reason = "whole groups" if "group" in draft.content else "no group is known: each image is its own"
        draft.add("split", split, reason)


def _lacks_val(main: Stream) -> bool:
    return {given_split(value) for value in main.values("split")} == {"train", "test"}


def _cross_splits(main: Stream, parts: NameParts) -> bool:
    """Whether a group is in several given splits."""
    name = next((old[1:-1] for old, new in parts.names.items() if new == "{group}"), "")
    pairs = {*zip(main.values(name), main.values("split"), strict=True)}
    return len(pairs) > len({group for group, _ in pairs})


def _is_one_field(raw: Path, main: Stream) -> bool:
    """Whether successive images look the same, as the check for near-duplicates between splits sees them."""
    signatures = np.array([signature(image) for image in successive_images(raw, main.names)])
    if len(signatures) < 3:
        return False
    pairs = {*similar_pairs(signatures)}
    return sum((i, i + 1) in pairs for i in range(len(signatures) - 1)) >= MIN_SIMILAR * (len(signatures) - 1)
