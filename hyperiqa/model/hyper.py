"""The body of the hyper network: from what it sees of an image to the map that the generators read. A body is a module
made for the channels of the stage maps and of the fused map, and the backbone's hidden widths: four stage maps, fused
map (N, C, 7, 7) -> (N, 112, 7, 7). It is saved under `place.*`; `pools`: as a fusion's, of the stage maps."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import nn

from hyperiqa.model.fusion import GRID, StageMaps, pool_to, stage_map

HYPER_CHANNELS = 112


class ConvHyper(nn.Sequential):
    """Three 1x1 convs with ReLU on the fused map (Su et al., CVPR 2020), under their public names."""

    place, pools = "conv1", ()

    def __init__(self, channels: Sequence[int], fused: int, hidden: Sequence[int]):
        widths = pairwise((fused, *hidden, HYPER_CHANNELS))
        super().__init__(
            *(layer for w in widths for layer in (nn.Conv2d(*w, 1), nn.ReLU(inplace=True)))
        )

    def forward(self, maps: StageMaps, fused: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(fused)


class TransformerHyper(nn.Module):
    """Self-attention over all stages: each map of the first three, averaged to 7x7, and the fused one are 49 tokens,
    with an embedding of their stage and one of their position; two pre-norm layers (ViT's, Dosovitskiy et al., ICLR
    2021); what the fused map's tokens have become, normed, is brought to 112 channels."""

    place, pools = "transformer", tuple((stage, GRID) for stage in range(3))
    WIDTH, HEADS, LAYERS = 256, 8, 2

    def __init__(self, channels: Sequence[int], fused: int, hidden: Sequence[int]):
        super().__init__()
        width = self.WIDTH
        self.tokens = nn.ModuleList(nn.Conv2d(c, width, 1) for c in (*channels[:3], fused))
        self.stage = nn.Parameter(nn.init.trunc_normal_(torch.zeros(4, 1, width), std=0.02))
        self.position = nn.Parameter(
            nn.init.trunc_normal_(torch.zeros(GRID * GRID, width), std=0.02)
        )
        layers: list[Any] = [Block(width, self.HEADS, 2, qkv_bias=True) for _ in range(self.LAYERS)]
        for layer in layers:
            layer.attn.fused_attn = (
                False  # as matrix products, whose gradients repeat on every device
            )
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, HYPER_CHANNELS)

    def forward(self, maps: StageMaps, fused: torch.Tensor) -> torch.Tensor:
        looked_at = [pool_to(stage_map(maps, stage, GRID), GRID) for stage in range(3)] + [fused]
        tokens = [
            embed(each).flatten(2).transpose(1, 2) for embed, each in zip(self.tokens, looked_at)
        ]
        x = self.layers(
            torch.cat([each + stage + self.position for each, stage in zip(tokens, self.stage)], 1)
        )
        return self.out(self.norm(x[:, -GRID * GRID :])).transpose(1, 2).unflatten(2, (GRID, GRID))


HYPERS: dict[str, Any] = {"conv": ConvHyper, "transformer": TransformerHyper}
