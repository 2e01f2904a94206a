"""The ResNet backbone: torchvision's, without its classifier."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from timm.layers import DropPath
from torch import nn

from hyperiqa.model.backbone import Backbone
from hyperiqa.model.pretrained import check_reachable


class ResNetBackbone(Backbone):
    """torchvision's resnet18/34/50/101 without its classifier; parameters `res.*`.

    drop_path: share of images for which a block is left out while training, rising linearly to it
    at the last block; None: none (stochastic depth, Huang et al., ECCV 2016).
    """

    prefix = "res"
    hidden = (1024, 512)

    def __init__(
        self, name: str = "resnet50", pretrained: bool = False, drop_path: float | None = None
    ):
        super().__init__()
        weights = _imagenet_weights(name) if pretrained else None
        resnet = torchvision.models.get_model(name, weights=weights)
        for child, module in resnet.named_children():
            if child not in ("avgpool", "fc"):
                self.add_module(child, module)
        if drop_path:
            self._add_drop_path(drop_path)
        self.add_lda([_branch_end(stage[-1]).num_features for stage in self._stages()])

    def _stages(self) -> tuple[Any, ...]:
        return (self.layer1, self.layer2, self.layer3, self.layer4)

    def _add_drop_path(self, drop_path: float) -> None:
        """Drop the branch of each residual block, with a share that rises from 0 to `drop_path`."""
        blocks = [block for stage in self._stages() for block in stage]
        for n, block in enumerate(blocks):
            # torchvision's blocks have no such place: a hook replaces the output of the branch's
            # end before the block adds its shortcut.
            branch_end = _branch_end(block)
            branch_end.add_module("drop_path", DropPath(drop_path * n / (len(blocks) - 1)))
            branch_end.register_forward_hook(lambda norm, _, output: norm.drop_path(output))

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        stem: Any = self
        maps = [stem.maxpool(stem.relu(stem.bn1(stem.conv1(images))))]
        for stage in self._stages():
            maps.append(stage(maps[-1]))
        return maps[1:]


def _branch_end(block: Any) -> nn.BatchNorm2d:
    """The batch norm that ends a residual block's branch: of a bottleneck, or of a basic block."""
    return block.bn3 if hasattr(block, "bn3") else block.bn2


def _imagenet_weights(name: str) -> Any:
    """torchvision's ImageNet weights. Raises OSError soon if they must be downloaded and can't."""
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    downloaded = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not downloaded.exists():
        check_reachable(weights.url)
    return weights
