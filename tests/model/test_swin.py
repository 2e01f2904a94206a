import pytest
import torch

from hyperiqa.base.errors import UserError
from hyperiqa.model import timm_encoder
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.swin import SwinBackbone

FAMILIES = [
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "swin_s3_tiny_224",
]


@pytest.mark.parametrize("name", [*FAMILIES, "swin_nano"])
@pytest.mark.parametrize("patch_size", [224, 288])
def test_every_family_gives_channels_first_maps(name, patch_size):
    backbone = SwinBackbone(name, patch_size=patch_size).eval()
    with torch.no_grad():
        maps = backbone.stage_maps(torch.randn(1, 3, patch_size, patch_size))
    sides = [patch_size // s for s in (4, 8, 16, 32)]
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, s, s) for c, s in zip(backbone.channels, sides)
    ]
    assert HyperNet(backbone).eval()(torch.randn(1, 3, patch_size, patch_size))["scores"].shape == (
        1,
    )


def test_stochastic_depth_is_kept():
    rates = [
        m.drop_prob
        for m in SwinBackbone("swin_tiny_patch4_window7_224").modules()
        if hasattr(m, "drop_prob")
    ]
    assert max(rates) > 0


def test_layout_follows_output_fmt_not_shapes():
    """A patch of 384 gives 96x96 maps of 96 channels: shapes alone cannot tell the layouts apart."""
    backbone = SwinBackbone("swin_tiny_patch4_window7_224", patch_size=384).eval()
    with torch.no_grad():
        first = backbone.stage_maps(torch.randn(1, 3, 384, 384))[0]
        raw = backbone.backbone(torch.randn(1, 3, 384, 384))[0]
    assert first.shape == raw.shape == (1, 96, 96, 96)
    assert first.stride()[1] == 1  # NHWC memory seen as NCHW


def test_unknown_and_unpretrained_names_are_the_users_mistakes():
    with pytest.raises(UserError, match="swin_tony.*no such model; near: "):
        SwinBackbone("swin_tony_patch4_window7_224")
    with pytest.raises(
        UserError, match="swin_tony.*no such model; near: "
    ):  # seen before its weights are asked for
        SwinBackbone("swin_tony_patch4_window7_224", pretrained=True)
    with pytest.raises(UserError, match="swin_nano has no pretrained weights: add --no_pretrained"):
        SwinBackbone("swin_nano", pretrained=True)


def test_fused_attention_is_the_same_to_rounding():
    """Scores and gradients, shifted windows (mask) and plain ones, against attention written out by timm."""
    torch.manual_seed(0)
    model = SwinBackbone("swin_nano", patch_size=224, drop_path=0.0).train()
    images, found = torch.randn(2, 3, 224, 224), []
    for fused in (False, True):
        if fused:
            model.fuse_attention()
        model.zero_grad()
        maps = model.stage_maps(images)
        sum(
            (each * torch.arange(each.numel()).view_as(each) / each.numel()).sum() for each in maps
        ).backward()
        gradients = {
            name: p.grad.clone()
            for name, p in model.backbone.named_parameters()
            if p.grad is not None
        }
        found.append((maps, gradients))
    for one, other in zip(found[0][0], found[1][0]):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        assert torch.allclose(
            gradient, found[1][1][name], rtol=1e-4, atol=1e-5 * gradient.abs().max().item()
        ), name
    assert any("relative_position_bias_table" in name for name in found[0][1])


def test_fused_attention_where_there_is_no_choice():
    with pytest.raises(UserError, match="--fused_attention: expected a Swin of the first version"):
        SwinBackbone("swinv2_cr_tiny_224", patch_size=64).fuse_attention()


def test_drop_path_leaves_the_weights_that_it_starts_from(monkeypatch):
    """Weights of the encoder as `create` gives them, pretrained ones too; only our own sizes are drawn anew."""
    made, create = [], timm_encoder.create

    def kept(*words, **more):
        made.append(create(*words, **more))
        made.append({name: tensor.clone() for name, tensor in made[-1].state_dict().items()})
        return made[0]

    monkeypatch.setattr(timm_encoder, "create", kept)
    backbone = SwinBackbone("swin_tiny_patch4_window7_224", drop_path=0.1)
    assert backbone.backbone is made[0]
    assert all(
        torch.equal(tensor, made[1][name])
        for name, tensor in backbone.backbone.state_dict().items()
    )
