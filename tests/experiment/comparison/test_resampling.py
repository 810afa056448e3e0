"""Intervals cover what they should, resamples are the same for all runs, and tests agree with SciPy."""

import numpy as np
import pytest
import torch
from scipy import stats

from project.experiment.comparison.resampling import (
    bootstrap_p,
    column_of,
    holm,
    interval,
    replicates,
    sign_flip_p,
    units_of,
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


def test_samples_are_drawn_where_groups_say_nothing():
    assert units_of(["a", "b", "c"]).tolist() == [0, 1, 2]
    assert units_of(["a", "a", "a"]).tolist() == [0, 1, 2]
    assert units_of(["b", "a", "b"]).tolist() == [1, 0, 1]


def test_ratios_of_sums_are_computed_anew_in_each_resample(rows):
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


def test_groups_are_drawn_whole(rows):
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
    rows = table(score=[1.0, np.nan, np.nan, np.nan, np.nan, np.nan], part=[0] * 6, whole=[0] * 6)
    found = replicates(rows, np.arange(6), mean_and_ratio)
    share = np.isnan(found["score"]).mean()
    assert share == pytest.approx((5 / 6) ** 6, abs=0.05)
    assert "ratio" not in found
    assert interval(np.array([1.0, np.nan, np.nan]), 6) is None
    assert interval(np.array([1.0, 2.0]), 1) is None


def test_columns_are_recognised_by_their_mean():
    rows = table(dice=[0.1, 0.3], correct=[1, 0], loss=[1, 2])
    rows["iou/cell"] = torch.tensor([0.5, float("nan")], dtype=torch.float64)
    assert column_of("dice", 0.2, rows) == "dice"
    assert column_of("dice", 0.25, rows) is None  # pooled, say
    assert column_of("iou", 0.5, rows) == "iou/cell"
    assert column_of("accuracy", 0.5, rows) == "correct"
    assert column_of("f1", 0.5, rows) is None


def coverage(n, ends):
    rng, hits = np.random.default_rng(3), 0
    for _ in range(300):
        values = rng.normal(size=n)
        low, high = ends(replicates(table(score=values), np.arange(n), lambda r: {"score": r["score"].mean().item()}))
        hits += low <= 0 <= high
    return hits / 300


def test_intervals_of_few_samples_hold_what_they_promise():
    assert coverage(8, lambda found: interval(found["score"], 8)) == pytest.approx(0.95, abs=0.025)
    plain = coverage(8, lambda found: np.quantile(found["score"], [0.025, 0.975]))
    assert plain < 0.92  # which is why they are expanded


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


@pytest.mark.parametrize("n", [3, 7, 12])
def test_exchanges_are_all_gone_through(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    expected = stats.permutation_test(
        (a + 0.4, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(a + 0.4 - b) == pytest.approx(expected.pvalue, abs=1e-9)
    assert sign_flip_p(np.full(n, 0.3)) == pytest.approx(2 ** (1 - n))


def test_random_exchanges_agree_with_the_t_test():
    differences = np.random.default_rng(1).normal(0.15, 1, 200)
    assert sign_flip_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert sign_flip_p(differences + 1) == pytest.approx(1 / 5001)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
