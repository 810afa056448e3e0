"""Pixels of one role of a sample: image, target, mask or instances."""

from collections.abc import Callable, Iterable

import numpy as np

from project.data.raw.lazy_image import LazyImage, errors_mention
from project.data.raw.samples import INTEGER_ROLES, ImageRef, Sample
from project.errors import UserError

EXACT_IN_FLOAT64 = 2**53


def open_role(sample: Sample, role: str, open_image: Callable[[ImageRef], LazyImage]) -> list[LazyImage]:
    """The images of one role of a sample, in the order of the channels; errors name the file."""
    images = []
    for ref in sample.images[role]:
        with errors_mention(ref):
            image = open_image(ref)
            if role not in INTEGER_ROLES and image.indexed:
                hint = "set `convert: rgb` or `convert: grey`, or " if role == "image" else ""
                raise UserError(f"the values are indices into a color table; {hint}save it as gray or RGB")
            if role in INTEGER_ROLES and image.inverted:
                raise UserError(
                    "the file says that 0 is white, which makes the numbers uncertain; save it with 0 as black"
                )
        images.append(image)
    return images


def role_notes(role: str, images: Iterable[LazyImage]) -> list[str]:
    """What the user should know about the files of one role."""
    subject = "instances file" if role == "instances" else role
    notes = [f"the {subject} {'; '.join(image.notes)}" for image in images if image.notes]
    if role not in INTEGER_ROLES and any(image.alpha for image in images):
        notes.append(f"the {role} has alpha, which is kept as a channel")
    return notes


def read_role(sample: Sample, role: str, open_image: Callable[[ImageRef], LazyImage]) -> np.ndarray:
    """The pixels of one role of a sample, whole or in its window.

    Returns:
        (C, H, W) for image and target; (H, W) uint8, uint16 or, with values beyond these, int64 for mask and instances.
    """
    planes = []
    for ref, image in zip(sample.images[role], open_role(sample, role, open_image), strict=True):
        y0, y1, x0, x1 = sample.window or (0, image.shape[1], 0, image.shape[2])
        with errors_mention(ref):
            planes.append(image.rows(y0, y1)[:, :, x0:x1])
    array = planes[0] if len(planes) == 1 else np.concatenate(planes)
    return _as_integers(array, sample, role) if role in INTEGER_ROLES else array


def check_one_channel(sample: Sample, role: str, n_channels: int) -> None:
    """Refuse masks and instances in colors."""
    if n_channels != 1:
        raise UserError(
            f"{sample.images[role][0]}: {role} must have one channel, this has {n_channels}; save it as gray or palette"
        )


def _as_integers(array: np.ndarray, sample: Sample, role: str) -> np.ndarray:
    name = str(sample.images[role][0])
    check_one_channel(sample, role, len(array))
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and (array % 1 == 0).all() and (abs(array) < EXACT_IN_FLOAT64).all()):
            raise UserError(f"{name}: the values of {role} must be integers, these are not")
    elif array.dtype in (np.uint8, np.uint16):
        return array[0]
    fits = not array.size or (array.min() >= 0 and array.max() <= np.iinfo(np.uint16).max)
    return array[0].astype(np.uint16 if fits else np.int64)
