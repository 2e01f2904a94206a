"""The figures of the standards on objective quality models, and of Krasula et al., with intervals and paired tests.

ITU-T P.1401 (01/2020), 7.5 to 7.8: errors after a monotonic mapping, outliers, and the same over several data sets.
ITU-T J.149 (03/2004), 4.3: resolving power (Pinson & Wolf). Krasula, Fliegel, Le Callet & Klíma, On the accuracy of
objective image and video quality models (QoMEX 2016): telling different pairs from similar ones, better from worse.

Each figure comes with how much each image moves it (its influence function), and all intervals and tests follow from
that: the infinitesimal jackknife (Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982). The standards'
own tests take two models for independent samples, and pairs of images for independent of each other; on the same
images neither is true. Influences of two models on the same images are simply subtracted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

import metrics
from intervals import FOUND, LEVEL, NAN, Difference, Estimate

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
        """The standard error."""
        n = len(self.influence)
        return float(np.sqrt((self.influence**2).sum() / (n * (n - 1)))) if n > 1 else NAN


@dataclass(frozen=True)
class Standard:
    """A figure: of(mapped scores, scores that rise with quality, MOS, standard errors of it), all (N,); whether it
    needs the errors; the title; which way is good; and the scale on which its interval is symmetric."""

    of: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Measured]
    title: str
    votes: bool = False
    higher_is_better: bool = False
    scale: str = "log"


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
    n = len(squares)
    value = float(np.sqrt(squares.sum() / (n - MAPPED)))
    spare = n / (n - MAPPED)  # once for the figure, once because the mapping bends towards each image
    return Measured(value, spare * (spare * squares - value**2) / (2 * value or 1))


def _share(hits: np.ndarray) -> Measured:
    return Measured(float(hits.mean()), hits - hits.mean())


def rmse(mapped: np.ndarray, scores: np.ndarray, mos: np.ndarray, error: np.ndarray) -> Measured:
    return _root_mean((mapped - mos) ** 2)


def rmse_star(mapped: np.ndarray, scores: np.ndarray, mos: np.ndarray, error: np.ndarray) -> Measured:
    """P.1401, 7.7: of errors only what exceeds the 95 % interval of the MOS counts."""
    return _root_mean(np.maximum(0, np.abs(mapped - mos) - CI * error) ** 2)


def outlier_ratio(mapped: np.ndarray, scores: np.ndarray, mos: np.ndarray, error: np.ndarray) -> Measured:
    """P.1401, 7.5.2.2: the share of images whose error exceeds the 95 % interval of their MOS."""
    return _share((np.abs(mapped - mos) > CI * error).astype(float))


def _pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(n, 1)


def _of_images(n: int, pairs: tuple[np.ndarray, np.ndarray], values: np.ndarray) -> np.ndarray:
    """The sums (N,) over each image's pairs."""
    return np.bincount(pairs[0], values, n) + np.bincount(pairs[1], values, n)


def _auc(values: np.ndarray, positive: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], n: int) -> Measured:
    """Area under the ROC curve by which values (P,) of pairs of images tell the positive from the others."""
    many, few = int(positive.sum()), int((~positive).sum())
    if not many or not few:
        return Measured(NAN, np.full(n, NAN))
    ranks = stats.rankdata(values)
    below = np.empty(len(values))  # of the other kind's pairs, the share with lower values (ties: half)
    for kind, others in ((positive, few), (~positive, many)):
        below[kind] = (ranks[kind] - stats.rankdata(values[kind])) / others
    value = float(below[positive].mean())
    influence = np.where(positive, (below - value) / many, (1 - below - value) / few)
    return Measured(value, n * _of_images(n, pairs, influence))


def _krasula(scores: np.ndarray, mos: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Of each pair of images: the difference in score, the significance of that in MOS (-1, 0, 1), and which."""
    pairs = i, j = _pairs(len(mos))
    significant = np.abs(mos[i] - mos[j]) > CI * np.hypot(error[i], error[j])
    return scores[i] - scores[j], np.sign(mos[i] - mos[j]) * significant, pairs


def different_similar(mapped: np.ndarray, scores: np.ndarray, mos: np.ndarray, error: np.ndarray) -> Measured:
    """Krasula's AUC of pairs whose MOS differ significantly against the others, by their difference in score."""
    difference, sign, pairs = _krasula(scores, mos, error)
    return _auc(np.abs(difference), sign != 0, pairs, len(mos))


def better_worse(mapped: np.ndarray, scores: np.ndarray, mos: np.ndarray, error: np.ndarray) -> Measured:
    """Krasula's AUC of better against worse among the pairs that differ, each taken in both orders."""
    difference, sign, (i, j) = _krasula(scores, mos, error)
    of = sign != 0
    both = np.concatenate([difference[of], -difference[of]])
    ends = np.concatenate([i[of], j[of]]), np.concatenate([j[of], i[of]])
    return _auc(both, np.concatenate([sign[of], -sign[of]]) > 0, ends, len(mos))


def accuracy(mapped: np.ndarray, scores: np.ndarray, mos: np.ndarray, error: np.ndarray) -> Measured:
    """Krasula's share of the pairs that differ which the model puts in the right order (a tie: half)."""
    difference, sign, (i, j) = _krasula(scores, mos, error)
    of, n = sign != 0, len(mos)
    if not of.any():
        return Measured(NAN, np.full(n, NAN))
    right = (np.sign(difference[of]) * sign[of] + 1) / 2
    return Measured(float(right.mean()), n * _of_images(n, (i[of], j[of]), right - right.mean()) / len(right))


def resolving_power(mapped: np.ndarray, scores: np.ndarray, mos: np.ndarray, error: np.ndarray) -> Measured:
    """J.149, 4.3: the difference in mapped score, in units of the MOS, from which on viewers tell two images apart
    with 95 % confidence. nan where they never do. As bins and mapping depend on all images, it is measured anew
    without each of some groups of images, whose influence that is (the jackknife of groups)."""
    groups = np.arange(len(mos)) * JACKKNIFED // len(mos)
    value = _crossing(mapped, mos, error)
    left = [_crossing(monotonic_cubic(scores[of], mos[of]), mos[of], error[of]) for of in _without(groups)]
    return Measured(value, (JACKKNIFED - 1) * (np.mean(left) - np.array(left)))


def _without(groups: np.ndarray) -> Iterator[np.ndarray]:
    yield from (groups != group for group in range(JACKKNIFED))


def _crossing(mapped: np.ndarray, mos: np.ndarray, error: np.ndarray) -> float:
    """Where the mean confidence of pairs in 19 bins, each two twentieths of the largest difference wide, is .95."""
    i, j = _pairs(len(mos))
    difference = mapped[i] - mapped[j]
    confidence = special.ndtr(np.sign(difference) * (mos[i] - mos[j]) / np.hypot(error[i], error[j]).clip(1e-300))
    step = np.abs(difference).max() / J149_BINS or 1.0
    place = np.minimum(np.abs(difference) / step, J149_BINS - 1e-9).astype(int)
    sums, counts = (np.bincount(place, weights, J149_BINS) for weights in (confidence, None))
    with np.errstate(invalid="ignore"):
        means = (sums[1:] + sums[:-1]) / (counts[1:] + counts[:-1])
    for k, (low, high) in enumerate(zip(means, means[1:])):
        if low < LEVEL <= high:
            return float((k + 1 + (LEVEL - low) / (high - low)) * step)
    return NAN


STANDARDS = {
    "rmse": Standard(rmse, "RMSE"),
    "rmse_star": Standard(rmse_star, "RMSE*", votes=True),
    "outlier_ratio": Standard(outlier_ratio, "outlier\nratio", votes=True, scale="logit"),
    "auc_ds": Standard(different_similar, "AUC\ndiff/similar", True, True, "logit"),
    "auc_bw": Standard(better_worse, "AUC\nbetter/worse", True, True, "logit"),
    "accuracy": Standard(accuracy, "accuracy\nof order", True, True, "logit"),
    "resolving_power": Standard(resolving_power, "resolving\npower", votes=True),
}


def measure(scores: np.ndarray, mos: np.ndarray, error: np.ndarray | None) -> dict[str, Measured]:
    """The figures of scores (N,) that rise with quality, as far as the set has votes: error (N,) or None."""
    if len(mos) < 10 or np.ptp(scores) == 0:
        return {}
    mapped, error = monotonic_cubic(scores, mos), np.zeros(0) if error is None else error
    chosen = {name: each for name, each in STANDARDS.items() if len(error) or not each.votes}
    return {name: each.of(mapped, scores, mos, error) for name, each in chosen.items()}


def estimate(name: str, found: Measured) -> Estimate:
    """The figure with its 95 % interval, on the scale that keeps it in its range."""
    value, reach, n = found.value, stats.t.ppf((1 + LEVEL) / 2, max(len(found.influence) - 1, 1)), len(found.influence)
    if not np.isfinite(value) or not np.isfinite(found.error):
        return Estimate(value)
    if STANDARDS[name].scale == "log":
        factor = np.exp(reach * found.error / value) if value else 1.0
        return Estimate(value, value / factor, value * factor)
    inside = np.clip(value, 0.5 / n, 1 - 0.5 / n)
    bounds = special.expit(special.logit(inside) + np.array([-1, 1]) * reach * found.error / (inside * (1 - inside)))
    return Estimate(value, *bounds.tolist())


def difference(a: Measured, b: Measured) -> Difference:
    """A − B of two models on the same images."""
    both = Measured(a.value - b.value, a.influence - b.influence)
    error, freedom = both.error, len(both.influence) - 1
    if not np.isfinite(both.value) or not error:
        return Difference(both.value, NAN, NAN, float(both.value == 0) if both.value == both.value else NAN)
    reach = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    p = float(2 * stats.t.sf(abs(both.value) / error, freedom))
    return Difference(both.value, both.value - reach, both.value + reach, p, visible=FOUND * error)


def pitman_morgan(residuals_a: np.ndarray, residuals_b: np.ndarray) -> float:
    """p-value of equal variances of two models' residuals (N,) on the same images (Pitman; Morgan, Biometrika 31,
    1939): equal where their sum and difference are uncorrelated. Exact for normal residuals; heavy tails make it see
    too much, so that the paired test of `difference` is the one to go by. The F-test (P.1401, 7.6.4) takes the
    residuals for independent and sees too little."""
    plus, minus = residuals_a + residuals_b, residuals_a - residuals_b
    if len(plus) < 4 or np.ptp(plus) == 0 or np.ptp(minus) == 0:
        return NAN
    return float(stats.pearsonr(plus, minus).pvalue)


def over_sets(name: str, found: Sequence[Measured]) -> Measured:
    """One figure of several data sets, each weighing the same (P.1401, 7.8.1): the root of the mean square of errors,
    the mean of ratios. The sets are independent, so that their images' influences stand side by side."""
    values, sizes = np.array([each.value for each in found]), [len(each.influence) for each in found]
    rooted = name in ("rmse", "rmse_star")
    value = float(np.sqrt(np.mean(values**2)) if rooted else np.mean(values))
    weights = (values / value if rooted and value else np.ones(len(found))) / len(found)
    parts = [w * sum(sizes) / n * each.influence for w, n, each in zip(weights, sizes, found)]
    return Measured(value, np.concatenate(parts))
