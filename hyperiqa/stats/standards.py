"""Figures of the standards on objective quality models, with intervals and paired tests.

ITU-T P.1401 (01/2020), 7.5 to 7.8: errors after a monotonic mapping, outliers, and the same over
several data sets. ITU-T J.149 (03/2004), 4.3: resolving power (Pinson & Wolf). Krasula, Fliegel,
Le Callet & Klíma, On the accuracy of objective image and video quality models (QoMEX 2016):
telling different pairs from similar ones, better from worse.

Each figure comes with how much each image moves it (its influence function), and all intervals and
tests follow from that: the infinitesimal jackknife (Efron, The Jackknife, the Bootstrap and Other
Resampling Plans, 1982). The standards' own tests take two models for independent samples, and
pairs of images for independent of each other; on the same images neither is true. Influences of
two models on the same images are simply subtracted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy

from hyperiqa.stats import intervals, metrics

# Parameters of the monotonic cubic.
MAPPED = 4
# J.149 cuts the range of differences into this many steps.
J149_BINS = 20
# Groups of images of which the jackknife leaves out one at a time.
JACKKNIFED = 10

# Indices (P,), (P,) of the images of P pairs.
Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """A figure's value and its influence (N,), which is how much each image moves it.

    count: the number of images that these count for if no error is seen; 0 for their own number.
    """

    value: float
    influence: np.ndarray
    count: float = 0.0

    @property
    def error(self) -> float:
        """The standard error of the value; nan for a single image."""
        n = len(self.influence)
        return float(np.sqrt((self.influence**2).sum() / (n * (n - 1)))) if n > 1 else intervals.NAN


@dataclass(frozen=True)
class Sample:
    """Scores (N,) that rise with quality, MOS (N,) and, where the set has votes, its errors.

    error (N,): the standard errors of the MOS.
    """

    scores: np.ndarray
    mos: np.ndarray
    error: np.ndarray | None

    @cached_property
    def mapped(self) -> np.ndarray:
        """The scores (N,) on the scale of the MOS."""
        return monotonic_cubic(self.scores, self.mos)

    @cached_property
    def residual(self) -> np.ndarray:
        """The absolute errors (N,) after the mapping."""
        return np.abs(self.mapped - self.mos)

    @cached_property
    def pairs(self) -> Pairs:
        return np.triu_indices(len(self.mos), 1)

    @cached_property
    def significant(self) -> tuple[np.ndarray, np.ndarray]:
        """For each pair, its difference in score, and the sign of its difference in MOS.

        The sign is 0 if the difference in MOS is not significant.
        """
        i, j = self.pairs
        gap = self.mos[i] - self.mos[j]
        is_significant = np.abs(gap) > intervals.INTERVAL_IN_ERRORS * np.hypot(
            self.error[i], self.error[j]
        )
        return self.scores[i] - self.scores[j], np.sign(gap) * is_significant

    def of_images(self, pairs: Pairs, values: np.ndarray) -> np.ndarray:
        """The sums (N,) of pairs' values over each image's pairs, times N."""
        n = len(self.mos)
        return n * (np.bincount(pairs[0], values, n) + np.bincount(pairs[1], values, n))

    def without(self, group: int) -> "Sample":
        """The sample without one of `JACKKNIFED` groups of images."""
        kept = np.arange(len(self.mos)) * JACKKNIFED // len(self.mos) != group
        return Sample(self.scores[kept], self.mos[kept], self.error[kept])


def monotonic_cubic(scores: np.ndarray, mos: np.ndarray) -> np.ndarray:
    """Scores (N,) mapped to the MOS by the third-order polynomial of P.1401, 7.3.2.

    Least squares among the polynomials that are monotonic over the scores' range; the mapping
    falls where the scores fall with quality. On [-1, 1] a derivative of second order that is
    nowhere negative is (a + b x)² + c² (1 - x²) (Markov & Lukács). nan where nothing is
    `metrics.fittable`.
    """
    if metrics.fittable(scores, mos) is None:
        return np.full(len(mos), intervals.NAN)
    low, high = scores.min(), scores.max()
    x = (2 * scores - low - high) / (high - low)
    free = np.polynomial.Polynomial.fit(x, mos, 3, domain=[-1, 1], window=[-1, 1])
    slope = free.deriv()(np.linspace(-1, 1, 201))
    # Mostly the best cubic of all is monotonic by itself.
    if slope.min() >= 0 or slope.max() <= 0:
        return free(x)
    sign = np.sign(metrics.srcc(scores, mos)) or 1.0
    scale = mos.std()
    y = sign * (mos - mos.mean()) / scale

    def curve(parameters: np.ndarray) -> np.ndarray:
        a, b, c, d = parameters
        return d + a**2 * x + a * b * x**2 + b**2 * x**3 / 3 + c**2 * (x - x**3 / 3)

    # A straight line, and curves that bend either way.
    starts = ([0.7, 0.0, 0.7, 0.0], [0.7, 0.7, 0.1, 0.0], [0.7, -0.7, 0.1, 0.0])
    fits = [scipy.optimize.least_squares(lambda p: curve(p) - y, start) for start in starts]
    return mos.mean() + sign * scale * curve(min(fits, key=lambda fit: fit.cost).x)


def _root_mean(squares: np.ndarray) -> Measured:
    # The root of the mean square with the degrees of freedom that the mapping leaves. P.1401,
    # 7.5.1.
    spare = len(squares) / (len(squares) - MAPPED)
    value = float(np.sqrt(spare * squares.mean()))
    # `spare` once more, because the mapping bends towards each image.
    return Measured(value, spare * (spare * squares - value**2) / (2 * value or 1))


def rmse(sample: Sample) -> Measured:
    """P.1401, 7.5.1: the root mean square error after the mapping, in units of the MOS."""
    return _root_mean(sample.residual**2)


def rmse_star(sample: Sample) -> Measured:
    """P.1401, 7.7: only the part of an error beyond the 95 % interval of the MOS counts."""
    return _root_mean(
        np.maximum(0, sample.residual - intervals.INTERVAL_IN_ERRORS * sample.error) ** 2
    )


def outlier_ratio(sample: Sample) -> Measured:
    """P.1401, 7.5.2.2: the share of images whose error exceeds the 95 % interval of their MOS."""
    outlier = sample.residual > intervals.INTERVAL_IN_ERRORS * sample.error
    return Measured(float(outlier.mean()), outlier - outlier.mean())


def different_similar(sample: Sample) -> Measured:
    """Krasula's AUC of telling pairs with significantly different MOS from the others.

    It is the area under the ROC curve for the size of a pair's difference in score.
    """
    difference, sign = sample.significant
    different = sign != 0
    if different.all() or not different.any():
        return Measured(intervals.NAN, np.full(len(sample.mos), intervals.NAN))
    sizes = np.abs(difference)
    ranks = scipy.stats.rankdata(sizes)
    below = np.empty(len(sizes))
    for kind in (different, ~different):
        # For each pair, the share of the pairs of the other kind that are smaller. Ties count half.
        below[kind] = (ranks[kind] - scipy.stats.rankdata(sizes[kind])) / np.sum(~kind)
    auc = float(below[different].mean())
    influence = np.where(
        different, (below - auc) / np.sum(different), (1 - below - auc) / np.sum(~different)
    )
    return Measured(auc, sample.of_images(sample.pairs, influence))


def better_worse(sample: Sample) -> Measured:
    """Krasula's AUC of better against worse among the pairs that differ, taken in both orders."""
    agreement, pairs = _agreement(sample)
    n = max(len(agreement), 1)
    # A pair in its other order has the negative agreement. Of each pair the share of those that
    # lies lower; ties count half.
    ordered = np.sort(agreement)
    negatives = np.sort(-agreement)
    ends = np.searchsorted(ordered, negatives, "left") + np.searchsorted(
        ordered, negatives, "right"
    )
    below = np.empty(len(agreement))
    below[np.argsort(-agreement, kind="stable")] = 1 - ends / (2 * n)
    auc = float(below.mean()) if len(agreement) else intervals.NAN
    return Measured(auc, sample.of_images(pairs, 2 * (below - auc) / n))


def accuracy(sample: Sample) -> Measured:
    """Krasula's share of the different pairs that the model orders rightly. A tie counts half."""
    agreement, pairs = _agreement(sample)
    right = (np.sign(agreement) + 1) / 2
    share = float(right.mean()) if len(right) else intervals.NAN
    return Measured(share, sample.of_images(pairs, (right - share) / max(len(right), 1)))


def _agreement(sample: Sample) -> tuple[np.ndarray, Pairs]:
    # By how much the scores of significant pairs differ in the viewers' direction, and the pairs.
    # Above 0 where the model agrees with the viewers.
    difference, sign = sample.significant
    chosen = sign != 0
    first, second = sample.pairs
    return difference[chosen] * sign[chosen], (first[chosen], second[chosen])


def resolving_power(sample: Sample) -> Measured:
    """J.149, 4.3: the difference in mapped score above which viewers tell two images apart.

    It is in units of the MOS, with 95 % confidence, and nan if they never do. As bins and mapping
    depend on all images, it is measured again without each of some groups of images. The influence
    of a group is the change without it (the jackknife of groups).
    """
    left_out = np.array([_crossing(sample.without(group)) for group in range(JACKKNIFED)])
    return Measured(_crossing(sample), (JACKKNIFED - 1) * (left_out.mean() - left_out))


def _crossing(sample: Sample) -> float:
    """Where the mean confidence of pairs in 19 bins last rises over .95.

    Each bin is two twentieths of the range of differences wide and overlaps half of the next. The
    program in J.149's Appendix II comes down from the largest differences, as the definition
    speaks of all differences above the resolving power. It also leaves out the largest difference
    of all, which is the end of the last bin, and looks for the crossing below the last but one.
    A bin without pairs is passed over.
    """
    i, j = sample.pairs
    difference = sample.mapped[i] - sample.mapped[j]
    size = np.abs(difference)
    error = np.hypot(sample.error[i], sample.error[j]).clip(1e-300)
    z = np.sign(difference) * (sample.mos[i] - sample.mos[j]) / error
    edges = np.linspace(size.min(), size.max(), J149_BINS + 1)
    place = np.searchsorted(edges, size, "right") - 1
    sums = np.bincount(place, scipy.special.ndtr(z))[:J149_BINS]
    counts = np.bincount(place)[:J149_BINS]
    pairs_in_bin = counts[1:] + counts[:-1]
    filled = pairs_in_bin > 0
    centres = edges[1:-1][filled]
    means = (sums[1:] + sums[:-1])[filled] / pairs_in_bin[filled]
    unsure = np.flatnonzero(means[:-1] <= intervals.LEVEL)
    if not len(unsure) or means[unsure[-1] + 1] < intervals.LEVEL:
        return intervals.NAN
    k = unsure[-1]
    return float(np.interp(intervals.LEVEL, means[k : k + 2], centres[k : k + 2]))


@dataclass(frozen=True)
class Standard:
    """A figure, its title, whether it needs votes, and whether it is a share or an error."""

    of: Callable[[Sample], Measured]
    title: str
    votes: bool = True
    is_share: bool = False


STANDARDS = {
    "rmse": Standard(rmse, "RMSE", votes=False),
    "rmse_star": Standard(rmse_star, "RMSE*"),
    "outlier_ratio": Standard(outlier_ratio, "outlier\nratio", is_share=True),
    "auc_ds": Standard(different_similar, "AUC\ndiff/similar", is_share=True),
    "auc_bw": Standard(better_worse, "AUC\nbetter/worse", is_share=True),
    "accuracy": Standard(accuracy, "accuracy\nof order", is_share=True),
    "resolving_power": Standard(resolving_power, "resolving\npower"),
}


def measure(scores: np.ndarray, mos: np.ndarray, error: np.ndarray | None) -> dict[str, Measured]:
    """The figures of scores (N,) that rise with quality.

    error (N,): standard errors of the MOS; None for a set without votes, which leaves out the
    figures that need them. Empty for fewer than ten images, and if nothing is `metrics.fittable`.
    """
    if len(mos) < 10 or metrics.fittable(scores, mos) is None:
        return {}
    sample = Sample(scores, mos, error)
    return {
        name: standard.of(sample)
        for name, standard in STANDARDS.items()
        if error is not None or not standard.votes
    }


def estimate(name: str, measured: Measured) -> intervals.Estimate:
    """The figure with its 95 % interval, within the figure's range and around its value.

    A share gets Wilson's score interval (JASA 22, 1927) for the number of independent trials with
    the same error (Korn & Graubard, Survey Methodology 24, 1998). An error gets an interval that is
    symmetric on a logarithmic scale, or none if it is 0. Nor is there an interval for a figure of
    unknown precision.
    """
    value = measured.value
    error = measured.error
    n = len(measured.influence)
    is_share = STANDARDS[name].is_share
    # A value of 0 has no logarithm.
    if not np.isfinite([value, error]).all() or not (is_share or value):
        return intervals.Estimate(value)
    quantile = scipy.stats.t.ppf(intervals.UPPER_QUANTILE, n - 1)
    if not is_share:
        return intervals.Estimate(value, *metrics.LOG.interval(value, quantile * error))
    # Pairs that share images tell less, or more, than as many images do. Where all are alike no
    # error is seen, and each image counts as one.
    count = value * (1 - value) / error**2 if error else measured.count or n
    weight = quantile**2 / count
    centre = (value + weight / 2) / (1 + weight)
    reach = np.sqrt(weight * value * (1 - value) + weight**2 / 4) / (1 + weight)
    # The ends at 0 and 1 are exact but for rounding.
    return intervals.Estimate(
        value, float(min(value, centre - reach)), float(max(value, centre + reach))
    )


def difference(a: Measured, b: Measured) -> intervals.Difference:
    """A − B of two models on the same images."""
    value = a.value - b.value
    between = Measured(value, a.influence - b.influence)
    error = between.error
    if np.isnan(value):
        return intervals.Difference(value, intervals.NAN, intervals.NAN, intervals.NAN)
    if not np.isfinite(value) or not error:
        return intervals.Difference(value, intervals.NAN, intervals.NAN, float(value == 0))
    return replace(
        intervals.student(value, error, len(between.influence) - 1),
        visible=intervals.DETECTABLE_IN_ERRORS * error,
    )


def pitman_morgan(residuals_a: np.ndarray, residuals_b: np.ndarray) -> float:
    """p-value of equal variances of two models' residuals (N,) on the same images.

    Pitman; Morgan, Biometrika 31, 1939: the variances are equal where the sum and the difference
    of the residuals are uncorrelated. Exact for normal residuals; with heavy tails it finds
    differences too often: trust the paired test of `difference` instead. The F-test (P.1401,
    7.6.4), which is for independent residuals, finds them too seldom. nan for fewer than four
    images, and if the sum or the difference is constant.
    """
    plus = residuals_a + residuals_b
    minus = residuals_a - residuals_b
    defined = len(plus) >= 4 and np.ptp(plus) > 0 and np.ptp(minus) > 0
    return float(scipy.stats.pearsonr(plus, minus).pvalue) if defined else intervals.NAN


def over_sets(name: str, measured: Sequence[Measured]) -> Measured:
    """One figure for several data sets, which all weigh the same (P.1401, 7.8.1).

    It is the root of the mean square for errors, and the mean for ratios. The sets are independent,
    so their images' influences are put side by side.
    """
    values = np.array([in_set.value for in_set in measured])
    value = float(np.mean(values))
    weights = np.ones(len(measured))
    if name in ("rmse", "rmse_star"):
        value = float(np.sqrt(np.mean(values**2)))
        # The derivative of the root mean square with respect to the error of each set.
        if value:
            weights = values / value
    sizes = np.array([len(in_set.influence) for in_set in measured])
    weights = np.repeat(weights / len(measured) * sizes.sum() / sizes, sizes)
    influence = weights * np.concatenate([in_set.influence for in_set in measured])
    # If all sets have a share of 0 or 1, the smallest set is the least certain one.
    return Measured(value, influence, count=float(len(sizes) ** 2 / sum(1 / sizes)))
