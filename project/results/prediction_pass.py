"""One pass over a split with the best checkpoint of a run, and what a report shows of the predictions."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor

from project.data.batch import Tensors
from project.data.store import SplitReader
from project.metrics.classification import confusion_matrix, reliability
from project.runs.run_folder import Run
from project.tasks.segmentation import SegmentationTask
from project.tasks.translation import TranslationTask
from project.training.evaluate import RecordTestEvaluation, load_best, rebuilt
from project.training.results_writer import sample_arrays

BINS = 80  # of the values of a target, from its smallest in training to its largest
MOST_CHANNELS = 4  # whose calibration is shown


class PredictionPass(Callback):
    """Collects what a report shows from the batches of a validation or test.

    Attributes:
        task: With the weights and, after the pass, the results.
        reader: The split.
        all_folds: The split with all folds; the same where there are none.
        samples: Position in the split -> arrays, as for `Task.draw`, of the `chosen` samples.
        sums: "joint": (C', BINS, BINS) numbers of pixels by true and predicted value, of target images; "confidence":
            (3, bins) sums of confidence, right decisions and numbers of pixels by confidence, of masks; "confusion":
            (K, K) numbers of pixels of masks, rows are the truth.
        agreement: Position in the split -> agreement of the network with the mask, from 0 to 1.
    """

    task: Any
    reader: SplitReader
    all_folds: SplitReader

    def __init__(self, chosen: Collection[int]) -> None:
        self.chosen = set(chosen)
        self.samples: dict[int, dict[str, Any]] = {}
        self.sums: dict[str, np.ndarray] = {}
        self.agreement: dict[int, float] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Before the data is read."""
        self.task, self.all_folds = pl_module, trainer.datamodule.whole
        self.reader = trainer.datamodule.reader("test" if stage == "test" else "val")

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: int) -> None:
        """Keep the chosen samples of a batch, and count its pixels."""
        prediction = outputs.float()
        for i, index in enumerate(batch["index"].tolist()):
            if index in self.chosen:
                self.samples[index] = sample_arrays(batch, outputs, i, self.reader)
        if isinstance(self.task, TranslationTask):
            self._add("joint", _count_pairs(self.task, prediction, batch["target"].float()))
        elif isinstance(self.task, SegmentationTask):
            self._add_masks(batch, prediction)

    def _add(self, name: str, part: np.ndarray) -> None:
        self.sums[name] = self.sums.get(name, 0) + part

    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]

    def _add_masks(self, batch: Tensors, prediction: Tensor) -> None:
        task = self.task
        background = None if task.background is None else task.names.index(task.background)
        columns = batch["index"].tolist(), prediction[:, : task.n_classes], task.class_target(batch)
        for index, probabilities, classes in zip(*columns, strict=True):
            annotated = classes >= 0
            p, label = probabilities[:, annotated].T.double().cpu(), classes[annotated].cpu()
            if len(label):
                self.agreement[index] = agreement(p, label, background)
                confidence, right, count = (np.nan_to_num(values) for values in reliability(p, label))
                self._add("confidence", np.stack([confidence * count, right * count, count]))
                self._add("confusion", confusion_matrix(p.argmax(1), label, p.shape[1]).numpy())

    def calibration(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Mean confidence, share of right decisions and number of pixels by confidence; as `reliability`."""
        if "confidence" not in self.sums:
            return None
        confidence, right, count = self.sums["confidence"]
        with np.errstate(invalid="ignore"):
            return confidence / count, right / count, count.astype(int)


def run_prediction_pass(run: Run, split: str, chosen: Collection[int] = (), trusted: bool = False) -> PredictionPass:
    """Go through a split ("val" or "test") with the best checkpoint of a run; a test evaluation is recorded.

    `chosen` are positions in the split of the samples to keep. Errors are those of an evaluation.
    """
    result, overrides = PredictionPass(chosen), ["--trainer.enable_progress_bar=false"]
    with rebuilt(run, overrides, trusted, [result, RecordTestEvaluation(run)]) as cli:
        load_best(cli)
        loop = cli.trainer.validate if split == "val" else cli.trainer.test
        loop(cli.model, datamodule=cli.datamodule, verbose=False)
    return result


def agreement(probabilities: Tensor, label: Tensor, background: int | None) -> float:
    """Agreement of probabilities (N, K) with the classes (N,) of the annotated pixels of a mask.

    The mean probability of the given class, over the pixels that are foreground, in the mask or in the prediction:
    background, which is most of an image and easy, would hide a missing object. None: all classes count.
    """
    given = probabilities.gather(1, label[:, None])[:, 0]
    if background is None:
        return given.mean().item()
    foreground = (label != background) | (probabilities.argmax(1) != background)
    return given[foreground].mean().item() if foreground.any() else 1.0


def _count_pairs(task: Any, prediction: Tensor, target: Tensor) -> np.ndarray:
    """Pixels by true and predicted value, (C, BINS, BINS); values outside the range are in the last bins."""
    low, high = (x[:MOST_CHANNELS, None, None].to(target.device) for x in (task.low, task.high))
    scale = torch.where(high > low, BINS / (high - low), torch.zeros_like(low))
    t, p = (((x[:, :MOST_CHANNELS] - low) * scale).long().clamp(0, BINS - 1) for x in (target, prediction))
    pairs = (t * BINS + p).transpose(0, 1).flatten(1)
    return torch.stack([torch.bincount(c, minlength=BINS**2).view(BINS, BINS) for c in pairs]).cpu().numpy()
