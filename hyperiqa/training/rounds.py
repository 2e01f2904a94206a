"""A round of a run, and the results of an epoch's tests."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hyperiqa.model.hypernet import QualityNet
from hyperiqa.training import optimizers, run_files


@dataclass
class Round:
    """What a round holds in addition to the state that is saved.

    number: from 1.
    model: the model as it was built. `compiled` runs in training and shares its parameters;
    `trained` adds the optimizer and the average of the weights.
    certificate: the part that all models of the round share, once there is one.
    saved_at: when the state was last saved, in seconds of the monotonic clock.
    """

    number: int
    seed: int
    model: QualityNet
    compiled: Any
    trained: optimizers.TrainedModel
    certificate: dict[str, Any] | None = None
    saved_at: float = 0.0


@dataclass
class Tested:
    """The results of an epoch's tests.

    predictions: the rows for the predictions file; validation images are not among them.
    scores: part -> (scores that rise where the opinions do, MOS), each (N,).
    """

    predictions: list[run_files.Prediction] = field(default_factory=list)
    scores: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
