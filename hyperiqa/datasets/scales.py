"""From one data set's scale of scores to another's."""

from dataclasses import dataclass

import numpy as np

from hyperiqa.base.errors import UserError
from hyperiqa.datasets.records import DataSet


@dataclass(frozen=True)
class Scale:
    """From a data set's own scores to those that are trained on: factor * score + offset."""

    factor: float = 1.0
    offset: float = 0.0

    def common(self, scores: np.ndarray) -> np.ndarray:
        """The set's own scores on the common scale."""
        return self.factor * scores + self.offset

    def own(self, scores: np.ndarray) -> np.ndarray:
        """Scores of the common scale on the set's own."""
        return (scores - self.offset) / self.factor


def scale_of(data: DataSet, main: DataSet, method: str | None) -> Scale:
    """The scale of a set among several, by the method of `--mix_scale`; `main` is the first set.

    range: the set's range becomes 0 to 100, the best score 100. none: the scores stay; an error
    where the sets' directions differ. Else the training scores take the first set's mean, standard
    deviation and direction. Raises UserError.
    """
    if method == "range":
        low, high = data.range
        if not data.higher_is_better:
            low, high = high, low
        factor = 100 / ((high - low) or 1)
        return Scale(factor, -factor * low)
    same_direction = data.higher_is_better == main.higher_is_better
    if data is main or (method == "none" and same_direction):
        return Scale()
    if method == "none":
        raise UserError(
            f"--mix_scale none: the scores of {main.name} mean {_meaning(main)}, "
            f"those of {data.name} {_meaning(data)}; expected one direction, or first or range"
        )
    scores = _training_scores(data)
    main_scores = _training_scores(main)
    sign = 1 if same_direction else -1
    # Scores that are all the same have no spread to match.
    factor = sign * main_scores.std() / (scores.std() or 1)
    return Scale(float(factor), float(main_scores.mean() - factor * scores.mean()))


def _meaning(data: DataSet) -> str:
    return "quality" if data.higher_is_better else "badness"


def _training_scores(data: DataSet) -> np.ndarray:
    return np.array([record.score for record in data.split("train")])
