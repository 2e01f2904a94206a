"""The `mlp` head: what it reads of an encoder, against timm's own features, and what it computes, by hand."""

import re
import zlib

import numpy as np
import pytest
import timm
import torch
from helpers import write_images

import hyperiqa
import train_timm
from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints, factory
from hyperiqa.scoring import costs, maps
from hyperiqa.training.options import train_options
from HyperIQASolver import HyperIQASolver

# Names and shapes, the next random number, and the sum of a layer that is drawn late, of models that were made before
# there was a second head.
GOLDEN_STARTS = {
    ("resnet18", "none", "conv"): (152126595, 0.447751, 0.53905),
    ("swin_nano", "attention", "transformer"): (3210883873, 0.07262, -10.32214),
    ("tf_efficientnet_lite0", "concat", "conv"): (3988129172, 0.879759, -5.90708),
}
# A plain transformer with a class token and two registers, and one without a class token.
REGISTERS = {"name": "test_vit", "args": {"reg_tokens": 2}}


def build(name="test_vit", seed=0, **choices):
    torch.manual_seed(seed)
    return factory.build({"backbone": name, "patch_size": 64, "head": "mlp", **choices}).eval()


@pytest.mark.parametrize("model", GOLDEN_STARTS, ids="+".join)
def test_a_hyper_network_begins_as_before_there_was_another_head(model):
    names, number, total = GOLDEN_STARTS[model]
    torch.manual_seed(7)
    net = factory.build(dict(zip(("backbone", "fusion", "hyper"), model, strict=True)))
    shapes = [(name, tuple(tensor.shape)) for name, tensor in net.state_dict().items()]
    assert zlib.crc32(repr(shapes).encode()) == names
    assert torch.rand(1).item() == pytest.approx(number, abs=1e-6)
    assert net.fc5w_fc.weight.double().sum().item() == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("pool", ["token", "mean", "both"])
@pytest.mark.parametrize("architecture", [None, REGISTERS])
def test_the_features_are_timms_own_after_the_final_norm(pool, architecture):
    choices = {"architecture": architecture} if architecture else {}
    net = build("hf-hub:a/b" if architecture else "test_vit", pool=pool, **choices)
    encoder = timm.create_model(
        "test_vit", img_size=64, num_classes=0, **(architecture or {"args": {}})["args"]
    ).eval()
    encoder.load_state_dict(net.backbone.backbone.state_dict())
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        tokens = encoder.forward_features(images)
        found = net(images)
    prefix = 3 if architecture else 1
    parts = {"token": tokens[:, 0], "mean": tokens[:, prefix:].mean(1)}
    expected = torch.cat([parts[name] for name in parts if pool in (name, "both")], 1)
    assert torch.allclose(found["features"], expected, atol=1e-5)
    x = expected.double().numpy()
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    state = {name: t.double().numpy() for name, t in net.state_dict().items()}
    for n in (1, 4, 7):
        x = x @ state[f"head.{n}.weight"].T + state[f"head.{n}.bias"]
        x = np.maximum(x, 0) if n < 7 else x
    assert found["scores"].numpy() == pytest.approx(x[:, 0], abs=1e-5)


def test_a_pyramid_gives_the_mean_of_its_last_stage():
    net = build("resnet18")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = net.backbone.stage_maps(images)[3].mean((2, 3))
        assert torch.allclose(net(images)["features"], expected, atol=1e-6)
    assert net.pool == "mean" and net.pools == {(3, 1): 512}


def test_what_a_target_network_needs_is_absent_and_the_groups_have_the_rest():
    net = build(dropout=0.3)
    assert not [name for name in net.state_dict() if "lda" in name or name.startswith("fc")]
    assert {name.split(".")[0] for name in net.state_dict()} == {"timm", "head"}
    groups = net.parameter_groups()
    assert [*map(len, groups.values())] == [8, len([*net.backbone.parameters()])]
    assert [layer.p for layer in net.head if isinstance(layer, torch.nn.Dropout)] == [0.3, 0.3]
    net.backbone.freeze()
    assert net.parameter_groups()["backbone"] == []


def test_adapters_within_the_encoder_are_in_the_heads_group():
    class Adapter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.zeros(1))

        def forward(self, weight):
            return weight + self.a

    net, adapter = build(), Adapter()
    layer = net.backbone.backbone.blocks[0].attn.qkv
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", adapter)
    head, encoder = net.parameter_groups().values()
    assert any(p is adapter.a for p in head) and not any(p is adapter.a for p in encoder)
    assert any(p is layer.parametrizations.weight.original for p in encoder)


@pytest.mark.parametrize("pool", ["token", "both"])
def test_stored_features_rescaling_and_bf16(pool):
    net = build(pool=pool)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        scores = net(images)["scores"]
        stored = net(net.unpack(net.pack(net.backbone.stage_maps(images))))["scores"]
        assert torch.equal(stored, scores)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = net(images)
        assert rounded["scores"].dtype == torch.float32
        net.rescale(-3.0, 70.0)
        assert torch.allclose(net(images)["scores"], -3 * scores + 70, atol=1e-5)


def test_an_encoder_without_a_class_token_is_one_line():
    for name in ("resnet18", "swin_nano", "test_vit3"):
        assert build(name).pool == "mean"
        with pytest.raises(
            UserError, match="--pool both: the encoder gives no class token; expected mean"
        ):
            build(name, pool="both")


def test_parameters_and_operations_by_hand():
    net = build("resnet18")
    found = costs.operations(net, 64)
    head = 512 * 512 + 512 * 512 + 512
    assert found["macs"]["head"] == head
    assert found["parameters"]["head"] == head + 512 + 512 + 1 + 2 * 512
    assert sum(found["parameters"].values()) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--pool mean", "--pool needs --head mlp"),
        (
            "--head mlp --fusion concat",
            "contradictory flags: --head mlp and --fusion concat, which is a part of --head hyper",
        ),
        (
            "--head mlp --hyper transformer",
            "contradictory flags: --head mlp and --hyper transformer, which is a part of --head hyper",
        ),
    ],
)
def test_flags_of_another_head_are_one_line(words, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        train_options([*words.split(), "--dataset", "koniq-10k"], None, train_timm.SCRIPT)


def test_the_demo_takes_back_its_fusion():
    words = ["--dataset", "demo", "--head", "mlp"]
    options = train_options(words, None, train_timm.SCRIPT)
    assert options.fusion == "none" and "fusion" not in options.demo_defaults
    assert options.demo_defaults["batch_size"] == 16


def test_a_run_records_its_pool_and_its_model_is_used_like_any_other(settings, tmp_path):
    chosen = ["--backbone", "test_vit", "--epochs", 1, "--no_spaq", "--head", "mlp"]
    solver = HyperIQASolver(settings("timm", *chosen))
    solver.run()
    path = next(solver.log.checkpoints.glob("best*.pkl"))
    description = checkpoints.load_model(path)[1]
    assert (description["head"], description["pool"]) == ("mlp", "token")
    assert "mlp" in solver.log.name
    model = hyperiqa.load(path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = solver.round.model.eval()(images)["scores"]
        assert torch.equal(model.net(images)["scores"], expected)
    # The scores begin in the middle of the scale.
    low, high = description["nominal_range"]
    assert low < expected.mean() < high
    write_images(tmp_path, ["a.png"], (110, 90))
    looked = maps.map_image(model, tmp_path / "a.png")
    assert looked.weights == [] and looked.map.shape == looked.pixels.shape[:2]
    assert "spread" not in "".join(maps._figure_lines(looked, "koniq-10k"))

    again = HyperIQASolver(settings("timm", "--epochs", 1, "--no_spaq", "--init", path))
    assert (again.options.head, again.options.pool) == ("mlp", "token")
    with pytest.raises(UserError, match=r"--head hyper: the model of --init .* has mlp"):
        HyperIQASolver(settings("timm", "--init", path, "--head", "hyper"))
