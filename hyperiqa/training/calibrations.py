"""What the scores of a model mean: the calibrations in its description, one for each tested set.

A calibration is made of a set's tested images. Scores in it are on the model's own scale. So are
the opinions of a set that the model was trained on; those of any other set stay on its own scale,
which may run the other way. `stats/calibration.py` says how it is made and used.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperiqa.base.errors import UserError
from hyperiqa.datasets import names, records
from hyperiqa.stats.calibration import Calibration
from hyperiqa.training.sets import RunData


def calibrated(
    data: records.DataSet,
    scored: Sequence[records.Record],
    scores: np.ndarray,
    scale: records.Scale | None,
    description: Mapping[str, Any],
    which: str = "test images",
) -> dict[str, Any]:
    """The calibration of a set as a description has it. Raises UserError where there can be none.

    scored: the N images of the set that were scored. scores: (N,), on the model's own scale.
    scale: from the set's own scores to those of the training, for a set that the model was trained
    on; None for any other set. description: the model's. which: the images, in words.

    `chose_epoch` says whether the best epoch was chosen by these images. `model_scale` says whether
    the opinions are on the scale of the model; `score_range` has the ends of their scale, and
    `higher_is_better` its direction.
    """
    to_model = scale or records.Scale()
    opinions = to_model.common(np.array([record.score for record in scored]))
    # Some sets only have the range of their training images.
    ends = [*to_model.common(np.array(data.range)), *opinions]
    contents = [record.group or record.name for record in scored]
    chose_epoch = (
        scale is not None
        and description.get("select_on") != "val"
        and names.record_name(description.get("select_set") or data.name) == data.name
    )
    return {
        **Calibration.of(scores, opinions, contents).plain(),
        "which": f"{which}, by which the epoch was chosen" if chose_epoch else which,
        "model_scale": scale is not None,
        "score_range": [float(min(ends)), float(max(ends))],
        "higher_is_better": data.higher_is_better == (to_model.factor > 0),
        "chose_epoch": chose_epoch,
    }


def of_run(
    data: RunData,
    tested: Mapping[str, tuple[np.ndarray, np.ndarray]],
    description: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """The calibrations of the sets that a run tests, by name, those that it trains on first.

    A set that cannot be calibrated, because of too few images for example, has none.

    tested: part -> (scores that rise where the opinions do, MOS), each (N,). description: the
    model's.
    """
    calibrations: dict[str, dict[str, Any]] = {}
    for part, (images, split) in data.tests.items():
        is_cross = part in data.cross
        name = part if is_cross else images.data.name
        # Validation images chose the epoch, and the test images of the same set did not.
        if split == "val" or name in calibrations:
            continue
        scale = None if is_cross else data.scales[name]
        oriented, _ = tested[part]
        # What has turned the scores of a cross test turns them back.
        _, turned = data.oriented_scores(images.data, oriented)
        scores = scale.common(oriented) if scale else turned
        # No training fails for want of a calibration.
        with contextlib.suppress(UserError):
            calibrations[name] = calibrated(
                images.data, images.records(split), scores, scale, description
            )
    return calibrations
