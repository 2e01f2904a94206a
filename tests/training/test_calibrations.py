"""The calibrations that a run writes into its best model."""

import csv

import numpy as np
import pytest
from helpers import write_koniq, write_spaq

from hyperiqa.model import checkpoints
from hyperiqa.stats.calibration import Calibration
from hyperiqa.training import certificate
from HyperIQASolver import HyperIQASolver


def predicted(path, name):
    """(scores, MOS, names) of a set's images in a file of predictions."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == name]
    scores, mos = np.array([[float(row["score"]), float(row["mos"])] for row in rows]).T
    return scores, mos, [row["image"] for row in rows]


def plain_of(calibration):
    return {name: calibration[name] for name in Calibration.__dataclass_fields__}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")
    write_koniq(folder / "koniq", test=24)
    write_spaq(folder / "spaq", number=22)
    return folder


@pytest.mark.parametrize("select_on", ["test", "val"])
def test_a_run_writes_the_calibration_of_its_predictions(settings, folder, select_on):
    flags = ["--dataset_path", folder / "koniq", "--spaq_path", folder / "spaq", "--epochs", 2]
    if select_on == "val":
        flags += ["--select_on", "val", "--val_fraction", 0.4]
    solver = HyperIQASolver(settings("resnet", *flags))
    solver.run()
    _, description = checkpoints.load_model(checkpoints.find_model(solver.folder))
    calibrations = description["calibration"]
    assert list(calibrations) == ["koniq-10k", "spaq"]
    for name, calibration in calibrations.items():
        expected = Calibration.of(*predicted(solver.log.path("_predictions.csv"), name))
        assert plain_of(calibration) == expected.plain()
        assert calibration["score_range"] == [0, 100] and calibration["higher_is_better"]
    chose_epoch = {name: calibrations[name]["chose_epoch"] for name in calibrations}
    assert chose_epoch == {"koniq-10k": select_on == "test", "spaq": False}
    assert ("chosen" in calibrations["koniq-10k"]["which"]) == (select_on == "test")
    sealed = description["certificate"]
    assert sealed["calibration"] == certificate.json_digest(calibrations)
    assert sealed["seal"] == certificate.seal_of(description)
