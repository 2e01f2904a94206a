"""Figures of merit: agreement of predicted scores with opinion scores. Each takes two sequences of N numbers
(prediction, MOS) and returns a float; where it is undefined (fewer than two images, constant or non-finite predictions)
nan, without warning. `FIGURES`, at the end, names them: log columns, records, medians, tables and curves follow it."""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats


def _finite(prediction, mos) -> tuple[np.ndarray, np.ndarray] | None:
    prediction, mos = np.asarray(prediction, np.float64), np.asarray(mos, np.float64)
    if prediction.shape != mos.shape or prediction.ndim != 1:
        raise ValueError(
            f"expected two vectors of one length, found {prediction.shape} and {mos.shape}"
        )
    return (prediction, mos) if len(mos) >= 2 and np.isfinite([prediction, mos]).all() else None


def _defined(prediction, mos) -> tuple[np.ndarray, np.ndarray] | None:
    pair = _finite(prediction, mos)
    return None if pair is None or np.ptp(pair[0]) == 0 or np.ptp(pair[1]) == 0 else pair


def plcc(prediction, mos) -> float:
    """Pearson's linear correlation, -1..1, without a fitted nonlinearity."""
    pair = _defined(prediction, mos)
    if pair is None:
        return math.nan
    x, y = (v - v.mean() for v in pair)
    # Scaled first: the squares of tiny or huge scores must not leave the range of a double.
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def srcc(prediction, mos) -> float:
    """Spearman's rank correlation, -1..1; ties get their mean rank (as scipy.stats.spearmanr)."""
    pair = _defined(prediction, mos)
    return math.nan if pair is None else plcc(*(stats.rankdata(v) for v in pair))


def krcc(prediction, mos) -> float:
    """Kendall's rank correlation, -1..1: tau-b, which allows for ties (as scipy.stats.kendalltau)."""
    pair = _defined(prediction, mos)
    return math.nan if pair is None else float(stats.kendalltau(*pair).statistic)


def rmse(prediction, mos) -> float:
    """Root mean square error in the units of the MOS, 0 or more; constant predictions have one too."""
    pair = _finite(prediction, mos)
    return (
        math.nan
        if pair is None
        else float(np.linalg.norm(pair[0] - pair[1]) / np.sqrt(len(pair[0])))
    )


def logistic(parameters, prediction) -> np.ndarray:
    """The four-parameter logistic of VQEG's final report (2000), (N,) scores -> (N,) on the scale of the MOS.
    parameters (4,): asymptotes b1 and b2, centre b3, width b4 of `b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|))`."""
    upper, lower, centre, width = parameters
    x = np.asarray(prediction, np.float64)
    return lower + (upper - lower) * special.expit((x - centre) / max(abs(width), 1e-300))


def fit_logistic(prediction, mos) -> np.ndarray | None:
    """Least-squares parameters (4,) of `logistic`; None where undefined, or under five images: four fit any curve."""
    pair = _defined(prediction, mos)
    if pair is None or len(pair[0]) < 5:
        return None
    (x_mean, x_scale), (y_mean, y_scale) = ((v.mean(), v.std()) for v in pair)
    x, y = (pair[0] - x_mean) / x_scale, (pair[1] - y_mean) / y_scale
    slope = plcc(x, y)
    # One start is the literature's; the other, a wide curve around the regression line, serves falling scores.
    starts = [np.array([y.max(), y.min(), 0.0, 1.0]), np.array([4 * slope, -4 * slope, 0.0, 2.0])]
    fits = [
        optimize.least_squares(lambda p: logistic(p, x) - y, start, method="lm") for start in starts
    ]
    upper, lower, centre, width = min(fits, key=lambda fit: fit.cost).x
    asymptotes = upper * y_scale + y_mean, lower * y_scale + y_mean
    return np.array([*asymptotes, centre * x_scale + x_mean, abs(width) * x_scale])


def fitted(prediction, mos) -> np.ndarray | None:
    """Predictions (N,) mapped to the scale of the MOS by the fitted logistic; None where it is undefined."""
    parameters = fit_logistic(prediction, mos)
    return None if parameters is None else logistic(parameters, prediction)


@dataclass(frozen=True)
class Figure:
    """A figure: how it is computed, whether a run records it of every epoch, which way is good, if a fit changes it."""

    of: Callable[..., float]
    recorded: bool = False
    higher_is_better: bool = True
    fitted: bool = False


FIGURES = {
    "srcc": Figure(srcc, recorded=True),
    "plcc": Figure(plcc, recorded=True, fitted=True),
    "krcc": Figure(krcc),
    "rmse": Figure(rmse, higher_is_better=False, fitted=True),
}
RECORDED = tuple(name for name, figure in FIGURES.items() if figure.recorded)


def recorded(prediction, mos) -> dict[str, float]:
    return {name: FIGURES[name].of(prediction, mos) for name in RECORDED}


def figure_of(name: str) -> tuple[str, str]:
    """`srcc` -> (test, srcc), `spaq_srcc` -> (spaq, srcc): a figure's data set and the figure."""
    part, _, figure = name.rpartition("_")
    return part or "test", figure


def medians(rounds: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """Medians over the rounds of their best epochs' figures, by part; undefined figures are left out."""
    parts = dict.fromkeys(
        part for each in rounds for part, figures in each.items() if isinstance(figures, Mapping)
    )
    found: dict[str, dict[str, float]] = {}
    for part, name in itertools.product(parts, RECORDED):
        values = [
            each[part][name] for each in rounds if part in each and not math.isnan(each[part][name])
        ]
        if values:
            found.setdefault(part, {})[name] = statistics.median(values)
    return found
