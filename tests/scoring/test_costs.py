import pytest
import torch

from hyperiqa.model import factory
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.scoring import costs

# As their papers print them: GMACs at 224x224 and millions of parameters, classifier of 1,000 classes included
# (He et al., CVPR 2016, by torchvision; Liu et al., ICCV 2021; Liu et al., CVPR 2022; Touvron et al., ICML 2021).
PUBLISHED = {
    "resnet50": (4.09, 25.56, 2048),
    "swin_tiny_patch4_window7_224": (4.5, 28.29, 768),
    "convnext_tiny": (4.47, 28.59, 768),
    "deit_small_patch16_224": (4.61, 22.05, 384),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_backbones_cost_what_their_papers_say(name):
    gmacs, millions, width = PUBLISHED[name]
    net = HyperNet(factory.build_backbone(name)).eval()
    with torch.no_grad():
        sides = [m.shape[-1] for m in net.backbone.stage_maps(torch.zeros(1, 3, 224, 224))]
    found = costs.operations(net, 224)
    classifier = width * 1000
    channels = net.backbone.channels
    lda = [c * out * side**2 for c, out, side in zip(channels, (16, 32, 64), sides)]
    lda += [16 * out * grid**2 for out, grid in zip((16, 32, 64), (8, 4, 2))] + [176 * channels[3]]
    assert (found["macs"]["backbone"] - sum(lda) + classifier) / 1e9 == pytest.approx(
        gmacs, rel=0.012
    )
    own = sum(t.numel() for n, t in net.backbone.named_parameters() if not n.startswith("lda"))
    # Swin's features end before its last norm; that is what the tolerance is for.
    assert (own + classifier + 1000) / 1e6 == pytest.approx(millions, rel=1e-3)


def test_parts_are_counted_as_done_by_hand():
    net = HyperNet(factory.build_backbone("resnet18", patch_size=224), "concat").eval()
    found = costs.operations(net, 224)
    sizes = (224, 112, 56, 28, 14, 1)
    assert (
        found["macs"]["target"] == sum(a * b for a, b in zip(sizes, sizes[1:]))
        and found["parameters"]["target"] == 0
    )
    assert (
        found["macs"]["fusion"] == 960 * 512 * 49
        and found["parameters"]["fusion"] == 960 * 512 + 512
    )
    generators = [
        (112 * n_in * n_out // 49 * 9 * 49, 112 * n_out) for n_in, n_out in zip(sizes, sizes[1:-1])
    ]
    hyper = (512 * 1024 + 1024 * 512 + 512 * 112) * 49 + sum(map(sum, generators)) + 112 * 14 + 112
    assert found["macs"]["hyper"] == hyper
    assert sum(found["parameters"].values()) == sum(p.numel() for p in net.parameters())


def test_a_pyramid_and_attention_are_counted_as_done_by_hand():
    found = costs.operations(
        HyperNet(factory.build_backbone("resnet18"), "fpn", "transformer").eval(), 224
    )
    channels, sides = (64, 128, 256, 512), (56, 28, 14, 7)
    assert found["macs"]["fusion"] == sum(
        side**2 * (c * 128 + 9 * 128 * 128) for c, side in zip(channels, sides)
    )
    tokens, width = 4 * 49, 256
    layer = (
        tokens * (4 * width**2 + 2 * width * 2 * width) + 2 * tokens**2 * width
    )  # qkv, out, MLP; two products
    body = 49 * width * (64 + 128 + 256 + 4 * 128) + 2 * layer + 49 * width * 112
    generators = costs.operations(HyperNet(factory.build_backbone("resnet18"), "none").eval(), 224)[
        "macs"
    ]["hyper"]
    assert found["macs"]["hyper"] == generators - (512 * 1024 + 1024 * 512 + 512 * 112) * 49 + body
