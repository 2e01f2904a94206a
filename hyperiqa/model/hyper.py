"""The body of the hyper network: from the fused map to the map that the generators read.

A body is a module made for the channels of the stage maps and of the fused map, and for the hidden
widths of the backbone. It takes the four stage maps and the fused map (N, C, 7, 7), and returns
(N, 112, 7, 7). Its parameters are saved under `place.*`. As in a fusion, `pools` are the (stage,
side) at which it reads averaged stage maps.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import nn

from hyperiqa.model.fusion import GRID, StageMaps, pool_to, stage_map

HYPER_CHANNELS = 112


class ConvHyper(nn.Sequential):
    """Three 1x1 convs with ReLU on the fused map, under the public names (Su et al., CVPR 2020)."""

    place = "conv1"
    pools = ()

    def __init__(self, channels: Sequence[int], fused: int, hidden: Sequence[int]):
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise((fused, *hidden, HYPER_CHANNELS)):
            layers += [nn.Conv2d(c_in, c_out, 1), nn.ReLU(inplace=True)]
        super().__init__(*layers)

    def forward(self, maps: StageMaps, fused: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(fused)


class TransformerHyper(nn.Module):
    """Self-attention over all stages, in two pre-norm layers of eight heads.

    Each map of the first three stages, averaged to 7x7, and the fused map are 49 tokens, with an
    embedding of their stage and one of their position. The layers are ViT's (Dosovitskiy et al.,
    ICLR 2021). The fused map's tokens are then normed and brought to 112 channels.
    """

    place = "transformer"
    pools = tuple((stage, GRID) for stage in range(3))

    def __init__(self, channels: Sequence[int], fused: int, hidden: Sequence[int]):
        super().__init__()
        width = 256
        self.tokens = nn.ModuleList(nn.Conv2d(c, width, 1) for c in (*channels[:3], fused))
        self.stage = nn.Parameter(nn.init.trunc_normal_(torch.zeros(4, 1, width), std=0.02))
        self.position = nn.Parameter(
            nn.init.trunc_normal_(torch.zeros(GRID * GRID, width), std=0.02)
        )
        layers: list[Any] = [Block(width, 8, 2, qkv_bias=True) for _ in range(2)]
        for layer in layers:
            # Attention as matrix products, because their gradients repeat on every device.
            layer.attn.fused_attn = False
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, HYPER_CHANNELS)

    def forward(self, maps: StageMaps, fused: torch.Tensor) -> torch.Tensor:
        sources = [pool_to(stage_map(maps, stage, GRID), GRID) for stage in range(3)]
        # (N, width, 7, 7) -> (N, 49, width)
        tokens = [
            embed(source).flatten(2).transpose(1, 2) + stage + self.position
            for source, embed, stage in zip((*sources, fused), self.tokens, self.stage)
        ]
        # The fused map's tokens are the last ones.
        mixed = self.layers(torch.cat(tokens, 1))[:, -GRID * GRID :]
        return self.out(self.norm(mixed)).transpose(1, 2).unflatten(2, (GRID, GRID))


HYPERS: dict[str, Any] = {"conv": ConvHyper, "transformer": TransformerHyper}
