"""Exported models: their files, their scores in ONNX Runtime and OpenVINO, and what they refuse."""

import csv
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import save_random_model, write_images
from scipy.stats import spearmanr

import export
import hyperiqa
from hyperiqa import __main__
from hyperiqa.base import errors
from hyperiqa.base.errors import UserError, not_installed
from hyperiqa.scoring import openvino_export
from hyperiqa.scoring.quality_model import ExportedModel, load
from hyperiqa.scoring.runtimes import open_exported
from hyperiqa.stats.calibration import Calibration

MISSING = not_installed("exports", *export.NEEDED["onnx"], *export.NEEDED["xml"])
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
NO_NNCF = not_installed("--int8", "nncf")

DESCRIPTION = {
    "backbone": "resnet18",
    "fusion": "none",
    "patch_size": 64,
    "resize": "80",
    "exif_rotate": False,
    "dataset": "koniq-10k",
    "score_range": [0.0, 100.0],
    "higher_is_better": True,
    "test_crop": "grid",
    "test_patch_num": 3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 24 images below photos/, and one model as model.pkl, .onnx, .xml and .bin."""
    folder = tmp_path_factory.mktemp("exported")
    write_images(folder / "photos", [f"{i}.png" for i in range(24)])
    rng = np.random.default_rng(0)
    scores = rng.normal(50, 3, 100)
    calibration = Calibration.of(scores, scores + rng.normal(0, 1, 100)).plain()
    calibration |= {
        "which": "test images",
        "model_scale": True,
        "chose_epoch": False,
        "score_range": [0.0, 100.0],
        "higher_is_better": True,
    }
    described = {**DESCRIPTION, "calibration": {"koniq-10k": calibration}}
    save_random_model(folder / "model.pkl", described, spread=30)
    for suffix in ("onnx", "xml"):
        export.main([str(folder / "model.pkl"), str(folder / f"model.{suffix}")])
    return folder


def rows(capfd, *argv):
    capfd.readouterr()
    assert __main__.main([*map(str, argv), "--format", "csv"]) == 0
    return list(csv.DictReader(capfd.readouterr().out.splitlines()))


@pytest.mark.parametrize(("suffix", "runtime"), [("onnx", "onnxruntime"), ("xml", "openvino")])
def test_the_rows_are_the_checkpoints_but_for_who_made_them(folder, capfd, suffix, runtime):
    asked = [folder / "photos", "--meaning", "--crops", "2", "--batch_size", "5"]
    expected = rows(capfd, folder / "model.pkl", *asked)
    found = rows(capfd, folder / f"model.{suffix}", *asked)
    assert [row["image"] for row in found] == [row["image"] for row in expected]
    for name in ("score", "percentile", "low", "high"):
        values = [[float(row[name]) for row in part] for part in (found, expected)]
        # A score that differs by its last digits may step over that of a calibration image.
        close = 1 if name == "percentile" else 1e-3
        assert values[0] == pytest.approx(values[1], abs=close) and np.ptp(values[1]) > 0.1
    made = expected[0]["made_with"]
    assert re.sub(rf"={runtime}:[0-9a-f]{{12}} ", " ", found[0]["made_with"]) == re.sub(
        r"=[0-9a-f]{12} ", " ", made, count=1
    )


def test_rows_of_another_runtime_are_not_mixed_in(folder, tmp_path):
    output = tmp_path / "scores.csv"
    argv = [str(folder / "photos" / "0.png"), "--output", str(output)]
    __main__.main([str(folder / "model.pkl"), *argv])
    with pytest.raises(UserError, match=r"scores\.csv: .*weights [0-9a-f]{12}.*openvino:"):
        __main__.main([str(folder / "model.xml"), *argv])


def test_a_model_scores_patches_of_images_of_several_sizes_by_their_mean(folder):
    model = hyperiqa.load(folder / "model.xml")
    rng = np.random.default_rng(0)
    patches = [rng.integers(0, 256, (n, 64, 64, 3)).astype(np.uint8) for n in (1, 3, 2)]
    expected = [np.mean([model.exported.score(p[None])[0] for p in image]) for image in patches]
    assert model.score_patches(patches, batch_size=4) == pytest.approx(expected, abs=1e-4)
    assert model.score_patches([]).shape == (0,)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--map", "maps"], r"--map maps: .*model\.(onnx|xml) is scored by \w+, as it was"),
        (["--precision", "bf16"], r"--precision bf16: .*model\.(onnx|xml) is scored by"),
        (["--device", "cuda"], "--device cuda: .* on the CPU"),
        (["--scale", "koniq-10k"], "--scale koniq-10k: .* as it was exported"),
    ],
)
@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_flags_that_need_the_network_are_refused(folder, suffix, words, message):
    with pytest.raises(UserError, match=message):
        __main__.parse([str(folder / f"model.{suffix}"), "photos", *words])


def test_in_python_the_network_is_refused_in_one_line(folder):
    with pytest.raises(UserError, match="--device cuda: "):
        load(folder / "model.onnx", "cuda")
    model = load(folder / "model.onnx")
    for use in (lambda: model.net, lambda: model.use_scale("koniq-10k")):
        with pytest.raises(UserError, match=r"model\.onnx: an exported model scores photographs"):
            use()
    assert not hasattr(model, "of_no_such_name")
    with pytest.raises(UserError, match="an exported model scores photographs alone"):
        export.main([str(folder / "model.xml"), str(folder / "again.safetensors")])


def copied(folder, tmp_path):
    for name in ("model.xml", "model.bin", "model.onnx"):
        shutil.copy(folder / name, tmp_path)
    return tmp_path


def test_damaged_and_foreign_files_are_one_line(folder, tmp_path):
    import onnx

    place = copied(folder, tmp_path)
    weights = bytearray((place / "model.bin").read_bytes())
    weights[100] ^= 1
    (place / "model.bin").write_bytes(weights)
    with pytest.raises(UserError, match=r"model\.bin is not the file that was written with it"):
        open_exported(place / "model.xml")
    (place / "model.bin").unlink()
    with pytest.raises(UserError, match=r"model\.bin: cannot be read: No such file"):
        open_exported(place / "model.xml")
    (place / "model.bin").write_bytes(b"")
    (place / "model.xml").write_text("<net")
    with pytest.raises(UserError, match=r"model\.xml: openvino cannot read it: "):
        open_exported(place / "model.xml")

    proto = onnx.load(place / "model.onnx")
    metadata = {entry.key: entry for entry in proto.metadata_props}
    description = metadata["hyperiqa"].value
    for before, after, message in (
        ('"patch_size": 64', '"patch_size": 96', "its patches have 64 pixels, .* says 96"),
        ('"resize": "80"', '"resize": "wide"', "its description is damaged: resize: expected"),
        (description, "[", "onnxruntime cannot read it: JSONDecodeError"),
        (description, "", r"it has no description; expected a file that export\.py wrote"),
    ):
        metadata["hyperiqa"].value = description.replace(before, after)
        onnx.save(proto, place / "other.onnx")
        with pytest.raises(UserError, match=f"other.onnx: {message}"):
            open_exported(place / "other.onnx")
    (place / "other.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"other\.onnx: onnxruntime cannot read it: "):
        open_exported(place / "other.onnx")


def test_both_files_are_written_or_neither(folder, tmp_path):
    model = load(folder / "model.pkl", "cpu")
    data = (folder / "model.onnx").read_bytes()
    model.net.fc5b_fc.bias.data += 0.02
    with pytest.raises(UserError, match=r"m\.xml: not written: OpenVINO's scores differ by 0\.02"):
        openvino_export.write_openvino(
            model,
            data,
            tmp_path / "m.xml",
            lambda score: export.compare_scores(model, score, tmp_path / "m.xml", "OpenVINO"),
        )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "m.bin").write_text("somebody's")
    with pytest.raises(UserError, match=r"m\.bin: exists already"):
        export.main([str(folder / "model.pkl"), str(tmp_path / "m.xml")])
    (tmp_path / "m.bin").unlink()
    # A folder in the place of the second file.
    (tmp_path / "m.xml").mkdir()
    with pytest.raises(UserError, match=r"m\.xml: is a folder"):
        export.main([str(folder / "model.pkl"), str(tmp_path / "m.xml"), "--force"])
    assert [path.name for path in tmp_path.iterdir()] == ["m.xml"]


def test_ranks_are_compared_as_scipy_does(folder, tmp_path):
    model = load(folder / "model.pkl", "cpu")
    images = sorted(map(str, (folder / "photos").iterdir()))
    same = ExportedModel(open_exported(folder / "model.xml"))
    assert "SRCC 1.0000 with fp32 on 24 images" in openvino_export.check_ranks(
        model, same, tmp_path / "m.xml", images
    )
    # Another model, in place of one that the quantisation has spoilt.
    save_random_model(tmp_path / "other.pkl", DESCRIPTION, spread=30, seed=1)
    other = load(tmp_path / "other.pkl", "cpu")
    scores = [[scored.score for scored in m.score_all(images)] for m in (model, other)]
    figure = f"{spearmanr(*scores)[0]:.4f}"
    with pytest.raises(UserError, match=rf"m\.xml: not written: int8; SRCC {figure} with fp32 on"):
        openvino_export.check_ranks(model, other, tmp_path / "m.xml", images)
    with pytest.raises(UserError, match="--int8: .*gone.png"):
        openvino_export.check_ranks(model, same, tmp_path / "m.xml", [*images, "gone.png"])


@pytest.mark.skipif(bool(NO_NNCF), reason=NO_NNCF)
def test_int8_keeps_the_head_in_fp32_and_is_said_in_rows(folder, tmp_path, monkeypatch, capfd):
    model = load(folder / "model.pkl", "cpu")
    images = sorted(map(str, (folder / "photos").iterdir()))
    data = (folder / "model.onnx").read_bytes()
    output = tmp_path / "m.xml"
    monkeypatch.setattr(openvino_export, "SAME_RANKS", 0.5)
    note = openvino_export.write_openvino(model, data, output, None, images)
    assert note.startswith("int8; SRCC 0.") and sorted(p.name for p in tmp_path.iterdir()) == [
        "m.bin",
        "m.xml",
    ]
    assert output.with_suffix(".bin").stat().st_size < 0.75 * len(data)
    text = output.read_text()
    quantised = set(re.findall(r'name="([^"]*)/fq_weights_1"', text))
    assert len(quantised) == 20  # ResNet-18's convolutions
    row = rows(capfd, output, images[0], "--meaning")[0]
    assert "precision=int8 " in row["made_with"]
    assert float(row["score"]) == pytest.approx(model.score(images[0]), abs=20)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["m.onnx", "--int8", "photos"], r"--int8: expected an OUTPUT that ends with \.xml"),
        (["m.xml", "--int8", "photos/0.png"], "--int8: 1 image; expected at least 20"),
        (["m.xml", "--int8", "gone"], "gone: no such file or folder"),
    ],
)
def test_mistakes_in_int8(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(errors, "not_installed", lambda *_: "")
    with pytest.raises(UserError, match=message):
        export.main(["model.pkl", *words])


def test_the_use_of_openvino_is_told_to_nobody(folder, tmp_path):
    code = f"import hyperiqa; hyperiqa.load({str(folder / 'model.xml')!r})"
    # Its telemetry leaves an identifier there before it sends anything.
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not (tmp_path / "intel").exists()
    subprocess.run([sys.executable, "-c", "import openvino"], check=True, env=environment)
    if not (tmp_path / "intel").exists():
        pytest.skip("this openvino leaves no trace of its telemetry")
