"""The calibrations that a run writes into its best model."""

import signal

import numpy as np
import pytest
from helpers import write_images, write_koniq, write_spaq

from hyperiqa.model import checkpoints
from hyperiqa.scoring.calibrating import compare_calibrations
from hyperiqa.scoring.verdicts import REPRODUCED
from hyperiqa.stats.calibration import Calibration
from hyperiqa.training import certificate
from hyperiqa.training.run_files import read_predictions
from HyperIQASolver import HyperIQASolver


def predicted(path, name):
    """(scores, MOS, names) of a set's images in a file of predictions."""
    rows = [row for row in read_predictions(path) if row[0] == name]
    _, names, mos, scores = zip(*rows)
    return np.array(scores), np.array(mos), list(names)


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
    flags = ["--dataset_path", folder / "koniq", "--spaq_path", folder / "spaq", "--epochs", 1]
    if select_on == "val":
        flags += ["--select_on", "val", "--val_fraction", 0.4]
    solver = HyperIQASolver(settings("timm", *flags))
    solver.run()
    _, description = checkpoints.load_model(checkpoints.find_model(solver.folder))
    calibrations = description["calibration"]
    assert list(calibrations) == ["koniq-10k", "spaq"]
    for name, calibration in calibrations.items():
        expected = Calibration.of(*predicted(solver.log.path("_predictions.csv"), name))
        for field, values in expected.plain().items():
            assert calibration[field] == pytest.approx(values, rel=1e-4, abs=1e-4), field
        assert calibration["score_range"] == [0, 100] and calibration["higher_is_better"]
    chose_epoch = {name: calibrations[name]["chose_epoch"] for name in calibrations}
    assert chose_epoch == {"koniq-10k": select_on == "test", "spaq": False}
    assert ("chosen" in calibrations["koniq-10k"]["which"]) == (select_on == "test")
    sealed = description["certificate"]
    assert sealed["calibration"] == certificate.json_digest(calibrations)
    assert sealed["seal"] == certificate.seal_of(description)


def test_sets_of_several_scales_are_on_the_scale_of_the_model(settings, tmp_path, folder):
    images = tmp_path / "images"
    write_images(images, [f"{n}_{i}.jpg" for n in ("one", "two") for i in range(100)], (64, 64))
    # The second set has badness on another scale, and two images of each content.
    for name, turn in (("one", lambda x: x), ("two", lambda x: 5 - x / 25)):
        rows = [f"{name}_{i}.jpg,{turn(i):.3f},{name}{i // 2}" for i in range(100)]
        (images / f"{name}.csv").write_text("\n".join(["image,mos,group", *rows]))
    flags = ["--dataset", f"csv:one={images / 'one.csv'}", f"csv:two={images / 'two.csv'}"]
    flags += ["--lower_is_better", "two", "--select_set", "two", "--epochs", 1]
    solver = HyperIQASolver(settings("timm", *flags, "--cross_test", f"spaq={folder / 'spaq'}"))
    solver.run()
    _, description = checkpoints.load_model(checkpoints.find_model(solver.folder))
    assert list(description["calibration"]) == ["one", "two", "spaq"]
    assert [c["chose_epoch"] for c in description["calibration"].values()] == [False, True, False]
    for name in ("one", "two"):
        calibration = description["calibration"][name]
        scale = description["scales"][name]
        scores, mos, names = predicted(solver.log.path("_predictions.csv"), name)
        contents = [f"{name}{int(image[4:-4]) // 2}" for image in names]
        line = np.polynomial.Polynomial([scale["offset"], scale["factor"]])
        expected = Calibration.of(line(scores), line(mos), contents).plain()
        for field, values in expected.items():
            assert calibration[field] == pytest.approx(values, rel=1e-4, abs=1e-4), field
        # The badness of the second set has become quality.
        assert calibration["model_scale"] and calibration["higher_is_better"]
        low, high = calibration["score_range"]
        assert low <= calibration["opinions"][0] < calibration["opinions"][1] <= high


def test_resumed_or_in_two_processes_it_is_the_same(launcher, folder, tmp_path):
    def command(name):
        places = ["--log_dir", tmp_path / name, "--checkpoint_dir", tmp_path / name]
        return [
            *("--dataset_path", folder / "koniq", "--no_spaq", "--no_cache", *places),
            *"--backbone test_convnext --no_pretrained --patch_size 64 --resize 72".split(),
            *"--train_patch_num 2 --batch_size 12 --epochs 2 --precision fp32".split(),
            *"--run_name run --checkpoint_minutes 0 --resume auto".split(),
        ]

    def calibration(name):
        model = checkpoints.find_model(tmp_path / name / "run")
        return checkpoints.load_model(model)[1]["calibration"]

    assert launcher.run("train_timm.py", command("whole"))[0] == 0
    kill = ["hyperiqa.training.engine:EpochProgress.add", 3, signal.SIGKILL]
    assert launcher.run("train_timm.py", command("cut"), kill=kill)[0] == -signal.SIGKILL
    assert launcher.run("train_timm.py", command("cut"))[0] == 0
    assert launcher.run("train_timm.py", command("two"), world=2)[0] == [0, 0]
    # The fit of the map may differ in its last digits from one process to the next.
    whole, cut = calibration("whole")["koniq-10k"], calibration("cut")["koniq-10k"]
    assert compare_calibrations("koniq-10k", whole, cut).verdict == REPRODUCED
    assert whole["quantiles"] == cut["quantiles"] and whole["which"] == cut["which"]
    expected = Calibration.of(*predicted(tmp_path / "two/run_predictions.csv", "koniq-10k"))
    two = plain_of(calibration("two")["koniq-10k"])
    assert compare_calibrations("koniq-10k", expected.plain(), two).verdict == REPRODUCED
