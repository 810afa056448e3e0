"""Geometric augmentation of input and target together: the only module that knows albumentations."""

import random

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
    its full range, and clip floats to [0, 1]; they belong on the normalized input: see `project.transforms.intensity`.

    All random numbers come from the seed of the sample: the generator of albumentations 2.0.8 repeats its numbers in
    every worker, and in every epoch unless workers persist.

    Args:
        transforms: Instances of `albumentations.DualTransform`, or compositions of them such as `OneOf`.

    Raises:
        UserError: A transform is photometric, paints over pixels, or fills uncovered pixels with a constant.
    """

    def __init__(self, transforms: list[A.BasicTransform | A.BaseCompose]) -> None:
        for transform in transforms:
            _check_geometric(transform)
        self._compose = A.Compose(transforms, additional_targets={"target": "image", "instances": "mask"})

    def __call__(self, arrays: dict[str, np.ndarray], seed: np.random.SeedSequence) -> dict[str, np.ndarray]:
        """Transform (C, H, W) images and targets, (H, W) masks and instances; uint8, uint16 or float32.

        The shape stays: after a quarter turn of arrays that are not square, they are turned again. Of `D4` that leaves
        the four symmetries of a rectangle, equally often.
        """
        numbers, choices = seed.generate_state(2, np.uint64).tolist()
        self._compose.set_random_state(np.random.default_rng(numbers), random.Random(choices))
        # (C, H, W) -> (H, W, C): `cv2.merge` is five times as fast as transposing.
        last = {n: a if a.ndim == 2 else cv2.merge([*a]).reshape(*a.shape[1:], len(a)) for n, a in arrays.items()}
        moved = self._compose(**last)
        result = {}
        for name, before in arrays.items():
            array = moved[name].reshape(moved[name].shape[:2]) if before.ndim == 2 else np.stack(cv2.split(moved[name]))
            is_turned = array.shape[-2:] == before.shape[:-3:-1] != before.shape[-2:]
            result[name] = np.rot90(array, axes=(-2, -1)) if is_turned else array
        return result


def _check_geometric(transform: A.BasicTransform | A.BaseCompose) -> None:
    if isinstance(transform, A.BaseCompose):
        for part in transform.transforms:
            _check_geometric(part)
        return
    name = type(transform).__name__
    if not isinstance(transform, A.DualTransform):
        raise UserError(
            f"data.transforms: {name} changes intensities, which is wrong on raw values. Use geometric transforms "
            "here, and `model.init_args.intensity_augmentation` for gain, offset and noise."
        )
    if isinstance(transform, PAINTING):
        raise UserError(f"data.transforms: {name} paints over pixels, also in the target; use ones that move them")
    if getattr(transform, "border_mode", None) == cv2.BORDER_CONSTANT:
        raise UserError(
            f"data.transforms: {name} would fill the border with a constant, far from the background of most images. "
            f"Set `border_mode: {cv2.BORDER_REFLECT_101}` (mirror)."
        )
