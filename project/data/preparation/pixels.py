"""Pixels of one sample: read, checked, and converted to what the HDF5 file holds."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from project.data.config import SizesConfig
from project.data.preparation.sizes import fit_to_size
from project.data.raw.images import FileRef
from project.data.raw.lazy_image import LazyImage, errors_mention
from project.data.raw.samples import INTEGER_ROLES, ImageRef, Sample
from project.errors import UserError

Shapes = dict[str, tuple[int, ...]]  # array name -> shape
HIGHEST = 2**16 - 1  # class or object number in the files
MAX_LISTED = 6  # values of one image in a message


@dataclass(frozen=True)
class PixelSettings:
    """How pixels are converted and written; the fields without a comment are those of `DatasetConfig`."""

    dtypes: dict[str, str]  # array name -> name of the dtype in the file
    n_classes: int = 0  # number of mask classes, or 0 where it is not known before
    sizes: SizesConfig | None = None
    not_finite: float | None = None
    mask_values: dict[int, int] | None = None
    ignore_index: int | None = None
    signatures: bool = True  # whether near-duplicates are searched for
    compression: str = "none"
    skip: bool = False  # whether samples that cannot be used are left out

    def n_bytes(self, shapes: Shapes) -> int:
        """Bytes of the arrays of a sample without compression."""
        return sum(math.prod(shape) * np.dtype(self.dtypes[role]).itemsize for role, shape in shapes.items())


def read_sample(
    sample: Sample, settings: PixelSettings, open_image: Callable[[ImageRef], LazyImage] = lambda ref: ref.open()
) -> tuple[dict[str, np.ndarray], bool]:
    """All arrays of a sample as the file holds them, including a mask that is made of the objects.

    Returns:
        Array name -> (C, H, W) or (H, W); and whether its object numbers were changed.

    Raises:
        UserError: A file cannot be read, or holds values that cannot be used.
    """
    arrays, renumbered = dict[str, np.ndarray](), False
    for role in sample.roles:
        array = read_role(sample, role, open_image)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            array = _replace_not_finite(array, role, settings.not_finite)
        if role == "mask":
            array = _class_numbers(array, settings)
        elif role == "instances" and array.dtype == np.int64:
            array, renumbered = _renumber_objects(array), True
        converted = {role: array}
        if role == "instances" and "mask" in settings.dtypes and "mask" not in sample.images:
            converted["mask"] = array > 0
        for name, values in converted.items():
            values = values.astype(settings.dtypes[name], copy=False)
            arrays[name] = fit_to_size(values, name, settings.sizes, settings.ignore_index)
    _check_different(arrays)
    return arrays, renumbered


def _check_different(arrays: dict[str, np.ndarray]) -> None:
    """Refuse a channel of the input that is the target: nothing would have to be learned."""
    for role in [role for role in ("target", "mask", "instances") if role in arrays]:
        answers = arrays[role] if role == "target" else arrays[role][None]
        for (c, plane), (k, answer) in itertools.product(enumerate(arrays["image"]), enumerate(answers)):
            if np.array_equal(plane[0], answer[0]) and np.array_equal(plane, answer) and np.ptp(plane):
                channel = f"channel {k} of the " if len(answers) > 1 else "the "
                raise UserError(
                    f"channel {c} of the image is equal to {channel}{role}: the same file or plane twice? Correct the "
                    f"patterns of `image` and `{role}`"
                )


def distinct_values(array: np.ndarray) -> np.ndarray:
    """The values that occur in an array of whole numbers, in order."""
    countable = array.dtype in (np.uint8, np.uint16)  # far faster than sorting all pixels
    return np.flatnonzero(np.bincount(array.ravel())) if countable else np.unique(array)


def _replace_not_finite(array: np.ndarray, role: str, fill: float | None) -> np.ndarray:
    if fill is None:
        finite = array[np.isfinite(array)]
        # A value that no other pixel has, such as 0 in a target that starts at 300, would be learned as well.
        usual = f", such as {np.median(finite):.4g}, the median" if finite.size else ""
        raise UserError(
            f"{array.size - finite.size} pixels of the {role} are NaN or infinite, or declared as no data; fix it, "
            f"leave it out (`on_error: skip`), or fill in a usual value, `not_finite`{usual}"
        )
    return np.where(np.isfinite(array), array, np.float32(fill))


def _class_numbers(mask: np.ndarray, settings: PixelSettings) -> np.ndarray:
    """Class numbers of the values of a mask; a value without a class is an error."""
    codes, ignore, n_classes = settings.mask_values, settings.ignore_index, settings.n_classes or HIGHEST + 1
    values = distinct_values(mask)
    valid = range(n_classes) if codes is None else codes
    if invalid := [int(value) for value in values if value not in valid and value != ignore]:
        listed = ", ".join(map(str, invalid[:MAX_LISTED])) + (" ..." if len(invalid) > MAX_LISTED else "")
        if codes is not None:
            is_between = min(codes) < invalid[len(invalid) // 2] < max(codes)
            cause = f", but between {min(codes)} and {max(codes)}: resized with interpolation, or saved as JPEG?"
            raise UserError(f"mask values {listed} are not in `mask_values`{cause if is_between else ''}")
        if values[0] == 1 and invalid == [n_classes]:
            listed = ", ".join(f"{k + 1}: {k}" for k in range(min(n_classes, MAX_LISTED)))
            raise UserError(
                f"the mask holds the values 1 to {n_classes}: are the {n_classes} classes counted from 1? Give each "
                f"its number, `mask_values: {{{listed}{', ...' * (n_classes > MAX_LISTED)}}}`"
            )
        raise UserError(
            f"mask values {listed} are beyond the {n_classes} classes, 0 to {n_classes - 1}; correct the file, add "
            "names to `classes`, set `ignore_index` if one means not annotated, or give each value its class, as "
            f"`mask_values: {{{invalid[0]}: {0 if ignore is None else ignore}, ...}}`"
        )
    if codes is None:
        return mask
    numbers = np.array([codes.get(int(value), int(value)) for value in values], np.uint16)
    if mask.dtype == np.int64:
        return numbers[np.searchsorted(values, mask)]
    table = np.zeros(HIGHEST + 1, np.uint16)
    table[values] = numbers
    return table[mask]


def _renumber_objects(instances: np.ndarray) -> np.ndarray:
    """(H, W) int64 object numbers that uint16 cannot hold -> numbers counted from 1 in their order."""
    values = distinct_values(instances)
    if values[0] < 0:
        raise UserError(f"the instances hold {values[0]}; objects have numbers above 0, and 0 is background")
    values = values[values > 0]
    if len(values) > HIGHEST:
        raise UserError(f"the image has {len(values)} objects; at most {HIGHEST} are possible. Cut it into tiles")
    return (np.searchsorted(values, instances) + (instances > 0)).astype(np.uint16)


EXACT_IN_FLOAT64 = 2**53


def open_role(sample: Sample, role: str, open_image: Callable[[ImageRef], LazyImage]) -> list[LazyImage]:
    """The images of one role of a sample, in the order of the channels; errors name the file."""
    images = []
    for ref in sample.images[role]:
        with errors_mention(ref):
            if isinstance(ref, FileRef):
                ref = replace(ref, exact=role in INTEGER_ROLES)
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
    if role == "target" and any(image.lossy for image in images):
        notes.append("the target is JPEG, whose blocks and rings are learned too: take the files it was made of")
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


def _as_integers(array: np.ndarray, sample: Sample, role: str) -> np.ndarray:
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and (array % 1 == 0).all() and (abs(array) < EXACT_IN_FLOAT64).all()):
            raise UserError(f"{sample.images[role][0]}: the values of {role} must be integers, these are not")
    elif array.dtype in (np.uint8, np.uint16):
        return array[0]
    return array[0].astype(np.uint16 if array.min() >= 0 and array.max() <= HIGHEST else np.int64)
