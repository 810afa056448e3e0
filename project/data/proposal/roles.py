"""Which streams are images, targets, masks and object numbers: by the pixels first, and by names."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

from project.data.proposal.draft import unclear
from project.data.proposal.pixels import look, show_the_same
from project.data.proposal.streams import Stream
from project.data.proposal.words import TRUTH
from project.errors import UserError, bullet_list

# Role by name of the inputs, that of the targets, and the reason; the first pair that fits all streams is taken.
TRANSLATIONS = (
    ({"image", "light", "channel", "stain", ""}, {"target"}, "called target, truth or B: predicted from the others"),
    ({"light"}, {"stain", "channel", "image", ""}, "other images of the field: predicted from transmitted light"),
    ({"image"}, {"stain"}, "fluorescence by its name: predicted from the other image"),
)


@dataclass
class Roles:
    """The streams of each role, and reasons."""

    images: list[Stream]
    targets: list[Stream] = field(default_factory=list)
    annotations: dict[str, Stream] = field(default_factory=dict)  # "mask" and "instances"
    unused: list[tuple[Stream, str]] = field(default_factory=list)
    reason: str = ""

    @property
    def partners(self) -> list[Stream]:
        """Targets and annotations."""
        return [*self.targets, *self.annotations.values()]


def find_roles(raw: Path, streams: list[Stream]) -> Roles:
    """The roles of streams, with what the files of each hold.

    Raises:
        UserError: Names and pixels allow several roles, files do not pair up, or masks cannot be used.
    """
    streams = [replace(stream, content=look(raw, stream.names)) for stream in streams]
    annotations = [s for s in streams if s.content.kind != "image" and s.role not in ("image", "light")]
    images = [s for s in streams if s not in annotations] or annotations[:1]
    main = max(images, key=lambda s: (sum(bool(s.files.keys() & o.files.keys()) for o in streams), len(s.files)))
    joined = [s for s in streams if s.files.keys() & main.files.keys()]
    roles = Roles([s for s in images if s in joined])
    for stream in (s for s in streams if s not in joined):
        if stream in images and stream.role in ("image", "channel", "") and len(joined) > len(roles.images):
            roles.unused.append((stream, "no target; `unlabelled:` trains on them without labels"))
        elif len(joined) > 1 and len(stream.files) <= max(1, len(main.files) // 20):
            roles.unused.append((stream, "no partner by name"))
        else:
            raise _unpaired([*joined, stream])
    _assign_annotations(roles, [s for s in joined if s not in images])
    _assign_images(raw, roles)
    return roles


def _unpaired(streams: list[Stream]) -> UserError:
    lines = [f"{s.pattern}: {len(s.files)} files, such as {s.names[0]}" for s in streams]
    return UserError(
        f"the files do not pair up by name:\n{bullet_list(lines)}\nGive the files of one image the same name in each "
        "folder, or the same name with another ending. Image translation needs pairs; for classes, put the images of "
        'each into one folder and write `image: {image: "{label}/{id}.png"}` into the data config. Join masks of '
        "single objects into one image of object numbers (`numbers[mask > 0] = i`)."
    )


def _image_role(stream: Stream) -> str:
    """The role by name of what the pixels say is an image; "truth" may be the target of a restoration."""
    if stream.role == "annotation" and not stream.words & TRUTH:
        if stream.content.n_blank == stream.content.n_looked > 0:
            raise UserError(
                f'each of the {stream.content.n_looked} files of "{stream.pattern}" that were read has one value '
                "everywhere: nothing is annotated. Were they saved with other numbers, or are other files the masks?"
            )
        raise UserError(
            f'the values of "{stream.pattern}" are not class or object numbers, though its name says so. JPEG changes '
            "the numbers of a mask: save masks as PNG or TIFF. If it is an image to be predicted, name it in `target`."
        )
    return "target" if stream.words & TRUTH else stream.role


def _assign_images(raw: Path, roles: Roles) -> None:
    """Divide the continuous images into inputs and targets; A and B may be classes too, unless they show the same."""
    names = {s.pattern: _image_role(s) for s in roles.images}
    streams = sorted(roles.images, key=lambda s: s.pattern)
    if len(streams) == 1:
        roles.reason = "the only images whose values vary from pixel to pixel"
        return
    if {s.name for s in streams} == {"A", "B"}:
        keys = sorted(streams[0].files.keys() & streams[1].files.keys())
        if not show_the_same(raw, *([stream.files[key] for key in keys] for stream in streams)):
            raise _unpaired(streams)
    for inputs, targets, reason in TRANSLATIONS:
        first = [s for s in streams if names[s.pattern] in inputs]
        others = [s for s in streams if names[s.pattern] in targets - inputs]
        if first and others and len(first) + len(others) == len(streams):
            roles.images, roles.targets, roles.reason = first, others, reason
            return
    for a, b in pairwise(streams):
        if PurePosixPath(a.pattern).with_suffix("") == PurePosixPath(b.pattern).with_suffix(""):
            both = sorted(a.files[key] for key in a.files.keys() & b.files.keys())
            raise UserError(
                f'"{a.pattern}" ({len(a.files)} files) and "{b.pattern}" ({len(b.files)}) give the same ids:\n'
                f"{bullet_list(both)}\nRemove what is there twice, or put inputs and targets into two folders."
            )
    if not {*names.values()} <= ({"channel", "stain"} if roles.annotations else {"channel"}):
        raise unclear(
            "The names do not say which images are the input (`image:`), and which are to be predicted (`target:`).",
            channel_names(streams),
        )
    roles.images, roles.reason = streams, "channels of one image; to predict one, move its line to `target:`"


def channel_names(streams: list[Stream]) -> dict[str, str]:
    """Name of each stream as a channel -> pattern."""
    names: dict[str, str] = {}
    for stream in streams:
        names[stream.name if stream.name not in names else f"{stream.name}_{len(names)}"] = stream.pattern
    return names


def _assign_annotations(roles: Roles, streams: list[Stream]) -> None:
    """The mask and the instances among annotated streams."""
    candidates: dict[str, list[Stream]] = {"mask": [], "instances": []}
    for stream in streams:
        kind = stream.content.kind
        if reason := _unusable(stream):
            roles.unused.append((stream, reason))
        elif kind == "unclear" and not stream.words & {"instance", "instances", "object", "objects"}:
            question = f'The values of "{stream.pattern}" may be classes of pixels, or numbers of objects.'
            raise unclear(question, {"mask": stream.pattern, "instances": stream.pattern})
        else:
            candidates["mask" if kind == "mask" else "instances"].append(stream)
    for kind, usable in candidates.items():
        for word in ("manual", "seg"):  # not the field of view (DRIVE), nor markers (Cell Tracking Challenge)
            usable = [s for s in usable if word in s.words] or usable
        largest = max((len(s.files) for s in usable), default=0)
        usable = [s for s in usable if len(s.files) == largest]
        if len(usable) > 1:
            raise unclear(f"Several files of one image may be its `{kind}:`.", channel_names(usable))
        for stream in candidates[kind]:
            if stream in usable:
                roles.annotations[kind] = stream
            else:
                roles.unused.append((stream, f"{usable[0].pattern} was taken, with {largest} files"))


def _unusable(stream: Stream) -> str:
    """Why values are neither classes nor object numbers, "" where they are.

    Raises:
        UserError: They are colors of classes.
    """
    content = stream.content
    if content.kind == "colors" and "color" not in " ".join(stream.texts).lower():
        raise UserError(
            f'the masks "{stream.pattern}" have a color for each class, which has to become a number: save them as '
            "gray or palette images, `np.unique(mask.reshape(-1, 3), axis=0, return_inverse=True)[1]`"
        )
    if content.kind == "colors":
        return "colors for display"
    if content.values[-1] >= 1000 and any(0 < value < 100 for value in content.values):
        return "class * 1000 + number, not plain object numbers"
    is_border = content.kind == "instances" and 255 in content.values and content.values[-2] < 200
    return "255 marks borders, which would be an object" if is_border else ""
