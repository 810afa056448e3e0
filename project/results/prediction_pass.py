"""One pass over a split with the best checkpoint of a run, and what is kept of it for a report."""

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
from project.tasks.base import Task
from project.training.evaluate import RecordTestEvaluation, check_data, load_weights, read_checkpoint

BINS = 80  # of the values of a target, from its smallest in training to its largest
CHANNELS = 4  # whose residuals are drawn


@dataclass
class Seen:
    """What a pass gave.

    Attributes:
        task: With the weights.
        reader: The split.
        whole: All folds; the split itself where there are none.
        results: Scores of the pass.
        samples: Position in the split -> arrays, as for `Task.draw`.
        joint: (C', BINS, BINS) numbers of pixels by true and predicted value, of translation.
        confidence: Sums of confidence, right decisions and numbers of pixels by confidence, (3, bins), of segmentation.
        confusion: (K, K) numbers of pixels, rows are the truth, of segmentation.
        agreement: Position in the split -> how far the network agrees with the mask, from 0 to 1.
    """

    task: Task
    reader: SplitReader
    whole: SplitReader
    results: EvaluationResult | None = None
    samples: dict[int, dict[str, Any]] = field(default_factory=dict)
    joint: np.ndarray | None = None
    confidence: np.ndarray | None = None
    confusion: np.ndarray | None = None
    agreement: dict[int, float] = field(default_factory=dict)


class _Look(Callback):
    """Keeps the wanted samples, and counts pixels."""

    def __init__(self, wanted: Collection[int]) -> None:
        self.wanted = set(wanted)
        self.seen: Seen | None = None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Take what is needed of a batch."""
        assert self.seen is not None
        seen, prediction = self.seen, outputs.float()
        for position, index in enumerate(batch["index"].tolist()):
            if index in self.wanted:
                arrays = {role: batch[role][position].cpu().numpy() for role in batch if role != "index"}
                sample = {"id": seen.reader.ids[index], "index": index}
                seen.samples[index] = {**arrays, **sample, "prediction": prediction[position].cpu().numpy()}
        if seen.task.target_kind == "image":
            joint = _joint(seen.task, prediction, batch["target"].float())
            seen.joint = joint if seen.joint is None else seen.joint + joint
        if seen.task.target_kind == "mask":
            self._count(seen, seen.task, prediction, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """As in validation."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _count(self, seen: Seen, task: Any, prediction: Tensor, batch: Tensors) -> None:
        target = task.make_target(batch)
        background = None if task.background is None else task.names.index(task.background)
        for index, probabilities, classes in zip(batch["index"].tolist(), prediction, target, strict=True):
            annotated = classes >= 0
            p, label = probabilities[:, annotated].T.double().cpu(), classes[annotated].cpu()
            if not len(label):
                continue
            seen.agreement[index] = agreement(p, label, background)
            mean, right, count = (np.nan_to_num(each) for each in reliability(p, label))
            sums = np.stack([mean * count, right * count, count])
            seen.confidence = sums if seen.confidence is None else seen.confidence + sums
            matrix = confusion_matrix(p.argmax(1), label, p.shape[1]).numpy()
            seen.confusion = matrix if seen.confusion is None else seen.confusion + matrix


def look(run: Run, split: str, wanted: Collection[int] = (), trusted: bool = False) -> Seen:
    """Go through a split with the best checkpoint of a run; nothing is written but, for test, the record of it.

    Args:
        run: A run folder.
        split: "val" or "test".
        wanted: Positions in the split of the samples to keep.
        trusted: Let the configuration name any code.

    Raises:
        UserError: As for an evaluation.
    """
    path, facts, watcher = best_checkpoint(run.folder), run.read_provenance(), _Look(wanted)
    typed = ["--trainer.enable_progress_bar=false"]
    with build_from_run(run, typed, trusted, [watcher, RecordTestEvaluation(run)]) as cli:
        checkpoint = read_checkpoint(path)
        check_data(cli, facts, run)
        load_weights(cli, checkpoint, path)
        watcher.seen = Seen(cli.model, cli.datamodule.reader(split), cli.datamodule.whole)
        loop = cli.trainer.validate if split == "val" else cli.trainer.test
        loop(cli.model, datamodule=cli.datamodule, verbose=False)
    watcher.seen.results = cli.model.results
    return watcher.seen


def agreement(probabilities: Tensor, label: Tensor, background: int | None) -> float:
    """How far a network agrees with the classes that an image's pixels are said to have.

    The mean probability of the given class, over the pixels that are foreground, as given or as the network sees it:
    background, which is most of an image and easy, would hide a missing object.

    Args:
        probabilities: (N, K) float64 of the N pixels that are annotated.
        label: (N,) int64.
        background: The class number of the background; None where all classes count.
    """
    given = probabilities.gather(1, label[:, None])[:, 0]
    if background is None:
        return given.mean().item()
    foreground = (label != background) | (probabilities.argmax(1) != background)
    return given[foreground].mean().item() if foreground.any() else 1.0


def calibration(seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Mean confidence, share that is right and number of pixels by confidence; as `reliability`."""
    if seen.confidence is None:
        return None
    confidence, right, count = seen.confidence
    with np.errstate(invalid="ignore"):
        return confidence / count, right / count, count.astype(int)


def _joint(task: Any, prediction: Tensor, target: Tensor) -> np.ndarray:
    """Pixels by true and predicted value, (C, BINS, BINS); what lies outside the range counts in the last bins."""
    low, high = (x[:CHANNELS, None, None].to(target.device) for x in (task.low, task.high))
    scale = torch.where(high > low, BINS / (high - low), torch.zeros_like(low))
    t, p = (((x[:, :CHANNELS] - low) * scale).long().clamp(0, BINS - 1) for x in (target, prediction))
    counts = [
        torch.bincount((t[:, c] * BINS + p[:, c]).flatten(), minlength=BINS**2).view(BINS, BINS)
        for c in range(t.shape[1])
    ]
    return torch.stack(counts).cpu().numpy()
