"""`make data RAW=folder NAME=mine`: the data config that a folder of raw files suggests, with a reason for each key."""

from pathlib import Path, PurePosixPath

from project.data.config_reader import build_config
from project.data.proposal.arrays import ARRAY_SUFFIXES, add_arrays, holds_samples
from project.data.proposal.draft import Draft
from project.data.proposal.fields import name_fields
from project.data.proposal.keys import add_keys
from project.data.proposal.roles import find_roles
from project.data.proposal.streams import Stream, find_streams
from project.data.proposal.tables import SUFFIXES, find_table
from project.data.proposal.words import NOT_DATA, meaning, words
from project.data.raw.find_samples import find_samples
from project.data.raw.patterns import Pattern, count_suffixes, files_below
from project.data.raw.readers import READERS
from project.data.raw.samples import Problems
from project.errors import UserError, bullet_list

MOST_LOST = 0.05  # of the images may be in no pattern, without being named as unused
ADVICE = "convert them to PNG or TIFF, or write the data config by hand: see configs/data/README.md"
# Suffixes of files that are no annotations, unless a text belongs to one image.
TEXTS = {".txt", ".md", ".pdf", ".html", ".log", ".py", ".ipynb", ".zip", ".tar", ".gz", ".db", ".ini", ".yaml", ""}


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
    if arrays and len(arrays) >= len({*images} - {*arrays}):
        add_arrays(draft, raw, arrays)
        images = [name for name in images if name not in arrays]
    else:
        _refuse_unreadable(raw, names, images)
        _add_images(draft, raw, names, images)
    _check(draft, raw, images)
    return draft.text("Proposed from a look at the folder: correct what is wrong, then run `make data` again.")


def _refuse_unreadable(raw: Path, names: list[str], images: list[str]) -> None:
    """Refuse folders whose images or annotations may be in formats that are not read."""
    if not images:
        listed = f'there are no images below "{raw}" ({count_suffixes(names)})'
        raise UserError(f"{listed}; formats that are read: {', '.join(sorted(READERS))}; {ADVICE}")
    if any(meaning(part) == "annotation" for name in images for part in PurePosixPath(name).with_suffix("").parts):
        return
    known, stems = TEXTS | {*READERS} | SUFFIXES, {PurePosixPath(name).stem for name in images}
    paths = [PurePosixPath(name.removesuffix(".gz")) for name in names]
    unknown = [p for p in paths if p.suffix.lower() not in known or (p.suffix.lower() == ".txt" and p.stem in stems)]
    if unknown:
        raise UserError(
            f"{len(unknown)} files may be annotations, in a format not read, such as {unknown[0]}; {ADVICE}. Move them "
            "out of the folder if they are not about the images."
        )


def _add_images(draft: Draft, raw: Path, names: list[str], images: list[str]) -> None:
    streams = find_streams(images)
    table = find_table(raw, names, {PurePosixPath(name).with_suffix("").as_posix(): name for name in images})
    if table is None and len(streams) > 1:  # a row for all channels of an image
        table = find_table(raw, names, {core: name for (_, core), name in streams[0].files.items()})
    if table and len(streams) > 1 and all(not stream.role for stream in streams):
        # One stream of files that a table names one by one.
        suffixes = {stream.suffix for stream in streams}
        files = {(fields, PurePosixPath(n).stem): n for s in streams for (fields, _), n in s.files.items()}
        streams = [Stream(streams[0].folder, "", "", suffixes.pop() if len(suffixes) == 1 else ".*", files)]
    roles = find_roles(raw, streams)
    for stream in roles.images:
        named = [core for _, core in stream.files if meaning(core) in ("annotation", "target", "stain")]
        if 0 < len(named) < len(stream.files):
            raise UserError(
                f'some files of "{stream.pattern}" are called as masks or targets, such as {named[0]}, but do not pair '
                "up with the others. Use one form for all names, as a01_phase.tif and a01_mask.tif."
            )
    if not (table or roles.partners) and (tables := [n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES]):
        raise UserError(
            f'the table "{tables[0]}" names none of the images, such as {images[0]}: its ids have to be names of files '
            "or paths below the folder. Correct it, or move it out of the folder if it is not about the images."
        )
    has_labels = bool(table and {"label", "values"} & table.keys.keys())
    fields = name_fields(raw, roles, has_labels or bool(roles.partners))
    add_keys(draft, raw, roles, table, fields)
    for stream, reason in roles.unused:
        draft.unused.append(stream.pattern)
        draft.notes.append(f"not used: {fields.rename(stream)} ({len(stream.files)} files): {reason}")


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
