"""`evaluate.py --calibrate`: calibrations from any scored set, their records and their checks."""

import csv
import json
from argparse import Namespace

import numpy as np
import pytest
from helpers import save_random_model, write_images, write_koniq

import certify
import evaluate
import export
from hyperiqa.model import checkpoints
from hyperiqa.scoring import calibrating, quality_model
from hyperiqa.stats.calibration import Calibration
from hyperiqa.training import certificate
from HyperIQASolver import HyperIQASolver

ABOUT = {
    "backbone": "test_vit",
    "fusion": "none",
    "patch_size": 64,
    "resize": "72",
    "exif_rotate": False,
    "dataset": "livec",
    "score_range": [0.0, 100.0],
    "higher_is_better": True,
    "test_crop": "center",
    "test_patch_num": 1,
    "mean": [0.5] * 3,
    "std": [0.3] * 3,
}


def write_table(folder, number=24, opinion=lambda i: 1 + 4 * i / 24):
    """A set of photographs of the user's own, two of each content, with DMOS; its CSV file."""
    write_images(folder, [f"{i}.png" for i in range(number)], seed=5)
    rows = [f"{i}.png,{opinion(i):.4f},{i // 2}" for i in range(number)]
    table = folder / "mine.csv"
    table.write_text("\n".join(["image,dmos,scene", *rows]))
    return table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("mine") / "photos")


@pytest.fixture
def calibrate(run_main, tmp_path):
    """calibrate(model, table, …): what evaluate.py printed, and the file that it wrote."""

    def run(model, table, *words, output="out.safetensors", code=0):
        flags = ["--datasets", f"csv:mine={table}", "--lower_is_better", "--score_column", "dmos"]
        flags += ["--group_column", "scene", "--resamples", 100, "--no_cache", *words]
        flags += ["--calibrate", tmp_path / output]
        return run_main("evaluate.py", evaluate.main, model, *flags, code=code), tmp_path / output

    return run


def verdicts(run_main, model, *words, code):
    out = run_main("certify.py", certify.main, model, "--no_cache", *words, code=code).stdout
    lines = [line.split("  ", 1) for line in out.splitlines() if " calibration" in line]
    return {item.strip(): verdict.strip() for item, verdict in lines}


def checks(path, table):
    """The same without a certificate, which certify.py asks for."""
    options = Namespace(cache=False, cache_dir=None, image_root=None)
    model = quality_model.load(path, "cpu")
    found = calibrating.check(model, options, {"mine": table})
    return {check.item: ": ".join(filter(None, (check.verdict, check.note))) for check in found}


def test_a_model_without_a_description_gets_a_calibration(calibrate, run_main, table, tmp_path):
    path = save_random_model(tmp_path / "m.pkl", {**ABOUT, "backbone": "resnet18"})
    # As the public code saves it.
    bare = dict(checkpoints.load(path))
    checkpoints.save(tmp_path / "public.pkl", bare)
    predictions = tmp_path / "p.csv"
    done, written = calibrate(tmp_path / "public.pkl", table, "--predictions", predictions)
    assert f"{written}: written" in done.stderr
    _, description = checkpoints.load_model(written)
    assert description["described"] and description["dataset"] == "koniq-10k"
    calibration = description["calibration"]["mine"]
    with predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores, mos = np.array([[float(row["score"]), float(row["mos"])] for row in rows]).T
    expected = Calibration.of(scores, mos, [str(i // 2) for i in range(24)]).plain()
    assert {name: calibration[name] for name in expected} == expected
    assert not calibration["higher_is_better"] and not calibration["model_scale"]
    assert calibration["which"] == "all"
    refused = run_main("certify.py", certify.main, written, code=2).stderr
    assert "carries no certificate" in refused and len(refused.splitlines()) == 1
    assert checks(written, table) == {
        "mine calibration": "reproduced",
        "mine calibration's record": "reproduced",
        "mine calibration's weights": "reproduced",
    }


def test_the_same_command_writes_the_same_model(calibrate, table, tmp_path):
    path = save_random_model(tmp_path / "m.pkl", ABOUT)
    first, first_about = checkpoints.load_model(calibrate(path, table, output="a.safetensors")[1])
    again, again_about = checkpoints.load_model(calibrate(path, table, output="b.pkl")[1])
    assert checkpoints.digest(first) == checkpoints.digest(again) and first_about == again_about


def test_the_seal_of_the_run_stays_valid(calibrate, run_main, settings, table, tmp_path):
    write_koniq(tmp_path / "koniq", test=24)
    solver = HyperIQASolver(
        settings("timm", "--dataset_path", tmp_path / "koniq", "--no_spaq", "--epochs", 1)
    )
    solver.run()
    model = checkpoints.find_model(solver.folder)
    _, written = calibrate(model, table, "--crops", 4)
    before, after = checkpoints.load_model(model)[1], checkpoints.load_model(written)[1]
    assert list(before["calibration"]) == ["koniq-10k"] and list(after["calibration"]) == ["mine"]
    assert {**after, "calibration": before["calibration"]} == json.loads(json.dumps(before))
    assert certificate.seal_of(after) == after["certificate"]["seal"]
    assert after["calibration"]["mine"]["record"]["test_patch_num"] == 4
    run_main("export.py", export.main, written, tmp_path / "exported.pkl")
    assert checkpoints.load_model(tmp_path / "exported.pkl")[1] == after
    where = ["--log_dir", tmp_path / "logs"]
    found = verdicts(run_main, written, *where, code=3)
    assert set(found) == {
        "mine calibration",
        "mine calibration's record",
        "mine calibration's weights",
    }
    assert set(found.values()) == {"reproduced"}
    # In another place the set is named, and without it only the digests are checked.
    elsewhere = table.parent.with_name("elsewhere")
    table.parent.rename(elsewhere)
    try:
        missing = verdicts(run_main, written, *where, code=3)["mine calibration"]
        assert (
            missing.startswith("cannot be checked: ")
            and "is no longer there; --cross_test" in missing
        )
        named = ["--cross_test", f"csv:mine={elsewhere / 'mine.csv'}"]
        assert verdicts(run_main, written, *where, *named, code=3) == found
    finally:
        elsewhere.rename(table.parent)


def test_an_edited_calibration_is_found(calibrate, table, tmp_path):
    written = calibrate(save_random_model(tmp_path / "m.pkl", ABOUT), table, output="o.pkl")[1]

    def found(change):
        state = checkpoints.load(written)
        change(checkpoints.description_of(state)["calibration"]["mine"])
        checkpoints.save(tmp_path / "edited.pkl", state)
        return {
            item: verdict
            for item, verdict in checks(tmp_path / "edited.pkl", table).items()
            if verdict.startswith("differs")
        }

    def narrow(calibration):
        calibration["spread"] = [value / 2 for value in calibration["spread"]]

    def narrow_with_digest(calibration):
        narrow(calibration)
        calibration["record"]["digest"] = calibrating._digest(calibration)

    def other_set(calibration):
        calibration["record"]["records"] = "0" * 16
        calibration["record"]["digest"] = calibrating._digest(calibration)

    def other_weights(calibration):
        calibration["record"]["weights"] = "0" * 16
        calibration["record"]["digest"] = calibrating._digest(calibration)

    assert set(found(narrow)) == {"mine calibration", "mine calibration's record"}
    assert found(narrow_with_digest) == {"mine calibration": "differs: other spread"}
    assert found(other_set) == {"mine calibration": "differs: other records"}
    assert set(found(other_weights)) == {"mine calibration's weights"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--calibrate", "x.onnx"), "x.onnx: expected a name that ends in .safetensors, .pkl"),
        (("--calibrate", "/nowhere/x.pkl"), "no folder /nowhere"),
        (
            ("--precision", "bf16"),
            "contradictory flags: --calibrate and --precision bf16: a calibration holds for the scores of one model in fp32",
        ),
    ],
)
def test_wrong_flags_are_one_line(run_main, table, tmp_path, words, line):
    flags = ["--datasets", f"csv={table}", "--calibrate", tmp_path / "o.pkl", *words]
    path = save_random_model(tmp_path / "m.pkl", ABOUT)
    said = run_main("evaluate.py", evaluate.main, path, *flags, code=2).stderr
    assert line in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "opinion", "line"),
    [
        (19, lambda i: i, "found 19 images and 19 different opinions"),
        (24, lambda i: 3, "found 24 images and 1 different opinion"),
    ],
)
def test_a_set_that_gives_no_calibration_is_one_line(calibrate, tmp_path, number, opinion, line):
    table = write_table(tmp_path / "photos", number, opinion)
    done, _ = calibrate(save_random_model(tmp_path / "m.pkl", ABOUT), table, code=2)
    assert done.stderr.splitlines()[-1] == (
        "error: --calibrate: mine: expected at least 20 images and opinions that differ, " + line
    )


def test_equal_scores_are_one_line(calibrate, tmp_path, table):
    path = save_random_model(tmp_path / "m.pkl", ABOUT)
    state = checkpoints.load(path)
    for tensor in state.values():
        tensor.zero_()
    checkpoints.save(path, state)
    done, written = calibrate(path, table, code=2)
    assert "error: --calibrate: mine: a calibration needs scores that differ" in done.stderr
    assert not written.exists()


def test_training_images_among_them_are_named(calibrate, run_main, tmp_path, table, settings):
    write_koniq(tmp_path / "koniq", train=24)
    path = save_random_model(tmp_path / "m.pkl", {**ABOUT, "dataset": "koniq-10k"})
    flags = ["--datasets", f"koniq-10k={tmp_path / 'koniq'}", "--split", "all", "--no_cache"]
    flags += ["--resamples", 100, "--calibrate", tmp_path / "out.pkl"]
    out = run_main("evaluate.py", evaluate.main, path, *flags).stdout
    assert "(all, its training images among them)" in out
