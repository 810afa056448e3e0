"""Samples whose labels are likely wrong: those that networks which never saw them do not believe.

Northcutt, Jiang and Chuang (2021), "Confident Learning", J. Artif. Intell. Res. 70, 1373-1411: probabilities of samples
that were not trained on, best of all folds, are compared with the given labels. Here samples are ranked, by the
probability of the given label (their "self-confidence"), and not cut off. On Fashion-MNIST it found more
wrong labels at the top of this list than of one by the distance to the best other class.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from project.files import atomic_path
from project.results.compare import out_of_sample
from project.results.prediction_pass import Seen, look
from project.results.run_results import RunResults
from project.runs.run_folder import RUNS, Run


@dataclass(frozen=True)
class Suspect:
    """One sample, the least believed first in a list of them.

    Attributes:
        id, group: Of the sample.
        fold: On which it was validated, if any.
        given: The class that it is said to have; of several labels the one that is believed least.
        suggested: The class that the networks see; for a mask, nothing.
        confidence: Probability of the given class, or agreement with the mask; the list is sorted by it.
        rival: Probability of the suggested class.
    """

    id: str
    group: str
    fold: int | None
    given: str
    suggested: str
    confidence: float
    rival: float


def suspects(
    run: Run, split: str = "val", trusted: bool = False, root: Path = RUNS, seen: Seen | None = None
) -> tuple[list[Suspect], int]:
    """All samples that were predicted without having been trained on, the least believed first.

    Where the data is divided into folds, those of all folds that were run with the same settings; probabilities are
    means over runs that differ in their seeds.

    Args:
        run: A run of classification, or of segmentation.
        split: "val", or "test" for the run alone.
        trusted: Let configurations name any code.
        root: Folder of the runs.
        seen: What a pass of the run itself over the split gave, if there was one.

    Returns:
        The samples, and the number of runs that were asked. Nothing for other tasks.
    """
    folds = out_of_sample(run, split, root)
    kind = folds[0][0].identity.task
    if kind not in ("classification", "segmentation"):
        return [], 0
    found = [each for fold in folds for each in (_of_labels(fold) if kind == "classification" else [])]
    if kind == "segmentation":
        found = [each for fold in folds for each in _of_masks(fold, trusted, run, seen)]
    return sorted(found, key=lambda each: each.confidence), sum(map(len, folds))


def _of_labels(runs: list[RunResults]) -> list[Suspect]:
    rows = [each.rows for each in runs]
    names = [name.removeprefix("p/") for name in rows[0] if name.startswith("p/")]
    p = np.mean([[each[f"p/{name}"].numpy() for name in names] for each in rows], axis=0).T  # (N, K)
    every = np.arange(len(p))
    if "label" in rows[0]:
        label = rows[0]["label"].numpy().astype(int)
        others = p.copy()
        others[every, label] = -1
        best = others.argmax(1)
        confidence, rival = p[every, label], others[every, best]
        given, suggested = [names[k] for k in label], [names[k] for k in best]
    else:
        labels = np.stack([rows[0][f"label/{name}"].numpy() for name in names], 1) > 0.5
        each = np.where(labels, p, 1 - p)  # of the decision that was given
        worst = each.argmin(1)
        confidence, rival = each[every, worst], 1 - each[every, worst]
        words = [(names[k], labels[i, k]) for i, k in enumerate(worst)]
        given, suggested = ([name if on == yes else f"not {name}" for name, on in words] for yes in (True, False))
    fold = runs[0].identity.fold
    columns = zip(runs[0].ids, runs[0].groups, given, suggested, confidence, rival, strict=True)
    return [Suspect(i, g, fold, a, b, float(c), float(r)) for i, g, a, b, c, r in columns]


def _of_masks(runs: list[RunResults], trusted: bool, own: Run, seen: Seen | None) -> list[Suspect]:
    looked = [
        (seen if seen and each.run == own else look(each.run, each.split, trusted=trusted)).agreement for each in runs
    ]
    ids, groups, fold = runs[0].ids, runs[0].groups, runs[0].identity.fold
    means = {i: float(np.mean([each[i] for each in looked])) for i in sorted(looked[0])}
    return [Suspect(ids[i], groups[i], fold, "mask", "", value, 1 - value) for i, value in means.items()]


def keep(found: list[Suspect], path: Path) -> None:
    """Write all of them as CSV."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", "id", "group", "fold", "given", "suggested", "confidence", "confidence_suggested"])
        for rank, each in enumerate(found, 1):
            fold = "" if each.fold is None else each.fold
            numbers = [f"{each.confidence:.6g}", f"{each.rival:.6g}"]
            writer.writerow([rank, each.id, each.group, fold, each.given, each.suggested, *numbers])
