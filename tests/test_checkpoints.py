import errno
import pickle
import socket
import time
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision

import checkpoints
from models import HyperNet, ResNetBackbone
from models_swin import SwinBackbone
from options import UserError


def test_write_whole_replaces_or_leaves_alone(tmp_path):
    path = tmp_path / "new" / "file"
    checkpoints.write_whole(path, lambda file: file.write(b"first"))

    def broken(file):
        file.write(b"second")
        raise KeyError("our own bug")

    def full(file):
        file.write(b"third")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(KeyError):
        checkpoints.write_whole(path, broken)
    with pytest.raises(UserError, match=r"new/file: cannot be written: No space left on device"):
        checkpoints.write_whole(path, full)
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
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values()))
    assert checkpoints.description_of(other.state_dict()) is None


def test_a_damaged_state_never_takes_the_place_of_the_good_one(tmp_path):
    for n in (1, 2):
        checkpoints.save_last(tmp_path, {"n": n})
    (tmp_path / "last.pt").write_bytes(b"damaged")
    state, note = checkpoints.load_last(tmp_path)
    assert state == {"n": 1} and note.endswith("falling back to previous.pt")
    checkpoints.save_last(tmp_path, {"n": 3})
    assert [checkpoints.load(tmp_path / f"{name}.pt")["n"] for name in ("previous", "last")] == [1, 3]


def test_wrappers_leave_no_trace_in_the_names():
    inner = torch.nn.Linear(2, 1)
    wrapped = torch.nn.ModuleDict({"module": torch.nn.ModuleDict({"_orig_mod": inner})})["module"]
    assert list(checkpoints.portable_state(wrapped)) == ["weight", "bias"]


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize("content", ["pickle with code", "text", "empty", "missing"])
def test_load_refuses_everything_but_tensors(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    if content == "pickle with code":
        path.write_bytes(pickle.dumps(Bomb()))
    elif content != "missing":
        path.write_text("no checkpoint" if content == "text" else "")
    with pytest.raises(UserError, match=r"evil.pkl: (no such file|not a checkpoint of tensors: )"):
        checkpoints.load(path)
    assert not (tmp_path / "exploded").exists()


def test_backbone_weights_of_torchvision_and_timm(tmp_path):
    resnet = torchvision.models.resnet18()
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    backbone = ResNetBackbone("resnet18")
    lda = backbone.lda1_fc.weight.clone()
    checkpoints.load_backbone_weights(backbone.pretrained_part, tmp_path / "resnet.pth")
    assert torch.equal(backbone.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)
    assert torch.equal(backbone.bn1.running_mean, resnet.bn1.running_mean)
    assert torch.equal(backbone.lda1_fc.weight, lda)

    swin = timm.create_model("swin_tiny_patch4_window7_224")
    torch.save({"model": swin.state_dict()}, tmp_path / "swin.pth")
    backbone = SwinBackbone("swin_tiny_patch4_window7_224")
    checkpoints.load_backbone_weights(backbone.pretrained_part, tmp_path / "swin.pth")
    theirs = swin.layers[3].blocks[1].mlp.fc2.weight
    assert torch.equal(backbone.backbone.layers_3.blocks[1].mlp.fc2.weight, theirs)

    with pytest.raises(UserError, match=r"swin.pth: \d+ of the backbone's \d+ tensors are missing or of another shape"):
        checkpoints.load_backbone_weights(ResNetBackbone("resnet18").pretrained_part, tmp_path / "swin.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="list.pth: expected a state dict"):
        checkpoints.load_backbone_weights(backbone.pretrained_part, tmp_path / "list.pth")


def test_a_server_that_never_answers_is_noticed_in_time():
    """A socket that accepts and stays silent: the worst kind of network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        start, url = time.monotonic(), f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth"
        with pytest.raises(OSError, match="does not answer|timed out"):
            checkpoints.check_reachable(url, seconds=1)
    assert time.monotonic() - start < 5
    with pytest.raises(OSError, match="refused"):
        checkpoints.check_reachable(url)
