import pytest
import timm
import torch
from helpers import fill_by_recipe, recipe_images

from hyperiqa.model import factory
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.target_net import TARGET_SIZES, TargetNet
from hyperiqa.scoring import quality_model

# Measured on the public implementations: weights by recipe, eval mode, four images, seed 0, fp32.
GOLDEN = {
    "resnet50": {
        "scores": [-1.61621, -1.57695, -1.48466, -1.48381],
        "mean_abs": {
            "target_in_vec": 1.061628,
            "target_fc1w": 0.425621,
            "target_fc1b": 0.488066,
            "target_fc2w": 0.428815,
            "target_fc2b": 0.449671,
            "target_fc3w": 0.443515,
            "target_fc3b": 0.603158,
            "target_fc4w": 0.327511,
            "target_fc4b": 0.45257,
            "target_fc5w": 0.304187,
            "target_fc5b": 0.744855,
        },
        "parameters": 27375369,
        "keys": 355,
        "prefix": "res",
        "channels": (256, 512, 1024, 2048),
        "hidden": (1024, 512),
    },
    "swin_tiny_patch4_window7_224": {
        "scores": [-0.99452, -1.28759, -1.38935, -0.60732],
        "mean_abs": {
            "target_in_vec": 1.299596,
            "target_fc1w": 0.516664,
            "target_fc1b": 0.592889,
            "target_fc2w": 0.492586,
            "target_fc2b": 0.58558,
            "target_fc3w": 0.582734,
            "target_fc3b": 0.534256,
            "target_fc4w": 0.585894,
            "target_fc4b": 0.531882,
            "target_fc5w": 0.727794,
            "target_fc5b": 0.693464,
        },
        "parameters": 28979523,
        "keys": 206,
        "prefix": "swin",
        "channels": (96, 192, 384, 768),
        "hidden": (512, 256),
    },
}
# The same of SMART-IQA's public code: size of the Swin, fusion -> scores, parameters, keys, attention of each stage.
GOLDEN_SMART = {
    ("tiny", "direct"): ([2.58804, 1.54787, 2.32902, 2.41664], 29323587, 206, None),
    ("tiny", "attention"): (
        [1.17321, 0.71843, 1.2409, 1.04749],
        29521479,
        210,
        [
            [0.198699, 0.069948, 0.475774, 0.255579],
            [0.306307, 0.043027, 0.427362, 0.223304],
            [0.19204, 0.060551, 0.510854, 0.236556],
            [0.222689, 0.051696, 0.471473, 0.254142],
        ],
    ),
    ("base", "attention"): (
        [1.6117, 1.01329, 1.21634, 1.26932],
        89111941,
        366,
        [
            [0.013532, 0.059266, 0.606197, 0.321005],
            [0.010782, 0.044101, 0.381081, 0.564036],
            [0.009023, 0.048187, 0.443003, 0.499787],
            [0.008195, 0.049683, 0.437197, 0.504925],
        ],
    ),
    ("small", "none"): ([0.77684, 0.95695, 0.742, 0.77483], 50297427, 362, None),
}
FIRST_BACKBONE_KEYS = {
    "resnet50": [
        "res.conv1.weight",
        "res.bn1.weight",
        "res.bn1.bias",
        "res.bn1.running_mean",
        "res.bn1.running_var",
        "res.bn1.num_batches_tracked",
    ],
    "swin_tiny_patch4_window7_224": [
        "swin.backbone.patch_embed.proj.weight",
        "swin.backbone.patch_embed.proj.bias",
        "swin.backbone.patch_embed.norm.weight",
        "swin.backbone.patch_embed.norm.bias",
        "swin.backbone.layers_0.blocks.0.norm1.weight",
        "swin.backbone.layers_0.blocks.0.norm1.bias",
    ],
}


def build(name: str, fusion: str = "none", patch_size: int = 224) -> HyperNet:
    return HyperNet(factory.build_backbone(name, patch_size=patch_size), fusion)


def public_head(
    prefix: str, channels: tuple[int, ...], hidden: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public code's head and LDA, as golden.json lists them."""
    shapes = {}
    for i, (c, grid) in enumerate(zip((16, 32, 64), (8, 4, 2)), 1):
        shapes[f"{prefix}.lda{i}_pool.0.weight"] = (c, channels[i - 1], 1, 1)
        shapes[f"{prefix}.lda{i}_fc.weight"] = (16, c * grid * grid)
        shapes[f"{prefix}.lda{i}_fc.bias"] = (16,)
    shapes[f"{prefix}.lda4_fc.weight"], shapes[f"{prefix}.lda4_fc.bias"] = (
        (176, channels[3]),
        (176,),
    )
    widths = (channels[3], *hidden, 112)
    for i in range(3):
        shapes[f"conv1.{2 * i}.weight"] = (widths[i + 1], widths[i], 1, 1)
        shapes[f"conv1.{2 * i}.bias"] = (widths[i + 1],)
    for i, (conv, out) in enumerate(((512, 112), (128, 56), (32, 28), (8, 14)), 1):
        shapes[f"fc{i}w_conv.weight"], shapes[f"fc{i}w_conv.bias"] = (conv, 112, 3, 3), (conv,)
        shapes[f"fc{i}b_fc.weight"], shapes[f"fc{i}b_fc.bias"] = (out, 112), (out,)
    shapes["fc5w_fc.weight"], shapes["fc5w_fc.bias"] = (14, 112), (14,)
    shapes["fc5b_fc.weight"], shapes["fc5b_fc.bias"] = (1, 112), (1,)
    return shapes


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_scores_weights_and_names(name):
    golden = GOLDEN[name]
    model = fill_by_recipe(build(name)).eval()
    with torch.no_grad():
        weights = model.target_weights(recipe_images(4, 0))
        scores = model.target_net(weights)
    assert scores.tolist() == pytest.approx(golden["scores"], abs=1e-3)
    assert {k: w.abs().mean().item() for k, w in weights.items()} == pytest.approx(
        golden["mean_abs"], abs=1e-4
    )
    for i in range(1, 6):
        assert weights[f"target_fc{i}w"].shape == (4, TARGET_SIZES[i], TARGET_SIZES[i - 1], 1, 1)
        assert weights[f"target_fc{i}b"].shape == (4, TARGET_SIZES[i])
    assert weights["target_in_vec"].shape == (4, 224, 1, 1)

    state = model.state_dict()
    assert len(state) == golden["keys"]
    assert sum(p.numel() for p in model.parameters()) == golden["parameters"]
    head = public_head(golden["prefix"], golden["channels"], golden["hidden"])
    assert {n: tuple(state[n].shape) for n in head} == head
    rest = [n for n in state if n not in head]
    assert all(n.startswith((f"{golden['prefix']}.", "swin.backbone.")) for n in rest)
    assert rest[:6] == FIRST_BACKBONE_KEYS[name]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(m, marks=() if m[0] == "tiny" else pytest.mark.slow, id="-".join(m))
        for m in GOLDEN_SMART
    ],
)
def test_golden_scores_of_smart_iqa_and_its_checkpoints(model, tmp_path):
    (size, fusion), (scores, parameters, keys, attention) = model, GOLDEN_SMART[model]
    net = fill_by_recipe(build(f"swin_{size}_patch4_window7_224", fusion)).eval()
    assert (sum(p.numel() for p in net.parameters()), len(net.state_dict())) == (parameters, keys)
    images = recipe_images(4, 0)
    with torch.no_grad():
        assert net(images)["scores"].tolist() == pytest.approx(scores, abs=1e-3)
        if attention:
            weights = net.fuse.weights(net.backbone.stage_maps(images))
            assert torch.allclose(weights, torch.tensor(attention), atol=1e-4)
    # Its checkpoints, which describe nothing, load; the names are the keys that its own code asks for.
    torch.save(dict(net.state_dict()), tmp_path / "theirs.pth")
    again = quality_model.load(tmp_path / "theirs.pth", "cpu")
    assert (again.description["fusion"], again.description["backbone"]) == (
        fusion,
        f"swin_{size}_patch4_window7_224",
    )
    names = {name for name in net.state_dict() if not name.startswith(("swin.", "conv1.", "fc"))}
    extra = {
        f"multiscale_attention.attention_net.{i}.{part}"
        for i in (0, 3)
        for part in ("weight", "bias")
    }
    assert names == (extra if fusion == "attention" else set())
    with torch.no_grad():
        assert torch.allclose(again.net(images)["scores"], net(images)["scores"], atol=1e-5)


def test_target_net_gives_each_image_its_own_weights():
    """Against the plain definition: grouped 1x1 convolutions written as a loop over images and layers."""
    generator = torch.Generator().manual_seed(1)
    weights = {"target_in_vec": torch.randn(3, 224, 1, 1, generator=generator)}
    for i in range(1, 6):
        weights[f"target_fc{i}w"] = (
            torch.randn(3, TARGET_SIZES[i], TARGET_SIZES[i - 1], 1, 1, generator=generator) / 10
        )
        weights[f"target_fc{i}b"] = torch.randn(3, TARGET_SIZES[i], generator=generator)
    for n, score in enumerate(TargetNet()(weights)):
        x = weights["target_in_vec"][n].flatten()
        for i in range(1, 6):
            x = weights[f"target_fc{i}w"][n].flatten(1) @ x + weights[f"target_fc{i}b"][n]
            x = torch.sigmoid(x) if i < 5 else x
        assert score.item() == pytest.approx(x.item(), abs=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "swin_nano"])
@pytest.mark.parametrize("fusion", ["none", "concat"])
@pytest.mark.parametrize("patch_size", [224, 288])
def test_batch_of_one_scores_as_within_a_batch(name, fusion, patch_size):
    torch.manual_seed(0)
    model = build(name, fusion, patch_size).eval()
    images = torch.randn(3, 3, patch_size, patch_size)
    with torch.no_grad():
        together, alone = (
            model(images)["scores"],
            torch.cat([model(image[None])["scores"] for image in images]),
        )
    assert together.shape == (3,)
    assert torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (64, 128, 256, 512)),
        ("resnet34", (64, 128, 256, 512)),
        ("resnet101", (256, 512, 1024, 2048)),
    ],
)
def test_other_resnets(name, channels):
    model = build(name).eval()
    assert model.backbone.channels == channels
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, 224, 224))
    assert outputs["scores"].shape == (1,) and outputs["features"].shape == (1, channels[-1])


def test_parameter_groups_are_the_whole_model_once():
    model = build("resnet18", "concat")
    head, backbone = model.parameter_groups().values()
    names = {id(p): n for n, p in model.named_parameters()}
    assert sorted(names.values()) == sorted(names[id(p)] for p in head + backbone)
    assert {names[id(p)].split(".")[0] for p in backbone} == {"res"}
    assert any(names[id(p)].startswith("fusion.") for p in head)


def test_initialisation():
    """Generators and LDA Kaiming-normal (sd sqrt(2/fan_in)); conv1 keeps PyTorch's uniform default."""
    torch.manual_seed(0)
    model = build("resnet50")
    for weight in (model.fc1w_conv.weight, model.res.lda1_fc.weight, model.res.lda4_fc.weight):
        assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.03)
    conv = model.conv1[0].weight
    assert conv.abs().max().item() <= (1 / 2048) ** 0.5


def test_scores_keep_fp32_under_bf16_autocast():
    """Only what may be is bf16: scores around 80 must not fall onto bf16's grid of 0.5."""
    torch.manual_seed(0)
    model = build("resnet18").eval()
    torch.nn.init.constant_(model.fc5b_fc.bias, 80.0)
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = model(images)["scores"]
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())
    with torch.no_grad():
        assert torch.allclose(scores, model(images)["scores"], atol=0.3)


@pytest.mark.parametrize("fusion", ["none", "concat", "attention"])
@pytest.mark.parametrize(
    ("name", "patch_size"), [("resnet18", 224), ("resnet18", 150), ("vit_tiny_patch16_224", 80)]
)
def test_averaged_stage_maps_score_as_the_images_do(name, fusion, patch_size):
    torch.manual_seed(0)
    model, images = (
        build(name, fusion, patch_size).eval(),
        torch.randn(3, 3, patch_size, patch_size),
    )
    with torch.no_grad():
        packed = model.pack(model.backbone.stage_maps(images))
        found, expected = model(model.unpack(packed)), model(images)
    assert packed.shape == (3, sum(model.pools.values()))
    for key in ("scores", "features"):
        assert torch.allclose(found[key], expected[key], rtol=1e-5, atol=1e-5)


def test_averaged_stage_maps_of_swin_t_are_as_few_as_stated():
    with torch.device("meta"):
        model = HyperNet(factory.build_backbone("swin_tiny_patch4_window7_224"))
    assert sum(model.pools.values()) == 96 * 64 + 192 * 16 + 384 * 4 + 768 * 50 == 49152


def test_rescaling_is_a_change_of_the_last_layer():
    model, images = build("resnet18", patch_size=64).eval(), torch.randn(3, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = model(images)["scores"]
    model.rescale(-0.04, 5)
    assert torch.allclose(model(images)["scores"], 5 - 0.04 * scores, atol=1e-5)
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {f"fc5{kind}_fc.{part}" for kind in "wb" for part in ("weight", "bias")}


def test_dropout_lies_where_smart_iqa_has_it():
    """Against the model in parts: a mask on what the generators see, and one after each of three layers."""
    torch.manual_seed(0)
    model = HyperNet(factory.build_backbone("resnet18", patch_size=64), dropout=0.3)
    model.backbone.eval()
    images = torch.randn(4, 3, 64, 64)
    maps = model.backbone.stage_maps(images)
    torch.manual_seed(5)
    found = model(images)["scores"]

    torch.manual_seed(5)

    def dropped(x):
        return x * torch.empty_like(x).bernoulli_(0.7) / 0.7

    hyper = dropped(model.body(maps, model.fuse(maps)))
    x = model.backbone.target_in_vec(maps)
    for i in range(1, 5):
        w = getattr(model, f"fc{i}w_conv")(hyper).reshape(-1, TARGET_SIZES[i], TARGET_SIZES[i - 1])
        x = torch.sigmoid(
            torch.einsum("noi,ni->no", w, x) + getattr(model, f"fc{i}b_fc")(hyper.mean((2, 3)))
        )
        x = dropped(x[:, :, None])[:, :, 0] if i <= 3 else x
    pooled = hyper.mean((2, 3))
    expected = (model.fc5w_fc(pooled) * x).sum(1) + model.fc5b_fc(pooled)[:, 0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert model.state_dict().keys() == build("resnet18", patch_size=64).state_dict().keys()
    model.eval()
    assert torch.equal(model(images)["scores"], model(images)["scores"])


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "swin_nano", "test_convnext"])
def test_drop_path_leaves_blocks_out_by_image_while_training(name):
    """Copies of one image come out alike without it and not with it; scoring leaves nothing out."""
    torch.manual_seed(0)
    plain, dropping = (
        factory.build_backbone(name, patch_size=64, drop_path=rate) for rate in (0.0, 0.9)
    )
    dropping.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64).repeat(8, 1, 1, 1)
    for backbone in (plain, dropping):
        backbone.eval()
    assert torch.equal(plain.stage_maps(images)[3], dropping.stage_maps(images)[3])
    for backbone in (plain, dropping):
        backbone.train()
    maps = dropping.stage_maps(images)[3].detach().flatten(1)
    assert len({tuple(row.tolist()) for row in maps}) > 1  # the same image, other paths
    same = plain.stage_maps(images)[3].detach().flatten(1)
    assert torch.allclose(same, same[:1].expand_as(same), atol=1e-5)


def test_stochastic_depth_of_a_resnet_is_timms():
    """Of the same block outputs: the same share of images, scaled up the same, as timm's own ResNet drops."""
    theirs = timm.create_model("resnet50", drop_path_rate=0.7)
    theirs = [b for s in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4) for b in s]
    rates = [block.drop_path.drop_prob if block.drop_path else 0.0 for block in theirs]
    blocks = [
        b
        for s in (1, 2, 3, 4)
        for b in getattr(factory.build_backbone("resnet50", drop_path=0.7), f"layer{s}")
    ]
    assert len(rates) == len(blocks) == 16
    for rate, block in zip(rates, blocks):
        (hook,) = block.bn3._forward_hooks.values()
        block.bn3.train()
        kept = hook(block.bn3, (), torch.ones(4000, 1, 1, 1)).flatten()
        assert (kept == 0).float().mean().item() == pytest.approx(rate, abs=0.04)
        assert torch.allclose(kept[kept > 0], torch.tensor(1 / (1 - rate)))
