"""The files of a round's best model: its weights, with a description of the run that made it."""

from pathlib import Path

from hyperiqa.base import version
from hyperiqa.model import checkpoints
from hyperiqa.training import calibrations, certificate, rounds
from hyperiqa.training.sets import Figures, RunData
from hyperiqa.training.state import RunState


def save(
    path: Path,
    run: str,
    data: RunData,
    state: RunState,
    trained: rounds.Round,
    tested: rounds.Tested,
    result: dict[str, Figures],
) -> None:
    """Write the model that was just tested, with its description.

    run: the name of the run. result: the figures of the epoch, by part.
    """
    best = checkpoints.portable_state(trained.trained.tested)
    description = {
        # The certificate has the records' fingerprints, set by set.
        **{name: value for name, value in state.settings.items() if name != "fingerprint"},
        "seed": trained.seed,
        **data.description,
        **trained.model.backbone.described,
        "metrics": {part: result[part] for part in data.parts.names},
        "run": run,
        "versions": version.versions(),
        "certificate": trained.certificate,
    }
    description["calibration"] = calibrations.of_run(data, tested.scores, description)
    facts = {
        "round": state.round,
        "epoch": state.epoch,
        "weights": checkpoints.digest(best),
        "predictions": certificate.predictions_digest(tested.predictions),
        "figures": certificate.figures_with_intervals(tested.scores),
    }
    checkpoints.describe(best, certificate.sealed(description, facts))
    checkpoints.save(path, best)
