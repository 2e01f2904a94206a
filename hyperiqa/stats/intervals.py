"""How certain a figure is: intervals for one run, for the difference of two, for groups of seeds.

With predictions, intervals come from the bootstrap over images (Efron & Tibshirani, An Introduction
to the Bootstrap, 1993). A resample of N images is kept as counts, which say how often each image
was drawn, so that the figures of all resamples take a few matrix operations. Duplicated images are
ties, which every figure treats as scipy.stats would. Without predictions, intervals come from the
number of images alone, by formulas of the literature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from hyperiqa.stats.metrics import FISHER, Scale

NAN = float("nan")
LEVEL = 0.95
POWER = 0.80
UPPER_QUANTILE = (1 + LEVEL) / 2
# Standard errors from an estimate to either end of its interval: the normal quantile of
# UPPER_QUANTILE, as a number, since scipy.stats takes half a second to import.
INTERVAL_IN_ERRORS = 1.959963984540054
# Standard errors of a difference that is found, its p below 5 %, 80 times in 100: the normal
# quantiles of UPPER_QUANTILE and POWER together.
DETECTABLE_IN_ERRORS = 2.8015852181129683

# The number of equally likely values that represent a variance known from few seeds.
_PLAUSIBLE = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval (nan if it is unknown).

    approximate: whether the interval comes from formulas, not from resampled images. deviation: the
    standard deviation over seeds; nan for a single seed.
    """

    value: float
    low: float = NAN
    high: float = NAN
    approximate: bool = False
    deviation: float = NAN


@dataclass(frozen=True)
class Difference:
    """A − B with its 95 % interval and two-sided p-value.

    approximate: whether the interval comes from formulas, not from resampled images. visible: the
    smallest true difference that a comparison with as many images and seeds finds 80 times in 100,
    with p below 5 % (`visible_difference`).
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
    a: float,
    b: float,
    interval: Callable[[float, int], tuple[float, float]],
    images_a: int,
    images_b: int,
) -> Difference:
    """Difference of two correlations from their values and numbers of images alone.

    interval: `fisher` or `bonett_wright`. The result is Zou's interval (Psychological Methods 12,
    2007) for independent samples, which is wider than a paired one, with the p-value that fits it.
    """
    low_a, high_a = interval(a, images_a)
    low_b, high_b = interval(b, images_b)
    low = a - b - np.hypot(a - low_a, high_b - b)
    high = a - b + np.hypot(high_a - a, b - low_b)
    # The half of the interval towards zero is as long as norm.ppf(0.975) standard errors.
    error = (a - b - low if a > b else high - (a - b)) / INTERVAL_IN_ERRORS
    return Difference(
        a - b,
        float(low),
        float(high),
        p=float(2 * scipy.stats.norm.sf(abs(a - b) / error)) if error else 1.0,
        approximate=True,
        visible=float(DETECTABLE_IN_ERRORS * error),
    )


def paired_difference(
    value: float, draws_a: np.ndarray, draws_b: np.ndarray, scale: Scale = FISHER
) -> Difference:
    """A − B of two runs on the same images.

    value: A − B as measured. draws (B,): both runs' figures on the same resamples. scale: the scale
    on which the figures vary equally. The p-value is the smallest level at which the percentile
    interval excludes zero. It is counted as (k + 1) / (B + 1) (Davison & Hinkley, Bootstrap Methods
    and their Application, 1997), so that it is never 0.
    """
    by_images = float(np.nanvar(draws_a / scale.unit(draws_a) - draws_b / scale.unit(draws_b)))
    level = float(np.nanmean([draws_a, draws_b]))
    draws = draws_a - draws_b
    draws = draws[np.isfinite(draws)]
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    return Difference(
        value,
        *percentile_interval(draws),
        p=float(min(1.0, 2 * (tail + 1) / (len(draws) + 1))),
        visible=scale.decline(level, visible_difference(by_images)),
    )


def group_difference(
    figures_a: Sequence[float],
    figures_b: Sequence[float],
    draws_a: np.ndarray,
    draws_b: np.ndarray,
    scale: Scale = FISHER,
) -> Difference:
    """Difference of the means of two groups of seeds, by a bootstrap over images and seeds.

    figures (a,), (b,): each seed's figure on all images. draws (B, a), (B, b): the figures on the
    same resamples of images, each of which also draws seeds. scale: the scale on which the figures
    vary equally. Interval and p-value are Student's with Satterthwaite's degrees of freedom, which
    the seeds limit, since there are plenty of images. A group of one seed is assumed to spread like
    the other group (`_against_one`). One seed on both sides is a pair of runs.
    """
    value = float(np.mean(figures_a) - np.mean(figures_b))
    counts = (len(figures_a), len(figures_b))
    if counts == (1, 1):
        return paired_difference(value, draws_a[:, 0], draws_b[:, 0], scale)
    means_a = draws_a.mean(1)
    means_b = draws_b.mean(1)
    by_images = float(np.nanvar(means_a / scale.unit(draws_a) - means_b / scale.unit(draws_b)))
    level = float(np.nanmean(means_a) + np.nanmean(means_b)) / 2
    groups = [(figures_a, draws_a), (figures_b, draws_b)]
    visible = visible_difference(by_images, pooled_seeds(groups, scale), counts)
    if min(counts) == 1:
        difference = _against_one(value, np.nanvar(means_a - means_b), pooled_seeds(groups))
    else:
        random = np.random.default_rng([0, *counts])
        means_a = means_a + _drawn_seeds(np.asarray(figures_a, float), draws_a, random)
        means_b = means_b + _drawn_seeds(np.asarray(figures_b, float), draws_b, random)
        variance = float(np.nanvar(means_a - means_b))
        # No fewer than the smaller group has by itself.
        freedom = max(min(counts) - 1, _satterthwaite(variance, figures_a, figures_b))
        difference = student(value, np.sqrt(variance), freedom)
    return replace(difference, visible=scale.decline(level, visible))


def _drawn_seeds(figures: np.ndarray, draws: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """By how much the mean (B,) of a group's k seeds moves when each resample draws k of them.

    Two corrections: few seeds drawn from few vary too little by (k-1)/k (Rao & Wu, JASA 83, 1988),
    and the part of the seeds' spread that finitely many images bring by chance is taken out of it.
    """
    k = len(figures)
    seeds = pooled_seeds([(figures.tolist(), draws)])
    share_of_seeds = seeds.spread / seeds.variance if seeds.variance else 0.0
    # Each seed's deviation from its group's mean, scaled to the variance that seeds have beyond
    # images'.
    deviations = np.sqrt(share_of_seeds * k / (k - 1)) * (figures - figures.mean())
    return deviations[random.integers(0, k, draws.shape)].mean(1)


@dataclass(frozen=True)
class Seeds:
    """How the figures of one setting's seeds vary, known with `freedom` degrees of freedom.

    variance: the variance of the figures. by_images: the part of it that comes by chance from the
    finite number of images.
    """

    variance: float = 0.0
    by_images: float = 0.0
    freedom: int = 0

    @property
    def spread(self) -> float:
        """The variance of seeds without the part that images bring."""
        return max(0.0, self.variance - self.by_images)


def _mean_squares(freedom: int) -> np.ndarray:
    # Midpoints of equal shares of the law of a mean of squared normal deviates.
    return scipy.stats.chi2.ppf((np.arange(_PLAUSIBLE) + 0.5) / _PLAUSIBLE, freedom) / freedom


def pooled_seeds(
    settings: Sequence[tuple[Sequence[float], np.ndarray]], scale: Scale | None = None
) -> Seeds:
    """How seeds vary in several settings that are assumed to vary equally.

    settings: the figures (k,) of each setting's seeds, and their draws (B, k) on resamples of
    images. A setting with one seed says nothing. scale: the scale on which the settings vary
    equally; None for the figures' own scale.
    """
    freedom = sum(len(figures) - 1 for figures, _ in settings)
    squares = 0.0
    by_images = 0.0
    for figures, draws in settings:
        unit = scale.unit(draws) if scale else 1.0
        squares += float(np.var(figures)) * len(figures) / unit**2
        deviations = (draws - draws.mean(1, keepdims=True)) / unit
        by_images += float(np.nanvar(deviations, axis=0).sum())
    return Seeds(squares / freedom, by_images / freedom, freedom) if freedom else Seeds()


def _satterthwaite(variance: float, *groups: Sequence[float]) -> float:
    squares = sum(_variance_of_mean(group) ** 2 / (len(group) - 1) for group in groups)
    return float(variance**2 / squares) if squares else np.inf


def _variance_of_mean(figures: Sequence[float]) -> np.floating:
    return np.var(figures, ddof=1) / len(figures)


def _against_one(value: float, by_images: float, seeds: Seeds) -> Difference:
    """A group against a single seed that is assumed to spread like it.

    It averages over all spreads that are plausible given the group (Tsui & Weerahandi's generalised
    p-value, JASA 84, 1989). by_images: the variance of the difference over images.
    """
    of_seeds = np.maximum(0, seeds.variance / _mean_squares(seeds.freedom) - seeds.by_images)
    errors = np.sqrt(by_images + of_seeds * (1 + 1 / (seeds.freedom + 1)))
    if not errors.max():
        return student(value, 0.0, np.inf)
    # Where no spread is left, any difference is infinitely many errors large.
    divisors = errors.clip(1e-300)
    reach = _mean_reach(divisors, UPPER_QUANTILE)
    return Difference(
        value,
        value - reach,
        value + reach,
        p=float(np.mean(2 * scipy.stats.norm.sf(abs(value) / divisors))),
    )


def _mean_reach(errors: np.ndarray, quantile: float, start: np.ndarray | float = 0.0) -> float:
    # How far beyond `start` a normal deviate with one of these errors reaches by a quantile. errors
    # (M,), each as likely, and start, (M,) or one for all.
    def excess(reach: float) -> float:
        return np.mean(scipy.stats.norm.cdf((reach - start) / errors)) - quantile

    return scipy.optimize.brentq(excess, 0, np.max(start) + 9 * errors.max())


def welch_difference(
    figures_a: Sequence[float], figures_b: Sequence[float], scale: Scale = FISHER
) -> Difference:
    """Difference of the means of two groups of seeds from their figures alone.

    By Welch's t (Biometrika 34, 1947), which does not look at images; nan for a group of one seed.
    """
    value = float(np.mean(figures_a) - np.mean(figures_b))
    counts = (len(figures_a), len(figures_b))
    if min(counts) < 2:
        return Difference(value, NAN, NAN, NAN, approximate=True)
    variance = float(_variance_of_mean(figures_a) + _variance_of_mean(figures_b))
    difference = student(value, np.sqrt(variance), _satterthwaite(variance, figures_a, figures_b))
    # Each seed has one figure, which stands for its figures on all resamples of images.
    groups = [(figures, np.array([figures])) for figures in (figures_a, figures_b)]
    visible = visible_difference(0.0, pooled_seeds(groups, scale), counts)
    level = float(np.mean(figures_a) + np.mean(figures_b)) / 2
    return replace(difference, approximate=True, visible=scale.decline(level, visible))


def student(value: float, error: float, freedom: float) -> Difference:
    """A difference with this standard error, by Student's t with these degrees of freedom."""
    reach = scipy.stats.t.ppf(UPPER_QUANTILE, freedom) * error
    p = 2 * scipy.stats.t.sf(abs(value) / error, freedom) if error else float(value == 0)
    return Difference(value, float(value - reach), float(value + reach), float(p))


def visible_difference(
    by_images: float, seeds: Seeds = Seeds(), counts: tuple[int, int] = (1, 1)
) -> float:
    """The smallest difference that a repetition with new images and seeds finds 80 times in 100.

    by_images: the variance over images of the difference of the two groups' means, on the scale on
    which figures vary equally; `seeds` and the result are on this scale too. counts: the number of
    seeds in each group. A difference is found if its p-value is below 5 %. As the variance of seeds
    is known from few, the result is a mean over all variances that are plausible given these, and
    over what the repetition, which tests with its own few seeds, may see of each. If nothing is
    known about seeds, or each side has one, images alone count.
    """
    if not seeds.variance or max(counts) == 1:
        return DETECTABLE_IN_ERRORS * float(np.sqrt(by_images))
    random = np.random.default_rng(0)
    # Each of these variances is as plausible after the seeds.
    true = seeds.variance / random.permutation(_mean_squares(seeds.freedom))
    true = true.clip(seeds.by_images)
    share = sum(1 / count for count in counts)
    errors = np.sqrt(by_images + (true - seeds.by_images) * share)
    # The repetition estimates each group's part by itself; a single seed's is taken for the
    # group's.
    parts = [(1 / count, count - 1) for count in counts]
    if min(counts) == 1:
        parts = [(share, max(counts) - 1)]
    variance = np.full(_PLAUSIBLE, float(by_images))
    squares = np.zeros(_PLAUSIBLE)
    for weight, freedom in parts:
        seen = true * random.permutation(_mean_squares(freedom))
        variance += weight * np.maximum(0, seen - seeds.by_images)
        squares += (weight * seen) ** 2 / freedom
    freedoms = np.maximum(parts[0][1], variance**2 / squares)
    reaches = scipy.stats.t.ppf(UPPER_QUANTILE, freedoms) * np.sqrt(variance)
    return _mean_reach(errors, POWER, reaches)


def selection_bias(sets: Sequence[tuple[np.ndarray, np.ndarray]], splits: int = 200) -> float:
    """By how much choosing the best of E epochs on the test images inflates the SRCC.

    sets: (scores (E, N), MOS (N,)) of each set; the result is the mean over the sets. The epoch
    chosen on half of each set's images is tested on the other half, and the other way round. Twice
    the images halve the variance, hence the factor 1/sqrt(2). nan for fewer than two epochs or
    eight images.
    """
    if any(len(scores) < 2 or len(mos) < 8 for scores, mos in sets):
        return NAN
    random = np.random.default_rng(0)
    biases = []
    for _ in range(splits):
        halves = [np.array_split(random.permutation(len(mos)), 2) for _, mos in sets]
        first, second = (_mean_srcc(sets, images) for images in zip(*halves))
        biases += [first.max() - second[first.argmax()], second.max() - first[second.argmax()]]
    return float(np.mean(biases) / np.sqrt(2))


def _mean_srcc(
    sets: Sequence[tuple[np.ndarray, np.ndarray]], images: Sequence[np.ndarray]
) -> np.ndarray:
    return np.mean([_plain_srcc(scores[:, i], mos[i]) for (scores, mos), i in zip(sets, images)], 0)


def _plain_srcc(scores: np.ndarray, mos: np.ndarray) -> np.ndarray:
    # (E,) of scores (E, N); -1 for constant ones, which no run would choose.
    mean_rank = (len(mos) + 1) / 2
    x = scipy.stats.rankdata(scores, axis=-1) - mean_rank
    y = scipy.stats.rankdata(mos, axis=-1) - mean_rank
    spreads = (x**2).sum(-1) * (y @ y)
    return np.where(spreads > 0, x @ y / np.sqrt(np.where(spreads > 0, spreads, 1)), -1.0)


def ceiling(mos: np.ndarray, error: np.ndarray, draws: int = 200) -> dict[str, float]:
    """SRCC and PLCC of a perfect model, which scores the true quality.

    error (N,): standard errors of the MOS (N,). The quality is spread like the MOS without the part
    of the errors, and votes are drawn again. nan if the errors explain all of the spread.
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
    p = np.asarray(p_values, float)
    # The smallest first, nan last.
    order = np.argsort(p)
    factors = np.sum(~np.isnan(p)) - np.arange(len(p))
    # A larger p-value never comes out below a smaller one.
    corrected = np.maximum.accumulate(factors * p[order]).clip(max=1.0)
    return corrected[np.argsort(order)].tolist()


def percentile_interval(draws: np.ndarray) -> tuple[float, float]:
    """95 % interval from bootstrap draws (B,): their 2.5th and 97.5th percentile.

    (nan, nan) without a defined draw.
    """
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return NAN, NAN
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, UPPER_QUANTILE]).tolist()
    return low, high
