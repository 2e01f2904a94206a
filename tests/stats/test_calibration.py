import json
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from hyperiqa.base.errors import UserError
from hyperiqa.stats import metrics
from hyperiqa.stats.calibration import FEW, FEWEST, MOST_RESIDUALS, Calibration


def simulated(count, seed, low=0.0, high=100.0):
    """Scores and MOS of a known law: the MOS is normal about a cubic, wider at high scores."""
    random = np.random.default_rng(seed)
    scores = random.uniform(low, high, count)
    return scores, mean_of(scores) + sigma_of(scores) * random.normal(size=count)


def mean_of(scores):
    return 50 + 40 * np.tanh((np.asarray(scores) - 50) / 40)


def sigma_of(scores):
    return 3 + np.asarray(scores) / 10


@pytest.fixture(scope="module")
def large():
    return Calibration.of(*simulated(3000, 1))


@pytest.mark.parametrize("count, divisions", [(60, 20), (300, 10)])
def test_intervals_hold_as_many_mos_as_they_say(count, divisions):
    inside = {0.7: [], 0.9: []}
    for seed in range(divisions):
        calibration = Calibration.of(*simulated(count, seed))
        scores, opinions = simulated(200, 1000 + seed)
        for level, shares in inside.items():
            ends = np.array([calibration.interval(score, level) for score in scores])
            shares.append((ends[:, 0] <= opinions) & (opinions <= ends[:, 1]))
    for level, shares in inside.items():
        assert np.mean(shares) == pytest.approx(level, abs=0.025)
    # In each third of the scores, too, although the errors are thrice as large in the highest.
    scores = np.concatenate([simulated(200, 1000 + seed)[0] for seed in range(divisions)])
    thirds = (scores * 3 // 100).astype(int)
    for third in range(3):
        assert np.mean(np.ravel(inside[0.9])[thirds == third]) == pytest.approx(0.9, abs=0.04)


def test_ends_are_those_of_a_plain_slow_version():
    scores, opinions = simulated(83, 4)
    contents = np.arange(83) // 3
    calibration = Calibration.of(scores, opinions, contents)
    order = np.random.default_rng(0).permutation(28)
    parts = {content: place % 10 for content, place in enumerate(order)}
    residuals = []
    for score, opinion, content in zip(scores, opinions, contents, strict=True):
        others = np.array([parts[other] != parts[content] for other in contents])
        curve, spread = slow_fit(scores[others], opinions[others], score)
        residuals.append((opinion - curve) / spread)
    residuals.sort()
    assert calibration.residuals == pytest.approx(residuals, rel=1e-4, abs=1e-6)

    score = calibration.quantiles[40]
    curve, spread = slow_fit(scores, opinions, score)
    # At level 0.8, the 76th of 83 from either side: the first rank of at least 0.9 * 84.
    low, high = curve + spread * residuals[-76], curve + spread * residuals[75]
    assert calibration.interval(score, 0.8) == pytest.approx((low, high), rel=1e-4)


def slow_fit(scores, opinions, score):
    score = min(max(score, scores.min()), scores.max())
    parameters = metrics.fit_logistic(scores, opinions)
    sizes = np.abs(opinions - metrics.logistic(parameters, scores))
    spread = np.polyval(np.polyfit(scores, sizes, 2), score)
    return metrics.logistic(parameters, score), max(spread, 0.3 * sizes.mean())


def test_percentiles_are_within_one_of_a_plain_count():
    random = np.random.default_rng(2)
    for scores in (
        random.normal(size=50),
        random.gamma(1, size=400),
        # A third of the scores is equal.
        np.maximum(random.normal(size=600), -0.43),
    ):
        calibration = Calibration.of(scores, random.normal(size=len(scores)))
        for score in [*scores, *random.normal(size=50), -99.0, 99.0]:
            count = np.mean(scores < score) + np.mean(scores == score) / 2
            assert calibration.percentile(score) == pytest.approx(100 * count, abs=1)


def test_probabilities_are_those_of_the_law(large):
    random = np.random.default_rng(3)
    for first, second in random.uniform(2, 98, (60, 2)):
        gap = mean_of(first) - mean_of(second)
        expected = stats.norm.cdf(gap / np.hypot(sigma_of(first), sigma_of(second)))
        assert large.better(first, second) == pytest.approx(expected, abs=0.04)
        assert large.better(second, first) == pytest.approx(1 - large.better(first, second))
        expected = stats.norm.sf(50, mean_of(first), sigma_of(first))
        assert large.above(first, 50) == pytest.approx(expected, abs=0.04)


def test_probability_of_a_pair_counts_all_pairs_of_residuals():
    calibration = Calibration.of(*simulated(60, 5))
    (curve, other), (spread, other_spread) = (
        np.interp([40, 55], calibration.quantiles, values)
        for values in (calibration.curve, calibration.spread)
    )
    count = sum(
        (curve + spread * residual > other + other_spread * other_residual)
        + 0.5 * (curve + spread * residual == other + other_spread * other_residual)
        for residual in calibration.residuals
        for other_residual in calibration.residuals
    )
    assert calibration.better(40, 55) == pytest.approx((count / 60 + 0.5) / 61)
    assert calibration.better(40, 40) == pytest.approx(0.5)


def test_nothing_is_certain(large):
    assert 0 < large.better(0, 100) < 0.01
    assert 0.99 < large.above(99, -1000) < 1
    assert 0 < large.above(99, 1000) < 0.01


def test_interval_and_probability_agree(large):
    for score in (20, 50, 70):
        low, high = large.interval(score, 0.8)
        assert large.above(score, low) == pytest.approx(0.9, abs=0.003)
        assert large.above(score, high) == pytest.approx(0.1, abs=0.003)


def test_intervals_end_where_the_opinions_end(large):
    low, high = large.interval(99.9, 0.99)
    assert high == large.opinions[1]
    assert large.opinions[0] < low < high


def test_scores_beyond_the_images_are_not_covered(large):
    assert large.covers(50)
    assert large.covers(large.quantiles[0])
    for score in (-1, 101, math.nan):
        assert not large.covers(score)
    # Nothing is extrapolated.
    assert large.interval(1e6) == large.interval(large.quantiles[-1])


def test_plain_values_hold_everything(large):
    plain = json.loads(json.dumps(large.plain()))
    assert Calibration.from_plain({**plain, "which": "test images"}) == large
    assert large.images == 3000
    assert len(large.residuals) == MOST_RESIDUALS
    assert len(json.dumps(plain)) < 20_000
    # No clock, no random state, and not the order of the images.
    scores, opinions = simulated(200, 6)
    contents = [f"scene {i // 4}" for i in range(200)]
    calibration = Calibration.of(scores, opinions, contents)
    assert Calibration.of(scores, opinions, contents) == calibration
    turned = Calibration.of(scores[::-1], opinions[::-1], contents[::-1])
    assert turned.residuals == pytest.approx(calibration.residuals, rel=1e-3, abs=1e-4)


def test_images_of_a_content_are_on_one_side_of_a_division():
    # The MOS is a matter of the scene alone, and every scene has a score of its own: a map that is
    # fitted to a scene's other images knows its MOS.
    random = np.random.default_rng(7)
    scores = np.repeat(random.permutation(6), 50) + 0.01 * random.normal(size=300)
    opinions = np.where(scores > 4.5, 100, 0) + random.normal(size=300)
    contents = np.repeat(np.arange(6), 50)
    known = Calibration.of(scores, opinions).residuals
    honest = Calibration.of(scores, opinions, contents).residuals
    assert (np.abs(known) > 20).sum() == 0
    assert (np.abs(honest) > 20).sum() == 50


@pytest.mark.parametrize("factor", [0.1, -2.0])
@pytest.mark.parametrize("with_opinions", [True, False])
def test_rescaled_scores_mean_the_same(factor, with_opinions):
    scores, opinions = simulated(120, 8)
    calibration = Calibration.of(scores, opinions)
    moved = calibration.rescaled(factor, 5, with_opinions)
    other_opinions = factor * opinions + 5 if with_opinions else opinions
    again = Calibration.of(factor * scores + 5, other_opinions)
    falls = factor < 0
    for score in (10, 44, 81):
        moved_score = factor * score + 5
        assert moved.interval(moved_score) == pytest.approx(again.interval(moved_score), rel=1e-3)
        expected = calibration.percentile(score)
        assert moved.percentile(moved_score) == pytest.approx(100 - expected if falls else expected)
        expected = calibration.better(score, 50)
        reverses = falls and with_opinions
        probability = moved.better(moved_score, factor * 50 + 5)
        assert probability == pytest.approx(1 - expected if reverses else expected)


def test_scores_that_fall_with_the_mos_are_read_the_other_way():
    scores, opinions = simulated(400, 9)
    calibration = Calibration.of(scores, 100 - opinions)
    assert calibration.better(20, 80) > 0.95
    assert np.mean(calibration.interval(20)) > np.mean(calibration.interval(80)) + 40
    assert calibration.percentile(20) == pytest.approx(20, abs=5)


@pytest.mark.parametrize("kind", ["five levels", "two scores", "one outlier", "noise", "perfect"])
def test_unusual_relations_give_intervals_that_hold(kind):
    random = np.random.default_rng(10)
    scores, opinions = simulated(500, 10)
    if kind == "five levels":
        opinions = np.round(opinions / 25)
    elif kind == "two scores":
        scores = np.where(opinions > 50, 1.0, 0.0)
    elif kind == "one outlier":
        # Without its content, all MOS are equal, and there is nothing to fit.
        opinions = np.where(np.arange(500) == 7, 1.0, 0.0)
    elif kind == "noise":
        opinions = random.normal(size=500)
    else:
        opinions = 2 * scores
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibration = Calibration.of(scores, opinions)
        ends = np.array([calibration.interval(score, 0.9) for score in scores])
        probability = calibration.better(scores[0], scores[1])
    low, high = ends.T
    # Of a perfect relation, the ends are rounded.
    held = (low - 1e-3 <= opinions) & (opinions <= high + 1e-3)
    assert np.mean(held) >= 0.88
    assert np.isfinite(ends).all()
    assert 0 < probability < 1


def test_images_that_cannot_be_calibrated_are_refused_in_a_line():
    scores, opinions = simulated(100, 11)
    few = FEWEST - 1
    for arguments, words in (
        ((scores[:few], opinions[:few]), f"at least {FEWEST} images of several contents, found"),
        (([], []), "found 0 images"),
        ((scores, opinions, ["scene"] * 100), "found 100 images of 1"),
        ((np.ones(100), opinions), "scores that differ .* found scores from 1 to 1"),
        ((scores, np.ones(100)), "opinions that differ, .* opinions from 1 to 1"),
        ((np.append(scores[1:], np.nan), opinions), "found scores from nan to nan"),
    ):
        with pytest.raises(UserError, match=words):
            Calibration.of(*arguments)


def test_levels_that_the_number_of_images_cannot_give_are_refused():
    calibration = Calibration.of(*simulated(59, 12))
    assert calibration.interval(50, 58 / 60)[1] > calibration.interval(50, 0.9)[1]
    for level in (0.97, 1, 0, -1, math.nan):
        with pytest.raises(UserError, match=f"59 images .* up to 0.966, found {level:g}"):
            calibration.interval(50, level)


def test_calibrations_of_few_images_say_so():
    assert "rough" in Calibration.of(*simulated(FEW - 1, 13)).caution
    assert Calibration.of(*simulated(FEW, 13)).caution == ""
