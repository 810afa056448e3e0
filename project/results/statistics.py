"""Uncertainty of metrics: bootstrap over samples or groups, variance between seeds, paired tests, Holm correction.

What is drawn is a function of (seed, number of units): the resamples of two runs on one split are the same, so that
their replicates can be subtracted one by one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy import stats
from torch import Tensor

Rows = dict[str, Tensor]
Aggregate = Callable[[Rows], dict[str, float]]

LEVEL = 0.95
MOST_REPLICATES = 2000  # of metrics that are means of a column, which cost next to nothing
FEWEST, AFFORDABLE = 200, 400_000  # of other metrics: so many, and more as long as they take no more rows than that
EXACT = 12  # units up to which all 2^n changes of sign are gone through
FLIPS = 5000  # random ones above that
LEAST = 0.75  # with which equal methods differ in 5 % of simulations, with and without an effect of the seeds
CHUNK = 4_000_000  # numbers that are held at once


def sampling_units(groups: Sequence[str]) -> np.ndarray:
    """What is drawn as one: the samples of a group depend on each other, so that groups are drawn where there are any.

    Args:
        groups: (N,) the group of each sample.

    Returns:
        (N,) int64, number of each sample's unit, from 0, in the order of the samples where each is a group.
    """
    names, units = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    return np.arange(len(units)) if len(names) == len(units) else units


def replicates(
    rows: Rows, units: np.ndarray, aggregate: Aggregate, seed: Sequence[int] = (0,)
) -> dict[str, np.ndarray]:
    """Metrics of bootstrap resamples: units are drawn with replacement, and the metrics computed anew from their rows.

    Ratios of sums, rankings and correlations are therefore those of each resample, not means of anything. Metrics that
    are means of a column have more replicates than the others, of which the first are of the same resamples.

    Args:
        rows: Column -> (N,) float64, NaN where not defined.
        units: (N,) see `units_of`.
        aggregate: Rows -> metrics, without those that are not defined.
        seed: Of the drawing; the same for all runs on one split.

    Returns:
        Metric -> (B,) float64, NaN for resamples in which it is not defined.
    """
    metrics, n_units = aggregate(rows), int(units.max()) + 1
    columns = {name: column for name, value in metrics.items() if (column := per_sample_column(name, value, rows))}
    others = [name for name in metrics if name not in columns]
    sums, counts = ([_by_unit(f(rows[column].numpy()), units) for column in columns.values()] for f in (_zero, _is))
    n_samples, by_unit = len(units), np.argsort(units, kind="stable")
    sizes = np.bincount(units)
    matrix = torch.stack(list(rows.values()))[:, by_unit]
    n_aggregated = max(FEWEST, min(MOST_REPLICATES // 2, 20 * n_units, AFFORDABLE // n_samples)) if others else 0
    means, aggregated = list[np.ndarray](), list[list[float]]()
    for drawn in _draws(n_units, seed):
        if columns:
            with np.errstate(invalid="ignore", divide="ignore"):
                means.append((drawn @ np.stack(sums, 1)) / (drawn @ np.stack(counts, 1)))
        for often in drawn[: max(n_aggregated - len(aggregated), 0)]:
            index = np.repeat(np.arange(n_samples), np.repeat(often, sizes))
            found = aggregate(dict(zip(rows, matrix[:, index].unbind(), strict=True)))
            aggregated.append([found.get(name, np.nan) for name in others])
    result = dict(zip(columns, np.concatenate(means).T, strict=True)) if columns else {}
    return {**result, **(dict(zip(others, np.array(aggregated).T, strict=True)) if others else {})}


def per_sample_column(metric: str, value: float, rows: Rows) -> str | None:
    """The column of which a metric is the mean over the samples for which it is defined; None if there is none."""
    candidates = [metric, *(name for name in rows if name.startswith(f"{metric}/"))]
    for name in [*candidates, "correct"] if metric == "accuracy" else candidates:
        if name in rows and np.isclose(rows[name].nanmean().item(), value, rtol=1e-9, atol=0):
            return name
    return None


def interval(values: np.ndarray, n_units: int) -> tuple[float, float] | None:
    """The 95 % interval of a metric from its replicates: expanded percentiles.

    Percentiles of the bootstrap alone are too narrow for few units, as a normal approximation with the plug-in variance
    would be. Hesterberg (2015), "What Teachers Should Know About the Bootstrap", Am. Stat. 69, 371-386, section 5.3:
    the tails are those of Student's t with n - 1 degrees of freedom, times sqrt(n / (n - 1)).

    Args:
        values: (B,) replicates, NaN where not defined.
        n_units: That were drawn from.

    Returns:
        Lower and upper end; None for a single unit, or if the metric is not defined in most resamples.
    """
    defined = values[np.isfinite(values)]
    if n_units < 2 or 2 * len(defined) < len(values) or not len(defined):
        return None
    tail = stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, n_units - 1) * np.sqrt(n_units / (n_units - 1)))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_p(differences: np.ndarray, n_units: int) -> float | None:
    """Two-sided p of a paired difference from its replicates, the one that belongs to `interval`.

    Args:
        differences: (B,) replicates of the difference, of the same resamples.
        n_units: That were drawn from.
    """
    defined = differences[np.isfinite(differences)]
    if n_units < 2 or 2 * len(defined) < len(differences) or not len(defined):
        return None
    below, above = ((1 + np.count_nonzero(side)) / (1 + len(defined)) for side in (defined <= 0, defined >= 0))
    z = stats.norm.ppf(min(below, above, 0.5))
    return float(2 * stats.t.cdf(z / np.sqrt(n_units / (n_units - 1)), n_units - 1))


@dataclass(frozen=True)
class SeedEffect:
    """How the mean of a metric over trainings varies with their seeds.

    Attributes:
        variance: Of the mean, as the spread of the trainings shows it.
        explained: The part of it that the choice of samples explains, which resamples show already.
        dof: Degrees of freedom: trainings less one, of each fold.
    """

    variance: float
    explained: float
    dof: int


def seed_effect(folds: Sequence[tuple[np.ndarray, np.ndarray]], n_units: int) -> SeedEffect | None:
    """The effect of the seeds on a mean over folds of means over trainings; None if no fold has two trainings.

    Args:
        folds: For each fold the metric of its S trainings (S,), and their replicates (S, B), of the same resamples.
        n_units: That were drawn from.
    """
    between, explained, dof = 0.0, 0.0, 0
    for values, replicates in folds:
        if (n := len(values)) > 1 and n_units > 1:
            between += (n - 1) * float(np.var(values, ddof=1))
            # How differently the trainings move from one resample to the next; the plug-in variance is too small.
            noise = np.var(replicates - values[:, None], axis=0, ddof=1)
            noise = noise[np.isfinite(noise)]
            explained += (n - 1) * (float(noise.mean()) if len(noise) else 0.0) * n_units / (n_units - 1)
            dof += n - 1
    if not dof:
        return None
    weight = sum(1 / len(values) for values, _ in folds) / len(folds) ** 2
    return SeedEffect(weight * between / dof, weight * explained / dof, dof)


def seed_interval(
    value: float, replicates: np.ndarray, n_units: int, effects: Sequence[SeedEffect]
) -> tuple[tuple[float, float], float] | None:
    """The 95 % interval of a mean over trainings, or of a difference of two, and the p that belongs to it.

    Trainings and samples are crossed: the variance is the sum of what the samples and what the seeds add, less what
    both hold (Cameron, Gelbach and Miller (2011), J. Bus. Econ. Stat. 29, 238). The interval is that of Student's t
    with the degrees of freedom of Satterthwaite (1946), Biometrics Bull. 2, 110. As a few trainings say little about
    their own spread, the sum is never less than `LEAST` of what the samples alone give.

    Args:
        value: The mean or difference.
        replicates: (B,) its bootstrap replicates over samples or groups.
        n_units: That were drawn from.
        effects: Of the seeds of one or both.

    Returns:
        Lower and upper end, and two-sided p of no difference; None for a single unit, or if the metric is not defined
        in most resamples.
    """
    defined = replicates[np.isfinite(replicates)]
    if n_units < 2 or 2 * len(defined) < len(replicates) or not len(defined):
        return None
    samples = float(np.var(defined)) * n_units / (n_units - 1)
    total = sum(effect.variance for effect in effects)
    excess = total - sum(effect.explained for effect in effects)
    variance = max(samples + excess, LEAST * samples)
    if variance <= 0:
        return (value, value), float(value == 0)
    uncertainty = samples**2 / (n_units - 1)
    if excess > 0:
        uncertainty += sum(effect.variance**2 / effect.dof for effect in effects)
    dof = variance**2 / uncertainty
    half = float(stats.t.ppf((1 + LEVEL) / 2, dof)) * math.sqrt(variance)
    return (value - half, value + half), float(2 * stats.t.sf(abs(value) / math.sqrt(variance), dof))


def sign_flip_p(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of a sum of paired differences, by exchanging the two models in single units.

    Fisher (1935), "The Design of Experiments", chapter 3. Exact if there are at most 12 units: all exchanges are gone
    through. Otherwise 5000 are drawn, and the observed one is counted among them, so that the test keeps its level:
    Phipson and Smyth (2010), Stat. Appl. Genet. Mol. Biol. 9, 39.

    Args:
        differences: (U,) what each unit adds to the difference.
        seed: Of the drawing.
    """
    n, observed = len(differences), abs(differences.sum())
    limit = observed - 1e-9 * np.abs(differences).sum()  # sums in another order
    if n <= EXACT:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float(np.mean(np.abs(signs @ differences) >= limit))
    rng, reached = np.random.default_rng(seed), 0
    for first, last in _chunks(FLIPS, n):
        signs = 1 - 2 * rng.integers(2, size=(last - first, n), dtype=np.int8)
        reached += int(np.count_nonzero(np.abs(signs @ differences) >= limit))
    return (1 + reached) / (1 + FLIPS)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p of several tests, so that the chance of any false one is kept: Holm (1979), Scand. J. Stat. 6, 65."""
    found, largest = [0.0] * len(p), 0.0
    for rank, place in enumerate(np.argsort(p, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        found[place] = largest
    return found


def _draws(n_units: int, seed: Sequence[int]) -> Iterator[np.ndarray]:
    """How often each unit is drawn in each resample, (b, n_units) int64, in parts."""
    rng = np.random.default_rng(list(seed))
    for first, last in _chunks(MOST_REPLICATES, n_units):
        yield rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=last - first)


def _chunks(n: int, width: int) -> Iterator[tuple[int, int]]:
    ends = [*range(0, n, max(1, CHUNK // width)), n]
    return pairwise(ends)


def _zero(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values, nan=0.0)


def _is(values: np.ndarray) -> np.ndarray:
    return (~np.isnan(values)).astype(float)


def _by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    return np.bincount(units, weights=values)
