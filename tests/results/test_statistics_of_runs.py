"""Intervals cover what they should, resamples are the same for all runs, and tests agree with SciPy."""

import numpy as np
import pytest
import torch
from scipy import stats

from project.results.statistics import (
    bootstrap_p,
    holm,
    interval,
    per_sample_column,
    permutation_p,
    replicates,
    sampling_units,
    seed_effect,
    seed_interval,
)


def table(**columns):
    return {name: torch.tensor(np.asarray(column), dtype=torch.float64) for name, column in columns.items()}


def mean_and_ratio(rows):
    found = {"score": rows["score"].nanmean().item(), "ratio": (rows["part"].sum() / rows["whole"].sum()).item()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    whole = rng.integers(1, 100, 30)
    score = np.where(np.arange(30) == 4, np.nan, rng.normal(size=30))
    return table(score=score, part=rng.random(30) * whole, whole=whole)


def test_groups_are_the_units_where_there_are_any():
    assert sampling_units(["c", "b", "a"]).tolist() == [0, 1, 2]
    assert sampling_units(["a", "a", "a"]).tolist() == [0, 0, 0]  # nothing can be said of other groups
    assert sampling_units(["b", "a", "b"]).tolist() == [1, 0, 1]


def test_ratios_of_sums_are_computed_in_each_resample(rows):
    found = replicates(rows, np.arange(30), mean_and_ratio)
    assert len(found["score"]) == 2000
    n = len(found["ratio"])
    rng = np.random.default_rng([0])
    drawn = rng.multinomial(30, np.full(30, 1 / 30), size=2000)
    part, whole, score = (rows[name].numpy() for name in ("part", "whole", "score"))
    assert found["ratio"] == pytest.approx((drawn @ part / (drawn @ whole))[:n], rel=1e-12)
    defined = ~np.isnan(score)
    assert found["score"] == pytest.approx(drawn[:, defined] @ score[defined] / drawn[:, defined].sum(1), rel=1e-12)
    # Not what the means of the images' own ratios would give.
    assert abs(found["ratio"].mean() - (part / whole).mean()) > 1e-3


def test_groups_are_resampled_whole(rows):
    groups = np.repeat([0, 1, 2], 10)
    found = replicates(rows, groups, mean_and_ratio)
    part, whole = (rows[name].numpy().reshape(3, 10).sum(1) for name in ("part", "whole"))
    counts = [(a, b, 3 - a - b) for a in range(4) for b in range(4 - a)]
    possible = [np.dot(c, part) / np.dot(c, whole) for c in counts]
    assert np.abs(found["ratio"][:, None] - possible).min(1).max() < 1e-12
    alone = replicates(rows, np.arange(30), mean_and_ratio)
    assert len(np.unique(found["score"].round(9))) <= 10 < len(np.unique(alone["score"].round(9)))


def test_two_runs_are_resampled_alike(rows):
    better = {**rows, "score": rows["score"] + 0.25}
    seed = [7]
    one, other = (replicates(each, np.arange(30), mean_and_ratio, seed)["score"] for each in (rows, better))
    assert other - one == pytest.approx(np.full(2000, 0.25), abs=1e-12)
    assert not np.allclose(one, replicates(rows, np.arange(30), mean_and_ratio, [8])["score"])


def test_a_metric_that_is_undefined_in_some_resamples():
    rows = table(score=[1.0, *[np.nan] * 5], part=[0] * 6, whole=[0] * 6)
    found = replicates(rows, np.arange(6), mean_and_ratio)
    assert np.isnan(found["score"]).mean() == pytest.approx((5 / 6) ** 6, abs=0.05)
    assert "ratio" not in found
    assert interval(np.array([1.0, np.nan, np.nan]), 6) is None
    assert interval(np.array([1.0, 2.0]), 1) is None


def test_columns_are_recognized_by_their_mean():
    rows = table(dice=[0.1, 0.3], correct=[1, 0], loss=[1, 2])
    rows["iou/cell"] = torch.tensor([0.5, float("nan")], dtype=torch.float64)
    assert per_sample_column("dice", 0.2, rows) == "dice"
    assert per_sample_column("dice", 0.25, rows) is None  # pooled, say
    assert per_sample_column("iou", 0.5, rows) == "iou/cell"
    assert per_sample_column("accuracy", 0.5, rows) == "correct"
    assert per_sample_column("f1", 0.5, rows) is None


def test_intervals_of_few_samples_cover_the_truth():
    rng, covered = np.random.default_rng(3), []
    for _ in range(300):
        values = rng.normal(size=8)
        resampled = replicates(table(score=values), np.arange(8), lambda r: {"score": r["score"].mean().item()})
        ends = interval(resampled["score"], 8), np.quantile(resampled["score"], [0.025, 0.975])
        covered.append([low <= 0 <= high for low, high in ends])
    expanded, plain = np.mean(covered, axis=0)
    assert expanded == pytest.approx(0.95, abs=0.025)
    assert plain < 0.92  # which is why they are expanded


def equal_methods(rng, n_simulations, between, shared=0.0, n_seeds=3, n_images=45, noise=0.05):
    """Scores (n, 2 methods, seeds, images) that differ by chance: of images, of seeds, and of single predictions."""
    image = rng.normal(0.7, 0.1, (n_simulations, 1, 1, n_images))
    seeds = rng.normal(0, between, (n_simulations, 2, n_seeds, 1))
    of_method = rng.normal(0, shared, (n_simulations, 2, 1, n_images)) if shared else 0.0
    return image + seeds + of_method + rng.normal(0, noise, (n_simulations, 2, n_seeds, n_images))


def p_over_seeds(scores, resamples):
    """p of the difference of two methods from their scores (2, seeds, images)."""
    n_images = scores.shape[-1]
    means, replicates = scores.mean(-1), scores @ resamples.T
    effects = [seed_effect(means[m], replicates[m], n_images) for m in (0, 1)]
    difference = replicates.mean(1)
    found = seed_interval(np.subtract(*means.mean(-1)), difference[0] - difference[1], n_images, effects)
    (low, high), p = found
    assert (p < 0.05) == (not low <= 0 <= high)
    return p


@pytest.mark.parametrize("between", [0.0, 0.02])
def test_equal_methods_differ_in_five_per_cent_whatever_their_seeds_do(between):
    rng = np.random.default_rng(2)
    resamples = rng.multinomial(45, np.full(45, 1 / 45), size=400) / 45
    p = [p_over_seeds(scores, resamples) for scores in equal_methods(rng, 1500, between)]
    assert 0.03 <= np.mean(np.array(p) < 0.05) <= 0.07
    images_alone = [stats.ttest_1samp(np.subtract(*s.mean(1)), 0).pvalue for s in equal_methods(rng, 500, between)]
    assert (np.mean(np.array(images_alone) < 0.05) > 0.15) == (between > 0)  # which is why seeds must count


def test_a_method_that_is_better_on_these_images_only_is_not_significant():
    """All seeds agree, as both methods have their own favourite images: the images are what is uncertain."""
    rng = np.random.default_rng(3)
    resamples = rng.multinomial(45, np.full(45, 1 / 45), size=400) / 45
    p = [p_over_seeds(s, resamples) for s in equal_methods(rng, 1000, 0, shared=0.05, noise=0.001)]
    assert 0.03 <= np.mean(np.array(p) < 0.05) <= 0.07
    better = equal_methods(rng, 100, 0.01) + np.array([0.05, 0])[:, None, None]
    assert np.mean([p_over_seeds(s, resamples) < 0.05 for s in better]) > 0.8


def test_the_effect_of_seeds():
    rng = np.random.default_rng(0)
    values, replicates = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0])[:, None] + rng.normal(0, 0.1, 5000)
    effect = seed_effect(values, replicates, 30)
    assert effect.variance == pytest.approx(np.var(values, ddof=1) / 3)
    assert effect.explained == pytest.approx(0, abs=1e-12)  # all trainings move alike from resample to resample
    assert effect.dof == 2
    apart = seed_effect(values, values[:, None] + rng.normal(0, 0.1, (3, 5000)), 30)
    assert apart.explained == pytest.approx(0.1**2 / 3 * 30 / 29, rel=0.05)
    assert seed_effect(values[:1], replicates[:1], 30) is None
    assert seed_interval(3.0, replicates[0], 1, [effect]) is None
    assert seed_interval(0.0, np.zeros(10), 5, [seed_effect(np.ones(2), np.ones((2, 10)), 5)]) == ((0.0, 0.0), 1.0)


def test_p_of_the_bootstrap_belongs_to_the_interval():
    rng = np.random.default_rng(0)
    for shift in np.linspace(0, 3.5, 15):
        values = rng.normal(shift, 1, 2000)
        low, high = interval(values, 12)
        p = bootstrap_p(values, 12)
        if abs(p - 0.05) > 0.005:
            assert (p < 0.05) == (not low <= 0 <= high)
    assert bootstrap_p(np.zeros(100), 12) == pytest.approx(1)
    assert bootstrap_p(np.zeros(100), 1) is None


@pytest.mark.parametrize("n", [3, 12])
def test_few_units_are_exchanged_in_all_ways(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    expected = stats.permutation_test(
        (a + 0.4, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", n_resamples=np.inf
    )
    assert permutation_p(a + 0.4 - b) == pytest.approx(expected.pvalue, abs=1e-9)
    assert permutation_p(np.full(n, 0.3)) == pytest.approx(2 ** (1 - n))


def test_random_exchanges_agree_with_the_t_test():
    differences = np.random.default_rng(1).normal(0.15, 1, 200)
    assert permutation_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert permutation_p(differences + 1) == pytest.approx(1 / 5001)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
