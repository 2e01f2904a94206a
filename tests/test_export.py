import importlib.util
import json
import re
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fill_by_recipe, picture, save_random_model

import export
from hyperiqa.base import errors
from hyperiqa.base.errors import UserError, not_installed
from hyperiqa.model.factory import build
from hyperiqa.scoring.quality_model import load
from hyperiqa.scoring.runtimes import onnx_graph

ROOT = Path(export.__file__).resolve().parent
DESCRIPTION = {
    "backbone": "resnet18",
    "fusion": "none",
    "patch_size": 64,
    "resize": "80",
    "exif_rotate": False,
    "dataset": "demo",
    "score_range": [10.0, 90.0],
    "higher_is_better": True,
    "test_crop": "grid",
    "test_patch_num": 3,
    "metrics": {"test": {"srcc": float("nan"), "plcc": 0.5}},
}
MISSING = not_installed("ONNX", *export.NEEDED["onnx"])
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=MISSING)
TINY = "swin_tiny_patch4_window7_224"


def save(path, **changes):
    return save_random_model(path, {**DESCRIPTION, **changes})


def run(*argv):
    export.main([str(word) for word in argv])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run") / "best_model_srcc_0.9000_plcc_0.8000.pkl")


@needs_onnx
@pytest.mark.parametrize(
    ("backbone", "fusion", "patch_size", "opset"),
    [
        (
            "resnet18",
            "concat",
            80,
            18,
        ),  # 80: no stage map divides into 7x7, so the pools are adaptive
        ("swin_nano", "concat", 224, 20),
        ("test_convnext", "fpn+transformer", 64, 18),
        pytest.param("resnet18", "progressive", 80, 18, marks=pytest.mark.slow),
        pytest.param("resnet18", "attention+transformer", 64, 20, marks=pytest.mark.slow),
        pytest.param("swin_nano", "none", 64, 18, marks=pytest.mark.slow),
        pytest.param("resnet18", "none", 256, 23, marks=pytest.mark.slow),
        pytest.param("resnet50", "concat", 224, 18, marks=pytest.mark.slow),
        pytest.param(TINY, "none", 224, 18, marks=pytest.mark.slow),
        pytest.param(TINY, "concat", 224, 18, marks=pytest.mark.slow),
        pytest.param("swinv2_tiny_window8_256", "concat", 256, 18, marks=pytest.mark.slow),
    ],
)
def test_the_file_scores_as_the_model_does_and_says_how_to_use_it(
    tmp_path, capsys, backbone, fusion, patch_size, opset
):
    import onnx
    import onnxruntime

    fusion, _, hyper = fusion.partition("+")
    changes = {"backbone": backbone, "fusion": fusion, "patch_size": patch_size, "resize": "none"}
    changes |= {
        "hyper": hyper or "conv",
        "dropout": 0.3,
        "drop_path": 0.1,
    }  # which scoring does not see
    changes |= {
        "mean": [0.3, 0.5, 0.6],
        "std": [0.4, 0.2, 0.1],
    }  # which the graph applies, as `score` does
    best = save(tmp_path / "run" / "best_model_srcc_0.9000_plcc_0.8000.pkl", **changes)
    run(best.parent, "--opset", opset)
    path = best.with_name("best_model_srcc_0.9000_plcc_0.8000.onnx")
    assert f"{path} (" in capsys.readouterr().out
    assert sorted(p.name for p in best.parent.iterdir()) == [path.name, best.name]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,), (given) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == (
        "patches",
        "tensor(uint8)",
        ["N", patch_size, patch_size, 3],
    )
    assert [(out.name, out.type, out.shape) for out in given] == [
        ("scores", "tensor(float)", ["N"])
    ]
    model, images = load(best, "cpu"), [picture(400, 300, seed=i) for i in range(3)]
    patches = [model.patches(image) for image in images]
    found = [session.run(None, {"patches": p})[0].mean() for p in patches]
    expected = [model.score(image) for image in images]
    assert found == pytest.approx(expected, abs=1e-4) and np.ptp(expected) > 1e-3
    together = session.run(["scores"], {"patches": np.concatenate(patches)})[0]
    assert together.reshape(3, 3).mean(1) == pytest.approx(expected, abs=1e-4)

    description = {
        "format": 1,
        **DESCRIPTION,
        **changes,
        "metrics": {"test": {"srcc": None, "plcc": 0.5}},
    }
    assert json.loads(session.get_modelmeta().custom_metadata_map["hyperiqa"]) == description
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    assert [(o.domain, o.version) for o in proto.opset_import if not o.domain] == [("", opset)]
    data = path.read_bytes()
    assert str(ROOT).encode() not in data and b'File "' not in data, (
        "stack traces of the exporting machine"
    )


@needs_onnx
def test_a_file_that_scores_otherwise_is_not_left(checkpoint, tmp_path, monkeypatch):
    model = load(checkpoint, "cpu")
    proto = export.to_onnx(model, 18)
    score = onnx_graph(proto.SerializeToString())[0]
    line = export.compare_scores(model, score, tmp_path / "m.onnx", "onnxruntime")
    assert float(re.match(r"largest difference to PyTorch (\S+),", line)[1]) < 1e-4
    with torch.no_grad():
        model.net.fc5b_fc.bias += 0.009  # more than 1e-4 of the range of 80
    monkeypatch.setattr(export, "to_onnx", lambda *_: proto)
    with pytest.raises(
        UserError, match="m.onnx: not written: onnxruntime's scores differ by 0.009 from PyTorch's"
    ):
        export.write(model, tmp_path / "m.onnx", "onnx", Namespace(opset=18))
    with torch.no_grad():
        model.net.fc5b_fc.bias += float("nan")
    with pytest.raises(UserError, match="not finite"):
        export.write(model, tmp_path / "m.onnx", "onnx", Namespace(opset=18))
    assert list(tmp_path.iterdir()) == []


def test_the_patches_to_compare_on_are_different_and_cover_the_range():
    patches = export.sample_patches(64)
    assert patches.shape == (8, 64, 64, 3) and patches.dtype == np.uint8
    assert len({patch.tobytes() for patch in patches}) == 8
    assert patches[-2].max() == 0 and patches[-1].min() == 255
    roughness = [np.abs(np.diff(patch.astype(int), axis=1)).mean() for patch in patches[1:6]]
    assert roughness == sorted(roughness, reverse=True) and roughness[-1] < 10 < 60 < roughness[0]


@pytest.mark.parametrize("form", ["safetensors", "pkl"])
def test_models_of_the_public_code_are_converted(tmp_path, capsys, form):
    net = fill_by_recipe(build({"backbone": "resnet18", "fusion": "none", "patch_size": 224}))
    old = {
        "state_dict": OrderedDict(
            (f"module.{name}", tensor) for name, tensor in net.state_dict().items()
        )
    }
    torch.save(old, tmp_path / "public.pkl", _use_new_zipfile_serialization=False)
    output = tmp_path / "converted" / f"ours.{form}"
    run(tmp_path / "public.pkl", output)
    assert (
        "public.pkl: the file has no description; it gets the one of a public model"
        in capsys.readouterr().out
    )
    before, after = load(tmp_path / "public.pkl", "cpu"), load(output, "cpu")
    assert after.description == {**before.description, "format": 1, "described": True}
    assert after.score(picture()) == before.score(picture())
    if form == "pkl":
        state = torch.load(output, weights_only=True)
        net.load_state_dict(state, strict=True)
        assert type(state) is OrderedDict


@pytest.mark.parametrize(
    ("changes", "misfits"),
    [
        ({}, "backbone resnet18"),
        ({"backbone": "swin_nano", "fusion": "concat"}, "backbone swin_nano, fusion concat"),
        ({"std": [0.5, 0.5, 0.5]}, r"backbone resnet18, std \[0.5, 0.5, 0.5\]"),
    ],
)
def test_what_pyiqas_layout_cannot_hold_is_refused(tmp_path, changes, misfits):
    model = save(tmp_path / "model.pkl", **{"patch_size": 224, **changes})
    expected = (
        "^--layout pyiqa: pyiqa's HyperNet has backbone resnet50, head hyper, fusion none, hyper conv, "
        rf"patch_size 224, mean .*, std .*; this model has {misfits}$"
    )
    with pytest.raises(UserError, match=expected):
        run(model, tmp_path / "theirs.pth", "--layout", "pyiqa")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pkl"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["model.pkl", "m.onnx", "--layout", "pyiqa"],
            "--layout pyiqa: expected an OUTPUT that ends with .pth or .pkl",
        ),
        (
            ["model.pkl", "--layout", "pyiqa", "--push", "a/b"],
            "--layout pyiqa: expected an OUTPUT that ends with .pth or .pkl",
        ),
        (["gone.pkl"], "gone.pkl: no such file"),
        (["model.pkl", "model.pkl"], "model.pkl: is the checkpoint itself; name another OUTPUT"),
        (["model.pkl", "--format", "pkl", "--force"], "model.pkl: is the checkpoint itself"),
        (
            ["model.pkl", "there.onnx"],
            "there.onnx: exists already; name another OUTPUT or add --force",
        ),
        (["model.pkl", "--format", "safetensors"], "model.safetensors: exists already"),
        (["model.pkl", "folder.onnx", "--force"], "folder.onnx: is a folder"),
        (
            ["model.pkl", "model.tflite"],
            "model.tflite: expected OUTPUT to end with .onnx, .xml, .safetensors, .pkl",
        ),
        (["model.pkl", "model"], "model: expected OUTPUT to end with"),
        (
            ["model.pkl", "model.onnx", "--format", "pkl"],
            "contradictory: --format pkl and model.onnx",
        ),
        (["model.pkl", "--opset", "11"], "--opset 11: expected a whole number from 18 to 23"),
        (["model.pkl", "--opest", "18"], r"unknown flag --opest .*did you mean --opset"),
        (["empty"], "empty: no best_model_srcc_….pkl in this folder"),
        ([], "the following arguments are required: CHECKPOINT"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    for name in ("model.pkl", "there.onnx", "model.safetensors"):
        Path(name).write_text("as before")
    for name in ("empty", "folder.onnx"):
        Path(name).mkdir()
    monkeypatch.setattr(errors, "not_installed", lambda *_: "")
    with pytest.raises(UserError, match=message):
        export.main(argv)
    assert all(
        Path(name).read_text() == "as before"
        for name in ("model.pkl", "there.onnx", "model.safetensors")
    )


def test_missing_packages_are_named_before_the_work(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("onnxr") else found(name)
    )
    (tmp_path / "model.pkl").write_text("is never read")
    missing = ", ".join(
        name for name in export.NEEDED["onnx"] if name == "onnxruntime" or found(name) is None
    )
    expected = f"--format onnx needs {missing}: pip install onnx onnxscript onnxruntime"
    with pytest.raises(UserError, match=expected):
        run(tmp_path / "model.pkl")


def test_force_replaces_and_a_failure_keeps_what_was_there(checkpoint, tmp_path):
    output = tmp_path / "model.safetensors"
    output.write_text("before")
    (tmp_path / "broken.pkl").write_text("no checkpoint")
    with pytest.raises(UserError, match="broken.pkl: not a checkpoint of tensors"):
        run(tmp_path / "broken.pkl", output, "--force")
    assert output.read_text() == "before"
    run(checkpoint, output, "--force")
    assert load(output, "cpu").score(picture()) == load(checkpoint, "cpu").score(picture())
