"""What a score means: its percentile, an interval of the MOS, and which of two images is better.

A calibration is made of images that the model was not trained on. It knows their scores and how
far their MOS lies from the mapped score, and nothing of the images themselves.

The interval is cross-conformal (Vovk, Cross-conformal predictors, 2015) with residuals that are
divided by their usual size at that score (Lei et al., Distribution-free predictive inference for
regression, JASA 2018). Every residual comes from a map and a spread that were fitted to images of
other contents.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np

from hyperiqa.base.errors import UserError
from hyperiqa.stats import metrics

# Fewer images give no calibration; fewer than `FEW` give one that is rather uncertain.
FEWEST = 20
FEW = 50
# The scores' quantiles, at which the map and the spread are kept, too.
QUANTILES = 101
RANKS = np.linspace(0, 100, QUANTILES)
# The most residuals that are kept.
MOST_RESIDUALS = 1000
FOLDS = 10
# The share of the images that count as neighbours where the residuals' usual size is taken.
NEIGHBOURHOOD = 0.2


@dataclass(frozen=True)
class Calibration:
    """How the scores of a set's images relate to its MOS, in plain values.

    images: their number. quantiles: the 0th to 100th percentile of their scores. curve: the MOS
    that the map gives at each quantile. spread: the usual size of the residuals there, above 0.
    residuals: the images' MOS less the mapped score, divided by the spread, sorted; at most
    `MOST_RESIDUALS` of them. opinions: the lowest and the highest MOS.
    """

    images: int
    quantiles: tuple[float, ...]
    curve: tuple[float, ...]
    spread: tuple[float, ...]
    residuals: tuple[float, ...]
    opinions: tuple[float, float]

    @classmethod
    def of(cls, scores, opinions, contents: Sequence | None = None) -> "Calibration":
        """The calibration of N images from their scores (N,) and their MOS (N,).

        contents: what each image shows; images of one content are never on both sides of a
        division. Images without it are different contents. UserError if it cannot be done.
        """
        scores = np.asarray(scores, np.float64)
        opinions = np.asarray(opinions, np.float64)
        if contents is None:
            contents = range(len(scores))
        groups = np.unique(np.asarray(contents), return_inverse=True)[1]
        _check(scores, opinions, groups)

        # Every content belongs to one fold; the order of the images plays no part.
        folds = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % FOLDS
        residuals = np.empty(len(scores))
        for fold in np.unique(folds):
            inside = folds == fold
            curve, spread = _fit(scores[~inside], opinions[~inside], scores[inside])
            residuals[inside] = (opinions[inside] - curve) / spread

        quantiles = np.quantile(scores, np.linspace(0, 1, QUANTILES), method="hazen")
        curve, spread = _fit(scores, opinions, quantiles)
        kept = np.linspace(0, len(scores) - 1, min(len(scores), MOST_RESIDUALS)).round().astype(int)
        return cls(
            len(scores),
            _rounded(quantiles),
            _rounded(curve),
            _rounded(spread),
            _rounded(np.sort(residuals)[kept]),
            (float(opinions.min()), float(opinions.max())),
        )

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Calibration":
        """The calibration that `plain` describes."""
        lists = {key: value for key, value in plain.items() if key in cls.__dataclass_fields__}
        images = lists.pop("images")
        return cls(images, **{key: tuple(value) for key, value in lists.items()})

    def plain(self) -> dict[str, Any]:
        """The calibration as plain values for a model's description, by the fields' names."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @property
    def caution(self) -> str:
        """A sentence for calibrations on few images; else empty."""
        if self.images >= FEW:
            return ""
        return (
            f"The calibration rests on {self.images} images only. With fewer than {FEW}, its "
            "intervals and probabilities are rough."
        )

    def covers(self, score: float) -> bool:
        """Whether the score lies within the range of the calibration's scores."""
        return self.quantiles[0] <= score <= self.quantiles[-1]

    def percentile(self, score: float) -> float:
        """The percentage, 0 to 100, of the calibration's images that score lower."""
        quantiles = self._arrays["quantiles"]
        rising = np.interp(score, quantiles, RANKS)
        falling = np.interp(-score, -quantiles[::-1], RANKS)
        # The two differ where quantiles are equal; ties count half.
        return float(rising + 100 - falling) / 2

    def interval(self, score: float, level: float = 0.9) -> tuple[float, float]:
        """The ends of the interval that holds the image's MOS with the probability `level`.

        UserError if the level is not within 0..1 or too high for the number of images.
        """
        if not 0 < level < 1:
            raise UserError(f"the level must lie between 0 and 1, found {level:g}")
        count = len(self.residuals)
        rank = ceil((count + 1) * level)
        if rank > count:
            raise UserError(
                f"a calibration on {count} images gives intervals of at most "
                f"{np.floor(1000 * count / (count + 1)) / 10:g} %, found the level {level:g}"
            )
        centre, spread = self._at(score)
        reach = float(self._arrays["sizes"][rank - 1]) * spread
        least, most = self.opinions
        low, high = (min(max(end, least), most) for end in (centre - reach, centre + reach))
        return low, high

    def above(self, score: float, threshold: float) -> float:
        """The probability that the image's MOS is at least the threshold."""
        centre, spread = self._at(score)
        return self._probability(np.mean(centre + spread * self._arrays["residuals"] >= threshold))

    def better(self, first: float, second: float) -> float:
        """The probability that the MOS of the first of two scores is above the other; ties half."""
        centre, spread = self._at(first)
        other_centre, other_spread = self._at(second)
        residuals = self._arrays["residuals"]
        needed = (centre + spread * residuals - other_centre) / other_spread
        lower = np.searchsorted(residuals, needed, "left")
        upper = np.searchsorted(residuals, needed, "right")
        return self._probability(np.mean(lower + upper) / 2 / len(residuals))

    def rescaled(self, factor: float, offset: float, with_opinions: bool = True) -> "Calibration":
        """The calibration of scores that are multiplied by a factor and then shifted.

        with_opinions: whether the MOS is, too. A negative factor turns the scores round.
        """
        step = 1 if factor > 0 else -1
        mos_factor, mos_offset = (factor, offset) if with_opinions else (1.0, 0.0)
        sign = 1 if mos_factor > 0 else -1
        return replace(
            self,
            quantiles=_line(self.quantiles, factor, offset)[::step],
            curve=_line(self.curve, mos_factor, mos_offset)[::step],
            spread=_line(self.spread, abs(mos_factor), 0.0)[::step],
            residuals=_line(self.residuals, sign, 0.0)[::sign],
            opinions=_line(self.opinions, mos_factor, mos_offset)[::sign],
        )

    def _at(self, score: float) -> tuple[float, float]:
        # The mapped score and the spread there.
        arrays = self._arrays
        centre = np.interp(score, arrays["quantiles"], arrays["curve"])
        return float(centre), float(np.interp(score, arrays["quantiles"], arrays["spread"]))

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        # Turning tuples into arrays would take longer than what is done with them.
        names = ("quantiles", "curve", "spread", "residuals")
        arrays = {name: np.array(getattr(self, name)) for name in names}
        return {**arrays, "sizes": np.sort(np.abs(arrays["residuals"]))}

    def _probability(self, share: np.floating) -> float:
        # Never 0 or 1, of which no number of images can be sure.
        count = len(self.residuals)
        return float((count * share + 0.5) / (count + 1))


def _check(scores: np.ndarray, opinions: np.ndarray, groups: np.ndarray) -> None:
    if len(scores) < FEWEST:
        raise UserError(f"a calibration needs at least {FEWEST} images, found {len(scores)}")
    if not np.isfinite([scores, opinions]).all():
        raise UserError("a calibration needs finite scores and opinions, found others")
    for name, values in {"scores": scores, "opinions": opinions}.items():
        if np.ptp(values) == 0:
            raise UserError(
                f"a calibration needs {name} that differ, found {values[0]:g} for all "
                f"{len(values)} images"
            )
    if groups.max() == 0:
        raise UserError("a calibration needs images of several contents, found one content")


def _fit(scores: np.ndarray, opinions: np.ndarray, points: np.ndarray):
    # The map and the spread of images, at other scores.
    parameters = metrics.fit_logistic(scores, opinions)
    if parameters is None or not np.isfinite(parameters).all():
        line = np.polynomial.Polynomial.fit(scores, opinions, 1)
        mapped, curve = line(scores), line(points)
    else:
        mapped, curve = metrics.logistic(parameters, scores), metrics.logistic(parameters, points)
    order = np.argsort(scores, kind="stable")
    sizes = np.abs(opinions - mapped)
    # Near scores count more: a kernel over the ranks, at which images lie evenly.
    ranks = np.searchsorted(scores[order], points) / len(scores)
    places = (np.arange(len(scores)) + 0.5) / len(scores)
    weights = np.exp(-0.5 * ((ranks[:, None] - places) / (NEIGHBOURHOOD / 2)) ** 2)
    spread = weights @ sizes[order] / weights.sum(1)
    return curve, np.maximum(spread, 1e-9 * np.ptp(opinions))


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") for value in values)


def _line(values: Sequence[float], factor: float, offset: float) -> tuple:
    return tuple(factor * value + offset for value in values)
