"""What is written of a prediction: files, a row of predictions.csv, a text."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from project.errors import UserError


class PredictionOutput:
    """Output of a task for one sample; tasks override what their predictions need."""

    # What is predicted: values per pixel, a class per pixel, classes per image, numbers per image; None if nothing is.
    target_kind: ClassVar[Literal["image", "mask", "label", "value"] | None] = None
    parts: Sequence[str]
    statistics: dict[str, Any]

    @property
    def is_dense(self) -> bool:
        """Whether there is a prediction for each pixel; otherwise for the image as a whole."""
        return self.target_kind in ("image", "mask")

    @property
    def tags(self) -> list[str]:
        """Endings of the columns of each part, as those of metrics."""
        return [f"/{part}" for part in self.parts] if len(self.parts) > 1 else [""]

    @property
    def prediction_range(self) -> float:
        """Width of the range of predictions, which differences are compared with; 1 for probabilities."""
        columns = self.statistics["value"] if self.target_kind == "value" else []
        return max((column["max"] - column["min"] for column in columns), default=1.0) or 1.0

    def check_numbers(self, output: Tensor, names: Sequence[str]) -> None:
        """Refuse an output that is not one number per image and name."""
        if output.ndim != 2 or output.shape[1] != len(names):
            shape = tuple(output.shape[1:])
            raise UserError(f"the network gives {shape} per image, but {len(names)} are needed: {', '.join(names)}")

    def prediction_files(
        self, prediction: np.ndarray, spread: np.ndarray | None = None, rounded: bool = False
    ) -> dict[str, np.ndarray]:
        """Arrays to write for the prediction of one sample.

        Args:
            prediction: Of `forward`, without the batch axis.
            spread: Standard deviation of the predictions of several runs, of the same shape.
            rounded: Whether predicted images take the dtype of the target.

        Returns:
            Suffix of the file name -> (C, H, W) or (H, W).
        """
        if self.target_kind in ("label", "value"):  # rows of a table say all
            return {}
        return {"": prediction, **({} if spread is None else {"_spread": spread.max(0)})}

    def prediction_row(
        self, prediction: np.ndarray, files: dict[str, np.ndarray], spread: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Columns of predictions.csv for one sample; see `prediction_files`, whose arrays are `files`."""
        if self.target_kind not in ("label", "value"):
            return {}
        prefix = "p/" if self.target_kind == "label" else ""
        row = {f"{prefix}{name}": float(value) for name, value in zip(self.parts, prediction, strict=True)}
        spreads = [] if spread is None else zip(self.parts, spread, strict=True)
        return row | {f"spread/{name}": float(value) for name, value in spreads}

    def describe_target(self, target: Tensor) -> str:
        """Text for one element of `make_target` that is not an image."""
        numbers = [f"{value:.4g}" for value in target.reshape(-1).tolist()]
        return ", ".join(numbers[:4]) + (" ..." if len(numbers) > 4 else "")
