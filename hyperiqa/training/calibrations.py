"""What the scores of a model mean: the calibrations in its description, one for each tested set.

A calibration is made of a set's tested images. Scores in it are on the model's own scale. So are
the opinions of a set that the model was trained on; those of any other set stay on its own scale,
which may run the other way. `stats/calibration.py` says how it is made and used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperiqa.base.errors import UserError
from hyperiqa.datasets.names import record_name
from hyperiqa.datasets.records import DataSet, Record, Scale
from hyperiqa.stats.calibration import Calibration
from hyperiqa.training.sets import RunData

Calibrations = dict[str, dict[str, Any]]


def calibrated(
    data: DataSet,
    records: Sequence[Record],
    scores: np.ndarray,
    scale: Scale | None,
    description: Mapping[str, Any],
) -> dict[str, Any]:
    """The calibration of a set as a description has it. Raises UserError where there can be none.

    records: the N images of the set that were scored. scores: (N,), on the model's own scale.
    scale: from the set's own scores to those of the training, for a set that the model was trained
    on; None for any other set. description: the model's.

    `which` says in words which images they are, and `chose_epoch` whether the best epoch was chosen
    by them. `model_scale` says whether the opinions are on the scale of the model; `score_range`
    has the ends of their scale, and `higher_is_better` its direction.
    """
    score_range = np.array(data.range)
    opinions = np.array([record.score for record in records])
    contents = [record.group or record.name for record in records]
    higher_is_better = data.higher_is_better
    if scale:
        score_range = np.sort(scale.common(score_range))
        opinions = scale.common(opinions)
        higher_is_better = higher_is_better == (scale.factor > 0)
    chose_epoch = scale is not None and _chooses_epoch(description, data.name)
    return {
        **Calibration.of(scores, opinions, contents).plain(),
        "which": "test images, by which the epoch was chosen" if chose_epoch else "test images",
        "model_scale": scale is not None,
        "score_range": score_range.tolist(),
        "higher_is_better": higher_is_better,
        "chose_epoch": chose_epoch,
    }


def _chooses_epoch(description: Mapping[str, Any], set_name: str) -> bool:
    # Whether the test images of a trained set had a part in the choice of the best epoch.
    if description.get("select_on") == "val":
        return False
    chosen = description.get("select_set")
    return chosen is None or record_name(chosen) == set_name


def of_run(
    data: RunData, scores: Mapping[str, np.ndarray], description: Mapping[str, Any]
) -> Calibrations:
    """The calibrations of the sets that a run tests, those that it was trained on first.

    A set that cannot be calibrated has none, because of too few images for example.

    scores: part -> the scores (N,) of its images, as the model gives them. description: the
    model's.
    """
    calibrations: Calibrations = {}
    for part, (images, split) in data.tests.items():
        is_cross = part in data.cross
        name = part if is_cross else images.data.name
        # Validation images chose the epoch, and the test images of the same set did not.
        if split == "val" or name in calibrations:
            continue
        scale = None if is_cross else data.scales[name]
        try:
            calibrations[name] = calibrated(
                images.data, images.records(split), scores[part], scale, description
            )
        except UserError:
            # A training must not fail for it.
            continue
    return calibrations
