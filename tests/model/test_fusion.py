import pytest
import torch

from hyperiqa.model.fusion import FUSIONS
from hyperiqa.training import flags

CHANNELS, SIDES = (3, 5, 6, 8), (28, 14, 7, 7)


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return [torch.randn(2, c, side, side) for c, side in zip(CHANNELS, SIDES)]


def conv1x1(x, conv):
    return torch.einsum("oc,nchw->nohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]


def mean_pooled(x, side):
    step = x.shape[-1] // side
    cells = [
        [
            x[:, :, i * step : (i + 1) * step, j * step : (j + 1) * step].mean((2, 3))
            for j in range(side)
        ]
        for i in range(side)
    ]
    return torch.stack([torch.stack(row, -1) for row in cells], -2)


def test_a_feature_pyramid_is_that_of_the_paper(maps):
    """Lateral 1x1, plus the coarser level with each value repeated; a 3x3 conv on each level."""
    fuse = FUSIONS["fpn"](CHANNELS)
    blocks = fuse.pyramid
    level, levels = None, []
    for stage in (3, 2, 1, 0):
        lateral = conv1x1(maps[stage], blocks.inner_blocks[stage][0])
        if level is not None:
            factor = lateral.shape[-1] // level.shape[-1]
            lateral = lateral + level.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        level = lateral
        smooth = blocks.layer_blocks[stage][0]
        around = torch.nn.functional.pad(level, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        levels.insert(
            0, torch.einsum("ocij,nchwij->nohw", smooth.weight, around) + smooth.bias[:, None, None]
        )
    expected = torch.cat([mean_pooled(each, 7) for each in levels], 1)
    assert fuse(maps).shape == (2, fuse.out_channels, 7, 7)
    assert torch.allclose(fuse(maps), expected, atol=1e-5)


def test_progressive_goes_from_the_finest_map_to_the_coarsest(maps):
    fuse = FUSIONS["progressive"](CHANNELS)
    x = maps[0]
    for own, conv in zip(maps[1:], fuse.mix):
        x = conv1x1(torch.cat([mean_pooled(x, own.shape[-1]), own], 1), conv).clamp(min=0)
    assert fuse(maps).shape == (2, fuse.out_channels, 7, 7) == (2, CHANNELS[3], 7, 7)
    assert torch.allclose(fuse(maps), x, atol=1e-6)


@pytest.mark.parametrize("name", list(FUSIONS))
def test_every_fusion_takes_a_plain_encoders_maps_and_trains_all_that_it_has(name):
    fuse, maps = (
        FUSIONS[name]((6, 6, 6, 6)),
        [torch.randn(2, 6, 14, 14, requires_grad=True) for _ in range(4)],
    )
    fused = fuse(maps)
    assert fused.shape == (2, fuse.out_channels, 7, 7)
    fused.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in [maps[3], *fuse.parameters()])


def test_which_fusions_need_whole_maps_is_known_before_torch_is():
    assert {name for name, fuse in FUSIONS.items() if not fuse.pools} == set(flags.WHOLE_MAPS)
