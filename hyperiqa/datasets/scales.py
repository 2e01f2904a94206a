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
        return self.factor * scores + self.offset

    def own(self, scores: np.ndarray) -> np.ndarray:
        return (scores - self.offset) / self.factor


def scale_of(data: DataSet, main: DataSet, how: str | None) -> Scale:
    """How a set's scores meet the others', by `--mix_scale`; `main` is the first set. Raises UserError."""
    if how == "range":
        low, high = data.range if data.higher_is_better else reversed(data.range)
        factor = 100 / ((high - low) or 1)
        return Scale(factor, -factor * low)
    same_way = data.higher_is_better == main.higher_is_better
    if data is main or (how == "none" and same_way):
        return Scale()
    if how == "none":
        means = {True: "quality", False: "badness"}
        one, other = (means[each.higher_is_better] for each in (main, data))
        said = f"the scores of {main.name} mean {one}, those of {data.name} {other}"
        raise UserError(f"--mix_scale none: {said}; expected one direction, or first or range")
    theirs, first = (
        np.array([record.score for record in each.split("train")]) for each in (data, main)
    )
    factor = (1 if same_way else -1) * first.std() / (theirs.std() or 1)
    return Scale(float(factor), float(first.mean() - factor * theirs.mean()))
