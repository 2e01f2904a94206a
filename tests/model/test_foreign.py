"""pyiqa's layout, and public models by name. pyiqa 0.1.16 itself made the figures (archs/hypernet_arch.py)."""

import hashlib
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from helpers import recipe_images, recipe_tensor
from hub import serving

import export
from hyperiqa.base import public_models
from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints, factory
from hyperiqa.scoring import quality_model

# Its HyperNet with weights by the recipe, under its own names: patches of recipe_images(4, 0).
SCORES = [1.0311466, 1.1156721, 1.2464837, 1.2578729]
# SHA-256 of its 355 sorted lines "NAME SHAPE".
NAMES = "da3caa757e8edc4f265b5b1bd4e8cfbd60eb338b03340d624658e9a25da263e4"
# Its modules and what they are called in the public code; the rest is `base_model.` and `res.`.
MODULES = {
    "lda_modules.0.0": "res.lda1_pool.0",
    "lda_modules.0.3": "res.lda1_fc",
    "lda_modules.1.0": "res.lda2_pool.0",
    "lda_modules.1.3": "res.lda2_fc",
    "lda_modules.2.0": "res.lda3_pool.0",
    "lda_modules.2.3": "res.lda3_fc",
    "lda_modules.3.2": "res.lda4_fc",
    "fc_w_modules.0": "fc1w_conv",
    "fc_w_modules.1": "fc2w_conv",
    "fc_w_modules.2": "fc3w_conv",
    "fc_w_modules.3": "fc4w_conv",
    "fc_w_modules.4.2": "fc5w_fc",
    "fc_b_modules.0.2": "fc1b_fc",
    "fc_b_modules.1.2": "fc2b_fc",
    "fc_b_modules.2.2": "fc3b_fc",
    "fc_b_modules.3.2": "fc4b_fc",
    "fc_b_modules.4.2": "fc5b_fc",
}


def digest_of_names(state):
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.fixture(scope="module")
def pyiqa_file(tmp_path_factory):
    """A file as pyiqa saves its HyperNet, here from a wrapper of several GPUs."""
    with torch.device("meta"):
        ours = factory.build({"backbone": "resnet50", "fusion": "none"}).state_dict()
    modules = {f"{ours}.": f"{theirs}." for theirs, ours in MODULES.items()}
    state = {}
    for name, tensor in ours.items():
        module = next((module for module in modules if name.startswith(module)), None)
        if module:
            name = modules[module] + name.removeprefix(module)
        name = name.replace("res.", "base_model.")
        is_counter = name.endswith("num_batches_tracked")
        state[name] = torch.tensor(0) if is_counter else recipe_tensor(name, tensor.shape)
    assert digest_of_names(state) == NAMES
    path = tmp_path_factory.mktemp("pyiqa") / "HyperIQA-resnet50.pth"
    torch.save({"params": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


def test_pyiqas_model_scores_as_in_pyiqa_and_goes_back_unchanged(pyiqa_file, tmp_path, capsys):
    model = quality_model.load(pyiqa_file, "cpu")
    with torch.no_grad():
        scores = model.net(recipe_images(4, 0))["scores"]
    assert scores.tolist() == pytest.approx(SCORES, abs=1e-5)
    assert {
        "backbone": "resnet50",
        "fusion": "none",
        "patch_size": 224,
        "resize": "none",
        "test_crop": "grid",
        "test_patch_num": 25,
        "dataset": "koniq-10k",
        "score_range": [0.0, 1.0],
        "described": False,
    }.items() <= model.description.items()

    output = tmp_path / "ours.pth"
    export.main([str(pyiqa_file), str(output), "--layout", "pyiqa"])
    printed = capsys.readouterr().out
    assert "the file has no description; it gets the one of a public model" in printed
    assert "in pyiqa's layout; the scores stay on 0 to 1" in printed
    written = torch.load(output, weights_only=True)["params"]
    assert digest_of_names(written) == NAMES
    original = torch.load(pyiqa_file, weights_only=True)["params"]
    assert all(torch.equal(original[f"module.{name}"], written[name]) for name in written)
    # Its description went along, so it is ours again.
    assert checkpoints.load_model(output)[1] == {
        **model.description,
        "format": 1,
        "described": True,
    }


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """hub(content): a Hub on this machine where `koniq` has this content."""
    model = public_models.PUBLIC_MODELS["koniq"]
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        address = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)

        def publish(content: bytes):
            files = {model.file: content}
            commit = hashlib.sha1(content).hexdigest()
            repo = {"private": False, "head": commit, "commits": {"main": files, commit: files}}
            server.repos[model.repo] = repo
            return server

        yield publish


def test_a_name_is_a_download_once_and_an_existing_path_wins(hub, tmp_path, monkeypatch):
    content = b"as published"
    server = hub(content)
    published = SimpleNamespace(
        **{
            **vars(public_models.PUBLIC_MODELS["koniq"]),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    )
    monkeypatch.setitem(public_models.PUBLIC_MODELS, "koniq", published)
    path = checkpoints.find_model(Path("koniq"))
    assert path.read_bytes() == content and path.name == published.file
    server.shutdown()
    server.server_close()
    assert checkpoints.find_model(Path("koniq")) == path
    (tmp_path / "koniq").write_bytes(b"own")
    assert checkpoints.find_model(Path("koniq")).read_bytes() == b"own"


def test_a_file_with_another_hash_is_refused(hub):
    hub(b"not the published file")
    message = (
        r"^koniq: .*/hub/.* is not the published file: expected SHA-256 c96c41b1\w+, found "
        r"\w{64}; delete the file to download it again$"
    )
    with pytest.raises(UserError, match=message):
        quality_model.load("koniq")


@pytest.mark.parametrize("network", ["none", pytest.param("silent", marks=pytest.mark.slow)])
def test_without_network_one_line_says_how_to_bring_the_file(monkeypatch, tmp_path, network):
    monkeypatch.chdir(tmp_path)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        if network == "none":
            server.close()
        started = time.monotonic()
        with pytest.raises(UserError) as caught:
            quality_model.load("koniq")
        assert time.monotonic() - started < 10
    message = str(caught.value)
    assert message.startswith(
        "hf://chaofengc/IQA-PyTorch-Weights: HyperIQA-resnet50-koniq10k-c96c41b1.pth cannot be "
        "downloaded: http://127.0.0.1"
    )
    assert message.endswith(
        "; download https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/HyperIQA-"
        "resnet50-koniq10k-c96c41b1.pth on a machine with network, and give the path of the file "
        "in place of koniq"
    )
    assert "\n" not in message


def test_a_misspelt_name_is_answered_with_the_known_ones(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        quality_model.load("konik")
    assert str(caught.value) == (
        "konik: no such file or folder (did you mean koniq?); expected a model file, a run's "
        "folder, hf://USER/NAME or a public model (koniq, koniq-authors)"
    )
