"""The files of a round's best model: its weights, with a description of the run that made it."""

import copy
from pathlib import Path

from hyperiqa.base import version
from hyperiqa.model import checkpoints, lora
from hyperiqa.training import calibrations, certificate, rounds, run_files
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

    With `--lora` the model is merged, and the adapter is written beside it.

    run: the name of the run. result: the figures of the epoch, by part.
    """
    net = trained.trained.tested
    adapted = state.settings["lora"]
    best = checkpoints.portable_state(lora.merge(copy.deepcopy(net)) if adapted else net)
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
    if adapted:
        description["lora_base"] = lora.base_digest(net.backbone)
    description["calibration"] = calibrations.of_run(data, tested.scores, description)
    facts = {
        "round": state.round,
        "epoch": state.epoch,
        "weights": checkpoints.digest(best),
        "predictions": certificate.predictions_digest(tested.predictions),
        "figures": certificate.figures_with_intervals(tested.scores),
    }
    description = certificate.sealed(description, facts)
    if adapted:
        checkpoints.save_safetensors(
            path.with_name(path.stem + run_files.ADAPTER), lora.trained_state(net), description
        )
    checkpoints.describe(best, description)
    checkpoints.save(path, best)
