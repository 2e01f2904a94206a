"""What a score says about an image, by a calibration that the model carries.

A calibration knows the scores and the mean opinion scores (MOS) of a set of images. So a score has
a percentile among them, an interval in which the image's own MOS lies, and a probability that this
MOS reaches a threshold. `stats/calibration.py` says how these are computed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperiqa.base.errors import UserError, counted
from hyperiqa.datasets.names import record_name
from hyperiqa.scoring.score_files import differences, settings_text
from hyperiqa.stats.calibration import Calibration


@dataclass(frozen=True)
class Explained:
    """A score and what it means among the images of a calibration.

    score: on the scale of the model. percentile: how many of the images score lower, in percent.
    low, high: the interval of the image's MOS, on the scale of the set. reference: the set's name.
    keep: whether the MOS reaches the threshold: "yes", "no" or "unsure"; None without a threshold.
    note: what the calibration does not cover; None if there is nothing to say.
    """

    score: float
    percentile: float
    low: float
    high: float
    reference: str
    keep: str | None
    note: str | None


class Meaning:
    """Explains scores by one of a model's calibrations.

    description: the model's. reference: the set of the calibration; None: the model's first one.
    level: the probability that an interval holds the MOS. above: the MOS that an image must have at
    least to be kept; at most, where a high MOS means bad quality. sure: the probability from which
    on the answer is "yes" or "no".

    Raises UserError where the model has no such calibration, for a level that the number of images
    cannot give, and for a threshold outside the scale of the set.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        reference: str | None = None,
        level: float = 0.9,
        above: float | None = None,
        sure: float = 0.9,
    ):
        entries = description.get("calibration")
        if not entries:
            raise UserError(
                "the model has no calibration, which says what its scores mean; evaluate.py "
                "CHECKPOINT --datasets csv=FILE.csv --calibrate OUT writes a copy that has one"
            )
        self.reference = record_name(reference or next(iter(entries)))
        if self.reference not in entries:
            raise UserError(
                f"--reference {reference}: the model has calibrations of {', '.join(entries)}"
            )
        self.entry = entries[self.reference]
        self.calibration = Calibration.from_plain(self.entry)
        self.level = level
        self.above = above
        self.sure = sure
        # Any score tells whether the images are enough for the level.
        self.calibration.interval(0.0, level)
        low, high = self.entry["score_range"]
        if above is not None and not low <= above <= high:
            raise UserError(
                f"--above {above:g}: the MOS of {self.reference} goes from {low:g} to {high:g}"
            )
        # The images that all answers rest on, for the user.
        self.about = (
            f"Percentiles, {100 * level:.4g} % intervals and probabilities rest on "
            f"{counted(self.calibration.images, 'image')} of {self.reference} "
            f"({self.entry['which']}). {self.calibration.caution}".strip()
        )

    @property
    def made_with(self) -> str:
        """What the answers depend on besides the score."""
        plain = json.dumps(self.calibration.plain()).encode()
        digest = hashlib.sha256(plain).hexdigest()[:12]
        words = f"calibration={digest} level={self.level:g}"
        return words if self.above is None else f"{words} above={self.above:g} sure={self.sure:g}"

    def caution(self, trained: Mapping[str, Any], settings: str) -> str:
        """What to say where scores are made otherwise than those of the calibration; else "".

        trained: the description of the model as its file has it. settings: of the scores.
        """
        sizes = {**trained.get("cross_resize", {}), **trained.get("mix_resize", {})}
        resize = sizes.get(self.reference, trained["resize"])
        # Of a set that was scored after the training, the record knows more.
        described = {**trained, "resize": resize, **self.entry.get("record", {})}
        made, now = differences(settings_text(described), settings)
        if not made:
            return ""
        return (
            f"The calibration was made with {made}, and these scores with {now}: what it says of "
            "them may be wrong."
        )

    def of(self, score: float) -> Explained:
        """Explain a score of the model."""
        calibration = self.calibration
        low, high = calibration.interval(score, self.level)
        note = None
        if not calibration.covers(score):
            least, most = calibration.quantiles[0], calibration.quantiles[-1]
            note = f"the calibration knows scores from {least:.4g} to {most:.4g} only"
        return Explained(
            score,
            calibration.percentile(score),
            low,
            high,
            self.reference,
            self._keep(score),
            note,
        )

    def better(self, first: float, second: float) -> float:
        """The probability that the image of the first score has the better quality."""
        return self._of_quality(self.calibration.better(first, second))

    def _keep(self, score: float) -> str | None:
        if self.above is None:
            return None
        probability = self._of_quality(self.calibration.above(score, self.above))
        if probability >= self.sure:
            return "yes"
        return "no" if probability <= 1 - self.sure else "unsure"

    def _of_quality(self, probability: float) -> float:
        # From a high MOS to a good one.
        return probability if self.entry["higher_is_better"] else 1 - probability


def rescaled(entry: Mapping[str, Any], factor: float, offset: float) -> dict[str, Any]:
    """A calibration of a description, for scores that become factor * score + offset."""
    # The MOS of a set that the model was not trained on stays on its own scale.
    with_opinions = entry["model_scale"]
    calibration = Calibration.from_plain(dict(entry)).rescaled(factor, offset, with_opinions)
    moved = {**entry, **calibration.plain()}
    if with_opinions:
        moved["score_range"] = sorted(factor * end + offset for end in entry["score_range"])
        moved["higher_is_better"] = entry["higher_is_better"] == (factor > 0)
    return moved
