"""Conformal prediction: the level of split conformal prediction, weights of groups, and coverage of simulated data."""

import numpy as np
import pytest

from project.metrics.conformal import COVERAGE, Calibration, Errors, calibrate, class_errors, coverage_columns


def of_numbers(absolute):
    return Errors(np.zeros((len(absolute), 1, 1)), np.asarray(absolute, float)[:, None, None])


def simulated_images(n, rng, group_spread=0.0):
    """Errors in proportion to the predicted value, of 400 pixels each; images differ by a factor."""
    predicted = rng.exponential(100, (n, 400, 1))
    factor = np.exp(group_spread * rng.standard_normal((n, 1, 1)))
    return Errors(predicted, np.abs(rng.standard_normal(predicted.shape)) * (1 + 0.2 * predicted) * factor)


def names(n):
    return [str(i) for i in range(n)]


@pytest.mark.parametrize("n", [9, 19, 50, 97, 1000])
def test_single_errors_give_the_quantile_of_split_conformal_prediction(n):
    """Angelopoulos and Bates (2023), section 1: the error of rank ceil((n + 1) * 0.9)."""
    absolute = np.random.default_rng(n).random(n)
    calibration, _ = calibrate(of_numbers(absolute), names(n))
    rank = int(np.ceil(COVERAGE * (n + 1) - 1e-9))
    assert calibration.half_widths == [[np.sort(absolute)[rank - 1]]]


def test_pixels_are_covered_at_every_brightness_of_new_images():
    rng = np.random.default_rng(1)
    calibration, _ = calibrate(simulated_images(30, rng), names(30))
    new = simulated_images(300, rng)
    covered = new.absolute <= calibration.half_width(new.predicted.T).T
    for low, high in ((0, 20), (20, 100), (100, 300), (300, np.inf)):
        part = covered[(new.predicted >= low) & (new.predicted < high)]
        assert part.mean() == pytest.approx(COVERAGE, abs=0.04)  # with one width for all: 1.0 to 0.55


def test_each_group_counts_once_however_many_images_it_has():
    rng = np.random.default_rng(2)
    errors, groups = simulated_images(6, rng, 0.5), ["a", "a", "b", "c", "d", "e"]
    repeated = [0, 1, 2, 3, 4, *[5] * 20]
    more = Errors(errors.predicted[repeated], errors.absolute[repeated])
    one, other = (calibrate(errors, groups)[0], calibrate(more, [groups[i] for i in repeated])[0])
    np.testing.assert_allclose(one.half_widths, other.half_widths)
    assert one.n_groups == other.n_groups == 5


def test_groups_that_differ_raise_the_level_until_those_left_out_are_covered():
    rng, covered, plain = np.random.default_rng(3), [], []
    for _ in range(40):
        errors = simulated_images(4, rng, 0.8)
        calibration, left_out = calibrate(errors, names(4))
        new = simulated_images(50, rng, 0.8)
        covered.append((new.absolute <= calibration.half_width(new.predicted.T).T).mean())
        assert (coverage_columns(errors, left_out)["interval_coverage"].mean() >= COVERAGE) or calibration.level == 1
        plain.append(calibration.level)
    assert np.mean(covered) == pytest.approx(COVERAGE, abs=0.03)  # 0.86 with the level 0.9
    assert np.mean(plain) > 0.92


def test_the_interval_of_an_image_that_is_left_out_does_not_depend_on_it():
    absolute = np.random.default_rng(4).random(15)
    _, left_out = calibrate(of_numbers(absolute), names(15))
    absolute[3] = 100
    _, changed = calibrate(of_numbers(absolute), names(15))
    assert changed[3] == left_out[3]
    assert (np.delete(changed, 3) >= np.delete(left_out, 3)).all()


def test_sets_have_the_likeliest_class_and_all_others_above_the_limit():
    rng = np.random.default_rng(5)
    logits = 1.5 * rng.standard_normal((4000, 5))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.array([rng.choice(5, p=row) for row in p])
    errors = class_errors(p)
    of_truth = np.take_along_axis(errors, truth[:, None], 1)[:, None]
    split = Errors(np.zeros((500, 1, 1)), of_truth[:500], classes=errors[:500])
    calibration, left_out = calibrate(split, names(500))
    sets = calibration.contains(p[500:])
    assert sets[np.arange(3500), truth[500:]].mean() == pytest.approx(COVERAGE, abs=0.03)
    size = calibration.contains(p[:500]).sum(1).mean()
    assert coverage_columns(split, left_out)["set_size"].mean() == pytest.approx(size, rel=0.02)
    limit = 1 - calibration.half_widths[0][0]
    np.testing.assert_array_equal(sets, (p[500:] >= limit) | (p[500:] == p[500:].max(1, keepdims=True)))


def test_a_set_is_never_empty():
    calibration = Calibration(n_images=99, n_groups=99, level=0.91, values=[[0.0]], half_widths=[[0.0]])
    assert calibration.contains(np.array([0.3, 0.5, 0.2])).tolist() == [False, True, False]


def test_parts_have_intervals_of_their_own_units():
    rng = np.random.default_rng(6)
    absolute = rng.random((40, 1, 2)) * [1, 1000]
    calibration, left_out = calibrate(Errors(np.zeros((40, 1, 2)), absolute, ("/cells", "/dose")), names(40))
    low, high = calibration.interval(np.array([10.0, 5000.0]))
    assert 1.6 < high[0] - low[0] < 2.1
    assert 1600 < high[1] - low[1] < 2100
    columns = coverage_columns(Errors(np.zeros((40, 1, 2)), absolute, ("/cells", "/dose")), left_out)
    assert list(columns) == ["interval_coverage", "interval_width/cells", "interval_width/dose"]


@pytest.mark.parametrize("half_widths", [[], [[1.0]], [[1.0, float("nan")]], [[1.0, "wide"]]])
def test_a_damaged_calibration_is_refused(half_widths):
    with pytest.raises((ValueError, TypeError)):
        Calibration(n_images=3, n_groups=3, level=0.9, values=[[0.0, 1.0]], half_widths=half_widths)


def test_a_constant_prediction_and_a_single_group_have_a_calibration():
    calibration, left_out = calibrate(Errors(np.ones((2, 50, 1)), np.full((2, 50, 1), 3.0)), ["a", "a"])
    assert calibration.half_widths == [[3.0]]
    assert left_out is None
