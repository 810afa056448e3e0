"""Geometric augmentation of input and target together: the only module that knows albumentations."""

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


class GeometricAugmentation:
    """Applies albumentations' geometric transforms to all arrays of a sample alike.

    Only transforms that move pixels are accepted. Photometric ones are silently wrong on uint16 that holds less than
    its full range, and clip floats to [0, 1]; they belong on the normalised input: see `project.tasks.intensity`.

    Every draw comes from the seed given with the sample, never from a stream of random numbers: albumentations 2.0.8
    repeats its stream in every worker, and in every epoch unless workers persist.

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
        self._compose = A.Compose(transforms, additional_targets={"target": "image", "instances": "mask"})

    def __call__(self, arrays: dict[str, np.ndarray], seed: np.random.SeedSequence) -> dict[str, np.ndarray]:
        """Transform one sample.

        Args:
            arrays: (C, H, W) for "image" and "target", (H, W) for "mask" and "instances"; any dtype of the camera.
            seed: Decides everything that is drawn.

        Returns:
            Arrays of the same layout and dtype; they may share memory with what was given.
        """
        words = seed.generate_state(2, np.uint64)
        self._compose.set_random_state(np.random.default_rng(words[0]), random.Random(int(words[1])))
        moved = self._compose(**{name: _last(array) for name, array in arrays.items()})
        return {name: _first(moved[name], array.ndim) for name, array in arrays.items()}


def _leaves(transforms: Sequence[A.BasicTransform | A.BaseCompose]) -> Iterator[A.BasicTransform]:
    for transform in transforms:
        if isinstance(transform, A.BaseCompose):
            yield from _leaves(transform.transforms)
        else:
            yield transform


def _last(array: np.ndarray) -> np.ndarray:
    """Channels last, the way albumentations wants them; `cv2.merge` is five times as fast as transposing."""
    return array if array.ndim == 2 else cv2.merge(list(array)).reshape(*array.shape[1:], len(array))


def _first(array: np.ndarray, ndim: int) -> np.ndarray:
    if ndim == 2:
        return array.reshape(array.shape[:2])
    return np.stack(cv2.split(array)) if array.ndim == 3 else array[None]
