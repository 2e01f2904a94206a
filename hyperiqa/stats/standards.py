"""The figures of the standards on objective quality models, and of Krasula et al., with intervals and paired tests.

ITU-T P.1401 (01/2020), 7.5 to 7.8: errors after a monotonic mapping, outliers, and the same over several data sets.
ITU-T J.149 (03/2004), 4.3: resolving power (Pinson & Wolf). Krasula, Fliegel, Le Callet & Klíma, On the accuracy of
objective image and video quality models (QoMEX 2016): telling different pairs from similar ones, better from worse.

Each figure comes with how much each image moves it (its influence function), and all intervals and tests follow from
that: the infinitesimal jackknife (Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982). The standards'
own tests take two models for independent samples, and pairs of images for independent of each other; on the same
images neither is true. Influences of two models on the same images are simply subtracted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, special, stats

from hyperiqa.stats import metrics
from hyperiqa.stats.intervals import DETECTABLE_IN_ERRORS, LEVEL, NAN, Difference, Estimate

CI = float(stats.norm.ppf((1 + LEVEL) / 2))
MAPPED = 4  # parameters of the monotonic cubic
J149_BINS, JACKKNIFED = 20, 10


@dataclass(frozen=True)
class Measured:
    """A figure's value and influence (N,): its error is about the mean of the images' influences."""

    value: float
    influence: np.ndarray

    @property
    def error(self) -> float:
        n = len(self.influence)
        return float(np.sqrt((self.influence**2).sum() / (n * (n - 1)))) if n > 1 else NAN


@dataclass(frozen=True)
class Sample:
    """Scores (N,) that rise with quality, MOS (N,) and, where the set has votes, its standard errors (N,)."""

    scores: np.ndarray
    mos: np.ndarray
    error: np.ndarray | None

    @cached_property
    def mapped(self) -> np.ndarray:
        return monotonic_cubic(self.scores, self.mos)

    @cached_property
    def residual(self) -> np.ndarray:
        return np.abs(self.mapped - self.mos)

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        return np.triu_indices(len(self.mos), 1)

    @cached_property
    def significant(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each pair the difference in score, and which way its MOS differ significantly (-1, 0, 1)."""
        i, j = self.pairs
        told = np.abs(self.mos[i] - self.mos[j]) > CI * np.hypot(self.error[i], self.error[j])
        return self.scores[i] - self.scores[j], np.sign(self.mos[i] - self.mos[j]) * told

    def of_images(self, pairs: tuple[np.ndarray, np.ndarray], values: np.ndarray) -> np.ndarray:
        """The sums (N,) of pairs' values over each image's pairs, times N."""
        n = len(self.mos)
        return n * (np.bincount(pairs[0], values, n) + np.bincount(pairs[1], values, n))

    def without(self, group: int) -> "Sample":
        """The sample but for one of `JACKKNIFED` groups of images."""
        kept = np.arange(len(self.mos)) * JACKKNIFED // len(self.mos) != group
        return Sample(self.scores[kept], self.mos[kept], self.error[kept])


def monotonic_cubic(scores: np.ndarray, mos: np.ndarray) -> np.ndarray:
    """Scores (N,) mapped to the MOS by the third-order polynomial of P.1401, 7.3.2, least squares among those that
    are monotonic over the scores' range; it falls where they do. On [-1, 1] a derivative of second order that is
    nowhere negative is (a + b x)² + c² (1 - x²) (Markov & Lukács)."""
    low, high = scores.min(), scores.max()
    x = (2 * scores - low - high) / ((high - low) or 1)
    free = np.polynomial.Polynomial.fit(x, mos, 3, domain=[-1, 1], window=[-1, 1])
    slope = free.deriv()(np.linspace(-1, 1, 201))
    if slope.min() >= 0 or slope.max() <= 0:
        return free(x)
    sign, scale = np.sign(metrics.srcc(scores, mos)) or 1.0, mos.std() or 1.0
    y = sign * (mos - mos.mean()) / scale

    def curve(p: np.ndarray) -> np.ndarray:
        a, b, c, d = p
        return d + a**2 * x + a * b * x**2 + b**2 * x**3 / 3 + c**2 * (x - x**3 / 3)

    starts = ([0.7, 0.0, 0.7, 0.0], [0.7, 0.7, 0.1, 0.0], [0.7, -0.7, 0.1, 0.0])
    fits = [optimize.least_squares(lambda p: curve(p) - y, start) for start in starts]
    return mos.mean() + sign * scale * curve(min(fits, key=lambda fit: fit.cost).x)


def _root_mean(squares: np.ndarray) -> Measured:
    """The root of the mean square with the degrees of freedom that the mapping leaves (P.1401, 7.5.1)."""
    spare = len(squares) / (len(squares) - MAPPED)
    value = float(np.sqrt(spare * squares.mean()))
    # `spare` once more, because the mapping bends towards each image.
    return Measured(value, spare * (spare * squares - value**2) / (2 * value or 1))


def rmse(s: Sample) -> Measured:
    return _root_mean(s.residual**2)


def rmse_star(s: Sample) -> Measured:
    """P.1401, 7.7: of errors only what exceeds the 95 % interval of the MOS counts."""
    return _root_mean(np.maximum(0, s.residual - CI * s.error) ** 2)


def outlier_ratio(s: Sample) -> Measured:
    """P.1401, 7.5.2.2: the share of images whose error exceeds the 95 % interval of their MOS."""
    outlier = s.residual > CI * s.error
    return Measured(float(outlier.mean()), outlier - outlier.mean())


def _auc(
    s: Sample, values: np.ndarray, positive: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]
) -> Measured:
    """Area under the ROC curve by which values (P,) of pairs of images tell the positive from the others."""
    many, few = int(positive.sum()), int((~positive).sum())
    if not many or not few:
        return Measured(NAN, np.full(len(s.mos), NAN))
    ranks, below = stats.rankdata(values), np.empty(len(values))
    for kind, others in (
        (positive, few),
        (~positive, many),
    ):  # of the other kind, the share that lies lower
        below[kind] = (ranks[kind] - stats.rankdata(values[kind])) / others
    value = float(below[positive].mean())
    return Measured(
        value,
        s.of_images(pairs, np.where(positive, (below - value) / many, (1 - below - value) / few)),
    )


def different_similar(s: Sample) -> Measured:
    """Krasula's AUC of pairs whose MOS differ significantly against the others, by their difference in score."""
    difference, sign = s.significant
    return _auc(s, np.abs(difference), sign != 0, s.pairs)


def better_worse(s: Sample) -> Measured:
    """Krasula's AUC of better against worse among the pairs that differ, each taken in both orders."""
    (difference, sign), (i, j) = s.significant, s.pairs
    of = sign != 0
    right, n = difference[of] * sign[of], max(int(of.sum()), 1)  # above 0 where the model agrees
    ordered, worse = np.sort(right), np.sort(-right)
    below = np.empty(len(right))
    ends = (np.searchsorted(ordered, worse, side) for side in ("left", "right"))
    below[np.argsort(-right, kind="stable")] = 1 - sum(ends) / (2 * n)
    value = float(below.mean()) if of.any() else NAN
    return Measured(value, s.of_images((i[of], j[of]), 2 * (below - value) / n))


def accuracy(s: Sample) -> Measured:
    """Krasula's share of the pairs that differ which the model puts in the right order (a tie: half)."""
    (difference, sign), (i, j) = s.significant, s.pairs
    of = sign != 0
    right = (np.sign(difference[of]) * sign[of] + 1) / 2
    value = float(right.mean()) if of.any() else NAN
    return Measured(value, s.of_images((i[of], j[of]), (right - value) / max(len(right), 1)))


def resolving_power(s: Sample) -> Measured:
    """J.149, 4.3: the difference in mapped score, in units of the MOS, from which on viewers tell two images apart
    with 95 % confidence. nan where they never do. As bins and mapping depend on all images, it is measured anew
    without each of some groups of images, whose influence that is (the jackknife of groups)."""
    left = np.array([_crossing(s.without(group)) for group in range(JACKKNIFED)])
    return Measured(_crossing(s), (JACKKNIFED - 1) * (left.mean() - left))


def _crossing(s: Sample) -> float:
    """Where the mean confidence of pairs in 19 bins, each two twentieths of the largest difference wide, is .95."""
    i, j = s.pairs
    difference = s.mapped[i] - s.mapped[j]
    z = np.sign(difference) * (s.mos[i] - s.mos[j]) / np.hypot(s.error[i], s.error[j]).clip(1e-300)
    step = np.abs(difference).max() / J149_BINS or 1.0
    place = np.minimum(np.abs(difference) / step, J149_BINS - 1e-9).astype(int)
    sums, counts = (np.bincount(place, weights, J149_BINS) for weights in (special.ndtr(z), None))
    with np.errstate(invalid="ignore"):
        means = (sums[1:] + sums[:-1]) / (counts[1:] + counts[:-1])
    found = (
        k + (LEVEL - a) / (b - a)
        for k, (a, b) in enumerate(zip(means, means[1:]), 1)
        if a < LEVEL <= b
    )
    return float(next(found, NAN) * step)


@dataclass(frozen=True)
class Standard:
    """A figure, its title, whether it needs votes, and the scale on which its interval is symmetric."""

    of: Callable[[Sample], Measured]
    title: str
    votes: bool = True
    scale: str = "logit"


STANDARDS = {
    "rmse": Standard(rmse, "RMSE", votes=False, scale="log"),
    "rmse_star": Standard(rmse_star, "RMSE*", scale="log"),
    "outlier_ratio": Standard(outlier_ratio, "outlier\nratio"),
    "auc_ds": Standard(different_similar, "AUC\ndiff/similar"),
    "auc_bw": Standard(better_worse, "AUC\nbetter/worse"),
    "accuracy": Standard(accuracy, "accuracy\nof order"),
    "resolving_power": Standard(resolving_power, "resolving\npower", scale="log"),
}


def measure(scores: np.ndarray, mos: np.ndarray, error: np.ndarray | None) -> dict[str, Measured]:
    """The figures of scores (N,) that rise with quality, as far as the set has votes: error (N,) or None."""
    if len(mos) < 10 or np.ptp(scores) == 0:
        return {}
    sample = Sample(scores, mos, error)
    return {
        name: each.of(sample)
        for name, each in STANDARDS.items()
        if error is not None or not each.votes
    }


def estimate(name: str, found: Measured) -> Estimate:
    """The figure with its 95 % interval, on the scale that keeps it in its range."""
    value, error, n = found.value, found.error, len(found.influence)
    if not np.isfinite(value) or not np.isfinite(error):
        return Estimate(value)
    reach = np.array([-1, 1]) * stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    if STANDARDS[name].scale == "log":
        return Estimate(value, *(value * np.exp(reach / (value or 1))).tolist())
    inside = np.clip(value, 0.5 / n, 1 - 0.5 / n)
    return Estimate(
        value, *special.expit(special.logit(inside) + reach / (inside * (1 - inside))).tolist()
    )


def difference(a: Measured, b: Measured) -> Difference:
    """A − B of two models on the same images."""
    both = Measured(a.value - b.value, a.influence - b.influence)
    error, freedom = both.error, len(both.influence) - 1
    if not np.isfinite(both.value) or not error:
        return Difference(
            both.value, NAN, NAN, NAN if np.isnan(both.value) else float(both.value == 0)
        )
    reach = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    p = float(2 * stats.t.sf(abs(both.value) / error, freedom))
    return Difference(
        both.value, both.value - reach, both.value + reach, p, visible=DETECTABLE_IN_ERRORS * error
    )


def pitman_morgan(residuals_a: np.ndarray, residuals_b: np.ndarray) -> float:
    """p-value of equal variances of two models' residuals (N,) on the same images (Pitman; Morgan, Biometrika 31,
    1939): equal where their sum and difference are uncorrelated. Exact for normal residuals; heavy tails make it see
    too much: go by the paired test of `difference`. The F-test (P.1401, 7.6.4), for independent ones, sees less."""
    plus, minus = residuals_a + residuals_b, residuals_a - residuals_b
    known = len(plus) >= 4 and np.ptp(plus) > 0 and np.ptp(minus) > 0
    return float(stats.pearsonr(plus, minus).pvalue) if known else NAN


def over_sets(name: str, found: Sequence[Measured]) -> Measured:
    """One figure of several data sets, each weighing the same (P.1401, 7.8.1): the root of the mean square of errors,
    the mean of ratios. The sets are independent, so that their images' influences stand side by side."""
    values, sizes = (
        np.array([each.value for each in found]),
        [len(each.influence) for each in found],
    )
    rooted = name in ("rmse", "rmse_star")
    value = float(np.sqrt(np.mean(values**2)) if rooted else np.mean(values))
    weights = (values / value if rooted and value else np.ones(len(found))) / len(found)
    parts = [w * sum(sizes) / n * each.influence for w, n, each in zip(weights, sizes, found)]
    return Measured(value, np.concatenate(parts))
