"""What a score means: its percentile, an interval of the MOS, and which of two images is better.

A calibration is made of images that the model was not trained on. A monotone map takes their scores
to the scale of the MOS. A new image's MOS is then taken to lie about its mapped score as the MOS of
these images lie about theirs, in proportion to the usual error at each score.

This is cross-conformal prediction (Vovk, Cross-conformal predictors, 2015) with normalised
residuals (Lei et al., Distribution-free predictive inference for regression, JASA 2018): every
residual comes from a map and a spread that were fitted to images of other contents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hyperiqa.base.errors import UserError, counted
from hyperiqa.stats import metrics

# Fewer images give no calibration. Fewer than `FEW` give a rough one.
FEWEST = 20
FEW = 50
# The most residuals that a calibration keeps, and the parts that it divides the contents into.
MOST_RESIDUALS = 1000
FOLDS = 10
RANKS = np.linspace(0, 100, 101)


@dataclass(frozen=True)
class Calibration:
    """How the scores of a set's images relate to their MOS, in plain values.

    images: their number. quantiles: the percentiles 0 to 100 of their scores. curve: the map at
    these scores, on the scale of the MOS. spread: the usual size of a residual there, above 0.
    residuals: how far the MOS lie from the mapped scores, in units of the spread, sorted.
    opinions: the lowest and the highest MOS.
    """

    images: int
    quantiles: list[float]
    curve: list[float]
    spread: list[float]
    residuals: list[float]
    opinions: list[float]

    @classmethod
    def of(cls, scores, opinions, contents: Sequence | None = None) -> "Calibration":
        """The calibration of N images by their scores (N,) and MOS (N,).

        contents: what each image shows, of which one is never on both sides of a division. Without
        them each image has its own. Raises UserError where there are too few images, and where
        scores or MOS are all equal or not finite.
        """
        scores = np.asarray(scores, np.float64)
        opinions = np.asarray(opinions, np.float64)
        groups = np.unique(
            range(len(scores)) if contents is None else contents, return_inverse=True
        )[1]
        if len(scores) < FEWEST or np.ptp(groups) == 0:
            raise UserError(
                f"a calibration needs at least {FEWEST} images of several contents, found "
                f"{counted(len(scores), 'image')} of {counted(len(set(groups)), 'content')}"
            )
        if metrics.fittable(scores, opinions) is None:
            raise UserError(
                "a calibration needs scores that differ and opinions that differ, found scores "
                f"from {scores.min():g} to {scores.max():g} and opinions from {opinions.min():g} "
                f"to {opinions.max():g}"
            )

        folds = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % FOLDS
        residuals = np.empty(len(scores))
        for fold in np.unique(folds):
            inside = folds == fold
            curve, spread = _fit(scores[~inside], opinions[~inside], scores[inside])
            residuals[inside] = (opinions[inside] - curve) / spread
        # Hazen's: they agree with a count in which an image is half below itself.
        quantiles = np.quantile(scores, np.linspace(0, 1, 101), method="hazen")
        curve, spread = _fit(scores, opinions, quantiles)
        # The outermost residuals are kept, and the ranks of fewer residuals are the safer ones.
        kept = np.linspace(0, len(scores) - 1, min(len(scores), MOST_RESIDUALS)).round().astype(int)
        return cls(
            len(scores),
            quantiles.tolist(),
            _rounded(curve),
            _rounded(spread),
            _rounded(np.sort(residuals)[kept]),
            [float(opinions.min()), float(opinions.max())],
        )

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Calibration":
        """The calibration with these fields; any others are passed over."""
        return cls(**{name: plain[name] for name in cls.__dataclass_fields__})

    def plain(self) -> dict[str, Any]:
        """The fields as plain values, for a model's description."""
        return asdict(self)

    @property
    def caution(self) -> str:
        """A sentence on calibrations of few images; "" for others."""
        rough = f"With fewer than {FEW} images, intervals and probabilities are rough."
        return rough if self.images < FEW else ""

    def covers(self, score: float) -> bool:
        """Whether the score lies within the range of the images' scores."""
        return self.quantiles[0] <= score <= self.quantiles[-1]

    def percentile(self, score: float) -> float:
        """The share of the images that score lower, 0 to 100; equal scores count half."""
        quantiles = self._arrays[0]
        # The two sides differ where quantiles are equal.
        lower = np.interp(score, quantiles, RANKS)
        higher = np.interp(-score, -quantiles[::-1], RANKS)
        return float(lower + 100 - higher) / 2

    def interval(self, score: float, level: float = 0.9) -> tuple[float, float]:
        """The interval that holds the image's MOS with the probability `level`.

        As much probability lies below it as above it. It ends where the images' MOS end. Raises
        UserError for levels that the number of images cannot give.
        """
        outcomes = self._outcomes(score)
        count = len(outcomes)
        highest = (count - 1) / (count + 1)
        if not 0 < level <= highest:
            raise UserError(
                f"a calibration of {self.images} images gives intervals of levels above 0 and up "
                f"to {int(1000 * highest) / 1000}, found {level:g}"
            )
        # Rounded, so that 0.95 * 20 is 19.
        rank = int(np.ceil(round((count + 1) * (1 + level) / 2, 9)))
        least, most = self.opinions
        low, high = outcomes[[count - rank, rank - 1]].clip(least, most).tolist()
        return low, high

    def above(self, score: float, threshold: float) -> float:
        """The probability that the image's MOS is at least the threshold; never quite 0 or 1."""
        outcomes = self._outcomes(score)
        return float((np.sum(outcomes >= threshold) + 0.5) / (len(outcomes) + 1))

    def better(self, first: float, second: float) -> float:
        """The probability that the first score's image has the higher MOS; never quite 0 or 1.

        The images are taken to show different contents. Equal MOS count half.
        """
        outcomes = self._outcomes(first)
        others = self._outcomes(second)
        doubled = np.searchsorted(others, outcomes) + np.searchsorted(others, outcomes, "right")
        return float((doubled.mean() / 2 + 0.5) / (len(others) + 1))

    def rescaled(self, factor: float, offset: float, with_opinions: bool = True) -> "Calibration":
        """The calibration of scores that become factor * score + offset.

        with_opinions: whether the MOS change alike.
        """
        step = 1 if factor > 0 else -1
        moved = replace(
            self,
            quantiles=[factor * score + offset for score in self.quantiles[::step]],
            curve=self.curve[::step],
            spread=self.spread[::step],
        )
        if not with_opinions:
            return moved
        return replace(
            moved,
            curve=[factor * value + offset for value in moved.curve],
            spread=[abs(factor) * value for value in moved.spread],
            residuals=[step * value for value in self.residuals[::step]],
            opinions=[factor * value + offset for value in self.opinions[::step]],
        )

    def _outcomes(self, score: float) -> np.ndarray:
        # What the image's MOS may be, sorted, each as likely as the others.
        quantiles, curve, spread, residuals = self._arrays
        return np.interp(score, quantiles, curve) + np.interp(score, quantiles, spread) * residuals

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        # To make arrays of lists for every score would take longer than all else.
        return list(map(np.array, (self.quantiles, self.curve, self.spread, self.residuals)))


def _fit(scores: np.ndarray, opinions: np.ndarray, points: np.ndarray):
    # The map and the spread of some images, at other scores. Neither goes on beyond the images.
    points = np.clip(points, scores.min(), scores.max())
    parameters = metrics.fit_logistic(scores, opinions)
    # Where nothing can be fitted, every score means the average MOS.
    if parameters is None:
        parameters = np.array([opinions.mean(), opinions.mean(), 0.0, 1.0])
    sizes = np.abs(opinions - metrics.logistic(parameters, scores))
    # With all diagnostics it does not warn of scores that take two values only.
    parabola, _ = np.polynomial.Polynomial.fit(scores, sizes, 2, full=True)
    least = max(0.3 * sizes.mean(), 1e-9)
    return metrics.logistic(parameters, points), np.maximum(parabola(points), least)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
