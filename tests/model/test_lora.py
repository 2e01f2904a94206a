"""Adapters against plain arithmetic: no effect at first, B·A with the scale, an encoder that stays, and ordinary layers after merging."""

import copy

import numpy as np
import pytest
import torch

from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints, factory, lora
from hyperiqa.training import optimizers

SETTINGS = {"lora": 3, "lora_targets": ["qkv", "proj"], "lora_alpha": 6.0}


def build(name, seed=0, side=64):
    torch.manual_seed(seed)
    return factory.with_head(factory.build_backbone(name, patch_size=side), {"head": "mlp"})


def disturb(net):
    """Adapters with an effect."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.1)
    return net


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_nano", "mobilevit_xxs"])
def test_adapters_do_nothing_at_first_train_alone_and_merge_into_ordinary_layers(name):
    plain, adapted = build(name), build(name)
    lora.adapt(adapted.backbone, SETTINGS)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(adapted.eval()(images)["scores"], plain.eval()(images)["scores"])
    assert lora.base_digest(adapted.backbone) == lora.base_digest(plain.backbone)

    before = {n: t.clone() for n, t in adapted.state_dict().items()}
    groups = disturb(adapted).train().parameter_groups()
    optimizer = torch.optim.SGD([*groups["head"], *groups["backbone"]], lr=1e-3)
    adapted(images)["scores"].sum().backward()
    optimizer.step()
    trained = lora.trained_state(adapted)
    changed = {n for n, t in adapted.state_dict().items() if not torch.equal(t, before[n])}
    # The statistics of batch norms stay as well. The LDA is for the other head.
    assert {n for n in changed if "lora_" in n} and changed <= trained.keys()
    assert all(
        ".lora_" in n or ".lda" in n or not n.startswith(adapted.backbone.prefix) for n in trained
    )
    assert lora.base_digest(adapted.backbone) == lora.base_digest(plain.backbone)
    assert {id(p) for n, p in adapted.named_parameters() if ".lora_" in n} < set(
        map(id, groups["head"])
    )

    with torch.no_grad():
        scores = adapted.eval()(images)["scores"]
        merged = lora.merge(copy.deepcopy(adapted))
        assert merged.state_dict().keys() == plain.state_dict().keys()
        assert (merged(images)["scores"] - scores).abs().max() <= 1e-5
        assert (scores - plain(images)["scores"]).abs().max() > 1e-5
        # Merging a copy leaves the adapters of the original.
        assert torch.equal(adapted(images)["scores"], scores)


@pytest.mark.parametrize(("alpha", "factor"), [(None, 1), (6.0, 2)])
def test_a_layer_adds_the_product_in_fp32_whatever_the_autocast(alpha, factor):
    net = build("vit_tiny_patch16_224")
    layer = net.backbone.backbone.blocks[2].mlp.fc2
    frozen = layer.weight.detach().numpy().astype(np.float64)
    settings = {"lora": 3, "lora_targets": ["fc2"], "lora_alpha": alpha}
    lora.adapt(net.backbone, settings)
    update = disturb(net).get_submodule("timm.backbone.blocks.2.mlp.fc2.parametrizations.weight.0")
    a, b = (t.detach().numpy().astype(np.float64) for t in (update.lora_A, update.lora_B))
    assert a.shape == (3, 768) and 0.9 < np.abs(a).max() * 768**0.5 <= 1
    with torch.autocast("cpu", torch.bfloat16):
        weight = layer.weight.detach()
    assert weight.dtype == torch.float32
    np.testing.assert_allclose(weight.numpy(), frozen + factor * b @ a, atol=1e-6)
    untouched = net.backbone.backbone.blocks[2].attn.qkv
    assert not hasattr(untouched, "parametrizations")


def test_the_moving_average_takes_in_the_adapters_and_leaves_the_encoder():
    net = build("swin_nano")
    lora.adapt(net.backbone, SETTINGS)
    average = optimizers.moving_average(net, 0.9)
    digest = lora.base_digest(net.backbone)
    (name,) = [
        n
        for n in net.state_dict()
        if n.endswith("layers_1.blocks.0.attn.qkv.parametrizations.weight.0.lora_B")
    ]
    steps = []
    for _ in range(4):
        steps.append(disturb(net).state_dict()[name].clone())
        average.update_parameters(net)
    assert lora.base_digest(average.module.backbone) == digest
    expected = steps[0]
    for n, step in enumerate(steps[1:], 1):
        share = min(0.9, (1 + n) / (10 + n))
        expected = share * expected + (1 - share) * step
    assert torch.allclose(average.module.state_dict()[name], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        (
            "resnet18",
            ["qkv", "proj"],
            "--lora: the encoder has no linear layers named qkv and proj; its linear layers, for --lora_targets: none",
        ),
        (
            "swin_nano",
            ["qkv", "query"],
            "--lora: the encoder has no linear layers named query; its linear layers, for --lora_targets: qkv, proj, fc1, fc2, reduction",
        ),
    ],
)
def test_an_encoder_without_such_layers_is_refused_with_those_that_it_has(name, targets, message):
    net = build(name)
    with pytest.raises(UserError) as refused:
        lora.adapt(net.backbone, {**SETTINGS, "lora_targets": targets})
    assert str(refused.value) == message
    assert all(p.requires_grad for p in net.parameters())


def test_an_adapter_is_merged_with_its_own_base_alone(tmp_path):
    net = build("swin_nano")
    checkpoints.save(tmp_path / "base.pth", net.backbone.backbone.state_dict())
    other = build("swin_nano", seed=1)
    checkpoints.save(tmp_path / "other.pth", other.backbone.backbone.state_dict())
    lora.adapt(net.backbone, SETTINGS)
    disturb(net)
    description = {
        "backbone": "swin_nano",
        "fusion": "none",
        "head": "mlp",
        "pool": net.pool,
        "patch_size": 64,
        "resize": "72",
        "exif_rotate": False,
        "dataset": "demo",
        "score_range": [10.0, 90.0],
        "higher_is_better": True,
        "test_crop": "center",
        "test_patch_num": 1,
        **SETTINGS,
        "lora_base": lora.base_digest(net.backbone),
    }
    adapter = tmp_path / "x_adapter.safetensors"
    checkpoints.save_safetensors(adapter, lora.trained_state(net), description)
    merged, about = lora.load_merged(adapter, tmp_path / "base.pth")
    assert about == {**description, "format": 1, "described": True}
    expected = checkpoints.portable_state(lora.merge(net))
    assert checkpoints.digest(merged.state_dict()) == checkpoints.digest(expected)
    # A whole model of ours serves as the base, too.
    checkpoints.save(tmp_path / "whole.pkl", build("swin_nano").state_dict())
    lora.load_merged(adapter, tmp_path / "whole.pkl")

    for path, base, message in (
        (
            adapter,
            "other.pth",
            "--base .*other.pth: expected the encoder that the adapter was trained on",
        ),
        (adapter, adapter.name, "tensors are missing or of another shape"),
        (
            tmp_path / "base.pth",
            "base.pth",
            "base.pth: expected the …_adapter.safetensors of a run with --lora",
        ),
    ):
        with pytest.raises(UserError, match=message):
            lora.load_merged(path, tmp_path / base)
    with pytest.raises(
        UserError, match="an adapter, which is no model without its encoder: export.py"
    ):
        checkpoints.load_model(adapter)
    # A description whose rank was taken away.
    state, facts = checkpoints.read_state(adapter)
    checkpoints.save_safetensors(tmp_path / "cut.safetensors", state, {**facts, "lora": None})
    with pytest.raises(UserError, match="expected the …_adapter.safetensors"):
        lora.load_merged(tmp_path / "cut.safetensors", tmp_path / "base.pth")
    checkpoints.save_safetensors(adapter, lora.trained_state(other), description)
    with pytest.raises(UserError, match="expected the …_adapter.safetensors"):
        lora.load_merged(adapter, tmp_path / "base.pth")
