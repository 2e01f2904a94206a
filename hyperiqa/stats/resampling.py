"""Bootstrap over images: figures of merit of many resamples at once."""

from collections.abc import Callable, Iterator

import numpy as np

from hyperiqa.stats import metrics

RESAMPLES = 10_000


_CHUNK, _PAIR_CHUNK = (
    32,
    512,
)  # resamples at a time: few enough that their arrays stay in the processor's cache


Figures = Callable[[np.ndarray], np.ndarray]


def resample_counts(
    images: int, resamples: int, seed: int, chunk: int = _CHUNK
) -> Iterator[np.ndarray]:
    """Counts (images, up to `chunk`) of resamples with replacement: each column sums to `images`.
    A pure function of its arguments, so that two runs on the same images see the same resamples."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        columns = min(chunk, resamples - start)
        cells = random.integers(0, images, (images, columns), dtype=np.int64) * columns + np.arange(
            columns
        )
        yield (
            np.bincount(cells.ravel(), minlength=images * columns)
            .reshape(images, columns)
            .astype(np.float64)
        )


def bootstrap(
    metric: str, predictions: np.ndarray, mos: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """A figure of metrics.FIGURES on each resample: predictions (K, N), mos (N,) -> (resamples, K); nan: undefined."""
    of = _FIGURES.get(metric) or (lambda *scores: _one_by_one(metric, *scores))
    figures = of(np.atleast_2d(predictions).astype(np.float64), np.asarray(mos, np.float64))
    chunk = _PAIR_CHUNK if metric == "krcc" else _CHUNK
    return np.concatenate(
        [figures(counts).T for counts in resample_counts(len(mos), resamples, seed, chunk)]
    )


def _ties(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each value's place (N,) among the distinct ones, the values' order (N,), and where each distinct one begins."""
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return place, np.argsort(place, kind="stable"), np.cumsum(sizes) - sizes


def _ranker(values: np.ndarray) -> Figures:
    """Counts (N, b) -> each image's mean rank in the resample, less the mean of all ranks."""
    place, order, starts = _ties(values)

    def ranks(counts: np.ndarray) -> np.ndarray:
        size = (
            counts[order]
            if len(starts) == len(values)
            else np.add.reduceat(counts[order], starts, axis=0)
        )
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
        sums = (
            (np.einsum("nb,nb->b", x, weighted), np.einsum("nb,nb,nb->b", x, x, counts))
            for x in ranks
        )
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
    place_mos, n = _ties(mos)[0], len(mos)

    def tied(place: np.ndarray) -> Figures:
        """Counts -> the number of the resample's ordered pairs that have one place."""
        _, order, starts = _ties(place)
        sizes = (
            (lambda counts: counts)
            if len(starts) == n
            else lambda c: np.add.reduceat(c[order], starts, axis=0)
        )
        return lambda counts: np.einsum("nb,nb->b", of := sizes(counts), of, dtype=np.float64)

    # Concordant less discordant pairs are all pairs less those tied in one or in both and twice the discordant ones.
    tied_mos, runs = tied(place_mos), []
    for place in (_ties(scores)[0] for scores in predictions):
        order = np.lexsort((place, place_mos))
        runs.append((tied(place), tied(place * n + place_mos), order, _inversions(place[order])))

    def of_few(counts: np.ndarray) -> np.ndarray:
        pairs_mos, found = n**2 - tied_mos(counts), []
        for tied_scores, tied_both, order, inversions in runs:
            discordant, pairs = 2 * inversions(counts[order]), n**2 - tied_scores(counts)
            both = pairs_mos + pairs - n**2 + tied_both(counts) - 2 * discordant
            found.append(_ratio(both, pairs_mos * pairs))
        return np.stack(found)

    def figures(counts: np.ndarray) -> np.ndarray:
        # Single precision holds the whole numbers up to 2^24 exactly.
        few = np.split(counts, range(_CHUNK, counts.shape[1], _CHUNK), axis=1)
        return np.concatenate(
            [of_few(np.ascontiguousarray(each, np.float32)) for each in few], axis=1
        )

    return figures


def _inversions(place: np.ndarray, leaf: int = 128) -> Figures:
    """Counts (N, b) -> how many pairs of a resample fall from the earlier to the later: Knight's merge sort (JASA 61,
    1966). The order is the same in all resamples, so that each merge is one cumulative sum of their counts."""
    n = len(place)
    padding = -n % leaf
    padded = np.concatenate([place, np.full(padding, n)]).reshape(-1, leaf)
    # Within the leaves, one by one: which images before each one have a later place than it.
    before = np.tril(padded[:, :, None] < padded[:, None, :]).astype(np.float32)
    merges, width = [], leaf
    while width < n:
        node, later = np.arange(n) // (2 * width), np.arange(n) // width % 2
        order = np.lexsort((later, place, node))
        right = np.flatnonzero(later[order])
        end = np.minimum((node[right] + 1) * 2 * width, n) - 1  # a node's images keep its places
        merges.append((order, (later[order] == 0).astype(np.float32)[:, None], right, end))
        width *= 2

    def inversions(counts: np.ndarray) -> np.ndarray:
        leaves = np.pad(counts, ((0, padding), (0, 0))).reshape(-1, leaf, counts.shape[1])
        found = ((before @ leaves) * leaves).sum((0, 1), dtype=np.float64)
        for order, left, right, end in merges:
            size = counts[order]
            earlier = np.cumsum(size * left, axis=0)
            found += ((earlier[end] - earlier[right]) * size[right]).sum(0, dtype=np.float64)
        return found

    return inversions


def _rmse(predictions: np.ndarray, mos: np.ndarray) -> Figures:
    squares = (predictions - mos) ** 2
    return lambda counts: np.sqrt(squares @ counts / len(mos))


def _one_by_one(metric: str, predictions: np.ndarray, mos: np.ndarray) -> Figures:
    """Any figure of metrics.FIGURES, resample by resample: for those that have no faster form here."""
    of = metrics.FIGURES[metric].of

    def figures(counts: np.ndarray) -> np.ndarray:
        drawn = [np.repeat(np.arange(len(mos)), column.astype(int)) for column in counts.T]
        return np.array(
            [[of(scores[images], mos[images]) for images in drawn] for scores in predictions]
        )

    return figures


_FIGURES = {"srcc": _srcc, "plcc": _plcc, "krcc": _krcc, "rmse": _rmse}


def _ratio(covariance: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """A correlation; nan where a spread is zero but for rounding."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spreads > 1e-24, np.clip(covariance / np.sqrt(spreads), -1, 1), np.nan)
