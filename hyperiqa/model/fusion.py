"""Multi-scale fusion: from the backbone's stage maps to the map that the hyper network reads.

A fusion is a module that takes the list of stage maps [(N, C_i, H_i, W_i)], coarsest last, and
returns (N, out_channels, 7, 7). Its parameters are saved under `place.*`.

`pools` are the (stage, side) at which it reads averaged maps. A fusion with `pools` also works on
maps that are averaged already: a frozen encoder computes them only once. A fusion without them, the
default, needs whole maps.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

GRID = 7
# Stage maps: all four whole maps, or (stage, side) -> (N, C, side, side), the maps averaged to the
# sides at which the model reads them.
StageMaps = Sequence[torch.Tensor] | Mapping[tuple[int, int], torch.Tensor]


def pool_to(maps: torch.Tensor, side: int) -> torch.Tensor:
    """(N, C, H, W) -> averages (N, C, side, side).

    The windows are all alike where that fits, as for patches of 224 pixels, and adaptive elsewhere.
    """
    height, width = maps.shape[2:]
    if height % side or width % side:
        if not maps.is_cuda:
            return F.adaptive_avg_pool2d(maps, side)
        # As matrix products: the gradient of torch's own kernel differs from run to run on CUDA.
        return _averages(height, side, maps) @ maps @ _averages(width, side, maps).T
    window = (height // side, width // side)
    return maps if window == (1, 1) else F.avg_pool2d(maps, window)


def _averages(size: int, side: int, like: torch.Tensor) -> torch.Tensor:
    # Adaptive pooling as a matrix (side, size), with the type and device of `like`. Row k averages
    # k*size/side to (k+1)*size/side, rounded outwards.
    row = torch.arange(side, device=like.device)[:, None]
    cell = torch.arange(size, device=like.device)
    # Division rounds down; twice negated, it rounds up.
    end = -(-(row + 1) * size // side)
    inside = (cell >= row * size // side) & (cell < end)
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


def stage_map(maps: StageMaps, stage: int, side: int) -> torch.Tensor:
    """The map of a stage (0..3) for use at `side`: the whole map, or the map averaged to it."""
    return maps[stage, side] if isinstance(maps, Mapping) else maps[stage]


class Fusion(nn.Module):
    """Base of the fusions, made for stage maps with these channel counts."""

    place = "fusion"
    pools: Sequence[tuple[int, int]] = ()

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.out_channels = channels[-1]


class NoFusion(Fusion):
    """The last stage map, pooled to 7x7. For patches of 224 pixels it has this size already."""

    pools = ((3, GRID),)

    def forward(self, maps: StageMaps) -> torch.Tensor:
        return pool_to(stage_map(maps, 3, GRID), GRID)


class DirectFusion(Fusion):
    """Every stage map pooled to 7x7 and concatenated, as in SMART-IQA's public code.

    The hyper network's first conv takes all channels.
    """

    pools = tuple((stage, GRID) for stage in range(4))

    def __init__(self, channels: Sequence[int]):
        super().__init__(channels)
        self.out_channels = sum(channels)

    def forward(self, maps: StageMaps) -> torch.Tensor:
        return torch.cat([pool_to(stage_map(maps, stage, GRID), GRID) for stage in range(4)], 1)


class ConcatFusion(DirectFusion):
    """`direct`, followed by a 1x1 conv to the channels of the last stage."""

    def __init__(self, channels: Sequence[int]):
        super().__init__(channels)
        self.out_channels = channels[-1]
        self.conv = nn.Conv2d(sum(channels), channels[-1], 1)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, maps: StageMaps) -> torch.Tensor:
        return self.conv(super().forward(maps))


class AttentionFusion(DirectFusion):
    """`direct` with a weight for each stage, from a softmax on the last stage's mean.

    Names and layers are those of SMART-IQA's public code.
    """

    place = "multiscale_attention"
    pools = (*DirectFusion.pools, (3, 1))

    def __init__(self, channels: Sequence[int]):
        super().__init__(channels)
        self.attention_net = nn.Sequential(
            nn.Linear(channels[3], 256),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(256, 4),
        )

    def weights(self, maps: StageMaps) -> torch.Tensor:
        """The weights of the stages: (N, 4), summing to 1."""
        return self.attention_net(pool_to(stage_map(maps, 3, 1), 1).flatten(1)).softmax(1)

    def forward(self, maps: StageMaps) -> torch.Tensor:
        weights = self.weights(maps)[:, :, None, None, None]
        weighed = [weights[:, k] * pool_to(stage_map(maps, k, GRID), GRID) for k in range(4)]
        return torch.cat(weighed, 1)


class PyramidFusion(Fusion):
    """A feature pyramid with its four levels pooled to 7x7 and concatenated.

    Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017: 1x1 convs, summed from
    the top down, 3x3 convs. The module is torchvision's own, under its names.
    """

    WIDTH = 128

    def __init__(self, channels: Sequence[int]):
        super().__init__(channels)
        self.pyramid = FeaturePyramidNetwork(list(channels), self.WIDTH)
        self.out_channels = len(channels) * self.WIDTH

    def forward(self, maps: StageMaps) -> torch.Tensor:
        # The maps are whole ones, since `pools` is (), and the side 0 means nothing.
        levels = self.pyramid({str(stage): stage_map(maps, stage, 0) for stage in range(4)})
        return torch.cat([pool_to(level, GRID) for level in levels.values()], 1)


class ProgressiveFusion(Fusion):
    """From the finest map to the coarsest, one stage after the other.

    Each step averages the result so far to the next map's size, concatenates the two, and applies a
    1x1 conv and ReLU.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__(channels)
        self.mix = nn.ModuleList(
            nn.Conv2d(finer + coarser, coarser, 1) for finer, coarser in pairwise(channels)
        )
        for conv in self.mix:
            nn.init.kaiming_normal_(conv.get_parameter("weight"))

    def forward(self, maps: StageMaps) -> torch.Tensor:
        x = stage_map(maps, 0, 0)
        for stage, mix in enumerate(self.mix, 1):
            coarser = stage_map(maps, stage, 0)
            x = F.relu(mix(torch.cat([pool_to(x, coarser.shape[-1]), coarser], 1)))
        return pool_to(x, GRID)


FUSIONS: dict[str, Callable[[Sequence[int]], Fusion]] = {
    "none": NoFusion,
    "concat": ConcatFusion,
    "direct": DirectFusion,
    "attention": AttentionFusion,
    "fpn": PyramidFusion,
    "progressive": ProgressiveFusion,
}
