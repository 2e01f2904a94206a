"""Damaged and hostile descriptions: each is refused by one line that names the field."""

import copy
import math
import resource

import pytest
import timm
import torch

from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints, description, factory
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.resnet import ResNetBackbone
from hyperiqa.scoring import quality_model

DIGEST = "0123456789abcdef"
CERTIFICATE = {
    "format": 1,
    "command": ["train_timm.py", "--dataset", "csv"],
    "seed": 42,
    "code": {"sources": DIGEST, "changed": False, "commit": "unknown", "torch": "2.6.0"},
    "hardware": {"device": "cpu", "precision": "fp32", "threads": 1, "processes": 1},
    "rule": {"select_on": "test", "select_set": None, "patience": False},
    "sets": {
        "csv": {
            "flag": "csv",
            "path": "mine.csv",
            "trained": True,
            "images": {"train": 8, "test": 4},
            "records": DIGEST,
            "pixels": DIGEST,
            "notes": [],
            "looks": "",
        }
    },
    "starts": {"init": {"file": "a.pkl", "weights": DIGEST, "starts": {}}},
    "resamples": 1000,
    "round": 1,
    "epoch": 1,
    "weights": DIGEST,
    "predictions": DIGEST,
    "figures": {"test": {"srcc": [0.8, -1.0, 1.0], "plcc": [None, None, None]}},
    "seal": DIGEST,
}
RECORD = {
    "flag": "csv:mine",
    "path": "mine.csv",
    "weights": DIGEST,
    "split": "auto",
    "seed": None,
    "skip_bad_images": False,
    "lower_is_better": [],
    "image_column": "image",
    "score_column": "mos",
    "split_column": "split",
    "group_column": "group",
    "image_root": None,
    "test_crop": "grid",
    "test_patch_num": 4,
    "resize": "72",
    "like_training": 0,
    "records": DIGEST,
    "pixels": DIGEST,
    "digest": DIGEST,
}
CALIBRATION = {
    "images": 24,
    "quantiles": list(range(101)),
    "curve": [50.0] * 101,
    "spread": [1.0] * 101,
    "residuals": [-1.0, 0.0, 2.0],
    "opinions": [1.0, 5.0],
    "which": "all",
    "model_scale": False,
    "score_range": [1.0, 5.0],
    "higher_is_better": True,
    "chose_epoch": False,
    "record": RECORD,
}
DESCRIPTION = {
    "backbone": "resnet18",
    "fusion": "none",
    "patch_size": 64,
    "resize": "72",
    "dataset": "csv",
    "score_range": [0.0, 100.0],
    "higher_is_better": True,
    "test_crop": "center",
    "test_patch_num": 25,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "metrics": {"test": {"srcc": 0.8, "plcc": math.nan}},
    "certificate": CERTIFICATE,
    "calibration": {"mine": CALIBRATION},
}
# Field, its damaged value, and what the line says of it.
DAMAGED = [
    ("patch_size", 10**6, "patch_size: expected a whole number from 32 to 4096, found 1000000"),
    ("patch_size", "64", "patch_size: expected a whole number"),
    ("patch_size", -1, "patch_size: expected a whole number"),
    ("patch_size", 63.5, "patch_size: expected a whole number"),
    ("test_crop", "evil", "test_crop: expected one of center, grid, random, found 'evil'"),
    ("test_patch_num", 10**9, "test_patch_num: expected at most 24414 patches of 64 pixels"),
    ("test_patch_num", "x", "test_patch_num: expected a whole number of at least 1, found 'x'"),
    ("resize", 5, "resize: expected S, maxS, HxW or none, found 5"),
    ("resize", "evil", "resize: expected S, maxS, HxW or none, found 'evil'"),
    ("resize", "900000x900000", "resize: expected S, maxS, HxW or none"),
    ("score_range", [], "score_range: expected two numbers, the smaller first, found []"),
    ("score_range", "ab", "score_range: expected two numbers, the smaller first"),
    ("score_range", [9, 1], "score_range: expected two numbers, the smaller first"),
    ("higher_is_better", "no", "higher_is_better: expected true or false, found 'no'"),
    ("dataset", ["csv"], "dataset: expected a text"),
    ("mean", [0.5, "x", 0.5], "mean[1]: expected a number from -1000 to 1000, found 'x'"),
    ("mean", [0.5], "mean: expected a list of 3 values, found [0.5]"),
    ("std", [0.0] * 3, "std[0]: expected a number from 1e-06 to 1000, found 0.0"),
    ("backbone", None, "backbone: expected a text, found None"),
    ("backbone", "local-dir:/etc", "architecture: missing for backbone local-dir:/etc"),
    ("backbone", "hf-hub:a/b", "architecture: missing for backbone hf-hub:a/b"),
    ("architecture", "x", "architecture: expected named fields, found 'x'"),
    ("dropout", "half", "dropout: expected a number from 0 to 1, found 'half'"),
    ("metrics", {"test": "x"}, "metrics.test: expected named fields, found 'x'"),
    ("scales", {"csv": {"factor": 0}}, "scales.csv.offset: missing"),
    ("certificate", "x", "certificate: expected named fields, found 'x'"),
    ("certificate.sets", [1], "certificate.sets: expected named fields, found [1]"),
    ("certificate.sets.csv.looks", 3, "certificate.sets.csv.looks: expected a text, found 3"),
    ("certificate.epoch", -1, "certificate.epoch: expected a whole number from 0 to 1000000000"),
    ("certificate.command", [], "certificate.command: expected a list of 1 to 10000 values"),
    ("certificate.figures.test.srcc", 0.8, "certificate.figures.test.srcc: expected a list"),
    ("certificate.starts.init.file", 0, "certificate.starts.init.file: expected a text"),
    ("certificate.weights", "evil", "certificate.weights: expected a digest of hexadecimal digits"),
    ("calibration", [1], "calibration: expected named fields, found [1]"),
    ("calibration.mine", {}, "calibration.mine.images: missing"),
    ("calibration.mine.images", 0, "calibration.mine.images: expected a whole number from 1"),
    ("calibration.mine.quantiles", [2, 1], "calibration.mine.quantiles: expected 101 numbers that"),
    ("calibration.mine.quantiles", [*range(100), 5], "calibration.mine.quantiles: expected 101"),
    ("calibration.mine.quantiles", [math.nan] * 101, "calibration.mine.quantiles: expected 101"),
    ("calibration.mine.curve", [1.0], "calibration.mine.curve: expected a list of 101 values"),
    ("calibration.mine.curve", [math.inf] * 101, "calibration.mine.curve[0]: expected a number"),
    ("calibration.mine.spread", [0.0] * 101, "calibration.mine.spread[0]: expected a number from"),
    ("calibration.mine.residuals", [], "calibration.mine.residuals: expected a list of 1 to 1000"),
    ("calibration.mine.residuals", ["x"], "calibration.mine.residuals[0]: expected a number"),
    ("calibration.mine.opinions", [5, 1], "calibration.mine.opinions: expected two numbers, the"),
    ("calibration.mine.which", 5, "calibration.mine.which: expected a text, found 5"),
    ("calibration.mine.higher_is_better", "no", "calibration.mine.higher_is_better: expected true"),
    ("calibration.mine.record", {"flag": "x"}, "calibration.mine.record.path: missing"),
    ("calibration.mine.record.path", 3, "calibration.mine.record.path: expected a text, or null"),
    ("calibration.mine.record.split", "x", "calibration.mine.record.split: expected one of auto"),
    ("calibration.mine.record.digest", "x", "calibration.mine.record.digest: expected a digest"),
    ("certificate.hardware.threads", 10**9, "certificate.hardware.threads: expected a whole"),
]


# A description is refused before anybody looks at the tensors.
TENSORS = {"w": torch.zeros(2)}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return checkpoints.portable_state(HyperNet(ResNetBackbone("resnet18")))


def test_the_undamaged_description_is_accepted(state, tmp_path):
    checkpoints.save_safetensors(tmp_path / "m.safetensors", state, DESCRIPTION)
    model = quality_model.load(tmp_path / "m.safetensors", "cpu")
    assert model.description["certificate"]["epoch"] == 1


@pytest.mark.parametrize(("field", "value", "line"), DAMAGED)
def test_a_damaged_field_is_named(tmp_path, field, value, line):
    damaged = copy.deepcopy(DESCRIPTION)
    *outer, name = field.split(".")
    place = damaged
    for key in outer:
        place = place[key]
    place[name] = value
    checkpoints.save_safetensors(tmp_path / "m.safetensors", TENSORS, damaged)
    with pytest.raises(UserError) as mistake:
        quality_model.load(tmp_path / "m.safetensors", "cpu")
    assert f"m.safetensors: its description is damaged: {line}" in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("field", sorted(description.CERTIFICATE.required))
def test_a_certificate_without_a_field_is_refused(tmp_path, field):
    certificate = {name: fact for name, fact in CERTIFICATE.items() if name != field}
    checkpoints.save_safetensors(
        tmp_path / "m.safetensors", TENSORS, {**DESCRIPTION, "certificate": certificate}
    )
    with pytest.raises(UserError, match=f"certificate.{field}: missing"):
        checkpoints.load_model(tmp_path / "m.safetensors")


def test_a_certificate_of_a_later_format_is_left_alone(state, tmp_path):
    later = {**DESCRIPTION, "certificate": {"format": 2, "sets": "of another kind"}}
    checkpoints.save_safetensors(tmp_path / "m.safetensors", state, later)
    model = quality_model.load(tmp_path / "m.safetensors", "cpu")
    assert description.certificate_of(model.description) == {}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("checkpoint_path", "evil.pt"),
        ("pretrained_cfg", {"file": "evil.pt"}),
        ("pretrained", True),
        ("url", "http://localhost/evil"),
        ("norm_layer", "evil"),
        ("global_pool", "evil.pt"),
        ("depth", "12"),
        ("depth", 10**9),
        ("embed_dims", [64, 10**9]),
        ("embed_dim", {"of": 1}),
    ],
)
def test_only_shapes_reach_timm(tmp_path, argument, value):
    """Without the list of allowed arguments, old timm unpickles `checkpoint_path`."""
    shape = {"name": "test_vit", "args": {argument: value}}
    hostile = {**DESCRIPTION, "backbone": "hf-hub:a/b", "architecture": shape}
    with pytest.raises(
        UserError, match=f"its architecture has {argument}=.*; expected nothing but"
    ):
        factory.build(hostile)
    (tmp_path / "config.json").write_text(
        '{"architecture": "test_vit", "model_args": {"checkpoint_path": "evil.pt"}}'
    )
    with pytest.raises(UserError, match="its architecture has checkpoint_path='evil.pt'"):
        factory.build_backbone(f"local-dir:{tmp_path}")


def test_an_encoder_that_the_file_cannot_fill_takes_no_memory(state):
    """An encoder of this width would have 1.6 billion parameters, 6 GiB."""
    shape = {"name": "test_vit", "args": {"embed_dim": 8192, "num_heads": 8}}
    hostile = {**DESCRIPTION, "backbone": "hf-hub:a/b", "architecture": shape}
    with torch.device("meta"):
        encoder = timm.create_model("test_vit", embed_dim=8192, num_heads=8)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=f"has {parameters:,} parameters"):
        factory.build(hostile, state)
    # KiB, as Linux counts.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before < 500_000
