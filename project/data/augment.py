"""Geometric augmentation of input and target together: the only module that knows albumentations."""

import itertools
import random
from collections.abc import Iterator, Sequence

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations.dropout.transforms import BaseDropout

from project.errors import UserError

cv2.setNumThreads(0)  # otherwise every worker starts as many threads as there are cores

# Of the transforms that albumentations calls geometric, those that paint or change values.
PAINTING = (BaseDropout, A.MaskDropout, A.PixelDropout, A.Morphological, A.Mosaic, A.OverlayElements)
# Those that only permute pixels, as a symmetry of the square does, and compositions that only choose and order.
SYMMETRIES = (A.D4, A.SquareSymmetry, A.HorizontalFlip, A.VerticalFlip, A.Transpose, A.RandomRotate90, A.NoOp)
CHOICES = (A.Sequential, A.OneOf, A.SomeOf, A.RandomOrder, A.OneOrOther)

Turn = tuple[bool, bool, bool]  # transpose, then reverse the rows, then reverse the columns


class GeometricAugmentation:
    """Applies albumentations' geometric transforms to all arrays of a sample alike.

    Only transforms that move pixels are accepted. Photometric ones are silently wrong on uint16 that holds less than
    its full range, and clip floats to [0, 1]; they belong on the normalised input: see `project.transforms.intensity`.

    Every draw comes from the seed given with the sample, never from a stream of random numbers: albumentations 2.0.8
    repeats its stream in every worker, and in every epoch unless workers persist.

    Symmetries of the square (D4, flips, transposition, quarter turns) that stand first in the list are drawn by
    albumentations, so that the result is the same to the bit, but applied to (C, H, W) directly: several times faster.

    Args:
        transforms: Instances of `albumentations.DualTransform`, or compositions of them such as `OneOf`.

    Raises:
        UserError: A transform is photometric, paints over pixels, or fills what it uncovers with a constant.
    """

    def __init__(self, transforms: list[A.BasicTransform | A.BaseCompose]) -> None:
        for transform in _leaves(transforms):
            name = type(transform).__name__
            if not isinstance(transform, A.DualTransform):
                raise UserError(
                    f"data.transforms: {name} changes intensities, which is wrong on raw values. Take geometric "
                    "transforms here, and `model.init_args.intensity` for gain, offset and noise."
                )
            if isinstance(transform, PAINTING):
                raise UserError(
                    f"data.transforms: {name} paints over pixels, of the target too; take transforms that move them"
                )
            if getattr(transform, "border_mode", None) == cv2.BORDER_CONSTANT:
                raise UserError(
                    f"data.transforms: {name} would fill the border with a constant, far from the background of most "
                    f"images. Set `border_mode: {cv2.BORDER_REFLECT_101}` (mirror)."
                )
        first = len(list(itertools.takewhile(_is_symmetry, transforms)))
        self._turns = transforms[:first]
        self._rest = A.Compose(transforms[first:], additional_targets={"target": "image", "instances": "mask"})

    def __call__(self, arrays: dict[str, np.ndarray], seed: np.random.SeedSequence) -> dict[str, np.ndarray]:
        """Transform one sample.

        Args:
            arrays: (C, H, W) for "image" and "target", (H, W) for "mask" and "instances"; any dtype of the camera.
            seed: Decides everything that is drawn.

        Returns:
            Arrays of the same layout and dtype. They may share memory with what was given, and need not be contiguous:
            they are meant to be copied into a batch.
        """
        numbers, choices = seed.generate_state(2, np.uint64).tolist()
        state = np.random.default_rng(numbers), random.Random(choices)
        # A Compose first draws whether to be applied at all. That is done here, and not again by the rest.
        state[1].random()
        if self._turns:
            turn = _drawn(self._turns, *state)
            arrays = {name: _turned(array, turn) for name, array in arrays.items()}
        if len(self._rest):
            self._rest.set_random_state(*state)
            moved = self._rest(force_apply=True, **{name: _last(array) for name, array in arrays.items()})
            arrays = {name: _first(moved[name], array.ndim) for name, array in arrays.items()}
        return arrays


def _leaves(transforms: Sequence[A.BasicTransform | A.BaseCompose]) -> Iterator[A.BasicTransform]:
    for transform in transforms:
        if isinstance(transform, A.BaseCompose):
            yield from _leaves(transform.transforms)
        else:
            yield transform


def _is_symmetry(transform: A.BasicTransform | A.BaseCompose) -> bool:
    """Exact types: what a subclass does is not known."""
    if type(transform) in CHOICES:
        return all(_is_symmetry(each) for each in transform.transforms)
    return type(transform) in SYMMETRIES


def _marks() -> Iterator[tuple[bytes, Turn]]:
    for transposed, rows, columns in itertools.product((False, True), repeat=3):
        mark = MARK.T if transposed else MARK
        yield mark[:: -1 if rows else 1, :: -1 if columns else 1].tobytes(), (transposed, rows, columns)


# What albumentations makes of four different pixels tells which of the eight symmetries it has drawn.
MARK = np.arange(4, dtype=np.uint8).reshape(2, 2)
TURNS = dict(_marks())


def _drawn(
    transforms: list[A.BasicTransform | A.BaseCompose], rng: np.random.Generator, choices: random.Random
) -> Turn:
    """What these symmetries amount to; their draws are those of a Compose, without its overhead."""
    mark = MARK
    for transform in transforms:
        transform.set_random_state(rng, choices)
        if isinstance(transform, A.BaseCompose):
            mark = transform(image=mark)["image"]
        elif transform.should_apply():
            mark = transform.apply(mark, **transform.get_params())
    return TURNS[mark.tobytes()]


# Pixels are only moved, so any dtype of the same size will do: OpenCV does not know all of NumPy's.
WORDS = {1: np.uint8, 2: np.uint16, 4: np.float32, 8: np.float64}


def _turned(array: np.ndarray, turn: Turn) -> np.ndarray:
    """(..., H, W) turned. OpenCV transposes and mirrors several times as fast as NumPy copies such views."""
    transposed, rows, columns = turn
    if transposed or columns:
        shape = array.shape[:-3:-1] if transposed else array.shape[-2:]
        moved = np.empty((*array.shape[:-2], *shape), array.dtype)
        planes = (each.view(WORDS[array.itemsize]).reshape(-1, *each.shape[-2:]) for each in (array, moved))
        for plane, to in zip(*planes, strict=True):
            if transposed:
                cv2.transpose(plane, to)
            if columns:
                cv2.flip(to if transposed else plane, 1, to)
        array = moved
    return array[..., ::-1, :] if rows else array


def _last(array: np.ndarray) -> np.ndarray:
    """Channels last, the way albumentations wants them; `cv2.merge` is five times as fast as transposing."""
    return array if array.ndim == 2 else cv2.merge(list(array)).reshape(*array.shape[1:], len(array))


def _first(array: np.ndarray, ndim: int) -> np.ndarray:
    if ndim == 2:
        return array.reshape(array.shape[:2])
    if array.ndim == 2:
        return array[None]
    moved = np.empty((array.shape[2], *array.shape[:2]), array.dtype)
    cv2.split(array, list(moved))
    return moved
