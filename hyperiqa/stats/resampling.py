"""Bootstrap over images: figures of merit of many resamples at once.

A resample of N images is held as its counts (N,): how often each image was drawn. Counts of b
resamples stand side by side in a matrix (N, b), and a `Figures` function turns such a matrix into
the figures of K models on each resample, (K, b).
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from hyperiqa.stats import metrics

RESAMPLES = 10_000

# The number of resamples at a time, so few that their arrays stay in the processor's cache.
# Kendall's correlation draws more at once and computes them in parts of `_CHUNK`. The resamples of
# a seed depend on these numbers: with others, every interval would change a little.
_CHUNK = 32
_PAIR_CHUNK = 512

Figures = Callable[[np.ndarray], np.ndarray]


def resample_counts(
    images: int, resamples: int, seed: int, chunk: int = _CHUNK
) -> Iterator[np.ndarray]:
    """Counts (images, up to `chunk`) of resamples with replacement: each column sums to `images`.

    A pure function of its arguments, so that two runs on the same images see the same resamples.
    """
    random = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        columns = min(chunk, resamples - start)
        drawn = random.integers(0, images, (images, columns), dtype=np.int64)
        # One histogram over (image, resample) counts all columns at once.
        cells = (drawn * columns + np.arange(columns)).ravel()
        counts = np.bincount(cells, minlength=images * columns)
        yield counts.reshape(images, columns).astype(np.float64)


def bootstrap(
    metric: str, predictions: np.ndarray, mos: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """A figure of `metrics.FIGURES` on each resample, (resamples, K); nan where it is undefined.

    predictions: (K, N) or (N,) for a single model; mos: (N,).
    """
    predictions = np.atleast_2d(predictions).astype(np.float64)
    mos = np.asarray(mos, np.float64)
    figures = _FIGURES.get(metric, partial(_one_by_one, metric))(predictions, mos)
    chunk = _PAIR_CHUNK if metric == "krcc" else _CHUNK
    all_counts = resample_counts(len(mos), resamples, seed, chunk)
    return np.concatenate([figures(counts).T for counts in all_counts])


def _tie_groups(values: np.ndarray) -> tuple[np.ndarray, Figures]:
    # Each value's place (N,) among the distinct ones, and how often each of these is drawn. The
    # second is a function: counts (N, b) -> the sizes (distinct, b) of the groups of ties.
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")
    starts = np.cumsum(sizes) - sizes

    def sizes_of_groups(counts: np.ndarray) -> np.ndarray:
        # The sum over groups of one image each would be the same, but slow.
        if len(starts) == len(values):
            return counts[order]
        return np.add.reduceat(counts[order], starts, axis=0)

    return place, sizes_of_groups


def _ranker(values: np.ndarray) -> Figures:
    # Counts (N, b) -> each image's mean rank in the resample, less the mean of all ranks.
    place, sizes_of_groups = _tie_groups(values)

    def ranks(counts: np.ndarray) -> np.ndarray:
        sizes = sizes_of_groups(counts)
        # A group that ends at rank r has the mean rank r - (size - 1) / 2.
        rank = np.cumsum(sizes, axis=0)
        rank -= (sizes - 1) / 2 + (len(values) + 1) / 2
        return rank[place]

    return ranks


def _srcc(predictions: np.ndarray, mos: np.ndarray) -> Figures:
    rank_mos = _ranker(mos)
    rankers = [_ranker(scores) for scores in predictions]

    def figures(counts: np.ndarray) -> np.ndarray:
        y = rank_mos(counts)
        weighted = y * counts
        spread_y = np.einsum("nb,nb->b", weighted, y)
        correlations = []
        for ranker in rankers:
            x = ranker(counts)
            spread_x = np.einsum("nb,nb,nb->b", x, x, counts)
            covariance = np.einsum("nb,nb->b", x, weighted)
            correlations.append(_ratio(covariance, spread_x * spread_y))
        return np.stack(correlations)

    return figures


def _plcc(predictions: np.ndarray, mos: np.ndarray) -> Figures:
    # Centred and scaled before the sums of squares, which would else round away small spreads.
    x = predictions - predictions.mean(1, keepdims=True)
    x = x / np.abs(x).max(1, keepdims=True).clip(1e-300)
    y = (mos - mos.mean()) / max(np.abs(mos - mos.mean()).max(), 1e-300)

    def figures(counts: np.ndarray) -> np.ndarray:
        n = len(mos)
        mean_x, mean_y = x @ counts / n, y @ counts / n
        spread_x = x**2 @ counts / n - mean_x**2
        spread_y = y**2 @ counts / n - mean_y**2
        return _ratio((x * y) @ counts / n - mean_x * mean_y, spread_x * spread_y)

    return figures


def _tied_pairs(place: np.ndarray) -> Figures:
    # Counts (N, b) -> (b,): how many ordered pairs of a resample have the same place. An image's
    # pairs with itself and with its copies count too.
    sizes_of_groups = _tie_groups(place)[1]

    def tied(counts: np.ndarray) -> np.ndarray:
        sizes = sizes_of_groups(counts)
        return np.einsum("nb,nb->b", sizes, sizes, dtype=np.float64)

    return tied


def _krcc(predictions: np.ndarray, mos: np.ndarray) -> Figures:
    """Tau-b: concordant minus discordant pairs, over the pairs not tied in scores and in MOS.

    Concordant minus discordant pairs are all pairs minus those tied in one or in both, and minus
    twice the discordant ones. Pairs are ordered, so each counts twice.
    """
    place_mos = np.unique(mos, return_inverse=True)[1]
    n = len(mos)
    tied_mos = _tied_pairs(place_mos)
    models = []
    for scores in predictions:
        place = np.unique(scores, return_inverse=True)[1]
        # By MOS and, among equal MOS, by score: every inversion is then a discordant pair.
        order = np.lexsort((place, place_mos))
        tied_both = _tied_pairs(place * n + place_mos)
        models.append((_tied_pairs(place), tied_both, order, _inversions(place[order])))

    def figures_of_chunk(counts: np.ndarray) -> np.ndarray:
        untied_mos = n**2 - tied_mos(counts)
        correlations = []
        for tied_scores, tied_both, order, inversions in models:
            untied = n**2 - tied_scores(counts)
            # Ordered pairs: each inversion is two discordant ones.
            balance = untied_mos + untied - n**2 + tied_both(counts) - 4 * inversions(counts[order])
            correlations.append(_ratio(balance, untied_mos * untied))
        return np.stack(correlations)

    def figures(counts: np.ndarray) -> np.ndarray:
        chunks = np.split(counts, range(_CHUNK, counts.shape[1], _CHUNK), axis=1)
        # Single precision holds the whole numbers up to 2^24 exactly.
        parts = [figures_of_chunk(np.ascontiguousarray(chunk, np.float32)) for chunk in chunks]
        return np.concatenate(parts, axis=1)

    return figures


def _inversions(place: np.ndarray, leaf: int = 128) -> Figures:
    """Counts (N, b) -> (b,): the pairs of a resample with a lower place in the later image.

    This is Knight's merge sort (JASA 61, 1966). The order is the same in all resamples, so each
    merge is one cumulative sum of their counts.
    """
    n = len(place)
    padding = -n % leaf
    padded = np.concatenate([place, np.full(padding, n)]).reshape(-1, leaf)
    # Within the leaves, one by one: which images before each one have a later place than it.
    before = np.tril(padded[:, :, None] < padded[:, None, :]).astype(np.float32)
    merges = []
    width = leaf
    while width < n:
        node = np.arange(n) // (2 * width)
        in_later_half = np.arange(n) // width % 2
        # Sorted by place within each node; of equal places the earlier half comes first.
        order = np.lexsort((in_later_half, place, node))
        later = np.flatnonzero(in_later_half[order])
        earlier = (in_later_half[order] == 0).astype(np.float32)[:, None]
        # Sorting moves an image within its node alone, so that nodes end where they did.
        end = np.minimum((node[later] + 1) * 2 * width, n) - 1
        merges.append((order, earlier, later, end))
        width *= 2

    def inversions(counts: np.ndarray) -> np.ndarray:
        leaves = np.pad(counts, ((0, padding), (0, 0))).reshape(-1, leaf, counts.shape[1])
        total = ((before @ leaves) * leaves).sum((0, 1), dtype=np.float64)
        for order, earlier, later, end in merges:
            sizes = counts[order]
            passed = np.cumsum(sizes * earlier, axis=0)
            # Images of the earlier half that sort behind one of the later half are inverted.
            total += ((passed[end] - passed[later]) * sizes[later]).sum(0, dtype=np.float64)
        return total

    return inversions


def _rmse(predictions: np.ndarray, mos: np.ndarray) -> Figures:
    squares = (predictions - mos) ** 2
    return lambda counts: np.sqrt(squares @ counts / len(mos))


def _one_by_one(metric: str, predictions: np.ndarray, mos: np.ndarray) -> Figures:
    # Resample by resample: for figures without a faster form.
    figure_of = metrics.FIGURES[metric].of

    def figures(counts: np.ndarray) -> np.ndarray:
        drawn = [np.repeat(np.arange(len(mos)), column.astype(int)) for column in counts.T]
        return np.array([[figure_of(s[i], mos[i]) for i in drawn] for s in predictions])

    return figures


_FIGURES = {"srcc": _srcc, "plcc": _plcc, "krcc": _krcc, "rmse": _rmse}


def _ratio(covariance: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    # A spread that is zero but for rounding leaves the correlation undefined.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spreads > 1e-24, np.clip(covariance / np.sqrt(spreads), -1, 1), np.nan)
