import warnings

import numpy as np
import pytest
from scipy import optimize, stats

from hyperiqa.stats import metrics


@pytest.fixture
def pair():
    random = np.random.default_rng(5)
    mos = random.uniform(0, 100, 200)
    return mos + 15 * random.normal(size=200), mos


def test_figures_agree_with_scipy_with_and_without_ties(pair):
    for prediction, mos in (pair, np.round(np.array(pair) / 20)):
        assert metrics.srcc(prediction, mos) == pytest.approx(
            stats.spearmanr(prediction, mos).statistic, abs=1e-12
        )
        assert metrics.plcc(prediction, mos) == pytest.approx(
            stats.pearsonr(prediction, mos).statistic, abs=1e-12
        )
        assert metrics.krcc(prediction, mos) == pytest.approx(
            stats.kendalltau(prediction, mos).statistic, abs=1e-12
        )


def test_kendall_and_rmse_by_hand():
    # Pairs (1,2) (1,3) (1,4) (2,3) (2,4) agree, (3,4) doesn't: (5 - 1) / 6.
    assert metrics.krcc([1, 2, 4, 3], [10, 20, 30, 40]) == pytest.approx(4 / 6)
    assert metrics.rmse([1, 2, 3, 8], [1, 2, 3, 4]) == pytest.approx(2.0)


def test_undefined_figures_are_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prediction, mos in (
            ([1.0], [1.0]),
            ([2, 2, 2], [1, 2, 3]),
            ([1, np.nan, 3], [1, 2, 3]),
            ([], []),
        ):
            for figure in (metrics.srcc, metrics.plcc, metrics.krcc):
                assert np.isnan(figure(prediction, mos))
            assert metrics.fit_logistic(prediction, mos) is None
            assert metrics.fitted(prediction, mos) is None
        assert np.isnan(metrics.rmse([1.0], [1.0]))
        assert np.isnan(metrics.rmse([1, np.inf], [1, 2]))
        assert metrics.rmse([2, 2, 2], [1, 2, 3]) == pytest.approx(np.sqrt(2 / 3))


def test_no_curve_is_fitted_to_what_cannot_be_squared():
    x = np.arange(20.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in (1e200, 1e-200, 1e-310):
            assert metrics.fit_logistic(x * scale, x) is None
            assert metrics.fit_logistic(x, x * scale) is None


@pytest.mark.parametrize("reach", [1e-3, 0.1, 5.0])
def test_an_interval_on_its_scale_stays_in_the_figures_range(reach):
    for value in (-0.99, 0.0, 0.3, 0.999):
        low, high = metrics.FISHER.interval(value, reach)
        assert -1 <= low < value < high <= 1
        units = reach / (1 - value**2)
        assert metrics.FISHER.decline(value, units) == max(value - low, high - value)
    # A short one is what it is without a scale.
    assert metrics.FISHER.interval(0.6, 1e-4) == pytest.approx((0.5999, 0.6001), abs=1e-7)
    assert metrics.FISHER.interval(1.0, reach) == (1.0, 1.0)
    low, high = metrics.LOG.interval(7.0, reach)
    assert low * high == pytest.approx(49)


def test_lengths_that_differ_are_refused():
    for figure in (metrics.srcc, metrics.plcc, metrics.krcc, metrics.rmse, metrics.fit_logistic):
        with pytest.raises(ValueError, match="one length"):
            figure([1, 2, 3], [1, 2])


def test_extreme_scores_stay_in_range():
    x = np.array([1.0, 2.0, 3.0, 5.0])
    assert metrics.plcc(x * 1e200, x) == pytest.approx(1.0)
    assert metrics.plcc(x * 1e-200, -x) == pytest.approx(-1.0)


def test_logistic_is_the_literatures_formula():
    x = np.array([-2.0, 0.5, 3.0])
    expected = 10 + (90 - 10) / (1 + np.exp(-(x - 0.5) / 1.5))
    assert metrics.logistic([90, 10, 0.5, -1.5], x) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_fit_finds_a_known_curve(scale):
    x = np.linspace(-4, 5, 120)
    mos = metrics.logistic([92, 7, 0.4, 1.3], x)
    upper, lower, centre, width = metrics.fit_logistic(x * scale, mos)
    assert (upper, lower, centre / scale, width / scale) == pytest.approx(
        (92, 7, 0.4, 1.3), rel=1e-4
    )


def test_fit_is_as_good_as_scipys_curve_fit(pair):
    prediction, mos = pair

    def curve(x, a, b, c, d):
        return b + (a - b) / (1 + np.exp(-(x - c) / abs(d)))

    other, _ = optimize.curve_fit(
        curve, prediction, mos, [mos.max(), mos.min(), prediction.mean(), 20], maxfev=20000
    )
    ours = metrics.rmse(metrics.fitted(prediction, mos), mos)
    assert ours <= metrics.rmse(curve(prediction, *other), mos) + 1e-6


def test_fit_is_never_worse_than_a_straight_line_and_serves_falling_scores(pair):
    prediction, mos = pair
    for sign in (1, -1):
        for power in (1, 3):
            x = sign * np.abs(prediction) ** power
            assert metrics.plcc(metrics.fitted(x, mos), mos) >= abs(metrics.plcc(x, mos)) - 1e-4
