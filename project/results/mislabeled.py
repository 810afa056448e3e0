"""Samples that are likely mislabeled: networks that were not trained on them do not believe their labels.

Northcutt, Jiang and Chuang (2021), "Confident Learning", J. Artif. Intell. Res. 70, 1373-1411: probabilities of samples
that were not trained on, best of all folds, are compared with the given labels. Here samples are ranked by the
probability of the given label (their "self-confidence"), without a threshold. On Fashion-MNIST this ranking had more
wrong labels at its top than one by the distance to the best other class.
"""

from dataclasses import dataclass

import numpy as np

from project.results.compare import out_of_sample
from project.results.prediction_pass import PredictionPass, run_prediction_pass
from project.results.run_results import RunResults
from project.runs.run_folder import Run


@dataclass(frozen=True)
class Suspect:
    """A sample that may be mislabeled."""

    id: str
    group: str
    fold: int | None  # in which it was validated, if any
    given: str  # its class; of several labels the least believed one; "mask" for a mask
    suggested: str  # the class that the networks see; empty for a mask
    confidence: float  # probability of the given class, or agreement with the mask
    confidence_suggested: float  # probability of the suggested class


def find_suspects(
    run: Run, split: str = "val", trusted: bool = False, own_pass: PredictionPass | None = None
) -> tuple[list[Suspect], int]:
    """All samples that were predicted without having been trained on, the least believed first.

    Where the data is divided into folds, those of all folds that were run with the same settings; probabilities are
    means over runs that differ in their seeds.

    Returns the samples, and the number of runs that predicted them; nothing for tasks without labels and masks. The
    test split is of the run alone. `own_pass` is a pass of the run itself over the split, if there was one.
    """
    folds = out_of_sample(run, split)
    suspects = []
    for runs in folds:
        if any(name.startswith("p/") for name in runs[0].rows):
            suspects += _by_label(runs)
        elif own_pass is None or own_pass.task.target_kind == "mask":
            passes = [
                own_pass if own_pass and other.run == run else run_prediction_pass(other.run, other.split, (), trusted)
                for other in runs
            ]
            first = runs[0]
            for i in passes[0].agreement:
                value = float(np.mean([one_pass.agreement[i] for one_pass in passes]))
                place = first.ids[i], first.groups[i], first.identity.fold
                suspects.append(Suspect(*place, "mask", "", value, 1 - value))
    return sorted(suspects, key=lambda suspect: suspect.confidence), sum(map(len, folds)) if suspects else 0


def _by_label(runs: list[RunResults]) -> list[Suspect]:
    first, every = runs[0], np.arange(len(runs[0].ids))
    names = [name.removeprefix("p/") for name in first.rows if name.startswith("p/")]
    p = np.mean([[run.rows[f"p/{name}"].numpy() for name in names] for run in runs], axis=0).T  # (N, K)
    if "label" in first.rows:
        label = first.rows["label"].numpy().astype(int)
        others = p.copy()
        others[every, label] = -1
        best = others.argmax(1)
        confidence, rival = p[every, label], others[every, best]
        given, suggested = [names[k] for k in label], [names[k] for k in best]
    else:
        labels = np.stack([first.rows[f"label/{name}"].numpy() for name in names], 1) > 0.5
        decisions = np.where(labels, p, 1 - p)  # probability of each given decision
        worst = decisions.argmin(1)
        confidence, rival = decisions[every, worst], 1 - decisions[every, worst]
        pairs = [(names[k], f"not {names[k]}")[:: 1 if labels[i, k] else -1] for i, k in enumerate(worst)]
        given, suggested = map(list, zip(*pairs, strict=True))
    columns = zip(first.ids, first.groups, given, suggested, confidence.tolist(), rival.tolist(), strict=True)
    return [Suspect(id_, group, first.identity.fold, *values) for id_, group, *values in columns]
