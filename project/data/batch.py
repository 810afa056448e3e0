"""Content of a batch: every key, its shape and dtype, and when it is present."""

from typing import TypedDict

from torch import Tensor

Tensors = dict[str, Tensor]  # a batch, for code that treats all keys alike


class Batch(TypedDict, total=False):
    """One batch of a split. B samples; h, w: the crop in training, whole images in validation and test.

    Pixel values are those of the file, in its dtype: tasks normalize on the device.

    Attributes:
        image: (B, C, h, w) uint8, uint16 or float32, input channels; always present.
        target: (B, C', h, w), the same dtypes, target channels of a translation; if the datamodule reads this role.
        mask: (B, h, w) uint8 or uint16, class number of each pixel; if the datamodule reads this role.
        instances: (B, h, w) uint8 or uint16, object number of each pixel, 0 is background; if the datamodule reads
            this role, in validation and test also where it is optional and the file has it.
        label: (B,) int64 class numbers, or (B, K) zeros and ones; wherever the file has labels.
        value: (B, K) float32, numbers per image in the units of the table; wherever the file has them.
        index: (B,) int64, position of each sample in its split; always present.
        image_statistics: (B, C, 4) float32, mean, standard deviation, low and high end of each *whole* image,
            the same for all its crops, see `project.data.statistics.image_statistics`; always present.
    """

    image: Tensor
    target: Tensor
    mask: Tensor
    instances: Tensor
    label: Tensor
    value: Tensor
    index: Tensor
    image_statistics: Tensor
