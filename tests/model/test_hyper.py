import torch
from torch import nn

from hyperiqa.model import factory
from hyperiqa.model.hyper import HYPERS
from hyperiqa.model.hypernet import HyperNet


def test_the_transformer_is_two_layers_of_torchs_own_over_tokens_of_all_stages():
    torch.manual_seed(0)
    channels, sides, fused = (3, 5, 6, 8), (28, 14, 7, 7), torch.randn(2, 9, 7, 7)
    maps = [torch.randn(2, c, side, side) for c, side in zip(channels, sides)]
    body = HYPERS["transformer"](channels, 9, ())
    tokens = []
    for stage, (looked_at, embed) in enumerate(zip((*maps[:3], fused), body.tokens)):
        pooled = nn.functional.adaptive_avg_pool2d(looked_at, 7)
        for place in range(49):
            token = (
                embed.weight[:, :, 0, 0] @ pooled[:, :, place // 7, place % 7].T
                + embed.bias[:, None]
            )
            tokens.append(token.T + body.stage[stage] + body.position[place])
    x = torch.stack(tokens, 1)
    for ours in body.layers:
        layer = nn.TransformerEncoderLayer(
            256, 8, 512, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
        )
        names = {
            "attn.qkv.weight": "self_attn.in_proj_weight",
            "attn.qkv.bias": "self_attn.in_proj_bias",
        }
        names |= {f"attn.proj.{p}": f"self_attn.out_proj.{p}" for p in ("weight", "bias")}
        names |= {f"mlp.fc{i}.{p}": f"linear{i}.{p}" for i in (1, 2) for p in ("weight", "bias")}
        layer.load_state_dict(
            {names.get(name, name): tensor for name, tensor in ours.state_dict().items()}
        )
        x = layer(x)
    expected = (
        (body.norm(x[:, 147:]) @ body.out.weight.T + body.out.bias)
        .transpose(1, 2)
        .reshape(2, 112, 7, 7)
    )
    assert torch.allclose(body(maps, fused), expected, atol=1e-5)


def test_each_body_is_a_model_that_trains_all_of_itself_and_scores_stored_maps_as_pixels():
    for name in HYPERS:
        torch.manual_seed(1)
        model = HyperNet(factory.build_backbone("resnet18", patch_size=64), "concat", name)
        images = torch.randn(4, 3, 64, 64)
        model(images)["scores"].square().sum().backward()
        head = model.parameter_groups()["head"]
        assert all(p.grad.abs().sum() > 0 for p in model.body.parameters()), name
        assert {id(p) for p in model.body.parameters()} <= {id(p) for p in head}
        model.eval()
        with torch.no_grad():
            stored = model.unpack(model.pack(model.backbone.stage_maps(images)))
            assert torch.allclose(model(stored)["scores"], model(images)["scores"], atol=1e-5)
