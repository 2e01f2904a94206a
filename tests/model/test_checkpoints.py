import errno
import json
import math
import os
import pickle
import struct
from collections import OrderedDict

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from hyperiqa.base.errors import UserError
from hyperiqa.base.files import write_whole
from hyperiqa.model import checkpoints, pretrained
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.resnet import ResNetBackbone
from hyperiqa.model.swin import SwinBackbone
from hyperiqa.training.state import load_last, save_last

DESCRIPTION = {
    "backbone": "resnet18",
    "fusion": "none",
    "patch_size": 64,
    "resize": "72",
    "exif_rotate": True,
    "dataset": "livec",
    "score_range": [1.0, 5.0],
    "higher_is_better": False,
    "test_crop": "grid",
    "test_patch_num": 4,
    "metrics": {"test": {"srcc": 0.5, "plcc": 0.25}},
}
# What the public code leaves in a file, by name and shape: tensors on the meta device have no more.
TINY = "swin_tiny_patch4_window7_224"


def shapes_of(name, fusion="none"):
    with torch.device("meta"):
        return HyperNet(
            SwinBackbone(name) if name.startswith("swin") else ResNetBackbone(name), fusion
        ).state_dict()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return HyperNet(ResNetBackbone("resnet18"))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_write_whole_replaces_or_leaves_alone(tmp_path):
    path = tmp_path / "new" / "file"
    write_whole(path, lambda file: file.write(b"first"))

    def broken(file):
        file.write(b"second")
        raise KeyError("our own bug")

    def full(file):
        file.write(b"third")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(KeyError):
        write_whole(path, broken)
    with pytest.raises(UserError, match=r"new/file: cannot be written: No space left on device"):
        write_whole(path, full)
    assert path.read_bytes() == b"first" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_description_survives_a_tensors_only_load_and_a_strict_one(tmp_path):
    model = HyperNet(ResNetBackbone("resnet18"))
    description = {"backbone": "resnet18", "score_range": [0.0, 100.0], "higher_is_better": True}
    checkpoints.save(tmp_path / "best.pkl", checkpoints.portable_state(model, description))
    state = torch.load(tmp_path / "best.pkl", weights_only=True)
    assert type(state) is OrderedDict
    assert checkpoints.description_of(state) == {"format": 1, **description}
    other = HyperNet(ResNetBackbone("resnet18"))
    other.load_state_dict(state, strict=True)
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values())
    )
    assert checkpoints.description_of(other.state_dict()) is None


def test_a_damaged_state_never_takes_the_place_of_the_good_one(tmp_path):
    for n in (1, 2):
        save_last(tmp_path, {"n": n})
    (tmp_path / "last.pt").write_bytes(b"damaged")
    state, note = load_last(tmp_path)
    assert state == {"n": 1} and note.endswith("falling back to previous.pt")
    save_last(tmp_path, {"n": 3})
    assert [checkpoints.load(tmp_path / f"{name}.pt")["n"] for name in ("previous", "last")] == [
        1,
        3,
    ]


def test_wrappers_leave_no_trace_in_the_names():
    inner = torch.nn.Linear(2, 1)
    for outer, within in (("module", "_orig_mod"), ("_orig_mod", "module")):
        wrapped = torch.nn.ModuleDict({outer: torch.nn.ModuleDict({within: inner})})
        assert list(checkpoints.portable_state(wrapped)) == ["weight", "bias"]


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("pickle with code", "not a checkpoint of tensors: damaged, or not written by torch.save"),
        (
            "code",
            r"not a checkpoint of tensors: it holds _?io\.open, and loading anything but tensors can run code",
        ),
        ("code, old format", "not a checkpoint of tensors: it holds"),
        ("whole module", "not a checkpoint of tensors: it holds torch.nn.modules.linear.Linear"),
        ("text", "not a checkpoint of tensors: damaged, or not written by torch.save"),
        ("empty", "the file is empty; expected a checkpoint"),
        ("missing", "no such file"),
        ("folder", "not a checkpoint of tensors: Is a directory"),
    ],
)
def test_load_refuses_everything_but_tensors(tmp_path, monkeypatch, content, reason):
    """And says why in one line, without torch's advice to switch the protection off."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    if content == "pickle with code":
        path.write_bytes(pickle.dumps(Bomb()))
    elif content.startswith("code"):
        torch.save({"state_dict": Bomb()}, path, _use_new_zipfile_serialization=content == "code")
    elif content == "whole module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif content == "folder":
        path.mkdir()
    elif content != "missing":
        path.write_text("no checkpoint" if content == "text" else "")
    with pytest.raises(UserError, match=f"evil.pkl: {reason}") as caught:
        checkpoints.load(path)
    assert not (tmp_path / "exploded").exists()
    assert not any(word in str(caught.value) for word in ("\n", "\x1b", "weights_only"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path, model, zipped, share):
    path = tmp_path / "cut.pkl"
    torch.save(
        OrderedDict(list(model.state_dict().items())[:40]),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match="cut.pkl: not a checkpoint of tensors: ."):
        checkpoints.load(path)


# ---------------------------------------------------------------------------------------- model files
@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_our_models_come_back_as_they_were(tmp_path, model, suffix):
    path, state = tmp_path / f"model{suffix}", checkpoints.portable_state(model, DESCRIPTION)
    if suffix == ".pkl":
        checkpoints.save(path, state)
    else:
        strided = {
            name: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t
            for name, t in state.items()
        }
        checkpoints.save_safetensors(path, strided, DESCRIPTION)
    found, description = checkpoints.load_model(path)
    assert same(found, model.state_dict())
    assert description == {"format": 1, **DESCRIPTION, "described": True}
    checkpoints.save(tmp_path / "again.pkl", checkpoints.portable_state(model, description))
    assert checkpoints.description_of(torch.load(tmp_path / "again.pkl", weights_only=True)) == {
        "format": 1,
        **DESCRIPTION,
    }


def test_undefined_figures_are_null_in_the_description_of_safetensors():
    text = checkpoints.description_json(
        {"metrics": {"srcc": math.nan, "plcc": 0.5}, "described": False}
    )
    assert text == '{"format": 1, "metrics": {"srcc": null, "plcc": 0.5}}'


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        TINY,
        TINY.replace("tiny", "small"),
        TINY.replace("tiny", "base"),
    ],
)
@pytest.mark.parametrize("fusion", ["none", "concat", "direct", "attention"])
def test_models_without_description_are_recognised_by_their_names(tmp_path, name, fusion):
    torch.save(shapes_of(name, fusion), tmp_path / "public.pkl")
    _, description = checkpoints.load_model(tmp_path / "public.pkl")
    assert (description["backbone"], description["fusion"], description["described"]) == (
        name,
        fusion,
        False,
    )
    assert (description["patch_size"], description["resize"], description["test_crop"]) == (
        224,
        "512x384",
        "center",
    )
    assert description["score_range"] == [0.0, 100.0] and description["higher_is_better"] is True


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "state_dict",
        "model",
        "params",
        "net",
        "student",
        "ema",
        "module",
        "compiled",
        "old format",
        "all",
        "ours",
    ],
)
def test_wrapped_state_dicts_are_found(tmp_path, model, kind):
    state = checkpoints.portable_state(model, DESCRIPTION if kind == "ours" else None)
    if kind in ("module", "all"):
        state = OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
    if kind == "compiled":
        state = OrderedDict((f"module._orig_mod.{name}", tensor) for name, tensor in state.items())
    if kind == "all":
        state = {"epoch": 3, "model": "HyperIQA", "state_dict": state}
    elif kind == "ema":
        state = {
            "params": {name: tensor + 1 for name, tensor in state.items()},
            "params_ema": state,
        }
    elif kind in ("state_dict", "model", "params", "net", "student", "ours"):
        state = {"epoch": 3, "model" if kind == "ours" else kind: state}
    torch.save(
        state,
        tmp_path / "model.pth",
        _use_new_zipfile_serialization=kind not in ("old format", "all"),
    )
    found, description = checkpoints.load_model(tmp_path / "model.pth")
    assert same(found, model.state_dict())
    assert description["backbone"] == "resnet18" and description["described"] is (kind == "ours")


def test_old_timms_buffers_are_ignored(tmp_path):
    swin = HyperNet(SwinBackbone("swin_nano", patch_size=64))
    state = OrderedDict(swin.state_dict())
    blocks = "swin.backbone.layers_0.blocks"
    state[f"{blocks}.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    state[f"{blocks}.1.attn_mask"] = torch.full((64, 49, 49), math.nan)
    other = HyperNet(SwinBackbone("swin_nano", patch_size=64))
    checkpoints.fill(other, state, tmp_path / "old.pth")
    assert same(other.state_dict(), swin.state_dict())


def test_what_does_not_fit_is_named(tmp_path, model):
    state = OrderedDict(model.state_dict())
    checkpoints.fill(
        model,
        {n: t for n, t in state.items() if "num_batches_tracked" not in n},
        tmp_path / "older.pkl",
    )
    state["res.fc.weight"] = state.pop("fc1b_fc.weight")
    state["conv1.2.bias"] = torch.zeros(7)
    expected = (
        r"other.pkl: its parameters do not fit .*: 1 missing \(fc1b_fc.weight\); 1 unknown \(res.fc.weight\); "
        r"1 of another shape \(conv1.2.bias\)"
    )
    before = model.fc5b_fc.bias.clone()
    state["fc5b_fc.bias"] = before + 1
    with pytest.raises(UserError, match=expected):
        checkpoints.fill(model, state, tmp_path / "other.pkl")
    assert torch.equal(model.fc5b_fc.bias, before)


def foreign(kind):
    state = dict(shapes_of("resnet18"))
    if kind == "last":
        return {"settings": {}, "optimizer": {}, "model": state, "epoch": 3}
    if kind == "other channels":
        return {**state, "conv1.0.weight": torch.zeros(512, 3840, 1, 1)}
    if kind == "torchvision":
        return torchvision.models.resnet18().state_dict()
    if kind == "no head":
        return {name: tensor for name, tensor in state.items() if name.startswith("res.")}
    if kind == "no lda":
        return {name: tensor for name, tensor in state.items() if "lda" not in name}
    if kind == "odd depth":
        return {
            name: tensor for name, tensor in state.items() if not name.startswith("res.layer3.1")
        }
    if kind == "flat":
        return {**state, "conv1.0.weight": torch.zeros(512)}
    return {
        "list": [torch.zeros(2)],
        "numbers": {0: torch.zeros(2)},
        "empty": {},
        "two": {"student": state, "teacher": state},
        "tensor": torch.zeros(3),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            "last",
            "this is the state that --resume goes on from; expected the run's best model, best_model_srcc_….pkl",
        ),
        (
            "other channels",
            "conv1.0.weight takes 3840 channels; expected 512, those of the last stage, or 960, those of all stages",
        ),
        (
            "torchvision",
            r"not a HyperIQA model with a known backbone: expected .*; found conv1.weight, bn1.weight",
        ),
        ("no head", "not a HyperIQA model with a known backbone"),
        ("no lda", "not a HyperIQA model with a known backbone"),
        ("odd depth", "not a HyperIQA model with a known backbone"),
        ("flat", "not a HyperIQA model with a known backbone"),
        ("empty", "expected a state dict"),
        ("two", "expected one state dict, found student, teacher"),
        ("list", "expected a state dict"),
        ("numbers", "expected a state dict"),
        ("tensor", "expected a state dict"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path, kind, reason):
    torch.save(foreign(kind), tmp_path / "file.pt")
    with pytest.raises(UserError, match=f"file.pt: {reason}"):
        checkpoints.load_model(tmp_path / "file.pt")


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (
            {**DESCRIPTION, "format": 2},
            "its description has format 2, but this program reads only 1",
        ),
        (
            {"format": 1, "backbone": "resnet18"},
            "its description is damaged: fusion: missing",
        ),
        (
            ["resnet18"],
            r"its description is damaged: the whole: expected named fields, found \['resnet18'\]",
        ),
        (
            {**DESCRIPTION, "format": None},
            "its description is damaged: format: expected a whole number of at least 1, found None",
        ),
    ],
)
def test_descriptions_that_cannot_be_used_are_refused(tmp_path, description, reason):
    state = OrderedDict(w=torch.zeros(2))
    state._metadata = OrderedDict(version=1, hyperiqa=description)
    torch.save(state, tmp_path / "model.pkl")
    data = safetensors.torch.save(dict(state), {"hyperiqa": json.dumps(description)})
    (tmp_path / "model.safetensors").write_bytes(data)
    for path in (tmp_path / "model.pkl", tmp_path / "model.safetensors"):
        with pytest.raises(UserError, match=f"{path.name}: {reason}"):
            checkpoints.load_model(path)


@pytest.mark.parametrize(
    "damage", ["cut", "header cut", "text", "empty", "broken description", "huge header"]
)
def test_damaged_safetensors_are_refused(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    whole = safetensors.torch.save(
        {"w": torch.zeros(100)}, {"hyperiqa": "{" if damage == "broken description" else "{}"}
    )
    path.write_bytes(
        {
            "cut": whole[:-8],
            "header cut": whole[:20],
            "text": b"no tensors in here",
            "empty": b"",
            "broken description": whole,
            "huge header": struct.pack("<Q", 2**60) + whole[8:],
        }[damage]
    )
    with pytest.raises(UserError, match="model.safetensors: not a safetensors file: ."):
        checkpoints.load_model(path)
    with pytest.raises(UserError, match="none.safetensors: no such file"):
        checkpoints.load_model(tmp_path / "none.safetensors")


def test_a_runs_folder_means_its_newest_best_model(tmp_path):
    with pytest.raises(UserError, match=r"no best_model_srcc_….pkl in this folder"):
        checkpoints.find_model(tmp_path)
    for age, name in enumerate(
        ["best_model_srcc_0.7000_plcc_0.5000.pkl", "best_model_srcc_0.9000_plcc_0.9000.pkl"]
    ):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    (tmp_path / "last.pt").write_bytes(b"")
    assert checkpoints.find_model(tmp_path).name == "best_model_srcc_0.7000_plcc_0.5000.pkl"
    assert checkpoints.find_model(tmp_path / "last.pt") == tmp_path / "last.pt"


def test_backbone_weights_of_torchvision_and_timm(tmp_path):
    resnet = torchvision.models.resnet18()
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    backbone = ResNetBackbone("resnet18")
    lda = backbone.lda1_fc.weight.clone()
    pretrained.load_backbone_weights(backbone, tmp_path / "resnet.pth")
    assert torch.equal(backbone.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)
    assert torch.equal(backbone.bn1.running_mean, resnet.bn1.running_mean)
    assert torch.equal(backbone.lda1_fc.weight, lda)

    swin = timm.create_model("swin_tiny_patch4_window7_224")
    torch.save({"model": swin.state_dict()}, tmp_path / "swin.pth")
    backbone = SwinBackbone("swin_tiny_patch4_window7_224")
    pretrained.load_backbone_weights(backbone, tmp_path / "swin.pth")
    theirs = swin.layers[3].blocks[1].mlp.fc2.weight
    assert torch.equal(backbone.backbone.layers_3.blocks[1].mlp.fc2.weight, theirs)

    with pytest.raises(
        UserError,
        match=r"swin.pth: \d+ of the backbone's \d+ tensors are missing or of another shape",
    ):
        pretrained.load_backbone_weights(ResNetBackbone("resnet18"), tmp_path / "swin.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="list.pth: expected a state dict"):
        pretrained.load_backbone_weights(backbone, tmp_path / "list.pth")
