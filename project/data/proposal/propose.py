"""`make data RAW=folder NAME=mine`: the data config that a folder of raw files suggests, with a reason for each key."""

from pathlib import Path, PurePosixPath

from project.data.config_reader import build_config
from project.data.proposal.arrays import ARRAY_SUFFIXES, add_arrays, holds_samples
from project.data.proposal.content import Content
from project.data.proposal.keys import add_pixels, add_roles, add_split
from project.data.proposal.name_parts import check_names, find_name_parts, with_folder_ids
from project.data.proposal.proposal import Draft
from project.data.proposal.roles import find_roles
from project.data.proposal.streams import Stream, find_streams, paired
from project.data.proposal.tables import SUFFIXES, find_table
from project.data.proposal.words import NOT_DATA, meaning, words
from project.data.raw.find_samples import find_samples
from project.data.raw.patterns import Pattern, files_below
from project.data.raw.readers import READERS
from project.data.raw.samples import Problems
from project.errors import UserError, bullet_list

MOST_LOST = 0.05  # of the images may be in no pattern, without being named as unused
# Formats of images or annotations that are not read, and what to do.
UNREADABLE = {
    **dict.fromkeys((".mat", ".seg"), "convert them to PNG: `scipy.io.loadmat`, then `imageio.imwrite`"),
    **dict.fromkeys((".nii", ".nrrd", ".mha", ".dcm"), "save each slice as TIFF; volumes are not supported"),
    **dict.fromkeys((".czi", ".nd2", ".lif", ".svs", ".ndpi", ".mrxs", ".vsi"), "export them as TIFF"),
    ".xml": "draw them as label images (PNG)",
}
COCO = "COCO annotations are not read: draw label images of them (`pycocotools`, `coco.annToMask(annotation)`)"


def propose_config(raw: Path) -> str:
    """The text of a data config for a folder of raw files.

    Names are looked at completely, headers of up to 2,000 files and pixels of up to 48 files of each kind.

    Raises:
        UserError: The folder can be read in several ways, which are listed, or in none.
    """
    names = files_below(raw)
    names = [name for name in names if not any({*words(part)} & NOT_DATA for part in PurePosixPath(name).parts)]
    images = [name for name in names if PurePosixPath(name).suffix.lower() in READERS]
    arrays = [name for name in names if name.lower().endswith(ARRAY_SUFFIXES) and holds_samples(raw / name)]
    draft = Draft()
    draft.add("raw", str(raw), f"{len(names)} files, {len(images)} of them images")
    if arrays and len(arrays) >= len(images) - len({*arrays} & {*images}):
        add_arrays(draft, raw, arrays)
    else:
        _refuse_unreadable(raw, names, images)
        _add_images(draft, raw, names, images)
    _check(draft, raw, [name for name in images if name not in arrays])
    return draft.text("Proposed from a look at the folder: correct what is wrong, then run `make data` again.")


def _refuse_unreadable(raw: Path, names: list[str], images: list[str]) -> None:
    """Refuse folders whose images or annotations are in formats that are not read."""
    stems = {PurePosixPath(name).stem for name in images}
    others = [name for name in names if PurePosixPath(name.removesuffix(".gz")).suffix.lower() in UNREADABLE]
    partners = [name for name in others if PurePosixPath(name.removesuffix(".gz")).stem in stems] if images else others
    if partners and (not images or not _has_annotations(images)):
        suffix = PurePosixPath(partners[0].removesuffix(".gz")).suffix.lower()
        kind = "are images, or belong to images" if images else "may be the images"
        raise UserError(
            f"{len(partners)} files that {kind} are in a format that is not read, such as {partners[0]}: "
            f"{UNREADABLE[suffix]}. Or write a `source`, see configs/data/README.md."
        )
    for name in names:
        if name.lower().endswith(".json") and (raw / name).stat().st_size < 500_000_000:
            text = (raw / name).read_bytes()
            if b'"annotations"' in text and b'"image_id"' in text and not _has_annotations(images):
                raise UserError(f"{name}: {COCO}, and put them beside the images as `instances` or `mask`.")
    if not images:
        raise UserError(f'there are no images below "{raw}"; formats that are read: {", ".join(sorted(READERS))}')


def _has_annotations(images: list[str]) -> bool:
    return any(meaning(part) == "annotation" for name in images for part in PurePosixPath(name).with_suffix("").parts)


def _add_images(draft: Draft, raw: Path, names: list[str], images: list[str]) -> None:
    table = find_table(raw, names, {PurePosixPath(name).with_suffix("").as_posix(): name for name in images})
    streams = paired(find_streams(images))
    if table is None and len(streams) > 1:  # a row for all channels of an image
        table = find_table(raw, names, {core: name for (_, core), (name, *_) in streams[0].files.items()})
    if table and len(streams) > 1 and all(not stream.role for stream in streams):
        streams = [_joined(streams)]
    streams = with_folder_ids(streams)
    contents: dict[str, Content] = {}
    roles = find_roles(raw, streams, contents)
    check_names(roles)
    has_truth = bool(table or roles.targets or roles.mask or roles.instances)
    if not has_truth and (tables := [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]):
        raise UserError(
            f'the table "{tables[0]}" names none of the images, such as {images[0]}: its ids have to be names of files '
            "or paths below the folder. Correct it, or move it out of the folder if it is not about the images."
        )
    parts = find_name_parts(raw, roles, table)
    add_roles(draft, roles, contents, table, parts)
    add_pixels(draft, raw, names, roles, contents)
    add_split(draft, raw, roles, contents, table, parts)
    for stream, reason in roles.unused:
        draft.unused.append(stream.pattern)
        draft.notes.append(f"not used: {parts.rename(stream.pattern)} ({len(stream.files)} files): {reason}")


def _joined(streams: list[Stream]) -> Stream:
    """One stream of files that a table names one by one."""
    suffixes = {stream.suffix for stream in streams}
    files = {(f, PurePosixPath(n).stem): [n] for s in streams for (f, _), ns in s.files.items() for n in ns}
    return Stream(streams[0].folder, "", "", suffixes.pop() if len(suffixes) == 1 else ".*", files)


def _check(draft: Draft, raw: Path, images: list[str]) -> None:
    """Refuse a proposal that does not find its samples, or leaves images out without saying so."""
    config = build_config(draft.content)
    problems = Problems(skip=config.on_error == "skip")
    samples = find_samples(config, problems)
    used = {path.relative_to(raw).as_posix() for sample in samples for path in sample.paths}
    patterns = [Pattern.parse(text) for text in [*config.unlabelled.values(), *draft.unused]]
    skipped = {name for name, _ in problems.skipped}
    lost = [name for name in images if name not in used and not any(pattern.fits(name) for pattern in patterns)]
    if len(lost) > max(len(skipped) * 9, MOST_LOST * len(images)):
        raise UserError(
            f"{len(lost)} of {len(images)} images would not be used, so that the folder is not understood:\n"
            f"{bullet_list(lost)}\nMove other files out of the folder, or write the data config by hand."
        )
    if lost:
        draft.notes.append(f"{len(lost)} images are not used, such as {lost[0]}")
