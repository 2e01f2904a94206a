"""The body of the hyper network: from what it sees of an image to the map that the generators read.
A body is a module made for the channels of the stage maps and of the fused map, and the backbone's hidden widths. It
takes the four stage maps and the fused map (N, C, 7, 7), and returns (N, 112, 7, 7). It is saved under `place.*`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from fusion import StageMaps

HYPER_CHANNELS = 112


class ConvHyper(nn.Sequential):
    """Three 1x1 convs with ReLU on the fused map (Su et al., CVPR 2020), under their public names."""

    place = "conv1"

    def __init__(self, channels: Sequence[int], fused: int, hidden: Sequence[int]):
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise((fused, *hidden, HYPER_CHANNELS)):
            layers += [nn.Conv2d(c_in, c_out, 1), nn.ReLU(inplace=True)]
        super().__init__(*layers)

    def forward(self, maps: StageMaps, fused: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(fused)


HYPERS: dict[str, Any] = {"conv": ConvHyper}
