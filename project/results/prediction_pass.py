"""One pass over a split with the best checkpoint of a run, and what a report shows of the predictions."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from project.data.batch import Tensors
from project.data.store import SplitReader
from project.metrics.base import EvaluationResult
from project.metrics.classification import confusion_matrix, reliability
from project.models.checkpoint_files import best_checkpoint
from project.results.run_results import build_from_run
from project.runs.run_folder import Run
from project.training.evaluate import RecordTestEvaluation, check_data, load_weights, read_checkpoint

BINS = 80  # of the values of a target, from its smallest in training to its largest
MOST_CHANNELS = 4  # whose residuals are counted


@dataclass
class PredictionPass:
    """What one pass gave.

    Attributes:
        task: With the weights.
        reader: The split.
        all_folds: The split with all folds; the same where there are none.
        results: Scores of the pass.
        samples: Position in the split -> arrays, as for `Task.draw`.
        joint: (C', BINS, BINS) numbers of pixels by true and predicted value, of target images.
        confidence: (3, bins) sums of confidence, right decisions and numbers of pixels by confidence, of masks.
        confusion: (K, K) numbers of pixels of masks, rows are the truth.
        agreement: Position in the split -> agreement of the network with the mask, from 0 to 1.
    """

    task: Any
    reader: SplitReader
    all_folds: SplitReader
    results: EvaluationResult | None = None
    samples: dict[int, dict[str, Any]] = field(default_factory=dict)
    joint: np.ndarray | None = None
    confidence: np.ndarray | None = None
    confusion: np.ndarray | None = None
    agreement: dict[int, float] = field(default_factory=dict)

    def add(self, batch: Tensors, prediction: Tensor, chosen: Collection[int]) -> None:
        """Keep the chosen samples of a batch, and count its pixels."""
        arrays = {role: values for role, values in batch.items() if role != "index"}
        for i, index in enumerate(batch["index"].tolist()):
            if index in chosen:
                sample = {role: values[i].cpu().numpy() for role, values in arrays.items()}
                sample |= {"id": self.reader.ids[index], "index": index, "prediction": prediction[i].cpu().numpy()}
                self.samples[index] = sample
        if self.task.target_kind == "image":
            joint = _count_pairs(self.task, prediction, batch["target"].float())
            self.joint = joint if self.joint is None else self.joint + joint
        elif self.task.target_kind == "mask":
            probabilities = prediction[:, : self.task.n_classes]
            columns = batch["index"].tolist(), probabilities, self.task.class_target(batch)
            for row in zip(*columns, strict=True):
                self._add_mask(*row)

    def _add_mask(self, index: int, probabilities: Tensor, classes: Tensor) -> None:
        task, annotated = self.task, classes >= 0
        p, label = probabilities[:, annotated].T.double().cpu(), classes[annotated].cpu()
        if not len(label):
            return
        background = None if task.background is None else task.names.index(task.background)
        self.agreement[index] = agreement(p, label, background)
        confidence, right, count = (np.nan_to_num(values) for values in reliability(p, label))
        sums = np.stack([confidence * count, right * count, count])
        self.confidence = sums if self.confidence is None else self.confidence + sums
        matrix = confusion_matrix(p.argmax(1), label, p.shape[1]).numpy()
        self.confusion = matrix if self.confusion is None else self.confusion + matrix

    def calibration(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Mean confidence, share of right decisions and number of pixels by confidence; as `reliability`."""
        if self.confidence is None:
            return None
        confidence, right, count = self.confidence
        with np.errstate(invalid="ignore"):
            return confidence / count, right / count, count.astype(int)


class _Collect(Callback):
    """Hands every batch of validation or test to a `PredictionPass`."""

    def __init__(self, chosen: Collection[int]) -> None:
        self.chosen = set(chosen)
        self.result: PredictionPass | None = None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Add a batch."""
        assert self.result is not None
        self.result.add(batch, outputs.float(), self.chosen)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Add a batch."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def run_prediction_pass(run: Run, split: str, chosen: Collection[int] = (), trusted: bool = False) -> PredictionPass:
    """Go through a split with the best checkpoint of a run; for test, this is recorded as a test evaluation.

    Args:
        run: A run folder.
        split: "val" or "test".
        chosen: Positions in the split of the samples to keep.
        trusted: Let the configuration name any code.

    Raises:
        UserError: As for an evaluation.
    """
    path, collect = best_checkpoint(run.folder), _Collect(chosen)
    overrides = ["--trainer.enable_progress_bar=false"]
    with build_from_run(run, overrides, trusted, [collect, RecordTestEvaluation(run)]) as cli:
        checkpoint = read_checkpoint(path)
        check_data(cli, run.read_provenance(), run)
        load_weights(cli, checkpoint, path)
        collect.result = PredictionPass(cli.model, cli.datamodule.reader(split), cli.datamodule.whole)
        loop = cli.trainer.validate if split == "val" else cli.trainer.test
        loop(cli.model, datamodule=cli.datamodule, verbose=False)
    collect.result.results = cli.model.results
    return collect.result


def agreement(probabilities: Tensor, label: Tensor, background: int | None) -> float:
    """Agreement of a network with the mask of an image.

    The mean probability of the given class, over the pixels that are foreground, in the mask or in the prediction:
    background, which is most of an image and easy, would hide a missing object.

    Args:
        probabilities: (N, K) float64 of the N pixels that are annotated.
        label: (N,) int64.
        background: Number of the background class; None where all classes count.
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
