"""Which streams are images, targets, masks and object numbers: by the pixels first, and by names."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from project.data.config import given_split
from project.data.proposal.content import Content, look
from project.data.proposal.proposal import ambiguous
from project.data.proposal.streams import Stream
from project.data.proposal.words import INSTANCES, TRUTH, meaning, words
from project.errors import UserError, bullet_list

INPUTS = ("image", "light")


@dataclass
class Roles:
    """The streams of each role, and reasons."""

    images: list[Stream]
    targets: list[Stream] = field(default_factory=list)
    mask: Stream | None = None
    instances: Stream | None = None
    unlabeled: list[Stream] = field(default_factory=list)
    unused: list[tuple[Stream, str]] = field(default_factory=list)
    image_reason: str = ""
    target_reason: str = ""


def find_roles(raw: Path, streams: list[Stream], contents: dict[str, Content]) -> Roles:
    """The roles of streams; `contents` gets what the files of each hold.

    Raises:
        UserError: Names and pixels allow several roles, files do not pair up, or masks cannot be used.
    """
    contents |= {stream.pattern: look(raw, stream.names) for stream in streams}
    annotations = [s for s in streams if contents[s.pattern].kind != "image" and s.role not in ("image", "light")]
    truths = [s for s in streams if s not in annotations and {*words(s.text)} & TRUTH]
    images = [s for s in streams if s not in annotations]
    if not images:
        images, annotations = annotations[:1], annotations[1:]
    main = max(images, key=lambda s: (sum(bool(s.files.keys() & o.files.keys()) for o in streams), len(s.files)))
    joined = [s for s in streams if s.files.keys() & main.files.keys()]
    roles = Roles([main])
    roles.unlabeled = [s for s in streams if s not in joined and _is_like(s, joined, images, contents)]
    foreign = [s for s in streams if s not in joined and s not in roles.unlabeled]
    few = [s for s in foreign if len(s.files) <= max(1, len(main.files) // 20)] if len(joined) > 1 else []
    roles.unused = [(s, "no partner by name") for s in few]
    if foreign := [s for s in foreign if s not in few]:
        raise _unpaired([main, *(s for s in joined if s is not main)], foreign)
    _assign_images(roles, [s for s in images if s in joined], truths, bool(annotations), contents)
    for stream in (s for s in annotations if s in joined):
        _check_annotation(stream, contents[stream.pattern])
    _assign_annotations(roles, [s for s in annotations if s in joined], contents)
    return roles


def _is_like(stream: Stream, joined: list[Stream], images: list[Stream], contents: dict[str, Content]) -> bool:
    """Whether a stream without partners holds more images, as those of a test set without labels."""
    same = [s for s in joined if s in images and (s.before, s.after) == (stream.before, stream.after)]
    alike = any(contents[s.pattern].channels.keys() & contents[stream.pattern].channels.keys() for s in same)
    has_masks = len(joined) > len([s for s in joined if s in images])
    return stream in images and alike and has_masks and stream.role in ("image", "channel", "")


def _unpaired(first: list[Stream], others: list[Stream]) -> UserError:
    lines = [f"{s.pattern}: {len(s.files)} files, such as {s.names[0]}" for s in [*first, *others]]
    return UserError(
        f"the files do not pair up by name:\n{bullet_list(lines)}\nGive the files of one image the same name in each "
        "folder, or the same name with another ending. Image translation needs pairs; for classes, put the images of "
        'each into one folder and write `image: {image: "{label}/{id}.png"}` into the data config.'
    )


def _assign_images(
    roles: Roles, streams: list[Stream], truths: list[Stream], annotated: bool, contents: dict[str, Content]
) -> None:
    """Divide the continuous images into inputs and targets."""
    by_role = {role: [s for s in streams if s.role == role and s not in truths] for role in {s.role for s in streams}}
    targets = [*by_role.get("target", []), *(s for s in streams if s in truths)]
    inputs = [s for s in streams if s.role in INPUTS and s not in targets]
    others = [s for s in streams if s not in targets and s not in inputs]
    ab = {re.sub(r"\{\w+\}|/", "", s.folder)[-1:].upper(): s for s in streams}
    if len(streams) == 1:
        stream = streams[0]
        if stream.role == "annotation":
            raise UserError(
                f'the values of "{stream.pattern}" look like those of an image, not like class or object numbers, '
                "though its name says mask or label. JPEG changes the numbers of a mask: save masks as PNG or TIFF."
            )
        roles.images, roles.image_reason = streams, "the only images whose values vary from pixel to pixel"
    elif any(s.role == "annotation" and s not in truths for s in streams):
        wrong = next(s for s in streams if s.role == "annotation")
        raise UserError(
            f'the values of "{wrong.pattern}" are not class or object numbers, though its name says so. JPEG changes '
            "the numbers of a mask: save masks as PNG or TIFF. If it is an image to be predicted, name it in `target`."
        )
    elif targets and (inputs or others):
        roles.images, roles.targets = inputs or others, targets
        roles.image_reason, roles.target_reason = "the other images", "images, called target or truth"
        if inputs and others:
            raise _direction(streams, roles)
    elif any(s.role == "light" for s in inputs) and others:
        roles.images, roles.targets = inputs, others
        roles.image_reason = "transmitted light by its name: the input"
        roles.target_reason = "other images of the same field: predicted from the input"
    elif inputs and others and all(s.role == "stain" for s in others):
        roles.images, roles.targets = inputs, others
        roles.image_reason, roles.target_reason = "called image: the input", "fluorescence by its name: predicted"
    elif all(s.role == "channel" for s in streams):
        roles.images = sorted(streams, key=lambda s: s.pattern)
        roles.image_reason = "numbered channels of one image; to predict one of them, move its line to `target:`"
    elif annotated and all(s.role in ("stain", "channel") for s in streams):
        roles.images = sorted(streams, key=lambda s: s.pattern)
        roles.image_reason = "stains of one field, all input, because there are masks to be predicted"
    elif len(streams) == 2 and set(ab) == {"A", "B"}:
        roles.images, roles.targets = [ab["A"]], [ab["B"]]
        roles.image_reason, roles.target_reason = "A is the input, as in pix2pix", "B is predicted from A"
    else:
        numbered = [s for s in streams if s.after.startswith("_000")]
        if len(numbered) < len(streams):
            raise _direction(streams, roles)
        roles.images = sorted(streams, key=lambda s: s.pattern)
        roles.image_reason = "channels, numbered as for nnU-Net"


def _direction(streams: list[Stream], roles: Roles) -> UserError:
    named = channel_names(streams)
    choices = {
        f"predict {', '.join(n for n in named if n != name)} from {name}": {
            "image": {name: pattern},
            "target": {n: p for n, p in named.items() if n != name},
        }
        for name, pattern in named.items()
    }
    choices["all are channels of one image"] = {"image": dict(named)}
    return ambiguous("The names do not say which images are the input and which are to be predicted.", choices)


def channel_names(streams: list[Stream]) -> dict[str, str]:
    """Name of each stream as a channel -> pattern."""
    names: dict[str, str] = {}
    for stream in streams:
        name = stream.name()
        names[name if name not in names else f"{name}_{len(names)}"] = stream.pattern
    return names


def _check_annotation(stream: Stream, content: Content) -> None:
    if content.kind == "colors" and "color" not in stream.text.lower():
        raise UserError(
            f'the masks "{stream.pattern}" have a color for each class, which has to become a number: save them as '
            "gray or palette images, `np.unique(mask.reshape(-1, 3), axis=0, return_inverse=True)[1]`"
        )


def _assign_annotations(roles: Roles, streams: list[Stream], contents: dict[str, Content]) -> None:
    """The mask and the instances among annotated streams."""
    n_images = len(roles.images[0].files)
    usable: dict[str, list[Stream]] = {"mask": [], "instances": []}
    for stream in streams:
        content, called = contents[stream.pattern], {*words(stream.text)}
        kind: str = content.kind
        if kind == "colors":
            roles.unused.append((stream, "colors for display"))
            continue
        if max(content.values) >= 1000 and _is_coded(content.values):
            roles.unused.append((stream, "class * 1000 + number, not plain object numbers"))
            continue
        if kind == "instances" and 255 in content.values and content.values[-2] < 200:
            roles.unused.append((stream, "255 marks borders, which would be an object"))
            continue
        if kind == "unclear":
            kind = "instances" if called & INSTANCES else "unclear"
        if kind == "unclear":
            raise ambiguous(
                f'The values of "{stream.pattern}" may be classes of pixels or numbers of objects.',
                {
                    "classes: one number for each kind": {"mask": stream.pattern},
                    "objects: one number for each object": {"instances": stream.pattern},
                },
            )
        usable[kind].append(stream)
    for kind, candidates in usable.items():
        roles.unused += [(s, f"{chosen} was taken") for s, chosen in _not_preferred(candidates)]
        candidates[:] = [s for s in candidates if s not in (other for other, _ in roles.unused)]
        largest = max((len(s.files) for s in candidates), default=0)
        for stream in [s for s in candidates if len(s.files) < largest]:
            roles.unused.append((stream, f"only {len(stream.files)} of {n_images} images have one"))
            candidates.remove(stream)
        if len(candidates) > 1:
            raise ambiguous(
                f"Several files of one image may be its {kind}.", {s.name(): {kind: s.pattern} for s in candidates}
            )
    roles.mask = usable["mask"][0] if usable["mask"] else None
    roles.instances = usable["instances"][0] if usable["instances"] else None


def _is_coded(values: tuple[int, ...]) -> bool:
    """Whether numbers are class * 1000 + object, as those of Cityscapes."""
    return all(value < 1000 or value // 1000 < 100 for value in values) and any(0 < value < 100 for value in values)


def _not_preferred(streams: list[Stream]) -> list[tuple[Stream, str]]:
    """Streams to leave out, and what is taken instead: annotations, not the field of view (DRIVE: "manual", "mask");

    segmentation, not the markers for tracking (Cell Tracking Challenge: "SEG", "TRA").
    """
    for word in ("manual", "seg"):
        chosen = [s for s in streams if word in words(s.text)]
        if 0 < len(chosen) < len(streams):
            return [(s, chosen[0].pattern) for s in streams if s not in chosen]
    return []


def splits_without(images: Stream, annotation: Stream) -> list[str]:
    """Folders of given splits in which no image has its annotation, such as a test set without labels."""
    missing = images.files.keys() - annotation.files.keys()
    present = {dict(fields).get("split") for fields, _ in images.files.keys() & annotation.files.keys()}
    splits = {dict(fields).get("split", "") for fields, _ in missing} - present
    return sorted(split for split in splits if split and given_split(split) and meaning(split) == "")
