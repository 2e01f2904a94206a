"""How sure a figure is: intervals for one run, for the difference of two, for groups of seeds.

With predictions: the bootstrap over images (Efron & Tibshirani, An Introduction to the Bootstrap, 1993). A
resample of N images is held as its counts, how often each image was drawn, so that a figure of all resamples
is a few matrix operations. Duplicated images are ties; every figure treats them as scipy.stats would.
Without: intervals from the number of images alone, for which the literature's formulas stand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

NAN = float("nan")
LEVEL, POWER = 0.95, 0.80
DETECTABLE_IN_ERRORS = float(
    stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER)
)  # standard errors of a difference that is found

Formula = Callable[[float, int], tuple[float, float]]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval (nan where unknown) and, over seeds, their standard deviation."""

    value: float
    low: float = NAN
    high: float = NAN
    approximate: bool = False
    deviation: float = NAN


@dataclass(frozen=True)
class Difference:
    """A − B with its interval and two-sided p-value; approximate: not from resampled images. visible: the smallest
    difference of such groups that is found, its p below 5 %, 80 times in 100."""

    value: float
    low: float
    high: float
    p: float
    approximate: bool = False
    visible: float = NAN


def fisher(plcc: float, images: int) -> tuple[float, float]:
    """95 % interval of Pearson's correlation on N images: Fisher's z, variance 1/(N-3); (nan, nan) below 4."""
    return _from_z(plcc, images, 1.0)


def bonett_wright(srcc: float, images: int) -> tuple[float, float]:
    """The same of Spearman's: variance (1 + r²/2)/(N-3) (Bonett & Wright, Sample size requirements for estimating
    Pearson, Kendall and Spearman correlations, Psychometrika 65, 2000)."""
    return _from_z(srcc, images, 1 + srcc**2 / 2)


FORMULAS = {"srcc": bonett_wright, "plcc": fisher}


def _from_z(r: float, images: int, variance: float) -> tuple[float, float]:
    if images < 4 or not -1 <= r <= 1:
        return NAN, NAN
    if abs(r) == 1:
        return r, r
    reach = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance / (images - 3))
    return float(np.tanh(np.arctanh(r) - reach)), float(np.tanh(np.arctanh(r) + reach))


def unpaired_difference(
    a: float, b: float, interval: Formula, images_a: int, images_b: int
) -> Difference:
    """Difference of two correlations known by value and number of images alone; interval: fisher or bonett_wright.
    Zou's interval (Psychological Methods 12, 2007) for independent samples, wider than a paired one; p inverts it."""
    (low_a, high_a), (low_b, high_b) = interval(a, images_a), interval(b, images_b)
    low = a - b - np.hypot(a - low_a, high_b - b)
    high = a - b + np.hypot(high_a - a, b - low_b)
    # The interval's half that reaches towards zero is as long as norm.ppf(0.975) standard errors.
    error = (a - b - low if a > b else high - (a - b)) / stats.norm.ppf((1 + LEVEL) / 2)
    p = float(2 * stats.norm.sf(abs(a - b) / error)) if error else 1.0
    return Difference(a - b, float(low), float(high), p, True, float(DETECTABLE_IN_ERRORS * error))


def paired_difference(value: float, draws_a: np.ndarray, draws_b: np.ndarray) -> Difference:
    """A − B of two runs on the same images; draws (B,) of both on the same resamples; value: A − B as measured.
    The p-value is the smallest level at which the percentile interval leaves zero out, counted as
    (k + 1) / (B + 1) (Davison & Hinkley, Bootstrap Methods and their Application, 1997) so that it is never 0."""
    draws = draws_a - draws_b
    draws = draws[np.isfinite(draws)]
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    p, visible = (
        float(min(1.0, 2 * (tail + 1) / (len(draws) + 1))),
        DETECTABLE_IN_ERRORS * float(draws.std()) if len(draws) else NAN,
    )
    return Difference(value, *percentile_interval(draws), p=p, visible=visible)


def group_difference(
    figures_a: Sequence[float],
    figures_b: Sequence[float],
    draws_a: np.ndarray,
    draws_b: np.ndarray,
    seed: int = 0,
) -> Difference:
    """Difference of the means of two groups of seeds, by a bootstrap over images and seeds together.
    figures (a,), (b,): each seed's figure on all images; draws (B, a), (B, b): on the same resamples of images,
    each of which also draws seeds. Two corrections: few seeds drawn from few vary too little by (k-1)/k (Rao & Wu,
    JASA 83, 1988), and the part of the seeds' spread that finitely many images bring by chance is taken out of it.
    Interval and p-value are Student's with Satterthwaite's degrees of freedom, of which images have no shortage.
    A group of one seed is taken to spread like the other (`_against_one`), which must have more."""
    random = np.random.default_rng([seed, len(figures_a), len(figures_b)])
    sides = [
        (np.asarray(figures, float), draws)
        for figures, draws in ((figures_a, draws_a), (figures_b, draws_b))
    ]
    value, means = (
        float(np.mean(figures_a) - np.mean(figures_b)),
        [draws.mean(1) for _, draws in sides],
    )
    if min(map(len, (figures_a, figures_b))) == 1:
        return _against_one(
            value, float(np.nanvar(means[0] - means[1])), *max(sides, key=lambda side: len(side[0]))
        )
    spreads = [np.var(figures, ddof=1) for figures, _ in sides]
    for i, (figures, draws) in enumerate(sides):
        k, by_images = len(figures), np.nanvar(draws - draws.mean(1, keepdims=True), axis=0).sum()
        own = max(0.0, 1 - by_images / (k - 1) / spreads[i]) if spreads[i] else 0.0
        # Each seed's deviation from its group's mean, scaled to the variance that seeds have beyond images'.
        deviations = np.sqrt(own * k / (k - 1)) * (figures - figures.mean())
        means[i] = means[i] + deviations[random.integers(0, k, draws.shape)].mean(1)
    uncertain = [spread / len(figures) for spread, (figures, _) in zip(spreads, sides)]
    squares = sum(part**2 / (len(side) - 1) for part, (side, _) in zip(uncertain, sides) if part)
    variance = float(np.nanvar(means[0] - means[1]))
    freedom = (
        max(min(len(side) for side, _ in sides) - 1, variance**2 / squares) if squares else np.inf
    )
    return _student(value, variance, freedom)


def _against_one(
    value: float, by_images: float, figures: np.ndarray, draws: np.ndarray
) -> Difference:
    """A group (k,) against a single seed that spreads like it: through all spreads that are plausible after k seeds
    (Tsui & Weerahandi's generalised p-value, JASA 84, 1989). by_images: the difference's variance over images."""
    k = len(figures)
    spread = np.var(figures, ddof=1)
    images_of_one = np.nanvar(draws - draws.mean(1, keepdims=True), axis=0).sum() / (k - 1)
    plausible = (k - 1) * spread / stats.chi2.ppf((np.arange(1000) + 0.5) / 1000, k - 1)
    errors = np.sqrt(by_images + np.maximum(0, plausible - images_of_one) * (1 + 1 / k))
    if not errors.max():
        return _student(value, 0.0, np.inf)
    high = (1 + LEVEL) / 2
    reach = optimize.brentq(
        lambda x: np.mean(stats.norm.cdf(x / errors.clip(1e-300))) - high, 0, 9 * errors.max()
    )
    p = float(np.mean(2 * stats.norm.sf(abs(value) / errors.clip(1e-300))))
    visible = reach + stats.norm.ppf(POWER) * float(np.median(errors))
    return Difference(value, value - reach, value + reach, p, visible=visible)


def welch_difference(figures_a: Sequence[float], figures_b: Sequence[float]) -> Difference:
    """The same from the figures alone: Welch's t (Biometrika 34, 1947), which knows seeds alone; nan for one seed."""
    value = float(np.mean(figures_a) - np.mean(figures_b))
    if min(len(figures_a), len(figures_b)) < 2:
        return Difference(value, NAN, NAN, NAN, approximate=True)
    parts = [
        (np.var(figures, ddof=1) / len(figures), len(figures) - 1)
        for figures in (figures_a, figures_b)
    ]
    variance, squares = (
        float(sum(part for part, _ in parts)),
        float(sum(part**2 / free for part, free in parts)),
    )
    return _student(value, variance, variance**2 / squares if squares else np.inf, approximate=True)


def _student(
    value: float, variance: float, freedom: float, approximate: bool = False
) -> Difference:
    error = np.sqrt(variance)
    reach = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    p = 2 * stats.t.sf(abs(value) / error, freedom) if error else float(value == 0)
    visible = float(reach + stats.t.ppf(POWER, freedom) * error)
    return Difference(
        value, float(value - reach), float(value + reach), float(p), approximate, visible
    )


def visible_differences(
    pair: float, of_seeds: float, spread: float, seeds: int = 10
) -> list[float]:
    """The smallest difference between settings of k seeds each that is found 80 times in 100, for k from 1 to `seeds`.
    pair, of_seeds: variances over resampled images of the difference of two settings' runs, and of two seeds' of one;
    spread: that of seeds beyond images'. One seed a setting knows nothing of that spread, and is as sure as images."""
    found = [DETECTABLE_IN_ERRORS * float(np.sqrt(pair))]
    for k in range(2, seeds + 1):
        variance = max(0.0, pair - of_seeds) + min(pair, of_seeds) / k + 2 * spread / k
        freedom = max(k - 1, variance**2 / (2 * (spread / k) ** 2 / (k - 1))) if spread else np.inf
        found.append(
            float(
                (stats.t.ppf((1 + LEVEL) / 2, freedom) + stats.t.ppf(POWER, freedom))
                * np.sqrt(variance)
            )
        )
    return found


def selection_bias(sets: Sequence[tuple[np.ndarray, np.ndarray]], splits: int = 200) -> float:
    """By how much the best SRCC of E epochs flatters, the mean of the sets' (scores (E, N), MOS (N,)): the epoch chosen
    on half of each set's images is tested on the other half, and the other way round; twice the images halve the
    variance, hence 1/sqrt(2). nan below two epochs or eight images."""
    if min(len(scores) for scores, _ in sets) < 2 or min(len(mos) for _, mos in sets) < 8:
        return NAN
    random, prices = np.random.default_rng(0), []
    for _ in range(splits):
        halves = [np.array_split(random.permutation(len(mos)), 2) for _, mos in sets]
        both = [
            [_plain_srcc(scores[:, of[k]], mos[of[k]]) for (scores, mos), of in zip(sets, halves)]
            for k in (0, 1)
        ]
        one, other = np.mean(both, 1)
        prices += [one.max() - other[one.argmax()], other.max() - one[other.argmax()]]
    return float(np.mean(prices) / np.sqrt(2))


def _plain_srcc(scores: np.ndarray, mos: np.ndarray) -> np.ndarray:
    """SRCC (E,) of scores (E, N); -1 for constant ones, which no run would choose."""
    x, y = (stats.rankdata(v, axis=-1) - (len(mos) + 1) / 2 for v in (scores, mos))
    spreads = (x**2).sum(-1) * (y @ y)
    return np.where(spreads > 0, x @ y / np.sqrt(np.where(spreads > 0, spreads, 1)), -1.0)


def ceiling(mos: np.ndarray, error: np.ndarray, draws: int = 200) -> dict[str, float]:
    """SRCC and PLCC of a perfect model, whose scores are the true quality, given the standard errors (N,) of the MOS:
    quality is spread as the MOS without the errors' share, votes are cast anew. nan where the errors explain all."""
    share = 1 - np.mean(error**2) / mos.var() if mos.var() else 0.0
    if share <= 0:
        return {"srcc": NAN, "plcc": NAN}
    quality = mos.mean() + np.sqrt(share) * (mos - mos.mean())
    again = quality + error * np.random.default_rng(0).standard_normal((draws, len(mos)))
    return {"srcc": float(_plain_srcc(again, quality).mean()), "plcc": float(np.sqrt(share))}


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for testing several differences at once (Holm, Scand. J. Statist. 6, 1979), in their order."""
    corrected, largest = [NAN] * len(p_values), 0.0
    tested = sorted(
        (i for i, p in enumerate(p_values) if not np.isnan(p)), key=p_values.__getitem__
    )
    for rank, i in enumerate(tested):
        corrected[i] = largest = max(largest, min(1.0, (len(tested) - rank) * p_values[i]))
    return corrected


def percentile_interval(draws: np.ndarray) -> tuple[float, float]:
    """95 % interval from bootstrap draws (B,): their 2.5th and 97.5th percentile; (nan, nan) without a defined draw."""
    defined = draws[np.isfinite(draws)]
    return (
        tuple(np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist())
        if len(defined)
        else (NAN, NAN)
    )
