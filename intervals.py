"""How sure a figure is: intervals for one run, for the difference of two, for groups of seeds.

With predictions: the bootstrap over images (Efron & Tibshirani, An Introduction to the Bootstrap, 1993). A
resample of N images is held as its counts, how often each image was drawn, so that a figure of all resamples
is a few matrix operations. Duplicated images are ties; every figure treats them as scipy.stats would.
Without: intervals from the number of images alone, for which the literature's formulas stand."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

import metrics

NAN = float("nan")
RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK, _PAIR_CHUNK = 32, 512  # resamples at a time: few enough that their arrays stay in the processor's cache

Figures = Callable[[np.ndarray], np.ndarray]
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
    """A − B with its interval and two-sided p-value; approximate: not from resampled images."""

    value: float
    low: float
    high: float
    p: float
    approximate: bool = False


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


def unpaired_difference(a: float, b: float, interval: Formula, images_a: int, images_b: int) -> Difference:
    """Difference of two correlations known by value and number of images alone; interval: fisher or bonett_wright.
    The interval is Zou's (Psychological Methods 12, 2007) for independent samples, and p its inversion; on the
    same images it is wider than a paired one."""
    (low_a, high_a), (low_b, high_b) = interval(a, images_a), interval(b, images_b)
    low = a - b - np.hypot(a - low_a, high_b - b)
    high = a - b + np.hypot(high_a - a, b - low_b)
    # The interval's half that reaches towards zero is as long as norm.ppf(0.975) standard errors.
    reach = a - b - low if a > b else high - (a - b)
    score = abs(a - b) / reach * stats.norm.ppf((1 + LEVEL) / 2) if reach else 0.0
    return Difference(a - b, float(low), float(high), float(2 * stats.norm.sf(score)), approximate=True)


def resample_counts(images: int, resamples: int, seed: int, chunk: int = _CHUNK) -> Iterator[np.ndarray]:
    """Counts (images, up to `chunk`) of resamples with replacement: each column sums to `images`.
    A pure function of its arguments, so that two runs on the same images see the same resamples."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        columns = min(chunk, resamples - start)
        drawn = random.integers(0, images, (images, columns), dtype=np.int64)
        cells = (drawn * columns + np.arange(columns)).ravel()
        yield np.bincount(cells, minlength=images * columns).reshape(images, columns).astype(np.float64)


def bootstrap(
    metric: str, predictions: np.ndarray, mos: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """A figure of metrics.FIGURES on each resample: predictions (K, N), mos (N,) -> (resamples, K); nan: undefined."""
    of = _FIGURES.get(metric) or (lambda *scores: _one_by_one(metric, *scores))
    figures = of(np.atleast_2d(predictions).astype(np.float64), np.asarray(mos, np.float64))
    chunk = _PAIR_CHUNK if metric == "krcc" else _CHUNK
    return np.concatenate([figures(counts).T for counts in resample_counts(len(mos), resamples, seed, chunk)])


def _ties(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each value's place (N,) among the distinct ones, the values' order (N,), and where each distinct one begins."""
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return place, np.argsort(place, kind="stable"), np.cumsum(sizes) - sizes


def _ranker(values: np.ndarray) -> Figures:
    """Counts (N, b) -> each image's mean rank in the resample, less the mean of all ranks."""
    place, order, starts = _ties(values)

    def ranks(counts: np.ndarray) -> np.ndarray:
        size = counts[order]
        if len(starts) < len(values):
            size = np.add.reduceat(size, starts, axis=0)
        rank = np.cumsum(size, axis=0)
        rank -= (size - 1) / 2 + (len(values) + 1) / 2
        return rank[place]

    return ranks


def _srcc(predictions: np.ndarray, mos: np.ndarray) -> Figures:
    rank_mos, rankers = _ranker(mos), [_ranker(scores) for scores in predictions]

    def figures(counts: np.ndarray) -> np.ndarray:
        y = rank_mos(counts)
        weighted = y * counts
        spread = np.einsum("nb,nb->b", weighted, y)
        ranks = (ranker(counts) for ranker in rankers)
        sums = ((np.einsum("nb,nb->b", x, weighted), np.einsum("nb,nb,nb->b", x, x, counts)) for x in ranks)
        return np.stack([_ratio(both, own * spread) for both, own in sums])

    return figures


def _plcc(predictions: np.ndarray, mos: np.ndarray) -> Figures:
    x = predictions - predictions.mean(1, keepdims=True)
    x = x / np.abs(x).max(1, keepdims=True).clip(1e-300)
    y = (mos - mos.mean()) / max(np.abs(mos - mos.mean()).max(), 1e-300)

    def figures(counts: np.ndarray) -> np.ndarray:
        n = len(mos)
        mean_x, mean_y = x @ counts / n, y @ counts / n
        spread_x, spread_y = x**2 @ counts / n - mean_x**2, y**2 @ counts / n - mean_y**2
        return _ratio((x * y) @ counts / n - mean_x * mean_y, spread_x * spread_y)

    return figures


def _krcc(predictions: np.ndarray, mos: np.ndarray) -> Figures:
    def order_of_pairs(values: np.ndarray) -> np.ndarray:
        place = _ties(values)[0].astype(np.float32)
        order = place[:, None] - place
        return np.sign(order, out=order)

    def untied(values: np.ndarray) -> Figures:
        """Counts -> twice the number of the resample's pairs that differ in value."""
        _, order, starts = _ties(values)
        return lambda counts: len(values) ** 2 - (np.add.reduceat(counts[order], starts, axis=0) ** 2).sum(0)

    # Concordant less discordant pairs of a resample are c'Sc / 2, S the product of both orders (N, N). Its
    # entries are -1, 0, 1 and the products' sums whole numbers of at most N, which float32 holds exactly.
    order_mos, untied_mos = order_of_pairs(mos), untied(mos)
    runs = [(order_of_pairs(scores) * order_mos, untied(scores)) for scores in predictions]

    def figures(counts: np.ndarray) -> np.ndarray:
        single, pairs_mos = counts.astype(np.float32), untied_mos(counts)
        sums = (np.einsum("nb,nb->b", (agreement @ single).astype(np.float64), counts) for agreement, _ in runs)
        return np.stack([_ratio(sum_, pairs_mos * pairs(counts)) for sum_, (_, pairs) in zip(sums, runs)])

    return figures


def _rmse(predictions: np.ndarray, mos: np.ndarray) -> Figures:
    squares = (predictions - mos) ** 2
    return lambda counts: np.sqrt(squares @ counts / len(mos))


def _one_by_one(metric: str, predictions: np.ndarray, mos: np.ndarray) -> Figures:
    """Any figure of metrics.FIGURES, resample by resample: for those that have no faster form here."""
    of = metrics.FIGURES[metric].of

    def figures(counts: np.ndarray) -> np.ndarray:
        drawn = [np.repeat(np.arange(len(mos)), column.astype(int)) for column in counts.T]
        return np.array([[of(scores[images], mos[images]) for images in drawn] for scores in predictions])

    return figures


_FIGURES = {"srcc": _srcc, "plcc": _plcc, "krcc": _krcc, "rmse": _rmse}


def _ratio(covariance: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """A correlation; nan where a spread is zero but for rounding."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spreads > 1e-24, np.clip(covariance / np.sqrt(spreads), -1, 1), np.nan)


def percentile_interval(draws: np.ndarray) -> tuple[float, float]:
    """95 % interval from bootstrap draws (B,): their 2.5th and 97.5th percentile; (nan, nan) without a defined draw."""
    defined = draws[np.isfinite(draws)]
    return tuple(np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()) if len(defined) else (NAN, NAN)


def paired_difference(value: float, draws_a: np.ndarray, draws_b: np.ndarray) -> Difference:
    """A − B of two runs on the same images; draws (B,) of both on the same resamples; value: A − B as measured.
    The p-value is the smallest level at which the percentile interval leaves zero out, counted as
    (k + 1) / (B + 1) (Davison & Hinkley, Bootstrap Methods and their Application, 1997) so that it is never 0."""
    draws = draws_a - draws_b
    draws = draws[np.isfinite(draws)]
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    return Difference(value, *percentile_interval(draws), p=float(min(1.0, 2 * (tail + 1) / (len(draws) + 1))))


def group_difference(
    figures_a: Sequence[float], figures_b: Sequence[float], draws_a: np.ndarray, draws_b: np.ndarray, seed: int = 0
) -> Difference:
    """Difference of the means of two groups of seeds, by a bootstrap over images and seeds together.
    figures (a,), (b,): each seed's figure on all images; draws (B, a), (B, b): on the same resamples of images,
    each of which also draws seeds. Two corrections: few seeds drawn from few vary too little by (k-1)/k (Rao & Wu,
    JASA 83, 1988), and the part of the seeds' spread that finitely many images bring by chance is taken out of it.
    Interval and p-value are Student's with Satterthwaite's degrees of freedom, of which images have no shortage.
    A group of one seed is taken to spread like the other; two such are only as sure as their images."""
    random = np.random.default_rng([seed, len(figures_a), len(figures_b)])
    sides = [(np.asarray(figures, float), draws) for figures, draws in ((figures_a, draws_a), (figures_b, draws_b))]
    spreads = [np.var(figures, ddof=1) if len(figures) > 1 else 0.0 for figures, _ in sides]
    deviations = [_seed_deviations(*side, spread) for side, spread in zip(sides, spreads)]
    means, uncertain = [draws.mean(1) for _, draws in sides], [0.0, 0.0]
    for i, (figures, draws) in enumerate(sides):
        lender = i if len(figures) > 1 else 1 - i
        if len(deviations[lender]) > 1:
            means[i] += deviations[lender][random.integers(0, len(deviations[lender]), draws.shape)].mean(1)
            uncertain[lender] += spreads[lender] / len(figures)
    squares = sum(part**2 / (len(side) - 1) for part, (side, _) in zip(uncertain, sides) if part)
    value, variance = float(np.mean(figures_a) - np.mean(figures_b)), float(np.nanvar(means[0] - means[1]))
    fewest = min(len(side) for side, _ in sides if len(side) > 1) - 1 if squares else np.inf
    return _student(value, variance, max(fewest, variance**2 / squares) if squares else np.inf)


def _seed_deviations(figures: np.ndarray, draws: np.ndarray, spread: float) -> np.ndarray:
    """Each seed's deviation (k,) from its group's mean, scaled to the variance that seeds have beyond images'.
    spread: the variance of the figures (k,), 0 for a single one."""
    count = len(figures)
    if spread == 0:
        return np.zeros(count)
    by_images = np.nanvar(draws - draws.mean(1, keepdims=True), axis=0).sum() / (count - 1)
    own = max(0.0, 1 - by_images / spread)
    return np.sqrt(own * count / (count - 1)) * (figures - figures.mean())


def welch_difference(figures_a: Sequence[float], figures_b: Sequence[float]) -> Difference:
    """The same from the figures alone: Welch's t (Biometrika 34, 1947), which knows seeds alone; nan for one seed."""
    value = float(np.mean(figures_a) - np.mean(figures_b))
    if min(len(figures_a), len(figures_b)) < 2:
        return Difference(value, NAN, NAN, NAN, approximate=True)
    parts = [(np.var(figures, ddof=1) / len(figures), len(figures) - 1) for figures in (figures_a, figures_b)]
    variance = float(sum(part for part, _ in parts))
    squares = float(sum(part**2 / freedom for part, freedom in parts))
    return _student(value, variance, variance**2 / squares if squares else np.inf, approximate=True)


def _student(value: float, variance: float, freedom: float, approximate: bool = False) -> Difference:
    error = np.sqrt(variance)
    reach = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    p = 2 * stats.t.sf(abs(value) / error, freedom) if error else float(value == 0)
    return Difference(value, float(value - reach), float(value + reach), float(p), approximate)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for testing several differences at once (Holm, Scand. J. Statist. 6, 1979), in their order."""
    corrected, largest = [NAN] * len(p_values), 0.0
    tested = sorted((i for i, p in enumerate(p_values) if not np.isnan(p)), key=p_values.__getitem__)
    for rank, i in enumerate(tested):
        corrected[i] = largest = max(largest, min(1.0, (len(tested) - rank) * p_values[i]))
    return corrected
