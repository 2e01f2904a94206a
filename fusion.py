"""Multi-scale fusion: from the backbone's stage maps to the map that the hyper network looks at.
A fusion is a module that takes the list of stage maps [(N, C_i, H_i, W_i)], coarsest last, and returns
(N, C_last, 7, 7). Its parameters are saved under `fusion.*`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

GRID = 7


def pool_to(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Average-pool (N, C, H, W) to (N, C, side, side): plain windows where they fit, adaptive ones elsewhere.
    At patch 224 they always fit (the paper's 7x7); unlike adaptive pooling, the gradient is deterministic on CUDA."""
    height, width = maps.shape[2:]
    if height % side or width % side:
        return F.adaptive_avg_pool2d(maps, side)
    window = (height // side, width // side)
    return maps if window == (1, 1) else F.avg_pool2d(maps, window)


class NoFusion(nn.Module):
    """The last stage map, pooled to 7x7 (at patch 224 it has that size already)."""

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        return pool_to(maps[-1], GRID)


class ConcatFusion(nn.Module):
    """Every stage map pooled to 7x7, concatenated along the channels, and a 1x1 conv to C_last."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.conv = nn.Conv2d(sum(channels), channels[-1], 1)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.conv(torch.cat([pool_to(m, GRID) for m in maps], 1))


FUSIONS = {"none": lambda channels: NoFusion(), "concat": ConcatFusion}
