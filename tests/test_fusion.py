import pytest
import torch
import torch.nn.functional as F

from fusion import FUSIONS, _averages


@pytest.mark.parametrize("side", [56, 72])
def test_shapes_and_meaning(side):
    channels = (96, 192, 384, 768)
    maps = [torch.randn(2, c, side >> i, side >> i) for i, c in enumerate(channels)]
    none, concat = FUSIONS["none"](channels), FUSIONS["concat"](channels)
    assert list(none.parameters()) == []
    assert torch.equal(none(maps), F.adaptive_avg_pool2d(maps[-1], 7))
    assert concat.conv.weight.shape == (768, 1440, 1, 1)
    pooled = torch.cat([F.adaptive_avg_pool2d(m, 7) for m in maps], 1)
    expected = torch.einsum("oc,nchw->nohw", concat.conv.weight[:, :, 0, 0], pooled) + concat.conv.bias[:, None, None]
    assert torch.allclose(concat(maps), expected, atol=1e-3)
    assert concat.conv.weight.std().item() == pytest.approx((2 / 1440) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("size", "side"), [(14, 8), (16, 7), (14, 4), (4, 8), (9, 2)])
def test_averages_as_matrices_are_adaptive_pooling(size, side):
    """Which CUDA needs: the gradient of its own kernel is not repeatable."""
    maps = torch.randn(2, 3, size, size + 1)
    found = _averages(size, side, maps) @ maps @ _averages(size + 1, side, maps).T
    assert torch.allclose(found, F.adaptive_avg_pool2d(maps, side), atol=1e-6)
