"""Multi-scale fusion: from the backbone's stage maps to the map that the hyper network looks at.
A fusion is a module that takes the list of stage maps [(N, C_i, H_i, W_i)], coarsest last, and returns
(N, C_last, 7, 7). Its parameters are saved under `fusion.*`. `pools` are the (stage, side) at which it looks at maps
that are averaged already, such as those of a frozen encoder that are computed once."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

GRID = 7
# Stage maps: all four whole, or (stage, side) -> (N, C, side, side), averaged to the sides at which they are looked at.
StageMaps = Sequence[torch.Tensor] | Mapping[tuple[int, int], torch.Tensor]


def pool_to(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Average-pool (N, C, H, W) to (N, C, side, side): plain windows where they fit, adaptive ones elsewhere.
    At patch 224 those of a pyramid always fit (the paper's 7x7)."""
    height, width = maps.shape[2:]
    if height % side or width % side:
        if not maps.is_cuda:
            return F.adaptive_avg_pool2d(maps, side)
        # As matrix products: the gradient of torch's own kernel differs from run to run on CUDA.
        return _averages(height, side, maps) @ maps @ _averages(width, side, maps).T
    window = (height // side, width // side)
    return maps if window == (1, 1) else F.avg_pool2d(maps, window)


def _averages(size: int, side: int, like: torch.Tensor) -> torch.Tensor:
    """Adaptive average pooling of an axis as a matrix (side, size): row k averages the cells from k*size/side to
    (k+1)*size/side, rounded outwards."""
    k, cell = torch.arange(side, device=like.device)[:, None], torch.arange(size, device=like.device)
    inside = (cell >= k * size // side) & (cell < -(-(k + 1) * size // side))
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


def at(maps: StageMaps, stage: int, side: int) -> torch.Tensor:
    """The map of a stage (0..3) for a use at `side`: the whole one, or the one that is averaged to that side."""
    return maps[stage, side] if isinstance(maps, Mapping) else maps[stage]


class Fusion(nn.Module):
    """Base of the fusions."""

    pools: Sequence[tuple[int, int]]


class NoFusion(Fusion):
    """The last stage map, pooled to 7x7 (at patch 224 it has that size already)."""

    pools = ((3, GRID),)

    def forward(self, maps: StageMaps) -> torch.Tensor:
        return pool_to(at(maps, 3, GRID), GRID)


class ConcatFusion(Fusion):
    """Every stage map pooled to 7x7, concatenated along the channels, and a 1x1 conv to C_last."""

    pools = tuple((stage, GRID) for stage in range(4))

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.conv = nn.Conv2d(sum(channels), channels[-1], 1)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, maps: StageMaps) -> torch.Tensor:
        return self.conv(torch.cat([pool_to(at(maps, stage, GRID), GRID) for stage in range(4)], 1))


FUSIONS: dict[str, Callable[[Sequence[int]], Fusion]] = {"none": lambda channels: NoFusion(), "concat": ConcatFusion}
