"""Find the samples of a dataset: source, table, split file, pages; all problems are collected."""

from collections import Counter
from dataclasses import replace

from project.data.config import DatasetConfig
from project.data.raw.images import FileRef
from project.data.raw.labels import describe_doubtful
from project.data.raw.lazy_image import errors_mention
from project.data.raw.polygons import PolygonRef
from project.data.raw.samples import ROLES, ImageRef, Problems, Sample, Source
from project.data.raw.sources import find_source
from project.data.raw.tables import join_tables
from project.errors import UserError, bullet_list


def find_samples(config: DatasetConfig, problems: Problems, source: Source | None = None) -> list[Sample]:
    """All samples of a dataset that can be used; the others are listed in one error, or skipped."""
    samples = collect_samples(config, problems, source or find_source(config))
    problems.check()
    return samples


def collect_samples(config: DatasetConfig, problems: Problems, source: Source) -> list[Sample]:
    """The samples of a source in the order of their ids, with the data of tables and split files.

    `problems` gets those that cannot be used; a `UserError` if none is left.
    """
    samples = list(source.samples(problems))
    if wrong := [sample for sample in samples if not isinstance(sample, Sample)]:
        raise UserError(f"a source returns objects of the class Sample, not {type(wrong[0]).__name__}")
    samples = problems.usable(samples)
    for step in (_checked, join_tables, _with_pages):
        with problems.collected():
            samples = problems.usable(step(samples, config, problems))
    if not samples:
        problems.check()
        reasons = bullet_list(f"{name}: {problem}" for name, problem in problems.skipped)
        raise UserError(f"no sample is left, all were skipped:\n{reasons}" if reasons else "there is no sample")
    groups = Counter(sample.group for sample in samples if sample.group != sample.id)
    problems.warnings += describe_doubtful(groups, "groups")
    return samples


def _checked(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """The samples in the order of their ids, those without an image, with other roles or a repeated id reported."""
    for id_ in [sample.id for sample in samples if not _is_valid(sample.id)]:
        problems.add(ascii(id_), "the id is empty or not UTF-8; rename the file")
    samples = [sample for sample in samples if _is_valid(sample.id)]
    times = Counter(sample.id for sample in samples)
    roles, _ = Counter(tuple(sample.roles) for sample in samples).most_common(1)[0] if samples else ((), 0)
    for sample in samples:
        if unknown := sorted(set(sample.images) - set(ROLES)):
            raise UserError(f"{sample.id}: unknown role {', '.join(unknown)}; the roles are {', '.join(ROLES)}")
        if "image" not in sample.images:
            problems.add(sample.id, "has no image")
        elif tuple(sample.roles) != roles:
            problems.add(sample.id, f"has {', '.join(sample.roles)}, most have {', '.join(roles)}")
    for id_, n in times.items():
        if n > 1:
            problems.add(id_, f"{n} samples have this id")
    return sorted(samples, key=lambda sample: sample.id)


def _is_valid(id_: str) -> bool:
    """Whether an id, part of a file name and so of bytes, is not empty and can be written as UTF-8."""
    return id_ == id_.encode(errors="ignore").decode() != ""


def _with_pages(samples: list[Sample], config: DatasetConfig, problems: Problems) -> list[Sample]:
    """One sample per page, in the group of the file, where pages are samples; and every reference with its axes."""
    if config.pages == "channels":
        return samples
    result = []
    for sample in samples:
        try:
            result += _pages(sample, config.pages)
        except UserError as error:
            problems.add(sample.id, str(error))
    return result


def _pages(sample: Sample, pages: str | dict[str, str | int]) -> list[Sample]:
    uses = pages if isinstance(pages, dict) else {"page": "samples"}
    sizes: dict[FileRef, dict[str, int]] = {}
    for ref in (ref for refs in sample.images.values() for ref in refs if isinstance(ref, FileRef)):
        with errors_mention(ref):
            if isinstance(pages, dict):
                sizes[ref] = ref.axis_sizes()
            elif (image := ref.open()).has_colors:
                raise UserError(f"its {image.shape[0]} channels are colors, not pages; leave out `pages: samples`")
            else:
                sizes[ref] = {"page": image.shape[0]}

    def at(ref: ImageRef, position: int) -> ImageRef:
        if isinstance(ref, PolygonRef):
            return replace(ref, image=at(ref.image, position))
        assert isinstance(ref, FileRef)  # `pages` is for image files
        if not isinstance(pages, dict):
            return replace(ref, channel=position)
        # A mask may lack axes that the image has.
        chosen = [(axis, position if use == "samples" else use) for axis, use in uses.items() if axis in sizes[ref]]
        return replace(ref, pages=tuple(chosen))

    axis = next((axis for axis, use in uses.items() if use == "samples"), "")
    lengths = {ref: of_axes.get(axis, 1) for ref, of_axes in sizes.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"the numbers of pages differ: {', '.join(f'{ref} {n}' for ref, n in lengths.items())}")
    return [
        replace(
            sample,
            id=f"{sample.id}/{axis}{position:04d}" if axis else sample.id,
            images={role: [at(ref, position) for ref in refs] for role, refs in sample.images.items()},
        )
        for position in range(next(iter(lengths.values())))
    ]
