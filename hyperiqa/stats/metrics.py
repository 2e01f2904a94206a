"""Figures of merit: how well predicted scores agree with opinion scores.

Each figure takes two sequences of N numbers, the predictions and the MOS, and returns a float.
An undefined figure is nan, without a warning: for fewer than two images, and for constant or
non-finite predictions. `FIGURES`, at the end, lists the figures; log columns, records, medians,
tables and curves follow it.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy


def _defined(prediction, mos, constant: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
    # As vectors of doubles; constant: whether they may be constant.
    prediction = np.asarray(prediction, np.float64)
    mos = np.asarray(mos, np.float64)
    if prediction.shape != mos.shape or prediction.ndim != 1:
        raise ValueError(
            f"expected two vectors of one length, found {prediction.shape} and {mos.shape}"
        )
    if len(mos) < 2 or not np.isfinite([prediction, mos]).all():
        return None
    # A range of zero, not a deviation of zero: the mean of equal numbers may be rounded.
    if not constant and (np.ptp(prediction) == 0 or np.ptp(mos) == 0):
        return None
    return prediction, mos


def fittable(prediction, mos) -> tuple[np.ndarray, np.ndarray] | None:
    """Predictions and MOS as vectors of doubles, or None if no curve can be fitted to them.

    That is the case if one of them is constant, not finite, or too large or small to be squared.
    """
    pair = _defined(prediction, mos)
    if pair is None:
        return None
    with np.errstate(over="ignore"):
        spreads = np.std(pair, axis=1)
    return pair if np.isfinite(spreads).all() and spreads.all() else None


def plcc(prediction, mos) -> float:
    """Pearson's linear correlation, -1..1, without a fitted nonlinearity."""
    pair = _defined(prediction, mos)
    if pair is None:
        return math.nan
    x = pair[0] - pair[0].mean()
    y = pair[1] - pair[1].mean()
    # Scaled first: the squares of tiny or huge scores must not leave the range of a double.
    x = x / np.abs(x).max()
    y = y / np.abs(y).max()
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def srcc(prediction, mos) -> float:
    """Spearman's rank correlation, -1..1; ties get their mean rank (as scipy.stats.spearmanr)."""
    pair = _defined(prediction, mos)
    if pair is None:
        return math.nan
    return plcc(scipy.stats.rankdata(pair[0]), scipy.stats.rankdata(pair[1]))


def krcc(prediction, mos) -> float:
    """Kendall's rank correlation, -1..1: tau-b, with ties allowed (as scipy.stats.kendalltau)."""
    pair = _defined(prediction, mos)
    return math.nan if pair is None else float(scipy.stats.kendalltau(*pair).statistic)


def rmse(prediction, mos) -> float:
    """Root mean square error in the units of the MOS, 0 or more, of constant predictions too."""
    pair = _defined(prediction, mos, constant=True)
    if pair is None:
        return math.nan
    return float(np.linalg.norm(pair[0] - pair[1]) / np.sqrt(len(pair[0])))


def logistic(parameters, prediction) -> np.ndarray:
    """The four-parameter logistic of VQEG's final report (2000).

    It maps scores (N,) to values (N,) on the scale of the MOS. parameters (4,): the asymptotes b1
    and b2, the centre b3 and the width b4 of `b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|))`.
    """
    upper, lower, centre, width = parameters
    x = np.asarray(prediction, np.float64)
    return lower + (upper - lower) * scipy.special.expit((x - centre) / max(abs(width), 1e-300))


def fit_logistic(prediction, mos) -> np.ndarray | None:
    """Least-squares parameters (4,) of `logistic`.

    None if they are not `fittable`, and for fewer than five images: four parameters fit any four.
    """
    pair = fittable(prediction, mos)
    if pair is None or len(pair[0]) < 5:
        return None
    scores, opinions = pair
    x_mean, x_scale = scores.mean(), scores.std()
    y_mean, y_scale = opinions.mean(), opinions.std()
    # Standardised, so that the same starts and tolerances serve every scale of scores.
    x = (scores - x_mean) / x_scale
    y = (opinions - y_mean) / y_scale
    slope = plcc(x, y)
    # One start is the literature's; the other, a wide curve around the regression line, serves
    # falling scores.
    starts = [np.array([y.max(), y.min(), 0.0, 1.0]), np.array([4 * slope, -4 * slope, 0.0, 2.0])]
    fits = [
        scipy.optimize.least_squares(lambda p: logistic(p, x) - y, start, method="lm")
        for start in starts
    ]
    upper, lower, centre, width = min(fits, key=lambda fit: fit.cost).x
    return np.array(
        [
            upper * y_scale + y_mean,
            lower * y_scale + y_mean,
            centre * x_scale + x_mean,
            abs(width) * x_scale,
        ]
    )


def fitted(prediction, mos) -> np.ndarray | None:
    """Predictions (N,) mapped to the MOS by the fitted logistic; None if it is undefined."""
    parameters = fit_logistic(prediction, mos)
    return None if parameters is None else logistic(parameters, prediction)


@dataclass(frozen=True)
class Scale:
    """A scale on which a figure varies equally, whatever its value.

    to, back: functions from the figure to the scale and back. slope: a function from a figure to
    its change per unit of the scale.
    """

    to: Callable
    back: Callable
    slope: Callable

    def unit(self, draws: np.ndarray) -> float:
        """How much the figure changes per unit of the scale, at the mean of these draws of it."""
        slope = float(self.slope(np.nanmean(draws)))
        return slope if slope > 0 else 1.0

    def interval(self, value: float, reach: float) -> tuple[float, float]:
        """The ends (low, high) that lie `reach` (to first order) from a value, within its range."""
        if not self.slope(value) > 0:
            return value, value
        units = reach / self.slope(value)
        return float(self.back(self.to(value) - units)), float(self.back(self.to(value) + units))

    def decline(self, value: float, units: float) -> float:
        """By how much a worse figure differs that is so many units of the scale away.

        Worse figures vary more: of the two figures at this distance, the worse one differs more.
        """
        low, high = self.interval(value, units * self.slope(value))
        return max(value - low, high - value)


# Correlations vary alike on Fisher's scale, errors in proportion to their size.
FISHER = Scale(np.arctanh, np.tanh, lambda value: 1 - value**2)
LOG = Scale(np.log, np.exp, lambda value: value)


@dataclass(frozen=True)
class Figure:
    """A figure of merit and how the tools treat it.

    of: computes it from predictions and MOS. recorded: whether a run records it for every epoch.
    fitted: whether the logistic fit changes it. scale: the scale on which it varies equally.
    """

    of: Callable[..., float]
    recorded: bool = False
    higher_is_better: bool = True
    fitted: bool = False
    scale: Scale = FISHER


FIGURES = {
    "srcc": Figure(srcc, recorded=True),
    "plcc": Figure(plcc, recorded=True, fitted=True),
    "krcc": Figure(krcc),
    "rmse": Figure(rmse, higher_is_better=False, fitted=True, scale=LOG),
}
# What the log's columns, the records and the medians hold.
RECORDED = tuple(name for name, figure in FIGURES.items() if figure.recorded)


def recorded(prediction, mos) -> dict[str, float]:
    """The figures that a run records for every epoch, by name."""
    return {name: FIGURES[name].of(prediction, mos) for name in RECORDED}


def figure_of(name: str) -> tuple[str, str]:
    """A figure's data set and the figure: `srcc` -> (test, srcc), `spaq_srcc` -> (spaq, srcc)."""
    part, _, figure = name.rpartition("_")
    return part or "test", figure


def medians(rounds: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """Medians of the rounds' figures at their best epochs, by part.

    A round in which a figure is undefined does not count for it. A figure that is defined in no
    round is left out.
    """
    # The parts, and what else a round says of its best epoch, such as its number.
    keys = dict.fromkeys(itertools.chain(*rounds))
    medians_by_part: dict[str, dict[str, float]] = {}
    for part, name in itertools.product(keys, RECORDED):
        values = [best[part][name] for best in rounds if isinstance(best.get(part), Mapping)]
        defined = [value for value in values if not math.isnan(value)]
        if defined:
            medians_by_part.setdefault(part, {})[name] = statistics.median(defined)
    return medians_by_part
