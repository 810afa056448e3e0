"""Uncertainty of metrics: bootstrap over samples or groups, variance between seeds, paired tests, Holm correction.

Resamples are a function of (seed, number of units): those of two runs on one split are the same, so that their
replicates can be subtracted one by one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

Rows = dict[str, Tensor]
Aggregate = Callable[[Rows], dict[str, float]]

LEVEL = 0.95
N_REPLICATES = 2000  # of metrics that are means of a column, which cost next to nothing
MIN_AGGREGATED, MAX_AGGREGATED_ROWS = 200, 400_000  # of other metrics: 200 at least, more while they take few rows
N_EXCHANGES = 5000  # of the paired permutation test; all of them are tried for up to 12 units
MIN_SHARE = 0.75  # of the variance over samples; equal methods then differ in 5 % of simulations, whatever seeds do
CHUNK = 4_000_000  # numbers held at once


def sampling_units(groups: Sequence[str]) -> np.ndarray:
    """Numbers of what is resampled as one: the groups, as samples of a group depend on each other.

    Returns (N,) int64 from 0; the numbers of the samples where each of them is a group.
    """
    names, units = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    return np.arange(len(units)) if len(names) == len(units) else units


def replicates(
    rows: Rows, units: np.ndarray, aggregate: Aggregate, seed: Sequence[int] = (0,)
) -> dict[str, np.ndarray]:
    """Metrics of bootstrap resamples: units are drawn with replacement, and metrics computed from their rows.

    Metrics that are means of a column have more replicates than the others, which are of the first of the same
    resamples. Rows are column -> (N,) float64, NaN where not defined; the result is metric -> (B,) float64.
    """
    metrics, n_units, n_samples = aggregate(rows), int(units.max()) + 1, len(units)
    columns = {name: column for name, value in metrics.items() if (column := per_sample_column(name, value, rows))}
    others = [name for name in metrics if name not in columns]
    n_aggregated = max(min(N_REPLICATES // 2, 20 * n_units, MAX_AGGREGATED_ROWS // n_samples), MIN_AGGREGATED)

    values = np.stack([rows[column].numpy() for column in columns.values()] or [np.empty(n_samples)])
    parts = np.nan_to_num(values), ~np.isnan(values)
    sums, n_defined = (np.stack([np.bincount(units, weights=row) for row in part], 1) for part in parts)
    in_units, sizes = np.argsort(units, kind="stable"), np.bincount(units)
    sorted_rows = torch.stack(list(rows.values()))[:, in_units]
    means, aggregated = list[np.ndarray](), list[list[float]]()
    rng, size = np.random.default_rng(list(seed)), max(1, CHUNK // n_units)
    for start in range(0, N_REPLICATES, size):
        # How often each unit is in each resample, (b, n_units).
        counts = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=min(size, N_REPLICATES - start))
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append((counts @ sums) / (counts @ n_defined))
        for row in counts[: max(n_aggregated - len(aggregated), 0)] if others else ():
            index = np.repeat(np.arange(n_samples), np.repeat(row, sizes))
            of_resample = aggregate(dict(zip(rows, sorted_rows[:, index].unbind(), strict=True)))
            aggregated.append([of_resample.get(name, np.nan) for name in others])
    result = dict(zip(columns, np.concatenate(means).T, strict=False))
    return result | (dict(zip(others, np.array(aggregated).T, strict=True)) if others else {})


def per_sample_column(metric: str, value: float, rows: Rows) -> str | None:
    """The column that a metric is the mean of, over the samples for which it is defined; None if there is none."""
    candidates = [metric, *(name for name in rows if name.startswith(f"{metric}/"))]
    for name in [*candidates, "correct"] if metric == "accuracy" else candidates:
        if name in rows and np.isclose(rows[name].nanmean().item(), value, rtol=1e-9, atol=0):
            return name
    return None


def interval(values: np.ndarray, n_units: int) -> tuple[float, float] | None:
    """The 95 % interval of a metric from its replicates (B,): expanded percentiles.

    Plain percentiles are too narrow for few units. Hesterberg (2015), "What Teachers Should Know About the Bootstrap",
    Am. Stat. 69, 371-386, section 5.3: the tails are those of Student's t with n - 1 degrees of freedom, times
    sqrt(n / (n - 1)). None for a single unit, or if the metric is not defined (NaN) in most resamples.
    """
    if (defined := _mostly_defined(values, n_units)) is None:
        return None
    tail = stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, n_units - 1) * np.sqrt(n_units / (n_units - 1)))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_p(differences: np.ndarray, n_units: int) -> float | None:
    """Two-sided p of a paired difference from its replicates (B,); it belongs to `interval`."""
    if (defined := _mostly_defined(differences, n_units)) is None:
        return None
    below, above = ((1 + np.count_nonzero(side)) / (1 + len(defined)) for side in (defined <= 0, defined >= 0))
    z = stats.norm.ppf(min(below, above, 0.5))
    return float(2 * stats.t.cdf(z / np.sqrt(n_units / (n_units - 1)), n_units - 1))


def _mostly_defined(values: np.ndarray, n_units: int) -> np.ndarray | None:
    defined = values[np.isfinite(values)]
    return defined if n_units > 1 and len(defined) and 2 * len(defined) >= len(values) else None


@dataclass(frozen=True)
class SeedEffect:
    """How the mean of a metric over trainings varies with their seeds."""

    variance: float  # of the mean, estimated from the spread of the trainings
    explained: float  # the part that is due to the choice of samples, which resamples contain already
    dof: int  # trainings less one


def seed_effect(values: np.ndarray, resampled: np.ndarray, n_units: int) -> SeedEffect | None:
    """The effect of the seeds on a mean over trainings, from the metric of each (S,) and its replicates (S, B).

    None for one training or unit.
    """
    if (n := len(values)) < 2 or n_units < 2:
        return None
    # How differently the trainings move from one resample to the next; the plug-in variance is too small.
    noise = np.var(resampled - values[:, None], axis=0, ddof=1)
    noise = noise[np.isfinite(noise)]
    explained = (float(noise.mean()) if len(noise) else 0.0) * n_units / (n_units - 1)
    return SeedEffect(float(np.var(values, ddof=1)) / n, explained / n, n - 1)


def seed_interval(
    value: float, resampled: np.ndarray, n_units: int, effects: Sequence[SeedEffect]
) -> tuple[tuple[float, float], float] | None:
    """The 95 % interval of a mean over trainings, or of a difference of two, and the two-sided p that belongs to it.

    Trainings and samples are crossed: the variance is what the samples and the seeds add, less what both contain
    (Cameron, Gelbach and Miller (2011), J. Bus. Econ. Stat. 29, 238). The interval is Student's t with the degrees of
    freedom of Satterthwaite (1946), Biometrics Bull. 2, 110. A few trainings say little about their own spread, so
    the sum is at least `MIN_SHARE` of what the samples alone give.

    `resampled` are the replicates (B,) of the mean or difference; `effects` are of the seeds of one or both. None where
    `interval` is None.
    """
    if (defined := _mostly_defined(resampled, n_units)) is None:
        return None
    samples = float(np.var(defined)) * n_units / (n_units - 1)
    excess = sum(effect.variance - effect.explained for effect in effects)
    variance = max(samples + excess, MIN_SHARE * samples)
    if variance <= 0:
        return (value, value), float(value == 0)
    uncertainty = samples**2 / (n_units - 1)
    if excess > 0:
        uncertainty += sum(effect.variance**2 / effect.dof for effect in effects)
    dof = variance**2 / uncertainty
    half = float(stats.t.ppf((1 + LEVEL) / 2, dof)) * math.sqrt(variance)
    return (value - half, value + half), float(2 * stats.t.sf(abs(value) / math.sqrt(variance), dof))


def permutation_p(differences: np.ndarray) -> float:
    """Two-sided p of a sum of paired differences (U,): paired permutation test, exchanging two models in single units.

    Exact for up to 12 units; otherwise of 5000 random exchanges, with the observed one counted among them: Phipson and
    Smyth (2010), Stat. Appl. Genet. Mol. Biol. 9, 39.
    """
    result = stats.permutation_test(
        (differences,),
        lambda x, axis: np.abs(x.sum(axis)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=N_EXCHANGES,
        batch=max(1, CHUNK // len(differences)),
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """P of several tests, adjusted for their number: Holm (1979), Scand. J. Stat. 6, 65."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted
