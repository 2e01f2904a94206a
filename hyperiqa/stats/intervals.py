"""How sure a figure is: intervals for one run, for the difference of two, for groups of seeds.

With predictions: the bootstrap over images (Efron & Tibshirani, An Introduction to the Bootstrap,
1993). A resample of N images is held as its counts, how often each image was drawn, so that a
figure of all resamples is a few matrix operations. Duplicated images are ties; every figure treats
them as scipy.stats would. Without predictions: intervals from the number of images alone, for
which the literature's formulas stand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

NAN = float("nan")
LEVEL = 0.95
POWER = 0.80
UPPER_QUANTILE = (1 + LEVEL) / 2
# Standard errors from an estimate to either end of its interval.
INTERVAL_IN_ERRORS = float(stats.norm.ppf(UPPER_QUANTILE))
# Standard errors of a difference that is found, its p below 5 %, 80 times in 100.
DETECTABLE_IN_ERRORS = float(stats.norm.ppf(UPPER_QUANTILE) + stats.norm.ppf(POWER))

Formula = Callable[[float, int], tuple[float, float]]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval (nan where unknown).

    approximate: the interval is not from resampled images. deviation: the standard deviation over
    seeds; nan for a single seed.
    """

    value: float
    low: float = NAN
    high: float = NAN
    approximate: bool = False
    deviation: float = NAN


@dataclass(frozen=True)
class Difference:
    """A − B with its 95 % interval and two-sided p-value.

    approximate: not from resampled images. visible: the smallest difference of such groups that is
    found, its p below 5 %, 80 times in 100.
    """

    value: float
    low: float
    high: float
    p: float
    approximate: bool = False
    visible: float = NAN


def fisher(plcc: float, images: int) -> tuple[float, float]:
    """95 % interval of Pearson's correlation on N images: Fisher's z, variance 1/(N-3).

    (nan, nan) below four images.
    """
    return _from_z(plcc, images, 1.0)


def bonett_wright(srcc: float, images: int) -> tuple[float, float]:
    """95 % interval of Spearman's correlation on N images: variance (1 + r²/2)/(N-3).

    Bonett & Wright, Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations, Psychometrika 65, 2000. (nan, nan) below four images.
    """
    return _from_z(srcc, images, 1 + srcc**2 / 2)


FORMULAS = {"srcc": bonett_wright, "plcc": fisher}


def _from_z(r: float, images: int, variance: float) -> tuple[float, float]:
    # Fisher's z has the variance `variance / (images - 3)`.
    if images < 4 or not -1 <= r <= 1:
        return NAN, NAN
    if abs(r) == 1:
        return r, r
    reach = INTERVAL_IN_ERRORS * np.sqrt(variance / (images - 3))
    return float(np.tanh(np.arctanh(r) - reach)), float(np.tanh(np.arctanh(r) + reach))


def unpaired_difference(
    a: float, b: float, interval: Formula, images_a: int, images_b: int
) -> Difference:
    """Difference of two correlations of which only the values and numbers of images are known.

    interval: `fisher` or `bonett_wright`. Zou's interval (Psychological Methods 12, 2007) for
    independent samples, wider than a paired one; the p-value inverts it.
    """
    low_a, high_a = interval(a, images_a)
    low_b, high_b = interval(b, images_b)
    low = a - b - np.hypot(a - low_a, high_b - b)
    high = a - b + np.hypot(high_a - a, b - low_b)
    # The interval's half that reaches towards zero is as long as norm.ppf(0.975) standard errors.
    error = (a - b - low if a > b else high - (a - b)) / INTERVAL_IN_ERRORS
    p = float(2 * stats.norm.sf(abs(a - b) / error)) if error else 1.0
    return Difference(
        a - b, float(low), float(high), p, True, visible=float(DETECTABLE_IN_ERRORS * error)
    )


def paired_difference(value: float, draws_a: np.ndarray, draws_b: np.ndarray) -> Difference:
    """A − B of two runs on the same images.

    value: A − B as measured. draws (B,): both runs' figures on the same resamples. The p-value is
    the smallest level at which the percentile interval leaves zero out, counted as
    (k + 1) / (B + 1) (Davison & Hinkley, Bootstrap Methods and their Application, 1997) so that
    it is never 0.
    """
    draws = draws_a - draws_b
    draws = draws[np.isfinite(draws)]
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    p = float(min(1.0, 2 * (tail + 1) / (len(draws) + 1)))
    visible = DETECTABLE_IN_ERRORS * float(draws.std()) if len(draws) else NAN
    return Difference(value, *percentile_interval(draws), p=p, visible=visible)


def group_difference(
    figures_a: Sequence[float],
    figures_b: Sequence[float],
    draws_a: np.ndarray,
    draws_b: np.ndarray,
    seed: int = 0,
) -> Difference:
    """Difference of the means of two groups of seeds, by a bootstrap over images and seeds.

    figures (a,), (b,): each seed's figure on all images. draws (B, a), (B, b): the figures on the
    same resamples of images, each of which also draws seeds. Interval and p-value are Student's
    with Satterthwaite's degrees of freedom; only seeds limit these, as images are plenty. A group
    of one seed is taken to spread like the other (`_against_one`), which must have more.
    """
    value = float(np.mean(figures_a) - np.mean(figures_b))
    means_a = draws_a.mean(1)
    means_b = draws_b.mean(1)
    if min(len(figures_a), len(figures_b)) == 1:
        by_images = float(np.nanvar(means_a - means_b))
        if len(figures_a) >= len(figures_b):
            return _against_one(value, by_images, figures_a, draws_a)
        return _against_one(value, by_images, figures_b, draws_b)
    random = np.random.default_rng([seed, len(figures_a), len(figures_b)])
    means_a = means_a + _drawn_seeds(np.asarray(figures_a, float), draws_a, random)
    means_b = means_b + _drawn_seeds(np.asarray(figures_b, float), draws_b, random)
    variance = float(np.nanvar(means_a - means_b))
    freedom = _satterthwaite(variance, figures_a, figures_b)
    # No fewer than the smaller group has by itself.
    return _student(value, variance, max(min(len(figures_a), len(figures_b)) - 1, freedom))


def _drawn_seeds(figures: np.ndarray, draws: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """By how much the mean (B,) of a group's k seeds moves when each resample draws k of them.

    Two corrections: few seeds drawn from few vary too little by (k-1)/k (Rao & Wu, JASA 83, 1988),
    and the part of the seeds' spread that finitely many images bring by chance is taken out of it.
    """
    k = len(figures)
    spread = np.var(figures, ddof=1)
    share_of_seeds = max(0.0, 1 - _variance_by_images(draws) / spread) if spread else 0.0
    # Each seed's deviation from its group's mean, scaled to the variance that seeds have beyond
    # images'.
    deviations = np.sqrt(share_of_seeds * k / (k - 1)) * (figures - figures.mean())
    return deviations[random.integers(0, k, draws.shape)].mean(1)


def _variance_by_images(draws: np.ndarray) -> np.floating:
    # What finitely many images bring by chance between seeds, from draws (B, k).
    return np.nanvar(draws - draws.mean(1, keepdims=True), axis=0).sum() / (draws.shape[1] - 1)


def _satterthwaite(variance: float, *groups: Sequence[float]) -> float:
    squares = sum(_variance_of_mean(group) ** 2 / (len(group) - 1) for group in groups)
    return float(variance**2 / squares) if squares else np.inf


def _variance_of_mean(figures: Sequence[float]) -> np.floating:
    return np.var(figures, ddof=1) / len(figures)


def _against_one(
    value: float, by_images: float, figures: Sequence[float], draws: np.ndarray
) -> Difference:
    """A group (k,) against a single seed that is taken to spread like it.

    Through all spreads that are plausible after k seeds (Tsui & Weerahandi's generalised p-value,
    JASA 84, 1989). by_images: the difference's variance over images.
    """
    k = len(figures)
    # A thousand spreads, each as plausible: midpoints of equal shares of the chi-square law.
    quantiles = stats.chi2.ppf((np.arange(1000) + 0.5) / 1000, k - 1)
    plausible = (k - 1) * np.var(figures, ddof=1) / quantiles
    of_seeds = np.maximum(0, plausible - _variance_by_images(draws))
    errors = np.sqrt(by_images + of_seeds * (1 + 1 / k))
    if not errors.max():
        return _student(value, 0.0, np.inf)
    # Where no spread is left, any difference is infinitely many errors large.
    divisors = errors.clip(1e-300)

    def excess_coverage(reach: float) -> float:
        return np.mean(stats.norm.cdf(reach / divisors)) - UPPER_QUANTILE

    reach = optimize.brentq(excess_coverage, 0, 9 * errors.max())
    p = float(np.mean(2 * stats.norm.sf(abs(value) / divisors)))
    visible = reach + stats.norm.ppf(POWER) * float(np.median(errors))
    return Difference(value, value - reach, value + reach, p, visible=visible)


def welch_difference(figures_a: Sequence[float], figures_b: Sequence[float]) -> Difference:
    """Difference of the means of two groups of seeds from their figures alone.

    Welch's t (Biometrika 34, 1947), which knows nothing of images; nan for a group of one seed.
    """
    value = float(np.mean(figures_a) - np.mean(figures_b))
    if min(len(figures_a), len(figures_b)) < 2:
        return Difference(value, NAN, NAN, NAN, approximate=True)
    variance = float(_variance_of_mean(figures_a) + _variance_of_mean(figures_b))
    return _student(value, variance, _satterthwaite(variance, figures_a, figures_b), True)


def _student(
    value: float, variance: float, freedom: float, approximate: bool = False
) -> Difference:
    error = np.sqrt(variance)
    reach = stats.t.ppf(UPPER_QUANTILE, freedom) * error
    p = 2 * stats.t.sf(abs(value) / error, freedom) if error else float(value == 0)
    visible = float(reach + stats.t.ppf(POWER, freedom) * error)
    return Difference(
        value, float(value - reach), float(value + reach), float(p), approximate, visible
    )


def visible_differences(
    pair: float, of_seeds: float, spread: float, seeds: int = 10
) -> list[float]:
    """The smallest difference between settings of k seeds each that is found 80 times in 100.

    One value for each k from 1 to `seeds`. pair, of_seeds: variances over resampled images of the
    difference of two settings' runs, and of two seeds of one setting. spread: the variance of seeds
    beyond images'. One seed a setting knows nothing of that spread, and is as sure as images.
    """
    visible = [DETECTABLE_IN_ERRORS * float(np.sqrt(pair))]
    for k in range(2, seeds + 1):
        # What settings have in common stays, however many seeds are averaged.
        variance = max(0.0, pair - of_seeds) + min(pair, of_seeds) / k + 2 * spread / k
        freedom = np.inf
        if spread:
            freedom = max(k - 1, variance**2 / (2 * (spread / k) ** 2 / (k - 1)))
        errors = stats.t.ppf(UPPER_QUANTILE, freedom) + stats.t.ppf(POWER, freedom)
        visible.append(float(errors * np.sqrt(variance)))
    return visible


def selection_bias(sets: Sequence[tuple[np.ndarray, np.ndarray]], splits: int = 200) -> float:
    """By how much the best SRCC of E epochs flatters, the mean over the sets.

    sets: (scores (E, N), MOS (N,)) of each. The epoch chosen on half of each set's images is
    tested on the other half, and the other way round; twice the images halve the variance, hence
    1/sqrt(2). nan below two epochs or eight images.
    """
    if any(len(scores) < 2 or len(mos) < 8 for scores, mos in sets):
        return NAN
    random = np.random.default_rng(0)
    biases = []
    for _ in range(splits):
        halves = [np.array_split(random.permutation(len(mos)), 2) for _, mos in sets]
        first = _mean_srcc(sets, [half for half, _ in halves])
        second = _mean_srcc(sets, [half for _, half in halves])
        biases += [first.max() - second[first.argmax()], second.max() - first[second.argmax()]]
    return float(np.mean(biases) / np.sqrt(2))


def _mean_srcc(
    sets: Sequence[tuple[np.ndarray, np.ndarray]], images: Sequence[np.ndarray]
) -> np.ndarray:
    pairs = zip(sets, images)
    return np.mean([_plain_srcc(scores[:, i], mos[i]) for (scores, mos), i in pairs], 0)


def _plain_srcc(scores: np.ndarray, mos: np.ndarray) -> np.ndarray:
    # (E,) of scores (E, N); -1 for constant ones, which no run would choose.
    mean_rank = (len(mos) + 1) / 2
    x = stats.rankdata(scores, axis=-1) - mean_rank
    y = stats.rankdata(mos, axis=-1) - mean_rank
    spreads = (x**2).sum(-1) * (y @ y)
    return np.where(spreads > 0, x @ y / np.sqrt(np.where(spreads > 0, spreads, 1)), -1.0)


def ceiling(mos: np.ndarray, error: np.ndarray, draws: int = 200) -> dict[str, float]:
    """SRCC and PLCC of a perfect model, whose scores are the true quality.

    error (N,): standard errors of the MOS (N,). Quality is spread as the MOS without the errors'
    share, and votes are cast anew. nan where the errors explain all of the spread.
    """
    share = 1 - np.mean(error**2) / mos.var() if mos.var() else 0.0
    if share <= 0:
        return {"srcc": NAN, "plcc": NAN}
    quality = mos.mean() + np.sqrt(share) * (mos - mos.mean())
    new_votes = quality + error * np.random.default_rng(0).standard_normal((draws, len(mos)))
    return {"srcc": float(_plain_srcc(new_votes, quality).mean()), "plcc": float(np.sqrt(share))}


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for testing several differences at once, in their order.

    Holm, Scand. J. Statist. 6, 1979. A p-value that is nan stands for no test, and stays nan.
    """
    tested = [i for i, p in enumerate(p_values) if not np.isnan(p)]
    corrected = [NAN] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(tested, key=p_values.__getitem__)):
        # A larger p-value never comes out below a smaller one.
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def percentile_interval(draws: np.ndarray) -> tuple[float, float]:
    """95 % interval from bootstrap draws (B,): their 2.5th and 97.5th percentile.

    (nan, nan) without a defined draw.
    """
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return NAN, NAN
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, UPPER_QUANTILE]).tolist()
    return low, high
